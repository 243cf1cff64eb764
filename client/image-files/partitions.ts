/** Partition tables of a disk: MBR with its chain of logical partitions, and GPT with its backup. Reads a handful of sectors; writes nothing.
 *
 *  A table of a stranger: every number is held against the length of the image, chains end after LOGICAL_MAX, tables after ENTRIES_MAX.
 */
import { readRange, type ByteSource } from '../nbd/read-range.js'
import { crc32 } from './crc32.js'

/** `number`: as Linux counts them (sda1 is 1). `offset`, `bytes`: within the image, never past its end. */
export interface Partition { readonly number: number; readonly offset: number; readonly bytes: number; readonly type: string; readonly name?: string }
export interface PartitionTable { readonly kind: 'gpt' | 'mbr'; readonly partitions: readonly Partition[]; readonly warnings: readonly string[] }

const SECTOR_BYTES = 512
const LOGICAL_MAX = 128
const ENTRIES_MAX = 1_024
const ENTRY_BYTES_MIN = 128
const ENTRY_BYTES_MAX = 4_096
const GPT_TYPE = 0xee
const EXTENDED_TYPES = new Set([0x05, 0x0f, 0x85])
const MBR_TYPES: Readonly<Record<number, string>> = {
  0x01: 'FAT12', 0x04: 'FAT16', 0x06: 'FAT16', 0x07: 'NTFS or exFAT', 0x0b: 'FAT32', 0x0c: 'FAT32', 0x0e: 'FAT16', 0x82: 'Linux swap', 0x83: 'Linux', 0x8e: 'Linux LVM',
  0xa5: 'FreeBSD', 0xef: 'EFI system', 0xfd: 'Linux RAID',
}
const GPT_TYPES: Readonly<Record<string, string>> = {
  'C12A7328-F81F-11D2-BA4B-00A0C93EC93B': 'EFI system', '21686148-6449-6E6F-744E-656564454649': 'BIOS boot', '0FC63DAF-8483-4772-8E79-3D69D8477DE4': 'Linux',
  '4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709': 'Linux root (x86-64)', 'BC13C2FF-59E6-4262-A352-B275FD6F7172': 'Linux extended boot',
  '0657FD6D-A4AB-43C4-84E5-0933C84B4F4F': 'Linux swap', 'E6D6D379-F507-44C2-A23C-238F2A3DF928': 'Linux LVM', 'A19D880F-05FC-4D3B-A006-743F0F84911E': 'Linux RAID',
  'EBD0A0A2-B9E5-4433-87C0-68B6B72699C7': 'Microsoft basic data', 'E3C9E316-0B5C-4DB8-817D-F92DF00215AE': 'Microsoft reserved',
  'DE94BBA4-06D1-4D40-A16A-BFD50179D6AC': 'Windows recovery', '933AC7E1-2EB4-4F13-B844-0E14E2AEF915': 'Linux home',
}

/** Undefined: the image has no partition table that we know. */
export async function readPartitions(image: ByteSource): Promise<PartitionTable | undefined> {
  if (image.bytes < 2 * SECTOR_BYTES) return undefined
  const first = await readRange(image, 0, SECTOR_BYTES)
  const hasMbr = first[510] === 0x55 && first[511] === 0xaa
  const gpt = await readGpt(image)
  if (gpt !== undefined) return gpt
  return hasMbr && looksLikeMbr(first, image.bytes) ? await readMbr(image, first) : undefined
}

/** A boot sector of a file system ends with the same two bytes: what stands where the entries would be tells them apart. */
function looksLikeMbr(sector: Buffer, imageBytes: number): boolean {
  let used = 0
  for (let i = 0; i < 4; i++) {
    const at = 446 + 16 * i
    const status = sector[at]!
    if (status !== 0 && status !== 0x80) return false
    const [type, start, sectors] = [sector[at + 4]!, sector.readUInt32LE(at + 8), sector.readUInt32LE(at + 12)]
    if (type === 0) continue
    if (start === 0 && type !== GPT_TYPE || start * SECTOR_BYTES >= imageBytes || sectors === 0) return false
    used++
  }
  return used > 0
}
async function readMbr(image: ByteSource, sector: Buffer): Promise<PartitionTable> {
  const partitions: Partition[] = []
  const warnings: string[] = []
  for (let i = 0; i < 4; i++) {
    const { type, start, sectors } = mbrEntry(sector, i)
    if (type === 0 || type === GPT_TYPE) continue
    if (EXTENDED_TYPES.has(type)) partitions.push(...await readLogical(image, start, warnings))
    else partitions.push(...placed(image, { number: i + 1, start, sectors, sectorBytes: SECTOR_BYTES, type: MBR_TYPES[type] ?? `type 0x${type.toString(16).padStart(2, '0')}` }, warnings))
  }
  return { kind: 'mbr', partitions: partitions.sort((a, b) => a.number - b.number), warnings }
}
/** Each extended boot record names one partition and the next record; both count from places of their own. */
async function readLogical(image: ByteSource, extendedStart: number, warnings: string[]): Promise<Partition[]> {
  const partitions: Partition[] = []
  const seen = new Set<number>()
  for (let record = extendedStart, number = 5; seen.size < LOGICAL_MAX; number++) {
    if (seen.has(record) || (record + 1) * SECTOR_BYTES > image.bytes) { warnings.push('The chain of logical partitions is broken.'); break }
    seen.add(record)
    const sector = await readRange(image, record * SECTOR_BYTES, SECTOR_BYTES)
    if (sector[510] !== 0x55 || sector[511] !== 0xaa) { warnings.push('The chain of logical partitions is broken.'); break }
    const own = mbrEntry(sector, 0), next = mbrEntry(sector, 1)
    if (own.type !== 0)
      partitions.push(...placed(image, { number, start: record + own.start, sectors: own.sectors, sectorBytes: SECTOR_BYTES,
        type: MBR_TYPES[own.type] ?? `type 0x${own.type.toString(16).padStart(2, '0')}` }, warnings))
    if (!EXTENDED_TYPES.has(next.type)) break
    record = extendedStart + next.start
  }
  return partitions
}
function mbrEntry(sector: Buffer, i: number): { readonly type: number; readonly start: number; readonly sectors: number } {
  const at = 446 + 16 * i
  return { type: sector[at + 4]!, start: sector.readUInt32LE(at + 8), sectors: sector.readUInt32LE(at + 12) }
}

