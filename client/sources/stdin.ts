/** Standard input as one file of a given name: database dumps and the like. It can be read once. */
import { readSync } from 'node:fs'
import { systemClock } from '../../src/core/clock.js'
import { RoostError } from '../../src/core/errors.js'
import { CHUNK_KINDS } from '../../src/core/ids.js'
import type { ChunkerParameters } from '../../src/core/messages.js'
import { openChunker } from '../chunker/chunker.js'
import { isTryAgain, readable } from '../native/poll.js'
import { ListContentWriter } from '../tree/content-writer.js'
import { DirectoryWriter } from '../tree/directory-writer.js'
import { ENTRY_TYPES, type Content, type Entry } from '../tree/entry.js'
import type { ScanContext, ScanResult } from '../upload/chunk-sink.js'

export interface StdinConfig {
  /** What the file is called in the snapshot: UTF-8, without '/'. */
  readonly name: string
  /** Standard input unless said otherwise. */
  readonly fd?: number
}

/** @throws {RoostError} REQUEST_MALFORMED for a name that no file can have */
export async function scanStdin(config: StdinConfig, context: ScanContext, chunker: ChunkerParameters): Promise<ScanResult> {
  const name = Buffer.from(config.name, 'utf8')
  if (name.byteLength === 0 || name.byteLength > 255 || config.name === '.' || config.name === '..' || /[/\0]/.test(config.name))
    throw new RoostError('REQUEST_MALFORMED', 'The name of standard input must be a file name of 1 to 255 bytes.')
  context.at(config.name)
  const content = await readAll(config.fd ?? 0, context, chunker)
  context.counters.files++
  context.counters.sourceBytes += content.bytes
  const directory = new DirectoryWriter(context.sink)
  await directory.add(entryOf(name, content))
  return { root: await directory.finish() }
}

async function readAll(fd: number, context: ScanContext, parameters: ChunkerParameters): Promise<Content> {
  const { sink, counters } = context
  const chunker = openChunker(parameters)
  const writer = new ListContentWriter(sink)
  for (let held = 0, final = false; ;) {
    const offered = sink.space(parameters.maxBytes, held)
    const space = offered instanceof Promise ? await offered : offered
    while (!final && held < parameters.maxBytes) {
      const read = await readSome(fd, space.subarray(held), context.signal)
      if (context.limitRead !== undefined) await context.limitRead.take(read, context.signal)
      held += read
      counters.bytesRead += read
      final = read === 0
    }
    if (held === 0) return await writer.finish()
    const bytes = chunker.cut(space.subarray(0, held), final)
    // A full window or the end always gives a cut: nothing to wait for.
    const added = writer.add(sink.take(bytes, CHUNK_KINDS.data), bytes)
    held -= bytes
    if (added !== undefined) await added
  }
}
async function readSome(fd: number, into: Buffer, signal: AbortSignal): Promise<number> {
  for (;;) {
    await readable(fd, signal)
    try {
      return readSync(fd, into, 0, into.byteLength, null)
    } catch (error) {
      if (!isTryAgain(error)) throw error
    }
  }
}

function entryOf(name: Buffer, content: Content): Entry {
  const nowNs = BigInt(Math.trunc(systemClock.now())) * 1_000_000n
  return {
    name, type: ENTRY_TYPES.file, mode: 0o600, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, user: '', group: '',
    mtimeNs: nowNs, ctimeNs: nowNs, inode: 0n, device: 0n, linkCount: 1, xattrs: [], content,
  }
}
