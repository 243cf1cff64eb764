/** Packs in an S3 bucket, or below a prefix of one: AWS, Ceph's gateway, Swift's s3api. Contacts nothing until it is asked something.
 *
 *  A body is read twice: once for its digests, which sign it and are verified by the service, and once to be sent. Conditional creation is
 *  tried out before it is relied on; where a service ignores or refuses it, an object is looked for before it is written.
 */
import { Readable } from 'node:stream'
import { assert } from '../../core/assert.js'
import { dateOf, type Clock } from '../../core/clock.js'
import { RoostError } from '../../core/errors.js'
import { GiB, MiB } from '../../core/limits.js'
import { systemRandom, type Random } from '../../core/random.js'
import { readBody } from '../body.js'
import { describe } from '../../http/http.js'
import { requireObjectKey, requirePrefix } from '../object-key.js'
import type { ByteRange, Call, ObjectFacts, ObjectKey, ObjectStore, PutOptions, ReplayableBody } from '../object-store.js'
import { deleteOneByOne, rangesOneByOne } from '../one-by-one.js'
import { digestBody, type Digests } from './digests.js'
import { S3Requests, type S3Deadlines, type S3Object } from './s3-client.js'
import { isCredentialFailure, nameOf, notS3, s3Error, statusOf } from './s3-errors.js'
import { parseS3Url, type S3Place } from './s3-url.js'

export interface S3StoreOptions {
  readonly url: string
  readonly clock: Clock
  readonly random?: Random
  /** Of AWS_* only; the rest of AWS's chain reads the process's own. */
  readonly environment?: Readonly<Record<string, string | undefined>>
  /** Makes the bucket when it is missing. */
  readonly create?: boolean
  readonly deadlines?: S3Deadlines
}
/** Of one request, says S3; packs are far smaller, so that nothing is sent in parts. */
const PUT_BYTES_MAX = 5 * GiB
/** A bucket that was seen is believed to be there for so long. */
const BUCKET_SEEN_MS = 10_000
const DELETES_PER_REQUEST = 1_000

/** @throws {RoostError} REQUEST_MALFORMED for a malformed URL */
export function openS3Store(options: S3StoreOptions): ObjectStore { return new S3Store(options, parseS3Url(options.url)) }

class S3Store implements ObjectStore {
  readonly description: string
  readonly #place: S3Place
  readonly #clock: Clock
  readonly #random: Random
  readonly #requests: S3Requests
  #mayCreate: boolean
  #bucketSeenMs = -Infinity
  #createsConditionally: Promise<boolean> | undefined
  #deletesMany = true
  remark: string | undefined

  constructor(options: S3StoreOptions, place: S3Place) {
    this.description = options.url
    this.#place = place
    this.#clock = options.clock
    this.#random = options.random ?? systemRandom
    this.#mayCreate = options.create === true
    this.#requests = new S3Requests(place, options.deadlines ?? {}, options.environment ?? {})
  }

