/** From what the user names to disks that a scan can read: formats decided, servers and snapshots started, and all of it ended again. */
import { realpathSync, statSync, openSync, closeSync } from 'node:fs'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { DirtyMapConfig, DiskOrigin } from '../image/open-source.js'
import type { DiskConfig } from '../image/scan-image.js'
import { isWrittenByQemu } from '../native/posix.js'
import { isNbdUri, parseNbdUri } from '../nbd/nbd-uri.js'
import { inUse, readBackingChain } from './backing-chain.js'
import { chooseFormat, type ImageFormat } from './image-format.js'
import { takeLvmSnapshot } from './lvm-snapshot.js'
import { startQemuNbd } from './qemu-nbd.js'

export interface DiskChoice {
  /** What it is called in the snapshot. */
  readonly name: string
  /** An absolute path, or an NBD URI. */
  readonly target: Buffer
  readonly format?: ImageFormat
  readonly chunkBytes?: number
  /** Its device is a logical volume: a snapshot of it is read. */
  readonly lvmSnapshot?: { readonly bytes?: number }
  readonly dirtyMap?: DirtyMapConfig
}
export interface PreparedDisks {
  readonly disks: readonly DiskConfig[]
  /** Aborts when a server that was started for them ends: they cannot be read any more. */
  readonly failed: AbortSignal
  /** Removes and stops what was made, the last first. Problems are noted, not thrown. */
  close(): Promise<void>
}
export interface PrepareOptions { readonly host: string; readonly signal: AbortSignal; note(text: string): void }

interface Made { readonly ended?: AbortSignal; close(): Promise<void> }

/** @throws {ClientError} SOURCE_REFUSED, SOURCE_IN_USE, URL_MALFORMED, PROGRAM_MISSING, PROGRAM_FAILED; errno exceptions; `signal.reason` */
export async function prepareDisks(choices: readonly DiskChoice[], options: PrepareOptions): Promise<PreparedDisks> {
  const made: Made[] = []
  const close = async (): Promise<void> => {
    for (const one of made.splice(0).reverse()) {
      try { await one.close() } catch (error) { options.note(`what was made for the backup could not be removed: ${error instanceof Error ? error.message : 'unknown'}`) }
    }
  }
  try {
    const disks: DiskConfig[] = []
    // All snapshots before anything is read or started: as close to each other in time as LVM allows.
    const paths = new Map<DiskChoice, Buffer>()
    for (const choice of choices) {
      if (choice.lvmSnapshot === undefined) continue
      const snapshot = await takeLvmSnapshot({ ...options, ...choice.lvmSnapshot, path: choice.target.toString() })
      made.push(snapshot)
      paths.set(choice, Buffer.from(snapshot.path))
    }
    for (const choice of choices) {
      const from = await originOf({ ...choice, target: paths.get(choice) ?? choice.target }, options, made)
      disks.push({ name: choice.name, from, ...(choice.chunkBytes === undefined ? {} : { chunkBytes: choice.chunkBytes }) })
    }
    return { disks, failed: AbortSignal.any(made.flatMap(({ ended }) => ended ?? [])), close }
  } catch (error) {
    await close()
    throw error
  }
}

async function originOf({ target, format, dirtyMap }: DiskChoice, { signal, note }: PrepareOptions, made: Made[]): Promise<DiskOrigin> {
  const text = target.toString()
  const map = dirtyMap === undefined ? {} : { dirtyMap }
  if (isNbdUri(text)) return { ...parseNbdUri(text), ...map }
  const isFile = statSync(target).isFile()
  const chosen = isFile ? chooseFormat(target, format) : format ?? 'raw'
  if (chosen === 'raw') {
    requireNotInUse(target)
    if (dirtyMap !== undefined) throw new ClientError('SOURCE_REFUSED', `${text} is raw, and has no dirty map of its own.`)
    return { kind: 'file', path: target }
  }
  const path = realpathSync(target)
  const chain = await readBackingChain({ path, format: chosen }, signal)
  if (chain.length > 1) note(`${text} is read with its backing files: ${chain.slice(1).map((file) => `${file.path} (${file.format})`).join(', ')}`)
  const [, bitmap] = /^qemu:dirty-bitmap:(.+)$/.exec(dirtyMap?.context ?? '') ?? []
  const server = await startQemuNbd({ path, format: chosen, signal, ...(bitmap === undefined ? {} : { bitmap }) })
  made.push(server)
  return { kind: 'nbd', address: { kind: 'unix', path: server.socket }, exportName: '', ...map }
}
function requireNotInUse(path: Buffer): void {
  const fd = openSync(path, 'r')
  try {
    if (isWrittenByQemu(fd)) throw inUse(path.toString(), new Error('Failed to get a lock: a QEMU that may write has it open.'))!
  } finally { closeSync(fd) }
}
