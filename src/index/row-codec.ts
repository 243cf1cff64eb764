/** Rows of the smaller tables: packs, sessions, snapshots, pins, counters. Every row ends in a u32 check that binds its
 *  table and its key, so a flipped byte, or a row under another row's key, is INDEX_CORRUPT and never data.
 */
import { CHUNK_KINDS, isChunkKind, packNumber, parsePackId, parseSessionId, parseSnapshotId,
  type SessionId } from '../core/ids.js'
import { ByteReader, ByteWriter } from '../core/bytes.js'
import type { DoomedPack, IndexTotals, PackRow, SessionRow, SnapshotRow } from './chunk-index.js'
import { corrupt, finishCheck, mixBytes } from './checksum.js'

/** One byte a table, part of the check: a row cannot stand in for one of another table. */
const TABLES = { pack: 1, packId: 2, session: 3, pins: 4, snapshot: 5, record: 6, snapshotId: 7, sessionSnapshot: 8,
  superseded: 9, counters: 10, state: 11, identity: 12, collection: 13, doomed: 14, damage: 15, damaged: 16, whole: 17, verified: 18, verifiedOrder: 19 } as const
type Table = keyof typeof TABLES
const CHECK_BYTES = 4
const ROW_VERSION = 1

function checkOf(table: Table, key: Uint8Array, bytes: Uint8Array, end: number): number {
  return finishCheck(mixBytes(mixBytes(TABLES[table] * 256 + ROW_VERSION, key, 0, key.length), bytes, 0, end))
}
/** Payload and check, in one fresh buffer. */
export function sealRow(table: Table, key: Uint8Array, payload: Uint8Array): Buffer {
  const row = Buffer.allocUnsafeSlow(payload.length + CHECK_BYTES)
  row.set(payload)
  row.writeUInt32LE(checkOf(table, key, row, payload.length), payload.length)
  return row
}
/** The payload (a view). @throws {RoostError} INDEX_CORRUPT */
export function unsealRow(table: Table, key: Uint8Array, row: Buffer): Buffer {
  const end = row.length - CHECK_BYTES
  if (end < 0 || row.readUInt32LE(end) !== checkOf(table, key, row, end)) throw corrupt(`A ${table} row fails its check.`)
  return row.subarray(0, end)
}
function readerOf(table: Table, key: Uint8Array, row: Buffer): ByteReader {
  return new ByteReader(unsealRow(table, key, row), (problem) => corrupt(`A ${table} row is malformed: ${problem}.`))
}

export function u32Key(value: number): Buffer {
  const key = Buffer.allocUnsafeSlow(4)
  key.writeUInt32BE(value)
  return key
}
export const idKey = (hexId: string): Buffer => Buffer.from(hexId, 'hex')
export const PIN_KEY_BYTES = 20
/** Session id 16, pack number u32 big-endian: one session's pins are one range. */
export function pinKey(session: Uint8Array, pack: number): Buffer {
  const key = Buffer.allocUnsafeSlow(PIN_KEY_BYTES)
  key.set(session)
  key.writeUInt32BE(pack, 16)
  return key
}

/** 0 pack id 32 | kind u8 | state u8 | entries u32 | stored bytes u64 | raw bytes u64 | held by u32 | check */
export function encodePackRow(key: Uint8Array, row: PackRow): Buffer {
  return sealRow('pack', key, new ByteWriter(64).bytes(Buffer.from(row.packId, 'hex')).u8(row.kind)
    .u8(row.state === 'stored' ? 1 : 0).u32(row.entryCount).u64(row.storedBytes).u64(row.rawBytes).u32(row.heldBy).finish())
}
export function decodePackRow(key: Buffer, row: Buffer): PackRow {
  const reader = readerOf('pack', key, row)
  const packId = parsePackId(reader.bytes(32, 'pack id').toString('hex'))
  const kind = reader.u8('kind')
  if (!isChunkKind(kind)) throw corrupt('A pack row has no kind.')
  const state = reader.u8('state') === 1 ? 'stored' : 'spooled'
  const entryCount = reader.u32('entries')
  const storedBytes = reader.u64('stored bytes')
  const rawBytes = reader.u64('raw bytes')
  // Rows of before there were several targets end here: what was stored was on the only one.
  const heldBy = reader.remaining === 0 ? Number(state === 'stored') : reader.u32('held by')
  reader.expectEnd('pack row')
  return { packNumber: packNumber(key.readUInt32BE(0)), packId, kind, state, storedBytes, rawBytes, entryCount, heldBy }
}

