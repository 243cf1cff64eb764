/** A least-recently-used cache bounded by bytes. */
export class ByteLru<K, V> {
  readonly #entries = new Map<K, { value: V; bytes: number }>()
  #bytes = 0
  constructor(readonly bytesMax: number) {}
  get(key: K): V | undefined {
    const entry = this.#entries.get(key)
    if (entry === undefined) return undefined
    this.#entries.delete(key)
    this.#entries.set(key, entry)
    return entry.value
  }
  /** A value larger than the whole cache is not kept. */
  set(key: K, value: V, bytes: number): void {
    this.delete(key)
    if (bytes > this.bytesMax) return
    this.#entries.set(key, { value, bytes })
    this.#bytes += bytes
    for (const oldest of this.#entries.keys()) {
      if (this.#bytes <= this.bytesMax) break
      this.delete(oldest)
    }
  }
  delete(key: K): void {
    const entry = this.#entries.get(key)
    if (entry === undefined) return
    this.#entries.delete(key)
    this.#bytes -= entry.bytes
  }
}
