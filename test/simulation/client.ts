/** A client: backs up, restores and forgets, over and over, and behaves as badly as clients do: gives up, vanishes, comes back late,
 *  repeats what it has no answer to. What it is told must be true.
 */
import { FRAME_VERDICTS, hasBit, decodeReadFrameHeader, READ_END, READ_FRAME_HEADER_BYTES, READ_STATUS } from '../../src/core/frames.js'
import { hasCode, isAbort, RoostError } from '../../src/core/errors.js'
import { CHUNK_KINDS, parseSessionId, parseSnapshotId, type SessionId } from '../../src/core/ids.js'
import type { CommitRequest, OpenSessionReply } from '../../src/core/messages.js'
import { frameBody } from '../support/repository-world.js'
import type { Item } from './content.js'
import type { Model } from './model.js'
import { SimulationFailure, type Scheduler } from './scheduler.js'
import type { SeededRandom } from './seeded-random.js'
import { ConnectionLost, type World } from './world.js'

export interface ClientContext {
  readonly world: World
  readonly scheduler: Scheduler
  readonly model: Model
  readonly random: SeededRandom
  readonly name: string
  /** No new work: finish what is under way. */
  isEnding(): boolean
}
interface Session { readonly id: SessionId; readonly reply: OpenSessionReply }

const STATISTICS = { files: 1, directories: 1, others: 0, sourceBytes: 1, bytesRead: 1, chunksTotal: 3, chunksSent: 3, bytesSent: 1, bytesOnWire: 1, errors: 0, durationMs: 1, cpuMs: 1 }
const ATTEMPTS_MAX = 6
const labels = (items: readonly Item[]): string => items.map(({ label }) => label).join(', ') || 'nothing'
/** A client that gives up what it was about: the server said a thing that it may say. */
class GivesUp extends Error { override readonly name = 'GivesUp' }

export class Client {
  #made = 0
  constructor(readonly context: ClientContext) {}

  async live(): Promise<void> {
    const { random, scheduler, model } = this.context
    while (!this.context.isEnding()) {
      await this.#pause('thinks')
      const what = random.weighted(['push', 'restore', 'forget'] as const, (one) => ({ push: 6, restore: 3, forget: 2 })[one])
      try {
        if (what === 'push') await this.#push()
        else if (what === 'restore') await this.restore(random.pick(model.acknowledged()))
        else await this.#forget()
        scheduler.note(`${this.context.name} has done its ${what}`)
      } catch (error) {
        if (!(error instanceof GivesUp)) throw error
        model.count(`${what} given up`)
        scheduler.note(`${this.context.name} gives up its ${what}: ${error.message}`)
      }
    }
  }
  #note(text: string): void { this.context.scheduler.note(`${this.context.name} ${text}`) }
  #pause(name: string): Promise<void> { return this.context.scheduler.pause('client', `${this.context.name} ${name}`) }

