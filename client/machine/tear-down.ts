/** Takes out of a QEMU everything that one run put in, from whatever state it left: by names alone, each step harmless when repeated.
 *
 *  The same function ends a run that went well, one that failed, and (called by the watchdog or by the next run) one that was killed.
 *  What counts most comes first: the machine runs, its file systems go on; then the guest's disks are as they were; then the rest.
 */
import type { Clock } from '../../src/core/clock.js'
import type { Random } from '../../src/core/random.js'
import { hasClientCode } from '../../src/protocol/client-errors.js'
import { devicePath } from './block-devices.js'
import { openAgent, type AgentAddress } from './guest-agent.js'
import { QemuRefusal, until, type Monitor } from './monitor.js'
import { parseRunName, runName, type RunName } from './names.js'
import { fieldsOf, listOf, textOf, type Fields } from './values.js'

export interface TearDownDeps { readonly monitor: Monitor; readonly agent: AgentAddress | undefined; readonly clock: Clock; readonly random: Random }
export interface TearDownReport {
  /** Anything of the run was there. */
  readonly foundSomething: boolean
  readonly thawedCount: number
  readonly resumed: boolean
  /** What is still there, and why. Empty: nothing is. */
  readonly problems: readonly string[]
}
/** Number of the mark: whether the machine ran when the point in time was to be taken. */
export const MARKS = { ran: 0, stood: 1 } as const

const GONE_MS_MAX = 10_000
const AGENT_MS_MAX = 15_000

/** Runs of which something is left in this QEMU. */
export async function findRuns(monitor: Monitor): Promise<string[]> {
  const { names } = await look(monitor)
  return [...new Set(names.map(({ run }) => run))]
}

/** @param ownsServer the NBD server in this QEMU was started by this run (known by it alone; else told by what it left)
 *  @throws {ClientError} MACHINE_UNREACHABLE when QEMU cannot be asked at all */
export async function tearDown(deps: TearDownDeps, run: string, { ownsServer }: { readonly ownsServer: boolean }): Promise<TearDownReport> {
  const { monitor, clock } = deps
  const found = await look(monitor)
  const ours = found.names.filter((name) => name.run === run)
  const problems: string[] = []
  /** A refusal is noted and the rest goes on; a QEMU that is away ends it. */
  const step = async (what: string, work: () => Promise<unknown>): Promise<void> => {
    try {
      await work()
    } catch (error) {
      if (!(error instanceof QemuRefusal) && !hasClientCode(error, 'QEMU_REFUSED')) throw error
      problems.push(`${what}: ${error.message}`)
    }
  }
  const moving = await goOn(deps, run, ours, problems)
  // Before fleece nodes there is a server: they tell that it was ours.
  await step('the export', () => closeExports(monitor, clock, run, ownsServer || ours.some(({ part }) => part !== 'mark')))
  const remove = (part: RunName['part']): Promise<void> => eachOf(ours, part, (name) => step(`the block node ${name}`, () => removeNode(monitor, clock, name)))
  await remove('view')
  await step('the disks', () => restoreDrives(monitor, run, problems))
  await remove('filter')
  await remove('fleece')
  for (const { node, name } of found.maps.filter((map) => map.run === run)) await step(`the bitmap ${name}`, () => monitor.execute('block-dirty-bitmap-remove', { node, name }))
  return { foundSomething: ours.length > 0, ...moving, problems }
}

/** The machine runs again and its file systems go on, if the run died while they stood. The mark stays until that is certain. */
async function goOn(deps: TearDownDeps, run: string, ours: readonly RunName[], problems: string[]): Promise<{ thawedCount: number; resumed: boolean }> {
  const { monitor } = deps
  const mark = ours.find(({ part }) => part === 'mark')
  if (mark === undefined) return { thawedCount: 0, resumed: false }
  let resumed = false
  if (mark.disk === MARKS.ran && fieldsOf(await monitor.execute('query-status'))['status'] === 'paused') {
    await monitor.execute('cont')
    resumed = true
  }
  let thawedCount = 0
  try {
    if (deps.agent !== undefined) thawedCount = await thawGuest({ ...deps, agent: deps.agent })
  } catch (error) {
    if (!(error instanceof Error)) throw error
    problems.push(`the guest may still be frozen: ${error.message}`)
    return { thawedCount, resumed }
  }
  await removeNode(monitor, deps.clock, runName(run, 'mark', mark.disk)).catch((error: unknown) => { problems.push(`the mark: ${(error as Error).message}`) })
  return { thawedCount, resumed }
}
/** Thaws if the guest is frozen. The agent may be busy freezing still: its answer to our first word comes after that. */
export async function thawGuest({ agent, clock, random }: { readonly agent: AgentAddress; readonly clock: Clock; readonly random: Random }): Promise<number> {
  const talk = await openAgent(agent, clock, random, AGENT_MS_MAX)
  try {
    return await talk.isFrozen() ? await talk.thaw() : 0
  } finally {
    talk.close()
  }
}

