/** What an image of a disk must say of itself so that a server made from it finds its devices: properties of Glance. Pure. */
import type { MachineDescription, QemuDescription } from '../machine/machine-description.js'
import { record } from './json-parts.js'

/** Of the original image: what tells of the machine. The rest tells of the image's own life (owner, hashes, stores, the server it was made of). */
const CARRIED = /^(?:hw_|os_|img_|trait:|architecture$|hypervisor_type$|vm_mode$|kernel_args$)/
const LEFT_OUT = /^os_(?:hash_|hidden$|glance_)|^img_(?:signature|linked_clone)/
const PROPERTIES_MAX = 128
const VALUE_CHARACTERS_MAX = 255
const GIB = 1024 ** 3

/** Recorded properties win over what follows from QEMU's devices; `wishes` win over both, and an empty one takes a property away. */
export function imageProperties(machine: MachineDescription | undefined, wishes: Readonly<Record<string, string>> = {}): Record<string, string> {
  const recorded = Object.entries(record(machine?.nova?.image?.properties))
    .filter((pair): pair is [string, string] => typeof pair[1] === 'string' && pair[1].length <= VALUE_CHARACTERS_MAX && CARRIED.test(pair[0]) && !LEFT_OUT.test(pair[0]))
  const all = { ...(machine?.qemu === undefined ? {} : fromQemu(machine.qemu)), ...Object.fromEntries(recorded.slice(0, PROPERTIES_MAX)), ...wishes }
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== ''))
}
function fromQemu({ disks, networkCards, firmware, machineType }: QemuDescription): Record<string, string> {
  const device = disks[0]?.device ?? '', card = networkCards[0]?.model ?? ''
  const disk = device.startsWith('virtio-blk') ? { hw_disk_bus: 'virtio' } : device.startsWith('scsi') ? { hw_disk_bus: 'scsi', hw_scsi_model: 'virtio-scsi' }
    : device.startsWith('ide') ? { hw_disk_bus: machineType.includes('q35') ? 'sata' : 'ide' } : {}
  return { ...disk, ...(card.startsWith('virtio') ? { hw_vif_model: 'virtio' } : ['e1000', 'e1000e', 'rtl8139'].includes(card) ? { hw_vif_model: card } : {}),
    ...(firmware === 'uefi' ? { hw_firmware_type: 'uefi' } : {}), ...(machineType.includes('q35') ? { hw_machine_type: 'q35' } : {}) }
}
/** The least root disk that holds the image. */
export const minDiskGiB = (imageBytes: number): number => Math.ceil(imageBytes / GIB)
