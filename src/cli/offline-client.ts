/** The reading part of a client, straight on an open repository: what looks into snapshots works offline as well. */
import { decodeReadFrameHeader, READ_END, READ_FRAME_HEADER_BYTES, READ_STATUS } from '../core/frames.js'
import type { ReadChunk, ReadingClient } from '../../client/repository-client.js'
import type { Repository } from '../repo/repository.js'

const STATUS = { [READ_STATUS.ok]: 'ok', [READ_STATUS.missing]: 'missing', [READ_STATUS.notReadable]: 'not-readable' } as const
const TOKEN = 'offline'

export function offlineClient(repository: Repository, signal: AbortSignal): ReadingClient {
  return {
    openSession: (request) => repository.openSession(request, { tokenId: TOKEN }),
    closeSession: (session) => repository.closeSession(session),
    listSnapshots: ({ limit = 100, ...query }) => repository.listSnapshots({ ...query, limit }),
    readChunks: (session, ids) => readChunks(repository.readChunks(session, ids, signal)),
  }
}
async function* readChunks(parts: AsyncIterable<Buffer>): AsyncGenerator<ReadChunk> {
  let pending: Buffer = Buffer.alloc(0)
  for await (const part of parts) {
    pending = pending.byteLength === 0 ? part : Buffer.concat([pending, part])
    while (pending.byteLength >= READ_FRAME_HEADER_BYTES) {
      const { index, status, wireBytes } = decodeReadFrameHeader(pending.subarray(0, READ_FRAME_HEADER_BYTES))
      const end = READ_FRAME_HEADER_BYTES + wireBytes
      if (pending.byteLength < end) break
      const bytes = Buffer.from(pending.subarray(READ_FRAME_HEADER_BYTES, end))
      pending = pending.subarray(end)
      if (index !== READ_END) yield { index, status: STATUS[status], bytes: status === READ_STATUS.ok ? bytes : undefined }
    }
  }
}
