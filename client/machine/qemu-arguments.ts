/** A machine's description as arguments of QEMU. Pure; one argument an element, nothing is quoted for a shell here.
 *
 *  The description is a stranger's word: what is a name of QEMU's must look like one, what is text goes into JSON, and no path of it is ever
 *  opened: disks and kernels are those that the caller names.
 */
import type { DiskDescription, MachineDescription } from './machine-description.js'

/** A disk: its block nodes, the guest's own last, and what the machine says of it. */
export interface QemuDisk {
  readonly nodes: readonly Readonly<Record<string, unknown>>[]
  readonly node: string
  readonly description?: DiskDescription
}
export interface QemuMachineOptions {
  readonly description: MachineDescription | undefined
  readonly disks: readonly QemuDisk[]
  readonly memoryBytes?: number
  readonly cpus?: number
  /** `family`: `pc` or `q35` of the QEMU that is here, in place of the version that the machine had. */
  readonly machineType: 'recorded' | 'family'
  readonly cpuModel: 'recorded' | 'default'
  /** `off`: no card. `isolated`: cards that lead nowhere. `user`: QEMU's own network, out through this host. */
  readonly network: 'off' | 'isolated' | 'user'
  /** Of UEFI machines; without one, those are refused. */
  readonly firmware?: string
}
export interface QemuArguments { readonly args: readonly string[]; readonly warnings: readonly string[] }

const MiB = 1024 * 1024
const MEMORY_BYTES_DEFAULT = 1024 * MiB
const CPUS_DEFAULT = 1
/** Of types, models and devices; no comma, no equals sign. */
const QEMU_NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/
const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i
const MAC = /^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$/i
const DISK_DEVICES = new Set(['virtio-blk-pci', 'virtio-blk-pci-non-transitional', 'virtio-blk-pci-transitional', 'scsi-hd', 'ide-hd', 'nvme', 'usb-storage'])
const DISK_ALIASES: Readonly<Record<string, string>> = { 'virtio-blk': 'virtio-blk-pci', 'virtio-blk-device': 'virtio-blk-pci', 'scsi-disk': 'scsi-hd' }
const NETWORK_DEVICES = new Set(['virtio-net-pci', 'virtio-net-pci-non-transitional', 'virtio-net-pci-transitional', 'e1000', 'e1000e',
  'e1000-82545em', 'rtl8139', 'ne2k_pci', 'pcnet', 'vmxnet3', 'igb', 'i82550', 'i82551', 'i82557b', 'i82559er'])
const NETWORK_CARDS_MAX = 16
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g
/** Of virtio-blk; longer serials are cut by QEMU with an error. */
const SERIAL_CHARACTERS_MAX = 20

export function qemuArguments(options: QemuMachineOptions): QemuArguments {
  const { description, network } = options
  const qemu = description?.qemu
  const warnings: string[] = []
  const args = ['-name', `guest=${safeText(description?.name ?? 'restored').replaceAll(',', ',,')}`, '-nodefaults']
  if (description?.uuid !== undefined && UUID.test(description.uuid)) args.push('-uuid', description.uuid)
  args.push('-machine', machineTypeOf(options, warnings))
  const cpuModel = options.cpuModel === 'recorded' ? qemu?.cpuModel : undefined
  if (cpuModel !== undefined && QEMU_NAME.test(cpuModel)) args.push('-cpu', cpuModel)
  else if (cpuModel !== undefined) warnings.push('The model of its processors is no name of QEMU\'s: its default is used.')
  args.push('-smp', String(options.cpus ?? qemu?.cpus ?? CPUS_DEFAULT), '-m', `${Math.max(1, Math.ceil((options.memoryBytes ?? (qemu?.memoryBytes || MEMORY_BYTES_DEFAULT)) / MiB))}M`)
  if (qemu?.firmware === 'uefi') {
    if (options.firmware === undefined) warnings.push('The machine boots by UEFI: give its firmware (Debian: package ovmf, /usr/share/ovmf/OVMF.fd).')
    else args.push('-bios', options.firmware)
  } else if (options.firmware !== undefined) args.push('-bios', options.firmware)
  if (qemu?.kernel !== undefined)
    warnings.push(`The machine was started with a kernel of its host (${safeText(qemu.kernel.file)}), which is not in the snapshot: ` +
      'it may not boot from its disks alone. Give -kernel, -initrd and -append yourself.')
  args.push(...diskArguments(options.disks, warnings))
  const cards = qemu?.networkCards.slice(0, NETWORK_CARDS_MAX) ?? []
  if (network !== 'off' && cards.length === 0) cards.push({ model: 'virtio-net-pci', mac: '' })
  if (network !== 'off') for (const [i, { model, mac }] of cards.entries()) {
    if (!NETWORK_DEVICES.has(model)) warnings.push(`A network card is of a model that is not known here (${safeText(model)}): it becomes virtio-net-pci.`)
    args.push('-netdev', `user,id=net${i}${network === 'isolated' ? ',restrict=on' : ''}`, '-device',
      JSON.stringify({ driver: NETWORK_DEVICES.has(model) ? model : 'virtio-net-pci', netdev: `net${i}`, id: `nic${i}`, ...(MAC.test(mac) ? { mac } : {}) }))
  }
  return { args, warnings }
}

