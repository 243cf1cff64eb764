/** roost key …: the ways to open a repository. Secrets are read from files and written to new files only. */
import { writeFileSync } from 'node:fs'
import type { AddKeySlotRequest, KeySlotInfo } from '../../core/messages.js'
import { createRecoveryKey } from '../../repo/recovery-key.js'
import { does, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { UsageError } from '../exit-codes.js'
import { formatTable, formatTime } from '../format.js'
import { readSecretFile } from '../settings.js'

interface AddFlags { readonly label?: string; readonly passphraseFile?: string; readonly publicKey?: string }

export function registerKey(registry: Registry): void {
  const key = registry.program.command('key').description('the key slots of a repository: who and what can open it')

  does(registry, key.command('list').description('list the key slots'), async (context) => {
    const slots = await context.repository().client.listKeySlots({ signal: context.signal })
    for (const slot of slots) context.output.record({ type: 'key-slot', ...slot })
    context.output.line(formatTable(['ID', 'KIND', 'CREATED', 'LABEL'],
      slots.map((slot) => [slot.slotId, slot.kind, formatTime(slot.createdAtMs), slot.label])))
  })

  does<AddFlags>(registry, withExamples(key.command('add').argument('<kind>', 'passphrase or recovery')
    .description('add a passphrase, or the public half of a recovery key')
    .option('--label <text>', 'what it is, who has it')
    .option('--passphrase-file <file>', 'a file with the passphrase')
    .option('--public-key <key>', 'the recovery public key (`roost key generate-recovery` makes one)'),
  ['roost key add passphrase --label safe --passphrase-file /root/main.pass',
    'roost key add recovery --label vault --public-key roost-recovery-public-…']),
  async (context, flags, [kind]) => {
    const slot = await context.repository().client.addKeySlot(addRequest(kind!, flags), { signal: context.signal })
    showSlot(context, slot, 'added')
  })

  does(registry, key.command('remove').argument('<id>').description('remove a key slot; never the last'), async (context, _flags, [id]) => {
    await context.repository().client.removeKeySlot(id!, { signal: context.signal })
    context.output.record({ type: 'key-slot-removed', slotId: id! })
    context.output.note(`Key slot ${id!} is removed. Copies of the target from before can still be opened with it.`)
  })

  does(registry, key.command('rotate').description("replace the server's keyfile and its slot"), async (context) =>
    showSlot(context, await context.repository().client.rotateKeyfile({ signal: context.signal }), 'is new'))

  does<{ readonly output: string }>(registry, withExamples(key.command('generate-recovery')
    .description('make a recovery key pair: the secret half into a new file, the public half printed; contacts no server')
    .requiredOption('--output <file>', 'new file for the secret key (keep it offline)'),
  ['roost key generate-recovery --output /media/usb/main-recovery.key']), async (context, flags) => {
    const { publicKey, secretKey } = createRecoveryKey()
    writeFileSync(flags.output, `${secretKey}\n`, { mode: 0o600, flag: 'wx' })
    context.output.record({ type: 'recovery-key', publicKey, file: flags.output })
    context.output.line(publicKey)
    context.output.note(`The secret half is in ${flags.output}: keep it offline. ` +
      `Now: roost key add recovery --label LABEL --public-key ${publicKey}`)
  })
}

function addRequest(kind: string, flags: AddFlags): AddKeySlotRequest {
  const label = flags.label ?? kind
  if (kind === 'passphrase') {
    if (flags.passphraseFile === undefined) throw new UsageError('Name the file that holds the passphrase: --passphrase-file FILE.')
    return { kind, label, passphrase: readSecretFile(flags.passphraseFile, 'passphrase file') }
  }
  if (kind === 'recovery') {
    if (flags.publicKey === undefined) throw new UsageError('Give --public-key (`roost key generate-recovery` prints it).')
    return { kind, label, publicKey: flags.publicKey }
  }
  throw new UsageError(`"${kind}" is not a kind of key slot that can be added: passphrase or recovery.`)
}
function showSlot(context: CommandContext, slot: KeySlotInfo, what: string): void {
  context.output.record({ type: 'key-slot', ...slot })
  context.output.line(`${slot.slotId}  ${slot.kind}  ${slot.label}`)
  context.output.note(`The key slot ${what}.`)
}
