/** Restoring hand-made trees: what comes back, what may be in the way, and what must never happen. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  chmodSync, existsSync, linkSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, symlinkSync,
  utimesSync, writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Writable } from 'node:stream'
import { describe, test, type TestContext } from 'node:test'
import { RoostError } from '../../src/core/errors.js'
import { CHUNK_KINDS, chunkKey, type ChunkId } from '../../src/core/ids.js'
import { decodeNode } from '../../src/core/node-format.js'
import { ImageTreeWriter } from '../../client/image/image-tree.js'
import { lgetxattrs, lsetxattr } from '../../client/native/posix.js'
import { dumpFile } from '../../client/restore/dump.js'
import type { RestoreProblem, RestoreReport } from '../../client/restore/restore-report.js'
import { runRestore, type RestoreOptions } from '../../client/restore/run-restore.js'
import { ENTRY_TYPES, type Entry } from '../../client/tree/entry.js'
import { MemoryRepository } from '../support/memory-repository.js'
import { TreeBuilder } from '../support/tree-builder.js'

const isRoot = process.getuid?.() === 0

class World {
  readonly repository = new MemoryRepository()
  readonly tree = new TreeBuilder(this.repository)
  readonly directory = mkdtempSync(join(tmpdir(), 'roost-restore-'))
  readonly target = join(this.directory, 'target')
  readonly problems: RestoreProblem[] = []
  constructor(t: TestContext) {
    mkdirSync(this.target)
    t.after(() => { execFileSync('rm', ['-rf', this.directory]) }) // deeper than fs.rm can go
  }
  /** Restores the newest snapshot, or one made of `entries`. */
  async restore(entries?: readonly Entry[], options: Partial<RestoreOptions> = {}, signal = new AbortController().signal): Promise<RestoreReport> {
    if (entries !== undefined) await this.tree.snapshot(entries)
    this.problems.length = 0
    return await runRestore(this.repository, { snapshot: 'latest', destination: { kind: 'directory', path: Buffer.from(this.target) }, ...options },
      { problem: (problem) => { this.problems.push(problem) } }, signal)
  }
  path(...names: string[]): string { return join(this.target, ...names) }
  read(...names: string[]): string { return readFileSync(this.path(...names), 'utf8') }
  reasons(): string[] { return this.problems.map(({ path, reason }) => `${path.toString()}: ${reason}`).sort() }
  /** Names that a finished or failed restore must not leave. */
  leftovers(): string[] {
    return readdirSync(this.target, { recursive: true, encoding: 'utf8' }).filter((name) => name.includes('.roost-'))
  }
}

