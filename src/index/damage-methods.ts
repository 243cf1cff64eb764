/** The part of the embedded index that knows damage and care; the rest of it extends this. */
import type { PackNumber, SnapshotId } from '../core/ids.js'
import type { CheckpointState, DamagedChunk, DamageState, EvacuateRequest, EvacuateResult, IndexLineage, PackEntries, PackRow, VerifiedPack } from './chunk-index.js'
import { evacuatePack, inspectEntries, markDamaged } from './damage-writes.js'
import type { IndexTables } from './pack-writes.js'
import type { SnapshotTable } from './snapshot-table.js'

/** Rows forgotten in one transaction. */
const ROWS_PER_WRITE = 4096

export abstract class DamageMethods {
  protected abstract readonly tables: IndexTables & { readonly snapshots: SnapshotTable }
  protected abstract read<T>(work: () => T): T
  protected abstract write<T>(work: () => T): Promise<T>
  protected abstract writeDurably<T>(work: () => T): Promise<T>

  async markDamaged(number: number, ids: Buffer): Promise<number> { return this.writeDurably(() => markDamaged(this.tables, number, ids)) }
  async listDamaged(after: Buffer | undefined, limit: number): Promise<DamagedChunk[]> { return this.read(() => this.tables.damage.list(after, limit)) }
  async damageState(): Promise<DamageState> {
    const { chunks, generation } = this.read(() => this.tables.damage.state())
    return { chunks, generation }
  }
  async forgetDamage(generation: number): Promise<boolean> {
    for (let after: Buffer | undefined; ;) {
      const step = await this.writeDurably(() => {
        const { damage, packs } = this.tables
        if (damage.state().generation !== generation) return 'stale'
        return damage.forget(after, ROWS_PER_WRITE, (number) => packs.get(number) !== undefined)
      })
      if (step === 'stale') return false
      if (step === undefined) return true
      after = step
    }
  }
  async noteWhole(snapshotId: SnapshotId, generation: number): Promise<void> {
    await this.write(() => { if (this.tables.snapshots.get(snapshotId) !== undefined) this.tables.damage.noteWhole(snapshotId, generation) })
  }
  async wholeAt(snapshotId: SnapshotId): Promise<number | undefined> { return this.read(() => this.tables.damage.wholeAt(snapshotId)) }
  async evacuatePack(request: EvacuateRequest): Promise<EvacuateResult> { return this.writeDurably(() => evacuatePack(this.tables, request)) }
  async inspectEntries(number: PackNumber, entries: PackEntries): Promise<Uint8Array> { return this.read(() => inspectEntries(this.tables, number, entries)) }
  async noteVerified(number: PackNumber, atMs: number): Promise<void> {
    await this.write(() => { if (this.tables.packs.get(number) !== undefined) this.tables.damage.noteVerified(number, atMs) })
  }
  async listUnverified(after: number, limit: number): Promise<{ packs: PackRow[]; next: number | undefined }> {
    return this.read(() => {
      const rows = this.tables.packs.list(after, limit)
      return { packs: rows.filter((row) => !this.tables.damage.isVerified(row.packNumber)), next: rows.at(-1)?.packNumber }
    })
  }
  async lineage(): Promise<IndexLineage | undefined> { return this.read(() => this.tables.state.lineage()) }
  async setLineage(lineage: IndexLineage): Promise<void> { await this.writeDurably(() => { this.tables.state.putLineage(lineage) }) }
  async checkpoints(): Promise<CheckpointState> { return this.read(() => this.tables.state.checkpoints()) }
  async setCheckpoints(state: CheckpointState): Promise<void> { await this.writeDurably(() => { this.tables.state.putCheckpoints(state) }) }
  async listVerified(after: number, limit: number): Promise<VerifiedPack[]> { return this.read(() => this.tables.damage.listVerified(after, limit)) }
}
