/** roost nbd with clients that others wrote (qemu-img, qemu-io, qemu-nbd, nbdinfo, nbdcopy), with a server that is restarted under it, and as a command. */
import assert from 'node:assert/strict'
import { execFile, execFileSync, type ChildProcess } from 'node:child_process'
import { closeSync, existsSync, ftruncateSync, mkdirSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import { createInterface } from 'node:readline'
import { describe, test, type TestContext } from 'node:test'
import { promisify } from 'node:util'
import { NbdTestClient } from '../support/nbd-client.js'
import { noise } from '../support/odd-tree.js'
import { hasTool, openWorld, type RoostWorld } from '../support/run-roost.js'

const MiB = 1024 * 1024
const run = promisify(execFile)
/** A client that hangs is a failure of its own. */
const LIMITS = { timeout: 60_000, killSignal: 'SIGKILL', maxBuffer: 64 * MiB } as const

/** Sparse: data at 0, in the middle across chunks, and at the end. */
function makeImage(world: RoostWorld, bytes: number): string {
  const path = world.path('disk.img')
  const file = openSync(path, 'w')
  ftruncateSync(file, bytes)
  writeSync(file, noise(MiB, 1), 0, MiB, 0)
  for (let at = 16; at < 24; at++) writeSync(file, noise(MiB, at), 0, MiB, at * MiB + 4096)
  writeSync(file, noise(5000, 3), 0, 5000, bytes - 5000)
  closeSync(file)
  return path
}
interface Serving { readonly child: ChildProcess; readonly uri: string; readonly socket: string; readonly record: Record<string, unknown>; ended(): Promise<number | null> }
async function serve(t: TestContext, world: RoostWorld, args: readonly string[]): Promise<Serving> {
  const child = world.start(['nbd', ...args, '--json'], 'pipe')
  t.after(() => { child.kill('SIGKILL') })
  let errors = ''
  child.stderr!.on('data', (bytes: Buffer) => { errors += bytes.toString() })
  const ended = new Promise<number | null>((resolve) => child.once('exit', (code) => { resolve(code) }))
  const line = await Promise.race([new Promise<string>((resolve) => createInterface({ input: child.stdout! }).once('line', resolve)), ended])
  if (typeof line !== 'string') throw new Error(`roost nbd ended with ${line}: ${errors}`)
  const record = JSON.parse(line) as Record<string, unknown>
  const [first] = record['exports'] as { uri: string }[]
  return { child, record, uri: first!.uri, socket: new URL(first!.uri).searchParams.get('socket') ?? '', ended: () => ended }
}
async function stop({ child, ended }: Serving): Promise<void> {
  child.kill('SIGINT')
  assert.equal(await ended(), 0)
}

describe('clients that others wrote', () => {
  const lacking = ['qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo', 'nbdcopy'].filter((name) => !hasTool(name))
  const skip = lacking.length === 0 ? false : `SKIPPED GROUP: clients of NBD — not installed: ${lacking.join(', ')}`
  if (skip !== false) console.log(skip)

  test('find the image identical, its holes where they are, and copy it byte by byte', { skip }, async (t) => {
    const world = await openWorld(t)
    const bytes = 96 * MiB + 512
    const image = makeImage(world, bytes)
    await world.ok(['backup', '--image', image, '--source', 'web1'])
    const serving = await serve(t, world, ['latest'])
    const { uri, socket } = serving
    assert.match((await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', image, uri], LIMITS)).stdout, /identical/)
    await run('nbdcopy', [uri, world.path('copy.img')], LIMITS)
    execFileSync('cmp', [image, world.path('copy.img')])
    assert.ok(statSync(world.path('copy.img')).blocks <= statSync(image).blocks + 2048, 'the copy is as sparse')
    await run('nbdcopy', ['--no-extents', '--connections=4', '--requests=32', uri, world.path('again.img')], LIMITS)
    execFileSync('cmp', [image, world.path('again.img')])
    const map = JSON.parse((await run('nbdinfo', ['--map', '--json', uri], LIMITS)).stdout) as { offset: number; length: number; type: number }[]
    const kiB = 1024
    assert.deepEqual(map.map(({ offset, length, type }) => [offset, length, type]), [[0, MiB, 0], [MiB, 15 * MiB, 3], [16 * MiB, 8 * MiB + 128 * kiB, 0],
      [24 * MiB + 128 * kiB, 72 * MiB - 256 * kiB, 3], [96 * MiB - 128 * kiB, 128 * kiB + 512, 0]])
    const info = JSON.parse((await run('nbdinfo', ['--json', uri], LIMITS)).stdout) as { exports: Record<string, unknown>[] }
    const [about] = info.exports
    assert.deepEqual([about!['export-name'], about!['export-size'], about!['is_read_only'], about!['can_multi_conn']], ['disk.img', bytes, true, true])
    assert.match((await run('qemu-nbd', ['--list', '-k', socket], LIMITS)).stdout, /export: 'disk\.img'/)
    assert.equal(statSync(socket).mode & 0o777, 0o600)
    await stop(serving)
    assert.ok(!existsSync(dirname(socket)), 'nothing is left behind')
  })
  test('run a machine\'s disk as an overlay over it: what is written stays in the overlay', { skip }, async (t) => {
    const world = await openWorld(t)
    const image = makeImage(world, 64 * MiB)
    await world.ok(['backup', '--image', image])
    const serving = await serve(t, world, ['latest', '--socket', world.path('s.sock')])
    assert.equal(serving.uri, `nbd+unix:///?socket=${world.path('s.sock')}`)
    const overlay = world.path('overlay.qcow2')
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', serving.uri, overlay], LIMITS)
    await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 0x5a 17M 64k', '-c', 'read -P 0x5a 17M 64k', '-c', 'read -P 0 40M 1M', overlay], LIMITS)
    await assert.rejects(run('qemu-io', ['-f', 'raw', '-c', 'write -P 1 0 4k', serving.uri], LIMITS), 'the export itself is read-only')
    assert.match((await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', image, serving.uri], LIMITS)).stdout, /identical/)
    await stop(serving)
  })
  test('reach it over TCP with TLS when they have a certificate of the authority, and not otherwise', { skip }, async (t) => {
    const world = await openWorld(t)
    const image = makeImage(world, 32 * MiB)
    await world.ok(['backup', '--image', image])
    const pki = world.path('pki')
    mkdirSync(pki)
    const openssl = (...args: readonly string[]): void => { execFileSync('openssl', [...args], { cwd: pki, stdio: 'ignore' }) }
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'] as const
    openssl('req', '-x509', ...key, '-days', '2', '-subj', '/CN=authority', '-keyout', 'ca-key.pem', '-out', 'ca-cert.pem')
    writeFileSync(world.path('pki', 'extensions'), 'subjectAltName=DNS:localhost,IP:127.0.0.1\n')
    for (const who of ['server', 'client']) {
      openssl('req', ...key, '-subj', `/CN=${who}`, '-keyout', `${who}-key.pem`, '-out', `${who}.csr`)
      openssl('x509', '-req', '-in', `${who}.csr`, '-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial', '-days', '2', '-extfile', 'extensions', '-out', `${who}-cert.pem`)
    }
    const serving = await serve(t, world, ['latest', '--listen', '0.0.0.0:0', '--tls-cert', world.path('pki', 'server-cert.pem'), '--tls-key', world.path('pki', 'server-key.pem'),
      '--tls-ca', world.path('pki', 'ca-cert.pem')])
    assert.match(serving.uri, /^nbds:\/\/0\.0\.0\.0:\d+\/$/)
    const uri = serving.uri.replace('0.0.0.0', 'localhost')
    await run('nbdcopy', [`${uri}?tls-certificates=${pki}`, world.path('copy.img')], LIMITS)
    execFileSync('cmp', [image, world.path('copy.img')])
    assert.match((await run('qemu-img', ['compare', '--object', `tls-creds-x509,id=t,endpoint=client,dir=${pki}`, '--image-opts', `driver=raw,file.filename=${image}`,
      `driver=nbd,host=localhost,port=${new URL(serving.uri.replace('nbds', 'http')).port},tls-creds=t`], LIMITS)).stdout, /identical/)
    mkdirSync(world.path('half'))
    writeFileSync(world.path('half', 'ca-cert.pem'), readFileSync(world.path('pki', 'ca-cert.pem')))
    await assert.rejects(run('nbdinfo', [`${uri}?tls-certificates=${world.path('half')}`], LIMITS))
    await assert.rejects(run('nbdinfo', [uri.replace('nbds', 'nbd')], LIMITS))
    await stop(serving)
  })
})

test('a restart of the server under it is a pause: reads go on, and every byte is right', async (t) => {
  const world = await openWorld(t)
  const bytes = 40 * MiB
  writeFileSync(world.path('disk.img'), noise(bytes, 9))
  const content = readFileSync(world.path('disk.img'))
  await world.ok(['backup', '--image', world.path('disk.img')])
  const serving = await serve(t, world, ['latest', '--cache', '16M', '--socket', world.path('s.sock')])
  const client = await NbdTestClient.ready({ kind: 'unix', path: serving.socket })
  const check = async (from: number, to: number): Promise<void> => {
    for (let at = from; at < to; at += MiB) assert.ok((await client.bytes(at, MiB)).equals(content.subarray(at, at + MiB)), `at ${at}`)
  }
  await check(0, 8 * MiB)
  await world.killServer()
  const during = check(30 * MiB, 36 * MiB)
  await world.startServer()
  await during
  await check(0, bytes)
  await world.stopServer()
  await world.startServer()
  await check(20 * MiB, 40 * MiB)
  client.destroy()
  await stop(serving)
  assert.ok(!existsSync(serving.socket))
})

test('Ctrl-C ends it soon, also while a read waits for a server that is away', async (t) => {
  const world = await openWorld(t)
  writeFileSync(world.path('disk.img'), noise(4 * MiB, 9))
  await world.ok(['backup', '--image', world.path('disk.img')])
  const serving = await serve(t, world, ['latest'])
  const client = await NbdTestClient.ready({ kind: 'unix', path: serving.socket })
  await world.killServer()
  client.send(0, 0, MiB)
  const startedMs = performance.now()
  await stop(serving)
  assert.ok(performance.now() - startedMs < 20_000)
  await client.gone()
  assert.ok(!existsSync(dirname(serving.socket)))
})

test('a file of a file tree is served by its path, and what cannot be served is said', async (t) => {
  const world = await openWorld(t)
  mkdirSync(world.path('tree'))
  const content = noise(3 * MiB, 4)
  writeFileSync(world.path('tree', 'db.img'), content)
  writeFileSync(world.path('tree', 'other'), 'x')
  await world.ok(['backup', world.path('tree'), '--source', 'tree'])
  for (const args of [[`latest:${world.path('tree', 'db.img')}`], ['latest', '--path', world.path('tree', 'db.img')]]) {
    const serving = await serve(t, world, args)
    assert.equal((serving.record['exports'] as { name: string }[])[0]!.name, 'db.img')
    const client = await NbdTestClient.ready({ kind: 'unix', path: serving.socket }, { name: 'db.img' })
    assert.ok((await client.bytes(0, 3 * MiB)).equals(content))
    client.destroy()
    await stop(serving)
  }
  for (const [args, code, says] of [
    [['latest'], 1, /no disk image at its top.*--path/s], [['latest:/nowhere'], 1, /no such file/], [[`latest:${world.path('tree')}`], 1, /neither an image nor a file/],
    [['latest:/a', '--path', '/b'], 2, /once/], [['latest', '--listen', '0.0.0.0:0'], 2, /without TLS/], [['latest', '--listen', 'localhost'], 2, /HOST:PORT/],
    [['latest', '--listen', '127.0.0.1:0', '--socket', '/x'], 2, /Choose one/], [['latest', '--socket', `/${'x'.repeat(120)}`], 2, /107 bytes/],
    [['latest', '--tls-cert', '/nowhere'], 2, /both/], [['latest', '--tls-cert', '/nowhere', '--tls-key', '/nowhere'], 2, /cannot be read/], [['latest', '--cache', '1M'], 2, /at least/],
    [[`latest:${world.path('tree', 'db.img')}`, '--socket', '/proc/none/s'], 1, /ENOENT|EACCES|EPERM|Permission|path/],
  ] as const) {
    const result = await world.run(['nbd', ...args])
    assert.equal(result.code, code, `${args.join(' ')}: ${result.stderr}`)
    assert.match(result.stderr, says)
  }
})
