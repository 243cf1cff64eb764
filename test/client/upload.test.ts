/** Bug class: bytes that reach the server under another chunk's id, or not at all, because an arena moved or was reused. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hasClientCode } from '../../src/protocol/client-errors.js'
import type { RepositoryClient } from '../../client/repository-client.js'
import type { Arena } from '../../client/upload/arena.js'
import { ArenaChunkSink } from '../../client/upload/arena-chunk-sink.js'
import type { ChunkSink } from '../../client/upload/chunk-sink.js'
import { Uploader, type UploaderOptions } from '../../client/upload/uploader.js'
import { WireChoice } from '../../client/upload/wire-choice.js'
import { FRAME_VERDICTS, parseFrames, WIRE_CODECS, type FrameVerdict } from '../../src/core/frames.js'
import { CHUNK_KINDS, chunkKey, parseSessionId, type ChunkId } from '../../src/core/ids.js'
import { MiB } from '../../src/core/limits.js'
import type { WireLimits } from '../../src/core/messages.js'
import { ArenaLoop, seededBytes } from '../support/arena-loop.js'
import { instantClock } from '../support/instant-clock.js'
import { MemoryRepository } from '../support/memory-repository.js'

interface World { repository: MemoryRepository; sink: ArenaChunkSink; loop: ArenaLoop; uploader: Uploader }

async function open(options: { limits?: Partial<WireLimits>; client?: Partial<Pick<RepositoryClient, 'findMissing' | 'putChunks'>>;
  wire?: UploaderOptions['wire']; repository?: MemoryRepository; onArena?: (arena: Arena, upload: () => Promise<void>) => Promise<void> } = {}): Promise<World> {
  const repository = options.repository ?? new MemoryRepository(options.limits === undefined ? {} : { limits: options.limits })
  const session = await repository.openSession({ kind: 'push', source: 's', mode: 'files', parent: null })
  const client = {
    findMissing: options.client?.findMissing ?? repository.findMissing.bind(repository),
    putChunks: options.client?.putChunks ?? repository.putChunks.bind(repository),
  }
  const uploader = new Uploader({
    client, session: parseSessionId(session.sessionId), dedupKey: repository.dedupKey, limits: session.limits, wireCodecs: session.wireCodecs,
    wire: options.wire ?? 'raw', clock: instantClock(), signal: new AbortController().signal,
  })
  const loop = new ArenaLoop((arena) => options.onArena === undefined ? uploader.upload(arena) : options.onArena(arena, () => uploader.upload(arena)))
  return { repository, sink: new ArenaChunkSink(repository.dedupKey, loop), loop, uploader }
}
/** Plays a file of these bytes as a source does: reads ahead, takes chunks of `cut` bytes, now and then writes a node. */
async function playFile(sink: ChunkSink, bytes: Buffer, cut: number, nodeEvery = 0): Promise<ChunkId[]> {
  const ids: ChunkId[] = []
  for (let read = 0, held = 0, n = 0; read < bytes.byteLength || held > 0; n++) {
    const space = await sink.space(cut, held)
    const copied = bytes.copy(space, held, read, read + space.byteLength - held)
    read += copied
    held += copied
    const length = Math.min(cut, held)
    ids.push(sink.take(length, CHUNK_KINDS.data))
    held -= length
    if (nodeEvery > 0 && n % nodeEvery === 0) ids.push(await sink.put(seededBytes(5_000, n + bytes.byteLength), CHUNK_KINDS.node))
  }
  return ids
}
const stored = (world: World, id: ChunkId): Buffer => world.repository.chunks.get(chunkKey(id))!.bytes

