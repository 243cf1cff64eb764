/** An NBD export as a BlockSource: base:allocation tells its holes, a dirty bitmap what was written since the parent (docs/sources.md).
 *
 *  Contexts that the server does not have, or cannot answer for, cost reading, never bytes: without base:allocation all is data, and without
 *  the dirty map the disk is read in full.
 */
import { systemClock } from '../../src/core/clock.js'
import { MapUnusable, type BlockReads, type BlockSource, type ExtentState, type SourceExtent } from '../image/block-source.js'
import type { DirtyMapConfig, NbdOrigin } from '../image/open-source.js'
import { ownFacts } from '../image/own-facts.js'
import { NbdClient, REQUEST_BYTES, REQUESTS_IN_FLIGHT, type NbdClientOptions } from './client.js'
import type { StatusExtent } from './client-protocol.js'
import { NbdServerError } from './client-reply.js'
import { BASE_ALLOCATION } from './protocol.js'

/** Of one question: a multiple of any block size, and in 32 bits. */
const STATUS_BYTES = 2 ** 31
/** base:allocation: it reads as zeroes. A hole that does not is data. */
const STATE_ZERO = 2

export type NbdSourceOptions = Pick<NbdClientOptions, 'signal'> & Partial<Pick<NbdClientOptions, 'clock' | 'limits' | 'onLoss'>>

/** @throws {ClientError} NBD_UNREACHABLE, NBD_REFUSED, NBD_BROKEN; `signal.reason` */
export async function openNbdSource(origin: NbdOrigin, options: NbdSourceOptions): Promise<BlockSource> {
  const { address, exportName, dirtyMap } = origin
  const base = { clock: systemClock, ...options, address, exportName }
  const client = await NbdClient.open({ ...base, contexts: [BASE_ALLOCATION, ...dirtyMap === undefined ? [] : [dirtyMap.context]] })
  return new NbdSource(client, base, dirtyMap)
}

class NbdSource implements BlockSource {
  readonly bytes: number
  readonly isDevice = false
  readonly facts = ownFacts()
  readonly reads: BlockReads
  readonly mapParentRoot?: string
  readonly mapProblem?: string
  #hasAllocation: boolean

  constructor(readonly client: NbdClient, readonly base: Omit<NbdClientOptions, 'contexts'>, readonly dirtyMap: DirtyMapConfig | undefined) {
    this.bytes = client.agreement.bytes
    this.reads = { kind: 'queued', requestBytes: REQUEST_BYTES, windowBytes: REQUEST_BYTES * REQUESTS_IN_FLIGHT, read: (position, bytes) => client.read(position, bytes),
      release: (data) => { client.release(data) } }
    this.#hasAllocation = client.hasContext(BASE_ALLOCATION)
    if (dirtyMap === undefined) return
    if (client.hasContext(dirtyMap.context)) this.mapParentRoot = dirtyMap.parentRoot
    else this.mapProblem = `the server does not offer its dirty map ${dirtyMap.context}`
  }
  extents(withMap: boolean): AsyncGenerator<SourceExtent> { return withMap ? this.#mapped(this.dirtyMap!.context) : this.#allocated() }
  changes(): undefined { return undefined }
  close(): void { this.client.close() }

  async *#allocated(): AsyncGenerator<SourceExtent> {
    for (let offset = 0; offset < this.bytes;) {
      const told = this.#hasAllocation ? await this.#allocationAt(offset) : undefined
      if (told === undefined) { yield { offset, bytes: this.bytes - offset, state: 'data' }; return }
      for (const { bytes, flags } of told) {
        yield { offset, bytes, state: (flags & STATE_ZERO) !== 0 ? 'zero' : 'data' }
        offset += bytes
      }
    }
  }
  /** Undefined: the server cannot tell, and is not asked again. */
  async #allocationAt(offset: number): Promise<readonly StatusExtent[] | undefined> {
    try {
      return (await this.client.status(offset, Math.min(STATUS_BYTES, this.bytes - offset))).get(BASE_ALLOCATION)
    } catch (error) {
      if (!(error instanceof NbdServerError)) throw error
      this.#hasAllocation = false
      return undefined
    }
  }

  /** Clean is what the map calls so, whatever base:allocation says. Among the rest, base:allocation tells zeroes from data. */
  async *#mapped(context: string): AsyncGenerator<SourceExtent> {
    let client = this.client
    try {
      for (let offset = 0; offset < this.bytes;) {
        let told
        try {
          told = await client.status(offset, Math.min(STATUS_BYTES, this.bytes - offset))
        } catch (error) {
          if (!(error instanceof NbdServerError)) throw error
          // Some exports cannot tell the allocation of what is not dirty (QEMU's copy-before-write with a bitmap): the map alone is asked for then.
          if (client !== this.client) throw new MapUnusable(`the server cannot tell its dirty map: ${error.message}`)
          client = await NbdClient.open({ ...this.base, contexts: [context] })
          if (!client.hasContext(context)) throw new MapUnusable('the server does not offer its dirty map any more')
          continue
        }
        for (const extent of overlaid(told.get(context)!, told.get(BASE_ALLOCATION))) {
          yield { ...extent, offset }
          offset += extent.bytes
        }
      }
    } finally {
      if (client !== this.client) client.close()
    }
  }
}

/** As far as both tell. */
function* overlaid(dirty: readonly StatusExtent[], allocation: readonly StatusExtent[] | undefined): Generator<{ bytes: number; state: ExtentState }> {
  let d = 0, a = 0, dirtyLeft = dirty[0]!.bytes, allocationLeft = allocation?.[0]?.bytes ?? Infinity
  for (;;) {
    const bytes = Math.min(dirtyLeft, allocationLeft)
    // The map's other bits have no meaning yet: whatever is not 0 is taken for dirty.
    yield { bytes, state: dirty[d]!.flags === 0 ? 'clean' : ((allocation?.[a]?.flags ?? 0) & STATE_ZERO) !== 0 ? 'zero' : 'data' }
    dirtyLeft -= bytes
    allocationLeft -= bytes
    if (dirtyLeft === 0 && ++d === dirty.length || allocationLeft === 0 && ++a === allocation!.length) return
    if (dirtyLeft === 0) dirtyLeft = dirty[d]!.bytes
    if (allocationLeft === 0) allocationLeft = allocation![a]!.bytes
  }
}
