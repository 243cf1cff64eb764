/** roost boot: the machine of a snapshot runs in QEMU at once, and moves home if asked to. roost boot-test: whether it starts. */
import type { Command } from 'commander'
import { existsSync } from 'node:fs'
import { openSnapshot, type OpenSnapshot } from '../../../client/browse/open-snapshot.js'
import type { BootedMachine, BootEvents, BootOptions } from '../../../client/boot/boot-machine.js'
import type { BootCriterion } from '../../../client/boot/boot-test.js'
import { MiB } from '../../core/limits.js'
import { choiceOption, collect, countOption, does, sizeOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { tellError } from '../error-hints.js'
import { EXIT, UsageError, type ExitCode } from '../exit-codes.js'
import { formatBytes, formatDuration, printable } from '../format.js'
import { shortId } from '../snapshot-lookup.js'
import { snapshotChoice } from './restore.js'

interface BootFlags {
  readonly disk?: readonly string[]; readonly memory?: number; readonly cpus?: number; readonly accel: string; readonly firmware?: string; readonly network: string
  readonly scratch?: string; readonly qemu: string; readonly nbd?: string; readonly cache?: number; readonly source?: string
}
interface BootOnlyFlags extends BootFlags { readonly display: string; readonly serial?: string; readonly moveHome?: string; readonly moveFormat: string }
interface BootTestFlags extends BootFlags { readonly waitAgent?: boolean; readonly waitSerial?: string; readonly waitTime?: number; readonly timeout: number }

const NETWORKS = ['off', 'isolated', 'user'] as const
const CACHE_BYTES_DEFAULT = 128 * MiB
const CACHE_BYTES_MIN = 16 * MiB
const MEMORY_BYTES_MIN = 16 * MiB
const TIMEOUT_SECONDS_DEFAULT = 300
const TIMEOUT_SECONDS_MAX = 86_400
const WHICH = 'an id, the start of one (6 digits or more), or "latest"'

export function registerBoot(registry: Registry): void {
  does<BootOnlyFlags>(registry, withExamples(addBootOptions(registry.program.command('boot').argument('<snapshot>', WHICH)
    .argument('[qemu...]', 'after --: more arguments for QEMU')
    .description('run the machine of a snapshot in QEMU, at once: its disks are read from the snapshot, what it writes is thrown away'))
    .option('--display <type>', "QEMU's -display: none, gtk, vnc=127.0.0.1:1, …", 'none')
    .addOption(choiceOption('--serial <where>', 'the serial console (default stdio; with --json none)', ['stdio', 'none']))
    .option('--move-home <path>', 'meanwhile move its disks into this file, or a directory for several; from then on it needs the snapshot no more')
    .addOption(choiceOption('--move-format <format>', 'of the disks at home', ['qcow2', 'raw'], 'qcow2')),
  ['roost boot latest --source web1', 'roost boot latest --source web1 --memory 4G --cpus 2 --accel kvm --display gtk',
    'roost boot latest --source web1 --move-home /srv/web1.qcow2', 'roost boot latest -- -rtc base=localtime']), boot)

  does<BootTestFlags>(registry, withExamples(addBootOptions(registry.program.command('boot-test').argument('<snapshot>', WHICH)
    .argument('[qemu...]', 'after --: more arguments for QEMU')
    .description('start the machine of a snapshot without screen and network, and say whether it comes up; ends with 0 if it does, with 1 if not'))
    .option('--wait-agent', 'it is up when its guest agent answers')
    .option('--wait-serial <text>', 'it is up when its serial console shows this text; /…/ is a regular expression')
    .option('--wait-time <seconds>', 'it is up when it still runs after so long', countOption)
    .option('--timeout <seconds>', 'how long it may take', countOption, TIMEOUT_SECONDS_DEFAULT),
  ['roost boot-test latest --source web1 --wait-agent', "roost boot-test latest --source web1 --wait-serial 'login:' --timeout 600 --json"]), bootTest)
}

function addBootOptions(command: Command): Command {
  return command
    .option('--disk <disk>', 'only this disk: its number, or its name; may be repeated, in order', collect)
    .option('--memory <size>', 'of the machine (default: as it had, else 1G)', sizeOption).option('--cpus <number>', 'processors (default: as it had, else 1)', countOption)
    .option('--accel <name>', "QEMU's -accel: tcg works everywhere and is slow; kvm where the host has it", 'tcg')
    .option('--firmware <file>', 'of UEFI machines, such as /usr/share/ovmf/OVMF.fd')
    .addOption(choiceOption('--network <how>', 'off: no card. isolated: cards that lead nowhere. user: out through this host', NETWORKS, 'off'))
    .option('--scratch <dir>', 'for what it writes (default: TMPDIR)').option('--qemu <program>', 'which QEMU', 'qemu-system-x86_64')
    .option('--nbd <socket>', 'its disks are served there by `roost nbd SNAPSHOT --socket SOCKET`')
    .option('--cache <size>', 'memory for chunks that were read lately (default 128M)', sizeOption)
    .option('--source <name>', 'with "latest": of this source')
}
function bootOptions(flags: BootFlags, extra: readonly string[]): Omit<BootOptions, 'serial' | 'isTerminal' | 'display'> {
  const { memory, cpus, cache, firmware, scratch, nbd } = flags
  if (memory !== undefined && memory < MEMORY_BYTES_MIN) throw new UsageError(`--memory is at least ${formatBytes(MEMORY_BYTES_MIN)}.`)
  if (cpus !== undefined && (cpus < 1 || cpus > 512)) throw new UsageError('--cpus is a number from 1 to 512.')
  if (cache !== undefined && cache < CACHE_BYTES_MIN) throw new UsageError(`--cache is at least ${formatBytes(CACHE_BYTES_MIN)}.`)
  for (const [option, path] of [['--firmware', firmware], ['--scratch', scratch], ['--nbd', nbd]] as const)
    if (path !== undefined && !existsSync(path)) throw new UsageError(`${option}: ${path} is not there.`)
  return {
    disks: flags.disk ?? [], accel: flags.accel, network: NETWORKS.find((one) => one === flags.network)!, qemu: flags.qemu, extra, cacheBytes: cache ?? CACHE_BYTES_DEFAULT,
    ...(memory === undefined ? {} : { memoryBytes: memory }), ...(cpus === undefined ? {} : { cpus }), ...(firmware === undefined ? {} : { firmware }),
    ...(scratch === undefined ? {} : { scratchDirectory: scratch }), ...(nbd === undefined ? {} : { nbdSocket: nbd }),
  }
}

async function boot(context: CommandContext, flags: BootOnlyFlags, [which, ...extra]: readonly string[]): Promise<ExitCode> {
  const { output, signal, clock } = context
  if (output.json && flags.serial === 'stdio') throw new UsageError('With --json standard output is for records: leave --serial out.')
  const options: BootOptions = { ...bootOptions(flags, extra), display: flags.display, serial: output.json || flags.serial === 'none' ? 'none' : 'terminal', isTerminal: process.stdin.isTTY }
  const open = await openSnapshot(context.repository({ isLong: true }).client, snapshotChoice(context, which!, flags.source), { signal })
  let isHome = false
  let machine: BootedMachine | undefined
  try {
    const { bootMachine } = await import('../../../client/boot/boot-machine.js') // here, not above: no other command needs it
    const { moveHome, planHome } = await import('../../../client/boot/move-home.js')
    const running = machine = await bootMachine(open, options, bootEvents(context), clock, signal)
    const { qemu, disks } = running
    const files = flags.moveHome === undefined ? [] : planHome(disks, flags.moveHome, flags.moveFormat === 'raw' ? 'raw' : 'qcow2')
    output.record({ type: 'booted', snapshotId: open.snapshotId, disks: disks.map(({ name, bytes }) => ({ name, bytes })), pid: qemu.child.pid })
    output.note(`${shortId(open.snapshotId)} runs (${disks.map(({ name, bytes }) => `${printable(name)}, ${formatBytes(bytes)}`).join('; ')}). ` +
      `${files.length > 0 ? '' : 'What it writes is thrown away at the end. '}${options.serial === 'terminal' && options.isTerminal ? 'Ctrl-A X ends it.' : 'Ctrl-C ends it.'}`)
    const startedMs = clock.monotonicMs()
    let failure: unknown
    if (files.length > 0) {
      try {
        await moveHome(running.monitor, files, { progress: (done, total) => { output.progress({ done, total, unit: 'bytes', at: 'moving home', extra: '' }) } }, clock, signal)
        isHome = true
      } catch (error) {
        if (signal.aborted || qemu.hasEnded) throw error
        failure = error
      }
      output.endProgress()
    }
    if (failure !== undefined) {
      const { code, message } = tellError(failure)
      output.record({ type: 'problem', code, message })
      output.warn(`${printable(message)} [${code}]\n  The machine runs on from the snapshot, and nothing of it is at home.`)
    }
    if (isHome) {
      await running.stopServing()
      await open.close()
      output.record({ type: 'moved', files: files.map(({ disk, path, format }) => ({ disk: disk.name, path, format })), durationMs: clock.monotonicMs() - startedMs })
      output.note(`It is home after ${formatDuration(clock.monotonicMs() - startedMs)}, and needs the snapshot no more: ${files.map(({ path }) => printable(path)).join(', ')}`)
    }
    await ended(qemu.ended, signal)
    const ok = failure === undefined ? EXIT.done : EXIT.doneWithProblems
    if (!qemu.hasEnded) return ok
    const end = await qemu.ended
    if (end.code === 0) return ok
    output.warn(printable(qemu.describe(end)))
    return EXIT.failed
  } finally {
    await machine?.close(!isHome)
    if (!isHome) await open.close()
  }
}
async function bootTest(context: CommandContext, flags: BootTestFlags, [which, ...extra]: readonly string[]): Promise<ExitCode> {
  const { output, signal, clock, random } = context
  const criterion = criterionOf(flags)
  if (flags.timeout < 1 || flags.timeout > TIMEOUT_SECONDS_MAX) throw new UsageError(`--timeout is a number of seconds from 1 to ${TIMEOUT_SECONDS_MAX}.`)
  const options = { ...bootOptions(flags, extra), criterion, timeoutMs: flags.timeout * 1000 }
  const open: OpenSnapshot = await openSnapshot(context.repository({ isLong: true }).client, snapshotChoice(context, which!, flags.source), { signal })
  try {
    const { runBootTest } = await import('../../../client/boot/boot-test.js') // here, not above: no other command needs it
    const report = await runBootTest(open, options, bootEvents(context), { clock, random }, signal)
    output.record({ type: 'boot-test', snapshotId: open.snapshotId, source: open.record.source, criterion: criterion.kind, ...report })
    const isUp = report.result === 'ok'
    if (isUp) output.line(`snapshot ${shortId(open.snapshotId)} of ${printable(open.record.source)} came up in ${formatDuration(report.seconds * 1000)}`)
    else output.line(`snapshot ${shortId(open.snapshotId)} of ${printable(open.record.source)} did NOT come up: ${printable(report.reason ?? '')}`)
    for (const line of report.serial) if (isUp) output.detail(`  | ${printable(line)}`); else output.note(`  | ${printable(line)}`)
    return isUp ? EXIT.done : EXIT.failed
  } finally { await open.close() }
}

function criterionOf({ waitAgent, waitSerial, waitTime, timeout }: BootTestFlags): BootCriterion {
  if ([waitAgent === true, waitSerial !== undefined, waitTime !== undefined].filter(Boolean).length !== 1)
    throw new UsageError('Say when it is up: --wait-agent, --wait-serial TEXT or --wait-time SECONDS (one of them).')
  if (waitAgent === true) return { kind: 'agent' }
  if (waitTime !== undefined) {
    if (waitTime < 1 || waitTime >= timeout) throw new UsageError('--wait-time is at least 1 and less than --timeout.')
    return { kind: 'running', forMs: waitTime * 1000 }
  }
  const text = waitSerial!
  if (text === '') throw new UsageError('--wait-serial needs a text.')
  const source = /^\/(.+)\/$/.exec(text)?.[1]
  if (source === undefined) return { kind: 'serial', test: (line) => line.includes(text) }
  let pattern: RegExp
  try {
    pattern = new RegExp(source, 'u')
  } catch (error) {
    throw new UsageError(`"${text}" is not a regular expression.`, { cause: error })
  }
  return { kind: 'serial', test: (line) => pattern.test(line) }
}
function bootEvents({ output, signal }: CommandContext): BootEvents {
  const told = new Set<string>()
  return {
    warning: (text) => { output.record({ type: 'warning', message: text }); output.warn(printable(text)) },
    detail: (text) => { output.detail(printable(text)) },
    problem: (disk, error) => {
      if (signal.aborted) return
      const { code, message, hint } = tellError(error)
      output.record({ type: 'problem', disk, code, message })
      // The guest asks again and again for what it cannot have: said once.
      if (told.size < 1_000 && !told.has(message)) output.warn(`${printable(disk)}: ${printable(message)} [${code}]${hint === undefined ? '' : `\n  ${hint}`}`)
      told.add(message)
    },
  }
}
async function ended(work: Promise<unknown>, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  await Promise.race([work, new Promise<void>((resolve) => { signal.addEventListener('abort', () => { resolve() }, { once: true }) })])
}
