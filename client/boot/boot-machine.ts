/** Starts the machine of a snapshot in QEMU, from disks that nobody restored: read from an NBD server of ours, written to overlays that are thrown away.
 *
 *  Order: sockets and overlays, the NBD server, QEMU; and back again whatever happens. QEMU waits RECONNECT_SECONDS for disks that are away, so
 *  restarts of the repository's server, and of an NBD server of another process, are pauses for the guest.
 */
import type { Clock } from '../../src/core/clock.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { OpenSnapshot } from '../browse/open-snapshot.js'
import { QmpSocket } from '../machine/qmp-socket.js'
import { qemuArguments, type QemuDisk } from '../machine/qemu-arguments.js'
import { chooseDisk, readMachine, type SnapshotDisk, type SnapshotMachine } from '../machine/snapshot-disks.js'
import { ChunkCache } from '../nbd/chunk-cache.js'
import { openLayout } from '../nbd/image-layout.js'
import { ImageReader } from '../nbd/image-reader.js'
import { startNbdServer, type NbdServer } from '../nbd/server.js'
import { QemuProcess } from './qemu-process.js'
import { Scratch } from './scratch.js'

export interface BootOptions {
  /** Only these of the disks, by number or name; none: all. */
  readonly disks: readonly string[]
  readonly memoryBytes?: number
  readonly cpus?: number
  readonly accel: string
  readonly firmware?: string
  readonly network: 'off' | 'isolated' | 'user'
  /** For QEMU's -display. */
  readonly display: string
  /** `terminal`: ours, with QEMU's monitor behind Ctrl-A where it is one; `pipe`: read by the caller; `none`. */
  readonly serial: 'terminal' | 'pipe' | 'none'
  readonly isTerminal: boolean
  /** Of the user, as they are, after ours. */
  readonly extra: readonly string[]
  readonly qemu: string
  readonly scratchDirectory?: string
  /** The disks are served there, by their names, and not by us. */
  readonly nbdSocket?: string
  readonly cacheBytes: number
}
export interface BootEvents {
  warning?(text: string): void
  detail?(text: string): void
  /** A read that could not be answered: the guest sees an I/O error. */
  problem?(disk: string, error: unknown): void
}
/** `node`: what the guest's device is on. */
export interface BootedDisk { readonly name: string; readonly bytes: number; readonly node: string; readonly device: string; readonly behind: readonly string[] }

const RECONNECT_SECONDS = 300
const START_MS_MAX = 60_000
const RETRY_MS = 50

/** @throws {ClientError} QEMU_FAILED, MACHINE_MALFORMED; what the NBD server and the session throw */
export async function bootMachine(open: OpenSnapshot, options: BootOptions, events: BootEvents, clock: Clock, signal: AbortSignal): Promise<BootedMachine> {
  const machine = await readMachine(open, signal)
  if (machine.problem !== undefined) events.warning?.(`${machine.problem.message} The machine is started without it.`)
  const disks = options.disks.length === 0 ? machine.disks : options.disks.map((which) => chooseDisk(machine, which))
  if (disks.length === 0) throw new ClientError('MACHINE_MALFORMED', 'The snapshot holds no disk image at its top.')
  const scratch = new Scratch(options.scratchDirectory)
  const parts: BootParts = { scratch, server: undefined, qemu: undefined, monitor: undefined }
  try {
    if (options.nbdSocket === undefined) parts.server = await serveDisks(open, disks, scratch.socket('nbd'), options.cacheBytes, events, clock, signal)
    const booted = disks.map((disk, i): BootedDisk => ({ name: disk.name, bytes: disk.entry.content!.bytes, node: `disk${i}-overlay`, device: `disk${i}`, behind: [`disk${i}-base`, `disk${i}-nbd`] }))
    const { args, warnings } = argumentsOf(options, machine, disks, booted, scratch)
    for (const warning of warnings) events.warning?.(warning)
    events.detail?.(`${options.qemu} ${args.join(' ')}`)
    parts.qemu = await QemuProcess.start(options.qemu, args, options.serial === 'terminal' ? 'terminal' : 'pipe', clock)
    parts.monitor = await openMonitor(parts.qemu, scratch.socket('qmp'), clock, signal)
    scratch.unlinkOverlays()
    return new BootedMachine(booted, scratch.socket('agent'), { ...parts, qemu: parts.qemu, monitor: parts.monitor })
  } catch (error) {
    await tearDown(parts)
    throw error
  }
}

interface BootParts { readonly scratch: Scratch; server: NbdServer | undefined; qemu: QemuProcess | undefined; monitor: QmpSocket | undefined }
async function tearDown({ scratch, server, qemu, monitor }: BootParts, atOnce = true): Promise<void> {
  monitor?.close()
  await qemu?.end(atOnce)
  await server?.close()
  scratch.remove()
}

