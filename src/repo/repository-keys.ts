/** One random master key, and a subkey for each use (docs/architecture.md, keys).
 *
 *  Invariant: a context string is never reused for another use and never changed; the same master key gives the same
 *  subkeys for ever.
 */
import { assert } from '../core/assert.js'
import { deriveKey } from '../core/hash.js'
import { signingKeysFromSeed, unwrapWithKey, wrapWithKey, type KeyPair } from '../core/nacl.js'
import type { Random } from '../core/random.js'

export const MASTER_KEY_BYTES = 32

export interface RepositoryKeys {
  /** Names chunks: goes to every client of the repository. */
  readonly dedupKey: Buffer
  /** Mother of the per-pack keys. */
  readonly packKey: Buffer
  readonly snapshotKey: Buffer
  readonly lineageKey: Buffer
  readonly checkpointKey: Buffer
  /** Ed25519: signs snapshots. */
  readonly signing: KeyPair
  /** Authenticates which repositories' snapshots are taken in. */
  readonly originsKey: Buffer
  /** Authenticates what is kept of policies, protections and locks. */
  readonly retentionKey: Buffer
  /** Seeds the chunker's gear table: goes to every client. */
  readonly gearSeed: Buffer
}

export function createMasterKey(random: Random): Buffer {
  return random.bytes(MASTER_KEY_BYTES)
}

/** What the repositories of a family share: how chunks are cut and named. Nothing that opens a pack. */
export interface FamilyKeys { readonly dedupKey: Buffer; readonly gearSeed: Buffer }
export const FAMILY_KEY_BYTES = 32

/** @param family of the repository that this one is a replica of; without it, a family of its own */
export function deriveRepositoryKeys(masterKey: Buffer, family?: FamilyKeys): RepositoryKeys {
  assert(masterKey.byteLength === MASTER_KEY_BYTES, 'a master key is 32 bytes')
  return {
    dedupKey: family?.dedupKey ?? deriveKey('roost v1 dedup key', masterKey),
    packKey: deriveKey('roost v1 pack key', masterKey),
    snapshotKey: deriveKey('roost v1 snapshot key', masterKey),
    lineageKey: deriveKey('roost v1 lineage key', masterKey),
    checkpointKey: deriveKey('roost v1 checkpoint key', masterKey),
    signing: signingKeysFromSeed(deriveKey('roost v1 signing seed', masterKey)),
    originsKey: deriveKey('roost v1 origins key', masterKey),
    retentionKey: deriveKey('roost v1 retention key', masterKey),
    gearSeed: family?.gearSeed ?? deriveKey('roost v1 gear seed', masterKey),
  }
}

/** Tells whether an unlocked master key is the one that was wrapped, without being of any use otherwise. */
export function deriveCheckValue(masterKey: Buffer): string {
  return deriveKey('roost v1 key check value', masterKey).subarray(0, 16).toString('hex')
}

/** Names a family without telling its keys: repositories of different ones cannot replicate. 32 hex digits. */
export function familyIdOf({ dedupKey, gearSeed }: FamilyKeys): string {
  return deriveKey('roost v1 family id', Buffer.concat([dedupKey, gearSeed])).subarray(0, 16).toString('hex')
}
/** The family's keys as the header of a replica keeps them: under the replica's own master key. Base64. */
export function wrapFamilyKeys({ dedupKey, gearSeed }: FamilyKeys, masterKey: Buffer): string {
  return wrapWithKey(deriveKey('roost v1 family wrapping key', masterKey), Buffer.concat([dedupKey, gearSeed])).toString('base64')
}
/** Undefined when they were wrapped under another master key, or changed. */
export function unwrapFamilyKeys(wrapped: string, masterKey: Buffer): FamilyKeys | undefined {
  const opened = unwrapWithKey(deriveKey('roost v1 family wrapping key', masterKey), Buffer.from(wrapped, 'base64'))
  return opened === undefined ? undefined : splitFamilyKeys(opened)
}
export function splitFamilyKeys(bytes: Buffer): FamilyKeys | undefined {
  if (bytes.byteLength !== 2 * FAMILY_KEY_BYTES) return undefined
  return { dedupKey: Buffer.from(bytes.subarray(0, FAMILY_KEY_BYTES)), gearSeed: Buffer.from(bytes.subarray(FAMILY_KEY_BYTES)) }
}
