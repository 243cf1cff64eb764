/** Which changes since the parent snapshot QEMU can name: pure, from what the parent says and what QEMU has now.
 *
 *  A bitmap is believed when it is the one that the parent names, on the node that the device uses now, and has recorded without a gap since.
 *  Everything else leads to a full read, with the reason: what does not change is not sent all the same.
 */
import type { SnapshotRecord } from '../../src/core/messages.js'
import type { MachineDisk } from './block-devices.js'
import { ownerOfBitmap } from './names.js'
import { countOf, fieldsOf, listOf, textOf } from './values.js'

export const BITMAP_GRANULARITY_BYTES = 65_536

/** What a snapshot's description says of a disk's bitmap, for the next backup. */
export interface RecordedDisk {
  readonly image: string; readonly qdev: string; readonly node: string; readonly bitmap: string; readonly bytes: number; readonly granularityBytes: number
  readonly file?: string
  readonly isPersistent: boolean
}
export interface RecordedMachine { readonly uuid?: string; readonly disks: readonly RecordedDisk[] }
export interface ParentMachine { readonly root: string; readonly machine: RecordedMachine }
export type DiskPlan = { readonly kind: 'incremental'; readonly bitmap: string; readonly parentRoot: string } | { readonly kind: 'full'; readonly reason: string }

/** Undefined, or why it does not help, for a parent that is not of a live machine. */
export function parentMachine(record: SnapshotRecord | undefined): ParentMachine | string {
  if (record === undefined) return 'there is no earlier snapshot'
  if (record.statistics.errors > 0) return 'the earlier snapshot has problems'
  const machine = fieldsOf(record.description?.['machine'])
  if (!Array.isArray(machine['disks'])) return 'the earlier snapshot was not taken from a running machine'
  const uuid = textOf(machine['uuid'])
  return { root: record.root, machine: { ...(uuid === undefined ? {} : { uuid }), disks: listOf(machine['disks']).flatMap(recordedDisk) } }
}
function recordedDisk(disk: Readonly<Record<string, unknown>>): RecordedDisk[] {
  const [image, qdev, node, bitmap, file] = ['image', 'qdev', 'node', 'bitmap', 'file'].map((name) => textOf(disk[name]))
  const [bytes, granularityBytes] = [countOf(disk['bytes']), countOf(disk['granularityBytes'])]
  if (image === undefined || qdev === undefined || node === undefined || bitmap === undefined || bytes === undefined || granularityBytes === undefined) return []
  return [{ image, qdev, node, bitmap, bytes, granularityBytes, isPersistent: disk['isPersistent'] === true, ...(file === undefined ? {} : { file }) }]
}

/** @param owner ours: a snapshot cannot name another source's bitmap @param elsewhere names of bitmaps on nodes that no device uses */
export function planDisk(disk: MachineDisk, parent: ParentMachine | string, machine: { readonly uuid?: string; readonly owner: string }, elsewhere: ReadonlySet<string>): DiskPlan {
  const full = (reason: string): DiskPlan => ({ kind: 'full', reason })
  if (typeof parent === 'string') return full(parent)
  const { machine: before } = parent
  if (before.uuid !== undefined && machine.uuid !== undefined && before.uuid !== machine.uuid) return full('the earlier snapshot is of another machine (its UUID differs)')
  const recorded = before.disks.find(({ image }) => image === disk.name)
  if (recorded === undefined) return full('the earlier snapshot does not have this disk')
  if (ownerOfBitmap(recorded.bitmap) !== machine.owner) return full('the bitmap that the earlier snapshot names is not of this source')
  if (recorded.bytes !== disk.bytes) return full(`the disk's size changed from ${recorded.bytes} to ${disk.bytes} bytes`)
  const bitmap = disk.bitmaps.find(({ name }) => name === recorded.bitmap)
  if (bitmap === undefined) {
    if (elsewhere.has(recorded.bitmap)) return full('the disk moved to another block node (an external snapshot, say), and its bitmap stayed behind')
    return full(recorded.isPersistent ? 'the bitmap of changes is gone (another image, or QEMU ended without writing it)'
      : 'the bitmap of changes is gone: QEMU was restarted, and this format cannot keep one over that')
  }
  if (bitmap.isInconsistent) return full('QEMU ended without closing the image, and so the bitmap of changes is incomplete')
  if (recorded.node !== disk.node && !isAnonymous(recorded.node)) return full(`the disk moved from the block node ${recorded.node} to ${disk.node}`)
  if (!bitmap.isRecording) return full('somebody stopped the bitmap of changes')
  if (bitmap.isBusy) return full('the bitmap of changes is in use by something else')
  if (bitmap.granularityBytes !== recorded.granularityBytes) return full('the bitmap of changes was replaced')
  return { kind: 'incremental', bitmap: bitmap.name, parentRoot: parent.root }
}
/** Names that QEMU makes up differ from start to start. */
const isAnonymous = (node: string): boolean => node.startsWith('#')
