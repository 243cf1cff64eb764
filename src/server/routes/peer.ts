/** What another server of the family asks of a repository: sending it a snapshot, or receiving one. */
import type { FastifyRequest } from 'fastify'
import { parseSessionId, type SessionId } from '../../core/ids.js'
import type { SignedSnapshot } from '../../core/messages.js'
import type { FamilyRequest, Origin, PeerSessionRequest } from '../../core/peer-messages.js'
import { encodedGroups } from '../../repo/replica/fetch-groups.js'
import { principalOf, repositoryOf, sessionOf } from '../gate.js'
import { holdReader } from '../readers.js'
import { openReplyStream } from '../reply-stream.js'
import { parameter, serve, type Routes } from '../route-context.js'

export const peerRoutes: Routes = (app, { intake, readers, clock, host }) => {
  const incoming = (request: FastifyRequest): { source: FastifyRequest['raw']; bytes: number; signal: AbortSignal; session: SessionId } => {
    const { bodyBytes: bytes, signal } = request.passage
    return { source: request.raw, bytes, signal, session: sessionOf(request).sessionId }
  }
  const peer = (request: FastifyRequest) => repositoryOf(request).peer

  serve(app, 'stateFamily', async (request) => peer(request).stateFamily((request.body as FamilyRequest).publicKey))
  serve(app, 'outlineSnapshots', async (request) => peer(request).outline((request.query as { after?: string }).after))
  serve(app, 'openPeerSession', async (request) => peer(request).openSession(request.body as PeerSessionRequest, { tokenId: principalOf(request).tokenId }))
  serve(app, 'fetchGroups', async (request, reply) => {
    const { sessionId } = sessionOf(request), { signal } = request.passage
    const ids = await intake.withinBuffer(incoming(request), async (body) => body)
    await holdReader(readers, { clock, signal, response: reply.raw })
    return openReplyStream(encodedGroups(peer(request).fetch(sessionId, ids, signal)), clock)
  })
  serve(app, 'holdChunks', async (request) => intake.withinBuffer(incoming(request), (ids) => peer(request).hold(sessionOf(request).sessionId, ids)))
  serve(app, 'inheritChildren', async (request) => intake.withinBuffer(incoming(request), (ids) =>
    peer(request).inherit(sessionOf(request).sessionId, ids, request.passage.signal)))
  serve(app, 'putGroups', async (request) => {
    const { verdicts } = await intake.within(incoming(request), async (body) =>
      ({ verdicts: await peer(request).putGroups(sessionOf(request).sessionId, body, request.passage.signal), recycled: body.buffer }))
    return verdicts
  })
  // Its session ends with it: who asks again is told what was taken in.
  serve(app, 'receiveSnapshot', async (request) => peer(request).receive(parseSessionId(parameter(request, 'session')), request.body as SignedSnapshot, request.passage.signal))
  serve(app, 'offerReplica', async () => host.offerReplica())
  serve(app, 'listOrigins', async (request) => peer(request).listOrigins())
  serve(app, 'trustOrigin', async (request) => { await peer(request).trustOrigin(request.body as Origin) })
}
