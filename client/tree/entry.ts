/** What a directory lists: one entry per name, with everything needed to make it again. */
import type { ChunkId } from '../../src/core/ids.js'

export const ENTRY_TYPES = {
  file: 1, directory: 2, symlink: 3, fifo: 4, characterDevice: 5, blockDevice: 6, socket: 7, image: 8,
} as const
export type EntryType = (typeof ENTRY_TYPES)[keyof typeof ENTRY_TYPES]

/** A run of content: chunk `id`, or a hole (zeroes that are not stored) when id is undefined. */
export interface Extent { readonly bytes: number; readonly id: ChunkId | undefined }

/** Where a file's or image's bytes are.
 *  `extents`: few, listed in the directory node itself. `list`: a tree of list nodes over content-defined chunks.
 *  `image`: a fixed fan-out tree over aligned chunks of `chunkBytes`. root undefined = all hole. */
export type Content =
  | { readonly kind: 'extents'; readonly bytes: number; readonly extents: readonly Extent[] }
  | { readonly kind: 'list'; readonly bytes: number; readonly root: ChunkId }
  | { readonly kind: 'image'; readonly bytes: number; readonly chunkBytes: number; readonly root: ChunkId | undefined }

export interface Xattr { readonly name: Buffer; readonly value: Buffer }

export interface Entry {
  /** The exact bytes; never '/' or NUL, never empty, '.' or '..'. At most 255 bytes. */
  readonly name: Buffer
  readonly type: EntryType
  /** The low 12 bits of st_mode. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Names of owner and group where the source knew them, else ''. */
  readonly user: string
  readonly group: string
  readonly mtimeNs: bigint
  /** With size, mtime and inode: tells an unchanged file without reading it. */
  readonly ctimeNs: bigint
  readonly inode: bigint
  readonly device: bigint
  readonly linkCount: number
  /** POSIX ACLs are the xattrs system.posix_acl_access and system.posix_acl_default. Sorted by name. */
  readonly xattrs: readonly Xattr[]
  /** Files and images. */
  readonly content?: Content
  /** Directories: their directory or directory-index node. */
  readonly subtree?: ChunkId
  readonly symlinkTarget?: Buffer
  /** Devices. */
  readonly deviceMajor?: number
  readonly deviceMinor?: number
}
