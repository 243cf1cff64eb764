/** Collection over and over while four clients push, two restore and snapshots are forgotten, with the server killed at random: nothing is lost,
 *  clients see at most retries. Until each has done its share a few times; ten minutes by `npm run test:slow`.
 */
import assert from 'node:assert/strict'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { compareTrees } from '../support/compare-trees.js'
import { noise, seeded } from '../support/odd-tree.js'
import { openWorld, SLOW, tool, type RoostWorld } from '../support/run-roost.js'

/** Of each, at least; the slow run goes on for ten minutes. */
const SHARE = { backups: 14, restores: 4, forgotten: 4, collections: 3, kills: 2 } as const
const SECONDS_MIN = SLOW ? 600 : 0, SECONDS_MAX = SLOW ? 900 : 300
const KILL_EVERY_MS = 12_000
const PUSHERS = 4, RESTORERS = 2
const SNAPSHOTS_KEPT = 2
const SEED = 41

/** The server is dead for moments: commands that only look have patience, too. */
const PATIENT = { environment: { ROOST_RETRY_SECONDS: '90' } }
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

interface Kept { readonly id: string; readonly copy: string; readonly source: string; readers: number }

class Load {
  readonly kept: Kept[] = []
  readonly counts = { backups: 0, restores: 0, forgotten: 0, collections: 0, cutCollections: 0, kills: 0, packsDropped: 0, packsRepacked: 0 }
  readonly next = seeded(SEED)
  isOver = false
  constructor(readonly world: RoostWorld) {}

  async push(client: number): Promise<void> {
    const { world } = this
    const source = world.path(`tree-${client}`)
    for (let directory = 0; directory < 6; directory++) mkdirSync(join(source, `d${directory}`), { recursive: true })
    for (let round = 0; !this.isOver; round++) {
      // A third of the files is new each time; some content comes back that was forgotten, some is another client's.
      for (let file = 0; file < 24; file++) if (round === 0 || this.next() < 0.34) {
        const size = file % 8 === 0 ? 900_000 : 40_000
        writeFileSync(join(source, `d${file % 6}`, `f${file}`), noise(size, SEED + Math.floor(this.next() * 400)))
      }
      const lines = await world.json(['backup', source, '--source', `client${client}`], PATIENT)
      const id = lines.find((line) => line['type'] === 'snapshot')!['id'] as string
      const copy = world.path(`copy-${id.slice(0, 16)}`)
      tool('cp', ['-a', source, copy])
      this.kept.push({ id, copy, source, readers: 0 })
      this.counts.backups++
      const own = this.kept.filter((one) => one.source === source)
      const oldest = own.length > SNAPSHOTS_KEPT ? own.find(({ readers }) => readers === 0) : undefined
      if (oldest === undefined) continue
      this.kept.splice(this.kept.indexOf(oldest), 1)
      const deleted = await world.run(['snapshot', 'delete', oldest.id], PATIENT)
      // Asked twice because the first answer was lost, there is no such snapshot any more.
      assert.ok(deleted.code === 0 || /SNAPSHOT_UNKNOWN|No snapshot|no such snapshot/i.test(deleted.stderr), deleted.stderr)
      rmSync(oldest.copy, { recursive: true })
      this.counts.forgotten++
    }
  }
  async restore(reader: number): Promise<void> {
    for (let round = 0; !this.isOver; round++) {
      const one = this.kept[Math.floor(this.next() * this.kept.length)]
      if (one === undefined) { await pause(100); continue }
      await this.compare(one, `back-${reader}-${round}`)
      this.counts.restores++
    }
  }
  async compare(one: Kept, into: string): Promise<void> {
    const { world } = this
    one.readers++
    try {
      await world.ok(['restore', one.id, '--target', world.path(into)], PATIENT)
      assert.deepEqual(compareTrees(one.copy, join(world.path(into), one.source)).differences, [])
    } finally {
      one.readers--
      rmSync(world.path(into), { recursive: true, force: true })
    }
  }
  async collect(): Promise<void> {
    while (!this.isOver) {
      const { code, stdout, stderr } = await this.world.run(['gc', '--json'])
      if (code === 0) {
        const counts = JSON.parse(stdout.trim().split('\n').at(-1)!) as { counts?: Record<string, number> }
        this.counts.collections++
        this.counts.packsDropped += counts.counts?.['packsDropped'] ?? 0
        this.counts.packsRepacked += counts.counts?.['packsRepacked'] ?? 0
      } else {
        // Cut by a kill. What it must never say: that something is damaged.
        assert.doesNotMatch(stderr, /CORRUPT|CHUNK_MISSING/)
        this.counts.cutCollections++
        await pause(200)
      }
    }
  }
  async untilDone(): Promise<void> {
    const started = performance.now()
    const seconds = (): number => (performance.now() - started) / 1000
    const isDone = (): boolean => seconds() >= SECONDS_MIN && Object.entries(SHARE).every(([what, least]) => this.counts[what as keyof typeof SHARE] >= least)
    while (!isDone() && seconds() < SECONDS_MAX) await pause(200)
  }
  async kill(): Promise<void> {
    while (!this.isOver) {
      await pause(KILL_EVERY_MS * (0.5 + this.next()))
      if (this.isOver) return
      await this.world.killServer()
      await pause(300)
      await this.world.startServer()
      this.counts.kills++
    }
  }
}

test('collections beside four pushing and two restoring clients and kills of the server lose nothing', { timeout: (SECONDS_MAX + 400) * 1000 }, async (t) => {
  const world = await openWorld(t)
  const load = new Load(world)
  const work = [...Array.from({ length: PUSHERS }, (_, client) => load.push(client)), ...Array.from({ length: RESTORERS }, (_, reader) => load.restore(reader)), load.collect(), load.kill()]
  const failed = Promise.race(work.map((one) => one.then(() => new Promise<never>(() => undefined))))
  await Promise.race([failed, load.untilDone()]).finally(() => { load.isOver = true })
  await Promise.all(work)
  t.diagnostic(JSON.stringify(load.counts))
  for (const [what, least] of Object.entries(SHARE)) assert.ok(load.counts[what as keyof typeof SHARE] >= least, `everything took part: ${what}`)
  await world.ok(['check', '--read-data'])
  await world.ok(['gc'])
  await world.ok(['check', '--read-data'])
  for (const [at, one] of load.kept.entries()) await load.compare(one, `last-${at}`)
})
