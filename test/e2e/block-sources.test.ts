/** Disks that are not plain files: image formats and their backing files, LVM snapshots. */
import assert from 'node:assert/strict'
import { chmodSync, existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { assertSame, backup, lackOfDiskTools, qemuIo, rawImage, sharedWorld, startServer } from '../support/disk-scene.js'
import { noise } from '../support/odd-tree.js'
import { tool, type RoostWorld } from '../support/run-roost.js'

const MiB = 1024 * 1024

const skip = lackOfDiskTools()
if (skip !== false) console.log(skip)

function commandOf(pid: string): string {
  try { return readFileSync(`/proc/${pid}/cmdline`, 'utf8') } catch { return '' } // it ended meanwhile
}
/** What private servers left. */
const privateDisks = (world: RoostWorld): string[] => readdirSync(world.path('tmp'))

describe('image files', { skip }, () => {
  const openWorld = sharedWorld()
  test('a qcow2 image with backing files of other formats comes back as QEMU reads it', async (t) => {
    const world = await openWorld()
    const base = rawImage(world, 'base.raw', 64 * MiB)
    const middle = world.path('middle.qcow2')
    const top = world.path('web1.qcow2')
    tool('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', middle, '80M'])
    qemuIo(middle, 'write -P 0x11 3M 300k', 'write -z 22M 1M')
    tool('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'middle.qcow2', '-F', 'qcow2', top])
    qemuIo(top, 'write -P 0x22 70M 64k', 'write -P 0x33 3M 4k', 'discard 33M 1M')
    const first = await backup(world, '--image', top, '--source', 'web1')
    assert.deepEqual(first.disks.map(({ name, imageBytes, read }) => [name, imageBytes, read]), [['web1', 80 * MiB, 'full']])
    assert.ok(first.statistics['bytesRead']! < 12 * MiB, 'holes of all of them are not read')
    await assertSame(world, first.id, top, 'qcow2')
    qemuIo(top, 'write -P 0x44 50M 4k')
    const second = await backup(world, '--image', top, '--source', 'web1')
    assert.equal(second.statistics['chunksSent']! <= 5, true, `${second.statistics['chunksSent']!} chunks: the one, and what leads to it`)
    await assertSame(world, second.id, top, 'qcow2')
    assert.deepEqual(privateDisks(world), [], 'no server and no socket is left')
  })
  test('other formats are read by their names, several at once, each under a name of its own', async (t) => {
    const world = await openWorld()
    const raw = rawImage(world, 'data.raw', 40 * MiB)
    const images = ['vmdk', 'vdi', 'vhdx', 'qed'].map((format) => {
      const path = world.path(`disk-${format}.${format}`)
      tool('qemu-img', ['convert', '-f', 'raw', '-O', format, raw, path])
      return { format, path }
    })
    const saved = await backup(world, ...images.flatMap(({ path, format }) => ['--image', `${format}=${path}`]), '--image', raw, '--source', 'many')
    assert.deepEqual(saved.disks.map(({ name }) => name), ['vmdk', 'vdi', 'vhdx', 'qed', 'data.raw'])
    for (const { format, path } of images) await assertSame(world, saved.id, path, format, format)
    await assertSame(world, saved.id, raw, 'raw', 'data.raw')
    assert.ok(saved.statistics['bytesSent']! < 6 * MiB, 'they are the same disk five times, stored once')
    const twice = await world.run(['backup', '--image', images[0]!.path, '--image', images[0]!.path])
    assert.deepEqual([twice.code, /name them/.test(twice.stderr)], [2, true])
  })
  test('content is never believed: a raw disk with a qcow2 header is refused unless somebody says what it is', async (t) => {
    const world = await openWorld()
    const secret = world.path('secret')
    writeFileSync(secret, 'secret'.repeat(10_000))
    const disk = world.path('disk')
    tool('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', secret, '-F', 'raw', disk])
    const refused = await world.run(['backup', '--image', disk])
    assert.equal(refused.code, 1)
    assert.match(refused.stderr, /begins like a qcow2 image.*--format qcow2.*--format raw/)
    const saved = await backup(world, '--image', disk, '--format', 'raw', '--source', 's')
    await world.ok(['restore', saved.id, '--to-file', world.path('back')])
    assert.ok(readFileSync(world.path('back')).equals(readFileSync(disk)), 'raw: its bytes, and nothing of the secret')
  })
  test('an image that names files which nobody vouches for is refused: no format, another protocol, data elsewhere', async (t) => {
    const world = await openWorld()
    const base = rawImage(world, 'base.raw', MiB)
    for (const [name, make, why] of [
      ['unsaid', (path: string) => {
        tool('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', path])
        // The header extension with the format is made one that nobody knows, as in images of before there was one.
        const bytes = readFileSync(path)
        const at = bytes.indexOf(Buffer.from([0xe2, 0x79, 0x2a, 0xca]))
        assert.ok(at > 0)
        bytes.writeUInt32BE(0x12345678, at)
        writeFileSync(path, bytes)
      }, /does not say of which format/],
      ['protocol', (path: string) => { tool('qemu-img', ['create', '-q', '-u', '-f', 'qcow2', '-b', 'nbd://localhost:1/x', '-F', 'raw', path, '1M']) }, /is no plain file/],
      ['json', (path: string) => { tool('qemu-img', ['create', '-q', '-u', '-f', 'qcow2', '-b', `json:{"driver":"raw","file":{"driver":"file","filename":"${base}"}}`, '-F', 'raw', path, '1M']) }, /is no plain file/],
      ['elsewhere', (path: string) => { tool('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', `data_file=${world.path('d.raw')},data_file_raw=on`, path, '1M']) }, /its data is in another file/],
    ] as const) {
      const path = world.path(`${name}.qcow2`)
      make(path)
      const { code, stderr } = await world.run(['backup', '--image', path])
      assert.equal(code, 1, name)
      assert.match(stderr, why, name)
    }
  })
  test('an image that a machine has open is refused, raw or not', async (t) => {
    const world = await openWorld()
    const raw = rawImage(world, 'disk.raw', 4 * MiB)
    const qcow2 = world.path('disk.qcow2')
    tool('qemu-img', ['create', '-q', '-f', 'qcow2', qcow2, '4M'])
    for (const [path, format] of [[raw, 'raw'], [qcow2, 'qcow2']] as const) {
      await startServer(t, 'qemu-nbd', ['-t', '-f', format, '-k', world.path(`${format}.sock`), path], world.path(`${format}.sock`))
      const { code, stderr } = await world.run(['backup', '--image', path])
      assert.equal(code, 1)
      assert.match(stderr, /is in use by a machine that runs/)
      assert.match(stderr, /--vm/)
    }
  })
  test('a backup whose private server is killed fails at once and says so', async (t) => {
    const world = await openWorld()
    const image = world.path('disk.qcow2')
    tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', rawImage(world, 'disk.raw', 64 * MiB), image])
    const failing = world.run(['backup', '--image', image, '--limit-read', '100K', '--source', 'slow'])
    let pid: string | undefined
    while (pid === undefined) {
      await new Promise((resolve) => setTimeout(resolve, 20))
      pid = readdirSync('/proc').find((one) => /^\d+$/.test(one) && commandOf(one).startsWith('qemu-nbd\0') && commandOf(one).includes(image))
    }
    await new Promise((resolve) => setTimeout(resolve, 700)) // it serves by now, or fails as it should all the same
    process.kill(Number(pid), 'SIGKILL')
    const { code, stderr } = await failing
    assert.equal(code, 1)
    assert.match(stderr, /qemu-nbd ended \(SIGKILL\) instead of serving .*disk\.qcow2/)
  })
  test('the private server ends with a backup that is killed or interrupted', async (t) => {
    const world = await openWorld()
    const image = world.path('disk.qcow2')
    tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', rawImage(world, 'disk.raw', 64 * MiB), image])
    for (const signal of ['SIGKILL', 'SIGINT'] as const) {
      const child = world.start(['backup', '--image', image, '--limit-read', '100K', '--nice', '7', '--source', 'slow'])
      const running = (): boolean => readdirSync('/proc').some((pid) => /^\d+$/.test(pid) && commandOf(pid).startsWith('qemu-nbd\0') && commandOf(pid).includes(image))
      while (!running()) { assert.equal(child.exitCode, null); await new Promise((resolve) => setTimeout(resolve, 20)) }
      // Its first reads are limited: it cannot have come to its end, and after them it holds its server.
      await new Promise((resolve) => setTimeout(resolve, 700))
      assert.equal(readFileSync(`/proc/${child.pid!}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ')[16], '7')
      const ended = new Promise((resolve) => child.once('exit', resolve))
      child.kill(signal)
      await ended
      for (let attempt = 0; running(); attempt++) {
        assert.ok(attempt < 400, 'qemu-nbd is gone')
        await new Promise((resolve) => setTimeout(resolve, 25))
      }
      if (signal === 'SIGINT') assert.equal(privateDisks(world).length, 1, 'the killed one left its empty directory, the interrupted one nothing')
    }
  })
})

describe('an LVM volume', () => {
  const openWorld = sharedWorld()
  /** lvs, lvcreate and lvremove over a folder: a volume is a file, its tags are in another. Device-mapper is not needed for what is ours in it. */
  function fakeLvm(world: RoostWorld): { readonly environment: Record<string, string>; readonly group: string } {
    const bin = world.path('bin')
    const group = world.path('vg0')
    mkdirSync(bin)
    mkdirSync(group)
    const script = (name: string, text: string): void => { writeFileSync(join(bin, name), `#!/bin/bash\necho "${name} $*" >> ${world.path('lvm.log')}\nset -e\ncd ${group}\n${text}`); chmodSync(join(bin, name), 0o755) }
    script('lvs', `tag=""; names=""
for word in "$@"; do case "$word" in lv_tags=*) tag=1;; vg0) names="$(ls | grep -v tags$ || true)";; ${group}/*|vg0/*) names="\${word##*/}";; esac; done
[ -n "$names" ] || [ -n "$tag" ] || { echo "  Failed to find logical volume" >&2; exit 5; }
first=1; echo '{"report":[{"lv":['
for name in $names; do [ -e "$name" ] || { echo "  Failed to find logical volume \\"$name\\"" >&2; exit 5; }
  tags="$(cat $name.tags 2>/dev/null || true)"; if [ -n "$tag" ] && [[ "$tags" != *roost.snapshot* ]]; then continue; fi
  [ $first = 1 ] || echo ,; first=0
  echo "{\\"vg_name\\":\\"vg0\\",\\"lv_name\\":\\"$name\\",\\"lv_path\\":\\"${group}/$name\\",\\"pool_lv\\":\\"\\",\\"lv_size\\":\\"$(stat -c %s $name)\\",\\"lv_tags\\":\\"$tags\\"}"
done; echo ']}]}'`)
    script('lvcreate', `tags=""; while [ $# -gt 0 ]; do case "$1" in --name) name="$2"; shift;; --addtag) tags="$tags,$2"; shift;; --permission|--size) shift;; --snapshot) ;; *) origin="\${1##*/}";; esac; shift; done
[ ! -e fail-create ] || { echo "  insufficient free space" >&2; exit 5; }
cp "$origin" "$name"; echo "\${tags#,}" > "$name.tags"`)
    script('lvremove', `for word in "$@"; do case "$word" in vg0/*) name="\${word##*/}";; esac; done; rm "$name" "$name.tags"`)
    return { environment: { PATH: `${bin}:${process.env['PATH'] ?? ''}` }, group }
  }
  const volumes = (group: string): string[] => readdirSync(group).sort()

  test('is read from a snapshot that is removed afterwards, also when the backup fails; what a killed run left goes with the next', async (t) => {
    const world = await openWorld()
    const { environment, group } = fakeLvm(world)
    writeFileSync(join(group, 'web1'), noise(2 * MiB, 3))
    const args = ['backup', '--image', join(group, 'web1'), '--lvm-snapshot', '--source', 'lv', '--json'] as const
    await world.ok(args, { environment })
    assert.deepEqual(volumes(group), ['web1'])
    const log = readFileSync(world.path('lvm.log'), 'utf8')
    assert.match(log, /lvcreate --snapshot --name roost-web1-\d+ --permission r --addtag roost\.snapshot --addtag roost\.host\.\S+ --addtag roost\.run\.\S+ --size 256m vg0\/web1/)
    await world.ok(['restore', 'latest', '--to-file', world.path('back')])
    assert.ok(readFileSync(world.path('back')).equals(readFileSync(join(group, 'web1'))))

    // Of a run that was killed: a process that there is no more. Of one that runs: ours here.
    const [, host] = /--addtag (roost\.host\.\S+)/.exec(log)!
    const start = readFileSync(`/proc/${process.pid}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ')[19]!
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
    for (const [name, tags] of [['roost-web1-1', `roost.snapshot,${host!},roost.run.${process.pid}.${boot}.1`], ['roost-web1-2', `roost.snapshot,${host!},roost.run.${process.pid}.${boot}.${start}`],
      ['roost-web1-3', `roost.snapshot,roost.host.elsewhere,roost.run.1.x.1`], ['roost-web1-4', 'roost.snapshot']] as const) {
      writeFileSync(join(group, name), '')
      writeFileSync(join(group, `${name}.tags`), tags)
    }
    const failed = await world.run([...args, '--chunk-size', '64K'], { environment: { ...environment, ROOST_REPOSITORY: `${world.url}/none` } })
    assert.notEqual(failed.code, 0)
    assert.deepEqual(volumes(group).filter((name) => !name.endsWith('.tags')), ['roost-web1-2', 'roost-web1-3', 'roost-web1-4', 'web1'], 'only what is ours and left is removed')

    writeFileSync(join(group, 'fail-create'), '')
    const full = await world.run(args, { environment })
    assert.deepEqual([full.code, /insufficient free space/.test(full.stdout + full.stderr)], [1, true])
    const none = await world.run(['backup', '--image', world.path('lvm.log'), '--lvm-snapshot'], { environment })
    assert.match(none.stderr, /is no logical volume/)
    assert.ok(!existsSync(join(group, 'nothing')))
  })
})
