/** A machine of libvirt's through the virsh command: QMP and the guest agent as passed on by libvirtd, one process a command. */
import { execFile } from 'node:child_process'
import { ClientError } from '../../src/protocol/client-errors.js'
import { COMMAND_MS_MAX, openAnswer, type Monitor, type MonitorCall } from './monitor.js'

const OUTPUT_BYTES_MAX = 16 * 1024 * 1024

export interface LibvirtDomain { readonly domain: string; readonly uri?: string }

/** What a virsh command prints. The domain is told by option, so that no name can be taken for one.
 *  @throws {ClientError} MACHINE_UNREACHABLE with virsh's own words */
export async function virsh({ uri }: Pick<LibvirtDomain, 'uri'>, args: readonly string[], { timeoutMs = COMMAND_MS_MAX, signal }: MonitorCall = {}): Promise<string> {
  return await new Promise((resolve, reject) => {
    execFile('virsh', ['--quiet', ...(uri === undefined ? [] : ['--connect', uri]), ...args],
      { timeout: timeoutMs, killSignal: 'SIGKILL', maxBuffer: OUTPUT_BYTES_MAX, encoding: 'utf8', ...(signal === undefined ? {} : { signal }) }, (error, stdout, stderr) => {
        if (error === null) { resolve(stdout); return }
        if (signal?.aborted === true) { reject(signal.reason as Error); return }
        const words = stderr.trim().split('\n').at(-1)?.replace(/^error: /, '').slice(0, 500) ?? ''
        const reason = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'The command virsh is not there.' : error.killed === true ? `virsh ${args[0]} did not end within ${timeoutMs / 1000} s.`
          : `virsh ${args[0]} failed: ${words === '' ? error.message : words}`
        reject(new ClientError('MACHINE_UNREACHABLE', reason, { cause: error }))
      })
  })
}

export class VirshMonitor implements Monitor {
  constructor(readonly at: LibvirtDomain) {}
  async execute(command: string, parameters?: Readonly<Record<string, unknown>>, call: MonitorCall = {}): Promise<unknown> {
    const request = JSON.stringify({ execute: command, ...(parameters === undefined ? {} : { arguments: parameters }) })
    return openAnswer(command, parseAnswer(command, await virsh(this.at, ['qemu-monitor-command', '--domain', this.at.domain, '--cmd', request], call)))
  }
  close(): void { /* every command is a process of its own */ }
}
export function parseAnswer(command: string, text: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  } catch { /* told below */ }
  throw new ClientError('MACHINE_UNREACHABLE', `What virsh printed for ${command} is no answer of QEMU.`)
}

/** The XML without secrets, as libvirt writes it unless asked otherwise. */
export const domainXml = (at: LibvirtDomain, call: MonitorCall = {}): Promise<string> => virsh(at, ['dumpxml', '--domain', at.domain], call)

/** Under which user libvirt runs this QEMU, when it says so: files for it must be that user's. */
export function qemuOwner(xml: string): { readonly uid: number; readonly gid: number } | undefined {
  const match = /<seclabel\b[^>]*\bmodel='dac'[^>]*>\s*<label>\+?(\d+):\+?(\d+)<\/label>/.exec(xml)
  return match === null ? undefined : { uid: Number(match[1]), gid: Number(match[2]) }
}
