/** A disk of a snapshot becomes an image in Glance: streamed chunk by chunk, never stored here. */
import type { OpenSnapshot } from '../browse/open-snapshot.js'
import type { SnapshotDisk } from '../machine/snapshot-disks.js'
import { planQcow2Stream } from '../qcow2/qcow2-stream.js'
import { dumpContent } from '../restore/dump.js'
import type { Cloud } from '../../src/openstack/cloud.js'
import { uploadImage, type UploadDeps, type UploadedImage } from './glance-upload.js'
import { minDiskGiB } from './image-properties.js'

export interface DiskUpload {
  readonly name: string
  /** `qcow2` leaves holes out; Nova on some storage (Ceph) starts at once from `raw` only. */
  readonly format: 'raw' | 'qcow2'
  readonly properties: Readonly<Record<string, string>>
}
/** @throws as uploadImage; {RoostError} damage of the snapshot */
export async function uploadDisk(cloud: Cloud, open: OpenSnapshot, disk: Pick<SnapshotDisk, 'entry'>, { name, format, properties }: DiskUpload,
  deps: UploadDeps & { started?(bytes: number): void }, signal: AbortSignal): Promise<UploadedImage> {
  const content = disk.entry.content!
  const stream = format === 'qcow2' ? await planQcow2Stream(open, content)
    : { bytes: content.bytes, write: (output: Parameters<typeof dumpContent>[2], until: AbortSignal) => dumpContent(open, content, output, until) }
  deps.started?.(stream.bytes)
  return await uploadImage(cloud, { name, diskFormat: format, bytes: stream.bytes, minDiskGiB: minDiskGiB(content.bytes), properties,
    write: (output, until) => stream.write(output, until) }, deps, signal)
}
