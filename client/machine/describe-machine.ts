/** What QEMU says of the machine besides its disks: enough to start one like it elsewhere. What cannot be read is a warning, not a failure. */
import type { DiskDescription, QemuDescription } from './machine-description.js'
import { property, type MachineDisk } from './block-devices.js'
import { QemuRefusal, type Monitor, type MonitorCall } from './monitor.js'
import { countOf, fieldsOf, listOf, textOf, type Fields } from './values.js'

export interface MachineIdentity { readonly name?: string; readonly uuid?: string; readonly version: string; readonly versionNumber: number }
export interface MachineFacts { readonly qemu: QemuDescription; readonly warnings: readonly string[] }

const NO_UUID = '00000000-0000-0000-0000-000000000000'
const DEVICES_MAX = 500

/** Version as major × 100 + minor. */
export async function identifyMachine(monitor: Monitor, call: MonitorCall = {}): Promise<MachineIdentity> {
  const qemu = fieldsOf(fieldsOf(await monitor.execute('query-version', undefined, call))['qemu'])
  const [major, minor, micro] = ['major', 'minor', 'micro'].map((part) => countOf(qemu[part]) ?? 0) as [number, number, number]
  const name = textOf(fieldsOf(await monitor.execute('query-name', undefined, call))['name'])
  const uuid = textOf(fieldsOf(await monitor.execute('query-uuid', undefined, call))['UUID'])
  return { version: `${major}.${minor}.${micro}`, versionNumber: major * 100 + minor, ...(name === undefined ? {} : { name }),
    ...(uuid === undefined || uuid === NO_UUID ? {} : { uuid }) }
}

export async function describeQemu(monitor: Monitor, identity: MachineIdentity, disks: readonly MachineDisk[], call: MonitorCall = {}): Promise<MachineFacts> {
  const warnings: string[] = []
  const attempt = async <T>(what: string, read: () => Promise<T | undefined>): Promise<T | undefined> => {
    let value: T | undefined
    let why = ''
    try {
      value = await read()
    } catch (error) {
      if (!(error instanceof QemuRefusal)) throw error
      why = `: ${error.description}`
    }
    if (value === undefined) warnings.push(`QEMU does not say ${what}${why}`)
    return value
  }
  const machineType = await attempt('the machine\'s type', async () => textOf(await property(monitor, '/machine', 'type', call))?.replace(/-machine$/, ''))
  const memoryBytes = await attempt('how much memory there is', async () => {
    const memory = fieldsOf(await monitor.execute('query-memory-size-summary', undefined, call))
    const base = countOf(memory['base-memory'])
    return base === undefined ? undefined : base + (countOf(memory['plugged-memory']) ?? 0)
  })
  const processors = await attempt('what its processors are', async () => listOf(await monitor.execute('query-cpus-fast', undefined, call)))
  const cpuModel = await cpuModelOf(monitor, processors?.[0], call)
  const networkCards = await attempt('its network cards', () => listNetworkCards(monitor, call))
  const kernel = await kernelOf(monitor, call)
  return { warnings, qemu: {
    version: identity.version, machineType: machineType ?? 'unknown', cpus: Math.max(1, processors?.length ?? 1), memoryBytes: memoryBytes ?? 0,
    firmware: await firmwareOf(monitor, call), disks: disks.map(describeDisk), networkCards: networkCards ?? [],
    ...(cpuModel === undefined ? {} : { cpuModel }), ...(kernel === undefined ? {} : { kernel }),
  } }
}
const describeDisk = (disk: MachineDisk): DiskDescription => ({
  image: disk.name, bytes: disk.bytes, device: disk.device, qdev: disk.qdev, format: disk.format, ...(disk.file === undefined ? {} : { file: disk.file }),
  ...(disk.bootIndex === undefined ? {} : { bootIndex: disk.bootIndex }), ...(disk.serial === undefined ? {} : { serial: disk.serial }),
})
/** `qemu64-x86_64-cpu` → `qemu64`. */
async function cpuModelOf(monitor: Monitor, processor: Fields | undefined, call: MonitorCall): Promise<string | undefined> {
  const path = textOf(processor?.['qom-path'])
  return path === undefined ? undefined : textOf(await property(monitor, path, 'type', call))?.replace(/(?:-x86_64|-i386|-arm|-s390x|-powerpc64|-riscv64)?-cpu$/, '')
}
async function firmwareOf(monitor: Monitor, call: MonitorCall): Promise<'bios' | 'uefi'> {
  const [flash, file] = [textOf(await property(monitor, '/machine', 'pflash0', call)), textOf(await property(monitor, '/machine', 'firmware', call))]
  return flash !== undefined || /ovmf|edk2|aavmf|uefi/i.test(file ?? '') ? 'uefi' : 'bios'
}
async function kernelOf(monitor: Monitor, call: MonitorCall): Promise<QemuDescription['kernel']> {
  const file = textOf(await property(monitor, '/machine', 'kernel', call))
  if (file === undefined) return undefined
  const [initrd, commandLine] = [textOf(await property(monitor, '/machine', 'initrd', call)), textOf(await property(monitor, '/machine', 'append', call))]
  return { file, ...(initrd === undefined ? {} : { initrd }), ...(commandLine === undefined ? {} : { commandLine }) }
}
/** Every device with a MAC address, wherever it hangs. */
async function listNetworkCards(monitor: Monitor, call: MonitorCall): Promise<{ model: string; mac: string }[]> {
  const cards: { model: string; mac: string }[] = []
  let looked = 0
  for (const parent of ['/machine/peripheral', '/machine/peripheral-anon', '/machine/unattached']) {
    for (const entry of listOf(await monitor.execute('qom-list', { path: parent }, call))) {
      const model = /^child<(.+)>$/.exec(textOf(entry['type']) ?? '')?.[1]
      // A NIC of -nic or -net hangs among the machine's own parts, of which there are many: only what sounds like one is asked there.
      if (model === undefined || parent.endsWith('unattached') && !/net|e1000|rtl|ne2k|pcnet|vmxnet|usb-net|i82/.test(model)) continue
      if (++looked > DEVICES_MAX) return cards
      const mac = textOf(await property(monitor, `${parent}/${textOf(entry['name']) ?? ''}`, 'mac', call))
      if (mac !== undefined && /^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$/i.test(mac)) cards.push({ model, mac })
    }
  }
  return cards
}
