/** An image file as the readers of images take it, with changes over it that the file does not have. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import type { TestContext } from 'node:test'
import type { ReadPiece } from '../../client/nbd/image-reader.js'
import type { ByteSource } from '../../client/nbd/read-range.js'

export class FileSource implements ByteSource {
  readonly bytes: number
  readonly #fd: number
  /** Bytes by their place. */
  readonly changes = new Map<number, number>()
  reads = 0
  constructor(t: TestContext, path: string) {
    this.#fd = openSync(path, 'r')
    this.bytes = fstatSync(this.#fd).size
    t.after(() => { closeSync(this.#fd) })
  }
  async read(offset: number, bytes: number): Promise<ReadPiece[]> {
    if (!(offset >= 0 && bytes >= 0 && offset + bytes <= this.bytes)) throw new Error(`read of ${bytes} at ${offset}: not within the image`)
    this.reads++
    const data = Buffer.alloc(bytes)
    for (let done = 0; done < bytes;) done += readSync(this.#fd, data, done, bytes - done, offset + done)
    for (const [at, byte] of this.changes) if (at >= offset && at < offset + bytes) data[at - offset] = byte
    return [{ offset, bytes, data }]
  }
}
