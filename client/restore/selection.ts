/** Which paths of a snapshot are wanted: exact paths with all below them, or globs. */
import { compilePattern, hasGlob, type PathPattern } from '../browse/path-pattern.js'

/** `all`: this path and whatever is below. `descend`: something below may be wanted. */
export type Wanted = 'all' | 'descend' | 'none'

export class Selection {
  readonly #exact: readonly string[]
  readonly #globs: readonly PathPattern[]
  readonly #used = new Set<number>()
  constructor(readonly patterns: readonly Buffer[]) {
    this.#exact = patterns.map((pattern) => pattern.toString('latin1').replace(/^(?:\.?\/)+/, '').replace(/\/+$/, '').replace(/\/{2,}/g, '/'))
    this.#globs = patterns.filter((pattern) => hasGlob(pattern.toString('latin1'))).map(compilePattern)
  }
  get isEverything(): boolean { return this.patterns.length === 0 }

  /** `path`: latin1 text of the bytes, without a leading '/'. */
  wants(path: string, isDirectory: boolean): Wanted {
    let wanted: Wanted = this.isEverything ? 'all' : 'none'
    this.#exact.forEach((exact, i) => {
      if (exact === path || exact === '') { wanted = 'all'; this.#used.add(i) }
      else if (wanted === 'none' && isDirectory && exact.startsWith(path) && exact[path.length] === '/') wanted = 'descend'
    })
    if (wanted === 'all') return wanted
    if (this.#globs.some((glob) => glob.matches(path))) return 'all'
    return this.#globs.length > 0 && isDirectory ? 'descend' : wanted
  }
  /** Plain paths that nothing in the snapshot was. */
  unmatched(): Buffer[] {
    return this.patterns.filter((pattern, i) => !this.#used.has(i) && !hasGlob(pattern.toString('latin1')))
  }
}
