/** A private, read-only qemu-nbd over one image file of any format that QEMU knows; its backing files are read through.
 *
 *  It serves a unix socket in a directory that only its owner can enter, and ends when its last client goes. One client is ours from its start to our end, and says
 *  nothing: so it ends with us, also when we are killed.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock, type Clock } from '../../src/core/clock.js'
import { describeCause, isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { missing } from '../native/program.js'
import { NbdConnection } from '../nbd/client-connection.js'
import { NbdLost } from '../nbd/byte-stream.js'
import { inUse } from './backing-chain.js'
import type { ImageFormat } from './image-format.js'

export interface QemuNbdOptions {
  readonly path: string
  readonly format: ImageFormat
  /** A persistent bitmap of the image, to be told as `qemu:dirty-bitmap:NAME`. */
  readonly bitmap?: string
  readonly signal: AbortSignal
  readonly clock?: Clock
}
export interface QemuNbd {
  readonly socket: string
  /** Aborts when it ends by itself, with what it said. */
  readonly ended: AbortSignal
  close(): Promise<void>
}

const START_TRIES = 200
const START_TRY_MS = 50
const END_MS = 5_000
const HANDSHAKE_MS = 30_000
const ERRORS_MAX = 4_000
/** As many as anyone needs: one to read, one to hold on, one that reconnects. */
const CLIENTS_MAX = 8

/** Resolves when it serves. @throws {ClientError} PROGRAM_MISSING, PROGRAM_FAILED, SOURCE_IN_USE; `signal.reason` */
export async function startQemuNbd({ path, format, bitmap, signal, clock = systemClock }: QemuNbdOptions): Promise<QemuNbd> {
  const directory = mkdtempSync(join(tmpdir(), 'roost-disk-'))
  const socket = join(directory, 'nbd.sock')
  let child: ChildProcess | undefined
  try {
    child = spawn('qemu-nbd', ['--read-only', `--format=${format}`, `--socket=${socket}`, `--shared=${CLIENTS_MAX}`, '--discard=ignore',
      ...(bitmap === undefined ? [] : [`--bitmap=${bitmap}`]), '--', path], { stdio: ['ignore', 'ignore', 'pipe'] })
    const served = child
    const ending = new AbortController()
    const holder = await holdOn(served, socket, path, ending, signal, clock)
    return { socket, ended: ending.signal, close: async () => {
      holder.close(new NbdLost('The image is not needed any more.'))
      await end(served, clock)
      rmSync(directory, { recursive: true, force: true })
    } }
  } catch (error) {
    if (child !== undefined) await end(child, clock)
    rmSync(directory, { recursive: true, force: true })
    throw error
  }
}
/** A connection that stays: without any, it would wait for one for ever. */
async function holdOn(child: ChildProcess, socket: string, path: string, ending: AbortController, signal: AbortSignal, clock: Clock): Promise<NbdConnection> {
  let errors = ''
  child.stderr!.setEncoding('utf8')
  child.stderr!.on('data', (text: string) => { errors = (errors + text).slice(-ERRORS_MAX) })
  const ended = new Promise<never>((_resolve, reject) => {
    child.once('error', (error) => { reject(isErrno(error, 'ENOENT') ? missing('qemu-nbd', 'qemu-utils') : error) })
    child.once('close', (code, by) => {
      const failure = new ClientError('PROGRAM_FAILED', `qemu-nbd ended (${code ?? by}) instead of serving ${path}: ${errors.trim() || 'it gave no reason'}`)
      const error = inUse(path, failure) ?? failure
      ending.abort(error)
      reject(error)
    })
  })
  ended.catch(() => undefined) // once it serves, `ending` says so
  const connecting = async (): Promise<NbdConnection> => {
    const target = { address: { kind: 'unix', path: socket }, exportName: '', contexts: [] } as const
    for (let attempt = 1; ; attempt++) {
      try {
        return await NbdConnection.open(target, HANDSHAKE_MS, clock, signal)
      } catch (error) {
        signal.throwIfAborted()
        if (attempt >= START_TRIES || child.exitCode !== null || child.signalCode !== null)
          throw new ClientError('PROGRAM_FAILED', `qemu-nbd does not serve ${path}: ${describeCause(error)}`, { cause: error })
        await clock.sleep(START_TRY_MS, signal)
      }
    }
  }
  const connected = connecting()
  connected.catch(() => undefined) // when it ended first, that is what is told
  return await Promise.race([ended, connected])
}
async function end(child: ChildProcess, clock: Clock): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise<void>((resolve) => { child.once('exit', () => { resolve() }) })
  child.kill('SIGTERM')
  const over = new AbortController()
  const late = clock.sleep(END_MS, over.signal).then(() => { child.kill('SIGKILL') }, () => undefined) // it ended in time
  await gone
  over.abort(new DOMException('It ended.', 'AbortError'))
  await late
}