/** For a line of sh: each argument as one word, whatever is in it. */
export function shellQuote(argument: string): string {
  return /^[A-Za-z0-9_/.:=,@%+-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`
}
/** Without what could move a cursor or forge a line. */
export const safeText = (text: string): string => text.replace(UNPRINTABLE, '')

function machineTypeOf({ description, machineType }: QemuMachineOptions, warnings: string[]): string {
  const recorded = description?.qemu?.machineType
  if (recorded === undefined || recorded === 'unknown') return 'pc'
  const family = recorded.includes('q35') ? 'q35' : /^(?:pc|standardpc|isapc)/i.test(recorded) ? 'pc' : undefined
  if (machineType === 'recorded' && QEMU_NAME.test(recorded)) return recorded
  if (family === undefined) warnings.push(`The machine's type (${safeText(recorded)}) is none of a PC: it becomes "pc", and may not start.`)
  return family ?? 'pc'
}
function diskArguments(disks: readonly QemuDisk[], warnings: string[]): string[] {
  const args: string[] = []
  const devices = disks.map(({ description }) => {
    const named = description?.device ?? 'virtio-blk-pci'
    const device = DISK_ALIASES[named] ?? named
    if (!DISK_DEVICES.has(device)) warnings.push(`A disk hangs on a device that is not known here (${safeText(device)}): it becomes virtio-blk-pci.`)
    return DISK_DEVICES.has(device) ? device : 'virtio-blk-pci'
  })
  if (devices.some((device) => device.startsWith('scsi-'))) args.push('-device', JSON.stringify({ driver: 'virtio-scsi-pci', id: 'scsi0' }))
  if (devices.includes('usb-storage')) args.push('-device', JSON.stringify({ driver: 'qemu-xhci', id: 'usb0' }))
  // Where the machine does not say which disk is first, the first one is.
  const hasOrder = disks.some(({ description }) => description?.bootIndex !== undefined)
  const taken = new Set<number>()
  for (const [i, { nodes, node, description }] of disks.entries()) {
    for (const one of nodes) args.push('-blockdev', JSON.stringify(one))
    const device = devices[i]!
    const wanted = hasOrder ? description?.bootIndex : i
    const bootindex = wanted === undefined || taken.has(wanted) || wanted > 0x7fff_ffff ? undefined : wanted
    if (bootindex !== undefined) taken.add(bootindex)
    const serial = description?.serial === undefined ? '' : safeText(description.serial).slice(0, SERIAL_CHARACTERS_MAX)
    args.push('-device', JSON.stringify({
      driver: device, drive: node, id: `disk${i}`, ...(device.startsWith('scsi-') ? { bus: 'scsi0.0' } : {}), ...(device === 'usb-storage' ? { bus: 'usb0.0' } : {}),
      ...(bootindex === undefined ? {} : { bootindex }), ...(serial !== '' ? { serial } : device === 'nvme' ? { serial: `disk${i}` } : {}),
    }))
  }
  return args
}
