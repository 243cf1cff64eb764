/** roost nbd: the images of a snapshot as network block devices that nobody can write to, until Ctrl-C. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { createSecureContext } from 'node:tls'
import type { NbdAddress, NbdTls } from '../../../client/nbd/server.js'
import { isErrno } from '../../core/errors.js'
import { MiB } from '../../core/limits.js'
import { argumentBytes } from '../argument-bytes.js'
import { does, sizeOption, withExamples, type Registry } from '../command.js'
import { UsageError } from '../exit-codes.js'
import { formatBytes, printable } from '../format.js'
import { shortId, splitSnapshotPath } from '../snapshot-lookup.js'
import { tellError } from '../error-hints.js'
import { snapshotChoice } from './restore.js'

interface NbdFlags {
  readonly path?: string; readonly disk?: string; readonly socket?: string; readonly listen?: string; readonly source?: string; readonly cache?: number
  readonly tlsCert?: string; readonly tlsKey?: string; readonly tlsCa?: string; readonly allowAnyClient?: boolean
}
/** Of a socket's path, with the NUL that ends it (sockaddr_un). */
const SOCKET_PATH_BYTES_MAX = 107
const CACHE_BYTES_DEFAULT = 128 * MiB
/** Two of the largest windows of read-ahead fit. */
const CACHE_BYTES_MIN = 16 * MiB

export function registerNbd(registry: Registry): void {
  does<NbdFlags>(registry, withExamples(registry.program.command('nbd')
    .argument('<snapshot[:path]>', 'an id, the start of one (6 digits or more), or "latest"; after a colon, an image or file within it')
    .description('serve the disk images of a snapshot read-only over NBD, until Ctrl-C: to look into, to boot from, to copy')
    .option('--path <entry>', 'this image or file only (default: all images of the snapshot, by their names)')
    .option('--disk <disk>', 'this disk only: its number, from 1 in the order of the machine, or its name')
    .option('--socket <path>', 'a unix socket for the same user (default: one in a new private directory)')
    .option('--listen <host:port>', 'TCP; only this machine, unless there is TLS. Port 0 finds a free one')
    .option('--tls-cert <file>', 'PEM certificate chain: clients must use TLS').option('--tls-key <file>', 'its PEM key')
    .option('--tls-ca <file>', 'PEM of the authority whose certificates clients must have')
    .option('--allow-any-client', 'with TLS and without --tls-ca, beyond this machine: whoever reaches the port may read')
    .option('--cache <size>', 'memory for chunks that were read lately (default 128M)', sizeOption)
    .option('--source <name>', 'with "latest": of this source'),
  ['roost nbd latest --source web1', 'roost nbd 3fa9c1d20b77 --disk 1 --socket /run/web1.sock', 'roost nbd latest:/var/lib/db.img --listen 127.0.0.1:10809',
    'roost nbd latest --listen 0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem --tls-ca clients-ca.pem']), async (context, flags, [which]) => {
    const { snapshot, path } = splitSnapshotPath(which!)
    if (path !== undefined && flags.path !== undefined) throw new UsageError('Name the entry once: after the colon, or with --path.')
    const entry = path ?? flags.path
    if (entry !== undefined && flags.disk !== undefined) throw new UsageError('Name the entry once: by its path, or with --disk.')
    const tls = tlsOf(flags)
    requireAddress(flags, tls)
    if (flags.cache !== undefined && flags.cache < CACHE_BYTES_MIN) throw new UsageError(`--cache is at least ${formatBytes(CACHE_BYTES_MIN)}.`)
    const { output, signal, clock } = context
    const { client } = context.repository({ isLong: true })
    // Here, not above: no other command needs them.
    const { openExports } = await import('../../../client/nbd/open-exports.js')
    const { startNbdServer } = await import('../../../client/nbd/server.js')
    const opened = await openExports(client, { ...snapshotChoice(context, snapshot, flags.source), cacheBytes: flags.cache ?? CACHE_BYTES_DEFAULT,
      ...(entry === undefined ? {} : { path: argumentBytes(entry) }),
      ...(flags.disk === undefined ? {} : { disk: flags.disk }) }, signal)
    const place = chooseAddress(flags)
    try {
      const told = new Set<string>()
      const server = await startNbdServer({
        exports: opened.exports, address: place.address, clock, ...(tls === undefined ? {} : { tls }),
        events: {
          connected: (connections) => { output.detail(`a client came; ${connections} now`) },
          disconnected: (connections, reason) => { output.detail(`a client went${reason === undefined ? '' : `: ${reason}`}; ${connections} left`) },
          problem: (name, error) => {
            if (signal.aborted) return
            const { code, message, hint } = tellError(error)
            output.record({ type: 'problem', export: name, code, message })
            // A client asks again and again for what it cannot have: said once.
            if (told.size < 1_000 && !told.has(message)) output.warn(`${printable(name)}: ${printable(message)} [${code}]${hint === undefined ? '' : `\n  ${hint}`}`)
            told.add(message)
          },
        },
      })
      try {
        const uris = opened.exports.map(({ name, image }) => ({ name, bytes: image.bytes, uri: uriOf(server.address, opened.exports.length === 1 ? '' : name, tls !== undefined) }))
        output.record({ type: 'serving', snapshotId: opened.snapshotId, exports: uris, readOnly: true, tls: tls !== undefined })
        for (const { uri } of uris) output.line(uri)
        for (const { name, bytes } of uris) output.note(`${printable(name)} of snapshot ${shortId(opened.snapshotId)}: ${formatBytes(bytes)}, read-only.`)
        output.note('Ctrl-C ends it.')
        await untilAborted(signal)
      } finally { await server.close() }
    } finally {
      place.remove()
      await opened.close()
    }
  })
}