interface Found { readonly names: readonly RunName[]; readonly maps: readonly (RunName & { readonly node: string; readonly name: string })[] }
async function look(monitor: Monitor): Promise<Found> {
  const nodes = listOf(await monitor.execute('query-named-block-nodes', { flat: true }))
  const exports = listOf(await monitor.execute('query-block-exports'))
  const maps = nodes.flatMap((node) => listOf(node['dirty-bitmaps']).flatMap((bitmap) => {
    const [name, at] = [textOf(bitmap['name']), textOf(node['node-name'])]
    const parsed = name === undefined ? undefined : parseRunName(name)
    return parsed?.part === 'map' && at !== undefined ? [{ ...parsed, node: at, name: name! }] : []
  }))
  const named = [...nodes.map((node) => textOf(node['node-name'])), ...exports.map((entry) => textOf(entry['id']))]
  return { maps, names: [...named.flatMap((name) => (name === undefined ? undefined : parseRunName(name)) ?? []), ...maps] }
}
async function eachOf(names: readonly RunName[], part: RunName['part'], work: (name: string) => Promise<void>): Promise<void> {
  for (const name of names) if (name.part === part) await work(runName(name.run, part, name.disk))
}

async function closeExports(monitor: Monitor, clock: Clock, run: string, isOurs: boolean): Promise<void> {
  const list = async (): Promise<Fields[]> => [...listOf(await monitor.execute('query-block-exports'))]
  const ofRun = (entry: Fields): boolean => parseRunName(textOf(entry['id']) ?? '')?.run === run
  const before = await list()
  for (const entry of before.filter(ofRun)) {
    await monitor.execute('block-export-del', { id: entry['id'], mode: 'hard' }).catch((error: unknown) => {
      if (!(error instanceof QemuRefusal)) throw error // it is being closed already
    })
  }
  if (!await until(clock, GONE_MS_MAX, async () => !(await list()).some(ofRun))) throw new QemuRefusal('block-export-del', '', 'the export does not end')
  // The server of somebody else has exports of somebody else.
  if (!isOurs || before.some((entry) => entry['type'] === 'nbd' && !ofRun(entry))) return
  await monitor.execute('nbd-server-stop').catch((error: unknown) => {
    if (!(error instanceof QemuRefusal)) throw error // none runs
  })
}

/** Devices that look through our filter use their own node again: the one that holds the run's map of the same number. */
async function restoreDrives(monitor: Monitor, run: string, problems: string[]): Promise<void> {
  const { maps } = await look(monitor)
  for (const block of listOf(await monitor.execute('query-block'))) {
    const filter = parseRunName(textOf(fieldsOf(block['inserted'])['node-name']) ?? '')
    const path = devicePath(block)
    if (filter?.run !== run || filter.part !== 'filter' || path === undefined) continue
    const map = maps.find((candidate) => candidate.run === run && candidate.disk === filter.disk)
    if (map === undefined) problems.push(`${path} still uses our filter, and nothing says which block node it used before`)
    else await monitor.execute('qom-set', { path, property: 'drive', value: map.node })
  }
}
/** A node is in use for a moment after what used it was removed. */
async function removeNode(monitor: Monitor, clock: Clock, name: string): Promise<void> {
  let refusal: QemuRefusal | undefined
  const isGone = await until(clock, GONE_MS_MAX, async () => {
    try {
      await monitor.execute('blockdev-del', { 'node-name': name })
      return true
    } catch (error) {
      if (!(error instanceof QemuRefusal)) throw error
      refusal = error
      return /^(?:Failed to find|Cannot find)/.test(error.description)
    }
  })
  if (!isGone) throw refusal!
}
