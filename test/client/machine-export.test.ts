/** Descriptions of machines, those of strangers too, as arguments of QEMU and as XML: nothing of them becomes an option, a path that is opened, or markup. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { libvirtDomain, type DomainDisk } from '../../client/machine/libvirt-domain.js'
import type { MachineDescription, QemuDescription } from '../../client/machine/machine-description.js'
import { parseMachineDescription } from '../../client/machine/parse-description.js'
import { qemuArguments, shellQuote, type QemuMachineOptions } from '../../client/machine/qemu-arguments.js'
import { childrenOf, escapeXml, formatXml, parseXml, textOf, type XmlElement } from '../../client/machine/xml.js'
import { hasTool } from '../support/run-roost.js'

const QEMU: QemuDescription = {
  version: '7.2.0', machineType: 'pc-i440fx-7.2', cpuModel: 'qemu64', cpus: 2, memoryBytes: 2 ** 29, firmware: 'bios',
  disks: [{ image: 'vda', bytes: 1024, device: 'virtio-blk-pci', qdev: 'vda', format: 'qcow2', file: '/var/lib/a.qcow2', bootIndex: 1, serial: 'S1' },
    { image: 'vdb', bytes: 1024, device: 'scsi-hd', qdev: 'vdb', format: 'raw', file: '/var/lib/b.raw' }],
  networkCards: [{ model: 'virtio-net-pci', mac: '52:54:00:12:34:56' }],
}
const MACHINE: MachineDescription = { format: 1, name: 'web1', uuid: '01234567-89ab-cdef-0123-456789abcdef', capturedAt: '2026-01-01T00:00:00Z', consistency: 'agent', qemu: QEMU }
const options = (description: MachineDescription | undefined, more: Partial<QemuMachineOptions> = {}): QemuMachineOptions => ({
  description, machineType: 'recorded', cpuModel: 'recorded', network: 'isolated',
  disks: (description?.qemu?.disks ?? [undefined]).map((disk, i) => ({ node: `n${i}`, nodes: [{ driver: 'raw', 'node-name': `n${i}` }], ...(disk === undefined ? {} : { description: disk }) })), ...more,
})
const after = (args: readonly string[], flag: string): string[] => args.flatMap((one, i) => one === flag ? [args[i + 1]!] : [])

describe('machine.json', () => {
  const bytes = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
  test('a right one is read, members that are not known left out', () => {
    assert.deepEqual(parseMachineDescription(bytes({ ...MACHINE, more: 1, qemu: { ...QEMU, other: {} } })), MACHINE)
  })
  test('a wrong one is refused with the place that is wrong', () => {
    for (const [value, says] of [
      ['x', /not an object/], [{ ...MACHINE, format: 2 }, /newer version/], [{ ...MACHINE, name: 7 }, /name is not a text/], [{ ...MACHINE, consistency: 'maybe' }, /consistency/],
      [{ ...MACHINE, qemu: { ...QEMU, cpus: -1 } }, /qemu\.cpus/], [{ ...MACHINE, qemu: { ...QEMU, disks: [{ ...QEMU.disks[0], image: 'a\0b' }] } }, /disks\[0\]\.image has a NUL/],
      [{ ...MACHINE, qemu: { ...QEMU, networkCards: {} } }, /networkCards is not a list/], [{ ...MACHINE, name: 'x'.repeat(5000) }, /too long/],
      [{ ...MACHINE, qemu: { ...QEMU, disks: Array.from({ length: 1025 }, () => QEMU.disks[0]) } }, /more than 1024/],
    ] as const) assert.throws(() => parseMachineDescription(bytes(value)), says)
    assert.throws(() => parseMachineDescription(Buffer.from([0xff])), { code: 'MACHINE_MALFORMED' })
    assert.throws(() => parseMachineDescription(Buffer.alloc(5 * 1024 * 1024, 0x20)), /too long/)
  })
  test('any JSON is read or refused', () => {
    fc.assert(fc.property(fc.json(), (text) => { try { parseMachineDescription(Buffer.from(text)) } catch (error) { assert.equal((error as { code?: string }).code, 'MACHINE_MALFORMED') } }))
  })
})

describe('arguments of QEMU', () => {
  test('the machine as it was, isolated', () => {
    const { args, warnings } = qemuArguments(options(MACHINE))
    assert.deepEqual(warnings, [])
    assert.deepEqual([after(args, '-machine'), after(args, '-smp'), after(args, '-m'), after(args, '-cpu'), after(args, '-name')], [['pc-i440fx-7.2'], ['2'], ['512M'], ['qemu64'], ['guest=web1']])
    assert.deepEqual(after(args, '-device').map((text) => JSON.parse(text) as unknown), [
      { driver: 'virtio-scsi-pci', id: 'scsi0' }, { driver: 'virtio-blk-pci', drive: 'n0', id: 'disk0', bootindex: 1, serial: 'S1' },
      { driver: 'scsi-hd', drive: 'n1', id: 'disk1', bus: 'scsi0.0' }, { driver: 'virtio-net-pci', netdev: 'net0', id: 'nic0', mac: '52:54:00:12:34:56' }])
    assert.deepEqual(after(args, '-netdev'), ['user,id=net0,restrict=on'])
  })
  test('network off has no card at all; memory and processors can be others; the family of the type is enough', () => {
    const { args } = qemuArguments(options(MACHINE, { network: 'off', memoryBytes: 2 ** 28, cpus: 1, machineType: 'family', cpuModel: 'default' }))
    assert.ok(!args.includes('-netdev') && !args.includes('-cpu') && args.includes('-nodefaults'))
    assert.deepEqual([after(args, '-machine'), after(args, '-m'), after(args, '-smp')], [['pc'], ['256M'], ['1']])
    assert.deepEqual(after(qemuArguments(options(undefined)).args, '-machine'), ['pc'])
  })
  test('what cannot be had is told', () => {
    const odd: MachineDescription = { ...MACHINE, qemu: { ...QEMU, firmware: 'uefi', kernel: { file: '/boot/vmlinuz' }, machineType: 'virt', disks: [{ ...QEMU.disks[0]!, device: 'sd-card' }] } }
    const { warnings } = qemuArguments(options(odd, { machineType: 'family' }))
    assert.deepEqual(['UEFI', '/boot/vmlinuz', 'virt', 'sd-card'].filter((word) => !warnings.some((warning) => warning.includes(word))), [])
  })
  test('a hostile description adds no argument and no option, and the line for sh says exactly the same', () => {
    const text = fc.oneof(fc.string({ maxLength: 40 }), fc.constantFrom('a,file=/etc/shadow', '$(id)', "';id;'", '-daemonize', 'x\n-monitor stdio', 'pc,kernel=/x', '`id`', '\u001b[2J', 'é,,=')).map((one) => one.replaceAll('\0', ''))
    fc.assert(fc.property(text, text, text, text, text, (a, b, c, d, e) => {
      const hostile: MachineDescription = { ...MACHINE, name: a, uuid: b, qemu: { ...QEMU, machineType: c, cpuModel: d, kernel: { file: e },
        disks: [{ ...QEMU.disks[0]!, device: a, serial: b, file: c, qdev: d }], networkCards: [{ model: e, mac: a }] } }
      const { args } = qemuArguments(options(hostile))
      const flags = ['-name', '-nodefaults', '-uuid', '-machine', '-cpu', '-smp', '-m', '-blockdev', '-device', '-netdev']
      for (let i = 0; i < args.length; i++) {
        assert.ok(flags.includes(args[i]!), args[i])
        if (args[i] !== '-nodefaults') i++
      }
      for (const value of [...after(args, '-machine'), ...after(args, '-cpu'), ...after(args, '-uuid')]) assert.match(value, /^[A-Za-z0-9._-]+$/)
      for (const value of after(args, '-name')) assert.doesNotMatch(value.replace('guest=', '').replaceAll(',,', ''), /,/)
      for (const value of after(args, '-device')) JSON.parse(value)
      assert.ok(!args.some((one) => one.includes('/etc/shadow') && !one.startsWith('guest=') && !one.startsWith('{')))
    }))
    for (const word of ["it's", '$(id)', '`id`', 'a\nb', '', '*', '~', '"', '\\', 'plain-1', '!x', '#']) assert.equal(execFileSync('sh', ['-c', `printf %s ${shellQuote(word)}`], { encoding: 'utf8' }), word)
  })
})

describe('XML', () => {
  test('what is written is read again, whatever is in it', () => {
    const name = fc.stringMatching(/^[a-z][a-z0-9]{0,5}$/)
    const { element } = fc.letrec<{ element: XmlElement }>((tie) => ({ element: fc.record({
      name, attributes: fc.dictionary(name, fc.string()), children: fc.oneof({ maxDepth: 3 }, fc.constant([]), fc.array(tie('element'), { maxLength: 3 })) }) as fc.Arbitrary<XmlElement> }))
    fc.assert(fc.property(element, (tree) => {
      const back = parseXml(formatXml(tree))
      assert.equal(formatXml(back), formatXml(tree))
    }))
    fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => { assert.doesNotMatch(escapeXml(text), /[<>"']|&(?!(?:lt|gt|amp|quot|apos|#\d+);)/) }))
  })
  test('what is not well-formed is refused, and DOCTYPE with it', () => {
    for (const text of ['', '<a>', '<a></b>', '<a b=c/>', '<a b="1" b="2"/>', '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', '<a>&x;</a>', '<a>&#0;</a>', '<a/><b/>', '<a b="<"/>', '<a>\u0001</a>', '<a>&amp</a>',
      '<a>'.repeat(100) + '</a>'.repeat(100)]) assert.throws(() => parseXml(text), { code: 'MACHINE_MALFORMED' }, text)
    assert.equal(textOf(parseXml('<?xml version="1.0"?><!-- c --><a><![CDATA[x<y]]>&#65;&lt;</a>')), 'x<yA<')
    fc.assert(fc.property(fc.string(), (text) => { try { parseXml(`<a>${text}</a>`) } catch (error) { assert.equal((error as { code?: string }).code, 'MACHINE_MALFORMED') } }))
  })
})

const RECORDED = `<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name><uuid>01234567-89ab-cdef-0123-456789abcdef</uuid>
  <metadata><secret>x</secret></metadata><memory unit='KiB'>524288</memory><vcpu placement='static'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader readonly='yes' type='pflash'>/evil/code.fd</loader><boot dev='hd'/></os>
  <features><acpi/><apic/></features><cpu mode='host-passthrough' check='none'/>
  <devices>
    <emulator>/evil/qemu</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/b.raw' index='1'/><backingStore/><target dev='vdb' bus='virtio'/><address type='pci' slot='0x08'/></disk>
    <disk type='block' device='disk'><source dev='/var/lib/a.qcow2'/><target dev='vda' bus='virtio'/><boot order='1'/><serial>S&amp;1</serial></disk>
    <disk type='file' device='disk'><source file='/elsewhere'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/evil.iso'/><target dev='sda' bus='sata'/></disk>
    <interface type='bridge'><mac address='52:54:00:12:34:56'/><source bridge='br0'/><script path='/evil.sh'/><model type='virtio'/></interface>
    <filesystem type='mount'><source dir='/'/><target dir='all'/></filesystem><hostdev mode='subsystem'/>
    <channel type='unix'><source mode='bind' path='/evil'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
  <qemu:commandline><qemu:arg value='-evil'/></qemu:commandline>
</domain>`
describe('XML of libvirt', () => {
  const disks: DomainDisk[] = [{ name: 'vda', file: '/srv/a & b.qcow2', format: 'qcow2', origin: '/var/lib/a.qcow2', device: 'virtio-blk-pci' }, { name: 'vdb', file: '/srv/vdb.qcow2', format: 'qcow2', origin: '/var/lib/b.raw' }]
  const isWellFormed = (text: string): void => {
    parseXml(text)
    if (!hasTool('python3')) return
    const { status, stderr } = spawnSync('python3', ['-c', 'import sys, xml.dom.minidom; xml.dom.minidom.parseString(sys.stdin.buffer.read())'], { input: text, encoding: 'utf8' })
    assert.equal(status, 0, stderr)
  }
  test('recorded XML comes back with our disks in their places, and without what reaches into a host', () => {
    const { text, warnings } = libvirtDomain({ ...MACHINE, libvirtXml: RECORDED }, disks)
    isWellFormed(text)
    assert.doesNotMatch(text, /evil|metadata|filesystem|hostdev|backingStore|commandline/)
    const devices = childrenOf(parseXml(text), 'devices')[0]!
    const found = childrenOf(devices, 'disk').map((disk) => [childrenOf(disk, 'source')[0]!.attributes['file'], childrenOf(disk, 'target')[0]!.attributes['dev'], textOf(childrenOf(disk, 'serial')[0])])
    assert.deepEqual(found, [['/srv/vdb.qcow2', 'vdb', ''], ['/srv/a & b.qcow2', 'vda', 'S&1']])
    assert.match(text, /<os firmware='efi'>/)
    assert.match(text, /machine='pc-q35-7\.2'/)
    assert.match(text, /<source bridge='br0'\/>/)
    assert.match(text, /<link state='down'\/>/)
    assert.deepEqual(['vdc', 'UEFI variables', 'filesystem', 'links down'].filter((word) => !warnings.some((warning) => warning.includes(word))), [])
  })
  test('without recorded XML one is made; without a description too', () => {
    for (const description of [MACHINE, undefined]) {
      const { text } = libvirtDomain(description, disks)
      isWellFormed(text)
      assert.equal(childrenOf(childrenOf(parseXml(text), 'devices')[0]!, 'disk').length, 2)
    }
  })
  test('any text in a description, and any recorded XML, gives well-formed XML with our disks alone, or is refused', () => {
    const text = fc.oneof(fc.string({ unit: 'binary', maxLength: 30 }), fc.constantFrom("' evil='1", '<evil/>', ']]>', '&evil;', '-->', '\u0000'))
    fc.assert(fc.property(text, text, text, (a, b, c) => {
      const hostile: MachineDescription = { ...MACHINE, name: a, uuid: b, qemu: { ...QEMU, machineType: c, networkCards: [{ model: a, mac: b }] } }
      const withXml = `<domain type='${escapeXml(a)}'><name>${escapeXml(b)}</name><vcpu x='${escapeXml(c)}'>${escapeXml(a)}</vcpu><cpu><a b='${escapeXml(b)}'>${escapeXml(c)}</a></cpu><devices><interface type='network'><source network='${escapeXml(a)}'/></interface></devices></domain>`
      for (const one of [hostile, { ...hostile, libvirtXml: withXml }]) {
        const domain = parseXml(libvirtDomain(one, disks).text)
        const devices = childrenOf(domain, 'devices')
        assert.equal(devices.length, 1)
        assert.deepEqual(childrenOf(devices[0]!, 'disk').map((disk) => childrenOf(disk, 'source')[0]!.attributes['file']), disks.map(({ file }) => file))
        assert.ok(!JSON.stringify(domain).includes('"name":"evil"'))
      }
    }))
  })
})
