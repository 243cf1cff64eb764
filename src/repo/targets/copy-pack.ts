/** Copies one pack to a target that lacks it or holds it damaged, from the spool or another target. Proven on the way. */
import { createReadStream } from 'node:fs'
import { hasCode, isAbort, RoostError } from '../../core/errors.js'
import { streamingDigest } from '../../core/hash.js'
import { MiB } from '../../core/limits.js'
import type { ChunkIndex, PackRow } from '../../index/chunk-index.js'
import { packKey } from '../layout.js'
import type { PackClaims } from '../pack-claims.js'
import { damagedPack, packBody } from './pack-body.js'
import type { Target } from './target.js'
import type { TargetSet } from './target-set.js'

/** Whether the target has the pack with all its bytes. @throws what the target throws when it cannot be asked. */
export async function isWholeOn(target: Target, row: PackRow, signal?: AbortSignal): Promise<boolean> {
  const call = signal === undefined ? {} : { signal }
  const facts = await target.use((store) => store.head(packKey(row.packId), call))
  if (facts?.bytes !== row.storedBytes) return false
  const digest = streamingDigest()
  try {
    for await (const part of packParts(target, row, signal)) digest.update(part)
  } catch (error) {
    if (hasCode(error, 'CHUNK_MISSING') || hasCode(error, 'OBJECT_TOO_SHORT')) return false
    throw error
  }
  return digest.hex() === row.packId
}

/** @throws {RoostError} CHUNK_MISSING when the target does not have it; what breaks the stream. */
async function* packParts(target: Target, row: PackRow, signal?: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
  const stream = await target.use((store) => store.get(packKey(row.packId), signal === undefined ? {} : { signal }))
  if (stream === undefined) throw new RoostError('CHUNK_MISSING', 'A target does not have a pack that it should hold.', { pack: row.packId, target: target.name })
  try {
    for await (const part of stream) yield part as Buffer
  } catch (error) {
    target.failed(error)
    throw error
  } finally {
    stream.destroy()
  }
}

export type CopyOutcome =
  /** It was there whole already. */
  | { readonly outcome: 'present' }
  | { readonly outcome: 'copied'; readonly from: string }
  /** It left the index meanwhile, or is leaving: nobody needs the copy. */
  | { readonly outcome: 'gone' }
  /** No target has it whole, and all could be asked. */
  | { readonly outcome: 'nowhere'; readonly error: RoostError }

export interface CopyDeps {
  readonly targets: TargetSet
  readonly claims: PackClaims
  readonly index: Pick<ChunkIndex, 'getPack'>
  /** Until when a target that can is to let nobody delete what is written now. */
  retainUntilMs(): number | undefined
  /** The pack's spool file, while it has one. */
  spoolFile(row: PackRow): string | undefined
  /** A source was found without the pack, or with a damaged one. */
  onDamage(error: RoostError, row: PackRow, target: Target): void
}

/** @throws {RoostError} STORE_UNAVAILABLE or STORE_REFUSED when the target fails, or a source that may have it cannot be asked. */
export async function copyPack(deps: CopyDeps, { packNumber }: PackRow, target: Target, signal: AbortSignal): Promise<CopyOutcome> {
  const release = deps.claims.claimForCopy(packNumber)
  if (release === undefined) return { outcome: 'gone' }
  try {
    const row = await deps.index.getPack(packNumber)
    return row === undefined ? { outcome: 'gone' } : await copyClaimed(deps, row, target, signal)
  } finally {
    release()
  }
}
async function copyClaimed(deps: CopyDeps, row: PackRow, target: Target, signal: AbortSignal): Promise<CopyOutcome> {
  if (await isWholeOn(target, row, signal)) {
    await deps.targets.place(row.packNumber, { add: target.bit })
    return { outcome: 'present' }
  }
  if ((row.heldBy & target.bit) !== 0) await deps.targets.place(row.packNumber, { remove: target.bit })
  const file = deps.spoolFile(row)
  if (file !== undefined) {
    const copied = await tryFrom(deps, () => createReadStream(file, { highWaterMark: MiB }), row, target, signal)
    if (copied === undefined) return await placed(deps, row, target, 'spool')
  }
  let blocked: unknown
  let damage = damagedPack(row.packId)
  for (const source of deps.targets.readersOf(row)) {
    if (source === target) continue
    const failure = await tryFrom(deps, () => packParts(source, row, signal), row, target, signal)
    if (failure === undefined) return await placed(deps, row, target, source.name)
    if (hasCode(failure, 'PACK_CORRUPT') || hasCode(failure, 'CHUNK_MISSING') || hasCode(failure, 'OBJECT_TOO_SHORT')) {
      damage = failure
      if ((row.heldBy & source.bit) !== 0) {
        await deps.targets.place(row.packNumber, { remove: source.bit })
        deps.onDamage(failure, row, source)
      }
    } else blocked ??= failure
  }
  if (blocked !== undefined) throw blocked
  return { outcome: 'nowhere', error: damage }
}
async function placed({ targets }: CopyDeps, row: PackRow, target: Target, from: string): Promise<CopyOutcome> {
  await targets.place(row.packNumber, { add: target.bit })
  return { outcome: 'copied', from }
}

/** The source's failure, or undefined when the target has the pack now. @throws what the target throws. */
async function tryFrom(deps: CopyDeps, open: () => AsyncIterable<unknown>, row: PackRow, target: Target, signal: AbortSignal): Promise<unknown> {
  let failure: { readonly error: unknown } | undefined
  async function* noting(): AsyncGenerator<unknown, void, undefined> {
    try { yield* open() } catch (error) {
      failure = { error }
      throw error
    }
  }
  const retainUntilMs = deps.retainUntilMs()
  try {
    await target.change((store) => store.put(packKey(row.packId), packBody(row, noting, target.limiter, signal), { signal, replace: true, ...(retainUntilMs && { retainUntilMs }) }))
    return undefined
  } catch (error) {
    if (signal.aborted || isAbort(error)) throw error
    if (failure !== undefined) return failure.error
    if (hasCode(error, 'PACK_CORRUPT')) return error
    // A body that ends early or goes on too long is refused by name: the source's copy has another length.
    if (hasCode(error, 'STORE_REFUSED') && error.details['key'] !== undefined) return damagedPack(row.packId)
    throw error
  }
}
