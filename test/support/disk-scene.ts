/** For tests of disks: images, what QEMU reads of them, servers of NBD, and one Roost for a group of tests. */
import assert from 'node:assert/strict'
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, ftruncateSync, mkdirSync, openSync, writeSync } from 'node:fs'
import { connect } from 'node:net'
import { after, type TestContext } from 'node:test'
import { noise } from './odd-tree.js'
import { RoostWorld, hasTool, tool } from './run-roost.js'

const MiB = 1024 * 1024

/** False, or why tests of disks are skipped. */
export function lackOfDiskTools(): string | false {
  const lacking = ['qemu-img', 'qemu-nbd', 'qemu-io', 'nbdkit'].filter((name) => !hasTool(name))
  return lacking.length === 0 ? false : `SKIPPED GROUP: sources of blocks — not installed: ${lacking.join(', ')}`
}

export interface Disk { readonly name: string; readonly imageBytes: number; readonly read: string; readonly reason?: string; readonly dirtyBytes: number; readonly cleanBytes: number
  readonly auditedBytes: number; readonly auditMismatches: number }
export interface Saved { readonly id: string; readonly disks: readonly Disk[]; readonly statistics: Record<string, number>; readonly problems: number }
export const savedOf = (lines: readonly Record<string, unknown>[]): Saved => lines.find((line) => line['type'] === 'snapshot') as unknown as Saved
export async function backup(world: RoostWorld, ...args: readonly string[]): Promise<Saved> { return savedOf(await world.json(['backup', ...args])) }

/** One server for all tests of a group, a folder for each. */
class SharedWorld extends RoostWorld {
  #folder: string | undefined
  enter(folder: string): void {
    this.#folder = undefined
    for (const part of ['home', 'tmp']) mkdirSync(this.path(folder, part), { recursive: true })
    this.environment['TMPDIR'] = this.path(folder, 'tmp')
    this.#folder = folder
  }
  override path(...parts: readonly string[]): string { return this.#folder === undefined ? super.path(...parts) : super.path(this.#folder, ...parts) }
}
export function sharedWorld(): () => Promise<RoostWorld> {
  let opening: Promise<SharedWorld> | undefined
  let count = 0
  after(async () => { await (await opening)?.close() })
  return async () => {
    opening ??= (async () => {
      const world = new SharedWorld()
      await world.startServer()
      await world.createRepository()
      return world
    })()
    const world = await opening
    world.enter(`test-${++count}`)
    return world
  }
}

/** Noise here and there in a sparse file. */
export function rawImage(world: RoostWorld, name: string, bytes: number): string {
  const path = world.path(name)
  const fd = openSync(path, 'w')
  ftruncateSync(fd, bytes)
  for (let at = 0; at < bytes; at += 11 * MiB) writeSync(fd, noise(MiB, at + 1), 0, Math.min(MiB, bytes - at), at)
  closeSync(fd)
  return path
}
export const qemuIo = (image: string, ...commands: readonly string[]): void => {
  tool('qemu-io', ['-f', image.endsWith('.qcow2') ? 'qcow2' : 'raw', ...commands.flatMap((command) => ['-c', command]), image])
}
/** Restores one disk of a snapshot and compares it with what QEMU reads of an image. */
export async function assertSame(world: RoostWorld, snapshot: string, image: string, format: string, entry?: string): Promise<void> {
  const path = world.path(`back-${snapshot.slice(0, 8)}-${entry ?? ''}.raw`)
  await world.ok(['restore', entry === undefined ? snapshot : `${snapshot}:/${entry}`, '--to-file', path])
  assert.match(tool('qemu-img', ['compare', '-f', format, '-F', 'raw', image, path]), /identical/)
}
export async function startServer(t: TestContext, command: string, args: readonly string[], socket: string): Promise<ChildProcess> {
  const child = spawn(command, [...args], { stdio: ['ignore', 'ignore', 'pipe'] })
  let errors = ''
  child.stderr!.on('data', (bytes: Buffer) => { errors += bytes.toString() })
  t.after(() => { child.kill('SIGKILL') })
  for (let attempt = 0; attempt < 400; attempt++) {
    const isThere = await new Promise<boolean>((resolve) => {
      const probe = connect(socket, () => { probe.destroy(); resolve(true) })
      probe.on('error', () => { resolve(false) })
    })
    if (isThere) return child
    if (child.exitCode !== null) throw new Error(`${command} ended: ${errors}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
  throw new Error(`${command} does not listen: ${errors}`)
}
