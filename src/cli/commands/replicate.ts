/** roost replicate …: what a repository brings from, or to, a repository on another server. */
import { readFileSync } from 'node:fs'
import { isErrno } from '../../core/errors.js'
import type { ReplicationDirection, ReplicationInfo, ReplicationSelection } from '../../core/peer-messages.js'
import { choiceOption, collect, countOption, does, sizeOption, spanOption, withExamples, type Registry } from '../command.js'
import type { CommandContext } from '../context.js'
import { EXIT } from '../exit-codes.js'
import { UsageError } from '../exit-codes.js'
import { formatBytes, formatCount, formatDuration, formatTable, formatTime, printable } from '../format.js'
import { followMaintenance } from '../maintenance-report.js'
import { readSecretFile } from '../settings.js'

interface AddFlags {
  readonly peer: string; readonly direction: ReplicationDirection; readonly peerTokenFile?: string; readonly peerCaFile?: string; readonly peerVerifyKey?: string
  readonly source?: readonly string[]; readonly tag?: readonly string[]; readonly maxAge?: number; readonly newest?: number; readonly mirror?: boolean; readonly limit?: number
  readonly peerAllowPlainHttp?: boolean
}

export function registerReplicate(registry: Registry): void {
  const replicate = registry.program.command('replicate').description('copies of a repository\'s snapshots on another server: set up, run, watch')

  does<AddFlags>(registry, withExamples(replicate.command('add').argument('<name>', 'how the replication is called here')
    .description('set up, or change, what this repository brings from a peer (pull) or to it (push)')
    .requiredOption('--peer <url>', 'the other repository: http(s)://host:port/NAME')
    .addOption(choiceOption('--direction <way>', 'pull from the peer, or push to it', ['pull', 'push'], 'pull'))
    .option('--peer-token-file <file>', 'a token of the peer with the scope replicate (and delete, to mirror by push); the server keeps it')
    .option('--peer-ca-file <file>', 'PEM of the authority that signed the peer\'s certificate')
    .option('--peer-verify-key <hex>', 'the peer\'s verify key, as `roost repo show` says it there: a peer that cannot sign with it is refused')
    .option('--source <glob>', 'only sources whose name fits; may be given again', collect)
    .option('--tag <tag>', 'only snapshots with this tag, or another that is given', collect)
    .option('--max-age <duration>', 'only snapshots younger than this: 30d, 8w', spanOption)
    .option('--newest <count>', 'of each source only so many of the newest', countOption)
    .option('--mirror', 'delete what this replication brought when it is gone where it came from')
    .option('--limit <rate>', 'bytes a second, such as 10M', sizeOption)
    .option('--peer-allow-plain-http', 'speak to the peer unencrypted (a trusted network)'),
  ['roost replicate add from-north --peer https://backup.north/main --peer-token-file north.token --peer-verify-key 3f2a…',
    'roost replicate add to-south --direction push --peer https://backup.south/main --peer-token-file south.token --source \'db*\' --limit 20M']),
  async (context, flags, [name]) => {
    const call = { signal: context.signal }
    if (flags.peerVerifyKey !== undefined && !/^[0-9a-f]{64}$/.test(flags.peerVerifyKey)) throw new UsageError('--peer-verify-key is 64 lowercase hex digits.')
    if (flags.peerVerifyKey === undefined && flags.peerTokenFile === undefined) throw new UsageError('Give --peer-verify-key, or --peer-token-file so that the peer can be asked for it.')
    const verifyKey = flags.peerVerifyKey ?? (await context.other(flags.peer, flags.peerTokenFile!, flags.peerCaFile).info(call)).verifyKey
    if (flags.peerVerifyKey === undefined)
      context.output.warn(`The peer's verify key is ${verifyKey}. Compare it with what \`roost repo show\` says there; --peer-verify-key would have.`)
    const selection: ReplicationSelection = { ...(flags.source === undefined ? {} : { sources: flags.source }), ...(flags.tag === undefined ? {} : { tags: flags.tag }),
      ...(flags.maxAge === undefined ? {} : { maxAgeMs: flags.maxAge }), ...(flags.newest === undefined ? {} : { newest: flags.newest }) }
    await context.repository().client.setReplication(name!, { direction: flags.direction, peer: flags.peer, verifyKey, selection, mirror: flags.mirror === true,
      bytesPerSecondMax: flags.limit ?? 0, allowPlainHttp: flags.peerAllowPlainHttp === true,
      ...(flags.peerTokenFile === undefined ? {} : { token: readSecretFile(flags.peerTokenFile, 'token file').trim() }),
      ...(flags.peerCaFile === undefined ? {} : { ca: readPem(flags.peerCaFile) }) }, call)
    context.output.record({ type: 'replication', name })
    context.output.line(`${printable(name!)} is set up: it ${flags.direction === 'pull' ? 'pulls from' : 'pushes to'} ${printable(flags.peer)}.`)
    context.output.note(`Run it now with \`roost replicate run ${name}\`; on a schedule with a job of kind replicate (docs/replication.md).`)
  })

  does(registry, replicate.command('list').description('what is set up for this repository'), async (context) => {
    const list = await context.repository().client.listReplications(false, { signal: context.signal })
    for (const one of list) context.output.record({ type: 'replication', ...one })
    if (list.length === 0) context.output.note('Nothing is replicated. `roost replicate add NAME --peer URL` sets it up.')
    else context.output.line(formatTable(['NAME', 'WAY', 'PEER', 'WHAT', 'LIMIT'], list.map((one) =>
      [one.name, one.direction, printable(one.peer), describeSelection(one), one.bytesPerSecondMax === 0 ? '–' : `${formatBytes(one.bytesPerSecondMax)}/s`])))
  })

  does<{ readonly cached?: boolean }>(registry, withExamples(replicate.command('status').argument('[name]').description('how far each replication is: what is not on the other side yet')
    .option('--cached', 'as it was known last; no peer is asked'), ['roost replicate status', 'roost replicate status --json']), async (context, { cached }, [name]) => {
    const all = await context.repository().client.listReplications(cached !== true, { signal: context.signal })
    const list = name === undefined ? all : all.filter((one) => one.name === name)
    if (name !== undefined && list.length === 0) throw new UsageError(`There is no replication "${printable(name)}".`)
    for (const one of list) context.output.record({ type: 'replication', ...one })
    for (const one of list) context.output.line(describeStatus(one, context))
    if (list.length === 0) context.output.note('Nothing is replicated. `roost replicate add NAME --peer URL` sets it up.')
    return list.some(({ lastFailure }) => lastFailure !== undefined) ? EXIT.doneWithProblems : EXIT.done
  })

  does(registry, replicate.command('run').argument('<name>').description('replicate now; it goes on whoever watches'), async (context, _flags, [name]) =>
    await followMaintenance(context, context.repository({ isLong: true }).client.runReplication(name!, { signal: context.signal }), 'replicate'))

  does(registry, replicate.command('remove').argument('<name>').description('forget a replication; what it brought stays'), async (context, _flags, [name]) => {
    await context.repository().client.removeReplication(name!, { signal: context.signal })
    context.output.line(`${printable(name!)} is forgotten; what it brought stays.`)
  })

  does<{ readonly peerVerifyKey: string }>(registry, withExamples(replicate.command('trust').argument('<repository id>')
    .description('take in snapshots that another repository signed: for one that pushes here, or whose snapshots come by a third')
    .requiredOption('--peer-verify-key <hex>', 'its verify key, as `roost repo show` says it there'), ['roost replicate trust 0011… --peer-verify-key 3f2a…']),
  async (context, { peerVerifyKey: verifyKey }, [repositoryId]) => {
    await context.repository().client.trustOrigin({ repositoryId: repositoryId!, verifyKey }, { signal: context.signal })
    context.output.line(`Snapshots that ${repositoryId} signed are taken in.`)
  })
  does(registry, replicate.command('origins').description('the repositories whose snapshots are taken in'), async (context) => {
    const list = await context.repository().client.listOrigins({ signal: context.signal })
    for (const one of list) context.output.record({ type: 'origin', ...one })
    context.output.line(list.length === 0 ? 'None: this repository takes in no other\'s snapshots.' :
      formatTable(['REPOSITORY', 'VERIFY KEY', 'SINCE'], list.map((one) => [one.repositoryId, one.verifyKey, formatTime(one.addedAtMs)])))
  })
}

