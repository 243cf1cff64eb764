/** A local (or mounted) folder as a target.
 *
 *  Layout: objects at their keys, `+tmp/` for files being written, `+roost-store` as the marker. '+' is illegal in keys,
 *  so no object can meet those two names.
 *
 *  put, in this order (docs/durability.md): temp file 0600 → all bytes → length proven → fsync → link to the final name
 *  (which, unlike rename, refuses an existing one; rename where the file system has no links, and for `replace`) →
 *  fsync of the directory → the temp name goes. An immutable file of the caller on the same file system is linked at once.
 *
 *  Absence is believed only while the marker with this store's id is there: an unmounted disk leaves an empty folder
 *  behind, and an empty folder must not look like a repository without packs.
 */
import * as fs from 'node:fs'
import { constants, promises as files } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { Readable } from 'node:stream'
import { assert } from '../core/assert.js'
import { systemClock, type Clock } from '../core/clock.js'
import { RoostError, isErrno } from '../core/errors.js'
import { MiB } from '../core/limits.js'
import { systemRandom, type Random } from '../core/random.js'
import { readBody } from './body.js'
import { nodeFileEffects, type FileEffects } from './file-effects.js'
import { toStoreError } from './file-error.js'
import { deleteOneByOne, rangesOneByOne } from './one-by-one.js'
import { isKeySegment, requireObjectKey, requirePrefix } from './object-key.js'
import type { ByteRange, Call, ObjectFacts, ObjectKey, ObjectStore, PutOptions, ReplayableBody } from './object-store.js'

export interface FileStoreOptions {
  readonly directory: string
  /** Default true: an unmarked folder becomes a new store. False where a store must be there already, so that an
   *  unmounted disk is found out at start. */
  readonly create?: boolean
  readonly clock?: Clock
  readonly random?: Random
  readonly effects?: FileEffects
}

