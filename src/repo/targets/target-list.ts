/** What an operator decided about a repository's targets: kept in the local folder, without credentials. */
import { RoostError } from '../../core/errors.js'
import { TARGET_MODES, type Durability, type TargetMode, type WritePolicy } from '../../core/messages.js'
import { TARGET_SLOTS_MAX } from '../../index/chunk-index.js'

export interface TargetConfig {
  /** Its bit in the index rows of packs; free again once the target is removed and its bits are cleared. */
  readonly slot: number
  readonly name: string
  readonly url: string
  readonly mode: TargetMode
  /** 0 = no limit. */
  readonly uploadBytesPerSecondMax: number
}
/** Targets in order of preference for reading. */
export interface TargetList { readonly targets: readonly TargetConfig[]; readonly writePolicy: WritePolicy; readonly durability: Durability }

export const FIRST_TARGET_NAME = 'main'
export const TARGET_NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/

export const singleTarget = (url: string, durability: Durability = 'remote'): TargetList =>
  ({ targets: [{ slot: 0, name: FIRST_TARGET_NAME, url, mode: 'active', uploadBytesPerSecondMax: 0 }], writePolicy: 'all', durability })

export const activeTargets = ({ targets }: TargetList): readonly TargetConfig[] => targets.filter(({ mode }) => mode === 'active')
/** How many active targets must hold a pack. */
export const holdersNeeded = (list: TargetList): number => list.writePolicy === 'all' ? activeTargets(list).length : list.writePolicy

/** @throws {RoostError} TARGET_NEEDED when the policy cannot be met by the active targets. */
export function requireMeetable(list: TargetList): void {
  const active = activeTargets(list).length
  if (active === 0) throw new RoostError('TARGET_NEEDED', 'A repository needs at least one active target.')
  if (holdersNeeded(list) > active) throw new RoostError('TARGET_NEEDED',
    `The write policy asks for ${holdersNeeded(list)} targets, and ${active} would be active; change the policy or add a target first.`, { active })
}
export function freeSlot(list: TargetList): number {
  for (let slot = 0; slot < TARGET_SLOTS_MAX; slot++) if (!list.targets.some((target) => target.slot === slot)) return slot
  throw new RoostError('LIMIT_EXCEEDED', `A repository has at most ${TARGET_SLOTS_MAX} targets.`, { limit: TARGET_SLOTS_MAX })
}

export function isWritePolicy(value: unknown): value is WritePolicy {
  return value === 'all' || (Number.isInteger(value) && (value as number) >= 1 && (value as number) <= TARGET_SLOTS_MAX)
}
/** Undefined unless the parsed JSON is a list that this version understands. */
export function parseTargetList(value: Readonly<Record<string, unknown>>): TargetList | undefined {
  const { targets, writePolicy, durability } = value
  if (!Array.isArray(targets) || targets.length === 0 || !isWritePolicy(writePolicy) || (durability !== 'remote' && durability !== 'spool')) return undefined
  return targets.every(isTargetConfig) ? { targets, writePolicy, durability } : undefined
}
function isTargetConfig(value: unknown): value is TargetConfig {
  if (typeof value !== 'object' || value === null) return false
  const { slot, name, url, mode, uploadBytesPerSecondMax: limit } = value as Record<string, unknown>
  return Number.isInteger(slot) && (slot as number) >= 0 && (slot as number) < TARGET_SLOTS_MAX && typeof name === 'string' && TARGET_NAME.test(name) &&
    typeof url === 'string' && (TARGET_MODES as readonly unknown[]).includes(mode) && Number.isSafeInteger(limit) && (limit as number) >= 0
}
