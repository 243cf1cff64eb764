/** roost backup --vm: what is said of a running machine, and how its backup is told. */
import type { Command } from 'commander'
import { realpathSync, statSync } from 'node:fs'
import { hostname } from 'node:os'
import type { MonitorAddress } from '../../../client/machine/monitor.js'
import type { MachineBackupEvents, MachineBackupOptions, MachineBackupReport } from '../../../client/machine/run-machine-backup.js'
import type { RepositoryClient } from '../../../client/repository-client.js'
import { isErrno } from '../../core/errors.js'
import { LIMITS } from '../../core/limits.js'
import { collect, countOption, sizeOption } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { formatBytes, printable } from '../format.js'

export interface VmFlags {
  readonly vm?: string; readonly libvirt?: string
  /** False: --no-agent. */
  readonly agent?: string | boolean
  readonly disk?: readonly string[]; readonly excludeDisk?: readonly string[]
  readonly fleeceDir?: string; readonly fleeceSize?: number; readonly freezeTimeout?: number; readonly audit?: number
}
const FREEZE_SECONDS_DEFAULT = 10
const FREEZE_SECONDS_MAX = 600
/** On a file system that is a disk, not memory. */
const FLEECE_DIRECTORY_DEFAULT = '/var/tmp'
const AUDIT_SHARE_DEFAULT = 0.001

export function addVmOptions(command: Command): Command {
  return command
    .option('--vm <qmp socket|domain>', 'a running machine: QEMU\'s QMP socket (a path with a slash), or a libvirt domain')
    .option('--libvirt <uri>', 'the libvirt that has the domain (default: virsh\'s own)')
    .option('--agent <socket>', 'the guest agent\'s socket (default: as QEMU tells)').option('--no-agent', 'do not freeze the guest')
    .option('--freeze-timeout <seconds>', 'how long the guest may take to come to rest (default 10)', countOption)
    .option('--disk <name>', 'only this disk of the machine; may be repeated', collect)
    .option('--exclude-disk <name>', 'not this disk of the machine; may be repeated', collect)
    .option('--fleece-dir <dir>', 'where old content goes while it is read; QEMU must be able to write there (default /var/tmp)')
    .option('--fleece-size <size>', 'how much of it there may be (default: half of what is free there)', sizeOption)
    .option('--audit <percent>', 'of what a dirty bitmap calls unchanged, read and compare so much (default 0.1)', percentOption)
}
function percentOption(text: string): number {
  const percent = Number(text.replace(/%$/, ''))
  if (!/^\d{1,3}(?:\.\d{1,6})?%?$/.test(text) || percent > 100) throw new UsageError('--audit is a percentage from 0 to 100.')
  return percent / 100
}

/** @throws {UsageError} */
export function machineFlags(flags: VmFlags): Omit<MachineBackupOptions, 'source' | 'parent' | 'backup' | 'random'> {
  const freezeSeconds = flags.freezeTimeout ?? FREEZE_SECONDS_DEFAULT
  if (freezeSeconds < 1 || freezeSeconds > FREEZE_SECONDS_MAX) throw new UsageError(`--freeze-timeout is from 1 to ${FREEZE_SECONDS_MAX} seconds.`)
  const fleece = flags.fleeceDir ?? FLEECE_DIRECTORY_DEFAULT
  return {
    monitor: monitorAddress(flags), freezeMsMax: freezeSeconds * 1000, auditShare: flags.audit ?? AUDIT_SHARE_DEFAULT,
    agent: flags.agent === false ? 'none' : typeof flags.agent === 'string' ? { kind: 'socket', path: realPath(flags.agent, '--agent') } : 'find',
    disks: { include: flags.disk ?? [], exclude: flags.excludeDisk ?? [] },
    fleece: { directory: realPath(fleece, '--fleece-dir'), ...(flags.fleeceSize === undefined ? {} : { bytesMax: flags.fleeceSize }) },
  }
}
function monitorAddress({ vm, libvirt }: VmFlags): MonitorAddress {
  const name = vm!
  if (name.includes('/')) {
    if (libvirt !== undefined) throw new UsageError('--libvirt goes with the name of a domain, not with a QMP socket.')
    const path = realPath(name, '--vm') // one machine, one name: the lock is on it
    if (!statSync(path).isSocket()) throw new UsageError(`${name} is no socket: --vm takes the path of QEMU's QMP socket, or the name of a libvirt domain.`)
    return { kind: 'socket', path }
  }
  if (name === '' || /[\0-\x1f]/.test(name)) throw new UsageError('--vm takes the path of QEMU\'s QMP socket, or the name of a libvirt domain.')
  return { kind: 'libvirt', domain: name, ...(libvirt === undefined ? {} : { uri: libvirt }) }
}
function realPath(path: string, option: string): string {
  try {
    return realpathSync(path)
  } catch (error) {
    if (!isErrno(error)) throw error
    throw new UsageError(`${option}: ${path} cannot be reached: ${error.message}`, { cause: error })
  }
}

/** `HOST:vm:NAME`; where QEMU knows no name, by the UUID or the socket. */
export function machineSource(flags: VmFlags): MachineBackupOptions['source'] {
  return ({ name, uuid }) => {
    const what = flags.vm!.includes('/') ? name ?? uuid ?? flags.vm! : flags.vm!
    return printable(`${hostname()}:vm:${what}`).slice(0, Math.floor(LIMITS.nameBytesMax / 4))
  }
}

export async function backUpVm(context: CommandContext, client: RepositoryClient, options: MachineBackupOptions, events: MachineBackupEvents,
  pointTaken: () => Promise<void>): Promise<MachineBackupReport> {
  const { output, signal } = context
  const { runMachineBackup } = await import('../../../client/machine/run-machine-backup.js') // here, not above: no other command needs it
  return await runMachineBackup(client, options, {
    ...events,
    onDetail: (text) => { output.detail(printable(text)) },
    onMoment: ({ consistency, because, freezeMs, frozenMs, stoppedMs, disks }) => {
      pointTaken().catch(() => undefined) // beside the reading; whoever asks for it again at the end is told
      output.record({ type: 'moment', consistency, because: because ?? null, freezeMs, frozenMs, stoppedMs, disks: disks.map(({ disk, plan }) => ({ name: disk.name, device: disk.device,
        bytes: disk.bytes, read: plan.kind, because: plan.kind === 'full' ? plan.reason : null })) })
      output.note({
        agent: `file systems were frozen for ${frozenMs} ms (the guest took ${freezeMs} ms to come to rest); processors stood ${stoppedMs} ms`,
        crash: `consistent as after a power cut: ${printable(because ?? '')}; processors stood ${stoppedMs} ms`, stopped: 'the machine does not run: its disks are as they are',
      }[consistency])
      for (const { disk, plan } of disks) output.note(`${printable(disk.name)} (${formatBytes(disk.bytes)}): ` +
        (plan.kind === 'incremental' ? 'what changed since the last snapshot' : `read in full: ${printable(plan.reason)}`))
    },
  }, signal)
}
