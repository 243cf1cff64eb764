/** Bytes of an image in one buffer, for readers that look at structures rather than copy. */
import type { RandomAccessImage } from './image-reader.js'

/** What can be read at any place. */
export type ByteSource = Pick<RandomAccessImage, 'bytes' | 'read'>

/** Exactly `bytes`, in memory of its own; they are within the image. The caller bounds the number. */
export async function readRange(image: ByteSource, offset: number, bytes: number): Promise<Buffer> {
  const all = Buffer.alloc(bytes)
  if (bytes === 0) return all
  for (const { offset: at, data } of await image.read(offset, bytes)) data?.copy(all, at - offset)
  return all
}
