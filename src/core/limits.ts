/** Every bound of the system: a number, its unit, its reason. Relations are asserted at load; docs/limits.md is proven
 *  equal by a test. A limit that a client must know is announced when a session opens.
 */
import { assert } from './assert.js'

export const KiB = 1024
export const MiB = 1024 * KiB
export const GiB = 1024 * MiB

export const LIMITS = Object.freeze({
  /** Largest plaintext of one chunk: four times the largest content-defined chunk; one block, one zstd window. */
  chunkBytesMax: 4 * MiB,
  /** Largest node: a directory segment or a list node stays far below it. */
  nodeBytesMax: 2 * MiB,
  /** References of one node: 33 bytes each, so a full node is within nodeBytesMax. */
  nodeRefsMax: 32_768,
  /** Levels from the root to the deepest node: 200-deep trees need < 700; the walk keeps 48 bytes a level. */
  treeDepthMax: 8_192,
  /** One body of chunk frames; the unit of admission. */
  bodyBytesMax: 9 * MiB,
  /** Frames of one body. */
  bodyFramesMax: 16_384,
  /** (id, proof) pairs of one missing-query: 3 MiB. */
  missingIdsMax: 65_536,
  /** Ids of one read request. */
  readIdsMax: 8_192,
  /** Bodies of one session that may be in flight at once. */
  sessionBodiesInFlightMax: 8,
  /** JSON bodies: session opening, commit, administration. */
  jsonBytesMax: 1 * MiB,
  /** Open sessions of one repository: each costs a row and its pin bitmaps. */
  sessionsOpenMax: 512,
  /** Of these, those of one token: nobody can lock all others out. */
  sessionsOfTokenMax: 256,
  /** Bytes of chunk bodies that the server holds at once, over all sessions (configurable; this is the default). */
  admissionBytesDefault: 72 * MiB,
  /** Plaintext gathered into one sealed block; measured knee of ratio and read amplification (docs/benchmarks.md). */
  blockRawBytesTarget: 2 * MiB,
  /** A data pack is sealed at the first body boundary past this. */
  dataPackBytesTarget: 64 * MiB,
  /** A node pack likewise; smaller, so that structure alone can be fetched cheaply. */
  nodePackBytesTarget: 16 * MiB,
  /** Entries of one pack: bounds its trailer (52 B an entry) and its pin bitmaps (8 KiB). */
  packEntriesMax: 65_536,
  /** Hard ceiling of a pack: offsets are u32, and one body may land after the target is nearly reached. */
  packBytesMax: 128 * MiB,
  /** A signed snapshot record. */
  snapshotBytesMax: 1 * MiB,
  /** A session with no request for this long is closed by the server; closing is always safe (docs/concurrency.md). */
  sessionIdleMs: 6 * 3600 * 1000,
  /** Bytes of local spool before pushes are told to wait (configurable). */
  spoolBytesDefault: 8 * GiB,
  /** Free bytes kept on the spool's file system. */
  spoolReserveBytes: 256 * MiB,
  /** Policies, protected and locked snapshots of one repository: one object of about a megabyte holds them. */
  retentionEntriesMax: 4_096,
  /** Longest retention lock, ms: a hundred years. What nobody can shorten must not be a typing error. */
  retentionLockMsMax: 36_525 * 24 * 3600 * 1000,
  /** Source names, tags: bytes of UTF-8. */
  nameBytesMax: 256,
  tagsMax: 64,
})

assert(LIMITS.bodyBytesMax >= 2 * LIMITS.chunkBytesMax, 'a body must hold two of the largest chunks')
assert(LIMITS.nodeBytesMax <= LIMITS.chunkBytesMax, 'a node is a chunk')
assert(LIMITS.nodeRefsMax * 33 + 16 <= LIMITS.nodeBytesMax, 'a full node fits')
assert(LIMITS.admissionBytesDefault >= LIMITS.sessionBodiesInFlightMax * LIMITS.bodyBytesMax, 'one session can fill its window')
assert(LIMITS.packBytesMax >= LIMITS.dataPackBytesTarget + 2 * LIMITS.bodyBytesMax, 'a body past the target fits')
assert(LIMITS.packBytesMax < 2 ** 32, 'pack offsets are u32')
assert(LIMITS.packEntriesMax > LIMITS.bodyFramesMax, 'a pack takes a whole body')
