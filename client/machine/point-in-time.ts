/** One moment of all disks of a running machine, readable over NBD while the machine goes on (docs/machines.md §The moment).
 *
 *  P1 prepare  the mark, QEMU's NBD server, an empty fleece and an idle copy-before-write filter a disk: all that takes time, while the guest runs
 *  P2 freeze   the agent, if one answers in time
 *  P3 stop     the processors, if they run: several disks and a bitmap cannot be switched at once otherwise
 *  P4 switch   ONE transaction begins a new bitmap on every disk and copies the old one into a map; then each device is led through its filter
 *  P5 go on    processors, then file systems; whatever happened in between
 *  P6 open     the filters' view of the moment as exports, each with its map
 *
 *  The old bitmap never stops recording: a run that dies anywhere has lost nothing, and the next one uses it again.
 */
import type { Clock } from '../../src/core/clock.js'
import type { Random } from '../../src/core/random.js'
import { ClientError, hasClientCode } from '../../src/protocol/client-errors.js'
import type { MachineDisk } from './block-devices.js'
import { BITMAP_GRANULARITY_BYTES, type DiskPlan } from './bitmap-plan.js'
import type { Fleece } from './fleece.js'
import { openAgent, type AgentAddress, type GuestAgent } from './guest-agent.js'
import { QemuRefusal, tellRefusal, type Monitor } from './monitor.js'
import { bitmapName, runName } from './names.js'
import { MARKS, thawGuest } from './tear-down.js'
import { fieldsOf } from './values.js'

export interface DiskMoment {
  readonly disk: MachineDisk
  readonly plan: DiskPlan
  /** The bitmap that begins here. */
  readonly bitmap: string
  /** What the export and its map are called; the map is there with an incremental plan only. */
  readonly exportName: string
  readonly mapContext?: string
}
export interface Moment {
  readonly consistency: 'agent' | 'crash' | 'stopped'
  /** Why not `agent`. */
  readonly because?: string
  /** How long the guest took to come to rest, and how long it then stood still: file systems with an agent, processors without. */
  readonly freezeMs: number; readonly frozenMs: number
  readonly stoppedMs: number
  readonly takenAtMs: number
  readonly disks: readonly DiskMoment[]
}
export interface MomentDeps { readonly monitor: Monitor; readonly clock: Clock; readonly random: Random; readonly fleece: Fleece; readonly events: MomentEvents }
export interface MomentEvents {
  onNotice(text: string): void
  /** Told before each step at which the machine may stand: it takes no longer than `forMs`, or something hangs. Undefined: it goes on. */
  onStanding(forMs: number | undefined): void
  /** From here on the NBD server in QEMU is ours. */
  onServing(): void
}
export interface MomentOptions {
  readonly run: string; readonly owner: string
  readonly disks: readonly { readonly disk: MachineDisk; readonly plan: DiskPlan; readonly bitmap: string }[]
  readonly agent: AgentAddress | undefined
  /** Why there is none, for the record. */
  readonly noAgentBecause: string
  readonly freezeMsMax: number
}

/** After it the old content of a block no longer reaches the fleece: the view breaks, and the guest's write goes on. */
const COPY_SECONDS_MAX = 10
const NBD_CONNECTIONS_MAX = 16
/** Of a step while the machine stands, and of thawing a guest whose agent is busy: the agent's own limits together. */
const STEP_MS_MAX = 10_000
const THAW_MS_MAX = 45_000

export const newBitmap = (owner: string, random: Random): string => bitmapName(owner, random.bytes(8))