  /** Repeats what may be repeated. @throws {GivesUp}; SESSION_LOST and what else the caller must judge */
  async #ask<T>(what: string, work: Parameters<World['request']>[0] extends (...args: infer A) => unknown ? (...args: A) => Promise<T> : never): Promise<T> {
    const { world, random } = this.context
    for (let attempt = 1; ; attempt++) {
      const hangsUp = random.chance(0.02) ? new AbortController() : undefined
      if (hangsUp !== undefined) void this.#pause(`will hang up its ${what}`).then(() => { hangsUp.abort(new DOMException('the client hung up', 'AbortError')) })
      try {
        return await world.request(work, hangsUp)
      } catch (error) {
        const mayRepeat = error instanceof ConnectionLost || isAbort(error) || (error instanceof RoostError && (error.traits.retry === 'later' || error.traits.retry === 'same'))
        if (!mayRepeat) throw error
        if (attempt >= ATTEMPTS_MAX) throw new GivesUp(`${what}: ${(error as Error).message}`)
        await this.#pause(`repeats ${what} after ${error instanceof RoostError ? error.code : (error as Error).name}`)
      }
    }
  }

  // ——— backing up ———

  async #push(): Promise<void> {
    const { random, world, model, name } = this.context
    const { content } = world.template
    let root: Item | undefined
    for (let attempt = 1; attempt <= 3; attempt++) {
      const session = await this.#open({ kind: 'push', source: random.chance(0.7) ? name : 'shared', mode: 'files', parent: random.chance(0.7) ? 'latest' : null })
      try {
        const inherited = await this.#readParent(session)
        root ??= content.makeTree(random, random.chance(0.8) ? inherited.parent : undefined, `${name} ${this.#made++}`)
        await this.#send(session, root, inherited.keys)
        if (await this.#maybeLeave(session)) return
        await this.#commit(session, root)
        return
      } catch (error) {
        if (!hasCode(error, 'SESSION_LOST')) throw error
        model.count('sessions lost')
      }
    }
    throw new GivesUp('three sessions were lost')
  }
  async #open(request: Parameters<World['repository']['openSession']>[0]): Promise<Session> {
    const reply = await this.#ask('open', (repository) => repository.openSession(request, { tokenId: this.context.name }))
    this.#note(`has session ${reply.sessionId.slice(0, 8)}`)
    return { id: parseSessionId(reply.sessionId), reply }
  }
  /** Reads some of the parent's nodes: what they list need not be asked for nor sent. */
  async #readParent({ id, reply }: Session): Promise<{ parent: Item | undefined; keys: ReadonlySet<string> }> {
    const { random, world } = this.context
    const keys = new Set<string>()
    if (reply.snapshot === undefined) return { parent: undefined, keys }
    const record = JSON.parse(Buffer.from(reply.snapshot.record, 'base64').toString('utf8')) as { root: string }
    const parent = world.template.content.root(record.root)
    if (parent === undefined) throw new SimulationFailure(`${this.context.name} was given a parent that no client made`)
    keys.add(parent.key)
    if (random.chance(0.2)) return { parent, keys }
    for (let level: Item[] = [parent]; level.length > 0;) {
      await this.#read(id, level, false)
      for (const item of level) for (const child of item.children) keys.add(child.key)
      level = level.flatMap(({ children }) => children).filter(({ kind, key }) => kind === CHUNK_KINDS.node && keys.has(key) && random.chance(0.4))
    }
    return { parent, keys }
  }
  /** Asks for everything that is not the parent's, and sends what is missing. */
  async #send(session: Session, root: Item, inherited: ReadonlySet<string>): Promise<void> {
    const { random } = this.context
    const needed = new Map<string, Item>()
    const visit = (item: Item): void => {
      if (inherited.has(item.key) || needed.has(item.key)) return
      for (const child of item.children) visit(child)
      needed.set(item.key, item)
    }
    visit(root)
    const items = random.chance(0.7) ? [...needed.values()] : random.shuffled([...needed.values()])
    for (let at = 0; at < items.length;) {
      const batch = items.slice(at, at += random.between(1, 8))
      let missing = random.chance(0.1) ? batch : await this.#findMissing(session, batch)
      if (random.chance(0.2)) await this.#pause('reads its disk')
      if (random.chance(0.04)) await this.#sleepLong()
      for (let round = 0; missing.length > 0; round++) {
        if (round > 10) throw new SimulationFailure(`${this.context.name} is told to send the same chunks again without end`)
        const lacking = missing
        const parts = random.chance(0.5) ? [lacking] : [lacking.slice(0, lacking.length >> 1), lacking.slice(lacking.length >> 1)].filter(({ length }) => length > 0)
        missing = (await Promise.all(parts.map((part) => this.#put(session, part)))).flat()
      }
    }
  }
  async #findMissing({ id }: Session, items: readonly Item[]): Promise<Item[]> {
    const bits = await this.#ask('missing', (repository) => repository.findMissing(id, Buffer.concat(items.map(({ idProof }) => idProof))))
    const missing = items.filter((_, i) => hasBit(bits, i))
    this.#note(`asked for ${labels(items)}: lacking ${labels(missing)}`)
    return missing
  }
  /** What must come again. */
  async #put({ id }: Session, items: readonly Item[]): Promise<Item[]> {
    const { dedupKey } = this.context.world.template.content
    const { verdicts } = await this.#ask('put', (repository, signal) => repository.putChunks(id, frameBody(dedupKey, items), signal))
    verdicts.forEach((verdict, i) => {
      if (verdict !== FRAME_VERDICTS.stored && verdict !== FRAME_VERDICTS.duplicate && verdict !== FRAME_VERDICTS.retry)
        throw new SimulationFailure(`a whole chunk (${items[i]!.label}) was refused with verdict ${verdict}`)
    })
    this.#note(`sent ${items.map(({ label }, i) => `${label} ${['stored', 'duplicate', '', '', 'again'][verdicts[i]!]}`).join(', ')}`)
    return items.filter((_, i) => verdicts[i] === FRAME_VERDICTS.retry)
  }
  /** Away for long: hours pass, others go on, and then it goes on where it was. */
  async #sleepLong(): Promise<void> {
    this.context.model.count('clients that came back late')
    for (let i = this.context.random.between(5, 60); i > 0; i--) await this.#pause('sleeps')
  }
  /** True when this push ends here. */
  async #maybeLeave({ id }: Session): Promise<boolean> {
    const { random, model } = this.context
    if (random.chance(0.07)) {
      model.count('pushes abandoned')
      await this.#ask('close', (repository) => repository.closeSession(id))
      return true
    }
    if (random.chance(0.07)) { model.count('clients that vanished'); return true }
    if (random.chance(0.15)) await this.#sleepLong()
    return false
  }
  async #commit({ id }: Session, root: Item): Promise<void> {
    const { world, model, name } = this.context
    const request: CommitRequest = { root: root.key, host: 'h', user: 'u', paths: ['/x'], tags: [], startedAtMs: 1, statistics: STATISTICS }
    try {
      const { snapshot } = await this.#ask('commit', (repository, signal) => repository.commit(id, request, signal))
      model.acknowledge(snapshot.id, root)
      world.scheduler.note(`${name} has snapshot ${snapshot.id.slice(0, 8)}`)
    } catch (error) {
      // It asked for everything, sent what was missing, and its session is open: nothing of it may be gone.
      if (hasCode(error, 'COMMIT_INCOMPLETE')) {
        const chunk = String(error.details['chunk'])
        throw new SimulationFailure(`a commit lacks ${world.template.content.closure(root).get(chunk)?.label} (${chunk.slice(0, 12)}): ${error.message}`)
      }
      throw error
    }
  }

  // ——— restoring ———

  /** Reads a snapshot whole, and compares. Forgotten in the middle of it, it is still whole. */
  async restore(snapshot: string | undefined): Promise<void> {
    const { model, random } = this.context
    if (snapshot === undefined) return
    const { root } = model.snapshots.get(snapshot)!
    let session: Session
    try {
      session = await this.#open({ kind: 'read', snapshot })
    } catch (error) {
      if (hasCode(error, 'SNAPSHOT_UNKNOWN') && model.stateOf(snapshot) !== 'acknowledged') return
      throw error
    }
    try {
      await this.#readTree(session, root)
      model.count('restored')
    } catch (error) {
      if (!hasCode(error, 'SESSION_LOST')) throw error
      model.count('sessions lost')
      return
    }
    if (random.chance(0.8)) await this.#ask('close', (repository) => repository.closeSession(session.id))
  }
  async #readTree({ id }: Session, root: Item): Promise<void> {
    const { random } = this.context
    const seen = new Set<string>([root.key])
    for (let level: Item[] = [root]; level.length > 0;) {
      for (let at = 0; at < level.length;) {
        await this.#read(id, level.slice(at, at += random.between(1, 12)), true)
        if (random.chance(0.3)) await this.#pause('writes its disk')
        if (random.chance(0.02)) await this.#sleepLong()
      }
      level = level.flatMap(({ children }) => children).filter(({ key }) => !seen.has(key) && seen.add(key))
    }
  }
  /** @throws {SimulationFailure} when a chunk is not served, or other bytes are. */
  async #read(session: SessionId, items: readonly Item[], withData: boolean): Promise<void> {
    const wanted = items.filter(({ kind }) => withData || kind === CHUNK_KINDS.node)
    const parts = await this.#ask('read', async (repository, signal) => {
      const found: Buffer[] = []
      for await (const part of repository.readChunks(session, Buffer.concat(wanted.map(({ id }) => id)), signal)) found.push(Buffer.from(part))
      return found
    })
    const frames = Buffer.concat(parts)
    const seen = new Set<number>()
    for (let at = 0; at < frames.byteLength;) {
      const head = decodeReadFrameHeader(frames.subarray(at, at + READ_FRAME_HEADER_BYTES))
      const bytes = frames.subarray(at + READ_FRAME_HEADER_BYTES, at + READ_FRAME_HEADER_BYTES + head.wireBytes)
      at += READ_FRAME_HEADER_BYTES + head.wireBytes
      if (head.index === READ_END) continue
      const item = wanted[head.index]!
      if (head.status !== READ_STATUS.ok) throw new SimulationFailure(`${item.label} (${item.key.slice(0, 12)}) is ${head.status === READ_STATUS.missing ? 'missing' : 'not readable'} for ${this.context.name}`)
      if (!bytes.equals(item.bytes)) throw new SimulationFailure(`${item.label} came with other bytes`)
      seen.add(head.index)
    }
    if (seen.size !== wanted.length) throw new SimulationFailure('a read left chunks out')
  }

  // ——— forgetting ———

  /** Forgets a snapshot, if there is one, and the server lets it. */
  async forgetOne(): Promise<void> {
    await this.#forget().catch((error: unknown) => { if (!(error instanceof GivesUp)) throw error })
  }
  async #forget(): Promise<void> {
    const { model, random } = this.context
    const id = random.pick([...model.snapshots].filter(([, { state }]) => state !== 'forgotten').map(([one]) => one))
    if (id === undefined) return
    const snapshot = model.snapshots.get(id)!
    snapshot.state = 'being-forgotten'
    try {
      await this.#ask('forget', (repository) => repository.deleteSnapshot(parseSnapshotId(id)))
    } catch (error) {
      if (!hasCode(error, 'SNAPSHOT_UNKNOWN')) throw error
    }
    snapshot.state = 'forgotten'
    model.count('forgotten')
  }
}
