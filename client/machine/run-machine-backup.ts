/** A running machine becomes a snapshot, from its monitor to the last trace of us in it (docs/machines.md).
 *
 *  Order: lock, look, clear what a dead run left, plan, moment, push; then, however it went, everything out of QEMU again. The bitmap that began
 *  at the moment stays when the snapshot is acknowledged and the old one goes; else the other way round. When a commit was begun and nobody knows
 *  how it ended, both stay, and the next run keeps the one that the newest snapshot names.
 */
import type { Clock } from '../../src/core/clock.js'
import { dateOf } from '../../src/core/clock.js'
import { hasCode } from '../../src/core/errors.js'
import { parseSessionId, parseSnapshotId, type SnapshotId } from '../../src/core/ids.js'
import type { SnapshotRecord } from '../../src/core/messages.js'
import type { Random } from '../../src/core/random.js'
import { ClientError, hasClientCode } from '../../src/protocol/client-errors.js'
import { runBackup, type BackupEvents, type BackupOptions, type BackupReport } from '../backup.js'
import type { RepositoryClient } from '../repository-client.js'
import { openSignedSnapshot } from '../snapshot-record.js'
import { parentMachine, planDisk, BITMAP_GRANULARITY_BYTES, type DiskPlan, type ParentMachine, type RecordedMachine } from './bitmap-plan.js'
import { listDisks, type DiskChoice, type MachineDisk } from './block-devices.js'
import { describeQemu, identifyMachine, type MachineIdentity } from './describe-machine.js'
import { Fleece } from './fleece.js'
import type { AgentAddress } from './guest-agent.js'
import { clearDeadRuns, listOurBitmaps, removeBitmaps, runLockOf, thawIfFrozen, type BitmapPlace } from './leftovers.js'
import { MACHINE_FILE, type MachineDescription } from './machine-description.js'
import { tryLock } from './machine-lock.js'
import { guardMoment } from './moment-guard.js'
import type { Monitor, MonitorAddress } from './monitor.js'
import { bitmapOwner } from './names.js'
import { findAgent, openMonitor, ownerOf } from './open-monitor.js'
import { newBitmap, openExports, prepareMoment, takeMoment, type Moment, type MomentDeps, type MomentOptions } from './point-in-time.js'
import { tearDown } from './tear-down.js'
import { domainXml } from './virsh.js'
import { startWatchdog, type Watchdog } from './watchdog.js'

export interface MachineBackupOptions {
  readonly monitor: MonitorAddress
  /** `find`: as QEMU itself tells. */
  readonly agent: AgentAddress | 'find' | 'none'
  readonly disks: DiskChoice
  readonly fleece: { readonly directory: string; readonly bytesMax?: number }
  /** How long the guest may take to come to rest. */
  readonly freezeMsMax: number
  /** 0–1: of what the bitmap calls unchanged, this share is read and compared. */
  readonly auditShare: number
  /** Of disks that are new in this source. */
  readonly chunkBytes?: number
  /** The history that the snapshot continues, once it is known what the machine is called. */
  source(identity: MachineIdentity): string
  readonly parent: SnapshotId | 'latest' | null
  readonly backup: Omit<BackupOptions, 'source' | 'config' | 'parent' | 'description' | 'frozenMs'>
  readonly random: Random
  /** What else there is to say of the machine (Nova's record), read in the same run before the moment. What it throws ends the run. */
  describe?(identity: MachineIdentity, signal: AbortSignal): Promise<Partial<Pick<MachineDescription, 'name' | 'nova'>>>
}
export interface MachineBackupEvents extends BackupEvents {
  /** Only for those who want to know everything. */
  onDetail?(text: string): void
  onMoment?(moment: Moment): void
}
export interface MachineBackupReport extends BackupReport {
  readonly moment: Moment
  /** What could not be taken out of QEMU again; the next run tries anew. */
  readonly leftovers: readonly string[]
}

/** QEMU's copy-before-write filter with on-cbw-error and the view of its moment. */
const VERSION_MIN = 701
/** What reading ends in when the moment is gone. */
const LOST = ['NBD_FAILED', 'NBD_UNREACHABLE', 'NBD_BROKEN', 'NBD_REFUSED'] as const

