/** Extents of any content, in order and without gaps. */
import { ImageTreeReader } from '../image/image-tree.js'
import { listExtents, type PlacedExtent } from '../tree/content-reader.js'
import type { Content } from '../tree/entry.js'
import type { NodeSource } from '../upload/chunk-sink.js'

/** @throws {RoostError} TREE_MALFORMED, or what `nodes` throws */
export async function* contentExtents(nodes: NodeSource, content: Content): AsyncGenerator<PlacedExtent> {
  if (content.kind === 'image') yield* new ImageTreeReader(nodes, content).extents(0, content.bytes)
  else yield* listExtents(nodes, content)
}
