/** Files out of disk images: file systems made by mke2fs of every kind that there is, partition tables made by sfdisk, and thousands of damaged ones. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, linkSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync, writeSync, openSync, closeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test, type TestContext } from 'node:test'
import { ByteWindow } from '../../client/image-files/byte-window.js'
import { crc32 } from '../../client/image-files/crc32.js'
import { Ext4Volume } from '../../client/image-files/ext4/volume.js'
import { listVolume } from '../../client/image-files/list-volume.js'
import { describeImage, openVolume } from '../../client/image-files/open-image.js'
import { readPartitions } from '../../client/image-files/partitions.js'
import { restoreVolume, type VolumeRestoreOptions, type VolumeRestoreReport } from '../../client/image-files/restore-volume.js'
import type { RestoreProblem } from '../../client/restore/restore-report.js'
import { compareTrees } from '../support/compare-trees.js'
import { FileSource } from '../support/file-source.js'
import { makeOddTree, noise, seeded } from '../support/odd-tree.js'
import { hasTool, isRoot, SLOW, tool } from '../support/run-roost.js'

const MiB = 1024 * 1024
const lacking = ['mke2fs', 'debugfs', 'sfdisk'].filter((name) => !hasTool(name))
const skip = lacking.length === 0 ? false : `SKIPPED GROUP: files from images — not installed: ${lacking.join(', ')}`
if (skip !== false) console.log(skip)

/** Makes a tree with times that mke2fs keeps. */
function wholeSeconds(root: string, make: (root: string) => void): string {
  make(root)
  execFileSync('find', [root, '-exec', 'touch', '-h', '-d', '@1600000000', '{}', '+'])
  return root
}
class Scene {
  readonly directory = mkdtempSync(join(tmpdir(), 'roost-image-files-'))
  readonly problems: RestoreProblem[] = []
  constructor(readonly t: TestContext) { t.after(() => { execFileSync('rm', ['-rf', this.directory]) }) }
  path(...names: string[]): string { return join(this.directory, ...names) }
  tree(make: (root: string) => void): string { return wholeSeconds(this.path('tree'), make) }
  mkfs(name: string, options: readonly string[], root?: string, mib = 48): string {
    const image = this.path(name)
    writeFileSync(image, '')
    truncateSync(image, mib * MiB)
    execFileSync('mke2fs', ['-q', '-F', '-L', 'data', ...options, ...(root === undefined ? [] : ['-d', root]), image])
    return image
  }
  source(image: string): FileSource { return new FileSource(this.t, image) }
  async restore(volume: Ext4Volume, to: string, options: Partial<VolumeRestoreOptions> = {}): Promise<VolumeRestoreReport> {
    this.problems.length = 0
    return await restoreVolume(volume, { names: [], destination: { kind: 'directory', path: Buffer.from(this.path(to)) }, replaces: false, stopsOnDamage: false,
      metadata: { owners: 'numeric', xattrs: true }, runMark: 'f00d', ...options }, { problem: (problem) => { this.problems.push(problem) } }, new AbortController().signal)
  }
  told(): string { return this.problems.map(({ path, reason, message }) => `${path.toString('latin1')}: ${reason}: ${message}`).join('\n') }
}
const names = (path: string): Buffer[] => path.split('/').map((name) => Buffer.from(name))
async function listed(volume: Ext4Volume, path = ''): Promise<string[]> {
  const found: string[] = []
  for await (const item of listVolume(volume, path === '' ? [] : names(path), true, ({ error }) => { throw error }, new AbortController().signal)) found.push(item.path.toString('latin1'))
  return found.sort()
}

