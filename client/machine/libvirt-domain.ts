/** A machine's description as the XML of a libvirt domain, with the disks that the caller names. Pure.
 *
 *  Of recorded XML only what is listed here comes along: a domain can name programs, scripts, folders and devices of its host, and this one may be
 *  a stranger's. Names of the old host's networks stay, as text; what was left out is told.
 */
import type { MachineDescription } from './machine-description.js'
import { safeText } from './qemu-arguments.js'
import { childrenOf, formatXml, parseXml, textOf, xml, type XmlElement } from './xml.js'

/** `file`: absolute. `origin`: where the disk was on the old host, which tells it in the recorded XML. */
export interface DomainDisk { readonly name: string; readonly file: string; readonly format: 'raw' | 'qcow2'; readonly origin?: string; readonly device?: string; readonly bootIndex?: number }
export interface Domain { readonly text: string; readonly warnings: readonly string[] }

const MiB = 1024 * 1024
const LINKS_DOWN = "Its network cards have their links down, so that it is not its own twin on the network by accident: `virsh domif-setlink` or the XML sets them up."
/** Taken with their attributes and text. */
const TOP_PLAIN = ['memory', 'currentMemory', 'vcpu', 'iothreads', 'on_poweroff', 'on_reboot', 'on_crash'] as const
/** Taken with everything below, made of names and numbers alone. */
const TOP_DEEP = ['cpu', 'features', 'clock', 'pm'] as const
const DEVICES_DEEP = ['controller', 'input', 'video', 'memballoon', 'watchdog', 'sound', 'panic'] as const
const DOMAIN_TYPES = ['kvm', 'qemu', 'hvf']
const UUID = /^[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}$/i
const MAC = /^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$/i
const WORD = /^[A-Za-z0-9_.+-]{1,64}$/

/** @throws {ClientError} MACHINE_MALFORMED when the recorded XML is not well-formed */
export function libvirtDomain(description: MachineDescription | undefined, disks: readonly DomainDisk[]): Domain {
  const warnings: string[] = []
  const recorded = description?.libvirtXml === undefined ? undefined : parseXml(description.libvirtXml)
  if (recorded !== undefined && recorded.name !== 'domain') warnings.push('The recorded XML is of no domain: one is made from QEMU\'s own account.')
  const domain = recorded?.name === 'domain' ? fromRecorded(recorded, description!, disks, warnings) : fromQemu(description, disks, warnings)
  return { text: `${formatXml(domain)}\n`, warnings }
}

