/** Bytes by key: the target port. Nothing of packs, hashes or retries.
 *
 *  Contract, proved by test/conformance/object-store.ts:
 *   1. put is all-or-nothing and durable: once it resolves, the object survives a power cut; a reader sees all of it or nothing.
 *   2. Once put resolves, get and head see the object. A listing is never the truth; it may lag on remote targets.
 *   3. A rejected put may still have landed (lost acknowledgement). Keys are content-derived: repeating it is safe;
 *      repeating with the same bytes resolves; an existing object is never overwritten with fewer or other bytes
 *      unless `replace` says so.
 *   4. delete of an absent key resolves.
 *   5. Absence is `undefined`. A range past an object's end is OBJECT_TOO_SHORT. Every other failure is STORE_UNAVAILABLE
 *      (may pass; `details.retryAfterMs` when the target named a time) or STORE_REFUSED (needs a person), with its cause.
 *      An unknown error is never absence.
 *   6. Aborting `signal` settles the call promptly with `signal.reason`.
 *  Buffers: body bytes belong to the caller again once put settles.
 */
import type { Readable } from 'node:stream'

/** Characters a-z 0-9 . _ - and '/', 1–200 long, no empty, '.' or '..' segment. */
export type ObjectKey = string

export interface ObjectFacts { readonly key: ObjectKey; readonly bytes: number }
export interface ByteRange { readonly offset: number; readonly bytes: number }
export interface Call {
  readonly signal?: AbortSignal
  /** Attempts of the retrying layer for this call alone, the first included: 1 where another target can answer instead. */
  readonly attemptsMax?: number
}

/** A body that can be read again for another attempt. */
export interface ReplayableBody {
  readonly bytes: number
  open(): Readable
  /** An immutable, fsynced file with exactly these bytes: a target on the same file system may hard-link it. */
  readonly file?: string
}
export interface PutOptions extends Call {
  readonly replace?: boolean
  /** Where the target can: nothing may delete it before. */
  readonly retainUntilMs?: number
}

export interface ObjectStore {
  /** For people: "file:/srv/roost". Never holds credentials. */
  readonly description: string
  /** Something about the place that its administrator should know, as one sentence: known only once it was met. */
  readonly remark?: string | undefined
  put(key: ObjectKey, body: ReplayableBody, options?: PutOptions): Promise<void>
  /** All bytes of one range, or undefined when the key is absent. Never short: a range past the object's end is
   *  OBJECT_TOO_SHORT. Meant for ranges of a few MiB. */
  getRange(key: ObjectKey, range: ByteRange, call?: Call): Promise<Buffer | undefined>
  /** One buffer per range, in order; ranges ascend and do not overlap. One request where the target can, else one each. */
  getRanges(key: ObjectKey, ranges: readonly ByteRange[], call?: Call): Promise<Buffer[] | undefined>
  /** The whole object as a stream, or undefined. */
  get(key: ObjectKey, call?: Call): Promise<Readable | undefined>
  head(key: ObjectKey, call?: Call): Promise<ObjectFacts | undefined>
  /** Keys that start with `prefix` (which ends in '/' or is empty), in ascending order of bytes. */
  list(prefix: string, call?: Call): AsyncIterable<ObjectFacts>
  delete(key: ObjectKey, call?: Call): Promise<void>
  /** As `delete` of each, in as few requests as the target can; rejects when any of them may still be there. */
  deleteMany(keys: readonly ObjectKey[], call?: Call): Promise<void>
  close(): Promise<void>
}
