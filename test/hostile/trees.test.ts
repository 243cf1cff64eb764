/** Trees that lie, pushed through the whole server and restored with the real client. What the server acts on (references) it refuses at commit;
 *  what only clients read (names, sizes, links) the client refuses, with a typed problem, inside its destination.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, statSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { isErrorCode, RoostError } from '../../src/core/errors.js'
import { CHUNK_KINDS, type ChunkId } from '../../src/core/ids.js'
import { LIMITS } from '../../src/core/limits.js'
import type { MaintenanceEvent } from '../../src/core/messages.js'
import { encodeNode, NODE_REF_BYTES, NODE_TYPES } from '../../src/core/node-format.js'
import type { RestoreProblem, RestoreReport } from '../../client/restore/restore-report.js'
import { runRestore, type RestoreOptions } from '../../client/restore/run-restore.js'
import type { HttpRepositoryClient } from '../../client/http-repository-client.js'
import { encodeDirectoryIndex } from '../../client/tree/directory-node.js'
import { ENTRY_TYPES, type Content } from '../../client/tree/entry.js'
import { leafOf, putNode, renamed, treeOver, withBody } from '../support/forged-tree.js'
import { assertServesOthers, frameOf, PushSession, realServer, type RealServer } from '../support/real-server.js'
import { SLOW } from '../support/run-roost.js'
import type { TreeBuilder } from '../support/tree-builder.js'

interface Field {
  readonly server: RealServer
  readonly client: HttpRepositoryClient
  readonly token: string
  /** Commits the tree whose root `build` puts; the snapshot's id. */
  commit(build: (tree: TreeBuilder, push: PushSession) => ChunkId | Promise<ChunkId>): Promise<string>
}
async function field(t: TestContext): Promise<Field> {
  const server = await realServer(t)
  const { token } = await server.token({ repository: 'alpha', scopes: ['push', 'read'] })
  const client = server.client(token)
  return { server, client, token, commit: async (build) => {
    const push = await PushSession.open(client)
    return (await push.commit(await build(treeOver(push), push))).id
  } }
}

/** A destination beside a place that nothing may touch. */
class Destination {
  readonly directory = mkdtempSync(join(tmpdir(), 'roost-hostile-'))
  readonly target = join(this.directory, 'target')
  readonly outside = join(this.directory, 'outside')
  readonly precious = join(this.outside, 'precious')
  readonly #before: string
  problems: RestoreProblem[] = []
  constructor(t: TestContext) {
    mkdirSync(this.target)
    mkdirSync(this.outside)
    writeFileSync(this.precious, 'precious', { mode: 0o640 })
    utimesSync(this.precious, 1, 1)
    utimesSync(this.outside, 2, 2)
    this.#before = this.#outsideNow()
    t.after(() => { execFileSync('rm', ['-rf', this.directory]) }) // deeper than fs.rm can go
  }
  async restore(client: HttpRepositoryClient, snapshot: string, options: Partial<RestoreOptions> = {}): Promise<RestoreReport> {
    this.problems = []
    const report = await runRestore(client, { snapshot, destination: { kind: 'directory', path: Buffer.from(this.target) }, ...options },
      { problem: (problem) => { this.problems.push(problem) } }, new AbortController().signal)
    this.assertUntouched()
    assert.deepEqual(readdirSync(this.target).filter((name) => name.startsWith('.roost-')), [])
    return report
  }
  assertUntouched(): void {
    assert.equal(this.#outsideNow(), this.#before)
    assert.deepEqual(readdirSync(this.directory).sort(), ['outside', 'target'])
  }
  #outsideNow(): string {
    return [this.outside, this.precious].map((path) => { const { mode, uid, gid, mtimeMs, ino, nlink, size } = statSync(path); return [mode, uid, gid, mtimeMs, ino, nlink, size].join() }).join(' ') +
      readFileSync(this.precious, 'utf8') + readdirSync(this.outside).join()
  }
  codes(): unknown[] { return this.problems.map(({ cause }) => (cause as { code?: unknown }).code) }
}