const MARKER_NAME = '+roost-store'
const TEMP_NAME = '+tmp'
const DIRECTORY_MODE = 0o700
const OBJECT_MODE = 0o600
/** A temp file untouched for this long belongs to no running put, not even one of another process on this folder. */
const TEMP_AGE_MS_MAX = 3600 * 1000
/** Directories remembered as durable; a fan-out of 256 for a dozen repositories. */
const DURABLE_DIRECTORIES_MAX = 4096
const MARKER_BYTES_MAX = 256
const STREAM_BYTES = 1 * MiB
/** Answers of file systems that cannot link (here, or across two of them). */
const LINK_IMPOSSIBLE: readonly string[] = ['EXDEV', 'EPERM', 'EMLINK', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EACCES']

/** Opens a folder as a store, and removes what crashed puts left in it.
 *
 *  @throws {RoostError} STORE_UNAVAILABLE when the folder or (with `create: false`) its marker is not there; STORE_REFUSED
 */
export async function openFileStore(options: FileStoreOptions): Promise<ObjectStore> {
  const { clock = systemClock, random = systemRandom, effects = nodeFileEffects, create = true } = options
  const root = resolve(options.directory)
  try {
    if (create) await createRoot(root, random, effects)
    const markerId = await readMarker(root)
    if (markerId === undefined) throw vanished(root)
    await removeLeftovers(root, clock, effects)
    return new FileStore(root, markerId, random, effects)
  } catch (error) {
    if (isErrno(error, 'ENOENT')) throw vanished(root, error)
    throw toStoreError(error, `file:${root}`)
  }
}

class FileStore implements ObjectStore {
  readonly description: string
  readonly #durableDirectories = new Set<string>()
  constructor(readonly root: string, readonly markerId: string, readonly random: Random, readonly effects: FileEffects) {
    this.description = `file:${root}`
  }

  async put(key: ObjectKey, body: ReplayableBody, options: PutOptions = {}): Promise<void> {
    await this.#translated(async () => {
      requireObjectKey(key)
      options.signal?.throwIfAborted()
      await this.#requireRoot()
      const path = this.#path(key)
      if (options.replace !== true && await this.#settleExisting(key, body, path)) return
      await this.#ensureDirectory(dirname(path))
      if (options.replace === true) await this.#copyIn(key, body, options, (temp) => this.effects.rename(temp, path))
      else if (!await this.#linkCallersFile(key, body, path))
        await this.#copyIn(key, body, options, (temp) => this.#publishNew(key, body, temp, path))
      await this.effects.fsyncDirectory(dirname(path))
    })
  }

  async getRange(key: ObjectKey, range: ByteRange, call: Call = {}): Promise<Buffer | undefined> {
    assert(Number.isSafeInteger(range.offset) && range.offset >= 0 && Number.isSafeInteger(range.bytes) && range.bytes >= 0,
      'a range is two non-negative integers')
    return await this.#translated(async () => {
      const opened = await this.#openForReading(key, call)
      if (opened === undefined) return undefined
      try {
        if (range.offset + range.bytes > opened.bytes) throw pastEnd(key, range, opened.bytes)
        const into = Buffer.allocUnsafe(range.bytes)
        for (let done = 0; done < into.byteLength;) {
          call.signal?.throwIfAborted()
          const { bytesRead } = await opened.handle.read(into, done, into.byteLength - done, range.offset + done)
          if (bytesRead === 0) throw pastEnd(key, range, range.offset + done)
          done += bytesRead
        }
        return into
      } finally { await opened.handle.close() }
    })
  }

  async get(key: ObjectKey, call: Call = {}): Promise<Readable | undefined> {
    return await this.#translated(async () => {
      const opened = await this.#openForReading(key, call)
      if (opened === undefined) return undefined
      return this.#stream(key, opened, call.signal)
    })
  }

  async head(key: ObjectKey, call: Call = {}): Promise<ObjectFacts | undefined> {
    return await this.#translated(async () => {
      requireObjectKey(key)
      call.signal?.throwIfAborted()
      const bytes = await this.#bytesAt(this.#path(key))
      return bytes === undefined ? undefined : { key, bytes }
    })
  }

  async *list(prefix: string, call: Call = {}): AsyncGenerator<ObjectFacts, void, undefined> {
    requirePrefix(prefix)
    yield* this.#walk(prefix, call)
  }

  async delete(key: ObjectKey, call: Call = {}): Promise<void> {
    await this.#translated(async () => {
      requireObjectKey(key)
      call.signal?.throwIfAborted()
      const path = this.#path(key)
      await this.effects.unlink(path).catch(ignoreMissing)
      await this.#requireRoot()
      // Also after "absent": an earlier attempt may have removed the name without making that durable.
      await this.effects.fsyncDirectory(dirname(path)).catch(ignoreMissing)
    })
  }

  getRanges(key: ObjectKey, ranges: readonly ByteRange[], call: Call = {}): Promise<Buffer[] | undefined> {
    return rangesOneByOne(this, key, ranges, call)
  }
  deleteMany(keys: readonly ObjectKey[], call: Call = {}): Promise<void> { return deleteOneByOne(this, keys, call) }
  async close(): Promise<void> { /* Holds nothing open. */ }

  #path(key: ObjectKey): string { return join(this.root, key) }

  /** @throws {RoostError} STORE_UNAVAILABLE when the folder is not the one that was opened. */
  async #requireRoot(): Promise<void> {
    if (await readMarker(this.root) !== this.markerId) throw vanished(this.root)
  }

  async #translated<T>(work: () => Promise<T>): Promise<T> {
    try { return await work() } catch (error) {
      if (isErrno(error, 'ENOENT')) this.#durableDirectories.clear() // somebody removed folders below us
      throw toStoreError(error, this.description)
    }
  }

  /** Bytes of the object, or undefined when it is proven absent. */
  async #bytesAt(path: string): Promise<number | undefined> {
    const facts = await files.stat(path).catch(ignoreMissing)
    if (facts?.isFile() === true) return facts.size
    await this.#requireRoot()
    return undefined
  }

  /** True when the key is there already with as many bytes: then its name is made durable and the put is done. */
  async #settleExisting(key: ObjectKey, body: ReplayableBody, path: string): Promise<boolean> {
    const bytes = await this.#bytesAt(path)
    if (bytes === undefined) return false
    if (bytes !== body.bytes) throw new RoostError('STORE_REFUSED',
      `${key} exists on ${this.description} with ${bytes} bytes, not ${body.bytes}; it was not overwritten. Run a check of this target.`,
      { key, bytes, offeredBytes: body.bytes })
    await this.#ensureDirectory(dirname(path))
    await this.effects.fsyncDirectory(dirname(path))
    return true
  }

  /** Creates what is missing, and makes every name on the way durable: an earlier run may have created it and died
   *  before it was. */
  async #ensureDirectory(path: string): Promise<void> {
    if (path === this.root || this.#durableDirectories.has(path)) return
    const parent = dirname(path)
    await this.#ensureDirectory(parent)
    await this.effects.mkdir(path, DIRECTORY_MODE).catch(ignoreExisting)
    await this.effects.fsyncDirectory(parent)
    if (this.#durableDirectories.size >= DURABLE_DIRECTORIES_MAX) this.#durableDirectories.clear()
    this.#durableDirectories.add(path)
  }

  async #linkCallersFile(key: ObjectKey, body: ReplayableBody, path: string): Promise<boolean> {
    if (body.file === undefined) return false
    const facts = await files.stat(body.file).catch(ignoreMissing)
    if (facts?.size !== body.bytes) throw new RoostError('STORE_REFUSED',
      `The file offered as ${key} has not the promised ${body.bytes} bytes; nothing was stored.`, { key, bytes: body.bytes })
    try {
      await this.effects.link(body.file, path)
      return true
    } catch (error) {
      if (isErrno(error, 'EEXIST')) return await this.#settleExisting(key, body, path)
      if (isLinkImpossible(error)) return false
      throw error
    }
  }

  async #copyIn(key: ObjectKey, body: ReplayableBody, call: Call, publish: (temp: string) => Promise<void>): Promise<void> {
    const temp = join(this.root, TEMP_NAME, this.random.bytes(16).toString('hex'))
    const fd = await this.effects.open(temp, { flags: 'wx', mode: OBJECT_MODE })
    let failed = true
    try {
      try {
        for await (const bytes of readBody(key, body, call.signal)) await this.effects.write(fd, bytes, null)
        await this.effects.fsync(fd)
      } finally { await this.effects.close(fd) }
      call.signal?.throwIfAborted()
      await publish(temp)
      failed = false
    } finally {
      // After a failure the first error is the one to tell; a temp name that stays is removed by a later open.
      if (failed) await this.effects.unlink(temp).catch(() => undefined)
    }
  }

  async #publishNew(key: ObjectKey, body: ReplayableBody, temp: string, path: string): Promise<void> {
    try {
      await this.effects.link(temp, path)
    } catch (error) {
      if (isErrno(error, 'EEXIST')) {
        if (!await this.#settleExisting(key, body, path)) throw await this.#displaced(key, path, error)
      } else if (isLinkImpossible(error)) {
        // No links here. Between this look and the rename another put of the key may land: with the same bytes, as
        // keys are content-derived.
        if (!await this.#settleExisting(key, body, path)) { await this.effects.rename(temp, path); return }
      } else throw error
    }
    await this.effects.unlink(temp)
  }

  /** The name was taken, yet there is no object: something else stands there, or a delete ran beside this put. */
  async #displaced(key: ObjectKey, path: string, cause: unknown): Promise<RoostError> {
    if (await files.lstat(path).catch(ignoreMissing) === undefined) return new RoostError('STORE_UNAVAILABLE',
      `${key} was deleted from ${this.description} while it was being stored.`, { key }, { cause })
    return new RoostError('STORE_REFUSED',
      `Something that is no object stands at ${path}; move the foreign folder or link away.`, { key }, { cause })
  }

  async #openForReading(key: ObjectKey, call: Call): Promise<{ handle: files.FileHandle; bytes: number } | undefined> {
    requireObjectKey(key)
    call.signal?.throwIfAborted()
    const handle = await files.open(this.#path(key), constants.O_RDONLY).catch(ignoreMissing)
    if (handle === undefined) {
      await this.#requireRoot()
      return undefined
    }
    try {
      const facts = await handle.stat()
      call.signal?.throwIfAborted()
      if (facts.isFile()) return { handle, bytes: facts.size }
    } catch (error) {
      await handle.close()
      throw error
    }
    await handle.close()
    await this.#requireRoot()
    return undefined
  }

  #stream(key: ObjectKey, opened: { handle: files.FileHandle; bytes: number }, signal: AbortSignal | undefined): Readable {
    const { description } = this
    const stream = Readable.from(readFileParts(key, opened, description), { objectMode: false, highWaterMark: STREAM_BYTES })
    const onAbort = (): void => { stream.destroy(signal!.reason as Error) }
    signal?.addEventListener('abort', onAbort, { once: true })
    stream.once('close', () => {
      signal?.removeEventListener('abort', onAbort)
      void opened.handle.close().catch(() => undefined) // opened for reading: closing loses nothing
    })
    return stream
  }

  /** Depth first. A folder sorts as its name with the slash, so that whole keys ascend. Holds the names of one folder
   *  a level. */
  async *#walk(prefix: string, call: Call): AsyncGenerator<ObjectFacts, void, undefined> {
    const entries = await this.#translated(async () => {
      call.signal?.throwIfAborted()
      const found = await files.readdir(join(this.root, prefix), { withFileTypes: true }).catch(ignoreMissing)
      if (found === undefined) await this.#requireRoot()
      return found ?? []
    })
    const names = entries.filter((entry) => isKeySegment(entry.name))
      .map((entry) => entry.isDirectory() ? `${entry.name}/` : entry.name)
      .sort(byBytes)
    for (const name of names) {
      const key = prefix + name
      if (name.endsWith('/')) yield* this.#walk(key, call)
      else {
        call.signal?.throwIfAborted()
        const facts = await this.#translated(() => files.stat(this.#path(key)).catch(ignoreMissing))
        if (facts?.isFile() === true) yield { key, bytes: facts.size } // else: deleted meanwhile, or nothing of ours
      }
    }
  }
}

