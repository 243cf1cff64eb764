/** One backup from end to end: session, scan, upload, commit; and again from the start when the server says so.
 *
 *  A pass that the server ends with advice `restart-session` (it restarted, or the tree is incomplete for it) is followed by
 *  another one over the same source: what arrived is found present, so each pass sends less. Standard input cannot be read again.
 *  A parent that cannot be used (unknown, forged, damaged) costs speed, never the backup.
 */
import type { Clock } from '../src/core/clock.js'
import { RoostError, hasCode } from '../src/core/errors.js'
import { parseSessionId, parseSnapshotId, type SessionId, type SnapshotId } from '../src/core/ids.js'
import type { OpenSessionReply, SnapshotRecord, SnapshotStatistics } from '../src/core/messages.js'
import { ClientError, hasClientCode } from '../src/protocol/client-errors.js'
import { chunkBytesByDisk } from './image/disk-report.js'
import type { RepositoryClient } from './repository-client.js'
import type { SourceConfig } from './scan-source.js'
import { readVerifiedNodes, startScanner, type Scanner } from './scanner.js'
import { openSignedSnapshot, openTrustedSnapshot } from './snapshot-record.js'
import type { ScanCounters, SourceProblem } from './upload/chunk-sink.js'
import { Uploader, type UploadCounters } from './upload/uploader.js'
import type { WireMode } from './upload/wire-choice.js'

export interface BackupOptions {
  /** Under which name the snapshots of this source follow each other. */
  readonly source: string
  readonly config: SourceConfig
  readonly parent: SnapshotId | 'latest' | null
  readonly host: string
  readonly user: string
  /** For people; exact names are in the tree. */
  readonly paths: readonly string[]
  readonly tags: readonly string[]
  readonly description?: Readonly<Record<string, unknown>>
  /** Of a live machine: goes into the statistics. */
  readonly frozenMs?: number
  readonly wire: WireMode
  /** What --limit-upload allows; the transport does the limiting. */
  readonly limitBytesPerSecond?: number
  /** What is read of the source; the scanner does the limiting. */
  readonly limitReadBytesPerSecond?: number
  /** 64 hex digits each: refuse a repository that signs with none of these keys, and parents that none of them signed. */
  readonly verifyKeys?: readonly string[]
  /** Arenas (8 MiB each) on their way at once; one more is being filled. Default 2: more made no push faster. */
  readonly arenasInFlight?: number
  /** Passes over the source, at most. Default 8. */
  readonly passesMax?: number
  /** Default `thread`. */
  readonly where?: 'thread' | 'inline'
  readonly clock: Clock
}
/** Live figures of the current pass. */
export interface BackupProgress {
  readonly pass: number; readonly scan: Readonly<ScanCounters>; readonly upload: Readonly<UploadCounters>; readonly at: string
  readonly phase: 'scanning' | 'committing'
}
export interface BackupEvents {
  /** A pass begins; `sample` tells how far it is. `because`: why it is not the first. */
  onPass?(pass: number, sample: () => BackupProgress, because: Error | undefined): void
  onProblem?(problem: SourceProblem): void
  /** A commit is about to be asked for: from here on it may have happened, whatever this run comes to. */
  onCommitting?(): void
  /** Worth a line to the user: going on without a parent, and why. */
  onNotice?(text: string): void
}
export interface BackupReport {
  readonly snapshotId: string; readonly record: SnapshotRecord; readonly statistics: SnapshotStatistics
  /** Paths that are not in the snapshot as they should be. */
  readonly problems: number
  readonly passes: number
  /** Whole and acknowledged, but only in the server's spool so far. */
  readonly inSpool: boolean
  /** 3: done, with problems. */
  readonly exitCode: 0 | 3
}

const ARENAS_IN_FLIGHT = 2
const NODE_ARENAS = 2
const PASSES_MAX = 8
const IDLE_TOUCH_MS = 60_000
const CLOSE_MS = 2_000
/** What reading the parent may end in. */
const PARENT_TROUBLE = ['CHUNK_MISSING', 'CHUNK_CORRUPT', 'CHUNK_NOT_READABLE', 'TREE_MALFORMED'] as const