/** @throws {ClientError} MACHINE_*, QEMU_REFUSED, FLEECE_FAILED, WATCHDOG_FAILED, POINT_IN_TIME_LOST, and what runBackup throws */
export async function runMachineBackup(client: RepositoryClient, options: MachineBackupOptions, events: MachineBackupEvents, signal: AbortSignal): Promise<MachineBackupReport> {
  const { clock } = options.backup
  const lockName = lockNameOf(options.monitor)
  const lock = await tryLock(lockName)
  if (lock === undefined) throw new ClientError('MACHINE_BUSY', 'Another backup of this machine is running, or is just being cleaned up after.')
  try {
    const monitor = await openMonitor(options.monitor, clock, signal)
    try {
      return await backUpMachine({ client, options, events, signal, monitor, clock, lockName, notice: (text) => { events.onNotice?.(text) } })
    } finally {
      monitor.close()
    }
  } finally {
    lock.release()
  }
}
const lockNameOf = (address: MonitorAddress): string => address.kind === 'socket' ? `socket ${address.path}` : `libvirt ${address.uri ?? ''} ${address.domain}`

interface Run {
  readonly client: RepositoryClient; readonly options: MachineBackupOptions; readonly events: MachineBackupEvents; readonly signal: AbortSignal
  readonly monitor: Monitor; readonly clock: Clock; readonly lockName: string
  notice(text: string): void
}
interface PlannedDisk { readonly disk: MachineDisk; readonly plan: DiskPlan; readonly bitmap: string }
interface Preparation {
  readonly identity: MachineIdentity; readonly source: string; readonly owner: string
  readonly disks: readonly PlannedDisk[]
  readonly parent: ProbedParent
  readonly ourBitmaps: readonly BitmapPlace[]
  readonly agent: AgentAddress | undefined; readonly noAgentBecause: string
  describe(moment: Moment): MachineDescription
}

async function backUpMachine(run: Run): Promise<MachineBackupReport> {
  const { monitor, options, signal, clock } = run
  const identity = await identifyMachine(monitor, { signal })
  if (identity.versionNumber < VERSION_MIN) throw new ClientError('MACHINE_UNSUPPORTED', `This is QEMU ${identity.version}; a backup of a running machine needs 7.1 or newer.`)
  const found = options.agent === 'none' ? '--no-agent was given' : options.agent === 'find' ? await findAgent(monitor, options.monitor, { signal }) : options.agent
  const [agent, noAgentBecause] = typeof found === 'string' ? [undefined, found] : [found, '']
  const leftoverDeps = { monitor, agent, clock, random: options.random, onNotice: run.notice }
  await clearDeadRuns(leftoverDeps)
  await thawIfFrozen(leftoverDeps, signal)
  return await withMoment(run, await prepare(run, identity, agent, noAgentBecause))
}

async function prepare(run: Run, identity: MachineIdentity, agent: AgentAddress | undefined, noAgentBecause: string): Promise<Preparation> {
  const { monitor, options, signal, client, notice } = run
  const { disks, notices } = await listDisks(monitor, options.disks, identity.versionNumber, { signal })
  for (const text of notices) notice(`not saved: ${text}`)
  const { qemu, warnings } = await describeQemu(monitor, identity, disks, { signal })
  for (const text of warnings) notice(`the machine's description lacks something: ${text}`)
  const libvirtXml = options.monitor.kind === 'libvirt' ? await domainXml(options.monitor, { signal }).catch((error: unknown) => {
    signal.throwIfAborted()
    notice(`the machine's description lacks libvirt's XML: ${(error as Error).message}`)
    return undefined
  }) : undefined
  const more = await options.describe?.(identity, signal)

  const source = options.source(identity)
  const parent = await probeParent(client, source, options.parent, signal)
  const owner = bitmapOwner(parent.repositoryId, source)
  const ourBitmaps = await sortBitmaps(run, owner, parent)
  const attached = new Set(disks.map(({ node }) => node))
  const elsewhere = new Set(ourBitmaps.filter(({ node }) => !attached.has(node)).map(({ name }) => name))
  const plans = disks.map((disk) => ({ disk, bitmap: newBitmap(owner, options.random),
    plan: planDisk(disk, parent.machine, { owner, ...(identity.uuid === undefined ? {} : { uuid: identity.uuid }) }, elsewhere) }))
  return {
    identity, source, owner, disks: plans, parent, ourBitmaps, agent, noAgentBecause,
    describe: (moment) => ({
      format: 1, name: identity.name ?? (options.monitor.kind === 'libvirt' ? options.monitor.domain : identity.uuid ?? source),
      ...(identity.uuid === undefined ? {} : { uuid: identity.uuid }), capturedAt: dateOf(moment.takenAtMs).toISOString(), consistency: moment.consistency,
      qemu, ...(libvirtXml === undefined ? {} : { libvirtXml }), ...more,
    }),
  }
}
/** Removes what the newest snapshot does not name: traces of runs that failed where they could not clean up. */
async function sortBitmaps({ monitor, events, notice, options, signal }: Run, owner: string, parent: ProbedParent): Promise<BitmapPlace[]> {
  const all = await listOurBitmaps(monitor, { signal })
  const others = all.filter((bitmap) => bitmap.owner !== owner)
  if (others.length > 0) events.onDetail?.(`${others.length} bitmaps of other sources or repositories are left alone`)
  const ours = all.filter((bitmap) => bitmap.owner === owner)
  if (options.parent !== 'latest') return ours // then it is unknown which the newest snapshot names
  const named = new Set(typeof parent.machine === 'string' ? [] : parent.machine.machine.disks.map(({ bitmap }) => bitmap))
  const stale = ours.filter(({ name }) => !named.has(name))
  await removeBitmaps(monitor, stale, notice)
  return ours.filter((bitmap) => !stale.includes(bitmap))
}

