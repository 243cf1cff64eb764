/** Identifiers and the one door through which each enters.
 *
 *  Chunk ids travel as 32 raw bytes (hot paths hold millions of them, packed); every other id is lowercase hex.
 *  docs/architecture.md lists what each names.
 */
import { RoostError } from './errors.js'

declare const brand: unique symbol
type Brand<T, Name extends string> = T & { readonly [brand]: Name }

/** 32 bytes: BLAKE3, keyed with the repository's dedup key, of the chunk's plaintext. */
export type ChunkId = Brand<Buffer, 'ChunkId'>
/** The 32 id bytes as a latin1 string: the form for Map and Set keys (one byte a character in V8). */
export type ChunkKey = Brand<string, 'ChunkKey'>
/** 64 lowercase hex digits: BLAKE3-256 of a whole pack object. */
export type PackId = Brand<string, 'PackId'>
/** 64 lowercase hex digits: BLAKE3-256 of a signed snapshot record. */
export type SnapshotId = Brand<string, 'SnapshotId'>
/** 32 lowercase hex digits, random. */
export type SessionId = Brand<string, 'SessionId'>
/** 32 lowercase hex digits, random; part of every pack's associated data. */
export type RepositoryId = Brand<string, 'RepositoryId'>
/** A pack's number in one index: small, never reused, meaningless outside that index. */
export type PackNumber = Brand<number, 'PackNumber'>

export const CHUNK_ID_BYTES = 32
export const PROOF_BYTES = 16
/** id and proof as one keyed BLAKE3 output. */
export const ID_PROOF_BYTES = CHUNK_ID_BYTES + PROOF_BYTES

export const CHUNK_KINDS = { data: 1, node: 2 } as const
export type ChunkKind = (typeof CHUNK_KINDS)[keyof typeof CHUNK_KINDS]
export function isChunkKind(value: number): value is ChunkKind {
  return value === CHUNK_KINDS.data || value === CHUNK_KINDS.node
}

/** Views (does not copy) 32 bytes as a chunk id. @throws {RoostError} ID_MALFORMED on any other length. */
export function asChunkId(bytes: Uint8Array): ChunkId {
  if (bytes.byteLength !== CHUNK_ID_BYTES) throw malformed('chunk', 'A chunk id is 32 bytes.')
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength) as ChunkId
}
/** @throws {RoostError} ID_MALFORMED unless 64 lowercase hex digits. Uppercase is refused: two spellings would be two names. */
export function parseChunkId(text: string): ChunkId {
  return Buffer.from(requireHex(text, 64, 'chunk'), 'hex') as ChunkId
}
export function formatChunkId(id: Uint8Array): string {
  return Buffer.from(id.buffer, id.byteOffset, CHUNK_ID_BYTES).toString('hex')
}
/** The map key of the id that starts at `offset`. */
export function chunkKey(bytes: Buffer, offset = 0): ChunkKey {
  return bytes.toString('latin1', offset, offset + CHUNK_ID_BYTES) as ChunkKey
}
export function chunkKeyToId(key: ChunkKey): ChunkId {
  return Buffer.from(key, 'latin1') as ChunkId
}
export const parsePackId = (text: string): PackId => requireHex(text, 64, 'pack') as PackId
export const parseSnapshotId = (text: string): SnapshotId => requireHex(text, 64, 'snapshot') as SnapshotId
export const parseSessionId = (text: string): SessionId => requireHex(text, 32, 'session') as SessionId
export const parseRepositoryId = (text: string): RepositoryId => requireHex(text, 32, 'repository') as RepositoryId
export const packNumber = (value: number): PackNumber => value as PackNumber

function requireHex(text: string, digits: number, kind: string): string {
  if (typeof text !== 'string' || text.length !== digits || !/^[0-9a-f]+$/.test(text))
    throw malformed(kind, `A ${kind} id is ${digits} lowercase hex digits.`)
  return text
}
function malformed(kind: string, message: string): RoostError {
  return new RoostError('ID_MALFORMED', message, { kind })
}