async function* readFileParts(key: ObjectKey, opened: { handle: files.FileHandle; bytes: number }, place: string): AsyncGenerator<Buffer> {
  for (let at = 0; at < opened.bytes;) {
    const part = Buffer.allocUnsafe(Math.min(STREAM_BYTES, opened.bytes - at))
    let bytesRead: number
    try { bytesRead = (await opened.handle.read(part, 0, part.byteLength, at)).bytesRead } catch (error) { throw toStoreError(error, place) }
    if (bytesRead === 0) throw pastEnd(key, { offset: at, bytes: part.byteLength }, at)
    at += bytesRead
    yield part.subarray(0, bytesRead)
  }
}

async function createRoot(root: string, random: Random, effects: FileEffects): Promise<void> {
  await createDirectory(root, effects)
  await createDirectory(join(root, TEMP_NAME), effects)
  const marker = join(root, MARKER_NAME)
  if (await readMarker(root) === undefined) {
    const storeId = random.bytes(16).toString('hex')
    const temp = join(root, TEMP_NAME, storeId)
    const fd = await effects.open(temp, { flags: 'wx', mode: OBJECT_MODE })
    try {
      await effects.write(fd, Buffer.from(`${JSON.stringify({ format: 1, storeId })}\n`), null)
      await effects.fsync(fd)
    } finally { await effects.close(fd) }
    // A link, so that two processes that create one store at once agree on its id.
    try { await effects.link(temp, marker) } catch (error) {
      if (isLinkImpossible(error)) await effects.rename(temp, marker)
      else ignoreExisting(error)
    }
    await effects.unlink(temp).catch(ignoreMissing)
  }
  await effects.fsyncDirectory(root)
}

