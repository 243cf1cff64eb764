// npm run quickstart: from a fresh clone to a proof that Roost works here. Installs if needed, builds, starts a server on a free port with
// data of its own, backs a real tree up twice (the second time after a change), restores it, compares, tells, and cleans up.
//
//   npm run quickstart                 a tree of this machine (its documentation, or node_modules)
//   npm run quickstart -- --tree DIR   a tree of yours (it is only read)
//   npm run quickstart -- --keep       leaves everything in ./quickstart-data, to look at
import { spawn, spawnSync } from 'node:child_process'
import { cpSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, appendFileSync, utimesSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build, installIfNeeded, ROOT } from './prepare.mjs'

const ROOST = join(ROOT, 'bin', 'roost')
const TREE_BYTES_MIN = 10 * 2 ** 20
const TREE_BYTES_MAX = 200 * 2 ** 20

const keep = process.argv.includes('--keep')
const named = process.argv.includes('--tree') ? process.argv[process.argv.indexOf('--tree') + 1] : undefined

installIfNeeded()
console.log('Building …')
build()
const { compareTrees } = await import('../dist/test/support/compare-trees.js')
const { formatBytes: size } = await import('../dist/src/cli/format.js')

const work = keep ? join(ROOT, 'quickstart-data') : mkdtempSync(join(tmpdir(), 'roost-quickstart-'))
let server
let failure
try {
  if (keep) { rmSync(work, { recursive: true, force: true }); mkdirSync(work) }
  await quickstart()
} catch (error) {
  failure = error
} finally {
  await stopServer()
  if (!keep) rmSync(work, { recursive: true, force: true })
}
if (failure !== undefined) {
  console.error(`\nquickstart failed: ${failure.message}`)
  process.exit(1)
}
process.exit(0)

async function quickstart() {
  const tree = join(work, 'tree')
  const original = named ?? chooseTree()
  cpSync(original, tree, { recursive: true, verbatimSymlinks: true, preserveTimestamps: true })
  console.log(`\nA copy of ${original} is the tree to save.`)

  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  await startServer(port, url)
  const environment = { ...process.env, ROOST_REPOSITORY: `${url}/quickstart`, ROOST_TOKEN_FILE: join(work, 'data', 'admin-token'),
    ROOST_CONFIG: '', ROOST_TOKEN: '', ROOST_SOURCE: '', ROOST_SERVER: '', ROOST_VERIFY_KEY: '', XDG_CONFIG_HOME: work }
  const roost = (...args) => {
    const started = performance.now()
    const result = spawnSync(process.execPath, [ROOST, ...args, '--json'], { cwd: ROOT, env: environment, encoding: 'utf8', maxBuffer: 2 ** 26 })
    const lines = result.stdout.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line))
    if (result.status !== 0) throw new Error(`roost ${args.join(' ')} ended with ${result.status}:\n${result.stdout}\n${result.stderr}`)
    return { lines, last: lines.at(-1), ms: performance.now() - started }
  }

  roost('repo', 'create', 'quickstart')
  // What changed within two seconds before a backup is read again by the next one, since its time stamp cannot vouch for it.
  await new Promise((resolve) => setTimeout(resolve, 2_500))
  const first = roost('backup', tree, '--source', 'quickstart')
  const unchanged = roost('backup', tree, '--source', 'quickstart')
  changeTree(tree)
  const second = roost('backup', tree, '--source', 'quickstart')
  const restored = join(work, 'restored')
  const restore = roost('restore', 'latest', '--target', restored, '--source', 'quickstart')
  const check = roost('check', '--read-data')
  const stats = roost('stats').last

  const comparison = compareTrees(tree, join(restored, tree), { owners: process.getuid() === 0 })
  const saved = [first, unchanged, second].map((run) => run.lines.find((line) => line.type === 'snapshot').statistics)
  const logical = saved.reduce((sum, each) => sum + each.sourceBytes, 0)
  const row = (name, run, text) => console.log(`  ${name.padEnd(26)} ${(run.ms / 1000).toFixed(2).padStart(6)} s   ${text}`)
  console.log(`\n  tree: ${comparison.files} files, ${comparison.directories} directories, ${comparison.others} others, ${size(comparison.bytes)}\n`)
  row('first backup', first, `read ${size(saved[0].bytesRead)}, new ${size(saved[0].bytesSent)}, on the wire ${size(saved[0].bytesOnWire)}`)
  row('again, unchanged', unchanged, `read ${size(saved[1].bytesRead)}, new ${size(saved[1].bytesSent)}`)
  row('again, three changes', second, `read ${size(saved[2].bytesRead)}, new ${size(saved[2].bytesSent)}`)
  row('restore', restore, `${size(comparison.bytes)} verified chunk by chunk`)
  row('check --read-data', check, 'no problems')
  console.log(`\n  three snapshots hold ${size(logical)}; ${size(stats.rawBytes)} after deduplication (${ratio(logical, stats.rawBytes)} : 1), ` +
    `${size(stats.storedBytes)} stored, compressed and encrypted (${ratio(logical, stats.storedBytes)} : 1)`)
  if (comparison.differences.length > 0)
    throw new Error(`the restored tree differs:\n  ${comparison.differences.join('\n  ')}`)
  console.log('\n  The restored tree is identical: names, contents, modes, times to the nanosecond, links' +
    `${process.getuid() === 0 ? ', owners' : ''}.\n`)
  if (keep) console.log(`  Everything is in ${work}.`)
}

