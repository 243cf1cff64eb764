/** The facts of an entry that has no owner or times of its own. */
import { systemClock } from '../../src/core/clock.js'
import { groupName, userName } from '../native/posix.js'
import type { SourceFacts } from './block-source.js'

/** Ours, now; readable by its owner only. */
export function ownFacts(): SourceFacts {
  const uid = process.getuid?.() ?? 0
  const gid = process.getgid?.() ?? 0
  const nowNs = BigInt(Math.trunc(systemClock.now())) * 1_000_000n
  return { mode: 0o600, uid, gid, user: userName(uid), group: groupName(gid), mtimeNs: nowNs, ctimeNs: nowNs, inode: 0n, device: 0n, xattrs: [] }
}
