/** Keyed BLAKE3 by direct calls into the C functions that the blake3 package's native module was built from.
 *
 *  The package makes a JavaScript object with a finalizer for every hash: 5–8 µs each, more than the hashing of a small file.
 *  The same library, called through the FFI with one reused state, costs 0.8 µs. Where it cannot be loaded (another build of the
 *  package, its WebAssembly fallback) the caller goes on with the package; hash.ts proves at load that both agree.
 */
import { createRequire } from 'node:module'
import { koffi } from './ffi.js'

/** Fills `out` with the extended output. `key` is 32 bytes. */
export type KeyedBlake3 = (key: Uint8Array, bytes: Uint8Array, out: Uint8Array) => void

/** sizeof(blake3_hasher) is 1912; twice that, so that a later version with a larger state does no harm. */
const STATE_BYTES = 4096

export function loadKeyedBlake3(): KeyedBlake3 | undefined {
  let init: (state: Buffer, key: Uint8Array) => void
  let update: (state: Buffer, bytes: Uint8Array, count: number) => void
  let finalize: (state: Buffer, out: Uint8Array, count: number) => void
  try {
    const blake3 = createRequire(createRequire(import.meta.url).resolve('blake3'))
    const library = koffi.load(blake3.resolve('@c4312/blake3-native/build/Release/blake3.node'))
    init = library.func('void blake3_hasher_init_keyed(void *self, const void *key)')
    update = library.func('void blake3_hasher_update(void *self, const void *input, size_t count)')
    finalize = library.func('void blake3_hasher_finalize(const void *self, void *out, size_t count)')
  } catch {
    return undefined // no native build here, or one that hides its symbols: slower, not wrong
  }
  const state = Buffer.alloc(STATE_BYTES)
  return (key, bytes, out) => {
    init(state, key)
    update(state, bytes, bytes.byteLength)
    finalize(state, out, out.byteLength)
  }
}
