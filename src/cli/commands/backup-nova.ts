/** roost backup --nova-server: the machine's record in Nova goes into the snapshot, and Nova shows that the backup runs. */
import type { Command } from 'commander'
import { MACHINE_FILE, type MachineDescription, type NovaDescription } from '../../../client/machine/machine-description.js'
import type { NovaRun } from '../../../client/openstack/nova-run.js'
import type { SourceConfig } from '../../../client/scan-source.js'
import { dateOf } from '../../core/clock.js'
import { choiceOption } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { printable } from '../format.js'
import { withCloud } from '../open-cloud.js'

export interface NovaFlags {
  readonly novaServer?: string; readonly novaMark?: string; readonly novaTakeOver?: boolean; readonly requireNova?: boolean; readonly osCloud?: string
}
const MARKS = ['lock', 'metadata', 'none'] as const
/** Nova says so of servers whose disks nobody writes to. */
const RESTING = ['SHUTOFF', 'SHELVED', 'SHELVED_OFFLOADED']

export function addNovaOptions(command: Command): Command {
  return command
    .option('--nova-server <id>', 'the server in Nova whose disks these are: its record goes into the snapshot (OS_* variables or clouds.yaml say where)')
    .addOption(choiceOption('--nova-mark <how>', 'how the backup is to be seen in Nova (default lock; metadata where it may not)', MARKS))
    .option('--nova-take-over', 'the mark of another machine\'s backup is left over: that one does not run any more')
    .option('--require-nova', 'no backup while Nova cannot be asked (default: a warning)')
    .option('--os-cloud <name>', 'which cloud of clouds.yaml (OS_CLOUD)')
}

/** Around a backup: `work` gets what Nova says, or undefined where there is no server to ask for or no answer. */
export async function withNova<T>(context: CommandContext, flags: NovaFlags & { readonly image?: readonly string[]; readonly vm?: string },
  work: (nova: NovaDescription | undefined) => Promise<T>): Promise<T> {
  const { novaServer, novaMark, novaTakeOver, requireNova, osCloud } = flags
  if (novaServer === undefined) {
    const odd = Object.entries({ '--nova-mark': novaMark, '--nova-take-over': novaTakeOver, '--require-nova': requireNova, '--os-cloud': osCloud }).find(([, value]) => value !== undefined)
    if (odd !== undefined) throw new UsageError(`${odd[0]} belongs to --nova-server.`)
    return await work(undefined)
  }
  if (flags.image === undefined && flags.vm === undefined) throw new UsageError('--nova-server goes with the disks of a machine: --vm or --image.')
  if (!/^[\w.-]{1,255}$/.test(novaServer)) throw new UsageError('--nova-server takes the id of a server, as `openstack server list` shows it.')
  const { output, clock, random, signal } = context
  return await withCloud(context, osCloud, async (cloud) => {
    const { beginNova } = await import('../../../client/openstack/nova-run.js')
    const run = await beginNova(cloud, {
      serverId: novaServer, mark: MARKS.find((mark) => mark === novaMark) ?? 'lock', takesOver: novaTakeOver === true, isRequired: requireNova === true, clock, random,
      warn: (message) => {
        output.record({ type: 'warning', message })
        output.warn(`warning: ${printable(message)}`)
      },
    }, signal)
    try {
      tell(context, novaServer, run)
      return await work(run.description)
    } finally { await run.end() }
  })
}
function tell({ output }: CommandContext, serverId: string, { description, mark }: NovaRun): void {
  output.record({ type: 'nova', serverId, described: description !== undefined, mark, warnings: description?.warnings ?? [] })
  if (description === undefined) return
  const name = printable(`${description.server['name'] as string}`)
  output.note(`Nova's server ${name}: ${{ lock: 'locked while the backup runs', metadata: 'marked in its metadata while the backup runs', none: 'not marked' }[mark]}`)
  for (const warning of description.warnings) output.detail(`not in the record: ${printable(warning)}`)
}

/** An image's snapshot gets the record beside the disk. */
export function withMachineFile(config: SourceConfig, nova: NovaDescription | undefined, nowMs: number): SourceConfig {
  if (nova === undefined || config.mode !== 'image') return config
  const name = nova.server['name']
  const description: MachineDescription = {
    format: 1, name: typeof name === 'string' ? name : nova.serverId, uuid: nova.serverId, capturedAt: dateOf(nowMs).toISOString(),
    consistency: RESTING.some((status) => status === nova.server['status']) ? 'stopped' : 'crash', nova,
  }
  return { ...config, files: [...config.files ?? [], { name: MACHINE_FILE, bytes: Buffer.from(`${JSON.stringify(description, null, 2)}\n`) }] }
}
