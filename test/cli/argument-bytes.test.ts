/** Paths that are not UTF-8 keep their bytes from the command line to the source. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import fc from 'fast-check'
import { argumentBytes, escapeBytes, exactArguments } from '../../src/cli/argument-bytes.js'

test('any bytes survive the way through a string', () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => argumentBytes(escapeBytes(Buffer.from(bytes))).equals(Buffer.from(bytes))))
})
test('text that is UTF-8 stays as it is, also beyond the basic plane', () => {
  assert.equal(escapeBytes(Buffer.from('naïve 🦉')), 'naïve 🦉')
  assert.deepEqual(argumentBytes('naïve 🦉'), Buffer.from('naïve 🦉'))
})
test('arguments are taken from the process\'s command line only where Node lost bytes', () => {
  const raw = Buffer.concat([Buffer.from('node\0--flag\0script\0backup\0/a/'), Buffer.from([0xff, 0xc3]), Buffer.from('\0plain\0')])
  const args = exactArguments(['backup', '/a/\ufffd\ufffd', 'plain'], () => raw)
  assert.deepEqual(args.map((argument) => [...argumentBytes(argument)]), [[...Buffer.from('backup')], [0x2f, 0x61, 0x2f, 0xff, 0xc3], [...Buffer.from('plain')]])
})
test('without /proc the strings stay what they are', () => {
  assert.deepEqual(exactArguments(['/a/\ufffd'], () => undefined), ['/a/\ufffd'])
})
test('a true replacement character is itself', () => {
  const raw = Buffer.from('node\0x\0/a/\ufffd\0')
  assert.deepEqual(argumentBytes(exactArguments(['/a/\ufffd'], () => raw)[0]!), Buffer.from('/a/\ufffd'))
})
test('a real process sees the bytes it was started with', { skip: process.platform !== 'linux' }, () => {
  const url = new URL('../../src/cli/argument-bytes.js', import.meta.url).href
  const script = `import(${JSON.stringify(url)}).then((m) => process.stdout.write(m.argumentBytes(m.exactArguments(process.argv.slice(1))[0]).toString('hex')))`
  // Node passes only strings to a child: a shell makes the byte.
  const shell = spawnSync('sh', ['-c', `exec "$0" -e "$1" -- "$(printf '/x/\\377')"`, process.execPath, script], { encoding: 'utf8' })
  assert.equal(shell.stdout, '2f782fff', shell.stderr)
})
