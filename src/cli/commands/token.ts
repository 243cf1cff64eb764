/** roost token …: who may do what. A token's secret is shown once, or written to a file and never shown. */
import { writeFileSync } from 'node:fs'
import { TOKEN_SCOPES, type TokenGrant, type TokenInfo, type TokenScope } from '../../core/messages.js'
import { choiceOption, collect, does, withExamples, type Registry } from '../command.js'
import { UsageError } from '../exit-codes.js'
import { formatTable, formatTime } from '../format.js'

interface CreateFlags {
  readonly label?: string; readonly grant?: readonly string[]; readonly repo?: string; readonly scope?: readonly string[]; readonly source?: string
  readonly expiresDays?: string; readonly output?: string
}

export function registerToken(registry: Registry): void {
  const token = registry.program.command('token').description('create, list and revoke access tokens (needs a server administrator\'s token)')

  does<CreateFlags>(registry, withExamples(token.command('create').description('create a token; its secret is printed once')
    .option('--label <text>', 'what it is for')
    .option('--repo <name>', 'the repository it is for; * for all')
    .addOption(choiceOption('--scope <scope...>', 'what it may do', TOKEN_SCOPES))
    .option('--source <name>', 'limit it to one source name')
    .option('--grant <repo:scope,…[:source]>', 'the same in one word; may be repeated', collect)
    .option('--expires-days <days>', 'days until it ends by itself')
    .option('--output <file>', 'write the secret to this new file (mode 0600) instead of printing it'),
  ['roost token create --label web1 --repo main --scope push --source web1:/srv',
    'roost token create --label restore --grant main:read --output /root/.roost-token',
    'roost token create --label admin --repo "*" --scope admin']), async (context, flags) => {
    const grants = [...(flags.grant ?? []).map(parseGrant), ...grantOfFlags(flags)]
    if (grants.length === 0) throw new UsageError('Say what the token may do: --repo NAME --scope push read, or --grant NAME:push,read.')
    const days = flags.expiresDays === undefined ? undefined : Number(flags.expiresDays)
    if (days !== undefined && !(days > 0)) throw new UsageError('--expires-days must be a positive number.')
    const reply = await context.server().createToken({
      label: flags.label ?? grants.map((grant) => `${grant.scopes.join('+')} on ${grant.repository}`).join(', ').slice(0, 200), grants,
      ...(days === undefined ? {} : { expiresAtMs: Math.round(context.clock.now() + days * 86_400_000) }),
    }, { signal: context.signal })
    if (flags.output === undefined) {
      context.output.record({ type: 'token', ...reply })
      context.output.line(reply.token)
    } else {
      writeFileSync(flags.output, `${reply.token}\n`, { mode: 0o600, flag: 'wx' })
      const { token: _secret, ...shown } = reply
      context.output.record({ type: 'token', ...shown, file: flags.output })
    }
    context.output.note(`Token ${reply.tokenId} (${reply.label}). ` +
      (flags.output === undefined ? 'The secret is not shown again: keep it in a file of mode 0600.' : `Its secret is in ${flags.output}.`))
  })

  does(registry, token.command('list').description('list the tokens, without their secrets'), async (context) => {
    const list = await context.server().listTokens({ signal: context.signal })
    for (const info of list) context.output.record({ type: 'token', ...info })
    context.output.line(formatTable(['ID', 'CREATED', 'EXPIRES', 'GRANTS', 'LABEL'], list.map(tokenRow)))
  })

  does(registry, token.command('revoke').argument('<id>').description('end a token at once'), async (context, _flags, [id]) => {
    await context.server().revokeToken(id!, { signal: context.signal })
    context.output.record({ type: 'token-revoked', tokenId: id! })
    context.output.note(`Token ${id!} is revoked.`)
  })
}

const tokenRow = (info: TokenInfo): string[] => [
  info.tokenId, formatTime(info.createdAtMs), info.expiresAtMs === undefined ? 'never' : formatTime(info.expiresAtMs),
  info.grants.map(formatGrant).join(' '), info.label,
]
const formatGrant = ({ repository, scopes, source }: TokenGrant): string =>
  `${repository}:${scopes.join(',')}${source === undefined ? '' : `:${source}`}`
function grantOfFlags(flags: CreateFlags): TokenGrant[] {
  if (flags.repo === undefined && flags.scope === undefined && flags.source === undefined) return []
  if (flags.repo === undefined || flags.scope === undefined) throw new UsageError('--repo and --scope belong together.')
  return [{ repository: flags.repo, scopes: checkScopes(flags.scope), ...(flags.source === undefined ? {} : { source: flags.source }) }]
}
/** `main:push,read` or `main:push:web1`; a source may itself hold colons. */
export function parseGrant(text: string): TokenGrant {
  const [repository, scopes, ...source] = text.split(':')
  if (repository === undefined || repository === '' || scopes === undefined)
    throw new UsageError(`"${text}" is not a grant: write NAME:SCOPE,SCOPE[:SOURCE].`)
  return { repository, scopes: checkScopes(scopes.split(',')), ...(source.length === 0 ? {} : { source: source.join(':') }) }
}
function checkScopes(scopes: readonly string[]): TokenScope[] {
  return scopes.map((scope) => {
    const known = TOKEN_SCOPES.find((candidate) => candidate === scope)
    if (known === undefined) throw new UsageError(`"${scope}" is not a scope; there are: ${TOKEN_SCOPES.join(', ')}.`)
    return known
  })
}
