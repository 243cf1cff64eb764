/** What a run that was killed (and its watchdog with it) left in QEMU, and bitmaps of ours that no snapshot refers to any more. */
import type { Clock } from '../../src/core/clock.js'
import type { Random } from '../../src/core/random.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { AgentAddress } from './guest-agent.js'
import { openAgent } from './guest-agent.js'
import { tryLock } from './machine-lock.js'
import { QemuRefusal, type Monitor, type MonitorCall } from './monitor.js'
import { ownerOfBitmap } from './names.js'
import { findRuns, tearDown } from './tear-down.js'
import { listOf, textOf } from './values.js'

export interface LeftoverDeps {
  readonly monitor: Monitor; readonly agent: AgentAddress | undefined; readonly clock: Clock; readonly random: Random
  readonly onNotice: (text: string) => void
}
export const runLockOf = (run: string): string => `run ${run}`
/** A guest that somebody else froze, for a snapshot of their own, goes on by itself soon. */
const FOREIGN_FREEZE_MS = 5_000

/** @throws {ClientError} MACHINE_BUSY when what is there is of a run that goes on, by whatever way it reached this QEMU */
export async function clearDeadRuns(deps: LeftoverDeps): Promise<void> {
  for (const run of await findRuns(deps.monitor)) {
    const lock = await tryLock(runLockOf(run))
    if (lock === undefined) throw new ClientError('MACHINE_BUSY', 'Another backup of this machine is running, or is just being cleaned up after.')
    try {
      const { problems, thawedCount, resumed } = await tearDown(deps, run, { ownsServer: false })
      deps.onNotice(`an earlier backup was killed: what it left in QEMU is removed${resumed ? ', the machine is resumed' : ''}${thawedCount > 0 ? `, ${thawedCount} file systems are thawed` : ''}`)
      if (problems.length > 0) throw new ClientError('QEMU_REFUSED', `What an earlier backup left in QEMU cannot be removed: ${problems.join('; ')}.`)
    } finally {
      lock.release()
    }
  }
}

/** Nobody may save a guest that stands still without meaning to: one that is found frozen and stays so is thawed. */
export async function thawIfFrozen({ agent: address, clock, random, onNotice }: LeftoverDeps, signal: AbortSignal): Promise<void> {
  if (address === undefined) return
  let agent
  try {
    agent = await openAgent(address, clock, random, undefined, signal)
  } catch {
    signal.throwIfAborted()
    return // no agent answers: the freeze will find that out as well, and says so
  }
  try {
    for (let waitedMs = 0; await agent.isFrozen(); waitedMs += 250) {
      if (waitedMs >= FOREIGN_FREEZE_MS) {
        onNotice(`the guest was found frozen and stayed so: ${await agent.thaw()} file systems are thawed`)
        return
      }
      await clock.sleep(250, signal)
    }
  } catch (error) {
    if (!(error instanceof QemuRefusal)) throw error // an agent that may not tell: then it may not freeze either
  } finally {
    agent.close()
  }
}

/** Where the bitmaps of all nodes are; names of ours and of other sources. */
export interface BitmapPlace { readonly node: string; readonly name: string; readonly owner: string }
export async function listOurBitmaps(monitor: Monitor, call: MonitorCall = {}): Promise<BitmapPlace[]> {
  const nodes = listOf(await monitor.execute('query-named-block-nodes', { flat: true }, call))
  return nodes.flatMap((node) => listOf(node['dirty-bitmaps']).flatMap((bitmap) => {
    const [name, at] = [textOf(bitmap['name']), textOf(node['node-name'])]
    const owner = name === undefined ? undefined : ownerOfBitmap(name)
    return owner === undefined || at === undefined ? [] : [{ node: at, name: name!, owner }]
  }))
}
/** Removes those that are there and not in `keep`; others' are left alone. One that cannot be removed (its image is read-only now) costs a notice. */
export async function removeBitmaps(monitor: Monitor, bitmaps: readonly { readonly node: string; readonly name: string }[], onNotice: (text: string) => void): Promise<void> {
  for (const { node, name } of bitmaps) {
    try {
      await monitor.execute('block-dirty-bitmap-remove', { node, name })
    } catch (error) {
      if (!(error instanceof QemuRefusal)) throw error
      if (!/not found/i.test(error.description)) onNotice(`the bitmap ${name} of an earlier backup stays on ${node}: ${error.description}`)
    }
  }
}
