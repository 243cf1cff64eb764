/** Which snapshots a replication brings, and in which order. Pure. */
import type { ReplicationLag, ReplicationSelection, SnapshotOutline } from '../core/peer-messages.js'

/** The chosen ones by source, oldest first: so that each finds the one before it on the other side. Sources with the oldest first.
 *  @param all in any order */
export function chooseSnapshots(all: readonly SnapshotOutline[], selection: ReplicationSelection, nowMs: number): Map<string, SnapshotOutline[]> {
  const patterns = selection.sources?.map(globOf)
  const bySource = new Map<string, SnapshotOutline[]>()
  for (const one of all) {
    if (patterns !== undefined && !patterns.some((pattern) => pattern.test(one.source))) continue
    if (selection.tags !== undefined && !selection.tags.some((tag) => one.tags.includes(tag))) continue
    if (selection.maxAgeMs !== undefined && one.receivedAtMs < nowMs - selection.maxAgeMs) continue
    const list = bySource.get(one.source)
    if (list === undefined) bySource.set(one.source, [one])
    else list.push(one)
  }
  for (const [source, list] of bySource) {
    list.sort((a, b) => a.receivedAtMs - b.receivedAtMs || (a.id < b.id ? -1 : 1))
    if (selection.newest !== undefined) bySource.set(source, list.slice(-selection.newest))
  }
  return new Map([...bySource].sort(([, [a]], [, [b]]) => a!.receivedAtMs - b!.receivedAtMs))
}

/** `*` any text, `?` one character; everything else is itself. */
export function globOf(pattern: string): RegExp {
  const text = pattern.replace(/[.+^${}()|[\]\\]/g, '\\$&').replaceAll('*', '[^]*').replaceAll('?', '[^]')
  return new RegExp(`^${text}$`, 'u')
}

export function lagOf(pending: readonly SnapshotOutline[], measuredAtMs: number): ReplicationLag {
  const oldest = pending.reduce<number | undefined>((least, { receivedAtMs }) => least === undefined || receivedAtMs < least ? receivedAtMs : least, undefined)
  return { measuredAtMs, snapshots: pending.length, bytes: pending.reduce((sum, { bytes }) => sum + bytes, 0), ...(oldest === undefined ? {} : { oldestAtMs: oldest }) }
}