function chooseTree() {
  for (const candidate of ['/usr/share/doc', '/usr/share/perl', '/usr/share', join(ROOT, 'node_modules')]) {
    if (!existsSync(candidate)) continue
    const bytes = treeBytes(candidate, TREE_BYTES_MAX)
    if (bytes >= TREE_BYTES_MIN && bytes <= TREE_BYTES_MAX) return candidate
  }
  return join(ROOT, 'node_modules')
}
/** Stops counting past `enough`. */
function treeBytes(directory, enough) {
  let bytes = 0
  const visit = (path) => {
    if (bytes > enough) return
    const stat = lstatSync(path)
    bytes += stat.size
    if (stat.isDirectory()) for (const name of readdirSync(path)) visit(join(path, name))
  }
  try {
    visit(directory)
  } catch {
    return 0 // not readable for this user: another tree will do
  }
  return bytes
}
/** A day's work: one file grows, one is new, one is gone. */
function changeTree(tree) {
  const files = []
  const visit = (path) => {
    for (const name of readdirSync(path, { withFileTypes: true })) {
      if (files.length >= 50) return
      const at = join(path, name.name)
      if (name.isDirectory()) visit(at)
      else if (name.isFile() && statSync(at).nlink === 1 && (statSync(at).mode & 0o200) !== 0) files.push(at)
    }
  }
  visit(tree)
  if (files.length > 0) appendFileSync(files[0], '\none more line\n')
  if (files.length > 1) rmSync(files.at(-1))
  writeFileSync(join(tree, 'new file'), 'written between two backups\n')
  utimesSync(join(tree, 'new file'), 1_700_000_000.123, 1_700_000_000.123)
}
function ratio(of, to) { return (to > 0 ? of / to : 0).toFixed(2) }

async function freePort() {
  const probe = createServer()
  await new Promise((resolve) => probe.listen(0, '127.0.0.1', resolve))
  const { port } = probe.address()
  await new Promise((resolve) => probe.close(resolve))
  return port
}
async function startServer(port, url) {
  server = spawn(process.execPath, [ROOST, 'server', '--data', join(work, 'data'), '--listen', `127.0.0.1:${port}`, '--log-level', 'warn'],
    { cwd: ROOT, stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  server.stderr.on('data', (bytes) => { said = (said + bytes).slice(-10_000) })
  let ended = false
  server.once('exit', () => { ended = true })
  for (let attempt = 0; attempt < 200; attempt++) {
    if (ended) throw new Error(`the server ended:\n${said}`)
    if (await fetch(`${url}/readyz`).then((reply) => reply.ok, () => false)) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error('the server does not answer')
}
async function stopServer() {
  if (server === undefined || server.exitCode !== null || server.signalCode !== null) return
  const gone = new Promise((resolve) => server.once('exit', resolve))
  server.kill('SIGTERM')
  await gone
}
