/** Bug classes: a pattern that leaves out what should be saved (data loss that nobody notices), or saves what should not be. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ExcludeRules, parseExcludeFile } from '../../client/files/exclude-rules.js'

const latin1 = (text: string): string => Buffer.from(text).toString('latin1')
/** A path that ends in '/' is a directory. */
function excludes(patterns: readonly string[], path: string): boolean {
  const names = path.split('/').filter((name) => name !== '').map(latin1)
  return new ExcludeRules(patterns).excludes(names.slice(0, -1), names.at(-1)!, path.endsWith('/'))
}
const table: readonly (readonly [pattern: string, hits: readonly string[], misses: readonly string[]])[] = [
  ['core', ['/core', '/a/b/core', '/core/'], ['/cores', '/a.core']],
  ['*.log', ['/x.log', '/a/.log', '/a/b.log/'], ['/x.log1', '/log', '/x.log/y']],
  ['a*b*c', ['/abc', '/aXbXc', '/abbc', '/abcbc'], ['/abcd', '/ac', '/xabc']],
  ['/home/u/x', ['/home/u/x'], ['/mnt/home/u/x', '/home/u/x/y', '/home/u/xy', '/x']],
  ['/tmp', ['/tmp/', '/tmp'], ['/var/tmp']],
  ['a/b', ['/a/b', '/x/y/a/b', '/a/a/b'], ['/a/x/b', '/b', '/a', '/a/b/c']],
  ['cache/', ['/cache/', '/a/cache/'], ['/cache', '/a/cache']],
  ['/a/**/z', ['/a/z', '/a/b/z', '/a/b/c/z'], ['/z', '/b/a/z', '/a/zz']],
  ['/a/**', ['/a/b', '/a/b/c'], ['/a', '/b/a/c']],
  ['**/x/**/y', ['/x/y', '/1/x/2/3/y', '/x/x/y'], ['/y/x', '/x']],
  ['a/**/b/**/c', ['/a/b/c', '/a/1/b/2/3/c', '/a/b/b/c', '/a/c/b/c'], ['/a/c', '/b/c']],
  ['file?', ['/file1', '/fileé', '/file€', '/file😀'], ['/file', '/file12']],
  ['[a-c]x', ['/ax', '/cx'], ['/dx', '/x', '/aax']],
  ['[!a-c]x', ['/dx', '/éx'], ['/ax', '/x']],
  ['[^a]', ['/b'], ['/a']],
  ['[]a]', ['/]', '/a'], ['/b']],
  ['[é-ü]', ['/ö', '/é'], ['/e', '/ÿ']],
  ['[a-', ['/[a-'], ['/a']],
  ['\\*', ['/*'], ['/x']],
  ['a\\[1\\]', ['/a[1]'], ['/a1']],
  ['*', ['/anything', '/a/b'], []],
  ['na\nme', ['/na\nme'], ['/name']],
]
for (const [pattern, hits, misses] of table)
  test(`${JSON.stringify(pattern)} matches what it should and nothing else`, () => {
    for (const path of hits) assert.ok(excludes([pattern], path), `${path} is excluded`)
    for (const path of misses) assert.ok(!excludes([pattern], path), `${path} is kept`)
  })

test('the last pattern that matches decides, and ! takes back in', () => {
  const patterns = ['*.log', '!keep.log', '/var/keep.log']
  assert.ok(excludes(patterns, '/x.log'))
  assert.ok(!excludes(patterns, '/home/keep.log'))
  assert.ok(excludes(patterns, '/var/keep.log'))
})

test('no pattern excludes nothing, and empty patterns are none', () => {
  for (const patterns of [[], [''], ['/'], ['!'], ['.']]) assert.ok(!excludes(patterns, '/a'))
})

test('names that are not UTF-8 are matched byte by byte', () => {
  const rules = new ExcludeRules([Buffer.from([0x66, 0xff, 0x2a]), '?x'])
  assert.ok(rules.excludes([], '\x66\xff\xfe', false))
  assert.ok(!rules.excludes([], '\x66\xfe', false))
  assert.ok(rules.excludes([], '\xffx', false), 'a lone byte counts as one character')
})

test('an exclude file has comments, blank lines and either line end', () => {
  const text = '# all logs\n*.log\r\n\n   \n!keep.log  \n\\#odd\ntrailing\\ \n'
  assert.deepEqual(parseExcludeFile(Buffer.from(text)).map(String), ['*.log', '!keep.log', '\\#odd', 'trailing\\ '])
})

test('matching agrees with a plain recursive definition on any globs and names', () => {
  const part = fc.array(fc.constantFrom('a', 'b', '*', '?'), { minLength: 1, maxLength: 5 }).map((list) => list.join(''))
  const glob = fc.array(fc.oneof(part, fc.constant('**')), { minLength: 1, maxLength: 5 })
  const names = fc.array(fc.array(fc.constantFrom('a', 'b'), { minLength: 1, maxLength: 5 }).map((list) => list.join('')),
    { minLength: 1, maxLength: 5 })
  const partRegExp = (text: string): RegExp => new RegExp(`^${text.replace(/\*/g, '.*').replace(/\?/g, '.')}$`)
  const slow = (parts: readonly string[], path: readonly string[]): boolean => {
    const [first, ...rest] = parts
    if (first === undefined) return path.length === 0
    if (first === '**')
      return rest.length === 0 ? path.length > 0 : path.some((_, i) => slow(rest, path.slice(i))) || slow(rest, [])
    return path.length > 0 && partRegExp(first).test(path[0]!) && slow(rest, path.slice(1))
  }
  fc.assert(fc.property(glob, names, (parts, path) => {
    assert.equal(excludes([`/${parts.join('/')}`], `/${path.join('/')}`), slow(parts, path))
  }), { numRuns: 3_000 })
})

test('a hostile pattern costs little', () => {
  const rules = new ExcludeRules([`${'*a'.repeat(200)}b`, `/${'**/a/'.repeat(100)}b`])
  const deep = Array.from({ length: 1_000 }, () => 'a')
  assert.ok(!rules.excludes(deep, 'a'.repeat(255), false)) // exponential matching would not return
})
