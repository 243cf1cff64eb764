/** An ArenaSupply without threads: arenas go to `onArena` and come back when it is done with them. */
import { Arena, type ArenaUse } from '../../client/upload/arena.js'
import type { ArenaSupply } from '../../client/upload/arena-chunk-sink.js'

export class ArenaLoop implements ArenaSupply {
  readonly #free: Record<ArenaUse, number>
  readonly #waiting: Record<ArenaUse, ((arena: Arena) => void)[]> = { data: [], nodes: [] }
  readonly #out = new Set<Promise<void>>()
  sent = 0
  failure: unknown
  constructor(readonly onArena: (arena: Arena) => Promise<void>, arenasMax: Record<ArenaUse, number> = { data: 2, nodes: 2 }) {
    this.#free = { ...arenasMax }
  }
  tryTake(use: ArenaUse): Arena | undefined {
    if (this.#free[use] === 0) return undefined
    this.#free[use]--
    return Arena.allocate(use)
  }
  async take(use: ArenaUse): Promise<Arena> {
    return this.tryTake(use) ?? await new Promise((resolve) => this.#waiting[use].push(resolve))
  }
  send(arena: Arena): void {
    this.sent++
    const work: Promise<void> = this.onArena(arena).catch((error: unknown) => { this.failure ??= error }).finally(() => {
      this.#out.delete(work)
      // Dirtied, so that a reader of recycled bytes is caught.
      arena.payload.fill(0xee)
      const waiter = this.#waiting[arena.use].shift()
      if (waiter === undefined) this.#free[arena.use]++
      else waiter(new Arena(arena.use, arena.buffer))
    })
    this.#out.add(work)
  }
  /** Every arena is back. @throws the first failure */
  async settled(): Promise<void> {
    while (this.#out.size > 0) await Promise.all(this.#out)
    if (this.failure !== undefined) throw this.failure
  }
}
/** Deterministic bytes; the same seed gives the same. */
export function seededBytes(bytes: number, seed: number): Buffer {
  const filled = Buffer.allocUnsafe(bytes)
  let state = (seed * 2654435761 + 1) >>> 0
  for (let i = 0; i < bytes; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    filled[i] = state >>> 24
  }
  return filled
}
