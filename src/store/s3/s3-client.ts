/** S3 requests by AWS's SDK, as every S3 understands them: signed whole bodies, no chunked encoding, no hidden retries. The only importer of
 *  @aws-sdk/client-s3.
 */
import type { Readable } from 'node:stream'
import {
  CreateBucketCommand, DeleteObjectCommand, DeleteObjectsCommand, GetObjectCommand, HeadBucketCommand, HeadObjectCommand, ListObjectsV2Command,
  PutObjectCommand, S3Client,
} from '@aws-sdk/client-s3'
import { credentialProvider } from './credentials.js'
import { md5Base64 } from './digests.js'
import { isCredentialFailure, statusOf, WebPage } from './s3-errors.js'
import type { S3Place } from './s3-url.js'

type Environment = Readonly<Record<string, string | undefined>>
export interface S3Deadlines { readonly connectMs?: number; readonly answerMs?: number }
export interface PutWishes {
  readonly bytes: number
  readonly sha256Hex: string
  readonly md5Base64: string
  readonly ifAbsent: boolean
  /** Needs a bucket with object lock, and is not sent unless the target says how to lock. */
  readonly retainUntil?: Date
  readonly signal?: AbortSignal
}
export interface S3Object { readonly bytes: number; readonly etag: string | undefined; readonly body: Readable | undefined; readonly range: string | undefined }
export interface S3Page { readonly entries: readonly { readonly key: string; readonly bytes: number }[]; readonly next: string | undefined }

const SOCKETS_MAX = 64
/** Failures are thrown and told once, by whoever knows what they mean. */
const nothing = (): void => undefined
const SILENT = { trace: nothing, debug: nothing, info: nothing, warn: nothing, error: nothing }

