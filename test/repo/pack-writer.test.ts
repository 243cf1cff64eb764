/** Sealing a pack: whatever moment the power fails at, a file that bears a pack's name is that pack, whole. */
import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { digest, hashChunk } from '../../src/core/hash.js'
import { CHUNK_KINDS, packNumber, parseRepositoryId } from '../../src/core/ids.js'
import { zstdEncoder } from '../../src/core/zstd.js'
import { PackWriter } from '../../src/repo/pack-writer.js'
import { CUT_MODES, cutEffects, SimulatedCrash, type Cut, type CutEffects } from '../support/cut-effects.js'

const CHUNKS = [Buffer.from('first'), Buffer.alloc(10_000, 'second '), Buffer.from('third')]

async function sealOne(directory: string, effects: CutEffects): Promise<string> {
  const writer = new PackWriter({ directory, number: packNumber(1), kind: CHUNK_KINDS.data, repositoryId: parseRepositoryId('ab'.repeat(16)),
    packKey: Buffer.alloc(32, 2), effects, random: { bytes: (count) => Buffer.alloc(count, 9), fraction: () => 0 }, encoder: zstdEncoder(1) })
  for (const chunk of CHUNKS) writer.appendBlock([chunk], [hashChunk(Buffer.alloc(32, 1), chunk, CHUNK_KINDS.data)])
  return (await writer.finish()).packId
}

test('a pack is written, made durable, named, and its name made durable: in this order', async () => {
  await inScratch(async (directory) => {
    const effects = cutEffects()
    await sealOne(directory, effects)
    assert.deepEqual(effects.steps.slice(-4), ['fsync', 'close', 'rename', 'fsync-directory'])
    assert.ok(effects.steps.slice(1, -4).every((step) => step === 'write'))
  })
})

for (const powerLoss of [false, true])
  test(`sealing that dies at any step${powerLoss ? ' with the power' : ''} leaves a whole pack or none`, async () => {
    const probe = cutEffects()
    await inScratch(async (directory) => { await sealOne(directory, probe) })
    const cuts: Cut[] = probe.steps.flatMap((_, step) => CUT_MODES.map((mode) => ({ step, mode })))
    for (const cut of cuts) await inScratch(async (directory) => {
      const effects = cutEffects()
      effects.arm(cut)
      await assert.rejects(sealOne(directory, effects), SimulatedCrash)
      await effects.settled()
      if (powerLoss) effects.loseUnsynced(directory)
      for (const name of readdirSync(directory).filter((one) => one.endsWith('.pack')))
        assert.equal(`${digest(readFileSync(join(directory, name))).toString('hex')}.pack`, name, JSON.stringify(cut))
    })
    // Once it was announced, neither is lost.
    await inScratch(async (directory) => {
      const effects = cutEffects()
      const packId = await sealOne(directory, effects)
      if (powerLoss) effects.loseUnsynced(directory)
      assert.deepEqual(readdirSync(directory), [`${packId}.pack`])
      assert.equal(digest(readFileSync(join(directory, `${packId}.pack`))).toString('hex'), packId)
    })
  })

async function inScratch(work: (directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'roost-seal-'))
  try { await work(directory) } finally { rmSync(directory, { recursive: true, force: true }) }
}
