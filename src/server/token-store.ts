/** Bearer tokens: `roost_<token id>_<secret>`. Only a hash of the secret is kept, in one private file.
 *
 *  The secret is 256 random bits, so a plain hash suffices: there is nothing to guess. A change is durable before it takes
 *  effect and before it is acknowledged.
 */
import { timingSafeEqual } from 'node:crypto'
import type { Clock } from '../core/clock.js'
import { Mutex } from '../core/concurrency.js'
import { RoostError } from '../core/errors.js'
import { digest } from '../core/hash.js'
import type { CreateTokenReply, CreateTokenRequest, TokenGrant, TokenInfo } from '../core/messages.js'
import type { Random } from '../core/random.js'
import { readJsonFile, writeJsonFile } from './atomic-json-file.js'

const TOKEN_PATTERN = /^roost_([0-9a-f]{16})_([0-9a-f]{64})$/
const TOKENS_MAX = 10_000
const FILE_FORMAT = 1

interface StoredToken extends TokenInfo { readonly secretHash: string }
interface TokenFile { readonly format: number; readonly tokens: readonly StoredToken[] }

/** Who calls: what a valid token says. */
export interface Principal { readonly tokenId: string; readonly grants: readonly TokenGrant[] }

export interface TokenStoreDeps { readonly path: string; readonly clock: Clock; readonly random: Random }

export class TokenStore {
  readonly #deps: TokenStoreDeps
  readonly #changes = new Mutex()
  #tokens: ReadonlyMap<string, StoredToken>
  private constructor(deps: TokenStoreDeps, tokens: readonly StoredToken[], readonly isNew: boolean) {
    this.#deps = deps
    this.#tokens = new Map(tokens.map((token) => [token.tokenId, token]))
  }

  /** An absent file is an empty, new store; an unreadable one throws, since starting without it would lock everyone out. */
  static async open(deps: TokenStoreDeps): Promise<TokenStore> {
    const file = await readJsonFile(deps.path)
    return new TokenStore(deps, file === undefined ? [] : parseTokenFile(file, deps.path), file === undefined)
  }

  list(): TokenInfo[] { return [...this.#tokens.values()].map(withoutHash) }

  /** `keep` gets the token before it becomes valid: a crash between the two leaves a token that opens nothing, never a valid
   *  one that nobody knows. @throws {RoostError} LIMIT_EXCEEDED */
  create(request: CreateTokenRequest, keep?: (token: string) => Promise<void>): Promise<CreateTokenReply> {
    return this.#changes.run(async () => {
      if (this.#tokens.size >= TOKENS_MAX)
        throw new RoostError('LIMIT_EXCEEDED', `A server keeps at most ${TOKENS_MAX} tokens.`, { limit: TOKENS_MAX })
      const { clock, random } = this.#deps
      const tokenId = random.bytes(8).toString('hex'), secret = random.bytes(32).toString('hex')
      const info: TokenInfo = { ...request, tokenId, createdAtMs: clock.now() }
      const token = `roost_${tokenId}_${secret}`
      await keep?.(token)
      await this.#replace(new Map(this.#tokens).set(tokenId, { ...info, secretHash: hashSecret(secret).toString('hex') }))
      return { ...info, token }
    })
  }

  /** @throws {RoostError} TOKEN_UNKNOWN */
  revoke(tokenId: string): Promise<void> {
    return this.#changes.run(async () => {
      const remaining = new Map(this.#tokens)
      if (!remaining.delete(tokenId)) throw new RoostError('TOKEN_UNKNOWN', 'There is no such token.')
      await this.#replace(remaining)
    })
  }

  /** The caller that a bearer token names, or undefined when it is malformed, unknown, revoked, expired or false. */
  verify(bearer: string): Principal | undefined {
    const parts = TOKEN_PATTERN.exec(bearer)
    const token = parts === null ? undefined : this.#tokens.get(parts[1]!)
    const offered = hashSecret(parts?.[2] ?? '')
    if (token === undefined || !timingSafeEqual(offered, Buffer.from(token.secretHash, 'hex'))) return undefined
    if (token.expiresAtMs !== undefined && token.expiresAtMs <= this.#deps.clock.now()) return undefined
    return { tokenId: token.tokenId, grants: token.grants }
  }

  async #replace(tokens: ReadonlyMap<string, StoredToken>): Promise<void> {
    const file: TokenFile = { format: FILE_FORMAT, tokens: [...tokens.values()] }
    await writeJsonFile(this.#deps.path, file)
    this.#tokens = tokens
  }
}

const hashSecret = (secret: string): Buffer => digest(Buffer.from(secret, 'latin1'))

function withoutHash(token: StoredToken): TokenInfo {
  const { secretHash: _kept, ...info } = token
  return info
}

function parseTokenFile(value: unknown, path: string): readonly StoredToken[] {
  const file = value as Partial<TokenFile> | null
  if (file?.format !== FILE_FORMAT || !Array.isArray(file.tokens) || !file.tokens.every(isStoredToken))
    throw new Error(`${path} is not a token file of format ${FILE_FORMAT}.`)
  return file.tokens
}
function isStoredToken(value: unknown): value is StoredToken {
  const token = value as Partial<StoredToken> | null
  return typeof token?.tokenId === 'string' && /^[0-9a-f]{64}$/.test(token.secretHash ?? '') && Array.isArray(token.grants) &&
    (token.expiresAtMs === undefined || typeof token.expiresAtMs === 'number')
}