interface ProbedParent { readonly repositoryId: string; readonly snapshotId: SnapshotId | null; readonly machine: ParentMachine | string }
/** What the repository has of this source, by a session like the push's own: a token that may push may ask so. */
async function probeParent(client: RepositoryClient, source: string, parent: MachineBackupOptions['parent'], signal: AbortSignal): Promise<ProbedParent> {
  const open = (wanted: typeof parent): ReturnType<RepositoryClient['openSession']> => client.openSession({ kind: 'push', source, mode: 'image', parent: wanted }, { signal })
  const session = await open(parent).catch(async (error: unknown) => {
    if (parent === null || !hasCode(error, 'SNAPSHOT_UNKNOWN')) throw error
    return await open(null)
  })
  await client.closeSession(parseSessionId(session.sessionId), { signal }).catch(() => { signal.throwIfAborted() }) // it ends by itself
  const { repositoryId, snapshot } = session
  if (snapshot === undefined) {
    const isWithheld = session.withheldParent !== undefined
    return { repositoryId, snapshotId: null, machine: isWithheld ? 'the repository lost data that the earlier snapshot may need' : parentMachine(undefined) }
  }
  let record: SnapshotRecord
  try {
    record = openSignedSnapshot(snapshot, session.verifyKey)
  } catch (error) {
    if (!hasCode(error, 'SNAPSHOT_CORRUPT')) throw error
    return { repositoryId, snapshotId: null, machine: error.message }
  }
  return { repositoryId, snapshotId: parseSnapshotId(snapshot.id), machine: parentMachine(record) }
}

/** From the first thing that is put into QEMU to the last that is taken out. */
async function withMoment(run: Run, preparation: Preparation): Promise<MachineBackupReport> {
  const { options, signal, clock, notice, events } = run
  const runId = options.random.bytes(4).toString('hex')
  const runLock = await tryLock(runLockOf(runId))
  if (runLock === undefined) throw new ClientError('MACHINE_BUSY', 'Another backup has the same random number. Run the command again.')
  const begun = preparation.disks.map(({ disk, bitmap }) => ({ node: disk.node, name: bitmap }))
  const state: RunState = { runId, begun, servesMoment: false, outcome: 'nothing-committed' }
  let fleece: Fleece | undefined
  let watchdog: Watchdog | undefined
  let report: Omit<MachineBackupReport, 'leftovers'>
  let leftovers: readonly string[] = []
  try {
    const owner = await ownerOf(options.monitor, { signal })
    fleece = new Fleece({ ...options.fleece, diskBytes: preparation.disks.map(({ disk }) => disk.bytes), ...(owner === undefined ? {} : { owner }) })
    watchdog = await startWatchdog({
      monitor: options.monitor, run: runId, bitmaps: begun, directory: fleece.directory, locks: [run.lockName, runLockOf(runId)],
      ...(preparation.agent === undefined ? {} : { agent: preparation.agent }),
    }, clock)
    report = await takeAndPush(run, preparation, state, fleece, watchdog)
    state.outcome = 'acknowledged'
  } finally {
    leftovers = watchdog === undefined ? [] : await cleanUp(run, preparation, state)
    fleece?.remove()
    // With anything left behind it stays, and tries again when we are gone.
    if (leftovers.length === 0) watchdog?.done()
    for (const text of leftovers) notice(`something of ours is left in QEMU; the next backup of the machine removes it: ${text}`)
    runLock.release()
  }
  events.onDetail?.('everything of ours is out of QEMU again')
  return { ...report, leftovers, exitCode: leftovers.length > 0 ? 3 : report.exitCode }
}
interface RunState {
  readonly runId: string
  /** The bitmaps that begin at the moment. */
  readonly begun: readonly { readonly node: string; readonly name: string }[]
  servesMoment: boolean
  /** `unknown`: a commit was begun, and its answer did not come. */
  outcome: 'nothing-committed' | 'unknown' | 'acknowledged'
}
/** Returns what is still there. Never throws: what ended the run is what the user is to hear. */
async function cleanUp({ monitor, options, clock, notice }: Run, { ourBitmaps, agent }: Preparation, { runId, begun, servesMoment, outcome }: RunState): Promise<readonly string[]> {
  try {
    const { problems } = await tearDown({ monitor, agent, clock, random: options.random }, runId, { ownsServer: servesMoment })
    if (outcome === 'acknowledged') await removeBitmaps(monitor, ourBitmaps, notice)
    if (outcome === 'nothing-committed') await removeBitmaps(monitor, begun, notice)
    return problems
  } catch (error) {
    if (!(error instanceof Error)) throw error
    return [error.message]
  }
}