describe('file systems that mke2fs made', { skip }, () => {
  const kinds: Readonly<Record<string, readonly string[]>> = {
    ext4: ['-t', 'ext4'], 'ext4 with small blocks': ['-t', 'ext4', '-b', '1024'], ext3: ['-t', 'ext3'], 'ext2 with blocks of 1 KiB': ['-t', 'ext2', '-b', '1024'],
    'ext2 with small inodes': ['-t', 'ext2', '-I', '128'], 'ext4, everything on': ['-t', 'ext4', '-O', '64bit,metadata_csum,inline_data,large_dir,ea_inode', '-I', '512'],
    'ext4 with groups of metadata': ['-t', 'ext4', '-b', '1024', '-O', 'meta_bg,^resize_inode', '-g', '1024'],
    'ext4 with clusters': ['-t', 'ext4', '-O', 'bigalloc', '-C', '16384'], 'ext4 with sparse_super2': ['-t', 'ext4', '-O', 'sparse_super2'],
  }
  const shared = mkdtempSync(join(tmpdir(), 'roost-image-tree-'))
  after(() => { execFileSync('rm', ['-rf', shared]) })
  const root = join(shared, 'tree')
  before(() => {
    wholeSeconds(root, (path) => {
      makeOddTree(path)
      rmSync(join(path, 'links', 'broken-too')) // mke2fs makes two symlinks of it
      mkdirSync(join(path, 'crowd'))
      for (let i = 0; i < 1200; i++) writeFileSync(join(path, 'crowd', `file-with-a-long-name-${i}`.padEnd(60 + i % 100, 'x')), i % 50 === 0 ? noise(i * 7, i) : String(i))
      const sparse = openSync(join(path, 'sparse'), 'w')
      for (const at of [0, 5 * MiB + 12_345, 60 * MiB, 90 * MiB]) writeSync(sparse, noise(9_000, at + 1), 0, 9_000, at)
      closeSync(sparse)
      symlinkSync('x'.repeat(200), join(path, 'long-link'))
      symlinkSync('y'.repeat(59), join(path, 'link59'))
      symlinkSync('z'.repeat(60), join(path, 'link60'))
    })
  })
  for (const [kind, options] of Object.entries(kinds)) test(`${kind}: an odd tree comes back as it was`, async (t) => {
    const scene = new Scene(t)
    const volume = await Ext4Volume.open(scene.source(scene.mkfs('fs', options, root, 96)))
    assert.equal(volume.superblock.label, 'data')
    const report = await scene.restore(volume, 'back')
    rmSync(scene.path('back', 'lost+found'), { recursive: true, force: true })
    assert.equal(scene.told(), '')
    const { differences, files } = compareTrees(root, scene.path('back'), { owners: isRoot })
    assert.deepEqual(differences.filter((one) => !one.startsWith('"": ')), [])
    assert.ok(files > 1200 && report.files >= files && report.problems === 0)
    assert.ok(statSync(scene.path('back', 'sparse')).blocks < 400, 'holes stay holes')
    if (hasTool('rsync')) {
      const differing = tool('rsync', ['-aHAXn', '--delete', '--itemize-changes', `${root}/`, `${scene.path('back')}/`]).split('\n').filter((line) => line !== '' && !line.includes('./'))
      assert.deepEqual(differing, [], 'attributes and ACLs too')
    }
  })
  test('a directory with an index, times to the nanosecond and after 2038, and deleted names', async (t) => {
    const scene = new Scene(t)
    const image = scene.mkfs('fs', ['-t', 'ext4'], scene.tree((path) => {
      mkdirSync(join(path, 'd'), { recursive: true })
      for (let i = 0; i < 3000; i++) writeFileSync(join(path, 'd', `name ${i}`), '')
    }))
    spawnSync('e2fsck', ['-fyD', image])
    execFileSync('debugfs', ['-w', '-R', 'rm "/d/name 7"', image], { stdio: 'ignore' })
    for (const [field, value] of [['mtime_lo', '0x80000001'], ['mtime_extra', `${(123_456_789 << 2 | 1) >>> 0}`]]) execFileSync('debugfs', ['-w', '-R', `set_inode_field "/d/name 8" ${field} ${value}`, image], { stdio: 'ignore' })
    const volume = await Ext4Volume.open(scene.source(image))
    const all = await listed(volume, 'd')
    assert.equal(all.length, 2999)
    assert.ok(!all.includes('d/name 7') && all.includes('d/name 2999'))
    const item = (await volume.find(names('d/name 8')))!
    assert.equal(item.entry.mtimeNs, (BigInt(0x80000001 | 0) + (1n << 32n)) * 1_000_000_000n + 123_456_789n)
    assert.equal(await volume.find(names('d/name 7')), undefined)
    assert.equal(await volume.find(names('d/name 8/below')), undefined)
  })
  test('parts of it: a directory, one file under another name, what is there stays or is replaced', async (t) => {
    const scene = new Scene(t)
    const image = scene.mkfs('fs', ['-t', 'ext4'], scene.tree((path) => {
      mkdirSync(join(path, 'etc', 'ssh'), { recursive: true })
      writeFileSync(join(path, 'etc', 'fstab'), 'one')
      linkSync(join(path, 'etc', 'fstab'), join(path, 'etc', 'fstab2'))
      writeFileSync(join(path, 'etc', 'ssh', 'key'), 'two')
      symlinkSync('/etc/passwd', join(path, 'etc', 'link'))
    }))
    const volume = await Ext4Volume.open(scene.source(image))
    assert.deepEqual(await listed(volume, 'etc'), ['etc/fstab', 'etc/fstab2', 'etc/link', 'etc/ssh', 'etc/ssh/key'])
    await scene.restore(volume, 'etc', { names: names('etc') })
    assert.deepEqual(readdirSync(scene.path('etc')).sort(), ['fstab', 'fstab2', 'link', 'ssh'])
    assert.equal(lstatSync(scene.path('etc', 'fstab')).ino, lstatSync(scene.path('etc', 'fstab2')).ino)
    await scene.restore(volume, 'x/as', { names: names('etc/fstab'), destination: { kind: 'file', path: Buffer.from(scene.path('x', 'as')) } })
    assert.equal(readFileSync(scene.path('x', 'as'), 'utf8'), 'one')
    writeFileSync(scene.path('etc', 'fstab'), 'mine')
    assert.equal((await scene.restore(volume, 'etc', { names: names('etc') })).skipped, 4)
    assert.equal(readFileSync(scene.path('etc', 'fstab'), 'utf8'), 'mine')
    await scene.restore(volume, 'etc', { names: names('etc'), replaces: true })
    assert.equal(readFileSync(scene.path('etc', 'fstab2'), 'utf8'), 'one')
    await assert.rejects(scene.restore(volume, 'no', { names: names('nowhere') }), { code: 'SNAPSHOT_UNKNOWN' })
    await assert.rejects(scene.restore(volume, 'no', { names: names('etc'), destination: { kind: 'file', path: Buffer.from(scene.path('no')) } }), { code: 'SNAPSHOT_UNKNOWN' })
    assert.deepEqual(readdirSync(scene.directory, { recursive: true }).filter((name) => String(name).includes('.roost-')), [])
  })
  test('what lies in the destination does not lead out of it', async (t) => {
    const scene = new Scene(t)
    const volume = await Ext4Volume.open(scene.source(scene.mkfs('fs', ['-t', 'ext4'], scene.tree((path) => {
      mkdirSync(join(path, 'a'), { recursive: true })
      writeFileSync(join(path, 'a', 'file'), 'x')
    }))))
    mkdirSync(scene.path('outside'))
    mkdirSync(scene.path('back'))
    symlinkSync(scene.path('outside'), scene.path('back', 'a'))
    const report = await scene.restore(volume, 'back')
    assert.ok(report.problems >= 1)
    assert.deepEqual(readdirSync(scene.path('outside')), [])
  })
  test('needs_recovery is seen; features that nobody here reads are refused by name', async (t) => {
    const scene = new Scene(t)
    const image = scene.mkfs('fs', ['-t', 'ext4'])
    assert.equal((await Ext4Volume.open(scene.source(image))).superblock.needsRecovery, false)
    execFileSync('debugfs', ['-w', '-R', 'feature needs_recovery', image], { stdio: 'ignore' })
    assert.equal((await Ext4Volume.open(scene.source(image))).superblock.needsRecovery, true)
    const source = scene.source(image)
    source.changes.set(1024 + 96 + 3, 0x80)
    await assert.rejects(Ext4Volume.open(source), /incompat 0x80000000/)
    await assert.rejects(Ext4Volume.open(new ByteWindow(source, 0, 1500)), { code: 'IMAGE_UNREADABLE' })
  })
})