/** @throws {RoostError} what the server refuses for good; {ClientError}; `signal.reason` */
export async function runBackup(client: RepositoryClient, options: BackupOptions, events: BackupEvents, signal: AbortSignal): Promise<BackupReport> {
  const run: Run = { client, options, events, signal, startedAtMs: options.clock.now(), startedMs: options.clock.monotonicMs(), cpu: process.cpuUsage() }
  let parent = options.parent
  let idlePasses = 0
  let because: Error | undefined
  for (let pass = 1; ; pass++) {
    const state = newPass(pass)
    try {
      return await runPass(run, state, parent, because)
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof RoostError)) throw error
      const mayBeParent = state.usesParent && (PARENT_TROUBLE.some((code) => error.code === code) || hasCode(error, 'COMMIT_INCOMPLETE'))
      // A reply with the parent's nodes that breaks off means a server that went away: what the session held may be gone with it.
      if (error.traits.retry !== 'restart-session' && !mayBeParent && !hasCode(error, 'BODY_TRUNCATED')) throw error
      if (options.config.mode === 'stdin')
        throw new ClientError('SOURCE_NOT_REPEATABLE', 'The push broke, and standard input cannot be read a second time.', { cause: error })
      // A server that was restarted says nothing of this push: only what it refuses again and again can never end.
      const isOutage = hasCode(error, 'SESSION_LOST') || hasCode(error, 'BODY_TRUNCATED')
      idlePasses = (state.uploader?.counters.chunksSent ?? 0) > 0 ? 0 : idlePasses + (isOutage ? 0 : 1)
      if (pass >= (options.passesMax ?? PASSES_MAX) || idlePasses >= 3)
        throw new ClientError('PUSH_NOT_CONVERGING', `The push was begun ${pass} times and never came to its end.`, { cause: error })
      if (mayBeParent && parent !== null) {
        events.onNotice?.(`going on without the parent snapshot: ${error.message}`)
        parent = null
      }
      because = error
    }
  }
}

interface Run {
  readonly client: RepositoryClient; readonly options: BackupOptions; readonly events: BackupEvents; readonly signal: AbortSignal
  readonly startedAtMs: number; readonly startedMs: number; readonly cpu: NodeJS.CpuUsage
}
interface Pass {
  readonly number: number
  usesParent: boolean
  problems: number
  at: string
  phase: 'scanning' | 'committing'
  uploader: Uploader | undefined
}
const newPass = (number: number): Pass => ({ number, usesParent: false, problems: 0, at: '', phase: 'scanning', uploader: undefined })

async function runPass(run: Run, pass: Pass, wantedParent: BackupOptions['parent'], because: Error | undefined): Promise<BackupReport> {
  const session = await openPushSession(run, wantedParent)
  const sessionId = parseSessionId(session.sessionId)
  const ending = new AbortController()
  const signal = AbortSignal.any([run.signal, ending.signal])
  try {
    const parent = usableParent(run, session)
    pass.usesParent = parent !== undefined
    if (session.withheldParent !== undefined)
      run.events.onNotice?.('the repository lost data that the parent snapshot may need: everything is read anew, and what is missing is sent again')
    const uploader = pass.uploader = newUploader(run, session, sessionId, signal)
    const scanner = startPassScanner(run, pass, session, parent, uploader, signal)
    run.events.onPass?.(pass.number, () => ({
      pass: pass.number, scan: scanner.counters, upload: uploader.counters, at: pass.at, phase: pass.phase,
    }), because)
    void keepAlive(run, uploader, scanner, signal)
    const scanned = await awaitScan(scanner, run.signal)
    pass.phase = 'committing'
    const statistics = statisticsOf(run, pass, scanner.counters, uploader.counters, scanned.chunks)
    return await commit(run, pass, session, sessionId, scanned, statistics)
  } finally {
    ending.abort(new Error('the pass is over'))
    await closeQuietly(run, sessionId)
  }
}

