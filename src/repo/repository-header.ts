/** The repository's own description on its targets: `roost.json`, public but authenticated (docs/formats/repository-v1.md).
 *
 *  Readable before any key is known, so that an operator sees what a bucket holds; the MAC is checked once a key slot opened.
 */
import { timingSafeEqual } from 'node:crypto'
import { RoostError } from '../core/errors.js'
import { deriveKey, keyedDigest } from '../core/hash.js'
import { parseRepositoryId, type RepositoryId } from '../core/ids.js'
import { KiB, LIMITS } from '../core/limits.js'
import type { ChunkerParameters } from '../core/messages.js'
import { bytesBody } from '../store/bytes-body.js'
import type { ObjectStore } from '../store/object-store.js'
import { HEADER_KEY } from './layout.js'

/** Format 2 is that of replicas: `family` holds the keys that they share with their origin, wrapped (repository-keys.ts). */
export type RepositoryHeader = HeaderFields & ({ readonly format: 1; readonly family?: never } | { readonly format: 2; readonly family: string })
interface HeaderFields {
  readonly repositoryId: RepositoryId
  readonly mode: 'server'
  readonly createdAtMs: number
  readonly chunker: Omit<ChunkerParameters, 'gearSeed'>
}
const FAMILY = /^[A-Za-z0-9+/]{139}=$/ // nonce 24, tag 16, two keys of 32 bytes
const HEADER_BYTES_MAX = 64 * KiB

/** Measured on trees of system files and on an ext4 image with its next-day version (docs/benchmarks.md). */
export const CHUNKER_DEFAULTS = Object.freeze({ minBytes: 128 * KiB, averageBytes: 512 * KiB, maxBytes: 2048 * KiB, imageChunkBytes: 128 * KiB })

const macOf = (header: RepositoryHeader, masterKey: Buffer): Buffer =>
  keyedDigest(deriveKey('roost v1 header key', masterKey), Buffer.from(JSON.stringify(header), 'utf8'))

/** @throws {RoostError} REPOSITORY_EXISTS when the target holds one already. */
export async function writeRepositoryHeader(store: ObjectStore, header: RepositoryHeader, masterKey: Buffer): Promise<void> {
  if (await store.head(HEADER_KEY) !== undefined) throw targetTaken(store)
  const text = `${JSON.stringify({ ...header, mac: macOf(header, masterKey).toString('hex') }, null, 2)}\n`
  await store.put(HEADER_KEY, bytesBody(Buffer.from(text, 'utf8')))
}
export const targetTaken = (store: ObjectStore): RoostError =>
  new RoostError('REPOSITORY_EXISTS', `The target ${store.description} holds a repository already; use \`roost repo attach\` to open it.`)

/** @throws {RoostError} REPOSITORY_UNKNOWN when there is none; REPOSITORY_CORRUPT */
export async function readRepositoryHeader(store: ObjectStore): Promise<{ header: RepositoryHeader; mac: Buffer }> {
  const facts = await store.head(HEADER_KEY)
  if (facts === undefined)
    throw new RoostError('REPOSITORY_UNKNOWN', `The target ${store.description} holds no repository (there is no ${HEADER_KEY}).`)
  if (facts.bytes === 0 || facts.bytes > HEADER_BYTES_MAX) throw headerCorrupt('its length is out of bounds')
  const bytes = await store.getRange(HEADER_KEY, { offset: 0, bytes: facts.bytes })
  if (bytes === undefined) throw headerCorrupt('it vanished while it was read')
  return parseHeader(bytes)
}
function parseHeader(bytes: Buffer): { header: RepositoryHeader; mac: Buffer } {
  let value: Partial<RepositoryHeader> & { mac?: unknown }
  try {
    value = JSON.parse(bytes.toString('utf8')) as typeof value
  } catch (error) {
    throw headerCorrupt('it is not JSON', error)
  }
  const { format, repositoryId, mode, createdAtMs, chunker, family, mac } = value
  if (format !== 1 && format !== 2) throw headerCorrupt(`its format ${JSON.stringify(format)} is unknown to this version`)
  if (mode !== 'server' || typeof repositoryId !== 'string' || !/^[0-9a-f]{32}$/.test(repositoryId) || typeof createdAtMs !== 'number' || typeof mac !== 'string' || !isChunker(chunker))
    throw headerCorrupt('a field is missing or malformed')
  const { minBytes, averageBytes, maxBytes, imageChunkBytes } = chunker
  const fields = { repositoryId: parseRepositoryId(repositoryId), mode, createdAtMs, chunker: { minBytes, averageBytes, maxBytes, imageChunkBytes } } as const
  if (format === 1) return { header: { format, ...fields }, mac: Buffer.from(mac, 'hex') }
  if (typeof family !== 'string' || !FAMILY.test(family)) throw headerCorrupt('it is a replica\'s and lacks the keys of its family')
  return { header: { format, ...fields, family }, mac: Buffer.from(mac, 'hex') }
}
/** @throws {RoostError} REPOSITORY_CORRUPT unless the header is what the holder of the master key wrote. */
export function verifyRepositoryHeader(header: RepositoryHeader, mac: Buffer, masterKey: Buffer): void {
  const expected = macOf(header, masterKey)
  if (mac.byteLength !== expected.byteLength || !timingSafeEqual(mac, expected)) throw headerCorrupt('it was changed after it was written')
}

/** True for parameters that every part of the system can work with. */
export function isChunker(value: unknown): value is RepositoryHeader['chunker'] {
  if (typeof value !== 'object' || value === null) return false
  const { minBytes, averageBytes, maxBytes, imageChunkBytes } = value as Record<string, unknown>
  const whole = (n: unknown): n is number => Number.isSafeInteger(n) && (n as number) > 0
  const power = (n: number): boolean => (n & (n - 1)) === 0
  return whole(minBytes) && whole(averageBytes) && whole(maxBytes) && whole(imageChunkBytes) && power(averageBytes) && power(imageChunkBytes) &&
    minBytes >= 4 * KiB && minBytes < averageBytes && averageBytes < maxBytes && maxBytes <= LIMITS.chunkBytesMax &&
    imageChunkBytes >= 4 * KiB && imageChunkBytes <= LIMITS.chunkBytesMax
}
function headerCorrupt(problem: string, cause?: unknown): RoostError {
  return new RoostError('REPOSITORY_CORRUPT', `The repository header (${HEADER_KEY}) is damaged: ${problem}.`, {}, { cause })
}