async function takeAndPush(run: Run, preparation: Preparation, state: RunState, fleece: Fleece, watchdog: Watchdog): Promise<Omit<MachineBackupReport, 'leftovers'>> {
  const { monitor, options, signal, clock, notice, events } = run
  const deps: MomentDeps = { monitor, clock, random: options.random, fleece,
    events: { onNotice: notice, onStanding: (forMs) => { watchdog.standing(forMs) }, onServing: () => { state.servesMoment = true } } }
  const momentOptions: MomentOptions = { run: state.runId, owner: preparation.owner, disks: preparation.disks, agent: preparation.agent,
    noAgentBecause: preparation.noAgentBecause, freezeMsMax: options.freezeMsMax }
  const runs = await prepareMoment(deps, momentOptions, signal)
  const moment = await takeMoment(deps, momentOptions, runs, signal)
  events.onMoment?.(moment)
  await openExports(deps, momentOptions, moment, signal)

  const guard = guardMoment({ fleece, monitor, clock }, signal)
  try {
    const report = await runBackup(run.client, {
      ...options.backup, source: preparation.source, parent: preparation.parent.snapshotId, frozenMs: moment.frozenMs,
      description: { machine: recordOf(preparation, moment) },
      config: {
        mode: 'image', audit: { share: options.auditShare, seed: state.runId },
        files: [{ name: MACHINE_FILE, bytes: Buffer.from(`${JSON.stringify(preparation.describe(moment), null, 2)}\n`) }],
        disks: moment.disks.map(({ disk, exportName, mapContext, plan }) => ({
          name: disk.name, ...(options.chunkBytes === undefined ? {} : { chunkBytes: options.chunkBytes }),
          from: { kind: 'nbd' as const, address: { kind: 'unix' as const, path: fleece.socketPath }, exportName,
            ...(plan.kind === 'incremental' && mapContext !== undefined ? { dirtyMap: { context: mapContext, parentRoot: plan.parentRoot } } : {}) },
        })),
      },
    }, { ...events, onCommitting: () => {
      state.outcome = 'unknown'
      watchdog.committing()
      events.onCommitting?.()
    } }, guard.signal)
    return { ...report, moment }
  } catch (error) {
    signal.throwIfAborted()
    if (LOST.some((code) => hasClientCode(error, code))) throw new ClientError('POINT_IN_TIME_LOST',
      `${guard.problem() ?? 'The moment cannot be read any more: the fleece failed or took too long, or QEMU is gone.'} The machine is not affected.`, { cause: error })
    throw error
  } finally {
    guard.end()
  }
}
/** `description.machine` of the snapshot (docs/machines.md): what the next run needs to trust its bitmaps, and how consistent this moment is. */
function recordOf({ identity }: Preparation, moment: Moment): RecordedMachine & Readonly<Record<string, unknown>> {
  const { consistency, because, freezeMs, frozenMs, stoppedMs } = moment
  return {
    ...(identity.name === undefined ? {} : { name: identity.name }), ...(identity.uuid === undefined ? {} : { uuid: identity.uuid }),
    consistency, ...(because === undefined ? {} : { because }), freezeMs, frozenMs, stoppedMs,
    disks: moment.disks.map(({ disk, bitmap, plan }) => ({
      image: disk.name, qdev: disk.qdev, node: disk.node, bitmap, bytes: disk.bytes, granularityBytes: BITMAP_GRANULARITY_BYTES, isPersistent: disk.keepsBitmaps,
      ...(disk.file === undefined ? {} : { file: disk.file }), ...(plan.kind === 'full' ? { fullBecause: plan.reason } : {}),
    })),
  }
}
