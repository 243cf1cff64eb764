/** Makes an image in Glance from a stream, and holds what Glance says it has against what was sent. Nothing is left of an upload that fails. */
import { createHash } from 'node:crypto'
import { Transform, type Writable } from 'node:stream'
import type { Clock } from '../../src/core/clock.js'
import { MiB } from '../../src/core/limits.js'
import type { Cloud, Json } from '../../src/openstack/cloud.js'
import { CloudError, hasCloudCode } from '../../src/openstack/cloud-error.js'
import { text, whole } from './json-parts.js'

export interface ImageUpload {
  readonly name: string
  readonly diskFormat: 'raw' | 'qcow2'
  /** Of the stream, exactly. */
  readonly bytes: number
  readonly minDiskGiB: number
  readonly minRamMiB?: number
  readonly properties: Readonly<Record<string, string>>
  /** Writes the bytes; does not end `output`. */
  write(output: Writable, signal: AbortSignal): Promise<unknown>
}
export interface UploadDeps {
  readonly clock: Clock
  /** Bytes handed to Glance so far. */
  progress?(bytes: number): void
  warn?(message: string): void
}
export interface UploadedImage { readonly id: string; readonly name: string; readonly bytes: number; readonly sha512: string
  /** Glance computed the same digest. False where it keeps another kind: then only the length was compared. */
  readonly isVerified: boolean }

/** Its own members; properties of these names would change what the image is. */
const RESERVED = ['id', 'name', 'status', 'visibility', 'owner', 'size', 'virtual_size', 'checksum', 'disk_format', 'container_format', 'min_disk', 'min_ram', 'protected',
  'tags', 'locations', 'direct_url', 'self', 'file', 'schema', 'stores', 'created_at', 'updated_at', 'os_hash_algo', 'os_hash_value', 'os_hidden']
/** Glance may move the whole image once it has it. */
const FINISH_MS_MAX = 15 * 60_000
const STALL_MS = 120_000
/** Between the repository and Glance: so much is read ahead of what Glance takes. */
const BUFFER_BYTES = 8 * MiB
const LOOK_MS = 5_000
const ACTIVE_ATTEMPTS = 60
const DELETE_MS_MAX = 20_000

/** @throws {CloudError} IMAGE_DAMAGED when Glance's digest is another; what Glance says; what `write` throws; `signal.reason` */
export async function uploadImage(cloud: Cloud, upload: ImageUpload, deps: UploadDeps, signal: AbortSignal): Promise<UploadedImage> {
  const reserved = Object.keys(upload.properties).find((name) => RESERVED.includes(name))
  if (reserved !== undefined) throw new CloudError('CLOUD_REFUSED', `"${reserved}" is no property that can be given to an image.`)
  const made = await cloud.ask('image', { method: 'POST', path: '/images', signal, json: {
    ...upload.properties, name: upload.name, disk_format: upload.diskFormat, container_format: 'bare', visibility: 'private', min_disk: upload.minDiskGiB,
    ...(upload.minRamMiB === undefined ? {} : { min_ram: upload.minRamMiB }) } })
  const id = text(made?.['id'])
  if (id === undefined) throw new CloudError('CLOUD_REFUSED', 'Glance made an image and did not say which.')
  try {
    const sha512 = await sendBytes(cloud, id, upload, deps, signal)
    const image = await untilActive(cloud, id, deps.clock, signal)
    return { id, name: upload.name, bytes: upload.bytes, sha512, isVerified: compare(image, upload, sha512, deps) }
  } catch (error) {
    await deleteImage(cloud, id, deps)
    throw error
  }
}