// ---- names

const NAMES: readonly (readonly [string, string | Buffer])[] = [['that climbs', '..'], ['of its own directory', '.'], ['that is empty', ''], ['with a slash', 'a/b'],
  ['that is a slash', '/'], ['that is absolute', '/tmp/roost-absolute'], ['that climbs on', '../outside/precious'], ['with NUL', Buffer.from('precious\0x')],
  ['that is NUL', Buffer.from([0])], ['that climbs out of a directory', 'd/../../outside/precious']]

test('names that no directory can have are refused with a typed problem, and the rest is restored', async (t) => {
  const { server, client, commit } = await field(t)
  for (const [what, name] of NAMES) for (const kind of ['file', 'directory', 'symlink'] as const) {
    const destination = new Destination(t)
    const snapshot = await commit(async (tree, push) => {
      const entry = kind === 'file' ? tree.file('QQQQ', 'evil') : kind === 'directory' ? await tree.directory('QQQQ', [tree.file('precious', 'evil')])
        : tree.entry('QQQQ', ENTRY_TYPES.symlink, { symlinkTarget: Buffer.from('/etc') })
      const forged = putNode(push, renamed(leafOf([entry]), 'QQQQ', name))
      return putNode(push, leafOf([tree.entry('forged', ENTRY_TYPES.directory, { mode: 0o755, subtree: forged }), tree.file('good', 'g')]))
    })
    await destination.restore(client, snapshot)
    assert.deepEqual(destination.codes(), ['TREE_MALFORMED'], `a ${kind} with a name ${what}`)
    assert.deepEqual(readdirSync(join(destination.target, 'forged')), [])
    assert.equal(readFileSync(join(destination.target, 'good'), 'utf8'), 'g')
  }
  assert.ok(!existsSync('/tmp/roost-absolute'))
  await assertServesOthers(server)
})

test('names twice, out of order, or overlapping between leaves are refused', async (t) => {
  const { client, commit } = await field(t)
  const forged: Record<string, (tree: TreeBuilder, push: PushSession) => Promise<ChunkId>> = {
    'twice': async (tree, push) => putNode(push, renamed(leafOf([tree.file('aa', '1'), tree.file('bb', '2')]), 'bb', 'aa')),
    'out of order': async (tree, push) => putNode(push, leafOf([tree.file('bb', '1'), tree.file('aa', '2')])),
    'a symlink and then a directory beneath it': async (tree, push) => putNode(push, renamed(leafOf([
      tree.entry('link', ENTRY_TYPES.symlink, { symlinkTarget: Buffer.from('../outside') }), await tree.directory('zzzz', [tree.file('precious', 'evil')])]), 'zzzz', 'link')),
  }
  for (const [what, build] of Object.entries(forged)) {
    const destination = new Destination(t)
    await destination.restore(client, await commit(build), { overwrite: 'always' })
    assert.deepEqual(destination.codes(), ['TREE_MALFORMED'], what)
  }
  // Between leaves nothing is known when the first is restored: the symlink is made, and never followed.
  const destination = new Destination(t)
  const snapshot = await commit(async (tree, push) => {
    const first = leafOf([tree.file('aaaa', '1'), tree.entry('link', ENTRY_TYPES.symlink, { symlinkTarget: Buffer.from('../outside') })])
    const second = leafOf([await tree.directory('link', [tree.file('precious', 'evil')]), tree.file('zzzz', '2')])
    const children = [{ firstName: Buffer.from('aaaa'), id: putNode(push, first) }, { firstName: Buffer.from('link'), id: putNode(push, second) }]
    return putNode(push, encodeDirectoryIndex(1, children))
  })
  await destination.restore(client, snapshot, { overwrite: 'always' })
  assert.deepEqual(destination.codes(), ['TREE_MALFORMED'])
})

