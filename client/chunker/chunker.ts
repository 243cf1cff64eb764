/** The chunker of sources: the cut rule run by a WebAssembly loop.
 *
 *  Bytes are copied into the module's memory window by window, because its memory can be neither the arena that is read
 *  into (arenas are transferred between threads) nor read by the native hash. Nothing before minBytes - 64 is copied.
 */
import { assert } from '../../src/core/assert.js'
import { cutRule, HASH_WINDOW_BYTES, type Chunker, type CutParameters } from './cut-rule.js'
import { GEAR_WASM_BASE64 } from './gear-wasm.js'

/** One step of copying and scanning. A cut wastes half a step of copying; smaller steps pay more calls (measured flat
 * from 8 to 120 KiB). */
const WINDOW_BYTES = 32 * 1024

/** Concurrency: one chunker per thread; its calls are synchronous.
 *  @throws {RoostError} REQUEST_MALFORMED when the parameters make no sense. */
export function openChunker(parameters: CutParameters): Chunker {
  const rule = cutRule(parameters)
  const gear = instantiate()
  Buffer.from(gear.memory.buffer).set(rule.gearTable, 0)
  const window = Buffer.from(gear.memory.buffer, gear.WINDOW.value, WINDOW_BYTES)

  /** The offset right after the byte where the hash fell below the threshold, or 0. */
  function scan(bytes: Buffer, from: number, to: number, threshold: bigint): number {
    for (let at = from; at < to; at += WINDOW_BYTES) {
      const step = Math.min(WINDOW_BYTES, to - at)
      bytes.copy(window, 0, at, at + step)
      const found = gear.scan(step, threshold)
      if (found !== 0) return at + found
    }
    return 0
  }

  return {
    cut(bytes, final) {
      const { minBytes, normalBytes, maxBytes } = rule
      if (bytes.byteLength < minBytes) return final ? bytes.byteLength : 0
      const available = Math.min(bytes.byteLength, maxBytes)
      const relaxedFrom = Math.min(normalBytes - 1, available)
      gear.reset()
      scan(bytes, minBytes - HASH_WINDOW_BYTES, minBytes - 1, 0n) // nothing is below 0: this only fills the hash
      const found = scan(bytes, minBytes - 1, relaxedFrom, rule.strictThreshold) ||
        scan(bytes, relaxedFrom, available, rule.relaxedThreshold)
      if (found !== 0) return found
      return available === maxBytes || final ? available : 0
    },
  }
}

/** What gear.ts exports. */
interface GearExports {
  readonly memory: { readonly buffer: ArrayBuffer }
  readonly WINDOW: { readonly value: number }
  reset(): void
  scan(bytes: number, threshold: bigint): number
}
/** The part of the WebAssembly global that is used (Node's own types leave it out). */
interface WebAssemblyGlobal {
  readonly Module: new (bytes: Uint8Array) => object
  readonly Instance: new (module: object) => { readonly exports: unknown }
}

function instantiate(): GearExports {
  const { Module, Instance } = (globalThis as unknown as { WebAssembly: WebAssemblyGlobal }).WebAssembly
  const gear = new Instance(new Module(Buffer.from(GEAR_WASM_BASE64, 'base64'))).exports as GearExports
  assert(gear.WINDOW.value + WINDOW_BYTES <= gear.memory.buffer.byteLength, 'the window fits the module')
  return gear
}
