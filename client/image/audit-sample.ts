/** Which slots an audit of a dirty map reads: a share of them, the same for the same seed, spread evenly. */
export interface AuditConfig {
  /** 0 to 1. */
  readonly share: number
  /** Anything that differs from run to run, so that in time every slot has its turn. */
  readonly seed: string
}

/** True for a share of all slots. Not for adversaries: whoever knows the seed knows the sample. */
export function auditSample({ share, seed }: AuditConfig): (slot: number) => boolean {
  if (share >= 1) return () => true
  if (!(share > 0)) return () => false
  const bound = share * 2 ** 32
  let start = 0x811c9dc5
  for (const byte of Buffer.from(seed)) start = Math.imul(start ^ byte, 0x01000193)
  return (slot) => mix(mix(start ^ slot % 2 ** 32) ^ Math.floor(slot / 2 ** 32)) < bound
}
/** The finish of MurmurHash3: every bit of the input moves half of the output's. */
function mix(value: number): number {
  let hash = value
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}
