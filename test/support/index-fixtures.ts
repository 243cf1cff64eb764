/** Chunks, packs, sessions and snapshots by small numbers, for tests of the index: the same number is the same thing. */
import { createHash } from 'node:crypto'
import { CHUNK_ID_BYTES, CHUNK_KINDS, ID_PROOF_BYTES, parsePackId, parseSessionId, parseSnapshotId, type ChunkKind,
  type PackId, type PackNumber, type SessionId, type SnapshotId } from '../../src/core/ids.js'
import type { ChunkIndex, PackEntries, PackPins, PackRow, SessionRow, SnapshotRow } from '../../src/index/chunk-index.js'

const digestOf = (text: string, algorithm = 'sha256'): Buffer => createHash(algorithm).update(text).digest()

export const idProofOf = (n: number): Buffer => digestOf(`chunk ${n}`, 'sha512').subarray(0, ID_PROOF_BYTES)
export const idOf = (n: number): Buffer => idProofOf(n).subarray(0, CHUNK_ID_BYTES)
export const idProofsOf = (numbers: readonly number[]): Buffer => Buffer.concat(numbers.map(idProofOf))
export const idsOf = (numbers: readonly number[]): Buffer => Buffer.concat(numbers.map(idOf))
export const refsOf = (numbers: readonly number[], kind: number = CHUNK_KINDS.data): Buffer =>
  Buffer.concat(numbers.flatMap((n) => [Buffer.from([kind]), idOf(n)]))

export const packIdOf = (n: number): PackId => parsePackId(digestOf(`pack ${n}`).toString('hex'))
export const snapshotIdOf = (n: number): SnapshotId => parseSnapshotId(digestOf(`snapshot ${n}`).toString('hex'))
export const sessionIdOf = (n: number): SessionId => parseSessionId(n.toString(16).padStart(32, '0'))

export function entriesOf(numbers: readonly number[]): PackEntries {
  const column = (valueOf: (n: number, i: number) => number): Uint32Array => Uint32Array.from(numbers, valueOf)
  return { count: numbers.length, idProofs: idProofsOf(numbers), rawBytes: column((n) => 1000 + n),
    blockOffsets: column((_, i) => i * 4096), blockStoredBytes: column((n) => 500 + n),
    offsetsInBlock: column((_, i) => i * 3) }
}
export function packRow(number: PackNumber, n: number, entryCount: number, kind: ChunkKind = CHUNK_KINDS.data): PackRow {
  return { packNumber: number, packId: packIdOf(n), kind, state: 'spooled', storedBytes: 100 + n, rawBytes: 3000 + n, entryCount, heldBy: 0 }
}
/** Reserves a number and adds pack `n`; returns its row. */
export async function addPack(index: ChunkIndex, n: number, entries: PackEntries, kind: ChunkKind = CHUNK_KINDS.data,
  pins: readonly PackPins[] = []): Promise<PackRow> {
  const row = packRow(await index.reservePackNumbers(1), n, entries.count, kind)
  await index.addPack(row, entries, pins)
  return row
}
export function bitmap(...bits: readonly number[]): Uint8Array {
  const bytes = new Uint8Array((Math.max(...bits) >>> 3) + 1)
  for (const bit of bits) bytes[bit >>> 3]! |= 1 << (bit & 7)
  return bytes
}

export function sessionRow(n: number): SessionRow {
  return { sessionId: sessionIdOf(n), kind: 'push', source: `host-${n}`, mode: 'files', snapshot: n % 2 === 0 ? snapshotIdOf(n) : null,
    tokenId: `token ${n} ü`, openedAtMs: n, lastUsedAtMs: n }
}
export function emptySnapshot(n: number): Omit<SnapshotRow, 'sequence'> {
  return { snapshotId: snapshotIdOf(n), source: `host-${n}`, receivedAtMs: 1_700_000_000_000 + n, tags: [`tag-${n}`],
    record: Buffer.from(`record ${n}`), signature: digestOf(`signature ${n}`, 'sha512') }
}
