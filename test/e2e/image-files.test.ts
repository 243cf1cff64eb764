/** roost ls, restore and dump inside a disk image, as commands. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { noise } from '../support/odd-tree.js'
import { hasTool, jsonLines, openWorld, tool } from '../support/run-roost.js'

const MiB = 1024 * 1024
const lacking = ['mke2fs', 'sfdisk', 'debugfs', 'qemu-img'].filter((name) => !hasTool(name))
const skip = lacking.length === 0 ? false : `SKIPPED GROUP: files from images by commands — not installed: ${lacking.join(', ')}`
if (skip !== false) console.log(skip)

test('partitions are listed, files in them listed, restored and dumped; the disk itself comes back as qcow2', { skip }, async (t) => {
  const world = await openWorld(t)
  mkdirSync(world.path('tree', 'etc', 'ssh'), { recursive: true })
  writeFileSync(world.path('tree', 'etc', 'fstab'), 'a file of the image\n')
  const content = noise(3 * MiB + 5, 1)
  writeFileSync(world.path('tree', 'etc', 'ssh', 'big'), content)
  const disk = world.path('disk.img')
  writeFileSync(disk, '')
  truncateSync(disk, 64 * MiB)
  tool('sfdisk', ['-q', disk], 'label: gpt\nsize=4M, type=U\nsize=40M, type=L, name=root\n')
  tool('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', world.path('tree'), '-L', 'rootfs', '-E', `offset=${5 * MiB}`, disk, '40m'])
  await world.ok(['backup', '--image', disk, '--source', 'web1'])

  const table = (await world.ok(['ls', 'latest:disk.img//'])).stdout
  assert.match(table, /p1 +4\.00 MiB +EFI system +empty/)
  assert.match(table, /p2 +40\.0 MiB +Linux +ext4 +rootfs/)
  assert.deepEqual((await world.json(['ls', 'latest', '--disk', '1'])).map(({ type, name, content: what }) => [type, name, what]), [['partition', 'p1', 'empty'], ['partition', 'p2', 'ext']])
  assert.match((await world.run(['ls', 'latest:disk.img'])).stderr, /roost ls latest:disk\.img\/\//)
  assert.match((await world.ok(['ls', '-l', 'latest:disk.img//p2/etc'])).stdout, /^-rw.* 20 .* \/etc\/fstab$/m)
  assert.equal((await world.ok(['ls', '-R', 'latest:p2/etc', '--disk', 'disk.img'])).stdout, '/etc/fstab\n/etc/ssh/\n/etc/ssh/big\n')
  assert.equal((await world.ok(['dump', 'latest:disk.img//p2/etc/fstab'])).stdout, 'a file of the image\n')
  assert.ok(Buffer.from((await world.ok(['dump', 'latest:/disk.img//p2//etc/ssh/big'])).stdout, 'latin1').equals(content))

  await world.ok(['restore', 'latest:disk.img//p2/etc', '--target', world.path('back')])
  assert.deepEqual(readdirSync(world.path('back')).sort(), ['fstab', 'ssh'])
  assert.ok(readFileSync(world.path('back', 'ssh', 'big')).equals(content))
  await world.ok(['restore', 'latest:p2/etc/fstab', '--disk', '1', '--to-file', world.path('one')])
  assert.equal(readFileSync(world.path('one'), 'utf8'), 'a file of the image\n')

  await world.ok(['restore', 'latest', '--disk', '1', '--to-file', world.path('back.qcow2'), '--format', 'qcow2'])
  execFileSync('qemu-img', ['check', world.path('back.qcow2')], { stdio: 'ignore' })
  assert.match(tool('qemu-img', ['compare', disk, world.path('back.qcow2')]), /identical/)
  await world.ok(['restore', 'latest', '--target', world.path('machine'), '--format', 'qcow2'])
  assert.deepEqual(readdirSync(world.path('machine')), ['disk.qcow2'])

  for (const [args, code, says] of [
    [['ls', 'latest:disk.img//p9/etc'], 1, /there are: p1, p2/], [['ls', 'latest:disk.img//p1/etc'], 1, /no file system that is read here/],
    [['ls', 'latest:disk.img//p2/nowhere'], 1, /no such path/], [['ls', 'latest:nothing//p2/etc'], 1, /no such path/], [['ls', 'latest:disk.img//p2/../x'], 1, /without "\.\."/],
    [['restore', 'latest:disk.img//', '--target', world.path('x')], 2, /Name the partition/], [['restore', 'latest:disk.img//p2/etc', '--to-device', '/dev/null'], 2, /--target DIR or --to-file/],
    [['restore', 'latest:disk.img//p2/etc', '--target', world.path('x'), '--include', 'fstab'], 2, /--include cannot/], [['dump', 'latest:disk.img//p2/etc'], 1, /no regular file/],
    [['restore', 'latest', '--disk', '2', '--to-file', world.path('x')], 1, /1 \(disk\.img\)/], [['restore', 'latest', '--to-device', '/dev/null', '--format', 'qcow2'], 2, /leave --format out/],
    [['restore', 'latest:disk.img', '--target', world.path('x'), '--format', 'qcow2'], 2, /whole machines/], [['nbd', 'latest', '--disk', '3'], 1, /1 \(disk\.img\)/],
  ] as const) {
    const result = await world.run(args)
    assert.equal(result.code, code, `${args.join(' ')}: ${result.stderr}`)
    assert.match(result.stderr, says, args.join(' '))
  }
  tool('debugfs', ['-w', '-R', 'feature needs_recovery', `${disk}?offset=${5 * MiB}`])
  await world.ok(['backup', '--image', disk, '--source', 'web1'])
  const warned = await world.ok(['ls', 'latest:disk.img//p2/etc', '--json'])
  assert.match(warned.stderr, /journal is not replayed/)
  assert.equal(jsonLines(warned.stdout).length, 2)
})
