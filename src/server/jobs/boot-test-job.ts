/** Whether machines start, by schedule: the test itself is a client's, and is handed in from outside; here is what it may do, and for how long.
 *
 *  It gets a token that reads this one repository, which is revoked when the test is over. One that a killed server left expires, and is removed
 *  at the next start.
 */
import type { Clock } from '../../core/clock.js'
import { RoostError } from '../../core/errors.js'
import type { JobOptions, MaintenanceEvent } from '../../core/messages.js'
import type { Repository } from '../../repo/repository.js'
import type { TokenStore } from '../token-store.js'

export interface BootTestRequest { readonly repositoryUrl: string; readonly token: string; readonly options: JobOptions }
/** The last event is `done`. @throws {RoostError} BOOT_FAILED when the test could not be made */
export type BootTester = (request: BootTestRequest, signal: AbortSignal) => AsyncIterable<MaintenanceEvent>

export const BOOT_TEST_LABEL = 'boot-test job'
export const BOOT_TIMEOUT_SECONDS_MAX = 86_400
const BOOT_TIMEOUT_SECONDS_DEFAULT = 300
const GRACE_SECONDS = 900

export interface BootTestDeps {
  readonly tokens: TokenStore
  readonly clock: Clock
  /** Of this server, as its own clients reach it. */
  readonly url: () => string
  readonly tester: BootTester | undefined
}
export async function* bootTest(repository: Repository, options: JobOptions, signal: AbortSignal, { tokens, clock, url, tester }: BootTestDeps): AsyncGenerator<MaintenanceEvent, void, undefined> {
  if (tester === undefined) throw new RoostError('BOOT_FAILED', 'This server was started without what tests machines.')
  const { server, ...rest } = options
  const seconds = typeof rest['timeoutSeconds'] === 'number' ? rest['timeoutSeconds'] : BOOT_TIMEOUT_SECONDS_DEFAULT
  const { token, tokenId } = await tokens.create({
    label: `${BOOT_TEST_LABEL} of ${repository.name}`, grants: [{ repository: repository.name, scopes: ['read'] }], expiresAtMs: clock.now() + (seconds + GRACE_SECONDS) * 1000,
  })
  try {
    const base = typeof server === 'string' ? server.replace(/\/+$/, '') : url().replace(/\/\/(?:0\.0\.0\.0|\[::\])(?=:)/, '//127.0.0.1')
    yield* tester({ repositoryUrl: `${base}/${encodeURIComponent(repository.name)}`, token, options: rest }, signal)
  } finally {
    await tokens.revoke(tokenId).catch((error: unknown) => { if (!(error instanceof RoostError)) throw error }) // somebody else did
  }
}
/** Of a server that was killed in the middle. */
export async function revokeOldBootTokens(tokens: TokenStore): Promise<void> {
  for (const { tokenId, label } of tokens.list()) if (label.startsWith(`${BOOT_TEST_LABEL} of `)) await tokens.revoke(tokenId)
}
