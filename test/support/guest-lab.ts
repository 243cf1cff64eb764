/** Real guests for tests: built from Debian's packages (test/lab/guest), run by QEMU under software emulation (`-accel tcg`, wherever that is), with a
 *  writer that logs checksums of what it fsynced, a guest agent, and a shell on the serial line.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { createConnection, type Socket } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { TestContext } from 'node:test'
import { hasTool, projectRoot, tool } from './run-roost.js'

const TOOLS = ['qemu-system-x86_64', 'qemu-img', 'nbdcopy', 'busybox', 'e2fsck', 'debugfs', 'cpio', 'socat', 'syslinux', 'mcopy', 'mkfs.vfat', 'sfdisk', 'apt-get']
process.env['PATH'] = `${process.env['PATH']}:/usr/sbin:/sbin`
const BOOT_MS_MAX = 90_000
/** Where the ext4 of a boot disk begins. */
export const BOOT_FS_BYTES = 67_584 * 512

/** The folder with boot.raw and data.raw, built if need be; or why there is none, for `skip`. */
export function guestImages(): { readonly directory: string; readonly skip: false } | { readonly directory: ''; readonly skip: string } {
  const lacking = TOOLS.filter((name) => !hasTool(name))
  let why = lacking.length > 0 ? `not installed: ${lacking.join(', ')} (test/lab/guest/install.sh)` : ''
  const directory = join(projectRoot(), '.cache', 'guest')
  if (why === '') {
    const built = spawnSync('bash', [join(projectRoot(), 'test/lab/guest/build.sh'), directory], { encoding: 'utf8', timeout: 300_000 })
    if (built.status === 0) return { directory, skip: false }
    why = `the guest cannot be built: ${built.stderr.trim().split('\n').at(-1) ?? ''}`
    if (process.env['CI'] === 'true') throw new Error(why)
  }
  console.log(`SKIPPED GROUP: running machines — ${why}`)
  return { directory: '', skip: why }
}

