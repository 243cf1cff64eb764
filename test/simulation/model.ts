/** What was promised: snapshots that were acknowledged and not forgotten, with the whole of their content. */
import type { Item } from './content.js'

export type PromiseState = 'acknowledged' | 'being-forgotten' | 'forgotten'
export class Model {
  readonly snapshots = new Map<string, { readonly root: Item; state: PromiseState }>()
  /** Counted for the report of a batch. */
  readonly counts = new Map<string, number>()

  count(what: string): void { this.counts.set(what, (this.counts.get(what) ?? 0) + 1) }
  acknowledge(id: string, root: Item): void {
    if (this.snapshots.get(id) !== undefined) return
    this.snapshots.set(id, { root, state: 'acknowledged' })
    this.count('acknowledged')
  }
  /** Of which all must be there. */
  acknowledged(): string[] { return [...this.snapshots].filter(([, { state }]) => state === 'acknowledged').map(([id]) => id) }
  stateOf(id: string): PromiseState | undefined { return this.snapshots.get(id)?.state }
}
