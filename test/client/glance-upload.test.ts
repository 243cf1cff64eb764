/** Disks as images: what Glance gets is what the snapshot holds, and nothing stays of what failed. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { ImageTreeWriter } from '../../client/image/image-tree.js'
import { openSnapshot, type OpenSnapshot } from '../../client/browse/open-snapshot.js'
import { readMachine } from '../../client/machine/snapshot-disks.js'
import { uploadDisk } from '../../client/openstack/disk-upload.js'
import { uploadImage, type ImageUpload } from '../../client/openstack/glance-upload.js'
import { imageProperties } from '../../client/openstack/image-properties.js'
import { ENTRY_TYPES } from '../../client/tree/entry.js'
import type { MachineDescription } from '../../client/machine/machine-description.js'
import { systemClock, type Clock } from '../../src/core/clock.js'
import type { Cloud } from '../../src/openstack/cloud.js'
import { CloudError, type CloudErrorCode } from '../../src/openstack/cloud-error.js'
import { fakeCloud, withImages } from '../support/fake-cloud.js'
import { MemoryRepository } from '../support/memory-repository.js'
import { noise } from '../support/odd-tree.js'
import { hasTool } from '../support/run-roost.js'
import { TreeBuilder } from '../support/tree-builder.js'

const KiB = 1024
const MiB = 1024 * KiB
const signal = new AbortController().signal
const fails = (code: CloudErrorCode, words: RegExp) => (error: unknown): boolean => error instanceof CloudError && error.code === code && words.test(error.message)

/** The disk of the snapshot, as an image "n". */
async function upload(cloud: Cloud, { open }: { open(): Promise<OpenSnapshot> }, clock: Clock = systemClock): Promise<unknown> {
  const opened = await open()
  return await uploadDisk(cloud, opened, (await readMachine(opened, signal)).disks[0]!, { name: 'n', format: 'raw', properties: {} }, { clock }, signal)
}
/** An image of 128 KiB chunks, some of them there. */
async function imageOf(imageBytes: number, slots: readonly number[]): Promise<{ repository: MemoryRepository; whole: Buffer; open(): Promise<OpenSnapshot> }> {
  const repository = new MemoryRepository(), tree = new TreeBuilder(repository), chunkBytes = 128 * KiB
  const whole = Buffer.alloc(imageBytes)
  const writer = new ImageTreeWriter(tree.sink, { imageBytes, chunkBytes })
  for (const slot of slots) {
    const bytes = noise(Math.min(chunkBytes, imageBytes - slot * chunkBytes), slot)
    bytes.copy(whole, slot * chunkBytes)
    await writer.add(slot, tree.data(bytes))
  }
  await tree.snapshot([tree.entry('disk', ENTRY_TYPES.image, { content: await writer.finish() })])
  return { repository, whole, open: () => openSnapshot(repository, { snapshot: 'latest' }, { signal }) }
}
const bytesUpload = (bytes: Buffer, more: Partial<ImageUpload> = {}): ImageUpload => ({ name: 'n', diskFormat: 'raw', bytes: bytes.byteLength, minDiskGiB: 1, properties: {},
  write: (output) => new Promise((resolve, reject) => { output.once('error', reject).write(bytes, () => { resolve(undefined) }) }), ...more })

