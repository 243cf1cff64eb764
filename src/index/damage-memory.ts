/** What the index in plain maps knows of lost chunks, whole snapshots and verified packs; the embedded one's rules in few lines. */
import { CHUNK_ID_BYTES, ID_PROOF_BYTES, chunkKey, packNumber, type ChunkKey, type SnapshotId } from '../core/ids.js'
import type { DamagedChunk, DamageState, PackEntries, VerifiedPack } from './chunk-index.js'

export class DamageMemory {
  readonly #lost = new Map<ChunkKey, number>()
  readonly #unneeded = new Map<ChunkKey, number>()
  readonly #whole = new Map<SnapshotId, number>()
  readonly #verified = new Map<number, VerifiedPack>()
  #generation = 0
  #sequence = 0

  get state(): DamageState { return { chunks: this.#lost.size, generation: this.#generation } }
  lose(ids: readonly ChunkKey[], pack: number): number {
    const fresh = ids.filter((id) => !this.#lost.has(id))
    for (const id of fresh) { this.#lost.set(id, pack); this.#unneeded.delete(id) }
    const distinct = new Set(fresh).size
    if (distinct > 0) this.#generation++
    return distinct
  }
  healed(entries: PackEntries): void {
    for (let entry = 0; entry < entries.count; entry++)
      for (const rows of [this.#lost, this.#unneeded]) rows.delete(chunkKey(entries.idProofs, entry * ID_PROOF_BYTES))
  }
  lossOf(id: ChunkKey): 'lost' | 'unneeded' | undefined { return this.#lost.has(id) ? 'lost' : this.#unneeded.has(id) ? 'unneeded' : undefined }
  list(after: Buffer | undefined, limit: number): DamagedChunk[] {
    const from = after === undefined ? undefined : chunkKey(after)
    return [...this.#lost].filter(([id]) => from === undefined || id > from).sort(([a], [b]) => (a < b ? -1 : 1)).slice(0, limit)
      .map(([id, pack]) => ({ id: Buffer.from(id, 'latin1').subarray(0, CHUNK_ID_BYTES), packNumber: pack }))
  }
  forget(generation: number, isHere: (pack: number) => boolean): boolean {
    if (generation !== this.#generation) return false
    const rows = [...this.#lost, ...this.#unneeded]
    this.#lost.clear()
    this.#unneeded.clear()
    for (const [id, pack] of rows) if (isHere(pack)) this.#unneeded.set(id, pack)
    return true
  }
  noteWhole(snapshot: SnapshotId, generation: number): void { this.#whole.set(snapshot, Math.max(generation, this.#whole.get(snapshot) ?? 0)) }
  wholeAt(snapshot: SnapshotId): number | undefined { return this.#whole.get(snapshot) }
  forgetSnapshot(snapshot: SnapshotId): void { this.#whole.delete(snapshot) }
  noteVerified(pack: number, atMs: number): void { this.#verified.set(pack, { sequence: ++this.#sequence, packNumber: packNumber(pack), atMs }) }
  isVerified(pack: number): boolean { return this.#verified.has(pack) }
  listVerified(after: number, limit: number): VerifiedPack[] {
    return [...this.#verified.values()].filter(({ sequence }) => sequence > after).sort((a, b) => a.sequence - b.sequence).slice(0, limit)
  }
  forgetPack(pack: number): void { this.#verified.delete(pack) }
}
