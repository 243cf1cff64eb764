/** What we add to a QEMU is found again by its name: everything of a run can be removed by whoever comes after it (docs/machines.md §Names).
 *
 *  `roost-RUN-WHATn`, of one run and gone with it; `roost-bitmap-OWNER-RANDOM`, recording from one backup to the next. QEMU allows 31 bytes
 *  for the name of a node.
 */
import { digest } from '../../src/core/hash.js'

/** What of a run is in QEMU: the mark that a point in time is being taken, fleece and filter of a disk, the view of the moment, its export, the map. */
export type RunPart = 'mark' | 'fleece' | 'filter' | 'view' | 'export' | 'map'
export interface RunName { readonly run: string; readonly part: RunPart; readonly disk: number }

const RUN_NAME = /^roost-([0-9a-f]{8})-(mark|fleece|filter|view|export|map)(\d{1,3})$/
const BITMAP_NAME = /^roost-bitmap-([0-9a-f]{12})-[0-9a-f]{16}$/
export const RUN_ID = /^[0-9a-f]{8}$/

export const runName = (run: string, part: RunPart, disk = 0): string => `roost-${run}-${part}${disk}`
export function parseRunName(text: string): RunName | undefined {
  const match = RUN_NAME.exec(text)
  return match === null ? undefined : { run: match[1]!, part: match[2] as RunPart, disk: Number(match[3]) }
}
/** Who records: one source of one repository. Two repositories may save the same machine and must not take each other's bitmaps for leftovers. */
export const bitmapOwner = (repositoryId: string, source: string): string => digest(Buffer.from(`${repositoryId}\0${source}`)).toString('hex').slice(0, 12)
export const bitmapName = (owner: string, random: Uint8Array): string => `roost-bitmap-${owner}-${Buffer.from(random.subarray(0, 8)).toString('hex')}`
/** Undefined: not one of ours. */
export const ownerOfBitmap = (name: string): string | undefined => BITMAP_NAME.exec(name)?.[1]
