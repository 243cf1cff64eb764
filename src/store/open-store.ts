/** From a target's URL to the stack that the repository uses, in the one order that is right.
 *
 *  Outermost first: observed → retrying → bounded → adapter. Retrying is outside bounded so that a waiting retry holds
 *  no slot; observed is outermost so that it counts what the repository asked for.
 */
import { isAbsolute } from 'node:path'
import type { Clock } from '../core/clock.js'
import { RoostError } from '../core/errors.js'
import type { Random } from '../core/random.js'
import { boundedStore } from './bounded-store.js'
import type { FileEffects } from './file-effects.js'
import { openFileStore } from './file-store.js'
import type { ObjectStore } from './object-store.js'
import { createStoreCounters, observedStore, type StoreCounters } from './observed-store.js'
import { retryingStore } from './retrying-store.js'
import { openS3Store } from './s3/s3-store.js'
import { S3_FORM } from './s3/s3-url.js'
import type { SwiftMemory } from './swift/swift-requests.js'
import { openSwiftStore } from './swift/swift-store.js'
import { SWIFT_FORM } from './swift/swift-url.js'

export interface StoreDeps {
  readonly clock: Clock
  readonly random: Random
  readonly effects?: FileEffects
  readonly counters?: StoreCounters
  /** See FileStoreOptions: false wherever the repository must exist already. */
  readonly create?: boolean
  /** Where adapters look for credentials by name (OS_*, AWS_*). */
  readonly environment?: Readonly<Record<string, string | undefined>>
  /** A small note of the adapter's own that outlives the process; never a secret. */
  readonly memory?: SwiftMemory
  /** Default 8. */
  readonly callsInFlightMax?: number
}

const SUPPORTED = ['file:/absolute/path', SWIFT_FORM, S3_FORM]

/** @throws {RoostError} REQUEST_MALFORMED for a URL of no supported form; what the adapter throws */
export async function openStore(url: string, deps: StoreDeps): Promise<ObjectStore> {
  const { clock, random, callsInFlightMax = 8, counters = createStoreCounters() } = deps
  const adapter = await openAdapter(url, deps)
  const bounded = boundedStore(adapter, { callsInFlightMax })
  return observedStore(retryingStore(bounded, { clock, random }), counters)
}

/** One line a kind of target. */
const ADAPTERS: Readonly<Record<string, (url: string, deps: StoreDeps) => Promise<ObjectStore>>> = {
  file: async (url, { clock, random, effects, create }) =>
    await openFileStore({ directory: parseFileUrl(url), clock, random, ...(effects && { effects }), ...(create !== undefined && { create }) }),
  swift: async (url, { clock, environment = {}, memory, create }) =>
    openSwiftStore({ url, clock, environment, ...(memory && { memory }), ...(create !== undefined && { create }) }),
  s3: async (url, { clock, random, environment = {}, create }) => openS3Store({ url, clock, random, environment, ...(create !== undefined && { create }) }),
}

async function openAdapter(url: string, deps: StoreDeps): Promise<ObjectStore> {
  const scheme = /^([a-z][a-z0-9+.-]*):/.exec(url)?.[1]
  const open = scheme === undefined || !Object.hasOwn(ADAPTERS, scheme) ? undefined : ADAPTERS[scheme]
  if (open === undefined) throw new RoostError('REQUEST_MALFORMED',
    `A target is given as ${SUPPORTED.join(' or ')}; ${scheme === undefined ? 'a URL without a scheme' : `the scheme "${scheme}:"`} is not supported.`,
    { supported: SUPPORTED })
  return await open(url, deps)
}

/** The path is taken as written (no percent-decoding): it is what an operator typed. */
function parseFileUrl(url: string): string {
  const path = url.slice('file:'.length).replace(/^\/\/(?=\/)/, '')
  if (!isAbsolute(path) || path.startsWith('//') || path.includes('\0')) throw new RoostError('REQUEST_MALFORMED',
    `A file target needs an absolute path on this machine: ${SUPPORTED[0]}.`, { supported: SUPPORTED })
  return path
}