describe('restore', () => {
  test('files, directories, symlinks and fifos come back with content, modes and times to the nanosecond', async (t) => {
    const world = new World(t)
    const { tree } = world
    const report = await world.restore([
      await tree.directory('d', [
        tree.file('one', 'alpha', { mode: 0o640, mtimeNs: 1_500_000_000_000_000_001n }),
        tree.file('empty', ''),
        tree.file('many', ['ab', 'cd', 'ef']),
        tree.entry('link', ENTRY_TYPES.symlink, { symlinkTarget: Buffer.from('../nowhere'), mtimeNs: -5n }),
        tree.entry('pipe', ENTRY_TYPES.fifo, { mode: 0o622 }),
        tree.entry('socket', ENTRY_TYPES.socket, { mode: 0o755 }),
      ], { mode: 0o550, mtimeNs: 1_400_000_000_999_999_999n }),
    ])
    assert.deepEqual(world.reasons(), [])
    assert.equal(world.read('d', 'one') + world.read('d', 'empty') + world.read('d', 'many'), 'alphaabcdef')
    const one = lstatSync(world.path('d', 'one'), { bigint: true })
    assert.deepEqual([one.mode & 0o7777n, one.mtimeNs], [0o640n, 1_500_000_000_000_000_001n])
    const directory = lstatSync(world.path('d'), { bigint: true })
    assert.deepEqual([directory.mode & 0o7777n, directory.mtimeNs], [0o550n, 1_400_000_000_999_999_999n])
    assert.equal(readlinkSync(world.path('d', 'link')), '../nowhere')
    assert.equal(lstatSync(world.path('d', 'link'), { bigint: true }).mtimeNs, -5n)
    assert.ok(lstatSync(world.path('d', 'pipe')).isFIFO() && lstatSync(world.path('d', 'socket')).isSocket())
    assert.equal(lstatSync(world.path('d', 'pipe')).mode & 0o7777, 0o622)
    assert.deepEqual([report.files, report.directories, report.others, report.bytes], [3, 1, 3, 11])
    assert.deepEqual(world.leftovers(), [])
    assert.equal(world.repository.sessions.size, 0, 'the session is closed')
    chmodSync(world.path('d'), 0o755)
  })

  test('names are bytes: what is not UTF-8 comes back as it was', async (t) => {
    const world = new World(t)
    const odd = Buffer.from([0xff, 0x0a, 0x20, 0x2a])
    await world.restore([world.tree.file(odd, 'x'), world.tree.file(Buffer.alloc(255, 0xe9), 'long')])
    assert.deepEqual(readdirSync(Buffer.from(world.target), { encoding: 'buffer' }).map((name) => name.byteLength).sort((a, b) => a - b), [4, 255])
  })

  test('hard links are joined again, whichever name comes first and whenever its chunks arrive', async (t) => {
    const world = new World(t)
    const { tree } = world
    const group = { inode: 7n, linkCount: 3 }
    const report = await world.restore([
      tree.file('a', ['x', 'y'], group),
      await tree.directory('b', [tree.file('again', ['x', 'y'], group)], { mtimeNs: 1_000_000_000n }),
      tree.file('c', ['x', 'y'], group), tree.file('lonely', 'z', { inode: 8n, linkCount: 2 }),
    ])
    const inodes = [['a'], ['b', 'again'], ['c']].map((names) => statSync(world.path(...names)).ino)
    assert.equal(new Set(inodes).size, 1)
    assert.equal(statSync(world.path('a')).nlink, 3)
    assert.equal(statSync(world.path('b'), { bigint: true }).mtimeNs, 1_000_000_000n, 'linking late does not change the time of a directory')
    assert.equal(report.files, 4)
    await world.restore(undefined, { overwrite: 'always' })
    assert.equal(statSync(world.path('a')).nlink, 3)
    assert.deepEqual(world.leftovers(), [])
  })

  test('holes stay holes, in lists of many chunks too', async (t) => {
    const world = new World(t)
    const { tree } = world
    const parts = Array.from({ length: 700 }, (_, i) => i % 3 === 1 ? 65_536 : `chunk ${i} `.repeat(500))
    const content = await tree.list(parts)
    assert.equal(content.kind, 'list')
    await world.restore([
      tree.entry('list', ENTRY_TYPES.file, { content }), tree.file('hole', [50_000_000]), tree.file('edges', [4096, 'data', 8192]),
    ])
    assert.deepEqual(readFileSync(world.path('list')), Buffer.concat(parts.map((part) => typeof part === 'number' ? Buffer.alloc(part) : Buffer.from(part))))
    const hole = statSync(world.path('hole'))
    assert.deepEqual([hole.size, hole.blocks], [50_000_000, 0])
    assert.equal(statSync(world.path('edges')).size, 12_292)
  })

  test('one chunk that many files share is read once per window', async (t) => {
    const world = new World(t)
    await world.restore(Array.from({ length: 300 }, (_, i) => world.tree.file(`f${i}`, ['same', 'same', 'same'])))
    assert.equal(world.read('f299'), 'samesamesame')
    assert.ok(world.repository.counts.chunksRead <= 10, `${world.repository.counts.chunksRead} chunks read`)
  })

  test('small windows, several at once, lose nothing', async (t) => {
    const world = new World(t)
    const { tree } = world
    const entries = Array.from({ length: 200 }, (_, i) => tree.file(`f${String(i).padStart(3, '0')}`, [`${i} a`, `${i} b`, 10, `${i} c`]))
    await world.restore([await tree.directory('d', entries)], { windows: { windowIdsMax: 7, windowsInFlightMax: 2, windowBytesMax: 1 << 20 } })
    for (let i = 0; i < 200; i++) assert.equal(world.read('d', `f${String(i).padStart(3, '0')}`), `${i} a${i} b${'\0'.repeat(10)}${i} c`)
  })

  test('attributes and ACLs are set, and default ACLs of a directory do not spread to its restored children', async (t) => {
    const world = new World(t)
    const { tree } = world
    const xattr = { name: Buffer.from('user.roost'), value: Buffer.from([0, 1, 255]) }
    try { lsetxattr(Buffer.from(world.target), xattr.name, xattr.value) } catch { t.skip('no user attributes on this file system'); return }
    const acl = { name: Buffer.from('system.posix_acl_default'), value: aclOf(0o7, 0o7, 0o7) }
    const entries = [await tree.directory('d', [tree.file('f', 'x', { xattrs: [xattr], mode: 0o444 }), await tree.directory('sub', [])], { xattrs: [acl] })]
    for (const round of ['fresh', 'over itself']) {
      await world.restore(entries, { overwrite: 'always' })
      assert.deepEqual(world.reasons(), [], round)
      assert.deepEqual(lgetxattrs(Buffer.from(world.path('d', 'f'))), [xattr], round)
      assert.equal(lstatSync(world.path('d', 'f')).mode & 0o777, 0o444)
      assert.deepEqual(lgetxattrs(Buffer.from(world.path('d'))).map(({ name }) => name.toString()), ['system.posix_acl_default'], round)
      assert.deepEqual(lgetxattrs(Buffer.from(world.path('d', 'sub'))), [], round)
    }
  })

  test('trees of 200 levels with names of 255 bytes are far beyond PATH_MAX and come back', async (t) => {
    const world = new World(t)
    const { tree } = world
    let entries = [tree.file('leaf', 'deep'), tree.file('leaf2', ['de', 'ep'])]
    for (let level = 0; level < 200; level++) entries = [await tree.directory('n'.repeat(255), entries, { mtimeNs: 1_000_000_000n + BigInt(level) })]
    const report = await world.restore(entries)
    assert.deepEqual([report.files, report.directories, world.reasons().length], [2, 200, 0])
    assert.equal(lstatSync(world.path('n'.repeat(255)), { bigint: true }).mtimeNs, 1_000_000_199n)
  })

  test('only what was asked for is restored, with the directories that lead there', async (t) => {
    const world = new World(t)
    const { tree } = world
    const entries = [
      await tree.directory('etc', [tree.file('a.conf', 'a'), tree.file('b.txt', 'b'), await tree.directory('deep', [tree.file('c.conf', 'c')])], { mode: 0o711 }),
      await tree.directory('var', [await tree.directory('log', [tree.file('l', 'l')])]), tree.file('top*', 't'),
    ]
    await world.restore(entries, { include: [Buffer.from('*.conf')] })
    assert.deepEqual(readdirSync(world.target, { recursive: true, encoding: 'utf8' }).sort(), ['etc', 'etc/a.conf', 'etc/deep', 'etc/deep/c.conf'])
    assert.equal(lstatSync(world.path('etc')).mode & 0o777, 0o711)
    await world.restore(undefined, { include: [Buffer.from('/var/log'), Buffer.from('top*'), Buffer.from('/no/such')] })
    assert.equal(world.read('var', 'log', 'l') + world.read('top*'), 'lt')
    assert.deepEqual(world.reasons(), ['/no/such: refused'])
    await world.restore(undefined, { from: Buffer.from('/var/log/') })
    assert.equal(world.read('l'), 'l')
    await assert.rejects(world.restore(undefined, { from: Buffer.from('/var/none') }), { code: 'SNAPSHOT_UNKNOWN' })
  })

  test('overwriting is as told: never, if changed, always', async (t) => {
    const world = new World(t)
    const entries = [world.tree.file('same', 'new'), world.tree.file('other', 'newer')]
    const prepare = (): void => {
      writeFileSync(world.path('same'), 'old')
      utimesSync(world.path('same'), 1_600_000_000.123456789, 1_600_000_000.123456789)
      writeFileSync(world.path('other'), 'old')
    }
    prepare()
    assert.equal((await world.restore(entries, { overwrite: 'never' })).skipped, 2)
    assert.equal(world.read('same') + world.read('other'), 'oldold')
    await world.restore(undefined, { overwrite: 'if-changed' })
    assert.equal(world.read('other'), 'newer')
    assert.equal((await world.restore(undefined, { overwrite: 'if-changed' })).skipped, 2)
    prepare()
    assert.equal((await world.restore(undefined, { overwrite: 'always' })).skipped, 0)
    assert.equal(world.read('same') + world.read('other'), 'newnewer')
    assert.deepEqual(world.leftovers(), [])
  })

  test('a file that is replaced keeps its other hard links as they were', async (t) => {
    const world = new World(t)
    writeFileSync(world.path('f'), 'precious')
    linkSync(world.path('f'), join(world.directory, 'outside'))
    await world.restore([world.tree.file('f', 'new')], { overwrite: 'always' })
    assert.equal(world.read('f'), 'new')
    assert.equal(readFileSync(join(world.directory, 'outside'), 'utf8'), 'precious')
  })

  test('an ordinary user leaves owners, tells it once, and drops set-id bits that would change hands', async (t) => {
    const world = new World(t)
    const report = await world.restore([world.tree.file('f', 'x', { uid: 4242, gid: 4242, mode: 0o6755 })])
    const { uid, mode } = lstatSync(world.path('f'))
    if (isRoot) assert.deepEqual([uid, mode & 0o7777, report.privilegesLacked], [4242, 0o6755, false])
    else assert.deepEqual([uid, mode & 0o7777, report.privilegesLacked], [process.getuid?.(), 0o755, true])
    assert.equal(report.problems, 0)
    await world.restore(undefined, { overwrite: 'always', owners: 'none' })
    assert.deepEqual([lstatSync(world.path('f')).uid, lstatSync(world.path('f')).mode & 0o7777], [process.getuid?.(), 0o755])
  })
})

