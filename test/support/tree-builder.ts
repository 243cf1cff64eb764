/** Hand-made trees in a MemoryRepository: entries with defaults, directories of them, snapshots. */
import { CHUNK_KINDS, type ChunkId, type ChunkKind } from '../../src/core/ids.js'
import type { SignedSnapshot } from '../../src/core/messages.js'
import { ListContentWriter } from '../../client/tree/content-writer.js'
import { DirectoryWriter } from '../../client/tree/directory-writer.js'
import { ENTRY_TYPES, type Content, type Entry } from '../../client/tree/entry.js'
import type { ChunkSink } from '../../client/upload/chunk-sink.js'
import type { MemoryRepository } from './memory-repository.js'

type Extras = Partial<Omit<Entry, 'name'>>
const UID = process.getuid?.() ?? 0
const GID = process.getgid?.() ?? 0

export class TreeBuilder {
  #inodes = 100n
  readonly sink: ChunkSink
  constructor(readonly repository: MemoryRepository) {
    const unused = (): never => { throw new Error('hand-made trees put whole chunks') }
    this.sink = { space: unused, take: unused, put: (bytes: Uint8Array, kind: ChunkKind) => repository.put(bytes, kind) }
  }
  data(bytes: Uint8Array | string): ChunkId { return this.repository.put(Buffer.from(bytes as string), CHUNK_KINDS.data) }

  /** An entry of `type` that the running user may own. */
  entry(name: string | Buffer, type: Entry['type'], extras: Extras = {}): Entry {
    return {
      name: Buffer.from(name as string), type, mode: 0o644, uid: UID, gid: GID, user: '', group: '', mtimeNs: 1_600_000_000_123_456_789n,
      ctimeNs: 0n, inode: this.#inodes++, device: 1n, linkCount: 1, xattrs: [], ...extras,
    }
  }
  /** `parts`: chunks, or the lengths of holes between them. */
  file(name: string | Buffer, parts: string | readonly (string | Uint8Array | number)[], extras: Extras = {}): Entry {
    return this.entry(name, ENTRY_TYPES.file, { content: this.extents(typeof parts === 'string' ? parts === '' ? [] : [parts] : parts), ...extras })
  }
  extents(parts: readonly (string | Uint8Array | number)[]): Content {
    const extents = parts.map((part) => typeof part === 'number' ? { bytes: part, id: undefined }
      : { bytes: Buffer.from(part as string).byteLength, id: this.data(part) })
    return { kind: 'extents', bytes: extents.reduce((sum, { bytes }) => sum + bytes, 0), extents }
  }
  async list(parts: readonly (string | Uint8Array | number)[]): Promise<Content> {
    const writer = new ListContentWriter(this.sink)
    for (const part of parts) await (typeof part === 'number' ? writer.add(undefined, part) : writer.add(this.data(part), Buffer.from(part as string).byteLength))
    return await writer.finish()
  }
  async directory(name: string | Buffer, entries: readonly Entry[], extras: Extras = {}): Promise<Entry> {
    return this.entry(name, ENTRY_TYPES.directory, { mode: 0o755, subtree: await this.root(entries), ...extras })
  }
  /** The node of a directory that lists `entries`, in any order. */
  async root(entries: readonly Entry[]): Promise<ChunkId> {
    const writer = new DirectoryWriter(this.sink)
    for (const entry of [...entries].sort((a, b) => a.name.compare(b.name))) await writer.add(entry)
    return await writer.finish()
  }
  async snapshot(entries: readonly Entry[], fields: Parameters<MemoryRepository['addSnapshot']>[1] = {}): Promise<SignedSnapshot> {
    return this.repository.addSnapshot(await this.root(entries), fields)
  }
}
