/** The master key, wrapped in slots on the target: one object `keys/<slotId>` each (docs/formats/repository-v1.md).
 *
 *  A slot opens with the server's keyfile (secretbox), a passphrase (scrypt → secretbox) or a recovery secret key (box).
 *  Slots are written once and never changed; what a target hands back is hostile until proven, so every field is bounded
 *  before it costs anything. One damaged slot does not keep the others from unlocking.
 *  Invariant: no key, passphrase or wrapped byte enters an error, and the last slot that can open is never removed.
 */
import { scrypt, type ScryptOptions } from 'node:crypto'
import { constants, promises as files } from 'node:fs'
import { assert, assertNever } from '../core/assert.js'
import type { Clock } from '../core/clock.js'
import { RoostError, hasCode, isErrno } from '../core/errors.js'
import { KiB, LIMITS } from '../core/limits.js'
import type { AttachRepositoryRequest, KeySlotInfo, KeySlotKind } from '../core/messages.js'
import { unwrapWithKey, unwrapWithSecretKey, wrapForPublicKey, wrapWithKey } from '../core/nacl.js'
import type { Random } from '../core/random.js'
import { bytesBody } from '../store/bytes-body.js'
import type { FileEffects } from '../store/file-effects.js'
import type { ObjectStore } from '../store/object-store.js'
import { replaceFile } from '../store/replace-file.js'
import { KEY_SLOT_PREFIX, keySlotKey, slotIdOfKey } from './layout.js'
import { parseRecoveryPublicKey, parseRecoverySecretKey } from './recovery-key.js'
import { MASTER_KEY_BYTES, deriveCheckValue } from './repository-keys.js'

/** `recoverySecretKey` is the text form (`roost-recovery-secret-…`). */
export type KeySecret =
  | { readonly keyfile: Buffer }
  | { readonly passphrase: string }
  | { readonly recoverySecretKey: string }

export interface KeySlotOptions { readonly label: string; readonly clock: Clock; readonly random: Random }

export const KEYFILE_BYTES = 32
const SLOT_FORMAT = 1
const SLOT_BYTES_MAX = 8 * KiB
/** Each passphrase slot costs an attempt 0.3 s and 128 MiB. */
const SLOTS_MAX = 64
const PASSPHRASE_BYTES_MAX = 1 * KiB
const SALT_BYTES = 16

/** N, r, p of RFC 7914. N = 2^17, r = 8, p = 1: OWASP's recommendation; 128 MiB and about 0.3 s for each guess. */
interface ScryptParameters { readonly N: number; readonly r: number; readonly p: number; readonly salt: Buffer }
const SCRYPT_DEFAULTS = { N: 2 ** 17, r: 8, p: 1 } as const
/** What a stored slot may demand of us: 256 MiB. */
const SCRYPT_BOUNDS = { N: 2 ** 18, r: 8, p: 4 } as const

interface KeySlot extends KeySlotInfo {
  readonly checkValue: string
  readonly wrapped: Buffer
  /** Of kind passphrase. */
  readonly scrypt?: ScryptParameters
}

/** Oldest first. @throws {RoostError} REPOSITORY_CORRUPT when a slot is damaged; what the store throws */
export async function listKeySlots(store: ObjectStore): Promise<KeySlotInfo[]> {
  const { slots, damage } = await readSlots(store)
  if (damage !== undefined) throw damage
  return slots.map(slotInfo)
}

/** `keyfile`: 32 random bytes. Resolves when the slot is durable on the target, as do all of the three. */
export async function addKeyfileSlot(store: ObjectStore, masterKey: Buffer, keyfile: Buffer,
  options: KeySlotOptions): Promise<KeySlotInfo> {
  assert(keyfile.byteLength === KEYFILE_BYTES, 'a keyfile has 32 bytes')
  return await addSlot(store, masterKey, { kind: 'keyfile', wrapped: wrapWithKey(keyfile, masterKey) }, options)
}
/** @throws {RoostError} REQUEST_MALFORMED for an empty or overlong passphrase or label */
export async function addPassphraseSlot(store: ObjectStore, masterKey: Buffer, passphrase: string,
  options: KeySlotOptions): Promise<KeySlotInfo> {
  const parameters = { ...SCRYPT_DEFAULTS, salt: options.random.bytes(SALT_BYTES) }
  const key = await stretch(passphrase, parameters)
  return await addSlot(store, masterKey, { kind: 'passphrase', wrapped: wrapWithKey(key, masterKey), scrypt: parameters }, options)
}
/** `publicKey`: `roost-recovery-public-…`. @throws {RoostError} REQUEST_MALFORMED */
export async function addRecoverySlot(store: ObjectStore, masterKey: Buffer, publicKey: string,
  options: KeySlotOptions): Promise<KeySlotInfo> {
  const wrapped = wrapForPublicKey(parseRecoveryPublicKey(publicKey), masterKey)
  return await addSlot(store, masterKey, { kind: 'recovery', wrapped }, options)
}

