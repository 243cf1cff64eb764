/** Reads the body of a 206 with several ranges (RFC 9110 §14.6, multipart/byteranges). */
import type { ByteRange } from '../object-store.js'

/** The parts' bytes in the order of `ranges`, or undefined when the body is not what was asked for. Views into `body`. */
export function parseByteRanges(contentType: string, body: Buffer, ranges: readonly ByteRange[]): Buffer[] | undefined {
  const boundary = /^multipart\/byteranges;.*boundary="?([^";]+)"?/i.exec(contentType)?.[1]
  if (boundary === undefined) return undefined
  const found = new Map<number, Buffer>()
  const mark = Buffer.from(`--${boundary}`)
  for (let at = body.indexOf(mark); at >= 0;) {
    const headAt = at + mark.length
    if (body.subarray(headAt, headAt + 2).toString('latin1') === '--') break
    const dataAt = body.indexOf('\r\n\r\n', headAt)
    if (dataAt < 0) return undefined
    const range = /content-range:\s*bytes (\d+)-(\d+)\//i.exec(body.toString('latin1', headAt, dataAt))
    if (range === null) return undefined
    const bytes = Number(range[2]) - Number(range[1]) + 1
    if (dataAt + 4 + bytes > body.length) return undefined
    found.set(Number(range[1]), body.subarray(dataAt + 4, dataAt + 4 + bytes))
    at = body.indexOf(mark, dataAt + 4 + bytes)
  }
  const parts = ranges.map(({ offset }) => found.get(offset))
  return parts.every((part, i): part is Buffer => part?.length === ranges[i]!.bytes) ? parts : undefined
}
