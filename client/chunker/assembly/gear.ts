/** The inner loop of content-defined cutting, for WebAssembly (AssemblyScript; scripts/build-wasm.mjs compiles it).
 *
 *  Memory, fixed: 0 gear table, 256 × u64 | WINDOW the bytes to scan. chunker.ts writes both; nothing is allocated.
 *  The hash is h = 2h + gear[byte] (mod 2^64), so it holds exactly the last 64 bytes: older ones are shifted out.
 */
export const WINDOW: u32 = 4096
let hash: u64 = 0

export function reset(): void {
  hash = 0
}

/** Runs over `bytes` of the window. Returns how many were run over when the hash first fell below `threshold`, counting that
 *  byte; 0 when it never did: then the hash is ready for the bytes that follow. Unrolled by 8: measured 1.6 times as fast. */
export function scan(bytes: u32, threshold: u64): u32 {
  let h = hash
  let at: usize = WINDOW
  const end: usize = WINDOW + bytes
  const endOfEights: usize = WINDOW + (bytes & ~7)
  while (at < endOfEights) {
    h = (h << 1) + load<u64>(<usize>load<u8>(at) << 3)
    if (h < threshold) return <u32>(at + 1) - WINDOW
    h = (h << 1) + load<u64>(<usize>load<u8>(at, 1) << 3)
    if (h < threshold) return <u32>(at + 2) - WINDOW
    h = (h << 1) + load<u64>(<usize>load<u8>(at, 2) << 3)
    if (h < threshold) return <u32>(at + 3) - WINDOW
    h = (h << 1) + load<u64>(<usize>load<u8>(at, 3) << 3)
    if (h < threshold) return <u32>(at + 4) - WINDOW
    h = (h << 1) + load<u64>(<usize>load<u8>(at, 4) << 3)
    if (h < threshold) return <u32>(at + 5) - WINDOW
    h = (h << 1) + load<u64>(<usize>load<u8>(at, 5) << 3)
    if (h < threshold) return <u32>(at + 6) - WINDOW
    h = (h << 1) + load<u64>(<usize>load<u8>(at, 6) << 3)
    if (h < threshold) return <u32>(at + 7) - WINDOW
    h = (h << 1) + load<u64>(<usize>load<u8>(at, 7) << 3)
    if (h < threshold) return <u32>(at + 8) - WINDOW
    at += 8
  }
  while (at < end) {
    h = (h << 1) + load<u64>(<usize>load<u8>(at) << 3)
    at += 1
    if (h < threshold) return <u32>at - WINDOW
  }
  hash = h
  return 0
}