/** P1. On failure tearDown removes what is there. @returns whether the machine runs */
export async function prepareMoment({ monitor, fleece, events }: MomentDeps, { run, disks }: MomentOptions, signal: AbortSignal): Promise<boolean> {
  const status = fieldsOf(await monitor.execute('query-status', undefined, { signal }))
  if (/migrate/.test(String(status['status']))) throw new ClientError('MACHINE_BUSY', `The machine is being moved to another host (${String(status['status'])}).`)
  const runs = status['running'] === true
  const add = async (what: string, node: Readonly<Record<string, unknown>>): Promise<void> => {
    await monitor.execute('blockdev-add', node, { signal }).catch((error: unknown) => { throw tellRefusal(error, what) })
  }
  await add('A mark cannot be left in QEMU', { driver: 'null-co', 'node-name': runName(run, 'mark', runs ? MARKS.ran : MARKS.stood), 'read-zeroes': true, size: 512 })
  await startServer(monitor, fleece.socketPath, signal)
  events.onServing()
  for (const at of disks.keys()) {
    const filename = fleece.filePath(at)
    await add(`QEMU cannot use the fleece ${filename} (it runs as another user, or a profile of AppArmor or SELinux forbids it; docs/machines.md §Permissions)`,
      { driver: 'raw', 'node-name': runName(run, 'fleece', at), file: { driver: 'file', filename } })
  }
  fleece.unlinkFiles()
  for (const [at, { disk }] of disks.entries()) await add(`The disk ${disk.name} cannot be filtered`, {
    driver: 'copy-before-write', 'node-name': runName(run, 'filter', at), file: disk.node, target: runName(run, 'fleece', at),
    'on-cbw-error': 'break-snapshot', 'cbw-timeout': COPY_SECONDS_MAX,
  })
  return runs
}
async function startServer(monitor: Monitor, path: string, signal: AbortSignal): Promise<void> {
  try {
    await monitor.execute('nbd-server-start', { addr: { type: 'unix', data: { path } }, 'max-connections': NBD_CONNECTIONS_MAX }, { signal })
  } catch (error) {
    if (error instanceof QemuRefusal && /already running/.test(error.description)) throw new ClientError('MACHINE_BUSY',
      'This QEMU serves disks over NBD already: another backup runs, or a migration, or somebody\'s nbd-server-start was never followed by nbd-server-stop.', { cause: error })
    throw tellRefusal(error, `QEMU cannot serve at ${path} (it runs as another user, or a profile forbids it; docs/machines.md §Permissions)`)
  }
}

/** P2 to P5. When it returns or throws, the machine runs and its file systems go on; if that failed, it says so in a notice. */
export async function takeMoment(deps: MomentDeps, options: MomentOptions, runs: boolean, signal: AbortSignal): Promise<Moment> {
  const { clock, events } = deps
  const standing = new Standing(deps, options)
  events.onStanding(options.freezeMsMax + STEP_MS_MAX)
  let takenAtMs: number
  let freezing: Awaited<ReturnType<Standing['freeze']>>
  try {
    freezing = runs ? await standing.freeze(signal) : { freezeMs: 0, because: 'the machine does not run' }
    signal.throwIfAborted()
    events.onStanding(STEP_MS_MAX)
    if (runs) await standing.stop()
    takenAtMs = clock.now()
    await switchDisks(deps.monitor, options)
  } finally {
    await standing.goOn(runs)
    events.onStanding(undefined)
  }
  // While the guest may be frozen the mark stays: tearDown asks the agent again.
  if (!standing.mayBeFrozen) await deps.monitor.execute('blockdev-del', { 'node-name': runName(options.run, 'mark', runs ? MARKS.ran : MARKS.stood) }).catch(() => undefined)
  const { freezeMs, because } = freezing
  const { frozenMs, stoppedMs } = standing
  return {
    consistency: !runs ? 'stopped' : because === undefined ? 'agent' : 'crash', ...(because === undefined ? {} : { because }), takenAtMs, stoppedMs,
    freezeMs, frozenMs: because === undefined ? frozenMs : stoppedMs,
    disks: options.disks.map(({ disk, plan, bitmap }, at) => ({
      disk, plan, bitmap, exportName: disk.name,
      ...(plan.kind === 'incremental' ? { mapContext: `qemu:dirty-bitmap:${runName(options.run, 'map', at)}` } : {}),
    })),
  }
}

/** The guest and the machine while they stand, and the way back. */
class Standing {
  #agent: GuestAgent | undefined
  #frozenAtMs: number | undefined
  #stoppedAtMs: number | undefined
  mayBeFrozen = false
  frozenMs = 0
  stoppedMs = 0
  constructor(readonly deps: MomentDeps, readonly options: MomentOptions) {}

