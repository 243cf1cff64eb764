/** Decides the fate of every pack (docs/gc.md G4). Pure: the same inputs give the same plan; a dry run is this and a printer. */
import { assert } from '../core/assert.js'
import { CHUNK_KINDS, type ChunkKind, type PackId, type PackNumber } from '../core/ids.js'
import { LIMITS } from '../core/limits.js'

export interface PackFacts {
  readonly packNumber: PackNumber
  readonly packId: PackId
  readonly kind: ChunkKind
  readonly storedBytes: number
  readonly rawBytes: number
  readonly entryCount: number
  readonly liveEntries: number
  /** Of what is live; pinned chunks whose length is not known count as nothing. */
  readonly liveRawBytes: number
  /** Why it must not be touched now, if so. */
  readonly held?: string
}
export interface PlanPolicy {
  /** Packs whose live share is below this are written anew: 0 never, 1 whenever a byte is dead. */
  readonly repackBelow: number
  /** Packs smaller than this share of a full one are merged, when there are many. */
  readonly smallShare: number
  /** So many small packs of a kind, at least, are merged. */
  readonly smallPacksMin: number
}
export const PLAN_DEFAULTS: PlanPolicy = { repackBelow: 0.75, smallShare: 0.25, smallPacksMin: 8 }

export type Fate = 'keep' | 'drop' | 'repack'
export interface Verdict { readonly pack: PackFacts; readonly fate: Fate; readonly reason: string }

/** Small packs in one view: merging is decided by how many there are. */
export interface SmallPacks { readonly [kind: number]: number }

export class SmallPackCounter {
  readonly counts: Record<number, number> = {}
  constructor(readonly policy: PlanPolicy) {}
  add(pack: PackFacts): void {
    if (judgeAlone(pack, this.policy).fate === 'keep' && isSmall(pack, this.policy)) this.counts[pack.kind] = (this.counts[pack.kind] ?? 0) + 1
  }
}
export function judge(pack: PackFacts, policy: PlanPolicy, small: SmallPacks): Verdict {
  const verdict = judgeAlone(pack, policy)
  if (verdict.fate !== 'keep' || !isSmall(pack, policy)) return verdict
  const count = small[pack.kind] ?? 0
  return count < policy.smallPacksMin ? verdict : { pack, fate: 'repack', reason: `one of ${count} small packs of its kind: they are merged` }
}
function judgeAlone(pack: PackFacts, policy: PlanPolicy): Verdict {
  assert(pack.liveEntries <= pack.entryCount, 'no more is live than there is')
  if (pack.held !== undefined) return { pack, fate: 'keep', reason: pack.held }
  if (pack.liveEntries === 0) return { pack, fate: 'drop', reason: 'nothing needs it' }
  const share = liveShare(pack)
  if (pack.liveEntries === pack.entryCount || share >= policy.repackBelow)
    return { pack, fate: 'keep', reason: `${percent(share)} of it is needed` }
  return { pack, fate: 'repack', reason: `only ${percent(share)} of it is needed` }
}
export function liveShare({ rawBytes, liveRawBytes }: PackFacts): number { return rawBytes === 0 ? 1 : Math.min(1, liveRawBytes / rawBytes) }

const isSmall = (pack: PackFacts, { smallShare }: PlanPolicy): boolean =>
  pack.held === undefined && pack.storedBytes < smallShare * (pack.kind === CHUNK_KINDS.node ? LIMITS.nodePackBytesTarget : LIMITS.dataPackBytesTarget)
const percent = (share: number): string => `${Math.floor(share * 1000) / 10} %`

/** So much is copied before old packs are switched: enough for full packs, little to repeat after a crash. */
export const REPACK_BATCH_BYTES = 4 * LIMITS.dataPackBytesTarget
