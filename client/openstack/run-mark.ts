/** What a run writes into a server's lock or metadata, so that people see it in Nova and the next run can judge it.
 *
 *      roost backup 5f0c…(16 digits) on web-host since 2026-01-31T02:00:00Z [1a2b3c4d/5e6f7a8b/4026531836/4711/123456]
 *
 *  In brackets: machine, its boot, the namespace of process ids, process id, when that process started in ticks since the boot. A mark of this
 *  machine can be judged by them; of another machine's nobody here can say whether its run still lives. No clock is asked.
 */
import { readFileSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'
import { digest } from '../../src/core/hash.js'
import type { Random } from '../../src/core/random.js'
import { isErrno } from '../../src/core/errors.js'

export const METADATA_KEY = 'roost_backup'
/** Nova's bound for reasons and for values of metadata. */
const MARK_CHARACTERS_MAX = 255
const HOST_CHARACTERS_MAX = 64

export interface RunProcess { readonly machine: string; readonly boot: string; readonly namespace: string; readonly pid: number; readonly startTicks: string }
export interface RunMark { readonly run: string; readonly host: string; readonly since: string; readonly process: RunProcess }

export function formatMark({ run, host, since, process: p }: RunMark): string {
  return `roost backup ${run} on ${host} since ${since} [${p.machine}/${p.boot}/${p.namespace}/${p.pid}/${p.startTicks}]`
}
/** Undefined for what no run of ours wrote. */
export function parseMark(text: unknown): RunMark | undefined {
  if (typeof text !== 'string' || text.length > MARK_CHARACTERS_MAX) return undefined
  const match = /^roost backup ([0-9a-f]{16}) on (\S{1,64}) since (\S{1,32}) \[([0-9a-f]{8})\/([0-9a-f]{8})\/(\d{1,12})\/(\d{1,10})\/(\d{1,20})\]$/.exec(text)
  if (match === null) return undefined
  const [, run, host, since, machine, boot, namespace, pid, startTicks] = match
  return { run: run!, host: host!, since: since!, process: { machine: machine!, boot: boot!, namespace: namespace!, pid: Number(pid), startTicks: startTicks! } }
}
/** `unknown`: of another machine, or of a container whose processes cannot be seen from here. */
export function judgeMark(mark: RunMark, me: RunProcess, startTicksOf: (pid: number) => string | 'hidden' | undefined = findStartTicks): 'alive' | 'dead' | 'unknown' {
  const { machine, boot, namespace, pid, startTicks } = mark.process
  if (machine !== me.machine) return 'unknown'
  if (boot !== me.boot) return 'dead' // the machine was started anew since
  if (namespace !== me.namespace) return 'unknown'
  const found = startTicksOf(pid)
  return found === 'hidden' ? 'unknown' : found === startTicks ? 'alive' : 'dead'
}

/** This process's mark. */
export function newMark(random: Random, now: string): RunMark {
  return { run: random.bytes(8).toString('hex'), host: hostname().replace(/[^\x21-\x7e]/g, '?').slice(0, HOST_CHARACTERS_MAX) || '?', since: now, process: thisProcess() }
}
function thisProcess(): RunProcess {
  return {
    machine: shortDigest(`${readText('/etc/machine-id')}\n${hostname()}`), boot: shortDigest(readText('/proc/sys/kernel/random/boot_id')),
    namespace: /\d+/.exec(readLink('/proc/self/ns/pid'))?.[0] ?? '0', pid: process.pid, startTicks: readStartTicks(process.pid) ?? '0',
  }
}
/** `hidden`: there is such a process, and this user may not see its times. */
function findStartTicks(pid: number): string | undefined {
  const ticks = readStartTicks(pid)
  if (ticks !== undefined) return ticks
  try {
    process.kill(pid, 0)
  } catch (error) {
    return isErrno(error, 'EPERM') ? 'hidden' : undefined
  }
  return undefined // a zombie, or one that ended just now
}
/** Field 22 of /proc/PID/stat; the program's name before it may hold anything. */
function readStartTicks(pid: number): string | undefined {
  const stat = readText(`/proc/${pid}/stat`)
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return fields[0] === 'Z' ? undefined : /^\d+$/.exec(fields[19] ?? '')?.[0]
}
const shortDigest = (text: string): string => digest(Buffer.from(text)).toString('hex').slice(0, 8)
function readText(path: string): string { return orEmpty(() => readFileSync(path, 'utf8')) }
function readLink(path: string): string { return orEmpty(() => readlinkSync(path)) }
/** What a system does not tell makes marks of it `unknown` or of a process that is gone, at worst; it stops no backup. */
function orEmpty(read: () => string): string {
  try {
    return read()
  } catch (error) {
    if (isErrno(error)) return ''
    throw error
  }
}
