/** Backs up disks as images of aligned chunks (docs/architecture.md): one, or all of a machine, with small files beside them.
 *
 *  Each is an entry of the snapshot's root. Disks are read one after another; each is compared with the parent's of its name.
 */
import { asBuffer } from '../../src/core/bytes.js'
import { RoostError } from '../../src/core/errors.js'
import { CHUNK_KINDS, formatChunkId } from '../../src/core/ids.js'
import { LIMITS } from '../../src/core/limits.js'
import type { ChunkerParameters } from '../../src/core/messages.js'
import { DirectoryReader } from '../tree/directory-reader.js'
import { DirectoryWriter, type NodesByPlace } from '../tree/directory-writer.js'
import { ENTRY_TYPES, type Content, type Entry } from '../tree/entry.js'
import { isEntryName } from '../tree/entry-codec.js'
import type { ScanContext, ScanResult } from '../upload/chunk-sink.js'
import type { AuditConfig } from './audit-sample.js'
import type { BlockSource, SourceFacts } from './block-source.js'
import type { DiskReport } from './disk-report.js'
import { isImageChunkBytes, type ImageContent } from './image-node.js'
import { openBlockSource, type DiskOrigin } from './open-source.js'
import { ownFacts } from './own-facts.js'
import { isDamage, scanDisk, type DiskScanOptions } from './scan-disk.js'

/** Plain values: it is cloned into the scanning thread. */
export interface ImageConfig {
  /** One or more, of different names. */
  readonly disks: readonly DiskConfig[]
  /** Beside them in the snapshot; each of at most one chunk. */
  readonly files?: readonly { readonly name: string; readonly bytes: Uint8Array }[]
  /** Slots that a dirty map calls clean and that are read and compared all the same. */
  readonly audit?: AuditConfig
}
export interface DiskConfig {
  /** What the image is called in the snapshot. */
  readonly name: string
  /** A power of two from 4 KiB; what the parent used, else the repository's default, unless said otherwise. */
  readonly chunkBytes?: number
  readonly from: DiskOrigin
}

/** Entries of the parent's root that are looked at. */
const ENTRIES_LOOKED_AT_MAX = 1_000

/** @throws {RoostError} REQUEST_MALFORMED for names, chunk sizes or paths that cannot be; {ClientError} when a source behind a connection cannot
 *  be read, or answers nonsense; errno exceptions when a file cannot be opened or read */
export async function scanImage(config: ImageConfig, context: ScanContext, parameters: ChunkerParameters): Promise<ScanResult> {
  requireNames(config)
  const parent = await openParent(context)
  const entries: Entry[] = []
  const disks: DiskReport[] = []
  for (const disk of config.disks) {
    const { entry, report } = await scanOne(disk, config, context, parameters, parent)
    entries.push(entry)
    disks.push(report)
  }
  for (const { name, bytes } of config.files ?? [])
    entries.push(entryOf(ENTRY_TYPES.file, name, ownFacts(), await fileContent(asBuffer(bytes), context)))
  context.counters.files += entries.length

  const directory = new DirectoryWriter(context.sink, parent?.directoryNodes)
  for (const entry of entries.sort((a, b) => a.name.compare(b.name))) await directory.add(entry)
  return { root: await directory.finish(), description: { disks } }
}

function requireNames({ disks, files = [] }: ImageConfig): void {
  const names = [...disks, ...files].map(({ name }) => name)
  if (disks.length === 0) throw malformed('There is no disk to back up.')
  if (!names.every((name) => isEntryName(Buffer.from(name)))) throw malformed('The name of an image must be a file name of 1 to 255 bytes.')
  if (new Set(names).size < names.length) throw malformed('Two disks or files of one snapshot have the same name.')
  if (files.some(({ bytes }) => bytes.byteLength > LIMITS.chunkBytesMax)) throw malformed('A file beside disks is longer than a chunk.')
  for (const { chunkBytes } of disks) if (chunkBytes !== undefined) requireChunkBytes(chunkBytes)
}
function requireChunkBytes(chunkBytes: number): void {
  if (!isImageChunkBytes(chunkBytes))
    throw new RoostError('REQUEST_MALFORMED', 'The chunk size of an image is a power of two, from 4 KiB to 4 MiB.', { chunkBytes })
}
const malformed = (message: string): RoostError => new RoostError('REQUEST_MALFORMED', message)

