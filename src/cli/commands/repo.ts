/** roost repo …: the repositories of a server. */
import type { ChangeRepositoryRequest, Durability, RepositoryInfo } from '../../core/messages.js'
import type { ReplicaRequest } from '../../core/peer-messages.js'
import type { ServerClient } from '../../../client/repository-client.js'
import { choiceOption, does, sizeOption, spanOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { formatBytes, formatDays, formatTable, formatTime } from '../format.js'
import { UsageError } from '../exit-codes.js'
import { readSecretFile } from '../settings.js'

interface CreateFlags {
  readonly target?: string; readonly durability?: Durability; readonly minChunk?: number; readonly averageChunk?: number; readonly maxChunk?: number; readonly imageChunk?: number
  readonly replicaOf?: string; readonly originTokenFile?: string; readonly originCaFile?: string; readonly originVerifyKey?: string
}
interface SettingsFlags { readonly writePolicy?: string; readonly durability?: Durability; readonly retentionLock?: number }
interface AttachFlags { readonly target: string; readonly passphraseFile?: string; readonly recoveryKeyFile?: string }

export function registerRepo(registry: Registry): void {
  const repo = registry.program.command('repo').description('create, list, show and attach repositories')

  does<CreateFlags>(registry, withExamples(repo.command('create').argument('<name>', 'letters, digits, "-", "_" and "."')
    .description('create a repository with new keys (needs a server administrator\'s token)')
    .option('--target <url>', 'where its packs go: file:/path, swift:CONTAINER?cloud=NAME, s3:BUCKET (default: in the server\'s data directory)')
    .addOption(choiceOption('--durability <when>', 'acknowledge a backup when its targets have it, or when the server\'s spool has it', ['remote', 'spool']))
    .option('--min-chunk <size>', 'smallest content-defined chunk', sizeOption)
    .option('--average-chunk <size>', 'average content-defined chunk', sizeOption)
    .option('--max-chunk <size>', 'largest content-defined chunk', sizeOption)
    .option('--image-chunk <size>', 'chunk of disk images', sizeOption)
    .option('--replica-of <url>', 'make it a replica of another server\'s repository: http(s)://host:port/NAME (docs/replication.md)')
    .option('--origin-token-file <file>', 'a token of that repository with the scope replicate')
    .option('--origin-ca-file <file>', 'PEM of the authority that signed that server\'s certificate')
    .option('--origin-verify-key <hex>', 'that repository\'s verify key, as `roost repo show` says it there'),
  ['roost repo create main', 'roost repo create cold --target file:/mnt/archive/cold', 'roost repo create main --target swift:backups/main?cloud=mycloud',
    'roost repo create main --replica-of https://backup.north/main --origin-token-file north.token --origin-verify-key 3f2a…']), async (context, flags, [name]) => {
    const chunker = {
      ...(flags.minChunk === undefined ? {} : { minBytes: flags.minChunk }),
      ...(flags.averageChunk === undefined ? {} : { averageBytes: flags.averageChunk }),
      ...(flags.maxChunk === undefined ? {} : { maxBytes: flags.maxChunk }),
      ...(flags.imageChunk === undefined ? {} : { imageChunkBytes: flags.imageChunk }),
    }
    const server = context.server()
    const replica = flags.replicaOf === undefined ? undefined : await answerOfOrigin(context, server, flags.replicaOf, flags, Object.keys(chunker).length > 0)
    const info = await server.createRepository({
      name: name!, ...(replica === undefined ? {} : { replica }), ...(flags.target === undefined ? {} : { target: flags.target }),
      ...(flags.durability === undefined ? {} : { durability: flags.durability }), ...(Object.keys(chunker).length === 0 ? {} : { chunker }),
    }, { signal: context.signal })
    showRepository(context, info)
    context.output.note(`\nAdd a way to open it without this server, or the loss of the server's keyfile is the loss of everything:\n` +
      `  roost key add passphrase --label office --passphrase-file FILE -r …/${info.name}`)
  })

  does(registry, repo.command('list').description('list the repositories that the token may see'), async (context) => {
    const list = await context.server().listRepositories({ signal: context.signal })
    for (const info of list) context.output.record({ type: 'repository', ...info })
    if (list.length === 0) context.output.note('No repositories. `roost repo create NAME` makes one.')
    else context.output.line(formatTable(['NAME', 'CREATED', 'STATE'], list.map((info) => [info.name, formatTime(info.createdAtMs), info.state])))
  })

  does(registry, repo.command('show').description('show the repository that -r or ROOST_REPOSITORY names'), async (context) =>
    showRepository(context, await context.repository().client.info({ signal: context.signal })))

  does<SettingsFlags>(registry, withExamples(repo.command('set').description('change when a backup counts as safe, and how long nobody can delete it')
    .option('--write-policy <targets>', 'how many targets must hold a pack: all, or a number')
    .option('--retention-lock <duration>', 'nobody can delete a snapshot younger than this: 30d, 12h, 8w, 7y; it can grow, never shrink', spanOption)
    .addOption(choiceOption('--durability <when>', 'acknowledge a backup when so many targets have it, or when the server\'s spool has it', ['remote', 'spool'])),
  ['roost repo set --write-policy 2', 'roost repo set --durability spool', 'roost repo set --retention-lock 30d']), async (context, flags) => {
    const policy = flags.writePolicy
    if (policy !== undefined && policy !== 'all' && !/^[1-9][0-9]?$/.test(policy)) throw new UsageError('--write-policy is "all" or a number of targets.')
    const request: ChangeRepositoryRequest = { ...(policy === undefined ? {} : { writePolicy: policy === 'all' ? policy : Number(policy) }),
      ...(flags.durability === undefined ? {} : { durability: flags.durability }), ...(flags.retentionLock !== undefined && { retentionLockMs: flags.retentionLock }) }
    if (Object.keys(request).length === 0) throw new UsageError('Say what to change: --write-policy, --durability or --retention-lock.')
    showRepository(context, await context.repository().client.change(request, { signal: context.signal }))
  })

  does<AttachFlags>(registry, withExamples(repo.command('attach').argument('<name>')
    .description('open a repository that exists on its target but not on this server (after the loss of the server)')
    .requiredOption('--target <url>', 'where its packs are')
    .option('--passphrase-file <file>', 'a file with the passphrase of one of its key slots')
    .option('--recovery-key-file <file>', 'a file with the recovery secret key'),
  ['roost repo attach main --target file:///mnt/packs/main --passphrase-file /root/main.pass']), async (context, flags, [name]) => {
    const info = await context.server().attachRepository({
      name: name!, target: flags.target,
      ...(flags.passphraseFile === undefined ? {} : { passphrase: readSecretFile(flags.passphraseFile, 'passphrase file') }),
      ...(flags.recoveryKeyFile === undefined ? {} : { recoverySecretKey: readSecretFile(flags.recoveryKeyFile, 'recovery key file').trim() }),
    }, { signal: context.signal })
    showRepository(context, info)
    if (info.state === 'rebuild-needed') context.output.note('\nNow make its index: roost rebuild')
  })
}

/** The keys of a family go from server to server sealed; what passes here is of no use to anybody else. */
async function answerOfOrigin(context: CommandContext, server: ServerClient, url: string, flags: CreateFlags, cutsItsOwnWay: boolean): Promise<ReplicaRequest> {
  if (flags.originTokenFile === undefined) throw new UsageError('--replica-of needs --origin-token-file: a token with the scope replicate.')
  if (cutsItsOwnWay) throw new UsageError('A replica cuts as its origin does: leave the chunk sizes out.')
  const pinned = flags.originVerifyKey
  if (pinned !== undefined && !/^[0-9a-f]{64}$/.test(pinned)) throw new UsageError('--origin-verify-key is 64 lowercase hex digits.')
  const call = { signal: context.signal }
  const origin = context.other(url, flags.originTokenFile, flags.originCaFile)
  const { offer, publicKey } = await server.offerReplica(call)
  const { statement, signature } = await origin.stateFamily(publicKey, call)
  const verifyKey = pinned ?? (await origin.info(call)).verifyKey
  if (pinned === undefined) context.output.warn(`The origin's verify key is ${verifyKey}. Compare it with what \`roost repo show\` says there; --origin-verify-key would have.`)
  return { offer, statement, signature, verifyKey }
}

function showRepository(context: CommandContext, info: RepositoryInfo): void {
  context.output.record({ type: 'repository', ...info })
  const { chunker } = info
  context.output.line([
    `name         ${info.name}`, `id           ${info.repositoryId}`, `created      ${formatTime(info.createdAtMs)}`, `state        ${info.state}`,
    `targets      ${info.targets.join(', ') || '(shown to administrators)'}`, `verify key   ${info.verifyKey}`,
    `durable      on ${info.writePolicy === 'all' ? 'all targets' : `${info.writePolicy} targets`}; acknowledged ${info.durability === 'remote' ? 'then' : 'from the spool'}`,
    `locked for   ${info.retentionLockMs === 0 ? '–' : formatDays(info.retentionLockMs)}`,
    `chunks       ${formatBytes(chunker.minBytes)} – ${formatBytes(chunker.averageBytes)} – ${formatBytes(chunker.maxBytes)}, ` +
      `images ${formatBytes(chunker.imageChunkBytes)}`,
  ].join('\n'))
}
