/** Two repositories of one family in this process, and replications between them whose sides can be made to lie. */
import type { TestContext } from 'node:test'
import { systemClock } from '../../src/core/clock.js'
import type { MaintenanceEvent } from '../../src/core/messages.js'
import { systemRandom } from '../../src/core/random.js'
import { LocalSide } from '../../src/replication/local-side.js'
import { runReplication, type Brought } from '../../src/replication/run-replication.js'
import type { NearSide, ReplicationSide } from '../../src/replication/side.js'
import { ReplicaOffers, type AcceptedFamily } from '../../src/repo/replica/family.js'
import type { LocalRepository } from '../../src/repo/local-repository.js'
import { buildWorld, never, type World } from './repository-world.js'

export class BroughtInMemory implements Brought {
  readonly ids = new Set<string>()
  has(id: string): boolean { return this.ids.has(id) }
  async add(id: string): Promise<void> { this.ids.add(id) }
  async keepOnly(isListed: (id: string) => boolean): Promise<void> { for (const id of this.ids) if (!isListed(id)) this.ids.delete(id) }
  list(): readonly string[] { return [...this.ids] }
}

/** As the servers of both do it. */
export async function familyOf(origin: LocalRepository): Promise<AcceptedFamily> {
  const offers = new ReplicaOffers(systemClock, systemRandom)
  const { offer, publicKey } = offers.make()
  return offers.accept({ offer, ...await origin.peer.stateFamily(publicKey), verifyKey: origin.info().verifyKey })
}
export interface ReplicationScene { readonly source: LocalRepository; readonly sourceWorld: World; readonly sink: LocalRepository; readonly sinkWorld: World }
let seeds = 100
export async function replicationScene(t: TestContext): Promise<ReplicationScene> {
  const sourceWorld = await buildWorld(t, undefined, { seed: ++seeds })
  await sourceWorld.create()
  const source = await sourceWorld.open(true)
  const { world: sinkWorld, repository: sink } = await replicaOf(t, source)
  return { source, sourceWorld, sink, sinkWorld }
}
export async function replicaOf(t: TestContext, origin: LocalRepository): Promise<{ world: World; repository: LocalRepository }> {
  const world = await buildWorld(t, undefined, { seed: ++seeds })
  await world.create({}, await familyOf(origin))
  return { world, repository: await world.open(true) }
}

export interface ReplicateOptions {
  readonly near?: 'source' | 'sink'
  readonly wrapSource?: (side: NearSide) => NearSide
  readonly wrapSink?: (side: NearSide) => NearSide
  readonly brought?: Brought
  readonly mirror?: boolean
  readonly selection?: Parameters<typeof runReplication>[0]['selection']
}
export async function replicate(source: LocalRepository, sink: LocalRepository, options: ReplicateOptions = {}): Promise<MaintenanceEvent[]> {
  const sides = { source: options.wrapSource?.(new LocalSide(source)) ?? new LocalSide(source), sink: options.wrapSink?.(new LocalSide(sink)) ?? new LocalSide(sink) }
  const events: MaintenanceEvent[] = []
  for await (const event of runReplication({ ...sides, near: sides[options.near ?? 'sink'], selection: options.selection ?? {}, mirror: options.mirror ?? false, bytesPerSecondMax: 0,
    brought: options.brought ?? new BroughtInMemory(), clock: systemClock, onLag: () => undefined, onProgress: () => undefined }, never)) events.push(event)
  return events
}
export const broughtIds = (events: readonly MaintenanceEvent[]): string[] => events.flatMap((event) => event.type === 'replicated' ? [event.snapshot] : [])
export const problemsOf = (events: readonly MaintenanceEvent[]): string[] => events.flatMap((event) => event.type === 'problem' ? [event.code] : [])

/** A side of which some methods are others. */
export function altered<S extends ReplicationSide>(side: S, changes: Partial<ReplicationSide>): S {
  return new Proxy(side, { get: (target, name: string) => {
    const changed = (changes as Record<string, unknown>)[name]
    if (changed !== undefined) return changed
    const value = (target as unknown as Record<string, unknown>)[name]
    return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value
  } })
}