test('two snapshots restored over one another cannot build a way out', async (t) => {
  const { client, commit } = await field(t)
  const bridge = await commit((tree, push) => putNode(push, leafOf([tree.entry('way', ENTRY_TYPES.symlink, { symlinkTarget: Buffer.from('../outside') })])))
  const traveller = await commit(async (tree, push) => putNode(push, leafOf([await tree.directory('way', [tree.file('precious', 'evil'), tree.file('new', 'evil')])])))
  for (const overwrite of ['never', 'if-changed', 'always'] as const) {
    const destination = new Destination(t)
    await destination.restore(client, bridge)
    assert.equal(readlinkSync(join(destination.target, 'way')), '../outside')
    await destination.restore(client, traveller, { overwrite })
    assert.equal(lstatSync(join(destination.target, 'way')).isSymbolicLink(), overwrite === 'never')
  }
})

test('a file that claims to be hard-linked to a symlink gets no name outside', async (t) => {
  const { client, commit } = await field(t)
  for (const overwrite of ['never', 'always'] as const) {
    const destination = new Destination(t)
    if (overwrite === 'always') symlinkSync(destination.precious, join(destination.target, 'linked'))
    const group = { inode: 4n, linkCount: 3 }
    const snapshot = await commit((tree, push) => putNode(push, leafOf([
      tree.entry('alink', ENTRY_TYPES.symlink, { symlinkTarget: Buffer.from('../outside/precious'), mode: 0o777, ...group }),
      tree.file('linked', 'evil', { mode: 0o777, ...group }), tree.file('zlinked', 'evil', { mode: 0o4777, ...group })])))
    await destination.restore(client, snapshot, { overwrite })
    for (const name of readdirSync(destination.target)) {
      const found = lstatSync(join(destination.target, name))
      assert.ok(found.isSymbolicLink() || found.ino !== statSync(destination.precious).ino, name)
    }
  }
})

// ---- lengths and counts

test('sizes and counts that lie give a typed problem and no file', async (t) => {
  const { server, client, commit } = await field(t)
  const parts = Array.from({ length: 20 }, (_, i) => `part ${i}`)
  const listRoot = async (tree: TreeBuilder): Promise<ChunkId> => (await tree.list(parts) as { root: ChunkId }).root
  const damaged: Record<string, (tree: TreeBuilder) => Promise<Content>> = {
    'chunks longer than the file': async (tree) => ({ kind: 'extents', bytes: 3, extents: [{ bytes: 3, id: tree.data('12345') }] }),
    'chunks shorter than the file': async (tree) => ({ kind: 'extents', bytes: 9, extents: [{ bytes: 9, id: tree.data('12345') }] }),
    'a list of fewer bytes than the file': async (tree) => ({ kind: 'list', bytes: 2 ** 50, root: await listRoot(tree) }),
    'a directory for a list': async (tree) => ({ kind: 'list', bytes: 5, root: await tree.root([tree.file('x', '12345')]) }),
    'a list for an image': async (tree) => ({ kind: 'image', bytes: 8192, chunkBytes: 4096, root: await listRoot(tree) }),
    'an image of chunks of one byte and 4 PiB': async (tree) => ({ kind: 'image', bytes: 2 ** 52 - 1, chunkBytes: 1, root: await listRoot(tree) }),
  }
  const destination = new Destination(t)
  const snapshot = await commit(async (tree) => {
    const entries = []
    for (const [name, build] of Object.entries(damaged)) entries.push(tree.file(name, '', { content: await build(tree) }))
    return tree.root([...entries, tree.file('whole', 'fine')])
  })
  const report = await destination.restore(client, snapshot)
  assert.deepEqual(destination.problems.map(({ path }) => path.toString()).sort(), Object.keys(damaged).sort())
  assert.deepEqual(new Set(destination.codes()), new Set(['TREE_MALFORMED']))
  assert.deepEqual(readdirSync(destination.target), ['whole'])
  assert.equal(report.files, 1)
  await assertServesOthers(server)
})