async function createDirectory(path: string, effects: FileEffects): Promise<void> {
  if (fs.existsSync(path)) return
  const parent = dirname(path)
  if (parent !== path) await createDirectory(parent, effects)
  await effects.mkdir(path, DIRECTORY_MODE).catch(ignoreExisting)
  await effects.fsyncDirectory(parent)
}

/** The store's id, or undefined when the folder bears no marker (or is not there). */
async function readMarker(root: string): Promise<string | undefined> {
  const handle = await files.open(join(root, MARKER_NAME), constants.O_RDONLY).catch(ignoreMissing)
  if (handle === undefined) return undefined
  try {
    const bytes = Buffer.alloc(MARKER_BYTES_MAX)
    const { bytesRead } = await handle.read(bytes, 0, MARKER_BYTES_MAX, 0)
    const storeId = /"storeId":"([0-9a-f]{32})"/.exec(bytes.toString('latin1', 0, bytesRead))?.[1]
    if (storeId === undefined) throw new RoostError('STORE_REFUSED',
      `The marker ${join(root, MARKER_NAME)} is damaged; look at the disk, and restore the marker from another copy of this folder.`)
    return storeId
  } finally { await handle.close() }
}

async function removeLeftovers(root: string, clock: Clock, effects: FileEffects): Promise<void> {
  const directory = join(root, TEMP_NAME)
  for (const name of await files.readdir(directory)) {
    const path = join(directory, name)
    const facts = await files.stat(path).catch(ignoreMissing)
    if (facts !== undefined && clock.now() - facts.mtimeMs >= TEMP_AGE_MS_MAX) await effects.unlink(path).catch(ignoreMissing)
  }
}

function isLinkImpossible(error: unknown): boolean {
  return isErrno(error) && LINK_IMPOSSIBLE.includes(error.code ?? '')
}
function byBytes(a: string, b: string): number { return a < b ? -1 : a > b ? 1 : 0 } // keys are ASCII
function ignoreMissing(error: unknown): undefined {
  if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return undefined
  throw error
}
function ignoreExisting(error: unknown): undefined {
  if (isErrno(error, 'EEXIST')) return undefined
  throw error
}
function vanished(root: string, cause?: unknown): RoostError {
  return new RoostError('STORE_UNAVAILABLE',
    `The folder ${root} does not hold the store that belongs there; mount its disk, or correct the target's path.`,
    { directory: root }, { cause })
}
function pastEnd(key: ObjectKey, range: ByteRange, bytes: number): RoostError {
  return new RoostError('OBJECT_TOO_SHORT', `${key} has ${bytes} bytes; ${range.bytes} at ${range.offset} are not all there. Run a check of this target.`,
    { key, bytes, offset: range.offset })
}
