/** Brings targets to where the repository is: one run a target at most, in the background, after it was added, was away, or lost packs.
 *
 *  Resumable by nature: what it has done is in the index, pack by pack. A run ends with the first failure of its target, and begins
 *  again when that answers.
 */
import { forEachBounded } from '../../core/concurrency.js'
import { isAbort, RoostError } from '../../core/errors.js'
import type { MaintenanceEvent } from '../../core/messages.js'
import type { PackRow } from '../../index/chunk-index.js'
import { holderCount } from '../../index/pack-places.js'
import { copyPack, type CopyDeps } from './copy-pack.js'
import { syncMetadata, type MetadataParts } from './sync-metadata.js'
import type { Target } from './target.js'
import { maskOf, type TargetSet } from './target-set.js'

const COPIES_IN_FLIGHT_MAX = 2
const ROWS_PER_PAGE = 200
/** Of one run, kept for those who watch it. */
const PROBLEMS_MAX = 1_000

type Problem = MaintenanceEvent & { readonly type: 'problem' | 'healed' }
export interface CatchUpParts extends MetadataParts {
  /** A pack that lanes of the upload are about to bring. */
  isUploading(row: PackRow): boolean
  readonly copying: CopyDeps
  report(error: RoostError, row: PackRow): void
}

/** What one run has done so far. */
export class CatchUpRun {
  done = 0
  total = 0
  copied = 0
  copiedBytes = 0
  readonly problems: Problem[] = []
  #wake: (() => void)[] = []
  /** Resolves when the run has ended; rejects with what ended it. */
  finished: Promise<void> = Promise.resolve()

  note(problem: Problem): void { if (this.problems.length < PROBLEMS_MAX) this.problems.push(problem) }
  changed(): void { for (const wake of this.#wake.splice(0)) wake() }
  nextChange(): Promise<void> { return new Promise((resolve) => { this.#wake.push(resolve) }) }
}

export class CatchUp {
  readonly #parts: CatchUpParts
  readonly #runs = new Map<Target, CatchUpRun>()
  /** Asked for again while a run was under way. */
  readonly #again = new Set<Target>()
  readonly #stop = new AbortController()

  constructor(parts: CatchUpParts) {
    this.#parts = parts
    parts.targets.watch({ targetFailed: () => undefined, targetAnswers: (target) => { this.wakeIfBehind(target) } })
  }
  get #targets(): TargetSet { return this.#parts.targets }

  wakeIfBehind(target: Target): void {
    // An index that cannot be asked is found out by whoever needs it.
    void this.isBehind(target).then((isBehind) => { if (isBehind) this.start(target) }, () => undefined)
  }
  async isBehind(target: Target): Promise<boolean> {
    return target.isReadable && (target.isBehind || (target.isActive && target.heldPacks < (await this.#parts.index.totals()).packs))
  }

  /** The run that is under way, or a new one. Never rejects by itself: watch `finished`. */
  start(target: Target): CatchUpRun {
    const running = this.#runs.get(target)
    if (running !== undefined) {
      this.#again.add(target)
      return running
    }
    const run = new CatchUpRun()
    this.#runs.set(target, run)
    run.finished = this.#run(target, run).finally(() => {
      this.#runs.delete(target)
      run.changed()
      if (this.#again.delete(target) && !this.#stop.signal.aborted && target.anyFailure === undefined) this.start(target)
    })
    run.finished.catch(() => undefined) // the target's health says why; whoever watches the run hears it too
    return run
  }

  async #run(target: Target, run: CatchUpRun): Promise<void> {
    const { signal } = this.#stop
    await syncMetadata(this.#parts, target, signal)
    if (!target.isActive) return
    await this.#copyAll(target, run, (row) => (row.heldBy & target.bit) === 0, () => target)
  }

  /** Copies what too few others hold off a target that is to go. */
  async drain(target: Target, run: CatchUpRun): Promise<void> {
    const others = this.#targets.active.filter((one) => one !== target)
    const isShort = (row: PackRow): boolean => holderCount(row.heldBy, maskOf(others)) < this.#targets.holdersNeeded
    // Each round gives every short pack one more holder.
    for (let round = 0; round < others.length; round++) {
      await this.#copyAll(target, run, isShort, (row) => others.find((one) => (row.heldBy & one.bit) === 0 && one.anyFailure === undefined))
      if (run.copied === 0 || run.problems.length > 0) return
    }
  }

  async #copyAll(target: Target, run: CatchUpRun, isWanted: (row: PackRow) => boolean, to: (row: PackRow) => Target | undefined): Promise<void> {
    const { signal } = this.#stop
    run.total = (await this.#parts.index.totals()).packs
    run.done = 0
    await forEachBounded(this.#rows(), COPIES_IN_FLIGHT_MAX, async (row) => {
      signal.throwIfAborted()
      const into = isWanted(row) && !this.#parts.isUploading(row) ? to(row) : undefined
      if (into !== undefined) await this.#copy(row, into, run)
      run.done++
      run.changed()
    })
  }
  async *#rows(): AsyncGenerator<PackRow, void, undefined> {
    for (let after = 0; ;) {
      const rows = await this.#parts.index.listPacks(after, ROWS_PER_PAGE)
      if (rows.length === 0) return
      after = rows.at(-1)!.packNumber
      yield* rows
    }
  }
  async #copy(row: PackRow, target: Target, run: CatchUpRun): Promise<void> {
    const result = await copyPack(this.#parts.copying, row, target, this.#stop.signal)
    if (result.outcome === 'nowhere') {
      this.#parts.report(result.error, row)
      run.note({ type: 'problem', code: 'CHUNK_MISSING', message: 'No target holds this pack whole; run `roost check` to see what needs it.', pack: row.packId })
    } else if (result.outcome === 'copied') {
      run.copied++
      run.copiedBytes += row.storedBytes
      if (target.damagedPacks > 0) target.damagedPacks--
      run.note({ type: 'healed', object: `pack ${row.packId}`, target: target.name, from: result.from })
    }
  }

  async close(): Promise<void> {
    this.#stop.abort(new DOMException('the repository is closing', 'AbortError'))
    await Promise.allSettled([...this.#runs.values()].map(({ finished }) => finished))
  }
}

/** A run as events for those who asked for it. Leaving does not stop the run. */
export async function* watchRun(run: CatchUpRun, phase: string, signal: AbortSignal): AsyncGenerator<MaintenanceEvent, void, undefined> {
  let told = 0
  let hasEnded = false
  const ended = run.finished.then(() => { hasEnded = true }, () => { hasEnded = true })
  const gone = new Promise<void>((resolve) => { signal.addEventListener('abort', () => { resolve() }, { once: true }) })
  for (;;) {
    while (told < run.problems.length) yield run.problems[told++]!
    yield { type: 'progress', phase, done: run.done, total: run.total }
    if (hasEnded) break
    await Promise.race([run.nextChange(), ended, gone])
    signal.throwIfAborted()
  }
  await run.finished.catch((error: unknown) => {
    if (isAbort(error)) throw new RoostError('SERVER_DRAINING', 'The server is stopping; the work goes on at its next start.')
    throw error
  })
  while (told < run.problems.length) yield run.problems[told++]!
  const problems = run.problems.filter(({ type }) => type === 'problem').length
  yield { type: 'done', problems, counts: { packs: run.total, copied: run.copied, copiedBytes: run.copiedBytes } }
}
