/** An index in memory that outlives its process: its transactions are steps that a crash can come before or after, and what opens after a
 *  crash finds what was acknowledged, without sessions, as the real index does.
 */
import { openMemoryIndex } from '../../src/index/memory-index.js'
import type { ChunkIndex } from '../../src/index/chunk-index.js'
import { SimulatedCrash, type CutEffects } from './cut-effects.js'

const WRITES = new Set<keyof ChunkIndex>(['reservePackNumbers', 'addPack', 'placePack', 'openSession', 'closeSession', 'pinPresent', 'pinIds', 'pinEntries',
  'inheritRefs', 'commitSnapshot', 'deleteSnapshot', 'setComplete', 'beginCollection', 'endCollection', 'condemnPack', 'movePack', 'settleDoomed'])

export interface CutIndex {
  /** Names of the transactions since arm(). */
  readonly steps: readonly string[]
  arm(cut?: { step: number; mode: 'before' | 'after' }): void
  /** True once the armed cut fired, until the next open. */
  isDead(): boolean
  /** What the next process opens. */
  open(clean: boolean): Promise<ChunkIndex>
}

export function cutIndex(effects: CutEffects): CutIndex {
  const inner = openMemoryIndex()
  const steps: string[] = []
  let cut: { step: number; mode: 'before' | 'after' } | undefined
  let life = 0
  let isDead = false
  const die = (text: string): never => {
    effects.arm({ step: 0, mode: 'before' }) // the next file effect of this process dies too
    life++
    isDead = true
    throw new SimulatedCrash(text)
  }
  const open = async (clean: boolean): Promise<ChunkIndex> => {
    const born = ++life
    isDead = false
    await inner.endCollection(await inner.beginCollection()) // the real index forgets it, too
    if (!clean) for (const { sessionId } of await inner.listSessions()) await inner.closeSession(sessionId)
    return new Proxy(inner, {
      get(target, name: keyof ChunkIndex) {
        if (name === 'openedClean') return clean
        if (name === 'close') return () => target.flush()
        const method = target[name] as unknown
        if (typeof method !== 'function') return method
        return async (...args: unknown[]) => {
          if (born !== life || effects.isDead) throw new SimulatedCrash('the process is dead')
          const isWrite = WRITES.has(name)
          const step = isWrite ? steps.push(name) - 1 : -1
          if (isWrite && cut?.step === step && cut.mode === 'before') die(`cut before ${name}`)
          const result = await (method as (...a: unknown[]) => Promise<unknown>).apply(target, args)
          if (isWrite && cut?.step === step) die(`cut after ${name}`)
          return result
        }
      },
    })
  }
  return { steps, open, isDead: () => isDead, arm: (next) => { steps.length = 0; cut = next } }
}
