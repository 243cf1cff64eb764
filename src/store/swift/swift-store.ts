/** Packs on OpenStack Swift: a container, or a prefix in one. Contacts nothing until it is asked something.
 *
 *  A 404 is only absence when the container is there; a key that this process has put is asked for again, from all replicas, before it is
 *  called absent. Nothing is ever given an expiry.
 */
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { Readable } from 'node:stream'
import { assert } from '../../core/assert.js'
import type { Clock } from '../../core/clock.js'
import { hasCode, RoostError } from '../../core/errors.js'
import { MiB } from '../../core/limits.js'
import { readBody } from '../body.js'
import { describe, discard, drop, HttpFailure, readText, type HttpAnswer } from '../../http/http.js'
import { isObjectKey, requireObjectKey, requirePrefix } from '../object-key.js'
import type { ByteRange, Call, ObjectFacts, ObjectKey, ObjectStore, PutOptions, ReplayableBody } from '../object-store.js'
import { deleteOneByOne, rangesOneByOne } from '../one-by-one.js'
import { parseByteRanges } from './byte-ranges.js'
import type { Environment } from '../../openstack/cloud-config.js'
import { notSwift, swiftError } from './swift-answers.js'
import { SwiftRequests, type SwiftMemory, type SwiftRequestsOptions } from './swift-requests.js'
import { parseSwiftUrl, type SwiftPlace } from './swift-url.js'

export interface SwiftStoreOptions {
  readonly url: string
  readonly clock: Clock
  readonly environment: Environment
  /** Makes the container when it is missing. */
  readonly create?: boolean
  readonly memory?: SwiftMemory
  readonly deadlines?: SwiftRequestsOptions['deadlines']
}
/** A container that was seen is believed to be there for so long. */
const CONTAINER_SEEN_MS = 10_000
const RECENT_KEYS_MAX = 4_096
/** For so long after a put, "absent" may mean that replicas do not agree yet. Later all of them are believed. */
const SETTLING_MS = 10_000
/** Of one request: Swift refuses more than 50 (docs: "range requests"). */
const RANGES_MAX = 40
const LIST_PAGE = 2_000
const DELETES_PER_REQUEST = 1_000
const TEXT_BYTES_MAX = 16 * MiB

/** @throws {RoostError} REQUEST_MALFORMED for a malformed URL */
export function openSwiftStore(options: SwiftStoreOptions): ObjectStore { return new SwiftStore(options, parseSwiftUrl(options.url)) }

class SwiftStore implements ObjectStore {
  readonly description: string
  readonly #place: SwiftPlace
  readonly #clock: Clock
  readonly #requests: SwiftRequests
  #mayCreate: boolean
  #containerSeenMs = -Infinity
  #hasBulkDelete = true
  #limits: Promise<{ objectBytesMax: number } | undefined> | undefined
  /** Key → when this process put it, monotonic ms. */
  readonly #recent = new Map<ObjectKey, number>()

  constructor(options: SwiftStoreOptions, place: SwiftPlace) {
    this.description = options.url
    this.#place = place
    this.#clock = options.clock
    this.#mayCreate = options.create === true
    const { clock, environment, memory, deadlines } = options
    this.#requests = new SwiftRequests({ place, clock, environment, ...(memory && { memory }), ...(deadlines && { deadlines }) })
  }

