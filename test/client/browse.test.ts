/** Listing, searching and comparing snapshots; patterns and names that are bytes. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { diffSnapshots } from '../../client/browse/diff.js'
import { findEntries } from '../../client/browse/find.js'
import { formatMode, itemToJson, listPath } from '../../client/browse/list.js'
import { openSnapshot, resolveSnapshot } from '../../client/browse/open-snapshot.js'
import { compilePattern } from '../../client/browse/path-pattern.js'
import { pathToJson, renderBytes } from '../../client/browse/render-path.js'
import { ENTRY_TYPES } from '../../client/tree/entry.js'
import { MemoryRepository } from '../support/memory-repository.js'
import { TreeBuilder } from '../support/tree-builder.js'

const collect = async <T>(items: AsyncIterable<T>): Promise<T[]> => {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}
const world = (): { repository: MemoryRepository; tree: TreeBuilder } => {
  const repository = new MemoryRepository()
  return { repository, tree: new TreeBuilder(repository) }
}

describe('list', () => {
  test('a directory lists its entries, recursively on request; a file lists itself', async () => {
    const { repository, tree } = world()
    await tree.snapshot([await tree.directory('d', [tree.file('f', 'x'), await tree.directory('e', [tree.file('g', 'y')])]), tree.file('z', 'z')])
    const list = async (path?: string, isRecursive = false): Promise<string[]> =>
      (await collect(listPath(repository, { snapshot: 'latest', isRecursive, ...(path === undefined ? {} : { path: Buffer.from(path) }) }))).map(({ path: at }) => at.toString())
    assert.deepEqual(await list(), ['d', 'z'])
    assert.deepEqual(await list('/d/'), ['d/e', 'd/f'])
    assert.deepEqual(await list(undefined, true), ['d', 'd/e', 'd/e/g', 'd/f', 'z'])
    assert.deepEqual(await list('/d//f'), ['d/f'])
    await assert.rejects(list('/d/f/x'), { code: 'SNAPSHOT_UNKNOWN' })
    await assert.rejects(list('/nothing'), { code: 'SNAPSHOT_UNKNOWN' })
    assert.equal(repository.sessions.size, 0, 'sessions are closed, also after refusals')
  })
  test('leaving a listing early closes its session', async () => {
    const { repository, tree } = world()
    await tree.snapshot(Array.from({ length: 2_000 }, (_, i) => tree.file(`f${i}`, 'x')))
    for await (const item of listPath(repository, { snapshot: 'latest' })) {
      assert.equal(item.path.toString(), 'f0')
      break
    }
    assert.equal(repository.sessions.size, 0)
  })
  test('long forms: modes as ls shows them, JSON with exact numbers', () => {
    assert.equal(formatMode({ type: ENTRY_TYPES.file, mode: 0o4755 }), '-rwsr-xr-x')
    assert.equal(formatMode({ type: ENTRY_TYPES.directory, mode: 0o3770 }), 'drwxrws--T')
    const { tree } = world()
    const json = itemToJson({ path: Buffer.from([0xff]), entry: tree.file(Buffer.from([0xff]), 'abc', { inode: 2n ** 63n }) })
    assert.deepEqual([json['bytes'], json['inode'], json['pathBytes'], json['mode']], [3, '9223372036854775808', '/w==', '0644'])
  })
})

describe('choosing a snapshot', () => {
  test('by id, by its beginning, or the latest of a source', async () => {
    const { repository, tree } = world()
    const first = await tree.snapshot([tree.file('a', 'a')], { source: 'one' })
    const second = await tree.snapshot([tree.file('a', 'b')], { source: 'two' })
    assert.equal(await resolveSnapshot(repository, { snapshot: first.id.toUpperCase() }), first.id)
    assert.equal(await resolveSnapshot(repository, { snapshot: first.id.slice(0, 12) }), first.id)
    assert.equal(await resolveSnapshot(repository, { snapshot: 'latest' }), second.id)
    assert.equal(await resolveSnapshot(repository, { snapshot: 'latest', source: 'one' }), first.id)
    for (const snapshot of ['abc', '0000000000', 'newest'])
      await assert.rejects(resolveSnapshot(repository, { snapshot }), { code: 'SNAPSHOT_UNKNOWN' })
    await assert.rejects(resolveSnapshot(repository, { snapshot: 'latest', source: 'three' }), { code: 'SNAPSHOT_UNKNOWN' })
  })
  test('nodes asked for at the same time are read together, and kept', async () => {
    const { repository, tree } = world()
    const directories = await Promise.all(['a', 'b', 'c'].map((name) => tree.directory(name, [tree.file(name, name)])))
    await tree.snapshot(directories)
    const open = await openSnapshot(repository, { snapshot: 'latest' })
    await open.nodes.readNodes([open.root])
    const before = repository.calls['readChunks']!
    const subtrees = directories.map(({ subtree }) => subtree!)
    await Promise.all([open.nodes.readNodes(subtrees), open.nodes.readNodes(subtrees.slice(1)), ...subtrees.map((id) => open.nodes.readNodes([id]))])
    await open.nodes.readNodes(subtrees)
    assert.equal(repository.calls['readChunks']! - before, 1)
    repository.damage(tree.data('a'))
    await assert.rejects(open.nodes.readNodes([await tree.root([tree.file('other', 'o')])]), { code: 'CHUNK_NOT_READABLE' })
    await open.close()
  })
})

describe('find', () => {
  test('by glob, regular expression, type, length and time, in one snapshot or all', async () => {
    const { repository, tree } = world()
    const first = await tree.snapshot([
      await tree.directory('etc', [tree.file('a.conf', 'abc', { mtimeNs: 5n }), tree.file('b.conf', '', { mtimeNs: 9n })]),
      tree.entry('l.conf', ENTRY_TYPES.symlink, { symlinkTarget: Buffer.from('x') }),
    ])
    await tree.snapshot([tree.file('a.conf', 'abcdef', { mtimeNs: 7n })])
    const find = async (options: Parameters<typeof findEntries>[1]): Promise<string[]> =>
      (await collect(findEntries(repository, options))).map(({ path, snapshotId }) => `${snapshotId === first.id ? 1 : 2}:${path.toString()}`)
    assert.deepEqual(await find({ glob: Buffer.from('a.*') }), ['1:etc/a.conf', '2:a.conf'])
    assert.deepEqual(await find({ glob: Buffer.from('/etc/*'), snapshot: first.id }), ['1:etc/a.conf', '1:etc/b.conf'])
    assert.deepEqual(await find({ regex: /^etc\/[ab]/g }), ['1:etc/a.conf', '1:etc/b.conf'])
    assert.deepEqual(await find({ types: [ENTRY_TYPES.symlink, ENTRY_TYPES.directory] }), ['1:etc', '1:l.conf'])
    assert.deepEqual(await find({ bytesMin: 3, bytesMax: 5 }), ['1:etc/a.conf'])
    assert.deepEqual(await find({ glob: Buffer.from('*.conf'), modifiedAfterNs: 5n, modifiedBeforeNs: 9n }), ['2:a.conf'])
  })
})

describe('diff', () => {
  test('tells what was added, removed, modified, or has other metadata; equal subtrees are not read', async () => {
    const { repository, tree } = world()
    const same = await tree.directory('same', Array.from({ length: 20 }, (_, i) => tree.file(`s${i}`, `${i}`)))
    const attribute = [{ name: Buffer.from('user.a'), value: Buffer.from('1') }]
    const before = await tree.snapshot([
      same, await tree.directory('d', [tree.file('gone', '1'), tree.file('kept', '2'), tree.file('new mode', '3')]),
      tree.file('content', 'old'), tree.file('turned', 'file'), tree.file('touched', 't', { inode: 1n, ctimeNs: 1n }),
    ])
    const after = await tree.snapshot([
      same, await tree.directory('d', [tree.file('kept', '2', { xattrs: attribute }), tree.file('new mode', '3', { mode: 0o600 }), tree.file('born', '4')]),
      tree.file('content', 'new'), await tree.directory('turned', [tree.file('inside', 'i')]), tree.file('touched', 't', { inode: 2n, ctimeNs: 2n }),
    ])
    const changes = await collect(diffSnapshots(repository, { before: { snapshot: before.id }, after: { snapshot: after.id } }))
    assert.deepEqual(changes.map(({ kind, path }) => `${kind} ${path.toString()}`), [
      'modified content', 'added d/born', 'removed d/gone', 'metadata d/kept', 'metadata d/new mode',
      'removed turned', 'added turned', 'added turned/inside',
    ])
    repository.lose(same.subtree!)
    repository.counts.chunksRead = 0
    await collect(diffSnapshots(repository, { before: { snapshot: before.id }, after: { snapshot: before.id } }))
    assert.equal(repository.counts.chunksRead, 0, 'equal roots need no reading')
  })
})

describe('patterns and names', () => {
  const matches = (pattern: string, path: string | Buffer): boolean => compilePattern(Buffer.from(pattern)).matches(Buffer.from(path as string).toString('latin1'))
  test('globs match within names, across them with **, and by whole characters', () => {
    const cases: [string, string | Buffer, boolean][] = [
      ['*.c', 'a/b/x.c', true], ['*.c', 'x.cc', false], ['a/*.c', 'a/x.c', true], ['a/*.c', 'a/b/x.c', false], ['/a/**/x', 'a/x', true],
      ['/a/**/x', 'a/b/c/x', true], ['a/**', 'a/b/c', true], ['?', 'é', true], ['?', 'ab', false], ['?', Buffer.from([0xff]), true],
      ['[a-c]x', 'bx', true], ['[!a-c]x', 'bx', false], ['[!a-c]x', 'éx', true], ['[é-ë]', 'ê', true], ['[', '[', true], ['\\*', '*', true], ['\\*', 'x', false],
      ['a.b', 'axb', false], ['*', Buffer.from([0xff, 0x0a]), true], ['/top', 'a/top', false], ['/top', 'top', true],
    ]
    for (const [pattern, path, expected] of cases) assert.equal(matches(pattern, path), expected, `${pattern} on ${path.toString()}`)
  })
  test('names cannot draw on the terminal, and different names never look the same', () => {
    assert.equal(renderBytes(Buffer.from('plain é ☃')), 'plain é ☃')
    assert.equal(renderBytes(Buffer.from('a\x1b[31m\n\u202e\\')), 'a\\x1b[31m\\n\\u{202e}\\\\')
    assert.equal(renderBytes(Buffer.from([0x61, 0xff, 0xc3, 0xa9])), 'a\\xffé')
    assert.notEqual(renderBytes(Buffer.from([0xff])), renderBytes(Buffer.from('\\xff')))
    assert.deepEqual(pathToJson(Buffer.from('é')), { path: 'é' })
    assert.equal(pathToJson(Buffer.from([0xff])).pathBytes, '/w==')
  })
})
