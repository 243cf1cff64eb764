/** Files of several names that were read already, so that their other names need not be. */
import type { BigIntStats } from 'node:fs'
import type { Content, Xattr } from '../tree/entry.js'

/** Some 2 KiB each at the very most (16 extents), 200 bytes as a rule. */
const FILES_MAX = 8_192

interface LinkedFile { readonly content: Content; readonly xattrs: readonly Xattr[] }
interface Remembered extends LinkedFile { readonly size: bigint; readonly mtimeNs: bigint; readonly ctimeNs: bigint }

/** Keeps the most recently used; a forgotten file is just read again. */
export class LinkedFiles {
  readonly #files = new Map<string, Remembered>()
  constructor(readonly filesMax = FILES_MAX) {}

  /** What was read under another name, if the file is still as it was. */
  find(stat: BigIntStats): LinkedFile | undefined {
    if (stat.nlink < 2n) return undefined
    const key = keyOf(stat)
    const file = this.#files.get(key)
    if (file === undefined) return undefined
    this.#files.delete(key)
    if (file.size !== stat.size || file.mtimeNs !== stat.mtimeNs || file.ctimeNs !== stat.ctimeNs) return undefined
    this.#files.set(key, file)
    return file
  }
  remember(stat: BigIntStats, { content, xattrs }: LinkedFile): void {
    if (stat.nlink < 2n || xattrs.some(({ value }) => value.byteLength > 1_024)) return
    if (this.#files.size >= this.filesMax) this.#files.delete(this.#files.keys().next().value!)
    this.#files.set(keyOf(stat), { content, xattrs, size: stat.size, mtimeNs: stat.mtimeNs, ctimeNs: stat.ctimeNs })
  }
}

const keyOf = (stat: BigIntStats): string => `${stat.dev}:${stat.ino}`