/** A number that another row's key refers to (pack id → pack number, snapshot id → sequence, session → sequence). */
export function encodeNumberRow(table: Table, key: Uint8Array, value: number): Buffer {
  return sealRow(table, key, new ByteWriter(8).u64(value).finish())
}
export function decodeNumberRow(table: Table, key: Uint8Array, row: Buffer): number {
  return readerOf(table, key, row).u64('number')
}

export function encodeJsonRow(table: Table, key: Uint8Array, value: unknown): Buffer {
  return sealRow(table, key, Buffer.from(JSON.stringify(value)))
}
/** The row passed its check, so this process's format version wrote it: its shape is trusted from here. */
function decodeJsonRow<T>(table: Table, key: Uint8Array, row: Buffer): T {
  return JSON.parse(unsealRow(table, key, row).toString('utf8')) as T
}
export const encodeSessionRow = (key: Uint8Array, row: SessionRow): Buffer => encodeJsonRow('session', key, row)
export function decodeSessionRow(key: Uint8Array, bytes: Buffer): SessionRow {
  const row = decodeJsonRow<SessionRow>('session', key, bytes)
  parseSessionId(row.sessionId)
  return row
}

/** A snapshot without its signed bytes: what listings filter on. */
export type SnapshotHead = Omit<SnapshotRow, 'record' | 'signature'>
export const encodeSnapshotHead = (key: Uint8Array, head: SnapshotHead): Buffer => encodeJsonRow('snapshot', key, head)
export function decodeSnapshotHead(key: Uint8Array, bytes: Buffer): SnapshotHead {
  const head = decodeJsonRow<SnapshotHead>('snapshot', key, bytes)
  parseSnapshotId(head.snapshotId)
  return head
}
/** 0 signature bytes u32 | signature | record | check */
export function encodeSnapshotRecord(key: Uint8Array, snapshot: Pick<SnapshotRow, 'record' | 'signature'>): Buffer {
  return sealRow('record', key, new ByteWriter(snapshot.record.length + snapshot.signature.length + 4)
    .u32(snapshot.signature.length).bytes(snapshot.signature).bytes(snapshot.record).finish())
}
export function decodeSnapshotRecord(key: Uint8Array, row: Buffer): { record: Buffer; signature: Buffer } {
  const reader = readerOf('record', key, row)
  const signature = reader.bytes(reader.u32('signature bytes'), 'signature')
  return { signature: Buffer.from(signature), record: Buffer.from(reader.rest()) }
}

/** The two bitmaps of a (session, pack): bit = entry number; bytes past the end are zero. */
export interface PinBits { readonly pinned: Uint8Array; readonly inherited: Uint8Array }
export const NO_PINS: PinBits = { pinned: new Uint8Array(0), inherited: new Uint8Array(0) }
/** 0 bytes of `pinned` u32 | pinned | inherited | check */
export function encodePins(key: Uint8Array, pins: PinBits): Buffer {
  return sealRow('pins', key, new ByteWriter(pins.pinned.length + pins.inherited.length + 4)
    .u32(pins.pinned.length).bytes(pins.pinned).bytes(pins.inherited).finish())
}
export function decodePins(key: Uint8Array, row: Buffer): PinBits {
  const reader = readerOf('pins', key, row)
  const pinned = reader.bytes(reader.u32('pinned bytes'), 'pinned')
  return { pinned, inherited: reader.rest() }
}
export const hasBit = (bitmap: Uint8Array, bit: number): boolean => ((bitmap[bit >>> 3] ?? 0) >>> (bit & 7) & 1) === 1
/** The union, as long as the longer one; a fresh array. */
export function unionBits(a: Uint8Array, b: Uint8Array): Uint8Array {
  const [longer, shorter] = a.length >= b.length ? [a, b] : [b, a]
  const union = Uint8Array.from(longer)
  for (let i = 0; i < shorter.length; i++) union[i]! |= shorter[i]!
  return union
}

