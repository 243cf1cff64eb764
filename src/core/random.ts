/** Randomness enters here, so that tests can seed it. Production is the operating system's generator. */
import { randomBytes, randomInt } from 'node:crypto'

export interface Random {
  bytes(count: number): Buffer
  /** A fraction in [0, 1) for jitter. */
  fraction(): number
}
export const systemRandom: Random = {
  bytes: (count) => randomBytes(count),
  fraction: () => randomInt(0, 2 ** 32) / 2 ** 32,
}