function requireAddress({ socket, listen, allowAnyClient }: NbdFlags, tls: NbdTls | undefined): void {
  if (socket !== undefined && listen !== undefined) throw new UsageError('Choose one: --socket PATH or --listen HOST:PORT.')
  if (socket !== undefined && (socket === '' || Buffer.byteLength(socket) > SOCKET_PATH_BYTES_MAX))
    throw new UsageError(`A socket's path has 1 to ${SOCKET_PATH_BYTES_MAX} bytes; choose a shorter one, such as /run/NAME.sock.`)
  if (listen === undefined) return
  const { host } = parseListen(listen)
  if (isLoopback(host)) return
  if (tls === undefined) throw new UsageError(
    `${host} is reached from other machines, and without TLS everybody on the way reads the disk. Give --tls-cert, --tls-key and --tls-ca, or listen on 127.0.0.1 (ssh -L carries it).`)
  if (tls.ca === undefined && allowAnyClient !== true) throw new UsageError(
    `Whoever reaches ${host} could read the disk. Name with --tls-ca the authority whose certificates clients have, or say --allow-any-client.`)
}
const isLoopback = (host: string): boolean => host === 'localhost' || host === '::1' || isIP(host) === 4 && host.startsWith('127.')

function parseListen(text: string): { readonly host: string; readonly port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]/]+)):(\d{1,5})$/.exec(text)
  const port = Number(match?.[3])
  if (match === null || port > 65_535) throw new UsageError(`"${text}" is not an address to listen on: write HOST:PORT, such as 127.0.0.1:10809 or [::1]:10809.`)
  return { host: match[1] ?? match[2]!, port }
}
function tlsOf({ tlsCert, tlsKey, tlsCa }: NbdFlags): NbdTls | undefined {
  if (tlsCert === undefined && tlsKey === undefined && tlsCa === undefined) return undefined
  if (tlsCert === undefined || tlsKey === undefined) throw new UsageError('TLS needs both: --tls-cert FILE and --tls-key FILE.')
  const read = (path: string): string => {
    try {
      return readFileSync(path, 'utf8')
    } catch (error) {
      if (!isErrno(error)) throw error
      throw new UsageError(`The file ${path} cannot be read: ${error.message}`, { cause: error })
    }
  }
  const tls = { cert: read(tlsCert), key: read(tlsKey), ...(tlsCa === undefined ? {} : { ca: read(tlsCa) }) }
  try {
    createSecureContext(tls)
  } catch (error) {
    throw new UsageError(`Certificate, key or authority are not PEM that fits together: ${(error as Error).message}`, { cause: error })
  }
  return tls
}
function chooseAddress({ socket, listen }: NbdFlags): { readonly address: NbdAddress; remove(): void } {
  if (listen !== undefined) return { address: { kind: 'tcp', ...parseListen(listen) }, remove: () => undefined }
  if (socket !== undefined) return { address: { kind: 'unix', path: socket }, remove: () => undefined } // net.Server removes what it made
  const directory = mkdtempSync(join(tmpdir(), 'roost-nbd-'))
  return { address: { kind: 'unix', path: join(directory, 'nbd.sock') }, remove: () => { rmSync(directory, { recursive: true, force: true }) } }
}
/** As doc/uri.md of the NBD project has it. */
function uriOf(address: NbdAddress, name: string, hasTls: boolean): string {
  const scheme = hasTls ? 'nbds' : 'nbd'
  const path = encodeURIComponent(name)
  if (address.kind === 'tcp') return `${scheme}://${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}/${path}`
  return `${scheme}+unix:///${path}?socket=${encodeURI(address.path).replace(/[?#&;+]/g, encodeURIComponent)}`
}
async function untilAborted(signal: AbortSignal): Promise<void> {
  if (!signal.aborted) await new Promise<void>((resolve) => { signal.addEventListener('abort', () => { resolve() }, { once: true }) })
}
