/** Disk images, block devices and standard input through real processes. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { closeSync, ftruncateSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { describe, test } from 'node:test'
import { makeOddTree, noise } from '../support/odd-tree.js'
import { hasTool, isRoot, openWorld, tool, type RoostWorld } from '../support/run-roost.js'

const MiB = 1024 * 1024
const sameBytes = (a: string, b: string): boolean => spawnSync('cmp', ['-s', a, b]).status === 0

/** An ext4 file system where mke2fs is installed, else regions of noise in a sparse file. */
function makeImage(world: RoostWorld, bytes: number): string {
  const path = world.path('disk.img')
  if (hasTool('mke2fs')) {
    const { path: tree } = makeOddTree(world.path('in-image'))
    tool('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', tree, path, `${bytes / MiB}M`])
  } else {
    const file = openSync(path, 'w')
    ftruncateSync(file, bytes)
    for (let i = 0; i < 5; i++) writeSync(file, noise(MiB, i), 0, MiB, i * 17 * MiB + 4096)
    closeSync(file)
  }
  return path
}
function edit(path: string, places: readonly number[]): void {
  const file = openSync(path, 'r+')
  for (const at of places) writeSync(file, noise(4096, at), 0, 4096, at)
  closeSync(file)
}
const statisticsOf = (lines: readonly Record<string, unknown>[]): Record<string, number> =>
  lines.find((line) => line['type'] === 'snapshot')!['statistics'] as Record<string, number>

describe('a disk image', () => {
  test('comes back identical and sparse, and its edited copy sends only what changed', async (t) => {
    const world = await openWorld(t)
    const image = makeImage(world, 256 * MiB)
    const first = statisticsOf(await world.json(['backup', '--image', image, '--source', 'disk']))
    assert.equal(first['sourceBytes'], 256 * MiB)
    assert.ok(first['bytesRead']! <= statSync(image).blocks * 512 + MiB, 'holes are not read')
    await world.ok(['restore', 'latest', '--to-file', world.path('back.img')])
    assert.ok(sameBytes(image, world.path('back.img')))
    assert.ok(statSync(world.path('back.img')).blocks <= statSync(image).blocks + 2048, 'the restored image is sparse')

    edit(image, [100 * MiB, 150 * MiB + 8192, 200 * MiB])
    const second = statisticsOf(await world.json(['backup', '--image', image, '--source', 'disk']))
    assert.ok(second['bytesSent']! < 2 * MiB, `sent ${second['bytesSent']!} for three changed blocks`)
    await world.ok(['restore', 'latest', '--to-file', world.path('second.img')])
    assert.ok(sameBytes(image, world.path('second.img')))
    await world.ok(['check', '--read-data'])
  })
  test('a grown and a shrunk image come back with their new sizes', async (t) => {
    const world = await openWorld(t)
    const image = world.path('disk.img')
    writeFileSync(image, noise(3 * MiB + 512, 1))
    for (const [index, bytes] of [3 * MiB + 512, 20 * MiB, MiB + 4096].entries()) {
      const file = openSync(image, 'r+')
      ftruncateSync(file, bytes)
      closeSync(file)
      await world.ok(['backup', '--image', image, '--source', 'disk'])
      await world.ok(['restore', 'latest', '--to-file', world.path(`back-${index}`)])
      assert.ok(sameBytes(image, world.path(`back-${index}`)), `after becoming ${bytes} bytes`)
    }
  })
  test('a block device is a source and a destination', async (t) => {
    const world = await openWorld(t)
    const devices: string[] = []
    t.after(() => { for (const device of devices) spawnSync('losetup', ['-d', device]) })
    const attach = (path: string): string | undefined => {
      const result = spawnSync('losetup', ['--find', '--show', path], { encoding: 'utf8' })
      if (result.status !== 0) return undefined
      devices.push(result.stdout.trim())
      return result.stdout.trim()
    }
    writeFileSync(world.path('source.img'), noise(8 * MiB, 1))
    writeFileSync(world.path('destination.img'), noise(8 * MiB, 2))
    const source = isRoot && hasTool('losetup') ? attach(world.path('source.img')) : undefined
    const destination = source === undefined ? undefined : attach(world.path('destination.img'))
    if (source === undefined || destination === undefined) { t.skip('SKIPPED GROUP: no loop devices here'); return }
    await world.ok(['backup', '--image', source, '--source', 'device'])
    await world.ok(['restore', 'latest', '--to-device', destination])
    assert.ok(sameBytes(source, destination))
  })
})

describe('standard input', () => {
  test('is saved under its name and dumped again byte by byte', async (t) => {
    const world = await openWorld(t)
    const content = Buffer.concat([noise(3 * MiB, 5), Buffer.alloc(2 * MiB), noise(MiB, 6)])
    writeFileSync(world.path('content'), content)
    await world.ok(['backup', '--stdin', '--stdin-name', 'dump.sql', '--source', 'db'], { stdin: content })
    const dumped = await world.ok(['dump', 'latest:/dump.sql'])
    assert.ok(Buffer.from(dumped.stdout, 'latin1').equals(content))
    const again = statisticsOf(await world.json(['backup', '--stdin', '--stdin-name', 'dump.sql', '--source', 'db'], { stdin: content }))
    assert.ok(again['bytesSent']! < MiB / 4, 'an equal dump sends nothing but structure')
  })
  test('an empty input is an empty file', async (t) => {
    const world = await openWorld(t)
    await world.ok(['backup', '--stdin', '--stdin-name', 'nothing'], { stdin: Buffer.alloc(0) })
    await world.ok(['restore', 'latest', '--target', world.path('back')])
    assert.equal(readFileSync(world.path('back', 'nothing')).length, 0)
  })
})
