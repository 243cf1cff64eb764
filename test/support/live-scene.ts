/** A running guest, a Roost server, and the question that all tests of live backups ask: is what comes back right, and is nothing of ours left? */
import assert from 'node:assert/strict'
import type { ChildProcess } from 'node:child_process'
import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { BOOT_FS_BYTES, checkFileSystem, newDisk, startGuest, type FsState, type Guest, type GuestDisk, type GuestOptions } from './guest-lab.js'
import { jsonLines, openWorld, type CommandResult, type RoostWorld } from './run-roost.js'

export interface MomentLine {
  readonly consistency: string; readonly because: string | null; readonly frozenMs: number; readonly freezeMs: number; readonly stoppedMs: number
  readonly disks: readonly { readonly name: string; readonly read: 'full' | 'incremental'; readonly because: string | null }[]
}
export interface LiveBackup { readonly id: string; readonly moment: MomentLine; readonly statistics: Readonly<Record<string, number>>; readonly lines: readonly Record<string, unknown>[] }

export class LiveScene {
  guest!: Guest
  constructor(readonly world: RoostWorld, readonly images: string, readonly disks: readonly GuestDisk[], readonly options: Omit<GuestOptions, 'directory' | 'disks'>) {}

  /** Boots the machine from its disks as they are now, and waits until it writes. */
  async boot(t: Pick<TestContext, 'after'>): Promise<void> {
    this.guest = startGuest(t, { ...this.options, directory: this.world.path('vm'), disks: this.disks })
    await this.guest.line(/GUEST: wrote/)
  }
  args(...more: readonly string[]): string[] { return ['backup', '--vm', this.guest.qmp, '--fleece-dir', this.world.directory, '--source', 'vm', ...more] }
  /** A backup that must succeed, and after which only the bitmaps that it names are in QEMU. */
  async backUp(...more: readonly string[]): Promise<LiveBackup> {
    const result = await this.world.run([...this.args(...more), '--json'])
    assert.equal(result.code, 0, `${result.stdout}\n${result.stderr}`)
    const backup = readBackup(result)
    await this.assertClean(await this.bitmapsOf(backup.id))
    return backup
  }
  /** One that must fail, leaving nothing but what was there before. */
  async failToBackUp(...more: readonly string[]): Promise<{ code: string; message: string; exit: number | null }> {
    const before = (await this.guest.traces()).bitmaps
    const result = await this.world.run([...this.args(...more), '--json'])
    assert.notEqual(result.code, 0, result.stdout)
    await this.assertClean(before)
    const error = jsonLines(result.stdout).find(({ type }) => type === 'error')
    return { code: error?.['code'] as string, message: error?.['message'] as string, exit: result.code }
  }
  async assertClean(bitmaps: readonly string[]): Promise<void> {
    assert.deepEqual(await this.guest.traces(), { nodes: [], exports: [], bitmaps: [...bitmaps].sort(), devices: this.disks.map((_disk, at) => `node${at}`) })
    await assert.rejects(this.guest.command('nbd-server-stop'), /not running/)
    const { status } = await this.guest.command('query-status') as { status: string }
    assert.equal(status, 'running')
  }
  /** Starts a backup that takes its time over reading, and waits until it does. */
  async startSlowBackup(...more: readonly string[]): Promise<SlowBackup> {
    const child = this.world.start([...this.args('--limit-upload', '2M', ...more), '--json'], 'pipe')
    const slow = new SlowBackup(child)
    await slow.reading()
    await this.eventually('the export', async () => (await this.guest.traces()).exports.length === this.disks.length)
    return slow
  }
  /** What a broken run leaves is what the next one finds: it must read what changed (or say why it reads all) and be right. */
  async assertNextIsRight(read: 'full' | 'incremental', because?: RegExp): Promise<void> {
    const written = Number(await this.guest.shell('wc -l < /data/manifest'))
    const next = await this.backUp()
    const [disk] = next.moment.disks
    assert.equal(disk!.read, read, disk!.because ?? '')
    if (because !== undefined) assert.match(disk!.because!, because)
    assert.ok((await this.check(next.id)).files >= written)
    // Nothing was missed: the audit reads everything that the map calls unchanged.
    const audited = await this.backUp('--audit', '100')
    const { disks } = await this.description(audited.id) as { disks: { auditMismatches: number; read: string }[] }
    assert.deepEqual(disks.map(({ auditMismatches, read: how }) => [how, auditMismatches]), this.disks.map(() => ['incremental', 0]))
  }
  /** Private directories of fleeces. */
  fleeces(): string[] { return readdirSync(this.world.directory).filter((name) => name.startsWith('roost-vm-')) }
  async isClean(bitmaps: readonly string[]): Promise<boolean> {
    const traces = await this.guest.traces()
    return traces.nodes.length === 0 && traces.exports.length === 0 && traces.bitmaps.join() === [...bitmaps].sort().join() && this.fleeces().length === 0
  }
  /** Waits for what a process that outlives another one does. */
  async eventually(what: string, holds: () => Promise<boolean>, ms = 60_000): Promise<void> {
    const end = performance.now() + ms
    while (!await holds()) {
      if (performance.now() > end) throw new Error(`${what} did not come about: ${JSON.stringify(await this.guest.traces())}`)
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  /** The bitmaps that a snapshot names. */
  async bitmapsOf(id: string): Promise<string[]> {
    const machine = (await this.description(id))['machine'] as { disks: { bitmap: string }[] }
    return machine.disks.map(({ bitmap }) => bitmap)
  }
  async description(id: string): Promise<Record<string, unknown>> {
    const shown = await this.world.json(['snapshot', 'show', id])
    const record = shown.find(({ type }) => type === 'snapshot')
    return record!['description'] as Record<string, unknown>
  }
  /** Restores a disk of a snapshot to a raw file and proves its ext4. */
  async restore(id: string, disk: string): Promise<string> {
    const path = this.world.path(`${disk}.restored`)
    rmSync(path, { force: true })
    await this.world.ok(['restore', `${id}:${disk}`, '--to-file', path])
    return path
  }
  async check(id: string, disk = 'vda', offset: number = BOOT_FS_BYTES): Promise<FsState> {
    const scratch = this.world.path('scratch')
    rmSync(scratch, { recursive: true, force: true })
    mkdirSync(scratch)
    const state = checkFileSystem(await this.restore(id, disk), offset, scratch)
    assert.deepEqual(state.bad, [], 'every file that the guest had fsynced is whole')
    return state
  }
  /** A new machine boots from the restored image alone, and finds its files whole. */
  async bootsByItself(t: Pick<TestContext, 'after'>, id: string): Promise<void> {
    const path = await this.restore(id, 'vda')
    const second = startGuest(t, { directory: this.world.path('second'), name: 'second', disks: [{ path, format: 'raw' }], agent: false })
    await second.line(/GUEST: VERIFY/, { also: true })
    assert.ok(second.lines.includes('GUEST: VERIFY OK'), second.lines.join('\n'))
    await second.writesOn()
    await second.kill()
  }
}
export class SlowBackup {
  #stdout = ''
  #stderr = ''
  readonly ended: Promise<CommandResult>
  constructor(readonly child: ChildProcess) {
    child.stdout!.on('data', (bytes: Buffer) => { this.#stdout += bytes.toString('latin1') })
    child.stderr!.on('data', (bytes: Buffer) => { this.#stderr += bytes.toString() })
    // Not `close`: the watchdog has the pipe of stderr as well.
    this.ended = new Promise((resolve) => { child.once('exit', (code, signal) => setImmediate(() => { resolve({ code, signal, stdout: this.#stdout, stderr: this.#stderr }) })) })
  }
  get stderr(): string { return this.#stderr }
  async reading(): Promise<void> {
    for (const end = performance.now() + 60_000; !this.#stdout.includes('"type":"moment"');) {
      if (this.child.exitCode !== null || performance.now() > end) throw new Error(`it does not come to reading: ${this.#stdout}\n${this.#stderr}`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
}
export function readBackup(result: CommandResult): LiveBackup {
  const lines = jsonLines(result.stdout)
  const snapshot = lines.find(({ type }) => type === 'snapshot')!
  return { id: snapshot['id'] as string, statistics: snapshot['statistics'] as Record<string, number>, lines, moment: lines.find(({ type }) => type === 'moment') as unknown as MomentLine }
}

export interface SceneOptions extends Omit<GuestOptions, 'directory' | 'disks'> {
  readonly images: string
  /** Default: one qcow2 that boots. */
  readonly formats?: readonly ('qcow2' | 'raw')[]
  /** Of all disks, or of each; default virtio-blk-pci. */
  readonly device?: string | readonly string[]
}
/** A server and a guest that writes; both gone when the test ends. The first disk boots, a second one holds data. */
export async function openScene(t: TestContext, { images, formats = ['qcow2'], device, ...options }: SceneOptions): Promise<LiveScene> {
  const world = await openWorld(t)
  mkdirSync(world.path('vm'))
  const disks = formats.map((format, at): GuestDisk => ({ ...newDisk(images, at === 0 ? 'boot.raw' : 'data.raw', join(world.path('vm'), `disk${at}.${format}`), format),
    ...(device === undefined ? {} : { device: typeof device === 'string' ? device : device[at]! }) }))
  const scene = new LiveScene(world, images, disks, options)
  await scene.boot(t)
  return scene
}
