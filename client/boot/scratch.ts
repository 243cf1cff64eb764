/** The private things of one machine that was started from a snapshot: sockets, and overlays that take what it writes. Gone when it ends. */
import { closeSync, mkdtempSync, openSync, rmSync, unlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isErrno } from '../../src/core/errors.js'
import { Qcow2File } from '../qcow2/qcow2-file.js'

/** A socket's path has 107 bytes at most. */
const SHORT_BYTES_MAX = 80

export class Scratch {
  readonly #sockets: string
  readonly #overlays: string
  readonly #files: string[] = []
  /** `directory`: where overlays go, which grow with what the machine writes. Sockets are where their paths are short. Both mode 0700. */
  constructor(directory: string = tmpdir()) {
    this.#overlays = mkdtempSync(join(directory, 'roost-overlay-'))
    try {
      this.#sockets = mkdtempSync(join(Buffer.byteLength(tmpdir()) > SHORT_BYTES_MAX ? '/tmp' : tmpdir(), 'roost-boot-'))
    } catch (error) {
      rmSync(this.#overlays, { recursive: true, force: true })
      throw error
    }
  }
  socket(name: string): string { return join(this.#sockets, name) }
  /** An empty overlay of a disk; its backing file is for QEMU to be told. */
  overlay(name: string, diskBytes: number): string {
    const path = join(this.#overlays, name)
    makeEmptyQcow2(path, diskBytes)
    this.#files.push(path)
    return path
  }
  /** QEMU has them open: without their names they are gone with it, whatever becomes of us. */
  unlinkOverlays(): void {
    for (const path of this.#files.splice(0)) {
      try {
        unlinkSync(path)
      } catch (error) {
        if (!isErrno(error, 'ENOENT')) throw error
      }
    }
    rmSync(this.#overlays, { recursive: true, force: true })
  }
  remove(): void { for (const path of [this.#sockets, this.#overlays]) rmSync(path, { recursive: true, force: true }) }
}
/** @throws errno exceptions: EEXIST where something is */
export function makeEmptyQcow2(path: string, diskBytes: number): void {
  const fd = openSync(path, 'wx', 0o600)
  try { new Qcow2File(fd, diskBytes).finish() } finally { closeSync(fd) }
}
