/** What happens to a server from outside: it dies, loses power, is restarted; targets go away and come back, lose packs and let them rot;
 *  the clock jumps; operators check, heal and rebuild.
 */
import { hasCode, isAbort, RoostError } from '../../src/core/errors.js'
import type { MaintenanceEvent } from '../../src/core/messages.js'
import { packKey } from '../../src/repo/layout.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { Client } from './client.js'
import type { Model } from './model.js'
import { everyPack, SPOOL, type Oracle } from './oracle.js'
import type { EnvironmentEvent } from './profile.js'
import { SimulationFailure, type Scheduler } from './scheduler.js'
import type { SeededRandom } from './seeded-random.js'
import type { SimulatedTarget } from './target.js'
import { ConnectionLost, zombieReaches, type World } from './world.js'

const HOUR = 3_600_000
const NOTHING_LEFT = '0 doomed packs, 0 packs in other hands, 0 problems'
/** Calls between which something durable is half done. */
const CALLS_TO_DIE_AT = [
  /^index\.addPack$/, /^index\.placePack$/, /^index\.commitSnapshot$/, /^index\.deleteSnapshot$/, /^index\.(?:closeSession|forgetPacks|reviveEntries|markDamaged)$/, /^(?:main|other)\.put packs/, /^(?:main|other)\.put snapshots/,
  /^(?:main|other)\.put tombstones/, /^(?:main|other)\.delete snapshots/, /^(?:main|other)\.deleteMany tombstones/, /^file\.rename/, /^file\.unlink/,
  /^file\.fsync/, /^pool\.flush/,
]
const CALLS_OF_COLLECTION = [/^index\.condemnPack$/, /^index\.movePack$/, /^index\.movePack$/, /^index\.settleDoomed$/, /^(?:main|other)\.deleteMany packs/, /^index\.endCollection$/,
  /^index\.deleteSnapshot$/, /^(?:main|other)\.delete snapshots/]

export class Environment {
  #damaged = false
  /** A collection is to be suspended when it is about to take its next pack, after so many. */
  #suspendAfter: number | undefined
  #wasThere = false
  /** The server is to die when such a call is about to be made. */
  #crashAt: RegExp | undefined
  /** Work that goes on beside its own: operators' jobs. */
  readonly #jobs = new Set<Promise<void>>()

