/** What a snapshot says of the disks that it holds: `description.disks` of its record (docs/formats/snapshot-v1.md). */
import { isImageChunkBytes } from './image-node.js'

export interface DiskReport {
  readonly name: string
  readonly imageBytes: number
  readonly chunkBytes: number
  readonly isDevice?: boolean
  readonly read: 'full' | 'incremental'
  /** Why it was read in full although a dirty map was given. */
  readonly reason?: string
  readonly cleanBytes: number
  readonly dirtyBytes: number
  readonly auditedBytes: number
  readonly auditMismatches: number
}

/** Those of a signed record, as far as they are what this client writes. */
export function disksOf(description: Readonly<Record<string, unknown>> | undefined): DiskReport[] {
  const disks = Array.isArray(description?.['disks']) ? description['disks'].filter(isObject) : []
  return disks.filter((disk) => typeof disk['name'] === 'string' && (disk['read'] === 'full' || disk['read'] === 'incremental') &&
    (['imageBytes', 'chunkBytes', 'dirtyBytes', 'cleanBytes', 'auditedBytes', 'auditMismatches'] as const).every((field) => typeof disk[field] === 'number')) as unknown as DiskReport[]
}

/** How a snapshot's disks are cut, by name; of the only one under any name. Undefined: it does not say. */
export function chunkBytesByDisk(description: Readonly<Record<string, unknown>> | undefined): (name: string) => number | undefined {
  const disks = Array.isArray(description?.['disks']) ? description['disks'].filter(isObject) : []
  return (name) => {
    const disk = disks.find((one) => one['name'] === name) ?? (disks.length === 1 ? disks[0] : undefined)
    const chunkBytes = disk?.['chunkBytes']
    return typeof chunkBytes === 'number' && isImageChunkBytes(chunkBytes) ? chunkBytes : undefined
  }
}
const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null
