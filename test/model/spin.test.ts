/** The collection's protocol as Promela models (docs/gc.md): Spin searches each configuration completely and finds nothing; with one check taken
 *  away it must find what that check is for. Needs `spin` and `gcc`; a group of its own that is skipped, and says so, where they are missing.
 */
import assert from 'node:assert/strict'
import { spawnSync, type SpawnSyncReturns } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'

/** The sources: models are not emitted. */
const MODELS = ((): string => {
  let at = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(at, 'package.json'))) at = dirname(at)
  return join(at, 'test', 'model')
})()
const MEMORY_MIB_MAX = 1_900
const DEPTH_MAX = 100_000
const missing = ['spin', 'gcc'].filter((tool) => spawnSync('sh', ['-c', `command -v ${tool}`]).status !== 0)
const skip = missing.length > 0 && `${missing.join(' and ')} not installed`

/** Model and switches of what must hold. */
const HOLDS: readonly (readonly string[])[] = [
  ['gc-mark'], ['gc-mark', 'RESTARTS'], ['gc-objects'], ['gc-objects', 'CLIENTS'], ['gc-objects', 'CATCH_UP'], ['gc-damage'],
  // What is held of a snapshot forgotten during a collection is a second line: one alone is enough when opening a session does not look again …
  ['gc-mark', 'NO_LOOK_AGAIN', 'FORGET_ONLY_WHILE_COLLECTING'],
  // … and looking again is enough alone.
  ['gc-mark', 'NO_HELD_ROOT'],
]
/** What must be found: one check is taken away in each. */
const FAILS: readonly { readonly without: string; readonly run: readonly string[] }[] = [
  { without: 'the look at pins when a pack is condemned', run: ['gc-mark', 'NO_PIN_CHECK'] },
  { without: 'holding the pins of sessions that commit', run: ['gc-mark', 'NO_HELD'] },
  { without: 'expanding inherited pins', run: ['gc-mark', 'NO_EXPAND_INHERITED'] },
  { without: 'the second look for a parent that is forgotten while a session opens', run: ['gc-mark', 'NO_LOOK_AGAIN'] },
  { without: 'either line against it', run: ['gc-mark', 'NO_LOOK_AGAIN', 'FORGET_ONLY_WHILE_COLLECTING', 'NO_HELD_ROOT'] },
  { without: 'the epoch check', run: ['gc-mark', 'RESTARTS', 'NO_EPOCH_CHECK'] },
  { without: 'waiting until copies are on a target', run: ['gc-objects', 'NO_COPY_DURABLE'] },
  { without: 'the journal of doomed packs', run: ['gc-objects', 'NO_DOOMED_JOURNAL'] },
  { without: 'the order of deletion: index first', run: ['gc-objects', 'DELETE_FIRST'] },
  { without: 'claims against uploads', run: ['gc-objects', 'NO_CLAIM'] },
  { without: 'claims against catch-up', run: ['gc-objects', 'CATCH_UP', 'NO_CLAIM'] },
  { without: 'locating anew what a reader had planned', run: ['gc-objects', 'CLIENTS', 'NO_READER_FENCE'] },
  { without: 'a rebuild that asks for doomed packs last', run: ['gc-objects', 'CLIENTS', 'DOOMED_ASKED_FIRST'] },
  { without: 'refusing to collect past a lost node', run: ['gc-damage', 'MARK_PAST_DAMAGE'] },
  { without: 'refusing to collect past a lost node that only a session inherited', run: ['gc-damage', 'LOSS_BELOW_SESSIONS_IGNORED'] },
  { without: 'expanding nodes in packs that came later', run: ['gc-damage', 'SKIP_NEW_PACKS'] },
  { without: 'ending the collection when a spare copy is made live', run: ['gc-damage', 'REVIVE_KEEPS_RUN'] },
  { without: 'leaving nodes alone that are pinned and not inherited', run: ['gc-damage', 'EXPAND_PINNED'] },
  { without: 'keeping damaged snapshots from being parents', run: ['gc-damage', 'PARENT_IN_SPITE_OF_DAMAGE'] },
]

describe('the model of collection', { skip }, () => {
  for (const run of HOLDS)
    test(`${run.join(' ')}: no error in any interleaving`, (t) => {
      const output = search(run, '-O2')
      assert.match(output, /errors: 0\b/, output)
      assert.doesNotMatch(output, /Search not completed|max search depth too small|out of memory|aborting/i, 'the search is complete')
      t.diagnostic(`${/(\d+(?:\.\d+e\+\d+)?) states, stored/.exec(output)?.[1] ?? '?'} states`)
    })
  for (const { without, run } of FAILS)
    test(`without ${without} (${run.join(' ')}) Spin finds an error`, () => {
      const output = search(run, '-O0') // soon found: compiling is what takes time
      assert.match(output, /assertion violated/, output)
      assert.match(output, /errors: 1\b/, output)
    })
  test('every switch of the models is tried', () => {
    const tried = new Set([...HOLDS, ...FAILS.map(({ run }) => run)].flatMap((run) => run.slice(1)))
    const offered = ['gc-mark', 'gc-objects', 'gc-damage'].flatMap((model) =>
      [...readFileSync(join(MODELS, `${model}.pml`), 'utf8').matchAll(/(?:^#(?:ifdef|ifndef) |\bdefined\()(\w+)/gm)].map(([, name]) => name!))
    assert.ok(offered.length > 10, 'the probe itself works')
    assert.deepEqual([...new Set(offered)].sort(), [...tried].sort())
  })
})
if (skip !== false) console.log(`SKIPPED GROUP: the model of collection — ${skip}`)

function search([model, ...switches]: readonly string[], optimization: '-O0' | '-O2'): string {
  const directory = mkdtempSync(join(tmpdir(), 'roost-model-'))
  try {
    const tool = (command: string, args: readonly string[]): SpawnSyncReturns<string> =>
      spawnSync(command, args, { cwd: directory, encoding: 'utf8', timeout: 300_000, maxBuffer: 64 * 1024 * 1024 })
    const generated = tool('spin', ['-a', ...switches.map((name) => `-D${name}`), join(MODELS, `${model!}.pml`)])
    assert.equal(generated.status, 0, generated.stdout + generated.stderr)
    assert.doesNotMatch(generated.stdout, /error/i, generated.stdout)
    const compiled = tool('gcc', [optimization, '-w', '-DSAFETY', '-DCOLLAPSE', '-DNOFAIR', `-DMEMLIM=${MEMORY_MIB_MAX}`, '-o', 'pan', 'pan.c'])
    assert.equal(compiled.status, 0, compiled.stderr)
    const searched = tool(join(directory, 'pan'), [`-m${DEPTH_MAX}`, '-n'])
    assert.equal(searched.signal, null, 'the search ends in time')
    return searched.stdout + searched.stderr
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}
