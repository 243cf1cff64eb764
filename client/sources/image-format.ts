/** Which format an image file is of: said by the user, or by the name of the file; never by its content.
 *
 *  A raw disk's content is its guest's: one that begins with the header of a qcow2 file whose backing file is /etc/shadow would, if believed, put the host's
 *  file into the guest's backup. So content only ever leads to a question (docs/sources.md).
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { ClientError } from '../../src/protocol/client-errors.js'

/** QEMU's names. */
export const IMAGE_FORMATS = ['raw', 'qcow2', 'qcow', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qed', 'parallels'] as const
export type ImageFormat = (typeof IMAGE_FORMATS)[number]

const BY_EXTENSION: Readonly<Record<string, ImageFormat>> = {
  raw: 'raw', qcow2: 'qcow2', qcow: 'qcow', vmdk: 'vmdk', vdi: 'vdi', vhdx: 'vhdx', vhd: 'vpc', vpc: 'vpc', qed: 'qed', hds: 'parallels',
}
/** Undefined: the name says nothing. */
export function formatOfName(path: Buffer): ImageFormat | undefined {
  const [, extension] = /\.([A-Za-z0-9]+)$/.exec(path.toString('latin1')) ?? []
  return extension === undefined ? undefined : BY_EXTENSION[extension.toLowerCase()]
}
/** What the beginning of a file looks like; 'raw' for anything else. For questions, and to compare with what is said. */
export function formatOfContent(path: Buffer): ImageFormat {
  const head = Buffer.alloc(512)
  const fd = openSync(path, 'r')
  try { readSync(fd, head, 0, head.byteLength, 0) } finally { closeSync(fd) }
  const text = head.toString('latin1')
  if (text.startsWith('QFI\xfb')) return head.readUInt32BE(4) === 1 ? 'qcow' : 'qcow2'
  if (text.startsWith('KDMV') || text.startsWith('COWD') || text.startsWith('# Disk DescriptorFile')) return 'vmdk'
  if (text.startsWith('vhdxfile')) return 'vhdx'
  if (text.startsWith('conectix')) return 'vpc'
  if (text.startsWith('QED\0')) return 'qed'
  if (text.startsWith('WithoutFreeSpace') || text.startsWith('WithouFreSpacExt')) return 'parallels'
  return head.readUInt32LE(0x40) === 0xbeda107f ? 'vdi' : 'raw'
}
/** @throws {ClientError} SOURCE_REFUSED when nobody said, and it looks like something else than a raw image */
export function chooseFormat(path: Buffer, said: ImageFormat | undefined): ImageFormat {
  const named = said ?? formatOfName(path)
  if (named !== undefined) return named
  const looks = formatOfContent(path)
  if (looks === 'raw') return 'raw'
  throw new ClientError('SOURCE_REFUSED', `${path.toString()} begins like a ${looks} image, and neither its name nor --format says that it is one. Say --format ${looks} if it was made as one; ` +
    'say --format raw if it is the disk of a machine, which can write such a beginning itself.')
}
