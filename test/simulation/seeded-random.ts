/** All chance of a run: one seed, and streams of it that do not disturb each other. */
import type { Random } from '../../src/core/random.js'

/** sfc32: small, fast, and good enough to choose with. */
export class SeededRandom implements Random {
  #a: number
  #b: number
  #c: number
  #counter = 1
  /** Different `stream`s of one seed are independent. */
  constructor(readonly seed: number, stream = 0) {
    this.#a = seed >>> 0
    this.#b = Math.floor(seed / 2 ** 32) >>> 0
    this.#c = (stream * 0x9e37_79b9) >>> 0
    for (let i = 0; i < 15; i++) this.next()
  }
  /** u32 */
  next(): number {
    const sum = (this.#a + this.#b + this.#counter) >>> 0
    this.#counter = (this.#counter + 1) >>> 0
    this.#a = (this.#b ^ (this.#b >>> 9)) >>> 0
    this.#b = (this.#c + (this.#c << 3)) >>> 0
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) >>> 0
    return sum
  }
  fraction(): number { return this.next() / 2 ** 32 }
  bytes(count: number): Buffer {
    const bytes = Buffer.allocUnsafe(count)
    for (let at = 0; at < count; at += 4) {
      const word = this.next()
      for (let i = at; i < Math.min(at + 4, count); i++) bytes[i] = (word >>> (8 * (i - at))) & 255
    }
    return bytes
  }
  /** 0 … bound - 1 */
  below(bound: number): number { return Math.floor(this.fraction() * bound) }
  between(least: number, most: number): number { return least + this.below(most - least + 1) }
  chance(probability: number): boolean { return this.fraction() < probability }
  pick<T>(items: readonly T[]): T { return items[this.below(items.length)]! }
  /** Which item, by weight. */
  weighted<T>(items: readonly T[], weightOf: (item: T) => number): T {
    let left = this.fraction() * items.reduce((sum, item) => sum + weightOf(item), 0)
    for (const item of items) if ((left -= weightOf(item)) < 0) return item
    return items.at(-1)!
  }
  shuffled<T>(items: readonly T[]): T[] {
    const out = [...items]
    for (let i = out.length - 1; i > 0; i--) {
      const other = this.below(i + 1)
      ;[out[i], out[other]] = [out[other]!, out[i]!]
    }
    return out
  }
}
