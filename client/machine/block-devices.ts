/** The disks of a running machine as QEMU lists them, and which of them a backup takes. */
import { ClientError } from '../../src/protocol/client-errors.js'
import { QemuRefusal, type Monitor, type MonitorCall } from './monitor.js'
import { countOf, fieldsOf, listOf, textOf, type Fields } from './values.js'

export interface BitmapState {
  readonly name: string; readonly granularityBytes: number
  readonly isRecording: boolean; readonly isInconsistent: boolean; readonly isBusy: boolean; readonly isPersistent: boolean
}
export interface MachineDisk {
  /** Its entry in the snapshot: the device's id in QEMU, else `disk` and its place. */
  readonly name: string
  /** Path of the device in QEMU's object tree. */
  readonly qdev: string
  /** Such as `virtio-blk-pci`. */
  readonly device: string
  /** The block node that the device uses now. */
  readonly node: string
  readonly bytes: number
  /** Format as QEMU runs it: `qcow2`, `raw`, … */
  readonly format: string
  readonly file?: string
  /** The image can keep bitmaps over a restart of QEMU. */
  readonly keepsBitmaps: boolean
  readonly bitmaps: readonly BitmapState[]
  readonly bootIndex?: number
  readonly serial?: string
}
export interface DiskChoice { readonly include: readonly string[]; readonly exclude: readonly string[] }
export interface MachineDisks { readonly disks: readonly MachineDisk[]; /** What is left out, each with why. */ readonly notices: readonly string[] }

/** Whose writes no block node sees. */
const UNSEEN = /^(?:vhost-user-(?:blk|scsi)|vhost-scsi|scsi-block|scsi-generic|vfio-|nvme-pci-host)/
const DISKS_MAX = 500
/** Major × 100 + minor, the oldest that was tried. QEMU's NBD server runs in the thread of the disk that it serves. 7.2 aborts there, and its guest dies, as
 *  soon as a client hangs up: `nbd_blockdev_client_closed: Assertion qemu_in_main_thread()`. A client that is killed hangs up: nothing that we do makes it safe. */
const IOTHREADS_VERSION_MIN = 1000

/** @param versionNumber of QEMU, as identifyMachine tells it
 *  @throws {ClientError} MACHINE_UNSUPPORTED: a disk that cannot be saved and is not excluded; no disk; a name in `choice` that is none */
export async function listDisks(monitor: Monitor, choice: DiskChoice, versionNumber: number, call: MonitorCall = {}): Promise<MachineDisks> {
  const notices: string[] = []
  const found: MachineDisk[] = []
  const seen = new Set<string>()
  const wants = (name: string): boolean => (choice.include.length === 0 || choice.include.includes(name)) && !choice.exclude.includes(name)
  const blocks = listOf(await monitor.execute('query-block', undefined, call)).slice(0, DISKS_MAX)
  for (const [place, block] of blocks.entries()) {
    const qdev = devicePath(block)
    if (qdev === undefined) continue // attached to no device: not a disk of the machine
    const name = nameOf(qdev, textOf(block['device']), place, seen)
    seen.add(name)
    const inserted = fieldsOf(block['inserted'])
    const node = textOf(inserted['node-name'])
    const device = textOf(await property(monitor, qdev, 'type', call)) ?? 'unknown'
    if (node === undefined) { notices.push(`${name} (${device}) is empty`); continue }
    if (device.startsWith('cfi.pflash')) { notices.push(`${name} (${device}) holds firmware and its variables, which are not saved`); continue }
    if (block['removable'] === true || inserted['ro'] === true) { notices.push(`${name} (${device}) is ${block['removable'] === true ? 'removable' : 'read-only'}`); continue }
    if (!wants(name)) { notices.push(`${name} (${device}) is excluded`); continue }
    if (UNSEEN.test(device)) throw cannotSave(name, device)
    if (versionNumber < IOTHREADS_VERSION_MIN && await usesIothread(monitor, qdev, call)) throw new ClientError('MACHINE_UNSUPPORTED', `The disk ${name} is served by an iothread: ` +
      `a QEMU older than 10.0 may crash when such a disk is read over NBD, so it is not touched. Leave it out (--exclude-disk ${name}), run the machine without the iothread or with QEMU 10.0, ` +
      'or save the disk from below (an LVM snapshot, the storage).')
    found.push({ name, qdev, device, node, ...await readDisk(monitor, qdev, inserted, call) })
  }
  for (const { name, device } of await listUnseen(monitor, call)) {
    seen.add(name)
    if (wants(name)) throw cannotSave(name, device)
    notices.push(`${name} (${device}) is excluded`)
  }
  const unknown = [...choice.include, ...choice.exclude].find((name) => !seen.has(name))
  if (unknown !== undefined) throw new ClientError('MACHINE_UNSUPPORTED', `The machine has no disk "${unknown}": it has ${[...seen].join(', ') || 'none'}.`)
  if (found.length === 0) throw new ClientError('MACHINE_UNSUPPORTED', `The machine has no disk to save${notices.length === 0 ? '' : `: ${notices.join('; ')}`}.`)
  return { disks: found, notices }
}
/** Path of the device that uses a block of query-block: QEMU tells its id where it has one, else its path. Virtio's disks are halves of the device. */
export function devicePath(block: Fields): string | undefined {
  const qdev = textOf(block['qdev'])
  return qdev === undefined || qdev.startsWith('/') ? qdev?.replace(/\/virtio-backend$/, '') : `/machine/peripheral/${qdev}`
}
const cannotSave = (name: string, device: string): ClientError => new ClientError('MACHINE_UNSUPPORTED',
  `The disk ${name} cannot be saved: what a ${device} writes does not go through QEMU. Save it by other means and leave it out here: --exclude-disk ${name}.`)