export class S3Requests {
  readonly #place: S3Place
  readonly #deadlines: S3Deadlines
  readonly #environment: Environment
  #client: S3Client | undefined
  constructor(place: S3Place, deadlines: S3Deadlines, environment: Environment) {
    this.#environment = environment
    this.#place = place
    this.#deadlines = deadlines
  }
  #open(): S3Client {
    const { endpoint, pathStyle, profile, credentialsFile } = this.#place
    const { connectMs = 5_000, answerMs = 30_000 } = this.#deadlines
    // Services of one's own rarely have regions, but every signature names one.
    const region = this.#place.region ?? this.#environment['AWS_REGION'] ?? (endpoint === undefined ? undefined : 'us-east-1')
    const client = new S3Client({ forcePathStyle: pathStyle, maxAttempts: 1, logger: SILENT, ...(region === undefined ? {} : { region }), ...(endpoint === undefined ? {} : { endpoint }),
      credentials: credentialProvider({ environment: this.#environment, ...(profile === undefined ? {} : { profile }), ...(credentialsFile === undefined ? {} : { credentialsFile }) }),
      requestChecksumCalculation: 'WHEN_REQUIRED', responseChecksumValidation: 'WHEN_REQUIRED',
      // `requestTimeout` counts silence of the socket: an upload that moves is not silent. Kept when credentials change: requests may be under way.
      requestHandler: this.#client?.config.requestHandler ?? { connectionTimeout: connectMs, requestTimeout: answerMs, throwOnRequestTimeout: true,
        httpAgent: { maxSockets: SOCKETS_MAX }, httpsAgent: { maxSockets: SOCKETS_MAX } } })
    // The SDK would correct a wrong clock after its first refusal. It is said instead: times of snapshots and of retention locks come from it too.
    Object.defineProperty(client.config, 'systemClockOffset', { get: () => 0, set: () => undefined })
    client.middlewareStack.add((next) => async (args) => {
      const answer = await next(args)
      const { statusCode, headers = {}, body } = answer.response as { statusCode: number; headers?: Record<string, string>; body?: Readable }
      // Every S3 numbers its answers, and Swift's calls some of them HTML that are not.
      if ('x-amz-request-id' in headers || !/^text\/html\b/.test(headers['content-type'] ?? '')) return answer
      // Of a HEAD's refusal nothing but the status counts.
      if ((args.request as { method?: string }).method === 'HEAD' && statusCode >= 300) return answer
      body?.resume()
      throw new WebPage(statusCode)
    }, { step: 'deserialize', priority: 'low', name: 'noWebPages' })
    return client
  }
  /** With the credentials of now, once, after the old ones were rejected. */
  async #renewing<T>(work: (client: S3Client) => Promise<T>): Promise<T> {
    const client = this.#client ??= this.#open()
    try { return await work(client) } catch (error) {
      if (!isCredentialFailure(error)) throw error
      if (this.#client === client) this.#client = this.#open() // else somebody was faster
      return await work(this.#client)
    }
  }

  /** @param open the body, made anew for each attempt. @returns the ETag. */
  async put(key: string, open: () => Readable | Buffer, { bytes, sha256Hex, md5Base64: contentMd5, ifAbsent, retainUntil, signal }: PutWishes): Promise<string | undefined> {
    return await this.#renewing(async (client) => {
      const command = new PutObjectCommand({ Bucket: this.#place.bucket, Key: key, Body: open(), ContentLength: bytes, ContentMD5: contentMd5,
        ContentType: 'application/octet-stream', ...(ifAbsent ? { IfNoneMatch: '*' } : {}),
        ...(retainUntil && this.#place.objectLock ? { ObjectLockMode: this.#place.objectLock, ObjectLockRetainUntilDate: retainUntil } : {}) })
      // Known before the signing: the body is then sent as it is, not in chunks, which Swift's s3api refuses.
      command.middlewareStack.add((next) => async (args) => {
        (args.request as { headers: Record<string, string> }).headers['x-amz-content-sha256'] = sha256Hex
        return await next(args)
      }, { step: 'build', name: 'knownBodyDigest' })
      return (await client.send(command, { ...(signal && { abortSignal: signal }) })).ETag
    })
  }
  /** The refusal of a HEAD has no body that could say why: a listing is asked, whose refusal has one. */
  async #withCause<T>(head: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    try { return await head() } catch (error) {
      const status = statusOf(error)
      if (status === undefined || status < 300 || status === 404 || status >= 500) throw error
      await this.list('', undefined, signal, 1)
      throw error
    }
  }
  async head(key: string, signal?: AbortSignal): Promise<S3Object> {
    const answer = await this.#withCause(() => this.#renewing((client) =>
      client.send(new HeadObjectCommand({ Bucket: this.#place.bucket, Key: key }), { ...(signal && { abortSignal: signal }) })), signal)
    return { bytes: answer.ContentLength ?? NaN, etag: answer.ETag, body: undefined, range: undefined }
  }
  async get(key: string, range: string | undefined, signal?: AbortSignal): Promise<S3Object> {
    const answer = await this.#renewing((client) => client.send(
      new GetObjectCommand({ Bucket: this.#place.bucket, Key: key, ...(range === undefined ? {} : { Range: range }) }), { ...(signal && { abortSignal: signal }) }))
    return { bytes: answer.ContentLength ?? NaN, etag: answer.ETag, body: answer.Body as Readable | undefined, range: answer.ContentRange }
  }
  async delete(key: string, signal?: AbortSignal): Promise<void> {
    await this.#renewing((client) => client.send(new DeleteObjectCommand({ Bucket: this.#place.bucket, Key: key }), { ...(signal && { abortSignal: signal }) }))
  }
  /** @returns keys that were not deleted. */
  async deleteMany(keys: readonly string[], signal?: AbortSignal): Promise<string[]> {
    return await this.#renewing(async (client) => {
      const command = new DeleteObjectsCommand({ Bucket: this.#place.bucket, Delete: { Quiet: true, Objects: keys.map((Key) => ({ Key })) } })
      // S3 asks for it, and the SDK sends another checksum by now that older services do not know.
      command.middlewareStack.add((next) => async (args) => {
        const request = args.request as { headers: Record<string, string>; body: string | Uint8Array }
        request.headers['content-md5'] = md5Base64(request.body)
        return await next(args)
      }, { step: 'build', name: 'contentMd5' })
      const { Errors: errors = [] } = await client.send(command, { ...(signal && { abortSignal: signal }) })
      return errors.flatMap(({ Key }) => Key === undefined ? [] : [Key])
    })
  }
  async list(prefix: string, from: string | undefined, signal?: AbortSignal, entriesMax?: number): Promise<S3Page> {
    const wishes = { ...(entriesMax === undefined ? {} : { MaxKeys: entriesMax }), ...(from === undefined ? {} : { ContinuationToken: from }) }
    const { Contents: contents = [], NextContinuationToken: next, IsTruncated: more, $metadata, Name } = await this.#renewing((client) =>
      client.send(new ListObjectsV2Command({ Bucket: this.#place.bucket, Prefix: prefix, ...wishes }), { ...(signal && { abortSignal: signal }) }))
    if (Name === undefined) throw Object.assign(new Error('not a listing'), { $metadata })
    return { entries: contents.flatMap(({ Key, Size }) => Key === undefined || Size === undefined ? [] : [{ key: Key, bytes: Size }]), next: more === true ? next : undefined }
  }
  async headBucket(signal?: AbortSignal): Promise<void> {
    await this.#withCause(() => this.#renewing((client) =>
      client.send(new HeadBucketCommand({ Bucket: this.#place.bucket }), { ...(signal && { abortSignal: signal }) })), signal)
  }
  async createBucket(signal?: AbortSignal): Promise<void> {
    const { bucket, endpoint } = this.#place
    await this.#renewing(async (client) => {
      const region = await client.config.region()
      const elsewhere = region !== 'us-east-1' && endpoint === undefined
      await client.send(new CreateBucketCommand({ Bucket: bucket,
        ...(elsewhere ? { CreateBucketConfiguration: { LocationConstraint: region as 'eu-west-1' } } : {}) }), { ...(signal && { abortSignal: signal }) })
    })
  }
  close(): void { this.#client?.destroy() }
}
