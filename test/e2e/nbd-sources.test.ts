/** NBD exports as sources, with and without dirty bitmaps: servers that others wrote, and our own. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { assertSame, backup, lackOfDiskTools, qemuIo, rawImage, savedOf, sharedWorld, startServer, type Saved } from '../support/disk-scene.js'
import { tool, type RoostWorld } from '../support/run-roost.js'

const KiB = 1024
const MiB = 1024 * KiB

const skip = lackOfDiskTools()
if (skip !== false) console.log(skip)

describe('NBD exports', { skip }, () => {
  const openWorld = sharedWorld()
  test('of qemu-nbd and nbdkit are read right: whatever block sizes, delays and errors in between', async (t) => {
    const world = await openWorld()
    const image = rawImage(world, 'disk.raw', 24 * MiB + 4096)
    const socket = world.path('s')
    const cases: readonly (readonly [string, string, readonly string[]])[] = [
      ['qemu-nbd', 'qemu-nbd', ['-t', '-r', '-f', 'raw', '-x', 'a/b c', '-k', socket, image]],
      ['nbdkit', 'nbdkit', ['-f', '-r', '-U', socket, 'file', image]],
      ['without extents', 'nbdkit', ['-f', '-r', '-U', socket, '--filter=noextents', 'file', image]],
      ['without structure', 'nbdkit', ['-f', '-r', '-U', socket, '--no-sr', 'file', image]],
      ['large blocks only', 'nbdkit', ['-f', '-r', '-U', socket, '--filter=blocksize-policy', 'file', image, 'blocksize-minimum=4096', 'blocksize-preferred=4096', 'blocksize-maximum=65536', 'blocksize-error-policy=error']],
      ['slow', 'nbdkit', ['-f', '-r', '-U', socket, '--filter=delay', 'file', image, 'rdelay=5ms', 'delay-extents=5ms']],
      ['with errors now and then', 'nbdkit', ['-f', '-r', '-U', socket, '--filter=error', 'file', image, 'error-pread-rate=5%', 'error=EIO']],
    ]
    for (const [name, command, args] of cases) {
      const server = await startServer(t, command, args, socket)
      const uri = `nbd+unix:///${command === 'qemu-nbd' ? 'a/b%20c' : ''}?socket=${socket}`
      const saved = await backup(world, '--image', uri, '--source', name)
      await assertSame(world, saved.id, image, 'raw')
      const gone = new Promise((resolve) => server.once('exit', resolve))
      server.kill('SIGTERM')
      await gone
      spawnSync('rm', ['-f', socket])
    }
  })
  test('behind a network that cuts every connection after some megabytes are read to their end, and right', async (t) => {
    const world = await openWorld()
    const image = rawImage(world, 'disk.raw', 200 * MiB)
    const socket = world.path('s')
    await startServer(t, 'qemu-nbd', ['-t', '-r', '-e', '8', '-f', 'raw', '-k', socket, image], socket)
    let cuts = 0
    const proxy = createServer((client) => {
      const server = connect(socket)
      let left = (3 + cuts % 5) * MiB + cuts * 777
      server.on('data', (bytes) => {
        client.write(bytes.subarray(0, left)) // and so in the middle of an answer
        left -= bytes.byteLength
        if (left <= 0) { cuts++; server.destroy(); client.destroy() }
      })
      client.on('data', (bytes) => server.write(bytes))
      for (const [one, other] of [[client, server], [server, client]] as const) {
        one.on('error', () => undefined)
        one.on('close', () => { other.destroy() })
      }
    })
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve))
    t.after(() => { proxy.close() })
    const saved = await backup(world, '--image', `disk=nbd://127.0.0.1:${(proxy.address() as AddressInfo).port}/`, '--source', 'cut')
    assert.ok(cuts >= 3, `${cuts} cuts`)
    await assertSame(world, saved.id, image, 'raw')
  })
  test('that cannot be read in a place fail the backup with the place; no snapshot is made', async (t) => {
    const world = await openWorld()
    const image = rawImage(world, 'disk.raw', 24 * MiB)
    const socket = world.path('s')
    await startServer(t, 'nbdkit', ['-f', '-r', '-U', socket, 'eval', 'get_size=echo 25165824', 'pread=if [ $4 -le 12582912 ] && [ $(($4 + $3)) -gt 12582912 ]; then echo EIO bad sector >&2; exit 1; fi; ' +
      `dd if=${image} skip=$4 count=$3 iflag=count_bytes,skip_bytes bs=64K status=none`], socket)
    const { code, stderr } = await world.run(['backup', '--image', `nbd+unix:///?socket=${socket}`, '--source', 'bad'])
    assert.equal(code, 1)
    assert.match(stderr, /cannot read \d+ bytes at 12582912 of ""/)
    assert.equal((await world.json(['snapshots', '--source', 'bad'])).filter((line) => line['id'] !== undefined).length, 0)
  })
  test('of roost itself, over TCP with TLS and not without', async (t) => {
    const world = await openWorld()
    const image = rawImage(world, 'disk.raw', 16 * MiB)
    const first = await backup(world, '--image', image, '--source', 'one')
    const pki = world.path('pki')
    mkdirSync(pki)
    const openssl = (...args: readonly string[]): void => { assert.equal(spawnSync('openssl', [...args], { cwd: pki, stdio: 'ignore' }).status, 0) }
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'] as const
    openssl('req', '-x509', ...key, '-days', '2', '-subj', '/CN=authority', '-keyout', 'ca-key.pem', '-out', 'ca-cert.pem')
    writeFileSync(join(pki, 'extensions'), 'subjectAltName=DNS:localhost,IP:127.0.0.1\n')
    for (const who of ['server', 'client']) {
      openssl('req', ...key, '-subj', `/CN=${who}`, '-keyout', `${who}-key.pem`, '-out', `${who}.csr`)
      openssl('x509', '-req', '-in', `${who}.csr`, '-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial', '-days', '2', '-extfile', 'extensions', '-out', `${who}-cert.pem`)
    }
    const serving = world.start(['nbd', first.id, '--listen', '127.0.0.1:0', '--tls-cert', join(pki, 'server-cert.pem'), '--tls-key', join(pki, 'server-key.pem'), '--tls-ca', join(pki, 'ca-cert.pem')], 'pipe')
    t.after(() => { serving.kill('SIGKILL') })
    const uri = await new Promise<string>((resolve) => serving.stdout!.once('data', (bytes: Buffer) => { resolve(bytes.toString().split('\n')[0]!) }))
    const again = await backup(world, '--image', `back=${uri}disk.raw?tls-certificates=${pki}`, '--source', 'two')
    assert.equal(again.statistics['bytesRead'], 2 * MiB, 'its holes are not read')
    await assertSame(world, again.id, image, 'raw')
    for (const [bad, why] of [[uri, /certificate/i], [uri.replace('nbds', 'nbd'), /wants TLS/]] as const) {
      const { code, stderr } = await world.run(['backup', '--image', `x=${bad}disk.raw`, '--source', 'three'])
      assert.equal(code, 1)
      assert.match(stderr, why)
    }
    serving.kill('SIGINT')
  })
})

describe('a dirty bitmap', { skip }, () => {
  const openWorld = sharedWorld()
  const CONTEXT = 'qemu:dirty-bitmap:b0'
  const MAP = ['--dirty-map', CONTEXT] as const
  interface MappedWorld { readonly world: RoostWorld; readonly image: string; readonly first: Saved }
  async function prepare(): Promise<MappedWorld> {
    const world = await openWorld()
    const image = world.path('disk.qcow2')
    tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', rawImage(world, 'disk.raw', 256 * MiB), image])
    const first = await backup(world, '--image', image, '--source', 'vm')
    tool('qemu-img', ['bitmap', '--add', '-f', 'qcow2', image, 'b0'])
    return { world, image, first }
  }
  test('leads to what was written, and only that is read; the image is the machine\'s', async (t) => {
    const { world, image, first } = await prepare()
    qemuIo(image, 'write -P 1 100M 4k', 'write -P 2 201M 200k', 'write -z 22M 1M', 'discard 44M 1M')
    const saved = await backup(world, '--image', image, '--source', 'vm', ...MAP, '--dirty-map-since', first.id, '--audit', '0')
    const [disk] = saved.disks
    assert.deepEqual([disk!.read, disk!.reason, disk!.auditedBytes, saved.problems], ['incremental', undefined, 0, 0])
    assert.ok(saved.statistics['bytesRead']! <= 512 * KiB, `${saved.statistics['bytesRead']!} bytes read for 204 KiB of data`)
    assert.equal(disk!.dirtyBytes, saved.statistics['bytesRead'])
    await assertSame(world, saved.id, image, 'qcow2')
    await world.ok(['check', '--read-data'])

    // By a server of its own, with an audit.
    const socket = world.path('s')
    await startServer(t, 'qemu-nbd', ['-t', '-r', '-f', 'qcow2', '-B', 'b0', '-k', socket, image], socket)
    const audited = await backup(world, '--image', `disk=nbd+unix:///?socket=${socket}`, '--source', 'vm', ...MAP, '--dirty-map-since', first.id, '--audit', '10')
    assert.deepEqual([audited.disks[0]!.read, audited.disks[0]!.dirtyBytes, audited.problems], ['incremental', disk!.dirtyBytes, 0])
    const share = audited.disks[0]!.auditedBytes / audited.disks[0]!.cleanBytes
    assert.ok(share > 0.05 && share < 0.15, `${share} of what is clean was compared`)
    assert.equal(audited.statistics['bytesRead'], audited.disks[0]!.dirtyBytes + audited.disks[0]!.auditedBytes)
    await assertSame(world, audited.id, image, 'qcow2')
  })
  test('of another snapshot, or that the export does not have, is not used: all is read, and why is said', async (t) => {
    const { world, image, first } = await prepare()
    qemuIo(image, 'write -P 1 100M 4k')
    const lacking = await backup(world, '--image', image, '--source', 'vm')
    for (const [args, why] of [[['--dirty-map', 'qemu:dirty-bitmap:b0', '--dirty-map-since', first.id], undefined], [['--dirty-map', 'other:map', '--dirty-map-since', first.id], /does not offer/]] as const) {
      const saved = await backup(world, '--image', image, '--source', 'vm', ...args)
      if (why !== undefined) { assert.equal(saved.disks[0]!.read, 'full'); assert.match(saved.disks[0]!.reason!, why) }
      else assert.equal(saved.disks[0]!.read, 'incremental')
      await assertSame(world, saved.id, image, 'qcow2')
    }
    assert.equal(lacking.disks[0]!.read, 'full')
    tool('qemu-img', ['resize', '-q', '-f', 'qcow2', image, '257M'])
    const grown = await backup(world, '--image', image, '--source', 'vm', ...MAP, '--dirty-map-since', first.id)
    assert.deepEqual([grown.disks[0]!.read, /its length has changed/.test(grown.disks[0]!.reason!)], ['full', true])
    await assertSame(world, grown.id, image, 'qcow2')
  })
  test('that misses a write is found by an audit, told of, and the snapshot is right all the same', async (t) => {
    const { world, image, first } = await prepare()
    tool('qemu-img', ['bitmap', '--disable', '-f', 'qcow2', image, 'b0'])
    qemuIo(image, 'write -P 7 200M 4k')
    const result = await world.run(['backup', '--image', image, '--source', 'vm', ...MAP, '--dirty-map-since', first.id, '--audit', '100', '--json'])
    assert.equal(result.code, 3)
    const lines = result.stdout.trim().split('\n').map((line) => JSON.parse(line) as Record<string, unknown>)
    assert.ok(lines.some((line) => line['type'] === 'problem' && line['reason'] === 'map-wrong' && /209715200/.test(line['message'] as string)))
    const saved = savedOf(lines)
    assert.deepEqual([saved.disks[0]!.read, saved.disks[0]!.auditMismatches], ['full', 1])
    await assertSame(world, saved.id, image, 'qcow2')
  })
})