test('nodes that count more than they hold are refused without believing the count', async (t) => {
  const { client, commit } = await field(t)
  const huge = Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]) // a varint of 2^53 and more
  const bodies: Record<string, (node: Buffer) => Buffer> = {
    'entries': (node) => withBody(node, (body) => Buffer.concat([body.subarray(0, 1), Buffer.from([0, 0]), huge])),
    'owners': (node) => withBody(node, (body) => Buffer.concat([body.subarray(0, 1), huge, body.subarray(2)])),
    'devices': (node) => withBody(node, (body) => Buffer.concat([body.subarray(0, 2), huge, body.subarray(3)])),
    'nothing at all': (node) => withBody(node, () => Buffer.alloc(0)),
    'another version': (node) => withBody(node, (body) => { body[0] = 9; return body }),
    'more behind the end': (node) => withBody(node, (body) => Buffer.concat([body, Buffer.alloc(1)])),
  }
  for (const [what, forge] of Object.entries(bodies)) {
    const destination = new Destination(t)
    const snapshot = await commit((tree, push) => {
      const forged = forge(leafOf([tree.entry('f', ENTRY_TYPES.fifo)]))
      return tree.root([tree.entry('forged', ENTRY_TYPES.directory, { mode: 0o755, subtree: putNode(push, forged) }), tree.file('good', 'g')])
    })
    await destination.restore(client, snapshot)
    assert.deepEqual(destination.codes(), ['TREE_MALFORMED'], what)
    assert.equal(readFileSync(join(destination.target, 'good'), 'utf8'), 'g')
  }
})

test('a chunk of one kind never passes for the other', async (t) => {
  const { client, commit } = await field(t)
  await assert.rejects(commit((_tree, push) => push.put(leafOf([]), CHUNK_KINDS.data)), { code: 'COMMIT_INCOMPLETE' })
  await assert.rejects(commit((tree, push) => {
    const data = tree.data('data')
    return putNode(push, encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.node, id: data }], Buffer.alloc(0)))
  }), { code: 'COMMIT_INCOMPLETE' })
  await assert.rejects(commit((_tree, push) => {
    const node = putNode(push, leafOf([]))
    return putNode(push, encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.data, id: node }], Buffer.alloc(0)))
  }), { code: 'COMMIT_INCOMPLETE' })
  assert.equal((await client.listSnapshots({})).snapshots.length, 0)
})

// ---- what the server itself walks

test('what is no node, or counts more references than it has, is refused at commit', async (t) => {
  const { server, commit } = await field(t)
  const node = leafOf([])
  const patched = (at: number, ...values: number[]): Buffer => { const bytes = Buffer.concat([node, Buffer.alloc(64)]); values.forEach((value, i) => { bytes[at + i] = value }); return bytes }
  const forged: Record<string, Buffer> = {
    'text': Buffer.from('not a node at all'), 'a header cut short': node.subarray(0, 7), 'another magic': patched(0, 0), 'another version': patched(2, 9),
    'four thousand million references': patched(4, 0xff, 0xff, 0xff, 0xff), 'one reference more than may be': patched(4, 1, 0x80, 0, 0),
    'a reference past the end': patched(4, 3, 0, 0, 0), 'a reference of kind 0': patched(4, 1, 0, 0, 0, 0), 'one byte': Buffer.from([1]),
    'the most references and one, all there': Buffer.concat([Buffer.from('RN\x01\x01'), Buffer.from(Uint32Array.of(LIMITS.nodeRefsMax + 1).buffer),
      Buffer.alloc((LIMITS.nodeRefsMax + 1) * NODE_REF_BYTES, 1)]),
  }
  for (const [what, bytes] of Object.entries(forged)) {
    await assert.rejects(commit((_tree, push) => putNode(push, bytes)), { code: 'TREE_MALFORMED' }, what)
    await assert.rejects(commit((_tree, push) =>
      putNode(push, encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.node, id: putNode(push, bytes) }], Buffer.alloc(0)))), { code: 'TREE_MALFORMED' }, `${what}, below`)
    await assertServesOthers(server)
  }
})

