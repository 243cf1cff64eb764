/** Use cases over key slots: what an administrator does with them while the repository is open. */
import { RoostError } from '../core/errors.js'
import type { AddKeySlotRequest, AttachRepositoryRequest, KeySlotInfo } from '../core/messages.js'
import * as slots from './key-slots.js'
import type { RepositoryParts } from './repository-parts.js'

type KeyParts = Pick<RepositoryParts, 'store' | 'clock' | 'random' | 'effects'>

export const listKeySlots = ({ store }: KeyParts): Promise<KeySlotInfo[]> => slots.listKeySlots(store)

export function addKeySlot(parts: KeyParts, masterKey: Buffer, request: AddKeySlotRequest): Promise<KeySlotInfo> {
  const options = { label: request.label, clock: parts.clock, random: parts.random }
  return request.kind === 'passphrase' ? slots.addPassphraseSlot(parts.store, masterKey, request.passphrase, options)
    : slots.addRecoverySlot(parts.store, masterKey, request.publicKey, options)
}

/** @throws {RoostError} KEY_SLOT_UNKNOWN; KEY_SLOT_LAST also for the slot that this server itself starts with */
export async function removeKeySlot(parts: KeyParts, slotId: string, keyfilePath: string): Promise<void> {
  const own = await slots.openSlot(parts.store, { keyfile: await slots.readKeyfile(keyfilePath) })
  if (own.slotId === slotId)
    throw new RoostError('KEY_SLOT_LAST', 'This server opens the repository with this slot at every start; use `roost key rotate` to replace it.', { slotId })
  await slots.removeKeySlot(parts.store, slotId)
}

/** Order: new slot on the target, then the new keyfile here, then the old slot goes. Dying in between leaves a keyfile that opens. */
export async function rotateKeyfile(parts: KeyParts, masterKey: Buffer, keyfilePath: string): Promise<KeySlotInfo> {
  const old = await slots.openSlot(parts.store, { keyfile: await slots.readKeyfile(keyfilePath) })
  const keyfile = parts.random.bytes(slots.KEYFILE_BYTES)
  const added = await slots.addKeyfileSlot(parts.store, masterKey, keyfile, { label: 'server keyfile', clock: parts.clock, random: parts.random })
  await slots.writeKeyfile(keyfilePath, keyfile, parts.effects)
  await slots.removeKeySlot(parts.store, old.slotId)
  return added
}

/** @throws {RoostError} REQUEST_MALFORMED unless exactly one secret is given */
export function attachSecretOf(request: AttachRepositoryRequest): slots.KeySecret {
  const { passphrase, recoverySecretKey } = request
  if (passphrase !== undefined && recoverySecretKey === undefined) return { passphrase }
  if (recoverySecretKey !== undefined && passphrase === undefined) return { recoverySecretKey }
  throw new RoostError('REQUEST_MALFORMED', 'Attaching needs either a passphrase or a recovery secret key.')
}