  constructor(readonly world: World, readonly scheduler: Scheduler, readonly model: Model, readonly oracle: Oracle, readonly random: SeededRandom, readonly isEnding: () => boolean) {
    world.onSyncDeath = () => { this.#track(this.#afterSyncDeath()) }
  }
  #track(job: Promise<void>): void {
    const tracked: Promise<void> = job.catch((error: unknown) => { this.scheduler.fail(error) }).finally(() => this.#jobs.delete(tracked))
    this.#jobs.add(tracked)
  }
  get isIdle(): boolean { return this.#jobs.size === 0 }
  #pause(name: string): Promise<void> { return this.scheduler.pause('operator', name) }

  async live(): Promise<void> {
    const { environment } = this.world.profile
    const kinds = [...environment.keys()]
    while (!this.isEnding()) {
      for (let i = this.random.between(3, 25); i > 0 && !this.isEnding(); i--) await this.#pause('lets time pass')
      if (this.isEnding() || kinds.length === 0) break
      await this.#cause(this.random.weighted(kinds, (kind) => environment.get(kind)!))
    }
    for (const target of this.world.targets) target.isDown = false
    this.#suspendAfter = this.#crashAt = undefined
  }
  async #cause(event: EnvironmentEvent): Promise<void> {
    const { world, random } = this
    this.model.count(event)
    switch (event) {
      case 'crash': case 'power-loss': return await this.#crash(event === 'power-loss')
      case 'crash-in-write': world.syncStepsToLive = random.between(1, 12); return
      case 'restart': return await this.#restart()
      case 'outage': { this.#track(this.#outage(random.pick(world.targets), random.between(5, 120))); return }
      case 'damage': return await this.#damage()
      case 'clock': return this.#moveClock()
      case 'check': { this.#track(this.check({ readDataPercent: random.pick([0, 100]) })); return }
      case 'heal': { this.#track(this.check({ readDataPercent: random.pick([0, 100]), heal: true })); return }
      case 'rebuild': { this.#track(this.#rebuild()); return }
      case 'collect': { this.#track(this.#collect()); return }
      case 'crash-in-collection': {
        this.#track(this.#collect())
        for (let i = random.below(80); i > 0; i--) await this.#pause('lets the collection go on')
        return await this.#crash(random.chance(0.3))
      }
      case 'crash-at-call': { this.#track(this.#crashAtCall()); return }
      case 'suspension': { this.#track(this.#suspend()); return }
    }
  }

  async #crash(withPower: boolean): Promise<void> {
    const { world } = this
    // In the middle of opening and of closing, too.
    if (world.status === 'down') return
    await world.crash(withPower)
    await this.#begin()
  }
  /** A collector is suspended as it is about to take packs away; another process takes over and serves; and then it goes on. */
  async #suspend(): Promise<void> {
    if (this.#suspendAfter !== undefined) return
    this.#suspendAfter = this.random.pick([0, 0, 1, 3])
    while (this.#suspendAfter !== undefined && !this.isEnding()) {
      await this.#makeGarbage()
      await this.#collect()
      for (let i = 0; i < 15 && this.#suspendAfter !== undefined && !this.isEnding(); i++) await this.#pause('waits for a collection that takes something')
    }
  }
  /** After each step. */
  watch(): void {
    const { world, scheduler } = this
    if (this.#crashAt !== undefined && world.status !== 'down' && world.life !== undefined && scheduler.isWaiting(world.life, this.#crashAt)) {
      this.#crashAt = undefined
      this.#track(this.#crash(this.random.chance(0.3)))
      return
    }
    const isThere = world.status === 'up' && this.#suspendAfter !== undefined && scheduler.isWaiting(world.life!, /^index\.(?:condemnPack|movePack)$/)
    if (isThere && !this.#wasThere && this.#suspendAfter!-- === 0) {
      this.#suspendAfter = undefined
      this.#track(this.#takeOver())
    }
    this.#wasThere = isThere
  }
  async #crashAtCall(): Promise<void> {
    if (this.#crashAt !== undefined) return
    const isOfCollection = this.random.chance(0.8)
    this.#crashAt = this.random.pick(isOfCollection ? CALLS_OF_COLLECTION : CALLS_TO_DIE_AT)
    while (isOfCollection && this.#crashAt !== undefined && !this.isEnding()) {
      await this.#makeGarbage()
      await this.#collect()
      for (let i = 0; i < 15 && this.#crashAt !== undefined && !this.isEnding(); i++) await this.#pause('waits for a collection that gets there')
    }
  }
  async #makeGarbage(): Promise<void> {
    const { world, scheduler, model, random } = this
    await world.whenUp()
    await new Client({ world, scheduler, model, random, name: 'operator', isEnding: this.isEnding }).forgetOne()
  }
  async #takeOver(): Promise<void> {
    const { world, scheduler, random } = this
    const life = world.life!
    await world.crash(false, true)
    await this.#begin()
    for (let i = random.between(3, 60); i > 0; i--) await this.#pause('lets the new server work')
    await world.whenUp() // before that nobody has taken its place
    scheduler.note(`the collection of server ${life.number} goes on`)
    world.noteFault('collector of a replaced process resumed')
    scheduler.resume(life, zombieReaches)
  }
  async #afterSyncDeath(): Promise<void> {
    await this.scheduler.settle()
    this.world.noteFault('death between two synchronous file effects')
    if (this.world.status !== 'down') await this.#crash(this.random.chance(0.3))
  }
  async #begin(): Promise<void> {
    for (let i = this.random.below(8); i > 0; i--) await this.#pause('leaves the server down')
    if (this.world.status === 'down') this.#track(this.world.start())
  }
  async #restart(): Promise<void> {
    if (this.world.status !== 'up') return
    this.#track((async () => {
      await this.world.stop()
      if (this.world.status === 'down') await this.#begin()
    })())
  }
  async #outage(target: SimulatedTarget, pauses: number): Promise<void> {
    if (target.isDown) return
    target.isDown = true
    this.scheduler.note(`target ${target.name} goes away`)
    for (let i = pauses; i > 0 && !this.isEnding(); i--) await this.#pause(`${target.name} is away`)
    target.isDown = false
    this.scheduler.note(`target ${target.name} is back`)
  }
  #moveClock(): void {
    const jump = this.random.pick([1, 6, 7, 24, 24 * 30, 24 * 365 * 3]) * HOUR * this.random.pick([1, -1])
    this.world.time.wallOffsetMs += jump
    this.scheduler.note(`the clock jumps by ${jump / HOUR} hours`)
  }

  /** One copy of a pack goes, or rots, while another target that the index counts on has it whole. */
  async #damage(): Promise<void> {
    const { world, random, oracle } = this
    if (world.index === undefined || world.status === 'down') return
    const rows = await everyPack(world.index)
    const victims = rows.flatMap((row) => {
      const places = oracle.placesOf(row.packId)
      const holders = world.targets.filter(({ name }, slot) => places.includes(name) && ((row.heldBy >> slot) & 1) === 1)
      return holders.length >= 2 ? [{ row, target: random.pick(holders) }] : []
    })
    const victim = random.pick(victims)
    if (victim === undefined) return
    const { objects } = victim.target.memory
    const key = packKey(victim.row.packId), bytes = objects.get(key)!
    const how = random.pick(['lost', 'flipped', 'cut', 'another'] as const)
    if (how === 'lost') objects.delete(key)
    else if (how === 'cut') objects.set(key, Buffer.from(bytes.subarray(0, random.below(bytes.byteLength))))
    else if (how === 'another') objects.set(key, Buffer.from(objects.get(packKey(random.pick(rows).packId)) ?? bytes.subarray(1)))
    else {
      const changed = Buffer.from(bytes)
      changed[random.below(changed.byteLength)]! ^= 1 << random.below(8)
      objects.set(key, changed)
    }
    this.#damaged = true
    world.noteFault(`pack ${how}`)
    this.scheduler.note(`${victim.target.name}'s copy of pack ${victim.row.packId.slice(0, 8)} is ${how}`)
  }

  // ——— operators' jobs ———

  /** @returns what it found. */
  async check(options: { readDataPercent: number; heal?: boolean }): Promise<void> {
    const wasDamaged = this.#damaged
    await this.#job(`check${options.heal === true ? ' and heal' : ''}`, (repository, signal) => repository.check(options, signal), (event) => {
      // With fewer holders asked for than there are targets, one may be behind: its lack of a record is told, and is no loss.
      const isLag = this.world.profile.config?.writePolicy === 1 && event.type === 'problem' && event.code === 'SNAPSHOT_CORRUPT' && event.message.includes('is missing on the target')
      if (event.type === 'problem' && !isLag && !wasDamaged && !this.#damaged) throw new SimulationFailure(`a check of a sound repository reports ${event.code}: ${event.message} ${JSON.stringify(event)}`)
    })
  }
  async #rebuild(): Promise<void> {
    await this.#job('rebuild', (repository, signal) => repository.rebuild(signal), (event) => {
      if (event.type === 'problem' && !this.#damaged) throw new SimulationFailure(`a rebuild of a sound repository reports ${event.code}: ${event.message} ${JSON.stringify(event)}`)
    })
  }
  async #collect(): Promise<void> {
    const options = { repackBelow: this.random.pick([0.75, 0.75, 0.5, 1, 0]) }
    await this.#job('collection', (repository, signal) => repository.collect(options, signal), () => undefined)
  }
  /** A job that ends as the server does, or because a target does not answer. True when it came to its end. */
  async #job(name: string, work: (repository: LocalRepository, signal: AbortSignal) => AsyncIterable<MaintenanceEvent>, see: (event: MaintenanceEvent) => void): Promise<boolean> {
    const { world, scheduler, model } = this
    if (world.status !== 'up') return false
    try {
      await world.request(async (repository, signal) => { for await (const event of work(repository, signal)) see(event) })
      model.count(`${name} done`)
      scheduler.note(`the ${name} is done`)
      return true
    } catch (error) {
      const mayEnd = error instanceof ConnectionLost || isAbort(error) || (error instanceof RoostError && (error.traits.retry === 'later' || error.traits.retry === 'same')) || hasCode(error, 'REPOSITORY_BUSY')
      if (!mayEnd) throw error
      scheduler.note(`the ${name} ends: ${(error as Error).message}`)
      model.count(`${name} ended by ${error instanceof RoostError ? error.code : (error as Error).name}`)
      return false
    }
  }

  // ——— coming to rest ———

  /** Nobody else is there any more, and collections die one after the other, each at a call of its own. */
  async #diePieceByPiece(): Promise<void> {
    for (let i = this.random.below(4); i > 0; i--) {
      await this.#makeGarbage()
      this.#crashAt = this.random.pick(CALLS_OF_COLLECTION)
      await this.#collect()
      this.#crashAt = undefined
      await this.world.whenUp()
    }
  }
  /** Everybody has left: targets up and mended, sessions closed, nothing on its way. */
  async comeToRest(): Promise<void> {
    const { world } = this
    world.syncStepsToLive = Infinity
    this.#suspendAfter = this.#crashAt = undefined
    this.scheduler.timeWeight = 0.001
    for (const target of world.targets) { target.isDown = false; target.rates = { before: 0, lostAnswer: 0, torn: 0, refusedDelete: 0 } }
    if (world.status === 'down') await world.start()
    await world.whenUp()
    await this.#diePieceByPiece()
    await world.request(async (repository) => {
      for (const { sessionId } of await world.index!.listSessions()) await repository.closeSession(sessionId)
    })
    for (let round = 0; round < (this.#damaged ? 2 : 1); round++) {
      await this.#job('last heal', (repository, signal) => repository.check({ readDataPercent: 100, heal: true }, signal), () => undefined)
      for (const target of world.targets) await this.#job('last backfill', (repository, signal) => repository.backfillTarget(target.name, signal), () => undefined)
    }
    this.#damaged = false
    if (!await this.#job('last check', (repository, signal) => repository.check({ readDataPercent: 100 }, signal), (event) => {
      if (event.type === 'problem') throw new SimulationFailure(`after healing, a check reports ${event.code}: ${event.message} ${JSON.stringify(event)}`)
    })) throw new SimulationFailure('the last check did not come to its end')
    let left = 'nothing: it never came to its end'
    for (let attempt = 1; attempt <= 3; attempt++) {
      // What is on its way to the targets is no collection's business yet.
      await this.#untilSpoolIsEmpty()
      if (await this.#job('last collection', (repository, signal) => repository.collect({}, signal), (event) => {
        if (event.type === 'done') left = `${event.counts['packsDoomed']} doomed packs, ${event.counts['packsSkipped']} packs in other hands, ${event.problems} problems`
      }) && left === NOTHING_LEFT) break
    }
    if (left !== NOTHING_LEFT) throw new SimulationFailure(`the last collection leaves ${left}`)
    await this.#untilSpoolIsEmpty()
    // A target that was behind, with a full spool, is caught up from the others.
    for (const target of world.targets) await this.#job('last backfill', (repository, signal) => repository.backfillTarget(target.name, signal), () => undefined)
  }
  async #untilSpoolIsEmpty(): Promise<void> {
    for (let i = 0; i < 2_000 && this.world.files.names(SPOOL).length > 0; i++) await this.#pause('waits for the spool to empty')
  }
}