test('a cycle cannot be sent: a node that lists its own id has another one', async (t) => {
  const { server, client, token } = await field(t)
  const push = await PushSession.open(client)
  const listing = (id: Buffer): Buffer => encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.node, id }], Buffer.alloc(0))
  // Chasing the id: each node lists the id of the one before, under its own claimed id.
  let claimed: Buffer = Buffer.alloc(32, 1)
  for (let round = 0; round < 20; round++) {
    const verdict = await push.putRaw(server, token, frameOf(push.dedupKey, listing(claimed), CHUNK_KINDS.node, { id: claimed }))
    assert.deepEqual([verdict.status, ...verdict.body], [200, 2], 'digestMismatch')
    await assert.rejects(push.commit(claimed), { code: 'COMMIT_INCOMPLETE' })
    claimed = push.idProof(listing(claimed), CHUNK_KINDS.node).subarray(0, 32)
  }
  const dangling = putNode(push, listing(claimed))
  await assert.rejects(push.commit(dangling), { code: 'COMMIT_INCOMPLETE' })
  await assertServesOthers(server)
})

const DEPTH = SLOW ? 1_000_000 : 30_000
test(`a chain of ${DEPTH} nodes is refused with the limit, and honest depth is not`, async (t) => {
  const { server, client } = await field(t)
  const push = await PushSession.open(client)
  const below = (id: ChunkId): Buffer => encodeNode(NODE_TYPES.directory, [{ kind: CHUNK_KINDS.node, id }], Buffer.alloc(0))
  let id = putNode(push, encodeNode(NODE_TYPES.directory, [], Buffer.alloc(0)))
  let honest: ChunkId | undefined
  for (let level = 1; level < DEPTH; level++) {
    id = putNode(push, below(id))
    if (level === LIMITS.treeDepthMax - 2) honest = id
    if (push.isFull) await push.flush()
    if (level === DEPTH >> 1) await assertServesOthers(server)
  }
  const refused = push.commit(id)
  const served = assertServesOthers(server)
  await assert.rejects(refused, (error: RoostError) => error.code === 'LIMIT_EXCEEDED' && error.details['limit'] === LIMITS.treeDepthMax)
  await served
  await push.commit(honest!)
})

test('a tree made deep beyond the limit over several snapshots is named by check, and the rest of it is restored', async (t) => {
  const { server, client, commit } = await field(t)
  const LEVELS = 4_200
  const deeper = async (tree: TreeBuilder, push: PushSession, from: ChunkId): Promise<ChunkId> => {
    let id = from
    for (let level = 0; level < LEVELS; level++) {
      id = await tree.root([tree.entry('d', ENTRY_TYPES.directory, { subtree: id, mode: 0o755, inode: 1n })])
      if (push.isFull) await push.flush()
    }
    return id
  }
  let top: ChunkId | undefined
  const first = await commit(async (tree, push) => top = await deeper(tree, push, await tree.root([])))
  const push = await PushSession.open(client, 's', first)
  for await (const { status } of client.readChunks(push.session, top!)) assert.equal(status, 'ok')
  const tree = treeOver(push)
  const root = await tree.root([tree.entry('deep', ENTRY_TYPES.directory, { mode: 0o755, subtree: await deeper(tree, push, top!) }), tree.file('z', 'z')])
  // The parent's root itself was inherited at opening: hanging it below new directories needs no descent.
  const snapshot = (await push.commit(root)).id
  const destination = new Destination(t)
  await destination.restore(client, snapshot, { include: [Buffer.from('z')] })
  assert.deepEqual(destination.codes(), [])
  assert.equal(readFileSync(join(destination.target, 'z'), 'utf8'), 'z')
  const events: MaintenanceEvent[] = []
  for await (const event of server.host.get('alpha').check({ readDataPercent: 100 }, new AbortController().signal)) events.push(event)
  const problems = events.filter((event) => event.type === 'problem')
  assert.deepEqual(problems.map((problem) => [problem.code, problem.snapshot]), [['LIMIT_EXCEEDED', snapshot]])
  assert.ok(problems.every(({ code }) => isErrorCode(code)))
  await assertServesOthers(server)
})
