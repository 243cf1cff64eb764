/** The cut rule in plain TypeScript: says what the WebAssembly loop must do. For tests and comparison. */
import { cutRule, HASH_WINDOW_BYTES, type Chunker, type CutParameters } from './cut-rule.js'

/** Same cut points as openChunker, several times slower. */
export function openReferenceChunker(parameters: CutParameters): Chunker {
  const rule = cutRule(parameters)
  const tableLow = new Int32Array(256)
  const tableHigh = new Int32Array(256)
  for (let i = 0; i < 256; i++) {
    tableLow[i] = rule.gearTable.readInt32LE(i * 8)
    tableHigh[i] = rule.gearTable.readInt32LE(i * 8 + 4)
  }
  const strict = halves(rule.strictThreshold)
  const relaxed = halves(rule.relaxedThreshold)
  return {
    cut(bytes, final) {
      if (bytes.byteLength < rule.minBytes) return final ? bytes.byteLength : 0
      const available = Math.min(bytes.byteLength, rule.maxBytes)
      let low = 0
      let high = 0
      for (let at = rule.minBytes - HASH_WINDOW_BYTES; at < available; at++) {
        const byte = bytes[at]!
        const sum = ((low << 1) >>> 0) + (tableLow[byte]! >>> 0)
        high = ((high << 1) | (low >>> 31)) + tableHigh[byte]! + (sum > 0xffff_ffff ? 1 : 0) | 0
        low = sum | 0
        const length = at + 1
        if (length < rule.minBytes) continue
        if (isBelow(high >>> 0, low >>> 0, length < rule.normalBytes ? strict : relaxed)) return length
      }
      return available === rule.maxBytes || final ? available : 0
    },
  }
}

interface Halves { readonly high: number; readonly low: number }
function halves(value: bigint): Halves {
  return { high: Number(value >> 32n), low: Number(value & 0xffff_ffffn) }
}
function isBelow(high: number, low: number, threshold: Halves): boolean {
  return high < threshold.high || (high === threshold.high && low < threshold.low)
}
