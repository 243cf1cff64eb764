/** Paths that go on inside an image: `IMAGE//PARTITION/PATH`.
 *
 *  Two slashes after the name of an image or file lead into it: `disk.img//` is its partitions, `disk.img//p2/etc/fstab` a file of the second,
 *  `disk.img//whole/…` one of a disk that has no partitions. Anywhere else repeated slashes mean one, as ever: names hold no slash, and nothing
 *  lies below a file, so no path of before means something new.
 */
import { findEntry, splitPath, type OpenSnapshot } from '../browse/open-snapshot.js'
import { chooseDisk, readMachine } from '../machine/snapshot-disks.js'
import type { Entry } from '../tree/entry.js'
import { unreadable } from './byte-window.js'

export const WHOLE_DISK = 'whole'
/** `partition` undefined: the image as such. */
export interface ImagePath { readonly image: Entry; readonly partition: string | undefined; readonly names: readonly Buffer[] }

const SLASHES = Buffer.from('//')

/** Undefined: the path is an ordinary one. `disk`: the disk that `path` is within, if it was named so. */
export async function findImagePath(open: OpenSnapshot, path: Buffer, disk: string | undefined, signal: AbortSignal): Promise<ImagePath | undefined> {
  if (disk !== undefined) return imagePathOf(chooseDisk(await readMachine(open, signal), disk).entry, path)
  for (let at = path.indexOf(SLASHES); at >= 0; at = path.indexOf(SLASHES, at + 1)) {
    if (splitPath(path.subarray(0, at)).length === 0) continue
    const entry = await findEntry(open, path.subarray(0, at))
    if (entry === undefined) return undefined
    if (entry !== 'root' && entry.content !== undefined) return imagePathOf(entry, path.subarray(at))
  }
  return undefined
}
/** Whether it is worth opening the snapshot to find out. */
export const mayLeadIntoImage = (path: Buffer | undefined, disk: string | undefined): boolean => disk !== undefined || path?.includes(SLASHES) === true

function imagePathOf(image: Entry, inside: Buffer): ImagePath {
  const [partition, ...names] = splitPath(inside)
  if (names.some((name) => name.equals(Buffer.from('..')))) throw unreadable('Write the path inside the image without "..".')
  return { image, partition: partition?.toString('utf8'), names }
}
