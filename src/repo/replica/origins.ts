/** Which repositories' snapshots a repository takes in: one small object each on the targets, written once (docs/formats/repository-v1.md).
 *
 *  They are needed only when something arrives: snapshots that are here carry their signer's key, sealed by this repository.
 */
import { timingSafeEqual } from 'node:crypto'
import type { Clock } from '../../core/clock.js'
import { RoostError } from '../../core/errors.js'
import { keyedDigest } from '../../core/hash.js'
import type { RepositoryId } from '../../core/ids.js'
import type { KnownOrigin, Origin } from '../../core/peer-messages.js'
import { bytesBody } from '../../store/bytes-body.js'
import type { ObjectStore } from '../../store/object-store.js'
import { ORIGIN_PREFIX, originKey, originOfKey } from '../layout.js'

const OBJECT_BYTES_MAX = 4096
const ORIGINS_MAX = 256

export interface OriginsDeps { readonly store: ObjectStore; readonly repositoryId: RepositoryId; readonly key: Buffer; readonly clock: Clock }

export class Origins {
  readonly #deps: OriginsDeps
  #known: Map<string, KnownOrigin> | undefined
  constructor(deps: OriginsDeps) { this.#deps = deps }

  /** Oldest first. @throws what the targets throw, until they could be asked once */
  async list(): Promise<KnownOrigin[]> {
    const known = this.#known ??= await this.#read()
    return [...known.values()].sort((a, b) => a.addedAtMs - b.addedAtMs || (a.verifyKey < b.verifyKey ? -1 : 1))
  }
  /** @throws {RoostError} SIGNER_UNKNOWN; what the targets throw */
  async require({ repositoryId, verifyKey }: Origin): Promise<void> {
    const found = (await this.list()).find((one) => one.verifyKey === verifyKey)
    if (found?.repositoryId !== repositoryId) throw new RoostError('SIGNER_UNKNOWN',
      'The snapshot is signed by a repository whose snapshots are not taken in here.', { signer: verifyKey, repositoryId })
  }
  /** Durable on the targets when it resolves. Told twice is told once. @throws {RoostError} LIMIT_EXCEEDED; what the targets throw */
  async trust({ repositoryId, verifyKey }: Origin): Promise<void> {
    const known = await this.list()
    if (known.some((one) => one.verifyKey === verifyKey && one.repositoryId === repositoryId)) return
    if (known.length >= ORIGINS_MAX) throw new RoostError('LIMIT_EXCEEDED', `A repository takes in the snapshots of at most ${ORIGINS_MAX} others.`, { limit: ORIGINS_MAX })
    const origin = { repositoryId, verifyKey, addedAtMs: this.#deps.clock.now() }
    await writeOrigin(this.#deps.store, origin, this.#deps.repositoryId, this.#deps.key)
    this.#known?.set(verifyKey, origin)
  }
  /** What its object must be. */
  objectOf(origin: KnownOrigin): Buffer { return encodeOrigin(origin, this.#deps.repositoryId, this.#deps.key) }
  async #read(): Promise<Map<string, KnownOrigin>> {
    const { store, repositoryId, key } = this.#deps
    const found = new Map<string, KnownOrigin>()
    for await (const object of store.list(ORIGIN_PREFIX)) {
      const verifyKey = originOfKey(object.key)
      const facts = verifyKey === undefined ? undefined : await store.head(object.key)
      if (verifyKey === undefined || facts === undefined || facts.bytes > OBJECT_BYTES_MAX) continue
      const origin = decodeOrigin(await store.getRange(object.key, { offset: 0, bytes: facts.bytes }), repositoryId, key)
      if (origin?.verifyKey === verifyKey) found.set(verifyKey, origin)
    }
    return found
  }
}

export async function writeOrigin(store: ObjectStore, origin: KnownOrigin, repositoryId: RepositoryId, key: Buffer): Promise<void> {
  await store.put(originKey(origin.verifyKey), bytesBody(encodeOrigin(origin, repositoryId, key)), { replace: true })
}
export function encodeOrigin(origin: KnownOrigin, repositoryId: RepositoryId, key: Buffer): Buffer {
  const fields = { format: 1, of: repositoryId, repositoryId: origin.repositoryId, verifyKey: origin.verifyKey, addedAtMs: origin.addedAtMs }
  return Buffer.from(`${JSON.stringify({ ...fields, mac: macOf(fields, key).toString('hex') })}\n`)
}
const macOf = (fields: object, key: Buffer): Buffer => keyedDigest(key, Buffer.from(JSON.stringify(fields)))
/** Undefined for what is not ours: it says nothing. */
export function decodeOrigin(bytes: Buffer | undefined, repositoryId: RepositoryId, key: Buffer): KnownOrigin | undefined {
  try {
    const value = JSON.parse(bytes?.toString('utf8') ?? '') as Record<string, unknown>
    const { format, of, repositoryId: id, verifyKey, addedAtMs, mac } = value
    if (format !== 1 || of !== repositoryId || typeof id !== 'string' || typeof verifyKey !== 'string' || typeof addedAtMs !== 'number' || typeof mac !== 'string') return undefined
    const expected = macOf({ format, of, repositoryId: id, verifyKey, addedAtMs }, key), found = Buffer.from(mac, 'hex')
    return found.byteLength === expected.byteLength && timingSafeEqual(found, expected) ? { repositoryId: id, verifyKey, addedAtMs } : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}