/** A parent that the server does not know is no reason to fail. */
async function openPushSession(run: Run, parent: BackupOptions['parent']): Promise<OpenSessionReply> {
  const { client, options, signal, events } = run
  const request = { kind: 'push' as const, source: options.source, mode: options.config.mode }
  let session: OpenSessionReply
  try {
    session = await client.openSession({ ...request, parent }, { signal })
  } catch (error) {
    if (parent === null || !hasCode(error, 'SNAPSHOT_UNKNOWN')) throw error
    events.onNotice?.('the parent snapshot does not exist any more: everything is read anew')
    session = await client.openSession({ ...request, parent: null }, { signal })
  }
  if (options.verifyKeys?.includes(session.verifyKey) === false)
    throw new ClientError('SNAPSHOT_KEY_MISMATCH', 'This repository signs with another key than the one given with --verify-key.')
  return session
}
/** The parent's record once it is proved; undefined when there is none that helps. */
function usableParent(run: Run, session: OpenSessionReply): SnapshotRecord | undefined {
  if (session.snapshot === undefined) return undefined
  try {
    const { snapshot, verifyKey, repositoryId } = session
    const record = openTrustedSnapshot(snapshot, verifyKey, run.options.verifyKeys)
    const isOfSigner = snapshot.signer === undefined ? record.repositoryId === repositoryId : record.repositoryId !== repositoryId
    return record.mode === run.options.config.mode && isOfSigner ? record : undefined
  } catch (error) {
    if (!hasCode(error, 'SNAPSHOT_CORRUPT') && !hasClientCode(error, 'SNAPSHOT_KEY_MISMATCH')) throw error
    run.events.onNotice?.(`going on without the parent snapshot: ${error.message}`)
    return undefined
  }
}

