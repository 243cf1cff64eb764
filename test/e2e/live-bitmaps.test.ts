/** When QEMU's bitmap of changes is believed and when not: restarts, moved devices, other repositories, gaps in the record. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { guestImages } from '../support/guest-lab.js'
import { openScene } from '../support/live-scene.js'

const { directory: images, skip } = guestImages()

describe('the bitmap of changes', { skip }, () => {
  test('of a qcow2 goes on over an orderly restart of QEMU; of a raw disk it is gone, and that is said', async (t) => {
    const scene = await openScene(t, { images, formats: ['qcow2', 'raw'] })
    await scene.backUp()
    await scene.guest.writesOn()
    await scene.guest.quit()
    await scene.boot(t)
    const next = await scene.backUp()
    assert.deepEqual(next.moment.disks.map(({ name, read }) => [name, read]), [['vda', 'incremental'], ['vdb', 'full']])
    assert.match(next.moment.disks[1]!.because!, /QEMU was restarted, and this format cannot keep one/)
    await scene.check(next.id)
    await scene.check(next.id, 'vdb', 0)
    await scene.assertNextIsRight('incremental')
  })
  test('is not looked for where the disk is no more, or has another size, or the machine is another', async (t) => {
    const scene = await openScene(t, { images, uuid: '11111111-2222-3333-4444-555555555555' })
    await scene.backUp()
    const overlay = scene.world.path('vm', 'overlay.qcow2')
    await scene.guest.command('blockdev-snapshot-sync', { 'node-name': 'node0', 'snapshot-file': overlay, 'snapshot-node-name': 'overlay0' })
    await scene.guest.writesOn()
    const result = await scene.world.json(scene.args())
    const moment = result.find(({ type }) => type === 'moment') as unknown as { disks: { read: string; because: string }[] }
    assert.equal(moment.disks[0]!.read, 'full')
    assert.match(moment.disks[0]!.because, /moved to another block node/)
    const id = result.find(({ type }) => type === 'snapshot')!['id'] as string
    await scene.check(id)
    assert.deepEqual((await scene.guest.traces()).devices, ['overlay0'])
    await scene.guest.command('block_resize', { 'node-name': 'overlay0', size: 300 * 1024 * 1024 })
    const grown = (await scene.world.json(scene.args())).find(({ type }) => type === 'moment') as unknown as typeof moment
    assert.match(grown.disks[0]!.because, /size changed from 268435456 to 314572800 bytes/)
  })
  test('of one repository is no leftover to another, and each reads only what changed', async (t) => {
    const scene = await openScene(t, { images })
    const second = { environment: { ROOST_REPOSITORY: `${scene.world.url}/second` } }
    await scene.world.ok(['repo', 'create', 'second'], second)
    const readIn = async (options: object): Promise<string> => {
      const lines = await scene.world.json(scene.args(), options)
      return (lines.find(({ type }) => type === 'moment') as unknown as { disks: { read: string }[] }).disks[0]!.read
    }
    assert.deepEqual([await readIn({}), await readIn(second), await readIn({}), await readIn(second), await readIn({})], ['full', 'full', 'incremental', 'incremental', 'incremental'])
    assert.equal((await scene.guest.traces()).bitmaps.length, 2)
    const result = await scene.world.run(scene.args('--source', 'another', '--verbose'))
    assert.match(result.stderr, /2 bitmaps of other sources or repositories are left alone/)
  })
  test('that has a gap is found out by the audit, reported, and not believed', async (t) => {
    const scene = await openScene(t, { images })
    const first = await scene.backUp()
    const [name] = await scene.bitmapsOf(first.id)
    await scene.guest.command('block-dirty-bitmap-disable', { node: 'node0', name })
    await scene.guest.writesOn()
    assert.match((await scene.backUp()).moment.disks[0]!.because!, /somebody stopped the bitmap/)

    const [again] = (await scene.guest.traces()).bitmaps
    await scene.guest.command('block-dirty-bitmap-disable', { node: 'node0', name: again })
    await scene.guest.writesOn()
    await scene.guest.writesOn()
    await scene.guest.command('block-dirty-bitmap-enable', { node: 'node0', name: again })
    const written = Number(await scene.guest.shell('wc -l < /data/manifest'))
    const result = await scene.world.run([...scene.args('--audit', '100'), '--json'])
    assert.equal(result.code, 3, `a lying map is a problem to be looked at: ${result.stdout}`)
    assert.match(result.stdout, /"map-wrong"/)
    const id = (JSON.parse(result.stdout.split('\n').find((line) => line.includes('"type":"snapshot"'))!) as { id: string }).id
    assert.ok((await scene.check(id)).files >= written, 'the snapshot is right all the same')
    const next = await scene.backUp()
    assert.match(next.moment.disks[0]!.because!, /the earlier snapshot has problems|the last audit/)
  })
  test('of a machine that is paused serves as well; it stays paused', async (t) => {
    const scene = await openScene(t, { images })
    await scene.backUp()
    await scene.guest.writesOn()
    await scene.guest.command('stop')
    const result = await scene.world.json(scene.args())
    const moment = result.find(({ type }) => type === 'moment') as unknown as { consistency: string; disks: { read: string }[] }
    assert.deepEqual([moment.consistency, moment.disks[0]!.read], ['stopped', 'incremental'])
    assert.equal((await scene.guest.command('query-status') as { status: string }).status, 'paused')
    await scene.guest.command('cont')
    await scene.guest.writesOn()
    await scene.check(result.find(({ type }) => type === 'snapshot')!['id'] as string)
    await scene.assertNextIsRight('incremental')
  })
})