async function scanOne(disk: DiskConfig, config: ImageConfig, context: ScanContext, parameters: ChunkerParameters,
  parent: ParentImages | undefined): Promise<{ entry: Entry; report: DiskReport }> {
  const { name } = disk
  const path = disk.from.kind === 'file' ? Buffer.from(disk.from.path).toString() : name
  context.at(path)
  const source = await openBlockSource(disk.from, context.signal)
  try {
    const named = parent?.images.get(name)
    const found = named ?? (config.disks.length === 1 && parent?.images.size === 1 ? [...parent.images.values()][0] : undefined)
    const chunkBytes = disk.chunkBytes ?? found?.chunkBytes ?? parameters.imageChunkBytes
    const shape = { imageBytes: source.bytes, chunkBytes }
    const mapRefusal = refusalOf(source, context, named, shape)
    const { content, ...result } = await scanDisk({
      name, source, shape, context, audit: config.audit, limit: context.limitRead, mapRefusal,
      usesMap: source.mapParentRoot !== undefined && mapRefusal === undefined,
      parent: found?.chunkBytes === chunkBytes ? { nodes: context.parent!.nodes, content: found } : undefined,
    })
    const message = source.changes()
    if (message !== undefined) context.report({ path, reason: 'changed', message })
    const report = { name, imageBytes: source.bytes, chunkBytes, isDevice: source.isDevice, ...result }
    return { entry: entryOf(ENTRY_TYPES.image, name, source.facts, content), report }
  } finally {
    await source.close()
  }
}
/** Why a dirty map cannot be used; undefined where it can, or where there is none. */
function refusalOf(source: BlockSource, context: ScanContext, parent: ImageContent | undefined, shape: DiskScanOptions['shape']): string | undefined {
  if (source.mapProblem !== undefined) return source.mapProblem
  if (source.mapParentRoot === undefined) return undefined
  if (context.parent === undefined) return 'there is no parent snapshot that its dirty map could be relative to'
  if (formatChunkId(context.parent.root) !== source.mapParentRoot) return 'its dirty map is relative to another snapshot than the parent'
  if (parent === undefined) return 'the parent snapshot does not have it, or cannot be read'
  if (parent.bytes !== shape.imageBytes) return `its length has changed, from ${parent.bytes} to ${shape.imageBytes} bytes`
  if (parent.chunkBytes !== shape.chunkBytes) return `its chunk size has changed, from ${parent.chunkBytes} to ${shape.chunkBytes} bytes`
  return undefined
}

interface ParentImages { readonly images: ReadonlyMap<string, ImageContent>; readonly directoryNodes: NodesByPlace }

async function openParent(context: ScanContext): Promise<ParentImages | undefined> {
  if (context.parent === undefined) return undefined
  const { root, nodes } = context.parent
  try {
    const directory = new DirectoryReader(nodes, root)
    const images = new Map<string, ImageContent>()
    let count = 0
    for await (const { name, type, content } of directory.entries()) {
      if (type === ENTRY_TYPES.image && content?.kind === 'image') images.set(name.toString(), content)
      if (++count >= ENTRIES_LOOKED_AT_MAX) break
    }
    return { images, directoryNodes: directory.nodesRead }
  } catch (error) {
    if (isDamage(error)) return undefined
    throw error
  }
}

async function fileContent(bytes: Buffer, { sink, counters }: ScanContext): Promise<Content> {
  counters.sourceBytes += bytes.byteLength
  if (bytes.byteLength === 0) return { kind: 'extents', bytes: 0, extents: [] }
  const space = await sink.space(bytes.byteLength)
  space.set(bytes)
  return { kind: 'extents', bytes: bytes.byteLength, extents: [{ bytes: bytes.byteLength, id: sink.take(bytes.byteLength, CHUNK_KINDS.data) }] }
}
function entryOf(type: typeof ENTRY_TYPES.image | typeof ENTRY_TYPES.file, name: string, facts: SourceFacts, content: Content): Entry {
  return { ...facts, name: Buffer.from(name), type, linkCount: 1, content }
}