describe('partition tables', { skip }, () => {
  function disk(scene: Scene, script: string, bytes = 64 * MiB): string {
    writeFileSync(scene.path('disk'), '')
    truncateSync(scene.path('disk'), bytes)
    tool('sfdisk', ['-q', scene.path('disk')], script)
    return scene.path('disk')
  }
  function put(target: string, offset: number, part: string): void { execFileSync('dd', [`if=${part}`, `of=${target}`, 'bs=64k', `seek=${offset / 65_536}`, 'conv=notrunc,sparse', 'status=none']) }

  test('GPT: names, types, and the file system of a partition', async (t) => {
    const scene = new Scene(t)
    const image = disk(scene, 'label: gpt\nsize=8M, type=U, name="boot"\nsize=32M, type=L, name="größe"\n')
    put(image, 9 * MiB, scene.mkfs('fs', ['-t', 'ext4'], scene.tree((path) => { mkdirSync(path); writeFileSync(join(path, 'hello'), 'world') }), 32))
    const source = scene.source(image)
    const { table, parts, warnings } = await describeImage(source)
    assert.deepEqual([table, warnings], ['gpt', []])
    assert.deepEqual(parts.map(({ name, offset, bytes, type, label, content, volume }) => [name, offset, bytes, type, label, content, volume?.kind]),
      [['p1', MiB, 8 * MiB, 'EFI system', 'boot', 'empty', undefined], ['p2', 9 * MiB, 32 * MiB, 'Linux', 'größe', 'ext', 'ext4']])
    assert.deepEqual(await listed(await openVolume(source, 'p2')), ['hello', 'lost+found'])
    await assert.rejects(openVolume(source, 'p1'), /empty/)
    await assert.rejects(openVolume(source, 'p7'), /there are: p1, p2/)
    source.changes.set(512 + 16, 1) // the main header's checksum
    const backup = await readPartitions(source)
    assert.deepEqual([backup!.partitions.length, backup!.warnings.length], [2, 1])
  })
  test('MBR: primary and logical partitions as Linux counts them; a chain that goes round ends', async (t) => {
    const scene = new Scene(t)
    const image = disk(scene, 'label: dos\nstart=2048, size=8192, type=83\nstart=10240, size=100000, type=5\nstart=12288, size=8192, type=83\nstart=22528, size=8192, type=82\nstart=32768, size=8192, type=83\n')
    const source = scene.source(image)
    const table = (await readPartitions(source))!
    assert.deepEqual([table.kind, ...table.partitions.map(({ number, offset, type }) => `${number}@${offset / 512} ${type}`)],
      ['mbr', '1@2048 Linux', '5@12288 Linux', '6@22528 Linux swap', '7@32768 Linux'])
    const record = Buffer.from((await source.read(10240 * 512, 512))[0]!.data!)
    for (let i = 0; i < 4; i++) source.changes.set(10240 * 512 + 446 + 16 + 8 + i, 0) // the next record is the first
    assert.equal(record[446 + 16 + 4], 5)
    const round = (await readPartitions(source))!
    assert.deepEqual([round.partitions.length, round.warnings], [2, ['The chain of logical partitions is broken.']])
  })
  test('a disk without partitions is whole; a boot sector is no partition table', async (t) => {
    const scene = new Scene(t)
    const whole = scene.source(scene.mkfs('fs', ['-t', 'ext4']))
    assert.deepEqual((await describeImage(whole)).parts.map(({ name, content }) => [name, content]), [['whole', 'ext']])
    if (hasTool('mkfs.vfat')) {
      writeFileSync(scene.path('fat'), Buffer.alloc(16 * MiB))
      execFileSync('mkfs.vfat', [scene.path('fat')], { stdio: 'ignore' })
      assert.deepEqual((await describeImage(scene.source(scene.path('fat')))).parts.map(({ name, content }) => [name, content]), [['whole', 'vfat']])
    }
    writeFileSync(scene.path('tiny'), 'x')
    assert.deepEqual((await describeImage(scene.source(scene.path('tiny')))).parts.map(({ content }) => content), ['unknown'])
  })
  test('the checksum is that of GPT', () => assert.equal(crc32(Buffer.from('123456789')), 0xcbf4_3926))
})

