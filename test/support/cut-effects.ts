/** File effects that can be counted, and cut at any of them: the process "dies" there, and every later effect with it.
 *
 *  `before`: the step did not happen. `torn`: half of a write happened (any other step: as `before`). `after`: it
 *  happened, but its caller never heard. loseUnsynced() takes the power too: file bytes that no fsync covered are lost,
 *  and names are as they were in every directory that was not fsynced since.
 */
import * as fs from 'node:fs'
import { dirname, join } from 'node:path'
import { nodeFileEffects, type FileEffects, type FileStep } from '../../src/store/file-effects.js'

export class SimulatedCrash extends Error {
  override readonly name = 'SimulatedCrash'
}
export const CUT_MODES = ['before', 'torn', 'after'] as const
export type CutMode = (typeof CUT_MODES)[number]
/** `step` counts from arm(): the next effect is number 0. */
export interface Cut { readonly step: number; readonly mode: CutMode }

export interface CutEffects extends FileEffects {
  /** Names of the steps since arm(), or since the beginning. */
  readonly steps: readonly FileStep[]
  readonly isDead: boolean
  arm(cut?: Cut): void
  /** Resolves when no effect is under way: what a dead process had begun must not end in the life of the next. */
  settled(): Promise<void>
  /** Closes what the dead process held open, then undoes below `root` what nothing made durable. */
  loseUnsynced(root: string): void
}

/** How far the step goes that is under way: wholly, or half of it. */
type Extent = 'whole' | 'half'

