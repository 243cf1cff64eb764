// Breaks one line of the sources at a time, in a copy, and says whether the tests notice. Run by hand:
//
//   node test/mutation/run.mjs             every mutation
//   node test/mutation/run.mjs order proof only those whose name contains one of the words
//
// A mutation that survives is a missing test. One whose text is not found exactly once fails the run: the list must follow the sources.
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { MUTATIONS } from './mutations.mjs'

const ROOT = resolve(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..', '..')
const TEST_TIMEOUT_MS = 400_000
const words = process.argv.slice(2)
const chosen = MUTATIONS.filter(({ name }) => words.length === 0 || words.some((word) => name.includes(word)))

const copy = mkdtempSync(join(tmpdir(), 'roost-mutation-'))
process.on('exit', () => { rmSync(copy, { recursive: true, force: true }) })
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => { process.exit(130) })
for (const name of ['src', 'client', 'test', 'bench', 'docs', 'bin', 'package.json', 'tsconfig.json'])
  if (existsSync(join(ROOT, name))) cpSync(join(ROOT, name), join(copy, name), { recursive: true })
symlinkSync(join(ROOT, 'node_modules'), join(copy, 'node_modules'))

/** Emitted JavaScript of the copy; type errors are no matter here, a broken line may well not fit its types. */
function build() {
  spawnSync(process.execPath, [join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc'), '--outDir', 'dist', '--noEmitOnError', 'false'], { cwd: copy })
}
/** The first failing test, or undefined when all pass. */
function firstFailure(tests) {
  const files = tests.map((test) => join('dist', 'test', test.replace(/\.ts$/, '.js')))
  const result = spawnSync(process.execPath, ['--test', '--test-concurrency=2', '--test-reporter=tap', ...files], {
    cwd: copy, encoding: 'utf8', timeout: TEST_TIMEOUT_MS, maxBuffer: 1 << 28, env: { ...process.env, ROOST_TEST_SLOW: '' },
  })
  if (result.status === 0) return undefined
  const name = /^\s*not ok \d+ - (.*)$/m.exec(result.stdout)?.[1] ?? (result.error === undefined ? 'the run failed' : 'the run hung')
  // A simulation names the seed.
  return /^\s*(seed \d+ fails .*)$/m.exec(result.stdout)?.[1] ?? name
}

build()
const broken = firstFailure([...new Set(chosen.flatMap(({ tests }) => tests))])
if (broken !== undefined) {
  console.error(`The tests fail without any mutation: ${broken}`)
  process.exit(2)
}
const survivors = [], stale = []
for (const { name, file, from, to, and = [], tests } of chosen) {
  const path = join(copy, file), text = readFileSync(path, 'utf8')
  const edits = [[from, to], ...and]
  if (edits.some(([before]) => text.split(before).length !== 2)) {
    stale.push(name)
    console.log(`STALE     ${name} (${file})`)
    continue
  }
  writeFileSync(path, edits.reduce((changed, [before, after]) => changed.replace(before, () => after), text))
  build()
  const failure = firstFailure(tests)
  writeFileSync(path, text)
  if (failure === undefined) survivors.push(name)
  console.log(failure === undefined ? `SURVIVED  ${name} (${file})` : `killed    ${name}: ${failure.slice(0, 110)}`)
}
console.log(`${chosen.length} mutations, ${survivors.length} survived, ${stale.length} stale`)
process.exit(survivors.length + stale.length === 0 ? 0 : 1)