  // ——— writing ———
  async put(key: ObjectKey, body: ReplayableBody, { replace = false, signal }: PutOptions = {}): Promise<void> {
    requireObjectKey(key)
    signal?.throwIfAborted()
    await this.#requireContainer(signal)
    await this.#requireSize(key, body.bytes, signal)
    for (let attempt = 1; ; attempt++) {
      const result = await this.#putOnce(key, body, replace || attempt > 1, signal)
      // Other bytes than those of a replacement are of another hand, a moment newer.
      if (result === 'stored' || (result !== 'altered' && await this.#isSettled(key, body, signal, replace))) break
      if (attempt === 2) throw new RoostError('STORE_UNAVAILABLE', result === 'altered'
        ? `${this.#where} stored other bytes than were sent for ${key}, twice: the way there damages data.`
        : `${this.#where}: ${key} was changed by another hand in the same moment; trying again settles it.`, { attempt })
    }
    this.#remember(key)
  }
  /** `superseded`: Swift dropped it, because the key was written or deleted by a request with a later timestamp. `altered`: what arrived is not
   *  what was sent.
   */
  async #putOnce(key: ObjectKey, body: ReplayableBody, replace: boolean, signal?: AbortSignal): Promise<'stored' | 'exists' | 'superseded' | 'altered'> {
    let md5 = createHash('md5')
    let failure: { readonly error: unknown } | undefined
    async function* parts(): AsyncGenerator<Buffer, void, undefined> {
      md5 = createHash('md5')
      failure = undefined
      try {
        for await (const part of readBody(key, body, signal)) {
          md5.update(part)
          yield part
        }
      } catch (error) {
        failure = { error }
        throw error
      }
    }
    let answer: HttpAnswer
    try {
      answer = await this.#requests.send({ method: 'PUT', path: this.#path(key), ...(signal && { signal }),
        headers: { 'content-length': String(body.bytes), 'content-type': 'application/octet-stream', ...(replace ? {} : { 'if-none-match': '*' }) },
        // An empty body is not a stream: nothing would be read from it.
        body: () => body.bytes === 0 ? Buffer.alloc(0) : Readable.from(parts(), { objectMode: false, highWaterMark: MiB }) })
      if (body.bytes === 0) for await (const _ of parts()) { /* proves that the body is empty */ }
    } catch (error) {
      signal?.throwIfAborted()
      if (failure !== undefined) throw (failure as { error: unknown }).error
      return await this.#afterBrokenPut(key, body, error, replace, signal)
    }
    discard(answer)
    if (answer.status === 201) {
      this.#containerSeen()
      const etag = answer.headers['etag']?.replaceAll('"', '')
      if (etag === undefined) throw notSwift(this.description, answer)
      return etag === md5.digest('hex') ? 'stored' : 'altered'
    }
    if (answer.status === 412 && !replace) return 'exists'
    if (answer.status === 202) return 'superseded'
    if (answer.status === 200 || answer.status === 204) throw notSwift(this.description, answer)
    if (answer.status === 404) this.#containerSeenMs = -Infinity
    throw swiftError(this.description, `upload of ${key}`, answer)
  }
  /** Swift closes the connection when it refuses a body early: the object may be there already, or the token be gone. */
  async #afterBrokenPut(key: ObjectKey, body: ReplayableBody, error: unknown, replace: boolean, signal?: AbortSignal): Promise<'exists'> {
    if (!hasCode(error, 'STORE_UNAVAILABLE')) throw error
    if (!replace && await this.head(key, { ...(signal && { signal }) }).catch(() => undefined) !== undefined) return 'exists'
    await this.#requests.checkToken(signal).catch(() => undefined) // the broken upload says more
    throw error
  }
  /** Whether the object that is there is the body. @throws {RoostError} STORE_REFUSED when it is another, unless it may be */
  async #isSettled(key: ObjectKey, body: ReplayableBody, signal?: AbortSignal, mayDiffer = false): Promise<boolean> {
    const answer = await this.#requests.send({ method: 'HEAD', path: this.#path(key), headers: { 'x-newest': 'true' }, isRead: true, ...(signal && { signal }) })
    discard(answer)
    if (answer.status === 404) return false
    if (answer.status !== 200) throw swiftError(this.description, `look at ${key}`, answer)
    const bytes = lengthOf(answer), etag = answer.headers['etag']?.replaceAll('"', '')
    if (etag === undefined) throw notSwift(this.description, answer)
    if (bytes !== body.bytes && mayDiffer) return false
    if (bytes !== body.bytes) throw new RoostError('STORE_REFUSED', `${key} exists on ${this.description} with ${bytes} bytes, not ${body.bytes}; it was not overwritten.`, { key, bytes: body.bytes })
    const md5 = createHash('md5')
    for await (const part of readBody(key, body, signal)) md5.update(part)
    const isSame = etag === md5.digest('hex')
    if (isSame || mayDiffer) return isSame
    throw new RoostError('STORE_REFUSED', `${key} exists on ${this.description} with as many bytes, and not the same ones; it was not overwritten.`, { key, bytes: body.bytes })
  }
  async #requireSize(key: ObjectKey, bytes: number, signal?: AbortSignal): Promise<void> {
    if (this.#limits === undefined && this.#requests.isKnown) this.#limits = this.#readLimits()
    const limits = await this.#limits
    signal?.throwIfAborted()
    if (limits !== undefined && bytes > limits.objectBytesMax) throw new RoostError('STORE_REFUSED',
      `${this.description} takes objects of at most ${limits.objectBytesMax} bytes (max_file_size), and this one has ${bytes}.`, { key, bytes })
  }
  /** From /info, which is public; a cluster that hides it is taken to have the usual limits. */
  async #readLimits(): Promise<{ objectBytesMax: number } | undefined> {
    const base = this.#requests.where.replace(/\/v1(\/.*)?$/, '') // Ceph has a path before the version
    try {
      const answer = await this.#requests.sendTo(`${base}/info`)
      const info = JSON.parse(await readText(answer, MiB)) as { swift?: { max_file_size?: unknown }; bulk_delete?: unknown }
      if (answer.status !== 200 || info.swift === undefined) return undefined
      this.#hasBulkDelete = info.bulk_delete !== undefined
      return { objectBytesMax: typeof info.swift.max_file_size === 'number' ? info.swift.max_file_size : Infinity }
    } catch { return undefined }
  }

  async delete(key: ObjectKey, { signal }: Call = {}): Promise<void> {
    requireObjectKey(key)
    this.#recent.delete(key)
    const answer = await this.#requests.send({ method: 'DELETE', path: this.#path(key), ...(signal && { signal }) })
    discard(answer)
    if (answer.status === 404) await this.#requireSeen(signal)
    else if (answer.status === 200) throw notSwift(this.description, answer)
    else if (answer.status !== 204) throw swiftError(this.description, `deletion of ${key}`, answer)
  }
  async deleteMany(keys: readonly ObjectKey[], call: Call = {}): Promise<void> {
    for (const key of keys) requireObjectKey(key)
    for (let at = 0; at < keys.length; at += DELETES_PER_REQUEST) {
      const some = keys.slice(at, at + DELETES_PER_REQUEST)
      if (!this.#hasBulkDelete || !await this.#bulkDelete(some, call)) await deleteOneByOne(this, some, call)
    }
  }
  /** False when the cluster has no bulk deletion, or left some. */
  async #bulkDelete(keys: readonly ObjectKey[], { signal }: Call): Promise<boolean> {
    const answer = await this.#requests.send({ method: 'POST', path: '', query: '?bulk-delete', ...(signal && { signal }),
      headers: { 'content-type': 'text/plain', accept: 'application/json' }, body: () => keys.map((key) => `${this.#path(key)}\n`).join('') })
    const text = await this.#text(answer, signal)
    if (answer.status === 429 || answer.status === 498 || answer.status >= 500 && answer.status !== 501) throw swiftError(this.description, 'deletion of several objects', answer)
    if (answer.status !== 200) {
      this.#hasBulkDelete = false
      return false
    }
    try {
      const { Errors: errors, 'Response Status': status } = JSON.parse(text) as { Errors?: unknown[]; 'Response Status'?: string }
      for (const key of keys) this.#recent.delete(key)
      return errors?.length === 0 && /^(200|404)/.test(status ?? '')
    } catch { throw notSwift(this.description, answer) }
  }

  // ——— reading ———
  async head(key: ObjectKey, { signal }: Call = {}): Promise<ObjectFacts | undefined> {
    const answer = await this.#read('HEAD', key, {}, signal)
    if (answer === undefined) return undefined
    discard(answer)
    return { key, bytes: lengthOf(answer) }
  }
  async get(key: ObjectKey, { signal }: Call = {}): Promise<Readable | undefined> {
    const answer = await this.#read('GET', key, {}, signal)
    if (answer === undefined) return undefined
    answer.body.on('error', () => undefined) // a reader hears of it below; one that left early does not want to
    const stream = Readable.from(this.#streamed(key, answer, lengthOf(answer), signal), { objectMode: false, highWaterMark: MiB })
    return stream.once('close', () => { answer.body.destroy() }) // also when nothing was ever read
  }
  async *#streamed(key: ObjectKey, answer: HttpAnswer, bytes: number, signal?: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
    let received = 0
    try {
      for await (const part of answer.body) {
        received += (part as Buffer).byteLength
        yield part as Buffer
      }
    } catch (error) {
      throw this.#broken(key, error, signal)
    } finally { answer.body.destroy() }
    if (received !== bytes) throw new RoostError('STORE_UNAVAILABLE', `${this.#where} ended ${key} after ${received} of ${bytes} bytes.`, { bytes })
  }
  #broken(key: ObjectKey, error: unknown, signal: AbortSignal | undefined): unknown {
    if (signal?.aborted === true) return signal.reason
    return new RoostError('STORE_UNAVAILABLE', `${this.#where} ${error instanceof HttpFailure ? error.what : describe(error)} while ${key} was read.`, {}, { cause: error })
  }

  async getRange(key: ObjectKey, range: ByteRange, { signal }: Call = {}): Promise<Buffer | undefined> {
    assertRange(range)
    if (range.bytes === 0) {
      const facts = await this.head(key, { ...(signal && { signal }) })
      if (facts !== undefined && range.offset > facts.bytes) throw tooShort(key, range, facts.bytes)
      return facts === undefined ? undefined : Buffer.alloc(0)
    }
    const answer = await this.#read('GET', key, { range: `bytes=${range.offset}-${range.offset + range.bytes - 1}` }, signal)
    if (answer === undefined) return undefined
    if (answer.status === 416) {
      discard(answer)
      throw tooShort(key, range, undefined)
    }
    // A service that ignores the header sends all of it.
    const skip = answer.status === 200 ? range.offset : 0
    if (lengthOf(answer) < skip + range.bytes) {
      drop(answer)
      throw tooShort(key, range, undefined)
    }
    return await this.#collect(key, answer, skip, range.bytes, signal)
  }
  async getRanges(key: ObjectKey, ranges: readonly ByteRange[], call: Call = {}): Promise<Buffer[] | undefined> {
    ranges.forEach(assertRange)
    const wanted = ranges.reduce((sum, { bytes }) => sum + bytes, 0)
    if (ranges.length < 2 || ranges.length > RANGES_MAX || wanted > TEXT_BYTES_MAX || ranges.some(({ bytes }) => bytes === 0)) return await rangesOneByOne(this, key, ranges, call)
    const { signal } = call
    const header = `bytes=${ranges.map(({ offset, bytes }) => `${offset}-${offset + bytes - 1}`).join(',')}`
    const answer = await this.#read('GET', key, { range: header }, signal)
    if (answer === undefined) return undefined
    const type = answer.headers['content-type'] ?? ''
    const bytes = lengthOf(answer)
    if (answer.status === 206 && type.startsWith('multipart/byteranges') && bytes <= wanted + ranges.length * 1024 + 4096) {
      const parts = parseByteRanges(type, await this.#collect(key, answer, 0, bytes, signal), ranges)
      if (parts !== undefined) return parts
    } else drop(answer)
    return await rangesOneByOne(this, key, ranges, call) // which says what is wrong, if something is
  }
  async #collect(key: ObjectKey, answer: HttpAnswer, skip: number, bytes: number, signal?: AbortSignal): Promise<Buffer> {
    const result = Buffer.allocUnsafe(bytes)
    let at = -skip
    answer.body.on('error', () => undefined) // also heard below; not when it was left early
    try {
      for await (const part of answer.body) {
        const from = Math.max(0, -at)
        if (from < (part as Buffer).byteLength && at < bytes) (part as Buffer).copy(result, Math.max(0, at), from)
        at += (part as Buffer).byteLength
        if (at >= bytes) break
      }
    } catch (error) { throw this.#broken(key, error, signal) }
    if (at < bytes) throw new RoostError('STORE_UNAVAILABLE', `${this.#where} ended ${key} early.`, { bytes })
    return result
  }

  async *list(prefix: string, { signal }: Call = {}): AsyncGenerator<ObjectFacts, void, undefined> {
    requirePrefix(prefix)
    await this.#requireContainer(signal)
    for (let marker = ''; ;) {
      const query = new URLSearchParams({ format: 'json', limit: String(LIST_PAGE), prefix: `${this.#place.prefix}${prefix}`, ...(marker === '' ? {} : { marker }) })
      const answer = await this.#requests.send({ method: 'GET', path: `/${encodeURIComponent(this.#place.container)}`, query: `?${query}`, ...(signal && { signal }) })
      const text = await this.#text(answer, signal)
      if (answer.status !== 200 && answer.status !== 204) throw swiftError(this.description, 'listing', answer)
      this.#containerSeen()
      let page: { name?: unknown; bytes?: unknown }[]
      try { page = answer.status === 204 ? [] : JSON.parse(text) as typeof page } catch { throw notSwift(this.description, answer) }
      if (!Array.isArray(page)) throw notSwift(this.description, answer)
      for (const { name, bytes } of page)
        if (typeof name === 'string' && typeof bytes === 'number' && isObjectKey(name.slice(this.#place.prefix.length))) yield { key: name.slice(this.#place.prefix.length), bytes }
      const last = page.at(-1)?.name
      if (typeof last !== 'string') return // a cluster may give shorter pages than were asked for: only an empty one is the end
      marker = last
    }
  }

  /** Undefined when it is not there, the container being there. Statuses 200, 206 and 416. */
  async #read(method: 'GET' | 'HEAD', key: ObjectKey, headers: Record<string, string>, signal?: AbortSignal): Promise<HttpAnswer | undefined> {
    requireObjectKey(key)
    const ask = (more: Record<string, string>): Promise<HttpAnswer> =>
      this.#requests.send({ method, path: this.#path(key), headers: { ...headers, ...more }, isRead: true, ...(signal && { signal }) })
    let answer = await ask({})
    if (answer.status === 404 && this.#recent.has(key)) {
      discard(answer)
      answer = await ask({ 'x-newest': 'true' })
      if (answer.status === 404 && this.#clock.monotonicMs() - this.#recent.get(key)! < SETTLING_MS) {
        discard(answer)
        throw new RoostError('STORE_UNAVAILABLE',
          `${this.#where} does not show ${key}, which it has taken before: its replicas may not agree yet, or another hand deleted it.`, { status: 404 })
      }
    }
    if (answer.status === 404) {
      discard(answer)
      await this.#requireSeen(signal)
      return undefined
    }
    if (answer.status === 416) return answer
    if (answer.status !== 200 && answer.status !== 206) {
      discard(answer)
      throw swiftError(this.description, `reading of ${key}`, answer)
    }
    if (answer.headers['etag'] === undefined || answer.headers['content-length'] === undefined) {
      discard(answer)
      throw notSwift(this.description, answer)
    }
    this.#containerSeen()
    return answer
  }
  async #text(answer: HttpAnswer, signal?: AbortSignal): Promise<string> {
    try { return await readText(answer, TEXT_BYTES_MAX, signal) } catch (error) {
      if (error instanceof HttpFailure) throw new RoostError('STORE_UNAVAILABLE', `${this.#where} ${error.what}.`, {}, { cause: error })
      throw error
    }
  }

  // ——— container ———
  #containerSeen(): void { this.#containerSeenMs = this.#clock.monotonicMs() }
  /** A missing object in a missing container is no absence: the name may be wrong, or the account. */
  async #requireSeen(signal?: AbortSignal): Promise<void> {
    if (this.#clock.monotonicMs() - this.#containerSeenMs < CONTAINER_SEEN_MS) return
    const answer = await this.#requests.send({ method: 'HEAD', path: `/${encodeURIComponent(this.#place.container)}`, ...(signal && { signal }) })
    discard(answer)
    if (answer.status === 204 || answer.status === 200) {
      if (answer.headers['x-container-object-count'] === undefined) throw notSwift(this.description, answer)
      this.#containerSeen()
    } else if (answer.status === 404 && this.#mayCreate) await this.#requireContainer(signal)
    else throw swiftError(this.description, 'look at its container', answer)
  }
  /** Once, where a container may be made: PUT of one that is there changes nothing. */
  async #requireContainer(signal?: AbortSignal): Promise<void> {
    if (!this.#mayCreate) return
    const { container, policy, tempUrlKeyFile } = this.#place
    const key = tempUrlKeyFile === undefined ? undefined : (await readFile(tempUrlKeyFile, 'utf8').catch((error: unknown) => {
      throw new RoostError('STORE_REFUSED', `The TempURL key file ${tempUrlKeyFile} cannot be read.`, {}, { cause: error })
    })).trim()
    const answer = await this.#requests.send({ method: 'PUT', path: `/${encodeURIComponent(container)}`, ...(signal && { signal }),
      headers: { 'content-length': '0', ...(policy === undefined ? {} : { 'x-storage-policy': policy }), ...(key === undefined ? {} : { 'x-container-meta-temp-url-key': key }) } })
    discard(answer)
    if (answer.status === 409) throw new RoostError('STORE_REFUSED',
      `The container ${container} exists with another storage policy than ${policy ?? 'the default'}; leave the policy out, or choose another container.`)
    if (answer.status === 200) throw notSwift(this.description, answer)
    if (answer.status !== 201 && answer.status !== 202 && answer.status !== 204) throw swiftError(this.description, 'creation of its container', answer)
    this.#mayCreate = false
    this.#containerSeen()
  }

  get #where(): string { return `Swift (${this.description})` }
  #path(key: ObjectKey): string { return `/${encodeURIComponent(this.#place.container)}/${this.#place.prefix}${key}` }
  #remember(key: ObjectKey): void {
    this.#recent.set(key, this.#clock.monotonicMs())
    if (this.#recent.size > RECENT_KEYS_MAX) for (const oldest of this.#recent.keys()) { this.#recent.delete(oldest); break }
  }
  close(): Promise<void> { return this.#requests.close() }
}

const lengthOf = (answer: HttpAnswer): number => Number(answer.headers['content-length'])
function assertRange({ offset, bytes }: ByteRange): void {
  assert(Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(bytes) && bytes >= 0, 'a range is two non-negative integers')
}
function tooShort(key: ObjectKey, { offset, bytes }: ByteRange, length: number | undefined): RoostError {
  return new RoostError('OBJECT_TOO_SHORT', `${key} has ${length === undefined ? 'fewer' : `${length}`} bytes; ${bytes} at ${offset} are not all there. Run a check of this target.`, { key, offset })
}