describe('restore stays within its destination', () => {
  test('a symlink that lies where a directory should be is never followed', async (t) => {
    const world = new World(t)
    const outside = join(world.directory, 'outside')
    mkdirSync(outside)
    const entries = [await world.tree.directory('d', [world.tree.file('f', 'x')]), world.tree.file('g', 'y')]
    symlinkSync(outside, world.path('d'))
    await world.restore(entries, { overwrite: 'never' })
    assert.deepEqual(world.reasons(), ['d: blocked'])
    assert.deepEqual(readdirSync(outside), [])
    assert.ok(lstatSync(world.path('d')).isSymbolicLink())
    assert.equal(world.read('g'), 'y', 'the rest goes on')
    await world.restore(undefined, { overwrite: 'always' })
    assert.deepEqual(readdirSync(outside), [])
    assert.ok(lstatSync(world.path('d')).isDirectory(), 'the symlink itself was replaced')
    assert.equal(world.read('d', 'f'), 'x')
  })

  test('a symlink that lies where a file should be is replaced, not written through', async (t) => {
    const world = new World(t)
    const precious = join(world.directory, 'precious')
    writeFileSync(precious, 'precious', { mode: 0o600 })
    for (const name of ['f', 'pipe', 'link']) symlinkSync(precious, world.path(name))
    await world.restore([
      world.tree.file('f', 'x'), world.tree.entry('pipe', ENTRY_TYPES.fifo), world.tree.entry('link', ENTRY_TYPES.symlink, { symlinkTarget: Buffer.from('t') }),
    ], { overwrite: 'always' })
    assert.equal(readFileSync(precious, 'utf8'), 'precious')
    assert.equal(statSync(precious).mode & 0o777, 0o600)
    assert.ok(lstatSync(world.path('f')).isFile() && lstatSync(world.path('pipe')).isFIFO())
    assert.equal(readlinkSync(world.path('link')), 't')
  })

  test('a directory that is exchanged for a symlink while the restore runs leads nowhere', async (t) => {
    const world = new World(t)
    const { repository, tree } = world
    const outside = join(world.directory, 'outside')
    mkdirSync(outside)
    await tree.snapshot([await tree.directory('d', [tree.file('f', ['first', 'second'])])])
    const read = repository.readChunks.bind(repository)
    let exchanged = 0
    repository.readChunks = async function* (session, ids, call) {
      for await (const chunk of read(session, ids, call)) {
        if (chunk.bytes?.toString() === 'second' && exchanged++ === 0) {
          rmSync(world.path('d'), { recursive: true })
          symlinkSync(outside, world.path('d'))
        }
        yield chunk
      }
    }
    await world.restore()
    assert.equal(exchanged, 1)
    assert.deepEqual(readdirSync(outside), [])
    assert.equal(world.reasons().length > 0, true)
  })

  test('a directory in the way of a file stays, and is told', async (t) => {
    const world = new World(t)
    mkdirSync(world.path('f'))
    writeFileSync(world.path('f', 'kept'), '')
    await world.restore([world.tree.file('f', 'x'), world.tree.file('g', 'y')], { overwrite: 'always' })
    assert.deepEqual(world.reasons(), ['f: blocked'])
    assert.ok(existsSync(world.path('f', 'kept')) && existsSync(world.path('g')))
    assert.deepEqual(world.leftovers(), [])
  })

  for (const hostile of ['..', '.', '//', '/x', 'a\0'])
    test(`a snapshot that names an entry ${JSON.stringify(hostile)} is refused there, and the rest is restored`, async (t) => {
      const world = new World(t)
      const { repository, tree } = world
      const placeholder = 'Q'.repeat(hostile.length)
      const id = await tree.root([tree.file(placeholder, 'evil')])
      const node = Buffer.from(repository.chunks.get(chunkKey(id))!.bytes)
      const { body } = decodeNode(node) // a view; the ids before it are random and may hold the placeholder too
      body.write(hostile, body.indexOf(placeholder), 'latin1')
      const forged = repository.put(node, CHUNK_KINDS.node)
      assert.notDeepEqual(forged, id)
      await world.restore([tree.entry('d', ENTRY_TYPES.directory, { mode: 0o755, subtree: forged }), tree.file('good', 'g')])
      assert.deepEqual(world.reasons(), ['d: damaged'])
      assert.deepEqual(readdirSync(world.directory), ['target'])
      assert.deepEqual(readdirSync(world.path('d')), [])
      assert.equal(world.read('good'), 'g')
    })

  test('nesting without end is refused with its limit, and the rest is restored', async (t) => {
    const world = new World(t)
    const { tree } = world
    let id: ChunkId = await tree.root([])
    for (let level = 0; level < 5_000; level++) id = await tree.root([tree.entry('d', ENTRY_TYPES.directory, { subtree: id, mode: 0o755, inode: 1n })])
    await world.restore([tree.entry('deep', ENTRY_TYPES.directory, { subtree: id, mode: 0o755 }), tree.file('z', 'z')])
    assert.equal(world.problems.length, 1)
    assert.match(world.problems[0]!.message, /deeper than 4096/)
    assert.equal(world.read('z'), 'z')
  })

  test('chunks that are longer or shorter than the directory says give no file', async (t) => {
    const world = new World(t)
    const { tree } = world
    const id = tree.data('12345')
    const lying = (bytes: number): Entry['content'] => ({ kind: 'extents', bytes, extents: [{ bytes, id }] })
    await world.restore([tree.file('long', '', { content: lying(3)! }), tree.file('short', '', { content: lying(9)! })])
    assert.deepEqual(world.reasons(), ['long: damaged', 'short: damaged'])
    assert.deepEqual(readdirSync(world.target), [])
  })
})