/** Concurrency: one removal at a time per repository, or two could each leave "the other one".
 *
 *  @throws {RoostError} KEY_SLOT_UNKNOWN; KEY_SLOT_LAST when no other intact slot would remain
 */
export async function removeKeySlot(store: ObjectStore, slotId: string): Promise<void> {
  const { slots, damagedIds } = await readSlots(store)
  if (!slots.some((slot) => slot.slotId === slotId) && !damagedIds.includes(slotId))
    throw new RoostError('KEY_SLOT_UNKNOWN', 'This repository has no key slot of that id.')
  if (!slots.some((slot) => slot.slotId !== slotId)) throw new RoostError('KEY_SLOT_LAST',
    'This is the last intact key slot: without it nobody could ever read the repository. Add another slot first.', { slotId })
  await store.delete(keySlotKey(slotId))
}

/** Tries the secret on every slot of its kind.
 *
 *  @throws {RoostError} KEY_UNLOCK_FAILED naming the slots that were tried; REPOSITORY_CORRUPT when none opened and a slot
 *  is damaged, or when a slot holds another repository's key; REQUEST_MALFORMED for a malformed secret
 */
export async function unlockMasterKey(store: ObjectStore, secret: KeySecret): Promise<Buffer> {
  return (await openSlot(store, secret)).masterKey
}
/** As unlockMasterKey, and says which slot the secret opened. */
export async function openSlot(store: ObjectStore, secret: KeySecret): Promise<{ masterKey: Buffer; slotId: string }> {
  const { kind, open } = opener(secret)
  const { slots, damage } = await readSlots(store)
  const tried = slots.filter((slot) => slot.kind === kind)
  for (const slot of tried) {
    const masterKey = await open(slot)
    if (masterKey === undefined) continue
    if (masterKey.byteLength !== MASTER_KEY_BYTES || deriveCheckValue(masterKey) !== slot.checkValue)
      throw corruptSlot(slot.slotId, 'it opens, but holds another key than it says')
    return { masterKey, slotId: slot.slotId }
  }
  if (damage !== undefined) throw damage
  throw unlockFailed(kind, tried, slots)
}

/** @throws {RoostError} REQUEST_MALFORMED unless exactly one secret is given. */
export function attachSecretOf({ passphrase, recoverySecretKey }: AttachRepositoryRequest): KeySecret {
  if (passphrase !== undefined && recoverySecretKey === undefined) return { passphrase }
  if (recoverySecretKey !== undefined && passphrase === undefined) return { recoverySecretKey }
  throw new RoostError('REQUEST_MALFORMED', 'Give either the passphrase or the recovery secret key, to attach a repository.')
}

/** The bytes of a keyfile that nobody but its owner can read. @throws {RoostError} KEY_UNLOCK_FAILED saying what to do */
export async function readKeyfile(path: string): Promise<Buffer> {
  const refuse = (problem: string, cause?: unknown): RoostError =>
    new RoostError('KEY_UNLOCK_FAILED', `The keyfile ${path} ${problem}.`, {}, { cause })
  let handle: files.FileHandle
  try { handle = await files.open(path, constants.O_RDONLY | constants.O_NONBLOCK) } catch (error) {
    if (isErrno(error, 'ENOENT')) throw refuse('does not exist; attach the repository again with another key slot', error)
    throw refuse('cannot be opened; check its owner and mode', error)
  }
  try {
    const facts = await handle.stat()
    if (!facts.isFile()) throw refuse('is not a plain file')
    if ((facts.mode & 0o077) !== 0) throw refuse('can be read by others than its owner; run chmod 600 on it, and consider rotating it')
    const bytes = Buffer.alloc(KEYFILE_BYTES + 1)
    const { bytesRead } = await handle.read(bytes, 0, bytes.byteLength, 0)
    if (bytesRead !== KEYFILE_BYTES) throw refuse(`is damaged: it has not exactly ${KEYFILE_BYTES} bytes`)
    return bytes.subarray(0, KEYFILE_BYTES)
  } catch (error) {
    throw error instanceof RoostError ? error : refuse('cannot be read; check the disk', error)
  } finally { await handle.close() }
}
/** Replaces the file atomically and durably, mode 0600. */
export async function writeKeyfile(path: string, keyfile: Buffer, effects: FileEffects): Promise<void> {
  assert(keyfile.byteLength === KEYFILE_BYTES, 'a keyfile has 32 bytes')
  await replaceFile(path, keyfile, effects)
}

