/** Two targets on real services, damaged behind the server's back: restores are right at once, and `check --heal` mends all and says what. */
import assert from 'node:assert/strict'
import { describe, test, type TestContext } from 'node:test'
import { sharedLab } from '../support/openstack-lab.js'
import { jsonLines, RoostWorld } from '../support/run-roost.js'
import { assertRestores, backup, caughtUp, filePlace, makeTree, MiB, swiftPlace, tempAuthLogin, type Place } from '../support/target-world.js'

type Packs = ReadonlyMap<string, Buffer>
type Damage = (place: Place, name: string, packs: Packs) => Promise<void>
const flipped: Damage = async (place, name, packs) => {
  const bytes = Buffer.from(packs.get(name)!)
  bytes[bytes.length >> 1]! ^= 0x40
  await place.write(name, bytes)
}
const truncated: Damage = async (place, name, packs) => { await place.write(name, packs.get(name)!.subarray(0, packs.get(name)!.length - 100)) }
const swapped: Damage = async (place, name, packs) => {
  const names = [...packs.keys()]
  await place.write(name, packs.get(names[(names.indexOf(name) + 1) % names.length]!)!)
}
const missing: Damage = async (place, name) => { await place.remove(name) }
const DAMAGES = [flipped, truncated, swapped, missing]

interface Scene { readonly world: RoostWorld; readonly places: readonly [Place, Place]; readonly trees: ReadonlyMap<string, string>; readonly packs: Packs }
let scenes = 0
async function scene(t: TestContext, kind: 's3' | 'file'): Promise<Scene> {
  const lab = sharedLab()!
  const world = new RoostWorld()
  t.after(() => world.close())
  const name = `damage-${process.pid}-${scenes++}`
  Object.assign(world.environment, { OS_CLIENT_CONFIG_FILE: lab.cloudsYaml, AWS_ACCESS_KEY_ID: lab.s3.accessKeyId, AWS_SECRET_ACCESS_KEY: lab.s3.secretAccessKey })
  await world.startServer()
  await world.ok(['repo', 'create', 'main', '--target', `swift:${name}/main?cloud=tempauth`])
  await world.ok(['target', 'add', 'second', kind === 's3' ? `s3:${name}-bucket/main?endpoint=${lab.s3.endpoint}` : `file:${world.path('second')}`])
  const trees = new Map<string, string>()
  for (const seed of [1, 2, 3]) {
    const tree = makeTree(world, `tree${seed}`, 3 * MiB, seed)
    trees.set(await backup(world, tree), tree)
  }
  await caughtUp(world)
  const login = await tempAuthLogin(lab.swiftAuthUrl)
  const places = [swiftPlace('main', login, name, 'main/'),
    kind === 's3' ? swiftPlace('second', login, `${name}-bucket`, 'main/') : filePlace('second', world.path('second'))] as const
  const packs = new Map<string, Buffer>()
  for (const pack of await packsOn(places[0])) packs.set(pack, await places[0].read(pack))
  assert.ok(packs.size >= 6, `${packs.size} packs`)
  assert.deepEqual(await packsOn(places[1]), [...packs.keys()])
  return { world, places, trees, packs }
}
const packsOn = async (place: Place): Promise<string[]> => (await place.names()).filter((name) => name.startsWith('packs/'))
const idOf = (name: string): string => name.split('/').at(-1)!

/** Without what the server remembers and has in its caches. */
async function restart(world: RoostWorld): Promise<void> {
  await world.killServer()
  await world.startServer()
}
interface Injury { readonly place: Place; readonly name: string; readonly damage: Damage }
/** Injures, and looks twice: at what restores make of it, and at what a check mends of the same injuries anew.
 *  @param emptied a place that loses everything, not only what the injuries name
 */
async function mends({ world, places, trees, packs }: Scene, injuries: readonly Injury[], emptied?: Place): Promise<void> {
  const objects = await Promise.all(places.map((place) => place.names()))
  const injure = async (): Promise<void> => {
    if (emptied !== undefined) for (const name of await emptied.names()) await emptied.remove(name)
    else for (const { place, name, damage } of injuries) await damage(place, name, packs)
    await restart(world)
  }
  await injure()
  for (const [id, tree] of trees) await assertRestores(world, id, tree)
  await caughtUp(world)
  for (const { place, name } of injuries) await place.write(name, packs.get(name)!) // whatever the restores have mended of it
  await injure()
  const report = jsonLines((await world.ok(['check', '--heal', '--json'])).stdout)
  const healed = report.filter((line) => line['type'] === 'healed' && String(line['object']).startsWith('pack'))
  assert.deepEqual(healed.map((line) => `${String(line['object'])} on ${String(line['target'])}`).sort(),
    injuries.map(({ place, name }) => `pack ${idOf(name)} on ${place.target}`).sort())
  for (const line of healed) assert.notEqual(line['from'], line['target'])
  assert.ok(injuries.every(({ place, name }) => report.some((line) => line['type'] === 'problem' && line['pack'] === idOf(name) && line['target'] === place.target)))
  for (const [at, place] of places.entries()) {
    assert.deepEqual(await place.names(), objects[at])
    for (const [name, bytes] of packs) assert.ok((await place.read(name)).equals(bytes), `${name} on ${place.target}`)
  }
  await world.ok(['check', '--read-data'])
}

describe('damage on one of two targets, or on both', { skip: sharedLab() === undefined ? 'no lab in this run' : false }, () => {
  for (const kind of ['s3', 'file'] as const)
    test(`Swift and ${kind}: packs flipped, truncated, replaced and deleted on either, then on both, and either emptied`, async (t) => {
      const here = await scene(t, kind)
      const { world, places: [swift, second], packs } = here
      const names = [...packs.keys()]
      const half = (place: Place, from: number): Injury[] =>
        names.filter((_, at) => at % 2 === from).map((name, at) => ({ place, name, damage: DAMAGES[at % DAMAGES.length]! }))
      const all = (place: Place): Injury[] => names.map((name) => ({ place, name, damage: missing }))
      if (kind === 's3') {
        await mends(here, half(swift, 0))
        await mends(here, all(swift), swift)
      }
      await world.ok(['target', 'set', 'second', '--first'])
      await mends(here, half(second, 1))
      await mends(here, all(second), second)
      await mends(here, [...half(swift, 1), ...half(second, 0)])
    })
})
