/** roost machine: what a snapshot says of its machine, as JSON, as a command that starts QEMU, as XML of libvirt, or as a request to Nova. */
import { readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { openSnapshot } from '../../../client/browse/open-snapshot.js'
import type { DomainDisk } from '../../../client/machine/libvirt-domain.js'
import type { SnapshotMachine } from '../../../client/machine/snapshot-disks.js'
import { ClientError } from '../../protocol/client-errors.js'
import { choiceOption, does, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { printable } from '../format.js'
import { snapshotChoice } from './restore.js'

interface MachineFlags { readonly as: string; readonly disks?: string; readonly format: string; readonly firmware?: string; readonly source?: string }
const FORMS = ['json', 'qemu', 'libvirt', 'nova'] as const

export function registerMachine(registry: Registry): void {
  does<MachineFlags>(registry, withExamples(registry.program.command('machine')
    .argument('<snapshot>', 'an id, the start of one (6 digits or more), or "latest"')
    .description('print what a snapshot says of its machine')
    .addOption(choiceOption('--as <form>', 'JSON, a line for sh that starts QEMU, XML for virsh define, or the body of POST /servers', FORMS, 'json'))
    .option('--disks <dir>', 'where its disks are, as `roost restore --target DIR` puts them (default: this directory)')
    .addOption(choiceOption('--format <format>', 'of the disks there', ['raw', 'qcow2'], 'qcow2'))
    .option('--firmware <file>', 'for --as qemu: of UEFI machines, such as /usr/share/ovmf/OVMF.fd')
    .option('--source <name>', 'with "latest": of this source'),
  ['roost machine latest --source web1', 'roost machine latest --as qemu --disks /srv/web1', 'roost machine latest --as libvirt --disks /srv/web1 | virsh define /dev/stdin']),
  async (context, flags, [which]) => {
    const choice = snapshotChoice(context, which!, flags.source)
    const { client } = context.repository()
    const { readMachine } = await import('../../../client/machine/snapshot-disks.js') // here, not above: few commands need it
    const open = await openSnapshot(client, choice, { signal: context.signal })
    try {
      const machine = await readMachine(open, context.signal)
      if (machine.problem !== undefined) throw machine.problem
      if (flags.as === 'json') tellJson(context, machine, open.snapshotId)
      else if (flags.as === 'nova') await tellNova(context, machine)
      else await (flags.as === 'qemu' ? tellQemu : tellLibvirt)(context, machine, flags)
    } finally { await open.close() }
  })
}

function tellJson({ output }: CommandContext, { description, disks }: SnapshotMachine, snapshotId: string): void {
  if (description === undefined)
    throw new ClientError('MACHINE_MALFORMED', 'The snapshot has no machine.json: it is of disks or files alone. --as qemu and --as libvirt guess what is not known.')
  output.record({ type: 'machine', snapshotId, disks: disks.map(({ name, entry }) => ({ name, bytes: entry.content!.bytes })), machine: description })
  output.line(JSON.stringify(description, undefined, 2).replace(/[\u007f-\u009f]/g, (character) => `\\u00${character.charCodeAt(0).toString(16)}`))
}
async function tellNova({ output }: CommandContext, { description }: SnapshotMachine): Promise<void> {
  if (description?.nova === undefined) throw new ClientError('MACHINE_MALFORMED', 'The snapshot has no record of Nova: it was made without --nova-server, or Nova was away.')
  const { recordedServerBody } = await import('../../../client/openstack/server-plan.js')
  const body = recordedServerBody(description.nova)
  output.record({ type: 'server-request', body })
  output.line(JSON.stringify(body, undefined, 2))
  output.note('Names and ids are as recorded: put in those of the cloud. `roost restore --to-nova --dry-run` looks them up.')
}
async function tellQemu({ output }: CommandContext, machine: SnapshotMachine, flags: MachineFlags): Promise<void> {
  const { qemuArguments, shellQuote } = await import('../../../client/machine/qemu-arguments.js')
  const files = await diskFiles(machine, flags)
  const { args, warnings } = qemuArguments({
    description: machine.description, machineType: 'recorded', cpuModel: 'recorded', network: 'isolated', ...(flags.firmware === undefined ? {} : { firmware: flags.firmware }),
    disks: machine.disks.map(({ description }, i) => ({
      node: `disk${i}-image`, nodes: [{ driver: flags.format, 'node-name': `disk${i}-image`, discard: 'unmap', file: { driver: 'file', filename: files[i]! } }],
      ...(description === undefined ? {} : { description }),
    })),
  })
  const command = ['qemu-system-x86_64', ...args, '-serial', 'stdio', '-display', 'none']
  output.record({ type: 'command', arguments: command, warnings })
  output.line(command.map(shellQuote).reduce((line, word) => word.startsWith('-') ? `${line} \\\n  ${word}` : `${line} ${word}`))
  for (const warning of warnings) output.warn(printable(warning))
}
async function tellLibvirt({ output }: CommandContext, machine: SnapshotMachine, flags: MachineFlags): Promise<void> {
  const { libvirtDomain } = await import('../../../client/machine/libvirt-domain.js')
  const files = await diskFiles(machine, flags)
  const disks = machine.disks.map(({ name, description }, i): DomainDisk => ({
    name, file: files[i]!, format: flags.format === 'raw' ? 'raw' : 'qcow2', ...(description?.file === undefined ? {} : { origin: description.file }),
    ...(description === undefined ? {} : { device: description.device }), ...(description?.bootIndex === undefined ? {} : { bootIndex: description.bootIndex }),
  }))
  const { text, warnings } = libvirtDomain(machine.description, disks)
  output.record({ type: 'domain', xml: text, warnings })
  output.line(text.trimEnd())
  for (const warning of warnings) output.warn(printable(warning))
}
/** Absolute paths, of the names that a restore gives. */
async function diskFiles({ disks }: SnapshotMachine, { disks: directory, format }: MachineFlags): Promise<string[]> {
  const { qcow2Names } = await import('../../../client/restore/restore-machine.js')
  const names = format === 'qcow2' ? qcow2Names(disks) : disks.map(({ name }) => name)
  const odd = names.find((name) => /[\u0000-\u001f\u007f-\u009f]/.test(name))
  if (odd !== undefined) throw new UsageError(`The disk "${printable(odd)}" has control characters in its name: restore it by itself under another, and write the command by hand.`)
  const at = directory === undefined ? readlinkSync('/proc/self/cwd') : directory.startsWith('/') ? directory : join(readlinkSync('/proc/self/cwd'), directory)
  return names.map((name) => join(at, name))
}