async function addSlot(store: ObjectStore, masterKey: Buffer, lock: Pick<KeySlot, 'kind' | 'wrapped' | 'scrypt'>,
  { label, clock, random }: KeySlotOptions): Promise<KeySlotInfo> {
  assert(masterKey.byteLength === MASTER_KEY_BYTES, 'a master key is 32 bytes')
  if (Buffer.byteLength(label) > LIMITS.nameBytesMax)
    throw new RoostError('REQUEST_MALFORMED', `A key slot's label has at most ${LIMITS.nameBytesMax} bytes.`)
  if ((await readSlots(store)).slots.length >= SLOTS_MAX)
    throw new RoostError('LIMIT_EXCEEDED', `A repository has at most ${SLOTS_MAX} key slots; remove one first.`, { limit: SLOTS_MAX })
  const slot: KeySlot = { slotId: random.bytes(16).toString('hex'), label, createdAtMs: clock.now(), checkValue: deriveCheckValue(masterKey), ...lock }
  await store.put(keySlotKey(slot.slotId), bytesBody(encodeSlot(slot)))
  return slotInfo(slot)
}

interface ReadSlots { readonly slots: KeySlot[]; readonly damagedIds: string[]; readonly damage: RoostError | undefined }
/** All slots, oldest first; damaged ones apart, with the first one's error. */
async function readSlots(store: ObjectStore): Promise<ReadSlots> {
  const ids: string[] = []
  for await (const { key } of store.list(KEY_SLOT_PREFIX)) {
    const slotId = slotIdOfKey(key)
    if (slotId !== undefined) ids.push(slotId)
    if (ids.length > SLOTS_MAX) throw new RoostError('REPOSITORY_CORRUPT',
      `The target ${store.description} holds more than ${SLOTS_MAX} key slots; somebody else wrote there.`, { limit: SLOTS_MAX })
  }
  const slots: KeySlot[] = []
  const damagedIds: string[] = []
  let damage: RoostError | undefined
  for (const slotId of ids) {
    try {
      const slot = await readSlot(store, slotId)
      if (slot !== undefined) slots.push(slot)
    } catch (error) {
      if (!hasCode(error, 'REPOSITORY_CORRUPT')) throw error
      damagedIds.push(slotId)
      damage ??= error
    }
  }
  slots.sort((a, b) => a.createdAtMs - b.createdAtMs || (a.slotId < b.slotId ? -1 : 1))
  return { slots, damagedIds, damage }
}
/** Undefined when it is not there. @throws {RoostError} REPOSITORY_CORRUPT when it is damaged. */
export async function readSlot(store: ObjectStore, slotId: string): Promise<KeySlot | undefined> {
  const facts = await store.head(keySlotKey(slotId))
  if (facts === undefined) return undefined // removed since it was listed
  if (facts.bytes === 0 || facts.bytes > SLOT_BYTES_MAX) throw corruptSlot(slotId, 'its length is out of bounds')
  const bytes = await store.getRange(keySlotKey(slotId), { offset: 0, bytes: facts.bytes })
  return bytes === undefined ? undefined : decodeSlot(slotId, bytes)
}

function encodeSlot(slot: KeySlot): Buffer {
  const { slotId, kind, label, createdAtMs, checkValue } = slot
  const stored = {
    format: SLOT_FORMAT, slotId, kind, label, createdAtMs, checkValue, wrapped: slot.wrapped.toString('base64'),
    ...(slot.scrypt && { scrypt: { ...slot.scrypt, salt: slot.scrypt.salt.toString('base64') } }),
  }
  return Buffer.from(`${JSON.stringify(stored, null, 2)}\n`, 'utf8')
}
function decodeSlot(slotId: string, bytes: Buffer): KeySlot {
  const value = parseJsonRecord(bytes)
  if (value === undefined) throw corruptSlot(slotId, 'it is not a JSON object')
  const { format, kind, label, createdAtMs, checkValue } = value
  if (format !== SLOT_FORMAT) throw corruptSlot(slotId, 'its format is unknown to this version')
  const wrapped = decodeBase64(value.wrapped)
  if (value.slotId !== slotId || !isSlotKind(kind) || typeof label !== 'string' || Buffer.byteLength(label) > LIMITS.nameBytesMax ||
    !isWhole(createdAtMs) || typeof checkValue !== 'string' || !/^[0-9a-f]{32}$/.test(checkValue) || wrapped === undefined)
    throw corruptSlot(slotId, 'a field is missing or malformed')
  const slot = { slotId, kind, label, createdAtMs, checkValue, wrapped }
  return kind === 'passphrase' ? { ...slot, scrypt: decodeScrypt(slotId, value.scrypt) } : slot
}
function decodeScrypt(slotId: string, value: unknown): ScryptParameters {
  const { N, r, p, salt: saltText } = isRecord(value) ? value : {}
  const salt = decodeBase64(saltText)
  if (!isWhole(N) || N < 2 || (N & (N - 1)) !== 0 || N > SCRYPT_BOUNDS.N || !isWhole(r) || r < 1 || r > SCRYPT_BOUNDS.r ||
    !isWhole(p) || p < 1 || p > SCRYPT_BOUNDS.p || salt === undefined || salt.byteLength < SALT_BYTES || salt.byteLength > 64)
    throw corruptSlot(slotId, 'its scrypt parameters are out of bounds')
  return { N, r, p, salt }
}

