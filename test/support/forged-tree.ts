/** Trees that no source makes: entries and nodes with their bytes exchanged after encoding, pushed over the real protocol. */
import { CHUNK_KINDS, type ChunkId, type ChunkKind } from '../../src/core/ids.js'
import { decodeNode } from '../../src/core/node-format.js'
import { LeafBuilder } from '../../client/tree/directory-node.js'
import type { Entry } from '../../client/tree/entry.js'
import type { MemoryRepository } from './memory-repository.js'
import type { PushSession } from './real-server.js'
import { TreeBuilder } from './tree-builder.js'

/** TreeBuilder needs no more of a repository than to put chunks. */
export function treeOver(push: PushSession): TreeBuilder {
  return new TreeBuilder({ put: (bytes: Uint8Array, kind: ChunkKind): ChunkId => push.put(bytes, kind) } as unknown as MemoryRepository)
}
/** One leaf of these entries in this order. */
export function leafOf(entries: readonly Entry[]): Buffer {
  const builder = new LeafBuilder()
  for (const entry of entries) builder.add(entry)
  return builder.finish()
}
/** The node with another body; its references stay. */
export function withBody(node: Buffer, change: (body: Buffer) => Buffer): Buffer {
  const { body } = decodeNode(node)
  return Buffer.concat([node.subarray(0, node.byteLength - body.byteLength), change(Buffer.from(body))])
}
/** Every name `from` becomes `to`, with its length. */
export function renamed(node: Buffer, from: string, to: string | Buffer): Buffer {
  const before = lengthAndName(Buffer.from(from)), after = lengthAndName(Buffer.from(to as string))
  return withBody(node, (body) => {
    const at = body.indexOf(before)
    if (at < 0) throw new Error(`no entry is named ${from}`)
    return Buffer.concat([body.subarray(0, at), after, body.subarray(at + before.byteLength)])
  })
}
const lengthAndName = (name: Buffer): Buffer => Buffer.concat([Buffer.from([name.byteLength]), name])
export const putNode = (push: PushSession, node: Buffer): ChunkId => push.put(node, CHUNK_KINDS.node)