export class BootedMachine {
  readonly qemu: QemuProcess
  readonly monitor: QmpSocket
  readonly #parts: BootParts
  /** `agentSocket`: where its guest agent is heard, if there is one. */
  constructor(readonly disks: readonly BootedDisk[], readonly agentSocket: string, parts: BootParts & { readonly qemu: QemuProcess; readonly monitor: QmpSocket }) {
    this.#parts = parts
    this.qemu = parts.qemu
    this.monitor = parts.monitor
  }
  /** The machine needs the snapshot no more. */
  async stopServing(): Promise<void> {
    const { server } = this.#parts
    this.#parts.server = undefined
    await server?.close()
  }
  /** Ends it if it runs. `atOnce`: what it writes back is not wanted, because all of it is thrown away. */
  async close(atOnce: boolean): Promise<void> { await tearDown(this.#parts, atOnce) }
}

async function serveDisks(open: OpenSnapshot, disks: readonly SnapshotDisk[], path: string, cacheBytes: number, events: BootEvents, clock: Clock, signal: AbortSignal): Promise<NbdServer> {
  const cache = new ChunkCache(open.session, cacheBytes, { signal })
  return await startNbdServer({
    exports: disks.map(({ name, entry }) => ({ name, description: open.record.source, image: new ImageReader(openLayout(open.nodes, entry.content!), cache) })),
    address: { kind: 'unix', path }, clock, events: { problem: (name, error) => { events.problem?.(name, error) } },
  })
}
function argumentsOf(options: BootOptions, machine: SnapshotMachine, disks: readonly SnapshotDisk[], booted: readonly BootedDisk[], scratch: Scratch): { args: string[]; warnings: readonly string[] } {
  const nbd = { type: 'unix', path: options.nbdSocket ?? scratch.socket('nbd') }
  const qemuDisks = booted.map(({ name, bytes, node, behind: [base, remote] }, i): QemuDisk => ({
    node, ...(disks[i]!.description === undefined ? {} : { description: disks[i]!.description }),
    nodes: [
      { driver: 'nbd', 'node-name': remote, 'read-only': true, server: nbd, export: name, 'reconnect-delay': RECONNECT_SECONDS },
      { driver: 'raw', 'node-name': base, 'read-only': true, file: remote },
      { driver: 'qcow2', 'node-name': node, discard: 'unmap', 'detect-zeroes': 'unmap', file: { driver: 'file', filename: scratch.overlay(`disk${i}`, bytes) }, backing: base },
    ],
  }))
  const { args, warnings } = qemuArguments({
    description: machine.description, disks: qemuDisks, machineType: 'family', cpuModel: 'default', network: options.network,
    ...(options.memoryBytes === undefined ? {} : { memoryBytes: options.memoryBytes }), ...(options.cpus === undefined ? {} : { cpus: options.cpus }),
    ...(options.firmware === undefined ? {} : { firmware: options.firmware }),
  })
  const channel = (id: string, name: string): string => `socket,id=${id},path=${scratch.socket(name)},server=on,wait=off`
  return { warnings, args: [
    ...args, '-accel', options.accel, '-cpu', 'max', '-vga', 'std', '-display', options.display,
    ...(options.serial === 'none' ? [] : ['-serial', options.serial === 'terminal' && options.isTerminal ? 'mon:stdio' : 'stdio']),
    '-chardev', channel('qmp', 'qmp'), '-mon', 'chardev=qmp,mode=control',
    '-device', 'virtio-serial-pci,id=roost-serial', '-chardev', channel('agent', 'agent'), '-device', 'virtserialport,bus=roost-serial.0,chardev=agent,name=org.qemu.guest_agent.0',
    ...options.extra,
  ] }
}
/** QEMU makes its socket when its disks are open. */
async function openMonitor(qemu: QemuProcess, path: string, clock: Clock, signal: AbortSignal): Promise<QmpSocket> {
  const endMs = clock.monotonicMs() + START_MS_MAX
  let failure: unknown
  while (!qemu.hasEnded && clock.monotonicMs() < endMs) {
    try {
      return await QmpSocket.open(path, clock, signal)
    } catch (error) {
      signal.throwIfAborted()
      failure = error
    }
    await Promise.race([clock.sleep(RETRY_MS, signal), qemu.ended])
  }
  if (qemu.hasEnded) throw new ClientError('QEMU_FAILED', `${qemu.describe(await qemu.ended)}.`)
  throw new ClientError('QEMU_FAILED', `QEMU did not come up within ${START_MS_MAX / 1000} s.`, { cause: failure })
}
