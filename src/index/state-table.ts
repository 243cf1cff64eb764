/** The few rows about the index itself: what it is bound to, its counters, whether it was closed and is complete. */
import { RoostError } from '../core/errors.js'
import type { CheckpointState, IndexIdentity, IndexLineage } from './chunk-index.js'
import { corrupt } from './checksum.js'
import { FRESH_COUNTERS, decodeCounters, encodeCounters, encodeJsonRow, sealRow, unsealRow, type Counters } from './row-codec.js'
import type { Table } from './table.js'

const KEYS = { identity: Buffer.from('identity'), counters: Buffer.from('counters'), clean: Buffer.from('clean'),
  complete: Buffer.from('complete'), lineage: Buffer.from('lineage'),
  checkpoints: Buffer.from('checkpoints') } as const
type Flag = 'clean' | 'complete'

export class StateTable {
  readonly #table: Table
  constructor(table: Table) { this.#table = table }

  /** False for a new index. @throws {RoostError} INDEX_CORRUPT when it is bound to something else. */
  isBound(identity: IndexIdentity): boolean {
    const row = this.#table.getBinary(KEYS.identity)
    if (row === undefined) {
      if (this.#table.doesExist(KEYS.counters)) throw corrupt('The index names no repository.')
      return false
    }
    requireIdentity(JSON.parse(unsealRow('identity', KEYS.identity, row).toString('utf8')) as IndexIdentity, identity)
    return true
  }
  bind(identity: IndexIdentity): void {
    this.#table.putSync(KEYS.identity, encodeJsonRow('identity', KEYS.identity, identity))
    this.putCounters({ ...FRESH_COUNTERS })
  }

  counters(): Counters {
    const row = this.#table.getBinary(KEYS.counters)
    if (row === undefined) throw corrupt('The index has no counters.')
    return decodeCounters(KEYS.counters, row)
  }
  putCounters(counters: Counters): void {
    this.#table.putSync(KEYS.counters, encodeCounters(KEYS.counters, counters))
  }

  lineage(): IndexLineage | undefined {
    const row = this.#table.getBinary(KEYS.lineage)
    return row === undefined ? undefined : JSON.parse(unsealRow('state', KEYS.lineage, row).toString('utf8')) as IndexLineage
  }
  putLineage(lineage: IndexLineage): void { this.#table.putSync(KEYS.lineage, encodeJsonRow('state', KEYS.lineage, lineage)) }

  checkpoints(): CheckpointState {
    const row = this.#table.getBinary(KEYS.checkpoints)
    return row === undefined ? { watermark: 0, recent: [], checkpoints: [] } : JSON.parse(unsealRow('state', KEYS.checkpoints, row).toString('utf8')) as CheckpointState
  }
  putCheckpoints(state: CheckpointState): void { this.#table.putSync(KEYS.checkpoints, encodeJsonRow('state', KEYS.checkpoints, state)) }

  flag(name: Flag): boolean {
    const row = this.#table.getBinary(KEYS[name])
    return row !== undefined && unsealRow('state', KEYS[name], row)[0] === 1
  }
  setFlag(name: Flag, value: boolean): void {
    this.#table.putSync(KEYS[name], sealRow('state', KEYS[name], Buffer.from([value ? 1 : 0])))
  }
}

function requireIdentity(bound: IndexIdentity, wanted: IndexIdentity): void {
  if (bound.repositoryId !== wanted.repositoryId)
    throw new RoostError('INDEX_CORRUPT', 'This index directory belongs to another repository. Point the configuration at ' +
      'the right directory, or move this one away and run "roost rebuild".', { bound: bound.repositoryId, wanted: wanted.repositoryId })
  if (bound.formatVersion !== wanted.formatVersion)
    throw new RoostError('INDEX_CORRUPT', 'This index has another format version. Move its directory away and run ' +
      '"roost rebuild".', { bound: bound.formatVersion, wanted: wanted.formatVersion })
}