test('every chunk of large and small files arrives under its own id, through arena changes and nodes in between', async () => {
  const world = await open()
  const expected: { ids: ChunkId[]; bytes: Buffer }[] = []
  for (let i = 0; i < 60; i++) {
    const bytes = seededBytes(i % 5 === 0 ? 1_500_000 + i : 3_000 + i * 17, i)
    expected.push({ ids: await playFile(world.sink, bytes, 190_001), bytes })
  }
  const large = seededBytes(9 * MiB, 99)
  expected.push({ ids: await playFile(world.sink, large, 400_000, 3), bytes: Buffer.alloc(0) })
  world.sink.finish()
  await world.loop.settled()
  assert.ok(world.loop.sent >= 4)
  for (const { ids, bytes } of expected.slice(0, -1)) assert.deepEqual(Buffer.concat(ids.map((id) => stored(world, id))), bytes)
  const data = expected.at(-1)!.ids.filter((id) => world.repository.chunks.get(chunkKey(id))!.kind === CHUNK_KINDS.data)
  assert.ok(Buffer.concat(data.map((id) => stored(world, id))).equals(large))
})

test('repeated and inherited chunks are not queued, and their space is used again', async () => {
  const world = await open()
  const one = seededBytes(300_000, 1)
  const [id] = await playFile(world.sink, one, 300_000)
  for (let i = 0; i < 50; i++) await playFile(world.sink, one, 300_000)
  const other = seededBytes(200_000, 2)
  const otherId = world.repository.put(other, CHUNK_KINDS.data)
  const space = await world.sink.space(200_000)
  other.copy(space)
  assert.deepEqual(world.sink.take(200_000, CHUNK_KINDS.data, otherId), otherId)
  world.sink.finish()
  await world.loop.settled()
  assert.equal(world.loop.sent, 1)
  assert.equal(world.repository.counts.idsAsked, 1)
  assert.deepEqual(stored(world, id!), one)
  assert.equal(world.sink.chunks, 52)
})

test('kept bytes move with their file when repeated chunks before them are dropped at the end of an arena', async () => {
  const world = await open()
  const block = seededBytes(1 * MiB, 3)
  const tail = seededBytes(700_000, 4)
  await playFile(world.sink, block, 1 * MiB)
  const ids = await playFile(world.sink, Buffer.concat([...Array<Buffer>(20).fill(block), tail]), 1 * MiB)
  world.sink.finish()
  await world.loop.settled()
  assert.deepEqual(stored(world, ids.at(-1)!), tail)
  assert.equal(world.repository.counts.framesSent, 2)
})

test('a source waits for space while every arena is on its way', async () => {
  let release = (): void => undefined
  const gate = new Promise<void>((resolve) => { release = resolve })
  const world = await open({ onArena: async (_arena, upload) => { await gate; await upload() } })
  const playing = playFile(world.sink, seededBytes(30 * MiB, 5), 1 * MiB)
  await new Promise(setImmediate)
  assert.equal(world.loop.sent, 2)
  release()
  await playing
  world.sink.finish()
  await world.loop.settled()
  assert.equal(world.repository.chunks.size, 30)
})

test('neighbouring small files leave as one slice', async () => {
  const partCounts: number[] = []
  const repository = new MemoryRepository()
  const world = await open({ repository, client: { putChunks: (session, parts, frames, call) => {
    partCounts.push(parts.length)
    return repository.putChunks(session, parts, frames, call)
  } } })
  for (let i = 0; i < 500; i++) await playFile(world.sink, seededBytes(1_000 + i, i), 64_000)
  world.sink.finish()
  await world.loop.settled()
  assert.deepEqual(partCounts, [1])
  assert.equal(repository.chunks.size, 500)
})

test('only what is missing is sent, and bodies keep to the limits that the server announced', async () => {
  const world = await open({ limits: { bodyBytesMax: 200_000, bodyFramesMax: 7, missingIdsMax: 10 } })
  const files = Array.from({ length: 60 }, (_, i) => seededBytes(9_000 + i, i))
  for (const bytes of files.slice(0, 20)) world.repository.put(bytes, CHUNK_KINDS.data)
  for (const bytes of files) await playFile(world.sink, bytes, 64_000)
  await playFile(world.sink, seededBytes(2 * MiB, 7), 64_000)
  world.sink.finish()
  await world.loop.settled() // the repository in memory refuses what is over its limits
  assert.equal(world.repository.counts.framesSent, 40 + 33)
  assert.equal(world.uploader.counters.chunksSent, 73)
  assert.equal(world.uploader.counters.chunksAsked, 93)
})

