/** Repeats calls that failed with STORE_UNAVAILABLE, with growing, jittered delays. Everything else passes at once.
 *
 *  Outside of bounded in the stack, so that a waiting retry holds no slot. A failed put is repeated, never undone: it may
 *  have landed, and a delete could destroy what another put was acknowledged for. A stream that `get` returned and that
 *  fails later is its reader's to reopen.
 */
import type { Clock } from '../core/clock.js'
import { hasCode } from '../core/errors.js'
import type { Random } from '../core/random.js'
import type { Call, ObjectFacts, ObjectStore } from './object-store.js'

const DELAY_MS_MAX = 20_000

export interface RetryingStoreOptions {
  readonly clock: Clock
  readonly random: Random
  /** The first attempt included. Default 5. */
  readonly attemptsMax?: number
  /** Default 200: doubled for each further attempt. */
  readonly firstDelayMs?: number
  /** Default 20 000. */
  readonly delayMsMax?: number
}

export function retryingStore(inner: ObjectStore, options: RetryingStoreOptions): ObjectStore {
  async function repeat<T>(call: Call | undefined, work: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try { return await work() } catch (error) {
        await waitForNext(attempt, error, call, options)
      }
    }
  }
  return {
    description: inner.description,
    get remark() { return inner.remark },
    put: (key, body, put) => repeat(put, () => inner.put(key, body, put)),
    getRange: (key, range, call) => repeat(call, () => inner.getRange(key, range, call)),
    getRanges: (key, ranges, call) => repeat(call, () => inner.getRanges(key, ranges, call)),
    get: (key, call) => repeat(call, () => inner.get(key, call)),
    head: (key, call) => repeat(call, () => inner.head(key, call)),
    list: (prefix, call) => listRepeating(inner, prefix, call, options),
    delete: (key, call) => repeat(call, () => inner.delete(key, call)),
    deleteMany: (keys, call) => repeat(call, () => inner.deleteMany(keys, call)),
    close: () => inner.close(),
  }
}

/** A listing that breaks is begun again, and what was yielded already is skipped: keys ascend. An entry that arrives
 *  is progress, and renews the attempts. */
async function* listRepeating(inner: ObjectStore, prefix: string, call: Call | undefined,
  options: RetryingStoreOptions): AsyncGenerator<ObjectFacts, void, undefined> {
  let last = ''
  for (let attempt = 1; ; attempt++) {
    try {
      for await (const facts of inner.list(prefix, call)) {
        if (facts.key <= last) continue
        last = facts.key
        attempt = 1
        yield facts
      }
      return
    } catch (error) {
      await waitForNext(attempt, error, call, options)
    }
  }
}

/** Throws `error` when there is no next attempt; else sleeps until it is due. A target that names a time is taken at its word, up to
 *  the longest delay. */
async function waitForNext(attempt: number, error: unknown, call: Call | undefined, options: RetryingStoreOptions): Promise<void> {
  const { attemptsMax = 5, delayMsMax = DELAY_MS_MAX, clock } = options
  if (attempt >= (call?.attemptsMax ?? attemptsMax) || !hasCode(error, 'STORE_UNAVAILABLE')) throw error
  const named = error.details['retryAfterMs']
  const waitMs = Math.max(delayMs(attempt, options), typeof named === 'number' ? Math.min(named, delayMsMax) : 0)
  await clock.sleep(waitMs, call?.signal)
}
/** Half fixed, half random: callers that failed together come back apart. */
function delayMs(attempt: number, { firstDelayMs = 200, delayMsMax = DELAY_MS_MAX, random }: RetryingStoreOptions): number {
  const ceiling = Math.min(delayMsMax, firstDelayMs * 2 ** (attempt - 1))
  return ceiling * (0.5 + random.fraction() / 2)
}