describe('damaged images', { skip }, () => {
  test('any bytes changed: an answer or an error of ours, no crash, no loop, nothing outside the destination, no more bytes than the volume has', async (t) => {
    const scene = new Scene(t)
    const root = scene.tree((path) => {
      mkdirSync(join(path, 'a', 'b'), { recursive: true })
      for (let i = 0; i < 40; i++) writeFileSync(join(path, 'a', `f${i}`), noise(i * 900, i))
      symlinkSync('x'.repeat(100), join(path, 'a', 'b', 'link'))
      linkSync(join(path, 'a', 'f1'), join(path, 'a', 'b', 'again'))
      const sparse = openSync(join(path, 'sparse'), 'w')
      for (let i = 0; i < 30; i++) writeSync(sparse, noise(2_000, i), 0, 2_000, i * 100_000)
      closeSync(sparse)
    })
    const images = [scene.mkfs('one', ['-t', 'ext4', '-b', '1024'], root, 8), scene.mkfs('two', ['-t', 'ext2', '-b', '1024'], root, 8)]
    const rounds = SLOW ? 2_000 : 250
    let opened = 0, failed = 0
    for (let round = 0; round < rounds; round++) {
      const random = seeded(round + 1)
      const source = scene.source(images[round % images.length]!)
      // Where structure is: superblock, descriptors, inodes, and the blocks that are in use.
      const places = await interesting(source)
      for (let i = 0, changes = 1 + Math.floor(random() * 12); i < changes; i++) {
        const [from, bytes] = places[Math.floor(random() * places.length)]!
        source.changes.set(from + Math.floor(random() * bytes), [0, 0xff, 1, 0x80, Math.floor(random() * 256)][Math.floor(random() * 5)]!)
      }
      try {
        await describeImage(source)
        const volume = await Ext4Volume.open(source)
        opened++
        const report = await scene.restore(volume, 'out/in')
        assert.ok(report.bytes <= source.bytes)
      } catch (error) {
        failed++
        const { code } = error as { code?: string }
        assert.ok(code === 'IMAGE_UNREADABLE' || code === 'SNAPSHOT_UNKNOWN', `round ${round}: ${(error as Error).stack}`)
      }
      for (const { cause } of scene.problems) assert.ok(typeof (cause as { code?: unknown }).code === 'string', `round ${round}: ${(cause as Error).stack}`)
      assert.ok(source.reads < 20_000, `round ${round}: ${source.reads} reads`)
      if (existsSync(scene.path('out'))) {
        assert.deepEqual(readdirSync(scene.path('out')), ['in'])
        execFileSync('rm', ['-rf', scene.path('out')])
      }
    }
    assert.ok(opened > rounds / 3 && failed > 0, `${opened} opened, ${failed} failed`)
  })
  test('partition tables with any bytes changed are read, or passed over', async (t) => {
    const scene = new Scene(t)
    const disks = ['label: gpt\nsize=8M, type=U\nsize=8M, type=L\n', 'label: dos\nstart=2048, size=8192, type=83\nstart=10240, size=50000, type=5\nstart=12288, size=8192, type=83\nstart=22528, size=8192, type=82\n']
      .map((script, i) => {
        const path = scene.path(`disk${i}`)
        writeFileSync(path, '')
        truncateSync(path, 32 * MiB)
        tool('sfdisk', ['-q', path], script)
        return scene.source(path)
      })
    const rounds = SLOW ? 20_000 : 800
    for (let round = 0; round < rounds; round++) {
      const random = seeded(round + 1)
      const source = disks[round % 2]!
      source.changes.clear()
      for (let i = 0; i < 1 + random() * 6; i++) {
        const from = [446, 512, 1024, 10240 * 512 + 446, 20480 * 512 + 446, source.bytes - 512][Math.floor(random() * 6)]!
        source.changes.set(from + Math.floor(random() * 66), [0, 0xff, 5, 0x80, Math.floor(random() * 256)][Math.floor(random() * 5)]!)
      }
      source.reads = 0
      for (const { offset, bytes } of (await describeImage(source)).parts) assert.ok(offset >= 0 && bytes > 0 && offset + bytes <= source.bytes, `round ${round}`)
      assert.ok(source.reads < 1_000, `round ${round}`)
    }
  })
  /** Stretches that are not zeroes, by KiB, without most of the contents. */
  async function interesting(source: FileSource): Promise<[number, number][]> {
    const places: [number, number][] = [[1024, 300], [1024, 300], [1024, 300]]
    const data = (await source.read(0, source.bytes))[0]!.data!
    const zeroes = Buffer.alloc(1024)
    for (let at = 2048; at < Math.min(source.bytes, 2 * MiB); at += 1024) if (!data.subarray(at, at + 1024).equals(zeroes)) places.push([at, 1024])
    return places
  }
})