  // ——— writing ———
  async put(key: ObjectKey, body: ReplayableBody, { replace = false, retainUntilMs, signal }: PutOptions = {}): Promise<void> {
    requireObjectKey(key)
    if (body.bytes > PUT_BYTES_MAX) throw new RoostError('STORE_REFUSED', `${key} has ${body.bytes} bytes; S3 takes at most 5 GiB at once.`, { key })
    signal?.throwIfAborted()
    const digests = await digestBody(key, body, signal)
    await this.#requireBucket(signal)
    const retention = retainUntilMs === undefined ? {} : { retainUntil: dateOf(retainUntilMs) }
    const ifAbsent = !replace && await this.#canCreateConditionally(signal)
    if (!replace && !ifAbsent && await this.#isSettled(key, body, digests.md5, signal)) return
    const outcome = await this.#putOnce(key, body, digests, { ifAbsent, ...retention }, signal)
    if (outcome === 'stored') return
    // Other bytes than those of a replacement are of another hand, a moment newer.
    if (!await this.#isSettled(key, body, digests.md5, signal, replace))
      throw new RoostError('STORE_UNAVAILABLE', `${this.description}: ${key} was changed by another hand in the same moment; trying again settles it.`)
  }
  /** `unconfirmed`: a success without an ETag. Swift's s3api says so of an upload that it dropped, because the key was written or deleted by a
   *  request with a later timestamp (its 202); what is no S3 does too, and is found out by the look that follows.
   */
  async #putOnce(key: ObjectKey, body: ReplayableBody, digests: Digests,
    wishes: { readonly ifAbsent: boolean; readonly retainUntil?: Date }, signal?: AbortSignal): Promise<'stored' | 'exists' | 'unconfirmed'> {
    let failure: { readonly error: unknown } | undefined
    async function* parts(): AsyncGenerator<Buffer, void, undefined> {
      failure = undefined
      try { yield* readBody(key, body, signal) } catch (error) {
        failure = { error }
        throw error
      }
    }
    try {
      const etag = await this.#requests.put(this.#name(key), () => body.bytes === 0 ? Buffer.alloc(0)
        : Readable.from(parts(), { objectMode: false, highWaterMark: MiB }),
        { bytes: body.bytes, sha256Hex: digests.sha256Hex, md5Base64: digests.md5.toString('base64'), ...wishes, ...(signal && { signal }) })
      if (etag === undefined) return 'unconfirmed'
      if (isMd5(etag) && plain(etag) !== digests.md5.toString('hex')) throw new RoostError('STORE_UNAVAILABLE', `${this.description} stored other bytes than were sent for ${key}.`)
      this.#bucketSeen()
      return 'stored'
    } catch (error) {
      signal?.throwIfAborted()
      if (failure !== undefined) throw (failure as { error: unknown }).error
      if (wishes.ifAbsent && (statusOf(error) === 412 || nameOf(error) === 'PreconditionFailed')) return 'exists'
      throw s3Error(this.description, `upload of ${key}`, error)
    }
  }
  /** Whether the object is there and is the body. @throws {RoostError} STORE_REFUSED when it is another, unless it may be */
  async #isSettled(key: ObjectKey, body: ReplayableBody, md5: Buffer, signal?: AbortSignal, mayDiffer = false): Promise<boolean> {
    const found = await this.#find(() => this.#requests.head(this.#name(key), signal), `look at ${key}`, signal)
    if (found === undefined) return false
    const bytes = this.#length(found, `look at ${key}`), etag = plain(found.etag ?? '')
    const isSame = bytes === body.bytes && (!isMd5(etag) || etag === md5.toString('hex'))
    if (isSame || mayDiffer) return isSame
    if (bytes !== body.bytes) throw new RoostError('STORE_REFUSED',
      `${key} exists on ${this.description} with ${bytes} bytes, not ${body.bytes}; it was not overwritten.`, { key, bytes: body.bytes })
    throw new RoostError('STORE_REFUSED', `${key} exists on ${this.description} with as many bytes, and not the same ones; it was not overwritten.`, { key, bytes: body.bytes })
  }
  /** Asked once: writes a small object twice, the second time on the condition that it is absent. */
  async #canCreateConditionally(signal?: AbortSignal): Promise<boolean> {
    this.#createsConditionally ??= this.#probeConditions(signal).then((honours) => {
      this.remark = honours ? undefined
        : 'The service does not honour If-None-Match (conditional writes): objects are looked for before they are written, and only one server may write here.'
      return honours
    }).catch((error: unknown) => {
      this.#createsConditionally = undefined // it was not answered: the next put asks again
      throw error
    })
    return await this.#createsConditionally
  }
  async #probeConditions(signal?: AbortSignal): Promise<boolean> {
    const key = `probe-${this.#random.bytes(8).toString('hex')}`
    const body = Buffer.from('roost asks whether this place honours If-None-Match\n')
    const { sha256Hex, md5 } = await digestBody(key, { bytes: body.byteLength, open: () => Readable.from([body]) }, signal)
    const wishes = { bytes: body.byteLength, sha256Hex, md5Base64: md5.toString('base64'), ...(signal && { signal }) }
    try {
      if (await this.#requests.put(this.#name(key), () => body, { ...wishes, ifAbsent: false }) === undefined) throw notS3(this.description, 'trial upload')
      try {
        await this.#requests.put(this.#name(key), () => body, { ...wishes, ifAbsent: true })
        return false // it ignored the condition
      } catch (error) {
        if (statusOf(error) === 412) return true
        if (statusOf(error) === 501 || nameOf(error) === 'NotImplemented' || statusOf(error) === 400) return false
        throw error
      }
    } catch (error) {
      signal?.throwIfAborted()
      throw s3Error(this.description, 'trial upload', error)
    } finally {
      await this.#requests.delete(this.#name(key), signal).catch(() => undefined) // a trial object left behind does no harm
    }
  }

  async delete(key: ObjectKey, { signal }: Call = {}): Promise<void> {
    requireObjectKey(key)
    signal?.throwIfAborted()
    await this.#find(() => this.#requests.delete(this.#name(key), signal), `deletion of ${key}`, signal)
  }
  async deleteMany(keys: readonly ObjectKey[], call: Call = {}): Promise<void> {
    for (const key of keys) requireObjectKey(key)
    for (let at = 0; at < keys.length; at += DELETES_PER_REQUEST) {
      const some = keys.slice(at, at + DELETES_PER_REQUEST)
      const left = this.#deletesMany ? await this.#deleteTogether(some, call.signal) : some
      if (left.length > 0) await deleteOneByOne(this, left, call)
    }
  }
  /** The keys that are left. */
  async #deleteTogether(keys: readonly ObjectKey[], signal?: AbortSignal): Promise<readonly ObjectKey[]> {
    try {
      const failed = await this.#requests.deleteMany(keys.map((key) => this.#name(key)), signal)
      return failed.map((name) => name.slice(this.#place.prefix.length))
    } catch (error) {
      signal?.throwIfAborted()
      const status = statusOf(error)
      const failure = s3Error(this.description, 'deletion of many', error)
      if ((status !== 400 && status !== 405 && status !== 501) || isCredentialFailure(error) || failure.code === 'STORE_UNAVAILABLE') throw failure
      this.#deletesMany = false
      return keys
    }
  }

  // ——— reading ———
  async head(key: ObjectKey, { signal }: Call = {}): Promise<ObjectFacts | undefined> {
    requireObjectKey(key)
    signal?.throwIfAborted()
    const found = await this.#find(() => this.#requests.head(this.#name(key), signal), `look at ${key}`, signal)
    return found === undefined ? undefined : { key, bytes: this.#length(found, `look at ${key}`) }
  }
  async get(key: ObjectKey, { signal }: Call = {}): Promise<Readable | undefined> {
    requireObjectKey(key)
    signal?.throwIfAborted()
    const found = await this.#find(() => this.#requests.get(this.#name(key), undefined, signal), `reading of ${key}`, signal)
    if (found === undefined) return undefined
    const bytes = this.#length(found, `reading of ${key}`), { body } = found
    if (body === undefined) return Readable.from([], { objectMode: false })
    body.on('error', () => undefined) // a reader hears of it below; one that left early does not want to
    const stream = Readable.from(this.#streamed(key, body, bytes, signal), { objectMode: false, highWaterMark: MiB })
    const onAbort = (): void => { stream.destroy(signal!.reason as Error) }
    signal?.addEventListener('abort', onAbort, { once: true })
    return stream.once('close', () => {
      signal?.removeEventListener('abort', onAbort)
      body.destroy()
    })
  }
  async *#streamed(key: ObjectKey, body: Readable, bytes: number, signal?: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
    let received = 0
    try {
      for await (const part of body) {
        received += (part as Buffer).byteLength
        yield part as Buffer
      }
    } catch (error) { throw this.#broken(key, error, signal) }
    if (received !== bytes) throw new RoostError('STORE_UNAVAILABLE', `${this.description} ended ${key} after ${received} of ${bytes} bytes.`, { bytes })
  }
  async getRange(key: ObjectKey, range: ByteRange, { signal }: Call = {}): Promise<Buffer | undefined> {
    const { offset, bytes } = range
    assert(Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(bytes) && bytes >= 0, 'a range is two non-negative integers')
    if (bytes === 0) {
      const facts = await this.head(key, { ...(signal && { signal }) })
      if (facts !== undefined && offset > facts.bytes) throw tooShort(key, range)
      return facts === undefined ? undefined : Buffer.alloc(0)
    }
    requireObjectKey(key)
    signal?.throwIfAborted()
    let found: S3Object | undefined
    try {
      found = await this.#find(() => this.#requests.get(this.#name(key), `bytes=${offset}-${offset + bytes - 1}`, signal), `reading of ${key}`, signal)
    } catch (error) {
      if (error instanceof RoostError && error.details['status'] === 416) throw tooShort(key, range)
      throw error
    }
    if (found?.body === undefined) return undefined
    // A service that ignores the header sends all of it.
    const skip = found.range === undefined ? offset : 0
    const length = this.#length(found, `reading of ${key}`)
    if (length < skip + bytes) {
      found.body.destroy()
      throw tooShort(key, range)
    }
    const result = Buffer.allocUnsafe(bytes)
    let at = -skip
    try {
      for await (const part of found.body) {
        const from = Math.max(0, -at)
        if (from < (part as Buffer).byteLength && at < bytes) (part as Buffer).copy(result, Math.max(0, at), from)
        at += (part as Buffer).byteLength
        if (at >= bytes) break
      }
    } catch (error) { throw this.#broken(key, error, signal) }
    if (at < bytes) throw new RoostError('STORE_UNAVAILABLE', `${this.description} ended ${key} early.`, { bytes })
    return result
  }
  getRanges(key: ObjectKey, ranges: readonly ByteRange[], call: Call = {}): Promise<Buffer[] | undefined> { return rangesOneByOne(this, key, ranges, call) }

  async *list(prefix: string, { signal }: Call = {}): AsyncGenerator<ObjectFacts, void, undefined> {
    requirePrefix(prefix)
    signal?.throwIfAborted()
    await this.#requireBucket(signal)
    for (let from: string | undefined; ;) {
      const page = await this.#requests.list(`${this.#place.prefix}${prefix}`, from, signal).catch((error: unknown) => {
        signal?.throwIfAborted()
        throw s3Error(this.description, 'listing', error)
      })
      for (const { key, bytes } of page.entries) yield { key: key.slice(this.#place.prefix.length), bytes }
      if (page.next === undefined) return
      from = page.next
    }
  }

  /** Undefined when the key is absent in a bucket that is there. */
  async #find<T>(ask: () => Promise<T>, what: string, signal?: AbortSignal): Promise<T | undefined> {
    try {
      const found = await ask()
      this.#bucketSeen()
      return found
    } catch (error) {
      signal?.throwIfAborted()
      if (nameOf(error) === 'NoSuchBucket' && this.#mayCreate) return undefined
      if (statusOf(error) !== 404 || nameOf(error) === 'NoSuchBucket') throw s3Error(this.description, what, error)
      await this.#requireSeen(signal)
      return undefined
    }
  }
  /** Every S3 tells an object's ETag, also those that number no requests: what does not is something else. */
  #length({ bytes, etag, body }: S3Object, what: string): number {
    if (Number.isSafeInteger(bytes) && etag !== undefined) return bytes
    body?.destroy()
    throw notS3(this.description, what)
  }
  #broken(key: ObjectKey, error: unknown, signal: AbortSignal | undefined): unknown {
    if (signal?.aborted === true) return signal.reason
    return new RoostError('STORE_UNAVAILABLE', `${this.description} ${describe(error)} while ${key} was read.`, {}, { cause: error })
  }

  // ——— bucket ———
  #bucketSeen(): void { this.#bucketSeenMs = this.#clock.monotonicMs() }
  /** A HEAD cannot tell a missing object from a missing bucket. */
  async #requireSeen(signal?: AbortSignal): Promise<void> {
    if (this.#clock.monotonicMs() - this.#bucketSeenMs < BUCKET_SEEN_MS) return
    try {
      await this.#requests.headBucket(signal)
      this.#bucketSeen()
    } catch (error) {
      signal?.throwIfAborted()
      if (statusOf(error) !== 404) throw s3Error(this.description, 'look at its bucket', error)
      if (!this.#mayCreate) throw s3Error(this.description, 'look at its bucket', Object.assign(new Error('missing'), { name: 'NoSuchBucket', $metadata: { httpStatusCode: 404 } }))
      await this.#requireBucket(signal)
    }
  }
  async #requireBucket(signal?: AbortSignal): Promise<void> {
    if (!this.#mayCreate) return
    try { await this.#requests.headBucket(signal) } catch (error) {
      signal?.throwIfAborted()
      if (statusOf(error) !== 404) throw s3Error(this.description, 'look at its bucket', error)
      await this.#requests.createBucket(signal).catch((failure: unknown) => {
        signal?.throwIfAborted()
        if (nameOf(failure) !== 'BucketAlreadyOwnedByYou' && statusOf(failure) !== 409) throw s3Error(this.description, 'creation of its bucket', failure)
      })
    }
    this.#mayCreate = false
    this.#bucketSeen()
  }

  #name(key: ObjectKey): string { return `${this.#place.prefix}${key}` }
  async close(): Promise<void> { this.#requests.close() }
}

const plain = (etag: string): string => etag.replaceAll('"', '')
/** Objects of several parts, or encrypted by the service, have other tags. */
const isMd5 = (etag: string): boolean => /^[0-9a-f]{32}$/.test(plain(etag))
function tooShort(key: ObjectKey, { offset, bytes }: ByteRange): RoostError {
  return new RoostError('OBJECT_TOO_SHORT', `${key} has fewer bytes; ${bytes} at ${offset} are not all there. Run a check of this target.`, { key, offset })
}