/** What totals() answers from, and the numbers that are never handed out twice; changed in the transaction that changes
 *  what they count. `removals` advances whenever a live chunk entry is taken away or replaced: a lookup made before a
 *  transaction still holds inside it while this stands still. */
export type Counters = { -readonly [K in Exclude<keyof IndexTotals, 'damagedChunks'>]: number } &
  { nextPackNumber: number; nextSequence: number; removals: number }
export const FRESH_COUNTERS: Counters = { packs: 0, chunks: 0, dataChunks: 0, nodeChunks: 0, rawBytes: 0, storedBytes: 0,
  spooledPacks: 0, spooledBytes: 0, snapshots: 0, sessionsOpen: 0, nextPackNumber: 1, nextSequence: 1, removals: 0, doomedPacks: 0, doomedBytes: 0 }
const COUNTER_FIELDS = ['packs', 'chunks', 'dataChunks', 'nodeChunks', 'rawBytes', 'storedBytes', 'spooledPacks',
  'spooledBytes', 'snapshots', 'sessionsOpen', 'nextPackNumber', 'nextSequence', 'removals'] as const
/** Added later: absent in rows of indexes that never doomed a pack. */
const LATER_COUNTER_FIELDS = ['doomedPacks', 'doomedBytes'] as const

export function encodeCounters(key: Uint8Array, counters: Counters): Buffer {
  const writer = new ByteWriter((COUNTER_FIELDS.length + LATER_COUNTER_FIELDS.length) * 8)
  for (const field of [...COUNTER_FIELDS, ...LATER_COUNTER_FIELDS]) writer.u64(counters[field])
  return sealRow('counters', key, writer.finish())
}
export function decodeCounters(key: Uint8Array, row: Buffer): Counters {
  const reader = readerOf('counters', key, row)
  const counters = { ...FRESH_COUNTERS }
  for (const field of COUNTER_FIELDS) counters[field] = reader.u64(field)
  if (reader.remaining > 0) for (const field of LATER_COUNTER_FIELDS) counters[field] = reader.u64(field)
  reader.expectEnd('counters')
  return counters
}

/** 0 epoch u64 | collecting u64 | check */
export function encodeCollection(key: Uint8Array, { epoch, collecting }: { epoch: number; collecting: number }): Buffer {
  return sealRow('collection', key, new ByteWriter(16).u64(epoch).u64(collecting).finish())
}
export function decodeCollection(key: Uint8Array, row: Buffer): { epoch: number; collecting: number } {
  const reader = readerOf('collection', key, row)
  return { epoch: reader.u64('epoch'), collecting: reader.u64('collecting') }
}
/** Key: pack id. 0 stored bytes u64 | pending u32 | check */
export function encodeDoomed(key: Uint8Array, { storedBytes, pending }: DoomedPack): Buffer {
  return sealRow('doomed', key, new ByteWriter(12).u64(storedBytes).u32(pending).finish())
}
export function decodeDoomed(key: Buffer, row: Buffer): DoomedPack {
  const reader = readerOf('doomed', key, row)
  return { packId: parsePackId(key.toString('hex')), storedBytes: reader.u64('stored bytes'), pending: reader.u32('pending') }
}

export const isNodeKind = (kind: number): boolean => kind === CHUNK_KINDS.node
export type SessionKey = Buffer
export const sessionKey = (sessionId: SessionId): SessionKey => Buffer.from(sessionId, 'hex')
