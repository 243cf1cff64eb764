/** One run: a seed makes a world, clients and mishaps, and a judge looks on. */
import { Client } from './client.js'
import { Environment } from './environment.js'
import { Model } from './model.js'
import { Oracle } from './oracle.js'
import { profileOf, type Profile } from './profile.js'
import { Scheduler } from './scheduler.js'
import { SeededRandom } from './seeded-random.js'
import { template } from './template.js'
import { World } from './world.js'

export interface RunOptions {
  readonly steps?: number
  /** Told of every step. */
  trace?(step: number, text: string): void
}
export interface RunResult {
  readonly seed: number
  readonly profile: Profile
  readonly steps: number
  /** Of every step: two runs of one seed have the same. */
  readonly history: string
  readonly failure: Error | undefined
  readonly counts: ReadonlyMap<string, number>
  readonly fired: ReadonlyMap<string, number>
  readonly deathsAt: ReadonlyMap<string, number>
}
/** Steps for coming to an end, far above what any run needs. */
const STEPS_TO_END = 60_000
const LOOK_EVERY = 40

/** What nobody catches belongs to the run that is under way. */
let current: Scheduler | undefined
let isWatching = false
function watchUnhandled(): void {
  if (isWatching) return
  isWatching = true
  for (const event of ['unhandledRejection', 'uncaughtException'] as const)
    process.on(event, (error: unknown) => { if (current === undefined) throw error; current.fail(error) })
}

export async function simulate(seed: number, options: RunOptions = {}): Promise<RunResult> {
  watchUnhandled()
  const made = await template()
  const profile = profileOf(seed, options.steps)
  let history = 0x811c_9dc5
  const scheduler = current = new Scheduler({ random: new SeededRandom(seed), weights: profile.weights, lateReplies: profile.lateReplies, timeWeight: profile.timeWeight,
    trace: (step, text) => {
      for (let i = 0; i < text.length; i++) history = Math.imul(history ^ text.charCodeAt(i), 0x0100_0193)
      options.trace?.(step, text)
    } })
  made.content.forgetRoots()
  const world = new World(made, scheduler, profile)
  for (const target of world.targets) target.rates = profile.faults
  const model = new Model(), oracle = new Oracle(world, model)
  let failure: Error | undefined
  try {
    await run(world, scheduler, model, oracle)
  } catch (error) {
    failure = error instanceof Error ? error : new Error('something that is no error was thrown')
  }
  await world.dispose()
  current = undefined
  return { seed, profile, steps: scheduler.step, history: (history >>> 0).toString(16), failure, counts: model.counts, fired: world.fired, deathsAt: scheduler.deathsAt }
}

async function run(world: World, scheduler: Scheduler, model: Model, oracle: Oracle): Promise<void> {
  const { profile } = world
  const { seed } = scheduler.random
  let isEnding = false
  let living = 0
  const go = (life: Promise<void>): void => {
    living++
    void life.catch((error: unknown) => { scheduler.fail(error) }).finally(() => { living-- })
  }
  const environment = new Environment(world, scheduler, model, oracle, new SeededRandom(seed, 3), () => isEnding)
  let lastLook = 0
  scheduler.afterStep = async (label, isWrite) => {
    if ((isWrite && TAKES_AWAY.test(label)) || scheduler.step - lastLook >= LOOK_EVERY) {
      lastLook = scheduler.step
      await oracle.look()
    }
    environment.watch()
  }
  go(world.start())
  await scheduler.run(() => world.status === 'up', 5_000)
  for (let i = 0; i < profile.clients; i++)
    go(new Client({ world, scheduler, model, name: `client${i}`, random: new SeededRandom(seed, 10 + i), isEnding: () => isEnding }).live())
  go(environment.live())
  const end = scheduler.step + profile.steps
  await scheduler.run(() => scheduler.step >= end, profile.steps + 1)
  isEnding = true
  scheduler.note('everybody is told to come to an end')
  for (const target of world.targets) target.isDown = false
  let ended = false
  go((async () => {
    while (living > 1 || !environment.isIdle || world.status !== 'up') {
      await scheduler.pause('operator', 'waits for the others')
      // A server that died late is nobody's to start any more.
      if (world.status === 'down' && environment.isIdle) await world.start()
    }
    await environment.comeToRest()
    const reader = new Client({ world, scheduler, model, name: 'last reader', random: new SeededRandom(seed, 9), isEnding: () => true })
    for (const id of model.acknowledged()) await reader.restore(id)
    await world.request(async (repository) => { for (const { sessionId } of await world.index!.listSessions()) await repository.closeSession(sessionId) })
    await oracle.judgeRest(0.25)
    ended = true
  })())
  await scheduler.run(() => ended, STEPS_TO_END)
}
/** After these a chunk may be gone. */
const TAKES_AWAY = /^(?:index\.(?:forgetPacks|condemn|move|settle|deleteSnapshot|commitSnapshot|placePack|clearHolders|addPack|close)|main\.(?:delete|put)|other\.(?:delete|put)|file\.(?:unlink|rename))/
