/** What a disk is to a scan: a number of bytes, what is known of them without reading, and reads. Files and devices answer at once
 *  (file-source.ts); what is behind a connection is asked ahead (client/nbd/nbd-source.ts).
 */

/** `data`: must be read. `zero`: reads as zeroes, now. `clean`: a dirty map says that it is as the parent has it, whatever else is known of it
 *  (a map that is right and an allocation that is right agree; whether the map is right, the audit finds out). */
export type ExtentState = 'data' | 'zero' | 'clean'
export interface SourceExtent { readonly offset: number; readonly bytes: number; readonly state: ExtentState }

/** What the entry in the snapshot says of the disk. */
export interface SourceFacts {
  readonly mode: number; readonly uid: number; readonly gid: number; readonly user: string; readonly group: string
  readonly mtimeNs: bigint; readonly ctimeNs: bigint; readonly inode: bigint; readonly device: bigint
  readonly xattrs: readonly { readonly name: Buffer; readonly value: Buffer }[]
}

export type BlockReads =
  /** Fills `into` from `position` on, at once. Fewer bytes: the source ended before its length. */
  | { readonly kind: 'direct'; read(into: Buffer, position: number): number }
  /** Many at a time, up to `windowBytes` of them, best in pieces of `requestBytes`. Undefined: all zeroes. The buffer is the caller's. */
  | { readonly kind: 'queued'; readonly requestBytes: number; readonly windowBytes: number
    read(position: number, bytes: number): Promise<Buffer | undefined>
    /** The caller is done with what a read gave: its memory may be used again. */
    release?(data: Buffer): void }

/** Of extents(true): the map cannot be told, or cannot be relied on. The message says why, as the end of a sentence. */
export class MapUnusable extends Error {
  override readonly name = 'MapUnusable'
}

export interface BlockSource {
  readonly bytes: number
  readonly isDevice: boolean
  readonly facts: SourceFacts
  readonly reads: BlockReads
  /** The snapshot that the source's dirty map is relative to: its root, in hex. Undefined: there is no map, or `mapProblem` says why not. */
  readonly mapParentRoot?: string
  readonly mapProblem?: string
  /** Over all bytes, ascending, without gaps. `clean` only where `withMap`. May be asked for again, from the start. */
  extents(withMap: boolean): AsyncIterable<SourceExtent>
  /** What happened to the source while it was read, in words; asked once, at the end. */
  changes(): string | undefined
  close(): Promise<void> | void
}
