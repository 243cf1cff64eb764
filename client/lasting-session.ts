/** A session for reading one snapshot that outlives the server's: when that was restarted, another one is opened and shown the same way through
 *  the tree, so that what was readable is readable again. Whoever reads notices a pause.
 *
 *  Consider: a request for nodes still delivers what the dying server had sent, while another request has found the session lost and opened a new
 *  one. Nodes that come so late are shown to the new session before the next request.
 *  Memory: a node's id for each node that was read, however often. A snapshot that was forgotten meanwhile cannot be opened again: SNAPSHOT_UNKNOWN.
 */
import { asBuffer } from '../src/core/bytes.js'
import { hasCode } from '../src/core/errors.js'
import { chunkKey, chunkKeyToId, parseSessionId, type ChunkKey, type SessionId } from '../src/core/ids.js'
import type { OpenSessionReply } from '../src/core/messages.js'
import type { ReadableSession } from './read-chunks.js'
import type { Call, ReadingClient } from './repository-client.js'

/** Requests for nodes that are answered at the same time, and more. */
const REQUESTS_UNDER_WAY_MAX = 16

interface Shown { readonly request: object; readonly ids: ChunkKey[] }

export class LastingSession implements ReadableSession {
  readonly dedupKey: Buffer
  #sessionId: SessionId
  #reopening: Promise<void> | undefined
  /** Nodes by request, in the order in which the requests were first answered: parents come before their children. */
  readonly #shown: Shown[] = []
  readonly #known = new Set<ChunkKey>()
  readonly #late: ChunkKey[] = []

  constructor(readonly client: ReadingClient, readonly snapshot: string, reply: OpenSessionReply, readonly call: Call) {
    this.dedupKey = Buffer.from(reply.dedupKey, 'hex')
    this.#sessionId = parseSessionId(reply.sessionId)
  }
  get sessionId(): SessionId { return this.#sessionId }

  noteServed(request: object, id: Uint8Array, by: SessionId): void {
    const key = chunkKey(asBuffer(id))
    if (this.#known.has(key)) return // read again by one who had let go of it: it is among those that are shown
    this.#known.add(key)
    const shown = this.#shown.slice(-REQUESTS_UNDER_WAY_MAX).find((one) => one.request === request)
    if (shown === undefined) this.#shown.push({ request, ids: [key] })
    else shown.ids.push(key)
    if (by !== this.#sessionId || this.#reopening !== undefined) this.#late.push(key)
  }
  async ready(): Promise<void> {
    await this.#reopening
    if (this.#late.length > 0) await this.#once(() => this.#showLate())
  }
  /** Resolves when another session can read what `lost` could. Many may ask at once. */
  async reopen(lost: SessionId): Promise<void> {
    if (lost === this.#sessionId) await this.#once(() => this.#reopen())
  }
  #once(work: () => Promise<void>): Promise<void> {
    this.#reopening ??= work().finally(() => { this.#reopening = undefined })
    return this.#reopening
  }
  async #reopen(): Promise<void> {
    for (;;) {
      const { sessionId: text } = await this.client.openSession({ kind: 'read', snapshot: this.snapshot }, this.call)
      const sessionId = parseSessionId(text)
      try {
        this.#late.length = 0
        for (const { ids } of this.#shown) await this.#show(sessionId, ids)
        this.#sessionId = sessionId
        return
      } catch (error) {
        // Lost once more, or the reply was cut: from the beginning. Each turn needs a server that opened a session.
        if (!hasCode(error, 'SESSION_LOST') && !hasCode(error, 'BODY_TRUNCATED')) throw error
      }
    }
  }
  /** One after the other: one may list the next. Lost meanwhile, all are shown to yet another session. */
  async #showLate(): Promise<void> {
    try {
      for (let key = this.#late.shift(); key !== undefined; key = this.#late.shift()) await this.#show(this.#sessionId, [key])
    } catch (error) {
      if (!hasCode(error, 'SESSION_LOST') && !hasCode(error, 'BODY_TRUNCATED')) throw error
      await this.#reopen()
    }
  }
  async #show(sessionId: SessionId, keys: readonly ChunkKey[]): Promise<void> {
    for await (const chunk of this.client.readChunks(sessionId, Buffer.concat(keys.map(chunkKeyToId)), this.call)) void chunk
  }
}