test('zstd on the wire shrinks what can be shrunk and leaves the rest raw', async () => {
  const codecs: number[] = []
  const repository = new MemoryRepository()
  const world = await open({ wire: 'zstd', repository, client: { putChunks: (session, parts, frames, call) => {
    codecs.push(...parseFrames(Buffer.concat(parts)).codecs.subarray(0, frames))
    return repository.putChunks(session, parts, frames, call)
  } } })
  const text = Buffer.alloc(100_000, 'the same words again and again. ')
  const ids = [...await playFile(world.sink, text, 200_000), ...await playFile(world.sink, seededBytes(50_000, 1), 64_000),
    ...await playFile(world.sink, Buffer.from('tiny'), 64_000)]
  world.sink.finish()
  await world.loop.settled()
  assert.deepEqual(codecs, [WIRE_CODECS.zstd, WIRE_CODECS.raw, WIRE_CODECS.raw])
  assert.deepEqual(stored(world, ids[0]!), text)
  assert.ok(world.uploader.counters.bytesOnWire < 60_000)
  assert.equal(world.uploader.counters.bytesSent, 150_004)
})

/** The first answers for a frame come from `script`; later ones from the repository. */
async function playVerdicts(script: readonly FrameVerdict[], corrupt = false): Promise<World> {
  const repository = new MemoryRepository()
  const left = [...script]
  const world = await open({ repository, client: { putChunks: async (session, parts, frames, call) => {
    const next = left.shift()
    return next === undefined ? await repository.putChunks(session, parts, frames, call) : [next]
  } }, onArena: async (arena, upload) => { if (corrupt) arena.payload[100]! ^= 1; await upload() } })
  await playFile(world.sink, seededBytes(10_000, 1), 64_000)
  world.sink.finish()
  return world
}
test('a frame that the server could not decide is sent again, several times', async () => {
  const world = await playVerdicts([FRAME_VERDICTS.retry, FRAME_VERDICTS.retry, FRAME_VERDICTS.retry])
  await world.loop.settled()
  assert.equal(world.uploader.counters.framesRepeated, 3)
  assert.equal(world.repository.chunks.size, 1)
})
test('a frame that was damaged on the way is sent again once; twice is an error', async () => {
  const once = await playVerdicts([FRAME_VERDICTS.digestMismatch])
  await once.loop.settled()
  assert.equal(once.repository.chunks.size, 1)
  const twice = await playVerdicts([FRAME_VERDICTS.digestMismatch, FRAME_VERDICTS.undecodable])
  await assert.rejects(twice.loop.settled(), (error) => hasClientCode(error, 'TRANSFER_DAMAGED') && /on the way/.test(error.message))
})
test('damage in this machine\'s own memory is named as such, and nothing wrong is stored', async () => {
  const world = await playVerdicts([], true)
  await assert.rejects(world.loop.settled(), (error) => hasClientCode(error, 'TRANSFER_DAMAGED') && /memory of this machine/.test(error.message))
  assert.equal(world.repository.chunks.size, 0)
})

test('auto stays raw on a fast link, turns to zstd on a slow one, and keeps what proved faster between', () => {
  const play = (rawRate: number, zstdRate: number): number => {
    const choice = new WireChoice('auto', true)
    for (let i = 0, nowMs = 0; i < 40; i++) {
      choice.begin(nowMs)
      nowMs += 8 / (choice.codec === WIRE_CODECS.raw ? rawRate : zstdRate) * 1000
      choice.end(8 * MiB, nowMs)
    }
    return choice.codec
  }
  assert.equal(play(800, 100), WIRE_CODECS.raw)
  assert.equal(play(10, 25), WIRE_CODECS.zstd)
  assert.equal(play(60, 120), WIRE_CODECS.zstd)
  assert.equal(play(100, 90), WIRE_CODECS.raw)
  assert.equal(new WireChoice('zstd', false).codec, WIRE_CODECS.raw)
  assert.equal(new WireChoice('auto', true, 1_000_000).codec, WIRE_CODECS.zstd)
})
