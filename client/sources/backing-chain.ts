/** The files that an image is made of, found without trusting them: each is asked about in a format that its owner, not its content, says.
 *
 *  An image names its backing file, and QEMU opens what is named. Here it is looked at first: only local files in formats that are written down,
 *  no other protocols, no data files elsewhere.
 */
import { dirname, isAbsolute, join } from 'node:path'
import { ClientError } from '../../src/protocol/client-errors.js'
import { runProgram } from '../native/program.js'
import { formatOfContent, IMAGE_FORMATS, type ImageFormat } from './image-format.js'

export interface ImageFile { readonly path: string; readonly format: ImageFormat }
/** Snapshots of snapshots are few; this ends chains that loop. */
const CHAIN_MAX = 64

/** The image and its backing files, from the top down. `path` is absolute.
 *  @throws {ClientError} SOURCE_REFUSED for what is not followed; SOURCE_IN_USE; PROGRAM_MISSING; PROGRAM_FAILED */
export async function readBackingChain(top: ImageFile, signal: AbortSignal): Promise<ImageFile[]> {
  const chain: ImageFile[] = []
  for (let next: ImageFile | undefined = top; next !== undefined;) {
    if (chain.length >= CHAIN_MAX) throw refused(top.path, `it has more than ${CHAIN_MAX} backing files`)
    chain.push(next)
    next = backingOf(next, await imageInfo(next, signal))
  }
  return chain
}

type Info = Readonly<Record<string, unknown>>
async function imageInfo({ path, format }: ImageFile, signal: AbortSignal): Promise<Info> {
  let text: string
  try {
    text = (await runProgram('qemu-img', ['info', '-f', format, '--output=json', path], { signal, fromPackage: 'qemu-utils' })).stdout
  } catch (error) {
    if (error instanceof ClientError && error.code === 'PROGRAM_FAILED') throw inUse(path, error) ?? error
    throw error
  }
  const info: unknown = JSON.parse(text)
  return info as Info
}
function backingOf(image: ImageFile, info: Info): ImageFile | undefined {
  const data = object(object(info['format-specific'])?.['data'])
  if (data?.['data-file'] !== undefined) throw refused(image.path, 'its data is in another file, which it names itself')
  for (const extent of Array.isArray(data?.['extents']) ? data['extents'] as unknown[] : []) {
    const file = object(extent)?.['filename']
    if (typeof file === 'string' && dirname(file) !== dirname(image.path)) throw refused(image.path, `it names a part in another folder, ${file}`)
  }
  const named = info['backing-filename']
  if (named === undefined) return undefined
  if (typeof named !== 'string' || !isFileName(named)) throw refused(image.path, `its backing file is no plain file: ${JSON.stringify(named)}`)
  const path = isAbsolute(named) ? named : join(dirname(image.path), named)
  const said = info['backing-filename-format']
  const format = IMAGE_FORMATS.find((one) => one === said)
  if (format !== undefined) return { path, format }
  // VMDK has no place for it, and QEMU goes by the content: which must be what it is in a chain of VMDK.
  if (said === undefined && image.format === 'vmdk' && formatOfContent(Buffer.from(path)) === 'vmdk') return { path, format: 'vmdk' }
  throw refused(image.path, said === undefined ? `it does not say of which format its backing file ${path} is (write it down: qemu-img rebase -u -b ${named} -F FORMAT ${image.path})`
    : `its backing file ${path} is of the format ${JSON.stringify(said)}`)
}
/** No `json:`, `nbd:` and other things that QEMU would open. */
const isFileName = (named: string): boolean => named !== '' && !/^[A-Za-z][A-Za-z0-9+.-]*:/.test(named) && !named.includes('\0')
const object = (value: unknown): Info | undefined => typeof value === 'object' && value !== null ? value as Info : undefined
const refused = (path: string, reason: string): ClientError => new ClientError('SOURCE_REFUSED', `${path} is not read: ${reason}.`)

/** Undefined where that is not what is wrong. */
export function inUse(path: string, error: Error): ClientError | undefined {
  if (!/Failed to get .*lock/.test(error.message)) return undefined
  return new ClientError('SOURCE_IN_USE', `${path} is in use by a machine that runs: what is read of it now would be of many moments.`, { cause: error })
}