async function readGpt(image: ByteSource): Promise<PartitionTable | undefined> {
  for (const sectorBytes of [SECTOR_BYTES, 4096]) {
    const lastSector = Math.floor(image.bytes / sectorBytes) - 1
    const main = await readGptAt(image, sectorBytes, 1)
    if (main !== undefined) return main
    const backup = await readGptAt(image, sectorBytes, lastSector)
    if (backup !== undefined) return { ...backup, warnings: ['The main GPT is damaged; this is its backup.', ...backup.warnings] }
  }
  return undefined
}
async function readGptAt(image: ByteSource, sectorBytes: number, sector: number): Promise<PartitionTable | undefined> {
  if (sector < 1 || (sector + 1) * sectorBytes > image.bytes) return undefined
  const header = await readRange(image, sector * sectorBytes, SECTOR_BYTES)
  if (header.toString('latin1', 0, 8) !== 'EFI PART') return undefined
  const headerBytes = header.readUInt32LE(12)
  if (headerBytes < 92 || headerBytes > SECTOR_BYTES) return undefined
  const unsummed = Buffer.from(header.subarray(0, headerBytes))
  unsummed.writeUInt32LE(0, 16)
  if (crc32(unsummed) !== header.readUInt32LE(16)) return undefined
  const [entriesAt, count, entryBytes] = [Number(header.readBigUInt64LE(72)) * sectorBytes, header.readUInt32LE(80), header.readUInt32LE(84)]
  if (count > ENTRIES_MAX || entryBytes < ENTRY_BYTES_MIN || entryBytes > ENTRY_BYTES_MAX || entryBytes % 8 !== 0 || entriesAt + count * entryBytes > image.bytes) return undefined
  const entries = await readRange(image, entriesAt, count * entryBytes)
  if (crc32(entries) !== header.readUInt32LE(88)) return undefined
  const partitions: Partition[] = []
  const warnings: string[] = []
  for (let i = 0; i < count; i++) {
    const entry = entries.subarray(i * entryBytes, (i + 1) * entryBytes)
    const type = guid(entry)
    if (/^[0-]+$/.test(type)) continue
    const [start, end] = [Number(entry.readBigUInt64LE(32)), Number(entry.readBigUInt64LE(40))]
    const name = entry.toString('utf16le', 56, 128).replace(/\0.*$/s, '')
    partitions.push(...placed(image, { number: i + 1, start, sectors: end - start + 1, sectorBytes, type: GPT_TYPES[type] ?? `type ${type}`, ...(name === '' ? {} : { name }) }, warnings))
  }
  return { kind: 'gpt', partitions, warnings }
}
function guid(bytes: Buffer): string {
  const hex = (from: number, to: number): string => bytes.toString('hex', from, to)
  const reversed = (from: number, to: number): string => Buffer.from(bytes.subarray(from, to)).reverse().toString('hex')
  return [reversed(0, 4), reversed(4, 6), reversed(6, 8), hex(8, 10), hex(10, 16)].join('-').toUpperCase()
}

interface Placing { readonly number: number; readonly start: number; readonly sectors: number; readonly sectorBytes: number; readonly type: string; readonly name?: string }
/** The partition as far as the image reaches; none when it begins past its end. */
function placed(image: ByteSource, { number, start, sectors, sectorBytes, type, name }: Placing, warnings: string[]): Partition[] {
  const offset = start * sectorBytes
  if (!(sectors > 0) || start < 1 || offset >= image.bytes) { warnings.push(`Partition ${number} is not within the image.`); return [] }
  const bytes = Math.min(sectors * sectorBytes, image.bytes - offset)
  if (bytes < sectors * sectorBytes) warnings.push(`Partition ${number} reaches past the end of the image.`)
  return [{ number, offset, bytes, type, ...(name === undefined ? {} : { name }) }]
}