function describeSelection({ selection, mirror }: ReplicationInfo): string {
  const { sources, tags, maxAgeMs, newest } = selection
  const parts = [sources === undefined ? 'all sources' : `sources ${sources.map(printable).join(' ')}`, tags === undefined ? '' : `tags ${tags.map(printable).join(' ')}`,
    maxAgeMs === undefined ? '' : `younger than ${formatDuration(maxAgeMs)}`, newest === undefined ? '' : `newest ${newest}`, mirror ? 'mirrored' : '']
  return parts.filter((part) => part !== '').join(', ')
}
function describeStatus(one: ReplicationInfo, { clock }: CommandContext): string {
  const { lag, progress, lastFailure, lastSuccessAtMs } = one
  const behind = lag === undefined ? 'not known yet' : lag.snapshots === 0 ? 'up to date' :
    `${formatCount(lag.snapshots)} snapshots behind (${formatBytes(lag.bytes)} sent by clients), the oldest of ${formatDuration(Math.max(0, clock.now() - (lag.oldestAtMs ?? clock.now())))} ago`
  return [`${one.name} (${one.direction === 'pull' ? 'from' : 'to'} ${printable(one.peer)})`,
    `  lag          ${behind}${lag === undefined ? '' : `; looked at ${formatTime(lag.measuredAtMs)}`}`,
    ...(progress === undefined ? [] : [`  running      ${formatCount(progress.snapshotsDone)} of ${formatCount(progress.snapshotsTotal)} snapshots, ${formatCount(progress.chunks)} chunks, ${
      formatBytes(progress.wireBytes)} on the wire (${formatBytes(progress.rawBytes)})${one.job === undefined ? '' : `; job ${one.job}`}`]),
    `  last success ${lastSuccessAtMs === undefined ? 'none since the server started' : formatTime(lastSuccessAtMs)}`,
    ...(lastFailure === undefined ? [] : [`  failing      ${formatTime(lastFailure.atMs)} [${lastFailure.code}] ${printable(lastFailure.message)}`])].join('\n')
}
function readPem(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (!isErrno(error)) throw error
    throw new UsageError(`The CA file ${path} cannot be read: ${error.message}`, { cause: error })
  }
}