async function readDisk(monitor: Monitor, qdev: string, inserted: Fields, call: MonitorCall): Promise<Omit<MachineDisk, 'name' | 'qdev' | 'device' | 'node'>> {
  const image = fieldsOf(inserted['image'])
  const bytes = countOf(image['virtual-size'])
  if (bytes === undefined) throw new ClientError('MACHINE_UNSUPPORTED', `QEMU does not say how large the disk ${qdev} is.`)
  const file = textOf(inserted['file'])
  const [bootIndex, serial] = [countOf(await property(monitor, qdev, 'bootindex', call)), textOf(await property(monitor, qdev, 'serial', call))]
  return {
    bytes, format: textOf(inserted['drv']) ?? 'unknown', ...(file === undefined ? {} : { file }),
    keepsBitmaps: inserted['drv'] === 'qcow2' && fieldsOf(fieldsOf(image['format-specific'])['data'])['compat'] !== '0.10',
    bitmaps: listOf(inserted['dirty-bitmaps']).map(bitmapOf), ...(bootIndex === undefined || bootIndex < 0 ? {} : { bootIndex }), ...(serial === undefined ? {} : { serial }),
  }
}
export const bitmapOf = (bitmap: Fields): BitmapState => ({
  name: textOf(bitmap['name']) ?? '', granularityBytes: countOf(bitmap['granularity']) ?? 0, isRecording: bitmap['recording'] === true,
  isInconsistent: bitmap['inconsistent'] === true, isBusy: bitmap['busy'] === true, isPersistent: bitmap['persistent'] === true,
})
/** Of the disk itself, or of a controller above its bus. */
async function usesIothread(monitor: Monitor, qdev: string, call: MonitorCall): Promise<boolean> {
  const bus = textOf(await property(monitor, qdev, 'parent_bus', call)) ?? ''
  const above = bus.split('/').map((_part, at, parts) => parts.slice(0, at + 1).join('/')).filter((path) => path.split('/').length > 2)
  for (const path of [qdev, ...above]) {
    if (textOf(await property(monitor, path, 'iothread', call)) !== undefined) return true
    if (listOf(await property(monitor, path, 'iothread-vq-mapping', call)).length > 0) return true
  }
  return false
}
/** Devices that bring disks of which QEMU lists nothing: without this they would be left out in silence. */
async function listUnseen(monitor: Monitor, call: MonitorCall): Promise<{ name: string; device: string }[]> {
  const devices = listOf(await monitor.execute('qom-list', { path: '/machine/peripheral' }, call))
  return devices.flatMap((entry) => {
    const device = /^child<(.+)>$/.exec(textOf(entry['type']) ?? '')?.[1]
    const name = textOf(entry['name'])
    return device !== undefined && name !== undefined && /^(?:vhost-user-(?:blk|scsi)|vhost-scsi)/.test(device) ? [{ name, device }] : []
  })
}
/** Undefined where the object has no such property. */
export async function property(monitor: Monitor, path: string, name: string, call: MonitorCall = {}): Promise<unknown> {
  try {
    return await monitor.execute('qom-get', { path, property: name }, call)
  } catch (error) {
    if (error instanceof QemuRefusal) return undefined
    throw error
  }
}
/** `/machine/peripheral/vda` → `vda`; a device without an id by its -drive's, else by its place: stable while the machine has the same devices. */
function nameOf(qdev: string, drive: string | undefined, place: number, taken: ReadonlySet<string>): string {
  const id = /^\/machine\/peripheral\/([^/]+)/.exec(qdev)?.[1] ?? drive
  const name = id?.replace(/[^\w.-]/g, '_').replace(/^\.+/, '_').slice(0, 200) ?? `disk${place}`
  return taken.has(name) ? `${name}.${place}` : name
}
