/** The judge. Past all gates it looks at index, targets and spool as they are, and says what is not as it must be.
 *
 *  After every step that may take something away: every snapshot in the index is whole, i.e. each chunk of its tree is where the index says,
 *  in a pack that lies whole in the spool or on a target; every acknowledged one is in the index, no forgotten one is.
 */
import { streamingDigest } from '../../src/core/hash.js'
import { CHUNK_KINDS, packNumber } from '../../src/core/ids.js'
import type { ChunkIndex, PackRow, SnapshotRow } from '../../src/index/chunk-index.js'
import { packIdOfKey, packKey, PACK_PREFIX, snapshotIdOfKey, SNAPSHOT_PREFIX } from '../../src/repo/layout.js'
import { openBlock, PACK_HEADER_BYTES, type PackTrailer } from '../../src/repo/pack-format.js'
import { sealedPackName } from '../../src/repo/pack-writer.js'
import { readPackSelf } from '../../src/repo/read-trailer.js'
import { parseRecord } from '../../src/repo/snapshot-format.js'
import { join } from 'node:path'
import type { Item } from './content.js'
import type { Model } from './model.js'
import { SimulationFailure } from './scheduler.js'
import { DIRECTORY } from './template.js'
import type { World } from './world.js'

export const SPOOL = join(DIRECTORY, 'spool')

/** What a pack's own bytes say: proven once, for bytes never change under their name. */
interface PackFacts { readonly trailer: PackTrailer; readonly chunkAt: readonly string[]; readonly storedBytes: number }

export class Oracle {
  /** Buffers that were digested → the name of their bytes. */
  readonly #digests = new WeakMap<Buffer, string>()
  readonly #packs = new Map<string, PackFacts>()
  /** Ids of chunks that some snapshot of the index needs, while its snapshots stay the same. */
  #needed: { readonly of: string; readonly ids: Buffer; readonly items: readonly Item[] } | undefined
  readonly #roots = new Map<string, Item>()
  looks = 0

  constructor(readonly world: World, readonly model: Model) {}