function fromRecorded(recorded: XmlElement, description: MachineDescription, disks: readonly DomainDisk[], warnings: string[]): XmlElement {
  const children: XmlElement[] = [...identity(textOf(childrenOf(recorded, 'name')[0]) || description.name, textOf(childrenOf(recorded, 'uuid')[0]))]
  const dropped = new Set<string>()
  for (const child of childrenOf(recorded)) {
    if ((TOP_PLAIN as readonly string[]).includes(child.name)) children.push(xml(child.name, wordsOf(child), textOf(child)))
    else if ((TOP_DEEP as readonly string[]).includes(child.name)) children.push(words(child))
    else if (child.name === 'os') children.push(osOf(child, description, warnings))
    else if (child.name === 'devices') children.push(xml('devices', {}, ...devicesOf(child, disks, dropped, warnings)))
    else if (!['name', 'uuid', 'metadata', 'resource', 'seclabel'].includes(child.name)) dropped.add(child.name)
  }
  if (!children.some(({ name }) => name === 'devices')) children.push(xml('devices', {}, ...disks.map((disk, i) => diskElement(disk, undefined, i))))
  if (description.libvirtXml?.includes('<interface') === true) warnings.push(LINKS_DOWN)
  if (dropped.size > 0) warnings.push(`Left out of the recorded XML: ${[...dropped].map(safeText).join(', ')}.`)
  const type = recorded.attributes['type']
  return xml('domain', { type: DOMAIN_TYPES.includes(type ?? '') ? type! : 'kvm' }, ...children)
}
function fromQemu(description: MachineDescription | undefined, disks: readonly DomainDisk[], warnings: string[]): XmlElement {
  const qemu = description?.qemu
  if (qemu === undefined) warnings.push('The snapshot says nothing of the machine: memory and processors are guesses.')
  const cards = (qemu?.networkCards ?? []).map(({ model, mac }) => xml('interface', { type: 'network' }, ...(MAC.test(mac) ? [xml('mac', { address: mac })] : []),
    xml('source', { network: 'default' }), xml('model', { type: model.startsWith('virtio') || !WORD.test(model) ? 'virtio' : model }), xml('link', { state: 'down' })))
  if (cards.length > 0) warnings.push(LINKS_DOWN)
  return xml('domain', { type: 'kvm' }, ...identity(description?.name ?? 'restored', description?.uuid ?? ''),
    xml('memory', { unit: 'KiB' }, String(Math.ceil((qemu?.memoryBytes || 1024 * MiB) / 1024))), xml('vcpu', {}, String(qemu?.cpus ?? 1)),
    xml('os', qemu?.firmware === 'uefi' ? { firmware: 'efi' } : {},
      xml('type', { arch: 'x86_64', machine: qemu?.machineType !== undefined && qemu.machineType !== 'unknown' && WORD.test(qemu.machineType) ? qemu.machineType : 'pc' }, 'hvm')),
    xml('features', {}, xml('acpi'), xml('apic')),
    xml('devices', {}, ...disks.map((disk, i) => diskElement(disk, undefined, i)), ...cards, xml('serial', { type: 'pty' }), xml('console', { type: 'pty' }), agentChannel(),
      xml('graphics', { type: 'vnc', listen: '127.0.0.1', autoport: 'yes' })))
}
const identity = (name: string, uuid: string): XmlElement[] => [xml('name', {}, safeText(name).replaceAll('/', '-') || 'restored'), ...(UUID.test(uuid) ? [xml('uuid', {}, uuid)] : [])]

function osOf(os: XmlElement, description: MachineDescription, warnings: string[]): XmlElement {
  const type = childrenOf(os, 'type')[0]
  const usesFirmware = os.attributes['firmware'] === 'efi' || description.qemu?.firmware === 'uefi' || childrenOf(os, 'loader').some(({ attributes }) => attributes['type'] === 'pflash')
  if (usesFirmware) warnings.push('Its UEFI variables are not in the snapshot: libvirt begins with new ones, and the boot entry may have to be chosen once.')
  if (childrenOf(os, 'kernel').length > 0) warnings.push('It was started with a kernel of its host, which is not in the snapshot: add <kernel>, <initrd> and <cmdline> yourself.')
  return xml('os', usesFirmware ? { firmware: 'efi' } : {}, xml('type', type === undefined ? {} : wordsOf(type), WORD.test(textOf(type)) ? textOf(type) : 'hvm'),
    ...childrenOf(os).filter(({ name }) => name === 'boot' || name === 'bootmenu' || name === 'smbios').map(words))
}
function devicesOf(devices: XmlElement, disks: readonly DomainDisk[], dropped: Set<string>, warnings: string[]): XmlElement[] {
  const found: XmlElement[] = []
  const left = [...disks]
  const recorded = childrenOf(devices, 'disk').filter((disk) => (disk.attributes['device'] ?? 'disk') === 'disk')
  const origins = recorded.map((disk) => Object.values(childrenOf(disk, 'source')[0]?.attributes ?? {}))
  const byOrigin = disks.some(({ origin }) => origin !== undefined && origins.some((values) => values.includes(origin)))
  for (const [i, element] of recorded.entries()) {
    const at = byOrigin ? left.findIndex(({ origin }) => origin !== undefined && origins[i]!.includes(origin)) : 0
    const disk = at < 0 ? undefined : left.splice(at, 1)[0]
    if (disk === undefined) warnings.push(`A disk of the recorded XML is not in the snapshot (${safeText(childrenOf(element, 'target')[0]?.attributes['dev'] ?? '?')}).`)
    else found.push(diskElement(disk, element, found.length))
  }
  for (const disk of left) found.push(diskElement(disk, undefined, found.length))
  for (const element of childrenOf(devices)) {
    if (element.name === 'disk' || element.name === 'emulator') continue
    else if ((DEVICES_DEEP as readonly string[]).includes(element.name)) found.push(words(element))
    else if (element.name === 'interface') found.push(...interfaceElement(element, dropped))
    else if (element.name === 'serial' || element.name === 'console') found.push(xml(element.name, { type: 'pty' }, ...childrenOf(element, 'target').map(words)))
    else if (element.name === 'channel') {
      if (childrenOf(element, 'target')[0]?.attributes['name'] === 'org.qemu.guest_agent.0') found.push(agentChannel())
      else dropped.add('channel')
    } else if (element.name === 'graphics') found.push(xml('graphics', { type: element.attributes['type'] === 'spice' ? 'spice' : 'vnc', autoport: 'yes', listen: '127.0.0.1' }))
    else if (element.name === 'rng') found.push(xml('rng', { model: 'virtio' }, xml('backend', { model: 'random' }, '/dev/urandom')))
    else dropped.add(element.name)
  }
  return found
}
const agentChannel = (): XmlElement => xml('channel', { type: 'unix' }, xml('target', { type: 'virtio', name: 'org.qemu.guest_agent.0' }))