export function cutEffects(inner: FileEffects = nodeFileEffects): CutEffects {
  const steps: FileStep[] = []
  const openDescriptors = new Set<number>()
  const undos: { readonly directory: string; undo(): void }[] = []
  const durableBytes = new Map<number, number>() // by inode, of files written through here
  let cut: Cut | undefined
  let isDead = false
  const underWay = new Set<Promise<unknown>>()

  /** Counts one step, dies before it or says how far it goes. */
  function begin(step: FileStep): { extent: Extent; isLast: boolean } {
    if (isDead) throw new SimulatedCrash('the process is dead')
    const isLast = cut?.step === steps.length
    steps.push(step)
    isDead = isLast
    const mode = isLast ? cut!.mode : 'after'
    if (mode === 'before' || (mode === 'torn' && step !== 'write')) throw new SimulatedCrash(`cut before ${step}`)
    return { extent: mode === 'torn' ? 'half' : 'whole', isLast }
  }
  async function run<T>(step: FileStep, work: (extent: Extent) => Promise<T>): Promise<T> {
    const { extent, isLast } = begin(step)
    const running = work(extent)
    underWay.add(running)
    const result = await running.finally(() => { underWay.delete(running) })
    if (isLast) throw new SimulatedCrash(`cut after ${step}`)
    return result
  }
  function runSync<T>(step: FileStep, work: (extent: Extent) => T): T {
    const { extent, isLast } = begin(step)
    const result = work(extent)
    if (isLast) throw new SimulatedCrash(`cut after ${step}`)
    return result
  }

  /** Remembers how `path` was, before an effect changes that name. */
  function beforeName(path: string, movedFrom?: string): () => void {
    const facts = fs.statSync(path, { throwIfNoEntry: false })
    const bytes = facts?.isFile() === true ? fs.readFileSync(path) : undefined
    const durable = facts === undefined ? undefined : durableBytes.get(facts.ino)
    return () => {
      undos.push({
        directory: dirname(path),
        undo: () => {
          if (movedFrom !== undefined && fs.existsSync(path)) fs.renameSync(path, movedFrom)
          if (bytes !== undefined) {
            fs.writeFileSync(path, bytes, { mode: facts!.mode & 0o777 })
            // The new file may have got the inode of one that was deleted, and is as durable as the one it stands for.
            const { ino } = fs.statSync(path)
            if (durable === undefined) durableBytes.delete(ino)
            else durableBytes.set(ino, durable)
          }
          else if (facts === undefined) fs.rmSync(path, { force: true, recursive: true })
        },
      })
    }
  }
  function noteDirectorySync(path: string): void {
    for (let at = undos.length - 1; at >= 0; at--) if (undos[at]!.directory === path) undos.splice(at, 1)
  }
  function noteSync(fd: number): void {
    const { ino, size } = fs.fstatSync(fd)
    durableBytes.set(ino, size)
  }
  function noteWrite(fd: number): void {
    const { ino } = fs.fstatSync(fd)
    if (!durableBytes.has(ino)) durableBytes.set(ino, 0)
  }
  const halfOf = (bytes: Uint8Array, extent: Extent): Uint8Array =>
    extent === 'half' ? bytes.subarray(0, bytes.byteLength >> 1) : bytes

  return {
    steps,
    get isDead() { return isDead },
    arm: (at) => { cut = at; steps.length = 0; isDead = false },
    settled: async () => { while (underWay.size > 0) await Promise.allSettled(underWay) },
    loseUnsynced: (root) => {
      for (const fd of openDescriptors) fs.closeSync(fd)
      openDescriptors.clear()
      for (const { undo } of undos.splice(0).reverse()) undo()
      for (const name of fs.readdirSync(root, { recursive: true, encoding: 'utf8' })) {
        const facts = fs.lstatSync(join(root, name))
        const bytes = durableBytes.get(facts.ino)
        if (facts.isFile() && bytes !== undefined && bytes < facts.size) fs.truncateSync(join(root, name), bytes)
      }
      durableBytes.clear()
    },

    open: (path, how) => run('open', async () => {
      const note = beforeName(path)
      const fd = await inner.open(path, how)
      if (!fs.fstatSync(fd).isDirectory()) note()
      openDescriptors.add(fd)
      return fd
    }),
    write: (fd, bytes, position) => run('write', async (extent) => {
      noteWrite(fd)
      await inner.write(fd, halfOf(bytes, extent), position)
    }),
    truncate: (fd, bytes) => run('truncate', () => inner.truncate(fd, bytes)),
    fsync: (fd) => run('fsync', async () => { await inner.fsync(fd); noteSync(fd) }),
    close: (fd) => run('close', async () => { openDescriptors.delete(fd); await inner.close(fd) }),
    rename: (from, to) => run('rename', async () => { const note = beforeName(to, from); await inner.rename(from, to); note() }),
    link: (from, to) => run('link', async () => { const note = beforeName(to); await inner.link(from, to); note() }),
    unlink: (path) => run('unlink', async () => { const note = beforeName(path); await inner.unlink(path); note() }),
    mkdir: (path, mode) => run('mkdir', async () => { const note = beforeName(path); await inner.mkdir(path, mode); note() }),
    fsyncDirectory: (path) => run('fsync-directory', async () => { await inner.fsyncDirectory(path); noteDirectorySync(path) }),

    openSync: (path, how) => runSync('open', () => {
      const note = beforeName(path)
      const fd = inner.openSync(path, how)
      note()
      openDescriptors.add(fd)
      return fd
    }),
    writevSync: (fd, parts, position) => {
      runSync('write', (extent) => {
        noteWrite(fd)
        inner.writevSync(fd, extent === 'half' ? [halfOf(Buffer.concat(parts), extent)] : parts, position)
      })
    },
    truncateSync: (fd, bytes) => { runSync('truncate', () => { inner.truncateSync(fd, bytes) }) },
    fsyncSync: (fd) => { runSync('fsync', () => { inner.fsyncSync(fd); noteSync(fd) }) },
    closeSync: (fd) => { runSync('close', () => { openDescriptors.delete(fd); inner.closeSync(fd) }) },
    renameSync: (from, to) => { runSync('rename', () => { const note = beforeName(to, from); inner.renameSync(from, to); note() }) },
    linkSync: (from, to) => { runSync('link', () => { const note = beforeName(to); inner.linkSync(from, to); note() }) },
    unlinkSync: (path) => { runSync('unlink', () => { const note = beforeName(path); inner.unlinkSync(path); note() }) },
    mkdirSync: (path, mode) => { runSync('mkdir', () => { const note = beforeName(path); inner.mkdirSync(path, mode); note() }) },
    fsyncDirectorySync: (path) => { runSync('fsync-directory', () => { inner.fsyncDirectorySync(path); noteDirectorySync(path) }) },
  }
}
