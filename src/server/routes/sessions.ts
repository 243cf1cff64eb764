/** Push and read sessions: the data path. */
import type { FastifyRequest } from 'fastify'
import type { CommitRequest, OpenSessionRequest } from '../../core/messages.js'
import { parseSessionId } from '../../core/ids.js'
import { openReplyStream } from '../reply-stream.js'
import { principalOf, repositoryOf, sessionOf } from '../gate.js'
import { holdReader } from '../readers.js'
import { serve, type Routes } from '../route-context.js'
import { authorizeSession } from '../source-rules.js'

export const sessionRoutes: Routes = (app, { intake, readers, clock }) => {
  serve(app, 'openSession', async (request) => {
    const repository = repositoryOf(request), wanted = request.body as OpenSessionRequest
    const caller = await authorizeSession(principalOf(request), repository, wanted)
    return repository.openSession(wanted, caller)
  })
  serve(app, 'closeSession', async (request) => { await repositoryOf(request).closeSession(sessionOf(request).sessionId) })
  serve(app, 'findMissing', async (request) => {
    const { sessionId } = sessionOf(request)
    return intake.withinBuffer(incoming(request), (idProofs) => repositoryOf(request).findMissing(sessionId, idProofs))
  })
  serve(app, 'putChunks', async (request) => {
    const { sessionId } = sessionOf(request)
    const { verdicts } = await intake.within(incoming(request), (body) => repositoryOf(request).putChunks(sessionId, body, request.passage.signal))
    return verdicts
  })
  serve(app, 'readChunks', async (request, reply) => {
    const { sessionId } = sessionOf(request), { signal } = request.passage
    // The ids (at most 256 KiB) outlive their reservation: a reply may take long, and readers have a bound of their own.
    const ids = await intake.withinBuffer(incoming(request), async (body) => body)
    await holdReader(readers, { clock, signal, response: reply.raw })
    return openReplyStream(repositoryOf(request).readChunks(sessionId, ids, signal), clock)
  })
  serve(app, 'commit', async (request) =>
    repositoryOf(request).commit(parseSessionId((request.params as { session: string }).session), // the gate has seen whose it is or was
      request.body as CommitRequest, request.passage.signal))
}

function incoming(request: FastifyRequest) {
  const { bodyBytes: bytes, signal, session } = request.passage
  return { source: request.raw, bytes, signal, ...(session === undefined ? {} : { session: session.sessionId as string }) }
}