/** Of the old element its place in the machine stays: target, address, boot order, serial. */
function diskElement(disk: DomainDisk, recorded: XmlElement | undefined, index: number): XmlElement {
  const isScsi = disk.device?.startsWith('scsi-') === true, isIde = disk.device?.startsWith('ide-') === true
  const target = xml('target', { dev: `${isScsi || isIde ? 'sd' : 'vd'}${String.fromCharCode(97 + index % 26)}`, bus: isScsi ? 'scsi' : isIde ? 'sata' : 'virtio' })
  const kept = recorded === undefined ? [] : childrenOf(recorded).filter(({ name }) => ['target', 'address', 'boot', 'wwn', 'vendor', 'product'].includes(name)).map(words)
  const serial = textOf(recorded === undefined ? undefined : childrenOf(recorded, 'serial')[0])
  return xml('disk', { type: 'file', device: 'disk' }, xml('driver', { name: 'qemu', type: disk.format, discard: 'unmap' }), xml('source', { file: disk.file }),
    ...(kept.some(({ name }) => name === 'target') ? kept : [target, ...kept]),
    ...(recorded === undefined && disk.bootIndex !== undefined ? [xml('boot', { order: String(disk.bootIndex + 1) })] : []), ...(serial === '' ? [] : [xml('serial', {}, safeText(serial))]))
}
/** On a network or bridge of this name; a card of another kind becomes one on "default", with its link down. */
function interfaceElement(element: XmlElement, dropped: Set<string>): XmlElement[] {
  const type = element.attributes['type'] ?? ''
  const source = childrenOf(element, 'source')[0]?.attributes[type]
  const known = (type === 'network' || type === 'bridge') && source !== undefined
  if (!known) dropped.add(`interface of type ${type}`)
  const mac = childrenOf(element, 'mac')[0]?.attributes['address'] ?? ''
  const model = childrenOf(element, 'model')[0]?.attributes['type'] ?? ''
  return [xml('interface', { type: known ? type : 'network' }, ...(MAC.test(mac) ? [xml('mac', { address: mac })] : []),
    xml('source', known ? { [type]: safeText(source) } : { network: 'default' }), xml('model', { type: WORD.test(model) ? model : 'virtio' }),
    ...childrenOf(element, 'address').map(words), xml('link', { state: 'down' }))]
}

/** The element with what in it is a name or a number; anything that could be a path or more is left out. */
function words(element: XmlElement): XmlElement {
  const text = textOf(element)
  const inner = childrenOf(element).filter(({ name }) => !name.includes(':')).map(words)
  return xml(element.name, wordsOf(element), ...(inner.length > 0 ? inner : WORD.test(text) ? [text] : []))
}
function wordsOf({ attributes }: XmlElement): Record<string, string> {
  return Object.fromEntries(Object.entries(attributes).filter(([name, value]) => !name.includes(':') && !/^(?:file|path|dir)$/.test(name) && /^[A-Za-z0-9_.+:-]{1,128}$/.test(value)))
}
