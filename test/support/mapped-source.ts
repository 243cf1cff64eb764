/** A disk in memory as a BlockSource, with a dirty map of blocks; what was read of it is counted. */
import type { BlockReads, BlockSource, ExtentState, SourceExtent } from '../../client/image/block-source.js'
import { ownFacts } from '../../client/image/own-facts.js'

export interface MappedSourceOptions {
  readonly bytes: Buffer
  readonly blockBytes: number
  /** By block: true where the map says that it was written. Without: there is no map. */
  readonly dirty?: readonly boolean[]
  readonly parentRoot?: string
  readonly mapProblem?: string
  readonly kind: BlockReads['kind']
}
export class MappedSource implements BlockSource {
  readonly bytes: number
  readonly isDevice = false
  readonly facts = ownFacts()
  readonly reads: BlockReads
  readonly mapParentRoot?: string
  readonly mapProblem?: string
  /** Stretches, in the order they were asked for. */
  readonly asked: { readonly position: number; readonly bytes: number }[] = []
  isClosed = false
  constructor(readonly options: MappedSourceOptions) {
    this.bytes = options.bytes.byteLength
    if (options.parentRoot !== undefined) this.mapParentRoot = options.parentRoot
    if (options.mapProblem !== undefined) this.mapProblem = options.mapProblem
    this.reads = options.kind === 'direct' ? { kind: 'direct', read: (into, position) => this.#ask(position, into.byteLength).copy(into) }
      : { kind: 'queued', requestBytes: 3 * options.blockBytes, windowBytes: 20 * options.blockBytes, read: async (position, bytes) => {
        const data = this.#ask(position, bytes)
        for (let turns = this.asked.length % 3; turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve))
        return data.every((byte) => byte === 0) ? undefined : Buffer.from(data)
      } }
  }
  get askedBytes(): number { return this.asked.reduce((sum, { bytes }) => sum + bytes, 0) }
  #ask(position: number, bytes: number): Buffer {
    this.asked.push({ position, bytes })
    return this.options.bytes.subarray(position, position + bytes)
  }
  async *extents(withMap: boolean): AsyncGenerator<SourceExtent> {
    const { blockBytes, dirty, bytes } = this.options
    for (let offset = 0; offset < this.bytes; offset += blockBytes) {
      const block = bytes.subarray(offset, offset + blockBytes)
      const state: ExtentState = withMap && dirty?.[offset / blockBytes] === false ? 'clean' : block.every((byte) => byte === 0) ? 'zero' : 'data'
      yield { offset, bytes: block.byteLength, state }
    }
  }
  changes(): undefined { return undefined }
  close(): void { this.isClosed = true }
}