  async freeze(signal: AbortSignal): Promise<{ freezeMs: number; because?: string }> {
    const { clock, random } = this.deps
    const { agent, noAgentBecause, freezeMsMax } = this.options
    if (agent === undefined) return { freezeMs: 0, because: noAgentBecause }
    let startedMs = 0
    try {
      this.#agent = await openAgent(agent, clock, random, undefined, signal)
      startedMs = clock.monotonicMs()
      this.mayBeFrozen = true
      const count = await this.#agent.freeze(freezeMsMax, signal)
      this.#frozenAtMs = clock.monotonicMs()
      const freezeMs = Math.round(this.#frozenAtMs - startedMs)
      return count > 0 ? { freezeMs } : { freezeMs, because: 'the guest agent froze no file system' }
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof QemuRefusal) && !hasClientCode(error, 'MACHINE_UNREACHABLE')) throw error
      // An agent that is asked to freeze and does not answer may do so yet. What can be done about that is done before anything else.
      if (this.mayBeFrozen) await this.#thaw()
      return { freezeMs: startedMs === 0 ? 0 : Math.round(clock.monotonicMs() - startedMs), because: error.message }
    }
  }
  async stop(): Promise<void> {
    this.#stoppedAtMs = this.deps.clock.monotonicMs() // also when the answer is lost
    await this.deps.monitor.execute('stop').catch((error: unknown) => { throw tellRefusal(error, 'The machine cannot be stopped for the moment') })
  }
  /** Processors first: the agent needs them. @throws when they do not run again */
  async goOn(runs: boolean): Promise<void> {
    const { monitor, clock } = this.deps
    try {
      if (!runs || this.#stoppedAtMs === undefined) return
      await monitor.execute('cont').catch(async () => await monitor.execute('cont')) // over a new connection, if it was that
      this.stoppedMs = Math.ceil(clock.monotonicMs() - this.#stoppedAtMs)
    } finally {
      if (this.mayBeFrozen) await this.#thaw()
      this.#agent?.close()
    }
  }
  async #thaw(): Promise<void> {
    const { clock, random, events } = this.deps
    events.onStanding(THAW_MS_MAX)
    try {
      try {
        if (this.#agent === undefined) throw new ClientError('MACHINE_UNREACHABLE', 'The agent is gone.')
        await this.#agent.thaw()
      } catch {
        this.#agent?.close()
        this.#agent = undefined
        await thawGuest({ agent: this.options.agent!, clock, random })
      }
      this.mayBeFrozen = false
      if (this.#frozenAtMs !== undefined) this.frozenMs = Math.ceil(clock.monotonicMs() - this.#frozenAtMs)
    } catch (error) {
      events.onNotice(`the guest did not say that it goes on after the freeze; it is asked again at the end: ${(error as Error).message}`)
    }
  }
}

/** P4 */
async function switchDisks(monitor: Monitor, { run, disks }: MomentOptions): Promise<void> {
  const actions = disks.flatMap(({ disk: { node, keepsBitmaps }, plan, bitmap }, at) => [
    { type: 'block-dirty-bitmap-add', data: { node, name: bitmap, persistent: keepsBitmaps, granularity: BITMAP_GRANULARITY_BYTES } },
    // Also without an old bitmap: it tells which node the disk is.
    { type: 'block-dirty-bitmap-add', data: { node, name: runName(run, 'map', at), persistent: false, disabled: true, granularity: BITMAP_GRANULARITY_BYTES } },
    ...(plan.kind === 'incremental' ? [{ type: 'block-dirty-bitmap-merge', data: { node, target: runName(run, 'map', at), bitmaps: [plan.bitmap] } }] : []),
  ])
  await monitor.execute('transaction', { actions }).catch((error: unknown) => { throw tellRefusal(error, 'The bitmaps cannot be switched') })
  for (const [at, { disk }] of disks.entries()) {
    await monitor.execute('qom-set', { path: disk.qdev, property: 'drive', value: runName(run, 'filter', at) })
      .catch((error: unknown) => { throw tellRefusal(error, `The disk ${disk.name} (${disk.device}) cannot be led through a filter`) })
  }
}

/** P6 */
export async function openExports({ monitor }: MomentDeps, { run }: MomentOptions, { disks }: Moment, signal: AbortSignal): Promise<void> {
  for (const [at, { disk, exportName, mapContext }] of disks.entries()) {
    const view = runName(run, 'view', at)
    await monitor.execute('blockdev-add', { driver: 'snapshot-access', 'node-name': view, file: runName(run, 'filter', at) }, { signal })
      .catch((error: unknown) => { throw tellRefusal(error, `The moment of ${disk.name} cannot be seen`) })
    await monitor.execute('block-export-add', {
      type: 'nbd', id: runName(run, 'export', at), 'node-name': view, name: exportName, writable: false,
      ...(mapContext === undefined ? {} : { bitmaps: [{ node: disk.node, name: runName(run, 'map', at) }] }),
    }, { signal }).catch((error: unknown) => { throw tellRefusal(error, `The moment of ${disk.name} cannot be exported`) })
  }
}
