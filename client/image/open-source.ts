/** One door to all kinds of disks. */
import { openNbdSource } from '../nbd/nbd-source.js'
import type { BlockSource } from './block-source.js'
import { openFileSource } from './file-source.js'

/** Plain values. */
export type DiskOrigin =
  /** A regular file or a block device; a symlink is followed. */
  | { readonly kind: 'file'; readonly path: string | Uint8Array }
  | NbdOrigin
export interface NbdOrigin {
  readonly kind: 'nbd'
  readonly address: NbdSourceAddress
  readonly exportName: string
  readonly dirtyMap?: DirtyMapConfig
}
export type NbdSourceAddress =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number; readonly tls?: NbdClientTls }
/** PEM. `ca`: whom to believe instead of the system's authorities; `cert` and `key`: of our own, for servers that ask who we are. */
export interface NbdClientTls { readonly ca?: string; readonly cert?: string; readonly key?: string; readonly serverName?: string }
export interface DirtyMapConfig {
  /** A context of the export, such as `qemu:dirty-bitmap:NAME`. */
  readonly context: string
  /** The root, in hex, of the snapshot that the map is relative to: it is used with no other parent. */
  readonly parentRoot: string
}

/** @throws {RoostError} REQUEST_MALFORMED, or an errno exception, when it is not there or no disk; {ClientError} when its server cannot be used */
export async function openBlockSource(origin: DiskOrigin, signal: AbortSignal): Promise<BlockSource> {
  signal.throwIfAborted()
  if (origin.kind === 'nbd') return await openNbdSource(origin, { signal })
  return openFileSource(Buffer.from(origin.path))
}