async function sendBytes(cloud: Cloud, id: string, upload: ImageUpload, deps: UploadDeps, outer: AbortSignal): Promise<string> {
  const ending = new AbortController()
  const signal = AbortSignal.any([outer, ending.signal])
  const hash = createHash('sha512')
  let bytes = 0
  let failure: unknown
  const fail = (error: unknown): void => {
    failure ??= outer.aborted ? outer.reason : error
    ending.abort(failure)
    body.destroy(failure as Error)
  }
  const body = new Transform({ highWaterMark: BUFFER_BYTES, transform: (part: Buffer, _encoding, done) => {
    hash.update(part)
    bytes += part.byteLength
    deps.progress?.(bytes)
    done(null, part)
  } }).on('error', fail)
  const sending = cloud.ask('image', { method: 'PUT', path: `/images/${id}/file`, body, signal, answerMs: FINISH_MS_MAX,
    headers: { 'content-type': 'application/octet-stream', 'content-length': `${upload.bytes}` } })
    .then(() => { if (bytes < upload.bytes) throw new CloudError('CLOUD_REFUSED', 'Glance ended the upload before it had all of the image.') }).catch(fail)
  const writing = upload.write(body, signal).then(() => { body.end() }).catch(fail)
  const watching = watchForStalls(deps.clock, () => bytes, () => body.writableNeedDrain, ending.signal).catch(fail)
  await Promise.all([sending, writing])
  ending.abort(new DOMException('sent', 'AbortError'))
  await watching
  if (failure !== undefined) throw failure
  return hash.digest('hex')
}
/** Sending has no deadline of its own; a service that takes nothing for minutes is away. */
async function watchForStalls(clock: Clock, bytes: () => number, isHeldUp: () => boolean, signal: AbortSignal): Promise<void> {
  let before = -1
  let sinceMs = clock.monotonicMs()
  while (!signal.aborted) {
    await clock.sleep(LOOK_MS, signal).catch(() => undefined)
    const nowMs = clock.monotonicMs()
    if (bytes() !== before || !isHeldUp()) { before = bytes(); sinceMs = nowMs }
    else if (nowMs - sinceMs >= STALL_MS) throw new CloudError('CLOUD_UNAVAILABLE', 'Glance has taken no byte of the image for two minutes.')
  }
}
async function untilActive(cloud: Cloud, id: string, clock: Clock, signal: AbortSignal): Promise<Json> {
  for (let attempt = 0; ; attempt++) {
    const image = await cloud.get('image', `/images/${id}`, signal)
    const status = text(image['status'])
    if (status === 'active') return image
    if (attempt === ACTIVE_ATTEMPTS || status === 'killed' || status === 'queued' || status === 'deleted')
      throw new CloudError('CLOUD_REFUSED', `Glance took the image and leaves it in the status "${status ?? '?'}".`)
    await clock.sleep(LOOK_MS, signal)
  }
}
function compare(image: Json, upload: ImageUpload, sha512: string, deps: UploadDeps): boolean {
  const bytes = whole(image['size'])
  if (bytes !== upload.bytes) throw damaged(`${bytes ?? 'no'} bytes where ${upload.bytes} were sent`)
  if (image['os_hash_algo'] !== 'sha512' || typeof image['os_hash_value'] !== 'string') {
    deps.warn?.('Glance keeps no SHA-512 of the image: only its length could be compared.')
    return false
  }
  if (image['os_hash_value'] !== sha512) throw damaged('a SHA-512 that is not that of what was sent')
  return true
}
const damaged = (what: string): CloudError => new CloudError('IMAGE_DAMAGED', `Glance has ${what}: the image was changed on its way and is deleted.`)

/** Also after Ctrl-C, so with a time of its own. */
async function deleteImage(cloud: Cloud, id: string, { warn }: UploadDeps): Promise<void> {
  try {
    await cloud.ask('image', { method: 'DELETE', path: `/images/${id}`, signal: AbortSignal.timeout(DELETE_MS_MAX) })
  } catch (error) {
    if (hasCloudCode(error, 'CLOUD_UNKNOWN')) return
    warn?.(`The unfinished image ${id} could not be deleted: \`openstack image delete ${id}\` does it.`)
  }
}
