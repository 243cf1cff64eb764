/** The text of a machine.json, checked: whoever saved it may be a stranger, so nothing in it is believed beyond its shape, its bounds and
 *  the alphabets of what goes into command lines and XML. Members that are not known are left out.
 */
import { ClientError } from '../../src/protocol/client-errors.js'
import {
  MACHINE_FILE, MACHINE_FILE_BYTES_MAX, type DiskDescription, type MachineDescription, type NovaDescription, type QemuDescription,
} from './machine-description.js'

const TEXT_MAX = 4_096
const LIST_MAX = 1_024
const CPUS_MAX = 4_096
/** Nova's bound: 65535 of base64. */
const USER_DATA_CHARACTERS_MAX = 65_535
const CONSISTENCIES = ['agent', 'crash', 'stopped'] as const
const FIRMWARES = ['bios', 'uefi'] as const
type Json = Readonly<Record<string, unknown>>

/** @throws {ClientError} MACHINE_MALFORMED, saying which member is wrong */
export function parseMachineDescription(bytes: Uint8Array): MachineDescription {
  if (bytes.byteLength > MACHINE_FILE_BYTES_MAX) throw malformed('it is too long')
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw malformed('it is not JSON', error)
  }
  const top = object(value, 'the whole')
  if (top['format'] !== 1) throw malformed('"format" is not 1: it is of a newer version')
  return {
    format: 1, name: text(top['name'], 'name'), capturedAt: text(top['capturedAt'], 'capturedAt'),
    consistency: oneOf(CONSISTENCIES, top['consistency'], 'consistency'),
    ...optional('uuid', top['uuid'], text), ...optional('qemu', top['qemu'], parseQemu),
    ...optional('libvirtXml', top['libvirtXml'], (xml, where) => text(xml, where, MACHINE_FILE_BYTES_MAX)),
    ...optional('nova', top['nova'], parseNova),
  }
}

