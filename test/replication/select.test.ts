/** Which snapshots a replication brings, and in which order. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { SnapshotOutline } from '../../src/core/peer-messages.js'
import { chooseSnapshots, globOf, lagOf } from '../../src/replication/select.js'

const outline = (id: string, source: string, receivedAtMs: number, tags: readonly string[] = []): SnapshotOutline => ({ id, source, receivedAtMs, tags, parent: null, bytes: 10 })
const ALL = [outline('d', 'db1', 400, ['weekly']), outline('c', 'db1', 300), outline('w', 'web', 250), outline('b', 'db1', 200, ['keep']), outline('a', 'db2', 100)]
const chosen = (selection: Parameters<typeof chooseSnapshots>[1]): string => [...chooseSnapshots(ALL, selection, 500).values()].map((list) => list.map(({ id }) => id).join('')).join(' ')

test('by source, tag, age and number; each source from its oldest, the source with the oldest first', () => {
  assert.equal(chosen({}), 'a bcd w')
  assert.equal(chosen({ sources: ['db*'] }), 'a bcd')
  assert.equal(chosen({ sources: ['db?', 'web'], newest: 1 }), 'a w d')
  assert.equal(chosen({ tags: ['keep', 'weekly'] }), 'bd')
  assert.equal(chosen({ maxAgeMs: 250 }), 'w cd')
})
test('a glob is no expression: everything but * and ? is itself', () => {
  assert.ok(globOf('a.b*').test('a.bcd'))
  assert.ok(!globOf('a.b*').test('axb'))
  assert.ok(globOf('host:/srv/(x)').test('host:/srv/(x)'))
  assert.ok(globOf('*').test('with\nlines'))
  assert.ok(!globOf('a?').test('a'))
})
test('the lag is what is missing, and how old the oldest of it is', () => {
  assert.deepEqual(lagOf(ALL, 500), { measuredAtMs: 500, snapshots: 5, bytes: 50, oldestAtMs: 100 })
  assert.deepEqual(lagOf([], 500), { measuredAtMs: 500, snapshots: 0, bytes: 0 })
})
