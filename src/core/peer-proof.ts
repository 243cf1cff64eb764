/** How a peer shows that it is the repository that it says: it signs a challenge of the other side's, for one session. */
import { signDetached, verifyDetached } from './nacl.js'
import type { PeerSessionReply } from './peer-messages.js'

const PREFIX = Buffer.from('roost peer v1\0', 'utf8')
export const CHALLENGE_BYTES = 32

type Proven = Pick<PeerSessionReply, 'repositoryId' | 'familyId' | 'sessionId'>
const messageOf = (challenge: string, { repositoryId, familyId, sessionId }: Proven): Buffer =>
  Buffer.concat([PREFIX, Buffer.from(challenge + repositoryId + familyId + sessionId, 'hex')])

/** Base64. */
export const provePeer = (challenge: string, reply: Proven, secretKey: Buffer): string => signDetached(messageOf(challenge, reply), secretKey).toString('base64')
export function isProvenPeer(challenge: string, reply: Proven & { readonly proof: string }, verifyKey: string): boolean {
  return verifyDetached(messageOf(challenge, reply), Buffer.from(reply.proof, 'base64'), Buffer.from(verifyKey, 'hex'))
}