function parseQemu(value: unknown, where: string): QemuDescription {
  const qemu = object(value, where)
  return {
    version: text(qemu['version'], `${where}.version`), machineType: text(qemu['machineType'], `${where}.machineType`),
    ...optional('cpuModel', qemu['cpuModel'], text),
    cpus: count(qemu['cpus'], `${where}.cpus`, CPUS_MAX), memoryBytes: count(qemu['memoryBytes'], `${where}.memoryBytes`),
    firmware: oneOf(FIRMWARES, qemu['firmware'], `${where}.firmware`),
    ...optional('kernel', qemu['kernel'], (kernel, at) => {
      const parts = object(kernel, at)
      return { file: text(parts['file'], `${at}.file`), ...optional('initrd', parts['initrd'], text), ...optional('commandLine', parts['commandLine'], text) }
    }),
    disks: list(qemu['disks'], `${where}.disks`).map((disk, i) => parseDisk(disk, `${where}.disks[${i}]`)),
    networkCards: list(qemu['networkCards'], `${where}.networkCards`).map((card, i) => {
      const at = `${where}.networkCards[${i}]`
      const parts = object(card, at)
      return { model: text(parts['model'], `${at}.model`), mac: text(parts['mac'], `${at}.mac`) }
    }),
  }
}
function parseDisk(value: unknown, where: string): DiskDescription {
  const disk = object(value, where)
  return {
    image: text(disk['image'], `${where}.image`), bytes: count(disk['bytes'], `${where}.bytes`), device: text(disk['device'], `${where}.device`),
    qdev: text(disk['qdev'], `${where}.qdev`), format: text(disk['format'], `${where}.format`), ...optional('file', disk['file'], text),
    ...optional('bootIndex', disk['bootIndex'], (index, at) => count(index, at)), ...optional('serial', disk['serial'], text),
  }
}
function parseNova(value: unknown, where: string): NovaDescription {
  const nova = object(value, where)
  const strings = (values: unknown, at: string): string[] => list(values, at).map((one, i) => text(one, `${at}[${i}]`))
  const pairs = (values: unknown, at: string): Record<string, string> =>
    Object.fromEntries(Object.entries(object(values, at)).slice(0, LIST_MAX).map(([key, one]) => [key, text(one, `${at}.${key.slice(0, 64)}`)]))
  return {
    serverId: text(nova['serverId'], `${where}.serverId`), server: object(nova['server'], `${where}.server`),
    ...optional('projectId', nova['projectId'], text), ...optional('keyName', nova['keyName'], text), ...optional('availabilityZone', nova['availabilityZone'], text),
    ...optional('configDrive', nova['configDrive'], truth), ...optional('userData', nova['userData'], (data, at) => text(data, at, USER_DATA_CHARACTERS_MAX)),
    flavor: parseFlavor(nova['flavor'], `${where}.flavor`, pairs), ...optional('image', nova['image'], (image, at) => {
      const parts = object(image, at)
      return { id: text(parts['id'], `${at}.id`), ...optional('name', parts['name'], text), properties: object(parts['properties'], `${at}.properties`) }
    }),
    securityGroups: strings(nova['securityGroups'], `${where}.securityGroups`), metadata: pairs(nova['metadata'], `${where}.metadata`),
    tags: strings(nova['tags'], `${where}.tags`), warnings: strings(nova['warnings'], `${where}.warnings`),
    ports: list(nova['ports'], `${where}.ports`).map((port, i) => {
      const at = `${where}.ports[${i}]`
      const parts = object(port, at)
      const fixedIps = list(parts['fixedIps'], `${at}.fixedIps`).map((ip, k) => {
        const address = object(ip, `${at}.fixedIps[${k}]`)
        return { address: text(address['address'], `${at}.fixedIps[${k}].address`), ...optional('subnetId', address['subnetId'], text) }
      })
      return { ...optional('networkId', parts['networkId'], text), ...optional('networkName', parts['networkName'], text), mac: text(parts['mac'], `${at}.mac`), fixedIps }
    }),
    volumes: list(nova['volumes'], `${where}.volumes`).map((volume, i) => {
      const parts = object(volume, `${where}.volumes[${i}]`)
      return { id: text(parts['id'], `${where}.volumes[${i}].id`), ...optional('device', parts['device'], text), ...optional('deleteOnTermination', parts['deleteOnTermination'], truth) }
    }),
  }
}
function parseFlavor(value: unknown, where: string, pairs: (values: unknown, at: string) => Record<string, string>): NovaDescription['flavor'] {
  const flavor = object(value, where)
  return {
    ...optional('name', flavor['name'], text), vcpus: count(flavor['vcpus'], `${where}.vcpus`), ramMiB: count(flavor['ramMiB'], `${where}.ramMiB`),
    diskGiB: count(flavor['diskGiB'], `${where}.diskGiB`), ...optional('ephemeralGiB', flavor['ephemeralGiB'], (n, at) => count(n, at)),
    ...optional('swapMiB', flavor['swapMiB'], (n, at) => count(n, at)), ...optional('extraSpecs', flavor['extraSpecs'], pairs),
  }
}

function malformed(what: string, cause?: unknown): ClientError {
  return new ClientError('MACHINE_MALFORMED', `${MACHINE_FILE} of the snapshot is not as it should be: ${what}.`, cause === undefined ? undefined : { cause })
}
function object(value: unknown, where: string): Json {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw malformed(`${where} is not an object`)
  return value as Json
}
function text(value: unknown, where: string, charactersMax = TEXT_MAX): string {
  if (typeof value !== 'string') throw malformed(`${where} is not a text`)
  if (value.length > charactersMax) throw malformed(`${where} is too long`)
  if (value.includes('\0')) throw malformed(`${where} has a NUL in it`)
  return value
}
function count(value: unknown, where: string, max = Number.MAX_SAFE_INTEGER): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0 || value > max) throw malformed(`${where} is not a whole number up to ${max}`)
  return value
}
function truth(value: unknown, where: string): boolean {
  if (typeof value !== 'boolean') throw malformed(`${where} is neither true nor false`)
  return value
}
function list(value: unknown, where: string): readonly unknown[] {
  if (!Array.isArray(value)) throw malformed(`${where} is not a list`)
  if (value.length > LIST_MAX) throw malformed(`${where} has more than ${LIST_MAX} members`)
  return value
}
function oneOf<T extends string>(choices: readonly T[], value: unknown, where: string): T {
  const found = choices.find((choice) => choice === value)
  if (found === undefined) throw malformed(`${where} is none of ${choices.join(', ')}`)
  return found
}
/** The member, where it is there: absent stays absent. */
function optional<K extends string, T>(name: K, value: unknown, parse: (value: unknown, where: string) => T): { [P in K]?: T } {
  return value === undefined || value === null ? {} : { [name]: parse(value, name) } as { [P in K]: T }
}