export interface GuestDisk {
  readonly path: string; readonly format: 'qcow2' | 'raw'
  /** Default virtio-blk-pci. */
  readonly device?: string
}
export interface GuestOptions {
  readonly directory: string
  readonly name?: string
  /** Also the ids of the devices: `vda`, `vdb`. */
  readonly disks: readonly GuestDisk[]
  readonly uuid?: string
  /** False: no port for an agent. */
  readonly agent?: boolean
  readonly extra?: readonly string[]
  readonly machine?: string
  /** The program and arguments that come before all others; default the QEMU that is installed. */
  readonly qemu?: readonly [string, ...string[]]
}
export class Guest {
  readonly lines: string[] = []
  readonly ended: Promise<void>
  #waiting: { readonly test: RegExp; readonly resolve: (line: string) => void }[] = []
  #errors = ''
  #control: Socket | undefined
  #answers: ((answer: Record<string, unknown>) => void)[] = []
  constructor(readonly child: ChildProcess, readonly qmp: string, readonly agent: string, readonly controlPath: string, readonly spareQmp = '') {
    createInterface({ input: child.stdout! }).on('line', (line) => {
      const text = line.replace(/\r/g, '')
      this.lines.push(text)
      const hit = this.#waiting.filter(({ test }) => test.test(text))
      this.#waiting = this.#waiting.filter((one) => !hit.includes(one))
      for (const { resolve } of hit) resolve(text)
    })
    child.stderr!.on('data', (bytes: Buffer) => { this.#errors += bytes.toString() })
    this.ended = new Promise((resolve) => { child.once('exit', () => { resolve() }) })
  }
  get errors(): string { return this.#errors }
  /** The first line that fits, from now on; with `also`, one that was seen counts. */
  async line(test: RegExp, { also = false, ms = BOOT_MS_MAX }: { also?: boolean; ms?: number } = {}): Promise<string> {
    const seen = also ? this.lines.find((line) => test.test(line)) : undefined
    if (seen !== undefined) return seen
    let timer: NodeJS.Timeout | undefined
    try {
      return await Promise.race([
        new Promise<string>((resolve) => { this.#waiting.push({ test, resolve }) }),
        new Promise<never>((_resolve, reject) => { timer = setTimeout(() => { reject(new Error(`no ${test} from the guest; its last lines:\n${this.lines.slice(-8).join('\n')}`)) }, ms) }),
        this.ended.then(() => { throw new Error(`QEMU ended: ${this.#errors}\n${this.lines.slice(-8).join('\n')}`) }),
      ])
    } finally { clearTimeout(timer) }
  }
  /** Runs a command in the guest; resolves with the line that it prints with the mark. */
  async shell(command: string, ms = 30_000): Promise<string> {
    const mark = `done${this.lines.length}x`
    const line = this.line(new RegExp(`^${mark}:`), { ms })
    this.child.stdin!.write(`R=$(${command}); echo ${mark}":$R"\n`)
    return (await line).slice(mark.length + 1)
  }
  /** The writer wrote ten files more. */
  async writesOn(): Promise<void> { await this.line(/GUEST: wrote/) }
  /** QMP over a socket of the tests' own. */
  async command(execute: string, parameters?: Record<string, unknown>): Promise<unknown> {
    const control = await this.#openControl()
    const answer = new Promise<Record<string, unknown>>((resolve) => { this.#answers.push(resolve) })
    control.write(`${JSON.stringify({ execute, ...(parameters === undefined ? {} : { arguments: parameters }) })}\n`)
    const reply = await answer
    if ('error' in reply) throw new Error(`${execute}: ${JSON.stringify(reply['error'])}`)
    return reply['return']
  }
  /** Names of everything that is ours in this QEMU: nodes, exports, bitmaps. */
  async traces(): Promise<{ nodes: string[]; exports: string[]; bitmaps: string[]; devices: string[] }> {
    const nodes = await this.command('query-named-block-nodes', { flat: true }) as Record<string, unknown>[]
    const exports = await this.command('query-block-exports') as Record<string, unknown>[]
    const blocks = await this.command('query-block') as { inserted?: Record<string, unknown> }[]
    return {
      nodes: nodes.map((node) => node['node-name'] as string).filter((name) => name.startsWith('roost-')), exports: exports.map((entry) => entry['id'] as string),
      bitmaps: nodes.flatMap((node) => ((node['dirty-bitmaps'] ?? []) as { name?: string }[]).map(({ name }) => name ?? '')).filter((name) => name.startsWith('roost-')).sort(),
      devices: blocks.flatMap(({ inserted }) => (inserted?.['node-name'] as string | undefined) ?? []),
    }
  }
  async kill(): Promise<void> {
    this.#control?.destroy()
    this.child.kill('SIGKILL')
    await this.ended
  }
  /** As an orderly end: images are closed, bitmaps stored. */
  async quit(): Promise<void> {
    await this.command('quit').catch(() => undefined)
    this.#control?.destroy()
    await this.ended
  }
  async #openControl(): Promise<Socket> {
    if (this.#control !== undefined && !this.#control.destroyed) return this.#control
    const socket = createConnection({ path: this.controlPath })
    const greeted = new Promise<void>((resolve, reject) => {
      socket.once('error', reject)
      createInterface({ input: socket }).on('line', (line) => {
        const message = JSON.parse(line) as Record<string, unknown>
        if ('QMP' in message) resolve()
        else if (!('event' in message)) this.#answers.shift()?.(message)
      })
    })
    await greeted
    socket.on('error', () => undefined)
    this.#control = socket
    const ready = new Promise<Record<string, unknown>>((resolve) => { this.#answers.push(resolve) })
    socket.write('{"execute":"qmp_capabilities"}\n')
    await ready
    return socket
  }
}

/** Starts a guest that boots from its first disk; resolves at once. Gone when the test ends. */
export function startGuest(t: Pick<TestContext, 'after'>, options: GuestOptions): Guest {
  const { directory, name = 'guest', disks, uuid, agent = true, extra = [], machine = 'pc', qemu = ['qemu-system-x86_64'] } = options
  mkdirSync(directory, { recursive: true })
  const [qmp, control, spare, agentPath] = ['qmp', 'control', 'spare', 'agent'].map((what) => join(directory, `${name}.${what}`)) as [string, string, string, string]
  for (const path of [qmp, control, spare, agentPath]) rmSync(path, { force: true })
  const letters = 'abcdefgh'
  const [program, ...first] = qemu
  const child = spawn(program, [
    ...first, '-name', name, '-machine', machine, '-accel', 'tcg,tb-size=64', '-m', '160', '-nodefaults', '-display', 'none', '-serial', 'stdio',
    ...(uuid === undefined ? [] : ['-uuid', uuid]), ...[qmp, control, spare].flatMap((path) => ['-qmp', `unix:${path},server=on,wait=off`]),
    ...extra, ...disks.flatMap(({ path, format, device = 'virtio-blk-pci' }, at) => [
      '-blockdev', JSON.stringify({ driver: format, 'node-name': `node${at}`, file: { driver: 'file', filename: path } }),
      '-device', `${device},drive=node${at},id=vd${letters[at]},bootindex=${at + 1}`,
    ]),
    ...(agent ? ['-device', 'virtio-serial-pci', '-chardev', `socket,id=qga0,path=${agentPath},server=on,wait=off`,
      '-device', 'virtserialport,id=agentport,chardev=qga0,name=org.qemu.guest_agent.0'] : []),
  ], { stdio: ['pipe', 'pipe', 'pipe'] })
  child.stdin.on('error', () => undefined)
  const guest = new Guest(child, qmp, agentPath, control, spare)
  t.after(() => guest.kill())
  process.once('exit', () => { child.kill('SIGKILL') })
  return guest
}
/** QEMU 10, as startGuest takes it: the installed one or one unpacked beside it; or why there is none, for `skip`. */
export function qemuTen(): { readonly qemu: readonly [string, ...string[]]; readonly skip: false } | { readonly qemu: undefined; readonly skip: string } {
  const directory = join(projectRoot(), '.cache', 'qemu10')
  const built = spawnSync('bash', [join(projectRoot(), 'test/lab/guest/qemu10.sh'), directory], { encoding: 'utf8', timeout: 300_000 })
  if (built.status === 0) return { qemu: built.stdout.trim().split('\n') as [string, ...string[]], skip: false }
  const why = `no QEMU 10: ${built.stderr.trim().split('\n').at(-1) ?? ''}`
  console.log(`SKIPPED GROUP: disks in an iothread, saved — ${why}`)
  return { qemu: undefined, skip: why }
}
/** A copy of one of the lab's images in another format. */
export function newDisk(images: string, image: 'boot.raw' | 'data.raw', path: string, format: 'qcow2' | 'raw'): GuestDisk {
  tool('qemu-img', ['convert', '-f', 'raw', '-O', format, join(images, image), path])
  return { path, format }
}

export interface FsState { readonly needsRecovery: boolean; readonly files: number; readonly bad: readonly string[] }
/** The ext4 at an offset of a raw image: sound (after its journal, where it needs that), and every file of the guest's manifest as it was fsynced.
 *  Nothing is mounted. Throws what e2fsck says otherwise. */
export function checkFileSystem(image: string, offset: number, scratch: string): FsState {
  const fs = join(scratch, 'checked.fs')
  tool('dd', [`if=${image}`, `of=${fs}`, 'bs=1M', 'iflag=skip_bytes', `skip=${offset}`, 'conv=sparse', 'status=none'])
  const needsRecovery = /needs_recovery/.test(tool('dumpe2fs', ['-h', fs]))
  if (needsRecovery) spawnSync('e2fsck', ['-fy', fs]) // replays the journal, as a mount would
  tool('e2fsck', ['-fn', fs])
  const content = join(scratch, 'checked')
  rmSync(content, { recursive: true, force: true })
  mkdirSync(content)
  tool('debugfs', ['-R', `rdump / ${content}`, fs])
  const manifest = join(content, 'manifest')
  const rows = existsSync(manifest) ? readFileSync(manifest, 'utf8').split('\n').filter((row) => row !== '') : []
  const sums = spawnSync('sha256sum', ['--check', '--quiet'], { cwd: existsSync(join(content, 'f')) ? join(content, 'f') : content, input: rows.map((row) => row.replace(' ', '  ')).join('\n') + '\n', encoding: 'utf8' })
  return { needsRecovery, files: rows.length, bad: rows.length === 0 || sums.status === 0 ? [] : sums.stdout.split('\n').filter((row) => row !== '') }
}