function newUploader(run: Run, session: OpenSessionReply, sessionId: SessionId, signal: AbortSignal): Uploader {
  const { wire, limitBytesPerSecond, clock } = run.options
  return new Uploader({
    client: run.client, session: sessionId, dedupKey: Buffer.from(session.dedupKey, 'hex'), limits: session.limits,
    wireCodecs: session.wireCodecs, wire, clock, signal, ...(limitBytesPerSecond === undefined ? {} : { limitBytesPerSecond }),
  })
}
function startPassScanner(run: Run, pass: Pass, session: OpenSessionReply, parent: SnapshotRecord | undefined, uploader: Uploader,
  signal: AbortSignal): Scanner {
  const { client, options, events } = run
  const dedupKey = Buffer.from(session.dedupKey, 'hex')
  const job = {
    source: sourceOf(options.config, session), dedupKey: session.dedupKey, chunker: session.chunker,
    arenasMax: { data: (options.arenasInFlight ?? ARENAS_IN_FLIGHT) + 1, nodes: NODE_ARENAS },
    ...(options.limitReadBytesPerSecond === undefined ? {} : { limitReadBytesPerSecond: options.limitReadBytesPerSecond }),
    ...(parent === undefined ? {} : { parent: { root: parent.root, startedAtMs: parent.startedAtMs } }),
  }
  return startScanner(job, {
    onArena: (arena) => uploader.upload(arena),
    readNodes: (ids) => readVerifiedNodes(client, parseSessionId(session.sessionId), ids, dedupKey, session.limits.readIdsMax, signal),
    onProblem: (problem) => {
      pass.problems++
      events.onProblem?.(problem)
    },
    onNote: (text) => { events.onNotice?.(text) },
    onAt: (path) => { pass.at = path },
  }, options.where ?? 'thread')
}
/** Disks are cut as before, or their chunks would be others and heal nothing. */
function sourceOf(config: SourceConfig, { withheldParent, verifyKey }: OpenSessionReply): SourceConfig {
  if (config.mode !== 'image' || withheldParent === undefined) return config
  try {
    const formerly = chunkBytesByDisk(openTrustedSnapshot(withheldParent, verifyKey, undefined).description)
    const disks = config.disks.map((disk) => {
      const chunkBytes = disk.chunkBytes ?? formerly(disk.name)
      return chunkBytes === undefined ? disk : { ...disk, chunkBytes }
    })
    return { ...config, disks }
  } catch (error) {
    if (!hasCode(error, 'SNAPSHOT_CORRUPT')) throw error
    return config
  }
}
async function awaitScan(scanner: Scanner, signal: AbortSignal): ReturnType<() => Scanner['done']> {
  const onAbort = (): void => { void scanner.stop(signal.reason as Error) }
  if (signal.aborted) onAbort()
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await scanner.done
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
/** A long quiet stretch (unchanged files, holes, a slow dump) must not look like a dead client. Never rejects. */
async function keepAlive(run: Run, uploader: Uploader, scanner: Scanner, signal: AbortSignal): Promise<void> {
  const { clock } = run.options
  try {
    for (;;) {
      await clock.sleep(IDLE_TOUCH_MS, signal)
      if (clock.monotonicMs() - uploader.lastRequestMs >= IDLE_TOUCH_MS) await uploader.touch()
    }
  } catch (error) {
    // The end of the pass ends the sleep; anything else (the session is lost) ends the pass.
    if (!signal.aborted) await scanner.stop(error as Error)
  }
}

function statisticsOf(run: Run, pass: Pass, scan: ScanCounters, upload: UploadCounters, chunksTotal: number): SnapshotStatistics {
  const cpu = process.cpuUsage(run.cpu)
  return {
    files: scan.files, directories: scan.directories, others: scan.others, sourceBytes: scan.sourceBytes, bytesRead: scan.bytesRead,
    chunksTotal, chunksSent: upload.chunksSent, bytesSent: upload.bytesSent, bytesOnWire: upload.bytesOnWire, errors: pass.problems,
    durationMs: Math.round(run.options.clock.monotonicMs() - run.startedMs), cpuMs: Math.round((cpu.user + cpu.system) / 1000),
    ...(run.options.frozenMs === undefined ? {} : { frozenMs: run.options.frozenMs }),
  }
}
async function commit(run: Run, pass: Pass, session: OpenSessionReply, sessionId: SessionId,
  scanned: Awaited<Scanner['done']>, statistics: SnapshotStatistics): Promise<BackupReport> {
  const { client, options, signal } = run
  const description = { ...options.description, ...scanned.description }
  run.events.onCommitting?.()
  const { snapshot } = await client.commit(sessionId, {
    root: scanned.root.toString('hex'), host: options.host, user: options.user, paths: options.paths, tags: options.tags,
    startedAtMs: run.startedAtMs, statistics, ...(Object.keys(description).length === 0 ? {} : { description }),
  }, { signal })
  // An acknowledgement is believed when it is signed and names what was scanned.
  const record = openSignedSnapshot(snapshot, session.verifyKey)
  if (record.root !== scanned.root.toString('hex') || record.source !== options.source)
    throw new RoostError('SNAPSHOT_CORRUPT', 'The server acknowledged another snapshot than the one that was pushed.')
  return {
    snapshotId: parseSnapshotId(snapshot.id), record, statistics, problems: pass.problems, passes: pass.number, inSpool: snapshot.inSpool === true,
    exitCode: pass.problems > 0 ? 3 : 0,
  }
}
/** Lets go of the session's pins. The server does the same by itself after a while, so failing to say so is harmless. */
async function closeQuietly(run: Run, sessionId: SessionId): Promise<void> {
  const late = new AbortController()
  const closed = run.client.closeSession(sessionId, { signal: late.signal }).catch(() => undefined)
  const over = new AbortController()
  const patience = run.options.clock.sleep(CLOSE_MS, over.signal).catch(() => undefined)
  await Promise.race([closed, patience])
  over.abort()
  late.abort()
}