  /** Whether these bytes are the pack of this name. */
  isPack(bytes: Buffer | undefined, packId: string): boolean {
    if (bytes === undefined) return false
    let digest = this.#digests.get(bytes)
    if (digest === undefined) {
      const hash = streamingDigest()
      hash.update(bytes)
      this.#digests.set(bytes, digest = hash.hex())
    }
    return digest === packId
  }
  /** Where the pack lies whole. */
  placesOf(packId: string): string[] {
    const { files, targets } = this.world
    const places = targets.filter((target) => this.isPack(target.memory.objects.get(packKey(packId as PackRow['packId'])), packId)).map(({ name }) => name)
    if (this.isPack(files.peek(join(SPOOL, sealedPackName(packId as PackRow['packId']))), packId)) places.push('spool')
    return places
  }
  #bytesOf(packId: string): Buffer | undefined {
    const { files, targets } = this.world
    return [...targets.map((target) => target.memory.objects.get(packKey(packId as PackRow['packId']))), files.peek(join(SPOOL, sealedPackName(packId as PackRow['packId'])))]
      .find((bytes) => this.isPack(bytes, packId))
  }
  async #factsOf(row: PackRow): Promise<PackFacts> {
    const known = this.#packs.get(row.packId)
    if (known !== undefined) return known
    const bytes = this.#bytesOf(row.packId)!
    const { template } = this.world
    const self = await readPackSelf(bytes.byteLength, async ({ offset, bytes: count }) => bytes.subarray(offset, offset + count), template.packKey, template.repositoryId)
    const { entries, blocks } = self.trailer
    const chunkAt: string[] = []
    let offset = PACK_HEADER_BYTES
    for (const block of blocks) {
      openBlock(self.secret, offset, Buffer.from(bytes.subarray(offset, offset + block.storedBytes))) // it opens
      offset += block.storedBytes
    }
    for (let i = 0; i < entries.count; i++) chunkAt.push(entries.idProofs.toString('hex', i * 48, i * 48 + 32))
    const facts = { trailer: self.trailer, chunkAt, storedBytes: bytes.byteLength }
    this.#packs.set(row.packId, facts)
    return facts
  }

  /** @throws {SimulationFailure} */
  async look(): Promise<void> {
    const { index } = this.world
    if (index === undefined) return // nobody has it open: the next process will
    this.looks++
    const rows = await everyRow(index)
    this.#compareWithPromises(rows)
    const of = rows.map(({ snapshotId }) => snapshotId).join()
    if (this.#needed?.of !== of) {
      const needed = new Map<string, Item>()
      for (const row of rows) for (const [key, item] of this.world.template.content.closure(this.rootOf(row))) needed.set(key, item)
      const items = [...needed.values()]
      this.#needed = { of, items, ids: Buffer.concat(items.map(({ id }) => id)) }
    }
    const { ids, items } = this.#needed!
    if (items.length === 0) return
    const found = await index.locate(ids)
    const packs = new Map<number, PackFacts>()
    for (let i = 0; i < items.length; i++) {
      const item = items[i]!, number = found.packNumbers[i]!
      const lost = (why: string): SimulationFailure => new SimulationFailure(`${item.label} (${item.key.slice(0, 12)}), which snapshots need, ${why}`)
      if (number === 0) throw lost('is not in the index')
      let facts = packs.get(number)
      if (facts === undefined) {
        const row = await index.getPack(packNumber(number))
        if (row === undefined) throw lost(`lies in pack ${number}, which is not in the index`)
        if (this.placesOf(row.packId).length === 0) throw lost(`lies in pack ${row.packId.slice(0, 8)}, which is whole nowhere`)
        packs.set(number, facts = await this.#factsOf(row))
      }
      const entry = found.entryNumbers[i]!, { entries } = facts.trailer
      const agrees = facts.chunkAt[entry] === item.key && entries.blockOffsets[entry] === found.blockOffsets[i] && found.kinds[i] === item.kind &&
        entries.offsetsInBlock[entry] === found.offsetsInBlock[i] && entries.rawBytes[entry] === found.rawBytes[i] && item.bytes.byteLength === found.rawBytes[i]
      if (!agrees) throw lost('is not where the index says')
    }
  }
  rootOf(row: SnapshotRow): Item {
    const known = this.#roots.get(row.snapshotId)
    if (known !== undefined) return known
    const root = this.world.template.content.root(parseRecord(row).root)
    if (root === undefined) throw new SimulationFailure(`snapshot ${row.snapshotId.slice(0, 8)} has a root that no client made`)
    this.#roots.set(row.snapshotId, root)
    return root
  }
  #compareWithPromises(rows: readonly SnapshotRow[]): void {
    const listed = new Set<string>(rows.map(({ snapshotId }) => snapshotId))
    for (const [id, { state }] of this.model.snapshots) {
      if (state === 'acknowledged' && !listed.has(id)) throw new SimulationFailure(`snapshot ${id.slice(0, 8)} was acknowledged and is not there`)
      if (state === 'forgotten' && listed.has(id)) throw new SimulationFailure(`snapshot ${id.slice(0, 8)} was forgotten and is back`)
    }
  }

  /** At rest (no session, targets up and mended): nothing is kept that nothing needs. `deadShareMax`: of the bytes of a pack. */
  async judgeRest(deadShareMax: number): Promise<void> {
    const { files, targets } = this.world
    const index = this.world.index!
    await this.look()
    const rows = await everyPack(index)
    const known = new Map<string, PackRow>(rows.map((row) => [row.packId, row]))
    const fail = (text: string): never => { throw new SimulationFailure(`at rest, ${text}`) }
    const inIndex = new Set<string>((await everyRow(index)).map(({ snapshotId }) => snapshotId))
    for (const target of targets) {
      for (const [key, bytes] of target.memory.objects) {
        if (key.startsWith(PACK_PREFIX)) {
          const row = known.get(packIdOfKey(key)!)
          if (row === undefined) fail(`${target.name} keeps ${key.slice(0, 20)} (${bytes.byteLength} bytes), which the index does not know`)
        } else if (key.startsWith(SNAPSHOT_PREFIX) && !inIndex.has(snapshotIdOfKey(key)!)) fail(`${target.name} keeps ${key.slice(0, 20)}, which the index does not know`)
      }
      for (const row of rows) if (!this.isPack(target.memory.objects.get(packKey(row.packId)), row.packId)) fail(`${target.name} lacks pack ${row.packId.slice(0, 8)}`)
      for (const id of inIndex) if (!target.memory.objects.has(`${SNAPSHOT_PREFIX}${id}`)) fail(`${target.name} lacks snapshot ${id.slice(0, 8)}`)
    }
    const spooled = files.names(SPOOL)
    if (spooled.length > 0) fail(`the spool keeps ${spooled.map((name) => name.slice(0, 16)).join(', ')}`)
    if ((await index.listSessions()).length > 0) fail('a session is open')
    if (deadShareMax < 1) await this.#judgeDeadBytes(index, rows, deadShareMax, fail)
  }
  async #judgeDeadBytes(index: ChunkIndex, rows: readonly PackRow[], deadShareMax: number, fail: (text: string) => never): Promise<void> {
    const live = new Map<number, number>()
    const { ids, items } = this.#needed!
    const found = await index.locate(ids)
    for (let i = 0; i < items.length; i++) live.set(found.packNumbers[i]!, (live.get(found.packNumbers[i]!) ?? 0) + items[i]!.bytes.byteLength)
    for (const row of rows) {
      const dead = row.rawBytes - (live.get(row.packNumber) ?? 0)
      if (dead > deadShareMax * row.rawBytes)
        fail(`pack ${row.packId.slice(0, 8)} (${row.kind === CHUNK_KINDS.node ? 'nodes' : 'data'}) keeps ${dead} dead bytes of ${row.rawBytes}`)
    }
  }
}

async function everyRow(index: ChunkIndex): Promise<SnapshotRow[]> {
  const rows: SnapshotRow[] = []
  for (let before: number | undefined; ;) {
    const page = await index.listSnapshots({ limit: 1_000, ...(before === undefined ? {} : { before }) })
    rows.push(...page)
    if (page.length < 1_000) return rows
    before = page.at(-1)!.sequence
  }
}
export async function everyPack(index: ChunkIndex): Promise<PackRow[]> {
  const rows: PackRow[] = []
  for (let after = 0; ;) {
    const page = await index.listPacks(after, 1_000)
    if (page.length === 0) return rows
    rows.push(...page)
    after = page.at(-1)!.packNumber
  }
}