describe('restore of a damaged repository', () => {
  const damaged = async (world: World): Promise<void> => {
    const { repository, tree } = world
    const bad = tree.data('bad chunk'), lost = tree.data('lost chunk')
    const directory = await tree.directory('dir', [tree.file('x', 'x')])
    await tree.snapshot([
      tree.file('bad', ['good part', 'bad chunk']), tree.file('lost', ['lost chunk', 'tail'], { inode: 5n, linkCount: 2 }),
      tree.file('lost2', ['lost chunk', 'tail'], { inode: 5n, linkCount: 2 }), tree.file('whole', 'fine'), directory,
    ])
    repository.damage(bad)
    repository.lose(lost)
    repository.damage(directory.subtree!)
  }
  test('damaged files are told by name and left out; the rest is whole', async (t) => {
    const world = new World(t)
    await damaged(world)
    const report = await world.restore()
    assert.deepEqual(world.reasons(), ['bad: damaged', 'dir: damaged', 'lost2: blocked', 'lost: damaged'])
    assert.equal(report.problems, 4)
    assert.deepEqual(readdirSync(world.target).sort(), ['dir', 'whole'])
  })
  test('on request damaged files are kept with holes where bytes are lost', async (t) => {
    const world = new World(t)
    await damaged(world)
    await world.restore(undefined, { onDamage: 'keep' })
    assert.equal(world.read('bad'), `good part${'\0'.repeat(9)}`)
    assert.equal(world.read('lost2'), `${'\0'.repeat(10)}tail`)
    assert.deepEqual(world.reasons(), ['bad: damaged', 'dir: damaged', 'lost: damaged'])
  })
  test('on request the first damage ends it, leaving no half file', async (t) => {
    const world = new World(t)
    await damaged(world)
    await assert.rejects(world.restore(undefined, { onDamage: 'stop' }), (error) => error instanceof RoostError)
    assert.deepEqual(world.leftovers(), [])
  })
  test('a snapshot that was changed, or signed by another key than the pinned one, is refused', async (t) => {
    const world = new World(t)
    const signed = await world.tree.snapshot([world.tree.file('f', 'x')])
    await assert.rejects(world.restore(undefined, { verifyKeys: ['00'.repeat(32)] }), { code: 'SNAPSHOT_KEY_MISMATCH' })
    const record = Buffer.from(signed.record, 'base64')
    record.write('evil', record.indexOf('host'))
    world.repository.snapshots[0] = { ...signed, record: record.toString('base64') }
    await assert.rejects(world.restore(), { code: 'SNAPSHOT_CORRUPT' })
    assert.deepEqual(readdirSync(world.target), [])
  })
  test('a broken stream is continued with what is still due', async (t) => {
    const world = new World(t)
    const { repository, tree } = world
    const entries = Array.from({ length: 50 }, (_, i) => tree.file(`f${i}`, [`${i}a`, `${i}b`]))
    repository.failNext('readChunks', new RoostError('BODY_TRUNCATED', 'cut'), 1)
    await world.restore(entries)
    assert.equal(world.read('f49'), '49a49b')
  })
  test('sessions that are lost at any moment, twice in a row too, cost the restore nothing but time', async (t) => {
    const world = new World(t)
    const { repository, tree } = world
    const files = (name: string, count: number): Entry[] => Array.from({ length: count }, (_, i) => tree.file(`${name}${i}`, [`${name}${i}a`, `${name}${i}b`]))
    await tree.snapshot([await tree.directory('d', [...files('x', 20), await tree.directory('e', files('y', 20))]), ...files('z', 20)])
    let reads = 0
    let lostAt: readonly number[] = []
    const readChunks = repository.readChunks.bind(repository)
    repository.readChunks = (...args) => {
      if (lostAt.includes(reads++)) repository.loseSessions()
      return readChunks(...args)
    }
    const restoreOnce = async (at: readonly number[]): Promise<number> => {
      rmSync(world.target, { recursive: true })
      mkdirSync(world.target)
      reads = 0
      lostAt = at
      assert.equal((await world.restore(undefined, { windows: { windowBytesMax: 64, windowIdsMax: 8 } })).files, 60)
      assert.deepEqual([world.reasons(), world.leftovers()], [[], []])
      assert.equal(world.read('d', 'e', 'y19') + world.read('z7'), 'y19ay19bz7az7b')
      return reads
    }
    const undisturbed = await restoreOnce([])
    assert.ok(undisturbed > 5, 'the probe itself works')
    for (let at = 0; at < undisturbed; at++) assert.ok(await restoreOnce([at, at + 1]) > undisturbed)
  })
  test('a session whose snapshot was forgotten ends the restore without leftovers', async (t) => {
    const world = new World(t)
    const { repository, tree } = world
    await tree.snapshot(Array.from({ length: 50 }, (_, i) => tree.file(`f${i}`, [`${i}a`, `${i}b`])))
    const readChunks = repository.readChunks.bind(repository)
    let reads = 0
    repository.readChunks = (...args) => {
      if (reads++ === 1) {
        repository.loseSessions()
        repository.failNext('openSession', new RoostError('SNAPSHOT_UNKNOWN', 'There is no such snapshot.'))
      }
      return readChunks(...args)
    }
    await assert.rejects(world.restore(), { code: 'SNAPSHOT_UNKNOWN' })
    assert.deepEqual(world.leftovers(), [])
  })
  test('an abort ends it with its reason and without leftovers', async (t) => {
    const world = new World(t)
    await world.tree.snapshot([world.tree.file('f', ['a', 'b'])])
    const controller = new AbortController()
    const read = world.repository.readChunks.bind(world.repository)
    world.repository.readChunks = async function* (session, ids, call) {
      for await (const chunk of read(session, ids, call)) {
        yield chunk
        if (chunk.bytes?.toString() === 'b') controller.abort(new Error('enough'))
        call?.signal?.throwIfAborted()
      }
    }
    await assert.rejects(world.restore(undefined, {}, controller.signal), /enough/)
    assert.deepEqual(readdirSync(world.target), [])
  })
})

