/** Results go to stdout, everything else to stderr; a pipe sees no progress. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Output, type OutputStream } from '../../src/cli/output.js'
import type { Clock } from '../../src/core/clock.js'

class Capture implements OutputStream {
  text = ''
  constructor(readonly isTTY: boolean, readonly columns = 60) {}
  write(text: string): void { this.text += text }
}
function outputs(options: { json?: boolean; quiet?: boolean; verbose?: boolean; terminal?: boolean }): { out: Output; stdout: Capture; stderr: Capture; pass(ms: number): void } {
  const stdout = new Capture(false)
  const stderr = new Capture(options.terminal === true)
  let nowMs = 0
  const clock: Clock = { now: () => nowMs, monotonicMs: () => nowMs, sleep: async () => undefined }
  const out = new Output({ json: options.json === true, quiet: options.quiet === true, verbose: options.verbose === true, stdout, stderr, clock })
  return { out, stdout, stderr, pass: (ms) => { nowMs += ms } }
}
const STEP = { done: 1, total: 2, unit: 'items', at: 'x' } as const

test('progress is drawn on a terminal and erased before the next line', () => {
  const { out, stderr } = outputs({ terminal: true })
  out.progress(STEP)
  out.note('hello')
  assert.match(stderr.text, /\r\u001b\[2K50% · 1 of 2.*\r\u001b\[2Khello\n$/s)
})
test('progress is redrawn at most ten times a second', () => {
  const { out, stderr, pass } = outputs({ terminal: true })
  for (let step = 0; step < 100; step++) { out.progress(STEP); pass(10) }
  assert.equal(stderr.text.split('\r').length - 1, 10)
})
test('in a pipe, and with --quiet or --json, there is no progress', () => {
  for (const options of [{}, { terminal: true, quiet: true }, { terminal: true, json: true }]) {
    const { out, stderr } = outputs(options)
    out.progress(STEP)
    assert.equal(stderr.text, '')
  }
})
test('with --json only records reach stdout, one object a line', () => {
  const { out, stdout, stderr } = outputs({ json: true })
  out.line('for people')
  out.note('for people')
  out.record({ type: 'x', name: 'a\nb' })
  assert.equal(stdout.text, '{"type":"x","name":"a\\nb"}\n')
  assert.equal(stderr.text, '')
})
test('--quiet silences remarks but not warnings', () => {
  const { out, stderr } = outputs({ quiet: true })
  out.note('remark')
  out.warn('warning')
  assert.equal(stderr.text, 'warning\n')
})
