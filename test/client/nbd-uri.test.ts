import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { formatNbdUri, isNbdUri, parseNbdUri } from '../../client/nbd/nbd-uri.js'
import { hasClientCode } from '../../src/protocol/client-errors.js'

test('addresses are read as the NBD project writes them, and written so again', () => {
  for (const [text, address, exportName] of [
    ['nbd://storage1', { kind: 'tcp', host: 'storage1', port: 10809 }, ''],
    ['nbd://storage1:99/a/b%20c', { kind: 'tcp', host: 'storage1', port: 99 }, 'a/b c'],
    ['nbds://[fd00::1]/x', { kind: 'tcp', host: 'fd00::1', port: 10809, tls: {} }, 'x'],
    ['nbd+unix:///?socket=/run/a%20b.sock', { kind: 'unix', path: '/run/a b.sock' }, ''],
    ['nbd+unix:///disk?socket=/s', { kind: 'unix', path: '/s' }, 'disk'],
  ] as const) {
    const origin = parseNbdUri(text)
    assert.deepEqual(origin, { kind: 'nbd', address, exportName }, text)
    assert.deepEqual(parseNbdUri(formatNbdUri(origin)), origin, text)
    assert.ok(isNbdUri(text))
  }
  for (const path of ['/dev/nbd0', './nbd://x', 'nbdisk.raw', '']) assert.ok(!isNbdUri(path), path)
})
test('what is no address of an export is refused with the reason: hosts and sockets that lack, options that nobody knows, TLS where there is none', () => {
  for (const text of ['nbd://', 'nbd:///x', 'nbd+unix:///x', 'nbd+unix:///x?socket=', 'nbd+unix://host/x?socket=/s', 'nbds+unix:///x?socket=/s', 'nbd+vsock://1/x', 'nbd://h/x?socket=/s',
    'nbd://h/x?tls-certificates=/x', 'nbds://h/x?tls-psk-file=/x', 'nbd://user@h/x', 'nbd://h/x#part', 'nbd://h:99999/x', 'nbd://h/%ff%fe'])
    assert.throws(() => parseNbdUri(text), (error) => hasClientCode(error, 'URL_MALFORMED'), text)
})
test('certificates are read from their folder; a client\'s own only where it is there', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'roost-uri-'))
  t.after(() => { rmSync(directory, { recursive: true, force: true }) })
  const tls = (): unknown => {
    const { address } = parseNbdUri(`nbds://h/x?tls-certificates=${directory}&tls-hostname=other`)
    return address.kind === 'tcp' ? address.tls : undefined
  }
  assert.throws(tls, /ENOENT/)
  writeFileSync(join(directory, 'ca-cert.pem'), 'CA')
  assert.deepEqual(tls(), { ca: 'CA', serverName: 'other' })
  writeFileSync(join(directory, 'client-cert.pem'), 'CERT')
  assert.throws(tls, /client-key/)
  writeFileSync(join(directory, 'client-key.pem'), 'KEY')
  assert.deepEqual(tls(), { ca: 'CA', serverName: 'other', cert: 'CERT', key: 'KEY' })
})
