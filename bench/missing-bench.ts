/** Missing-queries over real HTTP: round trips of 10 000 ids and of the largest batch, half of them present, against a server process.
 *  Run: node dist/bench/missing-bench.js */
import { randomFillSync } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { HttpRepositoryClient } from '../client/http-repository-client.js'
import { Transport } from '../src/protocol/transport.js'
import { systemClock } from '../src/core/clock.js'
import { writeFrameHeader, FRAME_HEADER_BYTES } from '../src/core/frames.js'
import { hashChunk } from '../src/core/hash.js'
import { CHUNK_KINDS, ID_PROOF_BYTES, parseSessionId } from '../src/core/ids.js'
import { systemRandom } from '../src/core/random.js'
import { RoostWorld } from '../test/support/run-roost.js'

const CHUNKS = 60_000, CHUNK_BYTES = 256, FRAMES = 8_000, ROUNDS = 15

const world = new RoostWorld('bench')
try {
  await world.startServer(['--log-level', 'error'])
  await world.createRepository()
  const client = new HttpRepositoryClient(new Transport({ baseUrl: world.url, token: readFileSync(world.adminTokenFile, 'utf8').trim(), clock: systemClock, random: systemRandom }), 'bench')
  const open = await client.openSession({ kind: 'push', source: 'bench', mode: 'stdin', parent: null })
  const session = parseSessionId(open.sessionId), dedupKey = Buffer.from(open.dedupKey, 'hex')
  const known = Buffer.alloc(CHUNKS * ID_PROOF_BYTES)
  for (let from = 0; from < CHUNKS; from += FRAMES) {
    const count = Math.min(FRAMES, CHUNKS - from), step = FRAME_HEADER_BYTES + CHUNK_BYTES
    const body = randomFillSync(Buffer.alloc(count * step))
    for (let i = 0; i < count; i++) {
      const idProof = hashChunk(dedupKey, body.subarray(i * step + FRAME_HEADER_BYTES, (i + 1) * step), CHUNK_KINDS.data)
      idProof.copy(known, (from + i) * ID_PROOF_BYTES)
      writeFrameHeader(body, i * step, { rawBytes: CHUNK_BYTES, wireBytes: CHUNK_BYTES, kind: CHUNK_KINDS.data, codec: 0 }, idProof.subarray(0, 32))
    }
    await client.putChunks(session, [body], count)
  }
  await world.ok(['backup', '--stdin', '--stdin-name', 'x', '--source', 'flush'], { stdin: Buffer.from('x') }) // its commit seals what is open
  for (const count of [1_000, 10_000, 65_536]) {
    const times: number[] = []
    for (let round = 0; round < ROUNDS; round++) {
      const query = randomFillSync(Buffer.alloc(count * ID_PROOF_BYTES))
      for (let i = 0; i < count; i += 2) known.copy(query, i * ID_PROOF_BYTES, ((i * 7 + round) % CHUNKS) * ID_PROOF_BYTES, ((i * 7 + round) % CHUNKS + 1) * ID_PROOF_BYTES)
      const start = performance.now()
      await client.findMissing(session, query)
      times.push(performance.now() - start)
    }
    times.sort((a, b) => a - b)
    const median = times[ROUNDS >> 1]!
    console.log(`${String(count).padStart(6)} ids: median ${median.toFixed(1)} ms, worst ${times.at(-1)!.toFixed(1)} ms, ${(count / median).toFixed(0)} k ids/s`)
  }
  await client.close()
} finally { await world.close() }
