/** Flags over environment over config file; secrets from files and environment only. */
import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { UsageError } from '../../src/cli/exit-codes.js'
import { parseRepositoryAddress, readSecretFile, Settings } from '../../src/cli/settings.js'

function directory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'roost-settings-'))
  t.after(() => rmSync(path, { recursive: true, force: true }))
  return path
}

test('a flag wins over the environment, the environment over the config file', (t) => {
  const config = join(directory(t), 'config.json')
  writeFileSync(config, JSON.stringify({ repository: 'http://file:1/a', source: 'of-file' }))
  const value = (flag: string | undefined, variable: string): string =>
    new Settings({ ...(flag === undefined ? {} : { repository: flag }) }, { ROOST_CONFIG: config, ROOST_REPOSITORY: variable }).repository().server.hostname
  assert.equal(value('http://flag:1/a', 'http://variable:1/a'), 'flag')
  assert.equal(value(undefined, 'http://variable:1/a'), 'variable')
  assert.equal(value(undefined, ''), 'file')
  assert.equal(new Settings({}, { ROOST_CONFIG: config, ROOST_SOURCE: 'of-environment' }).value('source', 'of-flag'), 'of-flag')
})
test('a config file with an unknown key, a token or broken JSON is refused by name', (t) => {
  const config = join(directory(t), 'config.json')
  for (const [content, expected] of [['{"repositry":"x"}', /"repositry" is not a setting/], ['{"token":"x"}', /tokenFile/], ['{', /not JSON/], ['[]', /not a JSON object/]] as const) {
    writeFileSync(config, content)
    assert.throws(() => new Settings({ config }, {}), (error: unknown) => error instanceof UsageError && expected.test(error.message))
  }
})
test('an absent default config file is no failure, a named one is', (t) => {
  const home = directory(t)
  assert.equal(new Settings({}, { HOME: home, XDG_CONFIG_HOME: '' }).value('repository'), undefined)
  assert.throws(() => new Settings({ config: join(home, 'absent.json') }, {}), UsageError)
})
test('the repository\'s address is cut into server and name, prefixes kept', () => {
  const { server, name } = parseRepositoryAddress('https://host:9000/behind/proxy/main')
  assert.deepEqual([server.href, name], ['https://host:9000/behind/proxy/', 'main'])
  assert.equal(parseRepositoryAddress('http://[::1]:8470/main/').name, 'main')
  for (const bad of ['host:8470/main', 'ftp://host/main', 'http://user:secret@host/main', 'http://host/main?token=x', 'nonsense'])
    assert.throws(() => parseRepositoryAddress(bad), UsageError)
})
test('a server is named by itself or by the repository', () => {
  assert.equal(new Settings({ repository: 'http://host:1/main' }, { HOME: '/nonexistent' }).server().href, 'http://host:1/')
  assert.equal(new Settings({ server: 'http://other:2' }, { HOME: '/nonexistent', ROOST_REPOSITORY: 'http://host:1/main' }).server().href, 'http://other:2/')
  assert.throws(() => new Settings({}, { HOME: '/nonexistent' }).server(), UsageError)
})
test('a token comes from the named file, and one that others can read is warned of', (t) => {
  const path = join(directory(t), 'token')
  writeFileSync(path, 'secret\n', { mode: 0o600 })
  const settings = new Settings({}, { HOME: '/nonexistent', ROOST_TOKEN_FILE: path })
  assert.deepEqual(settings.token(), { token: 'secret' })
  chmodSync(path, 0o644)
  assert.match(settings.token().warning ?? '', /chmod 600/)
  assert.deepEqual(new Settings({ tokenFile: path }, { HOME: '/nonexistent', ROOST_TOKEN: 'other' }).token().token, 'secret')
  assert.throws(() => new Settings({}, { HOME: '/nonexistent' }).token(), UsageError)
})
test('a verify key that is not one is refused before anything is sent', () => {
  assert.throws(() => new Settings({ verifyKey: 'abc' }, { HOME: '/nonexistent' }).verifyKeys(), UsageError)
})
test('one newline at the end of a secret\'s file is not part of the secret', (t) => {
  const path = join(directory(t), 'pass')
  writeFileSync(path, ' two words \n')
  assert.equal(readSecretFile(path, 'passphrase file'), ' two words ')
})
