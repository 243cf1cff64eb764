/** One random master key, and a subkey for each use (docs/architecture.md, keys).
 *
 *  Invariant: a context string is never reused for another use and never changed; the same master key gives the same
 *  subkeys for ever.
 */
import { assert } from '../core/assert.js'
import { deriveKey } from '../core/hash.js'
import { signingKeysFromSeed, type KeyPair } from '../core/nacl.js'
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
  /** Authenticates what is kept of policies, protections and locks. */
  readonly retentionKey: Buffer
  /** Seeds the chunker's gear table: goes to every client. */
  readonly gearSeed: Buffer
}

export function createMasterKey(random: Random): Buffer {
  return random.bytes(MASTER_KEY_BYTES)
}

export function deriveRepositoryKeys(masterKey: Buffer): RepositoryKeys {
  assert(masterKey.byteLength === MASTER_KEY_BYTES, 'a master key is 32 bytes')
  return {
    dedupKey: deriveKey('roost v1 dedup key', masterKey),
    packKey: deriveKey('roost v1 pack key', masterKey),
    snapshotKey: deriveKey('roost v1 snapshot key', masterKey),
    lineageKey: deriveKey('roost v1 lineage key', masterKey),
    checkpointKey: deriveKey('roost v1 checkpoint key', masterKey),
    signing: signingKeysFromSeed(deriveKey('roost v1 signing seed', masterKey)),
    retentionKey: deriveKey('roost v1 retention key', masterKey),
    gearSeed: deriveKey('roost v1 gear seed', masterKey),
  }
}

/** Tells whether an unlocked master key is the one that was wrapped, without being of any use otherwise. */
export function deriveCheckValue(masterKey: Buffer): string {
  return deriveKey('roost v1 key check value', masterKey).subarray(0, 16).toString('hex')
}
