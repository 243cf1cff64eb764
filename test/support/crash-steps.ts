/** Dies at one step of an operation and opens the repository again: shared by the crash tests, which enumerate all steps of theirs. */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { CUT_MODES } from './cut-effects.js'
import { never, restoreTree, type World } from './repository-world.js'

export type Cut = { readonly where: 'file' | 'index'; readonly step: number; readonly mode: 'before' | 'torn' | 'after' }
export interface CrashScene { readonly world: World; readonly repository: LocalRepository }

/** Everything promised restores, everything listed is whole, `check` is clean, nothing half-written lies about. */
export async function assertWhole(world: World, repository: LocalRepository, promised: readonly (readonly [string, Buffer[]])[]): Promise<void> {
  for (const [id, data] of promised) assert.deepEqual(await restoreTree(repository, id), data)
  for (const { id } of (await repository.listSnapshots({ limit: 100 })).snapshots) await restoreTree(repository, id)
  for await (const event of repository.check({ readDataPercent: 100 }, never)) assert.notEqual(event.type, 'problem', JSON.stringify(event))
  assert.deepEqual((await readdir(join(world.directory, 'spool'))).filter((name) => name.endsWith('.tmp')), [])
}

/** A dead process never answers: its caller gives up once nothing can move any more. */
async function untilLongDead(world: World, answered: AbortSignal): Promise<void> {
  for (let turns = 0; turns < 200 && !answered.aborted; turns += world.isDead() ? 1 : 0) await new Promise((resolve) => setImmediate(resolve))
}

/** @returns what `act` answered before the process died, if it did, and the repository of the next process. */
export async function crashDuring<T>({ world, repository }: CrashScene, cut: Cut, powerLoss: boolean, act: (repository: LocalRepository) => Promise<T>):
  Promise<{ answer: T | undefined; reopened: LocalRepository }> {
  if (cut.where === 'file') world.effects.arm(cut)
  else world.index.arm({ step: cut.step, mode: cut.mode === 'before' ? 'before' : 'after' })
  const answered = new AbortController()
  const answer = await Promise.race([act(repository).catch((error: unknown) => { assert.ok(error instanceof Error) }), untilLongDead(world, answered.signal)])
  answered.abort()
  // What follows the acknowledgement can be cut too.
  for (let turns = 0; !world.isDead(); turns++) {
    assert.ok(turns < 100_000, 'the scripted crash fired')
    await new Promise((resolve) => setImmediate(resolve))
  }
  world.effects.arm({ step: 0, mode: 'before' }) // whatever of the dead process still runs has no effect
  await world.effects.settled()
  if (powerLoss) world.effects.loseUnsynced(world.directory)
  world.effects.arm()
  world.index.arm()
  return { answer: answer ?? undefined, reopened: await world.open(false) }
}

/** One test a step and mode, with and without the loss of what was not synced. @param probe a scene in which the operation has run. */
export async function atEveryStep(t: TestContext, probe: CrashScene, survive: (inner: TestContext, cut: Cut, powerLoss: boolean) => Promise<void>): Promise<void> {
  const fileSteps = [...probe.world.effects.steps], indexSteps = [...probe.world.index.steps]
  await probe.repository.close()
  for (const powerLoss of [false, true]) {
    for (const [step, name] of fileSteps.entries()) for (const mode of CUT_MODES)
      await t.test(`file effect ${step} (${name}), ${mode}${powerLoss ? ', power lost' : ''}`, (inner) => survive(inner, { where: 'file', step, mode }, powerLoss))
    for (const [step, name] of indexSteps.entries()) for (const mode of ['before', 'after'] as const)
      await t.test(`index transaction ${step} (${name}), ${mode}${powerLoss ? ', power lost' : ''}`, (inner) => survive(inner, { where: 'index', step, mode }, powerLoss))
  }
}