describe('restore of one file or image', () => {
  const image = async (world: World): Promise<Buffer> => {
    const { tree } = world
    const chunkBytes = 4096
    const slots = Array.from({ length: 600 }, (_, i) => i % 4 === 0 ? Buffer.alloc(i === 599 ? 100 : chunkBytes, i % 251 + 1) : undefined)
    const imageBytes = 599 * chunkBytes + 100
    const writer = new ImageTreeWriter(tree.sink, { imageBytes, chunkBytes })
    for (const [slot, bytes] of slots.entries()) if (bytes !== undefined) await writer.add(slot, tree.data(bytes))
    await tree.snapshot([tree.entry('disk', ENTRY_TYPES.image, { content: await writer.finish(), mode: 0o600 })], { mode: 'image' })
    return Buffer.concat(slots.map((bytes, i) => bytes ?? Buffer.alloc(i === 599 ? 100 : chunkBytes)))
  }
  test('an image comes back as a sparse file of any name', async (t) => {
    const world = new World(t)
    const expected = await image(world)
    await world.restore(undefined, { destination: { kind: 'file', path: Buffer.from(world.path('new', 'disk.raw')) } })
    assert.ok(readFileSync(world.path('new', 'disk.raw')).equals(expected))
    assert.ok(statSync(world.path('new', 'disk.raw')).blocks * 512 < expected.byteLength / 2)
    assert.deepEqual(world.leftovers(), [])
  })
  test('over a device, or a file in place, holes become zeroes; one that is too small is refused', async (t) => {
    const world = new World(t)
    const expected = await image(world)
    const device = world.path('device')
    writeFileSync(device, Buffer.alloc(expected.byteLength + 5000, 0xee))
    await world.restore(undefined, { destination: { kind: 'device', path: Buffer.from(device) } })
    const written = readFileSync(device)
    assert.ok(written.subarray(0, expected.byteLength).equals(expected))
    assert.ok(written.subarray(expected.byteLength).every((byte) => byte === 0xee), 'nothing past the image is touched')
    writeFileSync(device, 'small')
    await assert.rejects(world.restore(undefined, { destination: { kind: 'device', path: Buffer.from(device) } }), { code: 'LIMIT_EXCEEDED' })
  })
  test('a dump streams the bytes in order, zeroes for holes, and waits for a slow reader', async (t) => {
    const world = new World(t)
    const expected = await image(world)
    const output = new PassThrough({ highWaterMark: 1024 })
    const gathered: Buffer[] = []
    const reading = (async () => { for await (const piece of output) gathered.push(piece as Buffer) })()
    const report = await dumpFile(world.repository, { snapshot: 'latest' }, output, new AbortController().signal)
    output.end()
    await reading
    assert.ok(Buffer.concat(gathered).equals(expected))
    assert.equal(report.bytes, expected.byteLength)
  })
  test('a dump ends at the first damage, and when its reader goes away', async (t) => {
    const world = new World(t)
    await world.tree.snapshot([await world.tree.directory('d', [world.tree.file('f', ['one', 'two'])])])
    const closed = new Writable({ write: (_chunk, _encoding, done) => { done(new Error('EPIPE')) } })
    await assert.rejects(dumpFile(world.repository, { snapshot: 'latest', path: Buffer.from('d/f') }, closed, new AbortController().signal), /EPIPE/)
    world.repository.damage(world.tree.data('two'))
    await assert.rejects(dumpFile(world.repository, { snapshot: 'latest', path: Buffer.from('d/f') }, new PassThrough(), new AbortController().signal),
      { code: 'CHUNK_CORRUPT' })
    await assert.rejects(dumpFile(world.repository, { snapshot: 'latest', path: Buffer.from('d') }, new PassThrough(), new AbortController().signal),
      { code: 'SNAPSHOT_UNKNOWN' })
  })
})

/** A minimal ACL in the kernel's xattr form: version 2, then user, group and other. */
function aclOf(user: number, group: number, other: number): Buffer {
  const bytes = Buffer.alloc(4 + 3 * 8)
  bytes.writeUInt32LE(2, 0)
  for (const [i, [tag, permissions]] of ([[1, user], [4, group], [32, other]] as const).entries()) {
    bytes.writeUInt16LE(tag, 4 + i * 8)
    bytes.writeUInt16LE(permissions, 6 + i * 8)
    bytes.writeUInt32LE(0xffff_ffff, 8 + i * 8)
  }
  return bytes
}