describe('an image in Glance', () => {
  test('is the disk byte by byte, with its properties, and held against Glance\'s digest', async (t) => {
    const { fake, cloud } = await fakeCloud(t)
    const images = withImages(fake)
    const { open, whole } = await imageOf(5 * MiB + 512, [0, 1, 7, 40])
    const opened = await open()
    let progress = 0
    const image = await uploadDisk(cloud, opened, (await readMachine(opened, signal)).disks[0]!, { name: 'web1', format: 'raw', properties: { hw_disk_bus: 'scsi' } },
      { clock: systemClock, progress: (bytes) => { progress = bytes } }, signal)
    const kept = images.get(image.id)!
    assert.ok(kept.bytes.equals(whole))
    assert.deepEqual([image.isVerified, image.bytes, progress], [true, whole.byteLength, whole.byteLength])
    const { name, disk_format: format, container_format: container, visibility, min_disk: disk, hw_disk_bus: bus } = kept.image
    assert.deepEqual([name, format, container, visibility, disk, bus], ['web1', 'raw', 'bare', 'private', 1, 'scsi'])
  })
  test('is qcow2 without holes when that is asked for, and of the same content', { skip: hasTool('qemu-img') ? false : 'qemu-img is not installed' }, async (t) => {
    const { fake, cloud } = await fakeCloud(t)
    const images = withImages(fake)
    const directory = mkdtempSync(join(tmpdir(), 'roost-glance-'))
    t.after(() => { rmSync(directory, { recursive: true, force: true }) })
    // Nothing at all; one chunk at the very end, not a whole cluster; past one L2 table (512 MiB), and a hole between.
    for (const [imageBytes, slots] of [[MiB, []], [3 * MiB + 4608, [24]], [1100 * MiB, [0, 1, 5, 4095, 4096, 8700]]] as const) {
      const { open, whole } = await imageOf(imageBytes, slots)
      const opened = await open()
      const image = await uploadDisk(cloud, opened, (await readMachine(opened, signal)).disks[0]!, { name: 'web1', format: 'qcow2', properties: {} }, { clock: systemClock }, signal)
      const { bytes } = images.get(image.id)!
      assert.equal(bytes.byteLength, image.bytes)
      assert.ok(bytes.byteLength < 2 * MiB)
      writeFileSync(join(directory, 'a.qcow2'), bytes)
      writeFileSync(join(directory, 'a.raw'), whole)
      execFileSync('qemu-img', ['check', '-f', 'qcow2', join(directory, 'a.qcow2')])
      execFileSync('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', join(directory, 'a.qcow2'), join(directory, 'a.raw')])
    }
  })
  test('that Glance has otherwise is damaged, and deleted', async (t) => {
    const { fake, cloud } = await fakeCloud(t)
    for (const [lie, words] of [[{ os_hash_value: 'f'.repeat(128) }, /SHA-512/], [{ size: 17 }, /17 bytes where 1000/]] as const) {
      const images = withImages(fake, (image) => ({ ...image, ...lie }))
      await assert.rejects(uploadImage(cloud, bytesUpload(noise(1000, 7)), { clock: systemClock }, signal), fails('IMAGE_DAMAGED', words))
      assert.equal(images.size, 0)
    }
  })
  test('of another kind of digest is compared by length, and said to be', async (t) => {
    const { fake, cloud } = await fakeCloud(t)
    withImages(fake, (image) => ({ ...image, os_hash_algo: 'sha3_512' }))
    const warnings: string[] = []
    const image = await uploadImage(cloud, bytesUpload(noise(1000, 7)), { clock: systemClock, warn: (text) => { warnings.push(text) } }, signal)
    assert.deepEqual([image.isVerified, warnings.length], [false, 1])
  })
  test('that is refused in the middle is deleted, and the refusal told', async (t) => {
    const { fake, cloud } = await fakeCloud(t)
    const images = withImages(fake)
    const post = fake.answers.get('POST /image/images')!
    fake.on('POST /image/images', async (asked, request, response) => {
      const answer = await post(asked, request, response)
      fake.on('PUT /image/images/image-1/file', () => ({ status: 413, text: '<h1>Quota exceeded</h1>', headers: { connection: 'close' } }))
      return answer
    })
    await assert.rejects(upload(cloud, await imageOf(20 * MiB, Array.from({ length: 160 }, (_, i) => i))),
      (error: unknown) => error instanceof CloudError && ['CLOUD_REFUSED', 'CLOUD_UNAVAILABLE'].includes(error.code))
    assert.equal(images.size, 0)
  })
  test('of a snapshot that is damaged, or whose upload is interrupted, is deleted', async (t) => {
    const { fake, cloud } = await fakeCloud(t)
    const images = withImages(fake)
    const damaged = await imageOf(MiB, [0, 1, 2])
    const [id] = [...damaged.repository.chunks].find(([, chunk]) => chunk.bytes.byteLength === 128 * KiB)!
    damaged.repository.chunks.get(id)!.lost = true
    await assert.rejects(upload(cloud, damaged), { code: 'CHUNK_MISSING' })
    assert.equal(images.size, 0)

    const abort = new AbortController()
    const endless: ImageUpload = bytesUpload(noise(1000, 7), { bytes: 1e9, write: (output, until) => new Promise((_resolve, reject) => {
      until.addEventListener('abort', () => { reject(until.reason as Error) })
      output.write(noise(1000, 7))
      abort.abort(new DOMException('Interrupted.', 'AbortError'))
    }) })
    await assert.rejects(uploadImage(cloud, endless, { clock: systemClock }, abort.signal), { name: 'AbortError' })
    assert.equal(images.size, 0)
  })
  test('whose service takes no more bytes is given up after a while', async (t) => {
    const { fake, cloud } = await fakeCloud(t)
    const images = withImages(fake)
    const post = fake.answers.get('POST /image/images')!
    fake.on('POST /image/images', async (asked, request, response) => {
      const answer = await post(asked, request, response)
      fake.on('PUT /image/images/image-1/file', () => undefined) // reads nothing
      return answer
    })
    let ms = 0
    // Time passes while the upload stands still; each look lets what is under way go on.
    const clock: Clock = { now: () => ms, monotonicMs: () => ms, sleep: async (span) => { ms += span; await new Promise((resolve) => setTimeout(resolve, 5)) } }
    await assert.rejects(upload(cloud, await imageOf(64 * MiB, Array.from({ length: 512 }, (_, i) => i)), clock), fails('CLOUD_UNAVAILABLE', /no byte of the image/))
    assert.equal(images.size, 0)
  })
  test('takes no property that is a member of its own', async (t) => {
    const { fake, cloud } = await fakeCloud(t)
    await assert.rejects(uploadImage(cloud, bytesUpload(noise(10, 7), { properties: { visibility: 'public' } }), { clock: systemClock }, signal), fails('CLOUD_REFUSED', /"visibility"/))
    assert.equal(fake.asked.length, 0)
  })
})

test('properties: recorded ones win over what follows from QEMU, wishes over both; nothing of the old image\'s own life comes along', () => {
  const nova = { image: { id: 'i', properties: { hw_disk_bus: 'scsi', os_type: 'linux', os_hash_value: 'x', os_glance_failed_import: 'y', owner_specified: 'z', base_image_ref: 'b', size: 5,
    instance_uuid: 'u', 'trait:HW_CPU_X86_VMX': 'required', img_signature: 's', architecture: 'x86_64', stores: 'a' } } }
  const qemu = { machineType: 'pc-q35-7.2', firmware: 'uefi', disks: [{ device: 'virtio-blk-pci' }], networkCards: [{ model: 'virtio-net-pci' }] }
  assert.deepEqual(imageProperties({ nova, qemu } as unknown as MachineDescription, { os_type: '', mine: '1' }),
    { hw_disk_bus: 'scsi', hw_vif_model: 'virtio', hw_firmware_type: 'uefi', hw_machine_type: 'q35', 'trait:HW_CPU_X86_VMX': 'required', architecture: 'x86_64', mine: '1' })
  assert.deepEqual(imageProperties(undefined), {})
})
