/** How a repository becomes a replica: the origin states its family, with the shared keys sealed to a public key that the replica's server offered.
 *
 *  What travels is of no use to whoever carries or overhears it, and is believed only when the origin's known key signed it for this very offer.
 */
import { RoostError } from '../../core/errors.js'
import type { ChunkerParameters } from '../../core/messages.js'
import { createBoxKeys, signDetached, unwrapWithSecretKey, verifyDetached, wrapForPublicKey } from '../../core/nacl.js'
import type { FamilyReply, FamilyStatement, Origin, ReplicaOffer, ReplicaRequest } from '../../core/peer-messages.js'
import type { Clock } from '../../core/clock.js'
import type { Random } from '../../core/random.js'
import { isChunker } from '../repository-header.js'
import { familyIdOf, splitFamilyKeys, type FamilyKeys } from '../repository-keys.js'
import type { RepositoryParts } from '../repository-parts.js'

const STATED_PREFIX = Buffer.from('roost family v1\0', 'utf8')
const OFFER_MS = 15 * 60_000
/** Unused offers; a new one takes the place of the oldest. */
const OFFERS_MAX = 16
const ORIGINS_MAX = 256

export interface AcceptedFamily {
  readonly keys: FamilyKeys
  readonly chunker: Omit<ChunkerParameters, 'gearSeed'>
  /** Whose snapshots the replica takes in: the origin's, and what the origin takes in. */
  readonly origins: readonly Origin[]
}

/** @throws {RoostError} REQUEST_MALFORMED for a key that is none */
export async function stateFamily(parts: RepositoryParts, publicKey: string): Promise<FamilyReply> {
  const { keys, repositoryId, chunker, origins } = parts
  if (!/^[0-9a-f]{64}$/.test(publicKey)) throw new RoostError('REQUEST_MALFORMED', 'A public key is 64 lowercase hex digits.')
  const { minBytes, averageBytes, maxBytes, imageChunkBytes } = chunker
  const statement: FamilyStatement = { format: 1, repositoryId, verifyKey: keys.signing.publicKey.toString('hex'), publicKey, familyId: familyIdOf(keys),
    chunker: { minBytes, averageBytes, maxBytes, imageChunkBytes },
    origins: (await origins.list()).map((one) => ({ repositoryId: one.repositoryId, verifyKey: one.verifyKey })),
    sealed: wrapForPublicKey(Buffer.from(publicKey, 'hex'), Buffer.concat([keys.dedupKey, keys.gearSeed])).toString('base64') }
  const bytes = Buffer.from(JSON.stringify(statement), 'utf8')
  return { statement: bytes.toString('base64'), signature: signDetached(Buffer.concat([STATED_PREFIX, bytes]), keys.signing.secretKey).toString('base64') }
}

/** Offers that wait for their answer. In memory: one that a restart forgot is asked for again. */
export class ReplicaOffers {
  readonly #open = new Map<string, { readonly secretKey: Buffer; readonly publicKey: string; readonly expiresAtMs: number }>()
  constructor(readonly clock: Clock, readonly random: Random) {}

  make(): ReplicaOffer {
    const { publicKey, secretKey } = createBoxKeys()
    const offer = this.random.bytes(16).toString('hex')
    for (const oldest of this.#open.keys()) if (this.#open.size >= OFFERS_MAX) this.#open.delete(oldest)
    this.#open.set(offer, { secretKey, publicKey: publicKey.toString('hex'), expiresAtMs: this.clock.monotonicMs() + OFFER_MS })
    return { offer, publicKey: publicKey.toString('hex'), expiresInMs: OFFER_MS }
  }
  /** The offer stays until it expires: a create that failed may be asked for again with it. @throws {RoostError} PEER_REFUSED saying what is wrong */
  accept(request: ReplicaRequest): AcceptedFamily {
    const open = this.#open.get(request.offer)
    if (open === undefined || open.expiresAtMs < this.clock.monotonicMs()) throw refused('the offer that it answers has expired; begin again')
    const bytes = Buffer.from(request.statement, 'base64')
    const statement = parseStatement(bytes)
    if (statement.verifyKey !== request.verifyKey) throw refused('it is of another repository than the one that was named by its verify key')
    if (!verifyDetached(Buffer.concat([STATED_PREFIX, bytes]), Buffer.from(request.signature, 'base64'), Buffer.from(request.verifyKey, 'hex')))
      throw refused('its signature does not fit the origin\'s verify key')
    if (statement.publicKey !== open.publicKey) throw refused('it was made for somebody else')
    const opened = unwrapWithSecretKey(open.secretKey, Buffer.from(statement.sealed, 'base64'))
    const keys = opened === undefined ? undefined : splitFamilyKeys(opened)
    if (keys === undefined || familyIdOf(keys) !== statement.familyId) throw refused('the sealed keys do not open')
    const { repositoryId, verifyKey, origins, chunker } = statement
    return { keys, chunker, origins: [{ repositoryId, verifyKey }, ...origins.filter((one) => one.verifyKey !== verifyKey)] }
  }
}

function parseStatement(bytes: Buffer): FamilyStatement {
  let value: Record<string, unknown>
  try { value = JSON.parse(bytes.toString('utf8')) as Record<string, unknown> } catch (error) {
    throw refused('it is not JSON', error)
  }
  const isHex = (field: unknown, digits: number): boolean => typeof field === 'string' && field.length === digits && /^[0-9a-f]*$/.test(field)
  const isOrigin = (one: unknown): boolean => typeof one === 'object' && one !== null && isHex((one as Origin).repositoryId, 32) && isHex((one as Origin).verifyKey, 64)
  const { origins, sealed } = value
  if (value['format'] !== 1 || !isOrigin(value) || !isHex(value['publicKey'], 64) || !isHex(value['familyId'], 32) || typeof sealed !== 'string' ||
    !isChunker(value['chunker']) || !Array.isArray(origins) || origins.length > ORIGINS_MAX || !origins.every(isOrigin)) throw refused('a field is missing or malformed')
  return value as unknown as FamilyStatement
}
const refused = (problem: string, cause?: unknown): RoostError =>
  new RoostError('PEER_REFUSED', `The origin's answer is refused: ${problem}.`, {}, cause === undefined ? undefined : { cause })