/** What opens slots of one kind: the master key, or undefined when the secret is not this slot's. */
function opener(secret: KeySecret): { kind: KeySlotKind; open(slot: KeySlot): Promise<Buffer | undefined> } {
  if ('keyfile' in secret) return { kind: 'keyfile', open: async (slot) => unwrapWithKey(secret.keyfile, slot.wrapped) }
  if ('passphrase' in secret) return {
    kind: 'passphrase',
    open: async (slot) => {
      assert(slot.scrypt !== undefined, 'a passphrase slot has scrypt parameters')
      return unwrapWithKey(await stretch(secret.passphrase, slot.scrypt), slot.wrapped)
    },
  }
  if ('recoverySecretKey' in secret) {
    const secretKey = parseRecoverySecretKey(secret.recoverySecretKey)
    return { kind: 'recovery', open: async (slot) => unwrapWithSecretKey(secretKey, slot.wrapped) }
  }
  return assertNever(secret)
}

/** Unicode is normalised (NFKC): one passphrase, whatever keyboard typed it. */
async function stretch(passphrase: string, { N, r, p, salt }: ScryptParameters): Promise<Buffer> {
  const typed = Buffer.from(passphrase.normalize('NFKC'), 'utf8')
  if (typed.byteLength === 0 || typed.byteLength > PASSPHRASE_BYTES_MAX)
    throw new RoostError('REQUEST_MALFORMED', `A passphrase has 1 to ${PASSPHRASE_BYTES_MAX} bytes.`)
  const options: ScryptOptions = { N, r, p, maxmem: 128 * r * (N + p + 2) + 1024 * KiB }
  return await new Promise((resolve, reject) => {
    scrypt(typed, salt, 32, options, (error, key) => { if (error === null) resolve(key); else reject(error) })
  })
}

const SECRET_NAMES: Readonly<Record<KeySlotKind, string>> =
  { keyfile: 'keyfile', passphrase: 'passphrase', recovery: 'recovery secret key' }

function unlockFailed(kind: KeySlotKind, tried: readonly KeySlot[], all: readonly KeySlot[]): RoostError {
  const ids = tried.map((slot) => slot.slotId)
  const others = [...new Set(all.map((slot) => slot.kind))].filter((other) => other !== kind)
  const problem = tried.length === 0 ? `This repository has no ${kind} slot`
    : `This ${SECRET_NAMES[kind]} opens none of the ${kind} slots (${ids.join(', ')})`
  const advice = others.length === 0 ? '' : ` It also opens with: ${others.map((other) => SECRET_NAMES[other]).join(', ')}.`
  return new RoostError('KEY_UNLOCK_FAILED', `${problem}.${advice}`, { kind, tried: ids })
}
function corruptSlot(slotId: string, problem: string): RoostError {
  return new RoostError('REPOSITORY_CORRUPT', `The key slot ${slotId} is damaged: ${problem}.`, { slotId })
}

const slotInfo = ({ slotId, kind, label, createdAtMs }: KeySlot): KeySlotInfo => ({ slotId, kind, label, createdAtMs })
function isSlotKind(value: unknown): value is KeySlotKind { return value === 'keyfile' || value === 'passphrase' || value === 'recovery' }
function isWhole(value: unknown): value is number { return Number.isSafeInteger(value) && (value as number) >= 0 }
function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
function parseJsonRecord(bytes: Buffer): Record<string, unknown> | undefined {
  let value: unknown
  try { value = JSON.parse(bytes.toString('utf8')) } catch { return undefined } // the parser's message would quote the slot
  return isRecord(value) ? value : undefined
}
/** Canonical base64 of at least one byte, or undefined. */
function decodeBase64(value: unknown): Buffer | undefined {
  if (typeof value !== 'string' || value === '') return undefined
  const bytes = Buffer.from(value, 'base64')
  return bytes.toString('base64') === value ? bytes : undefined
}
