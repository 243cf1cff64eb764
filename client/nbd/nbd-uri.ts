/** Addresses of NBD exports as others write them: nbd://HOST[:PORT]/EXPORT, nbds:// with TLS, nbd+unix:///EXPORT?socket=PATH (the NBD project's uri.md). */
import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import type { NbdClientTls, NbdOrigin } from '../image/open-source.js'

const PORT_DEFAULT = 10_809
export const isNbdUri = (text: string): boolean => /^nbds?(?:\+[a-z]+)?:/i.test(text)

/** `?tls-certificates=DIR`, as of libnbd: ca-cert.pem, and client-cert.pem with client-key.pem where the server asks who we are.
 *  @throws {ClientError} URL_MALFORMED; errno exceptions of those files */
export function parseNbdUri(text: string): NbdOrigin {
  let url: URL
  try {
    url = new URL(text)
  } catch (error) {
    throw malformed(text, 'it is no URI', error)
  }
  const query = url.searchParams
  for (const name of query.keys()) if (name !== 'socket' && name !== 'tls-certificates' && name !== 'tls-hostname') throw malformed(text, `what "${name}" means is not known`)
  const exportName = decoded(text, url.pathname.replace(/^\//, ''))
  if (url.username !== '' || url.hash !== '') throw malformed(text, 'users and fragments have no place in it')
  switch (url.protocol) {
    case 'nbd+unix:': {
      const path = query.get('socket')
      if (url.hostname !== '' || path === null || path === '') throw malformed(text, 'a unix socket is named by ?socket=PATH, after three slashes')
      return { kind: 'nbd', address: { kind: 'unix', path }, exportName }
    }
    case 'nbd:': case 'nbds:': {
      const host = url.hostname.replace(/^\[|\]$/g, '')
      if (host === '' || query.has('socket')) throw malformed(text, 'it names no host')
      const port = url.port === '' ? PORT_DEFAULT : Number(url.port)
      const tls = url.protocol === 'nbds:' ? readTls(query) : undefined
      if (tls === undefined && query.size > 0) throw malformed(text, 'certificates are for nbds://')
      return { kind: 'nbd', address: { kind: 'tcp', host, port, ...(tls === undefined ? {} : { tls }) }, exportName }
    }
    default: throw malformed(text, `${url.protocol}// is not one of nbd://, nbds:// and nbd+unix://`)
  }
}
/** As parseNbdUri reads it, without certificates. */
export function formatNbdUri({ address, exportName }: NbdOrigin): string {
  const name = exportName.split('/').map(encodeURIComponent).join('/')
  if (address.kind === 'unix') return `nbd+unix:///${name}?socket=${encodeURIComponent(address.path)}`
  return `nbd${address.tls === undefined ? '' : 's'}://${isIP(address.host) === 6 ? `[${address.host}]` : address.host}:${address.port}/${name}`
}
function readTls(query: URLSearchParams): NbdClientTls {
  const directory = query.get('tls-certificates')
  const serverName = query.get('tls-hostname')
  const named = serverName === null ? {} : { serverName }
  if (directory === null) return named
  const cert = optional(join(directory, 'client-cert.pem'))
  return { ...named, ca: readFileSync(join(directory, 'ca-cert.pem'), 'utf8'),
    ...(cert === undefined ? {} : { cert, key: readFileSync(join(directory, 'client-key.pem'), 'utf8') }) }
}
function optional(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return undefined
    throw error
  }
}
function decoded(text: string, name: string): string {
  try {
    return decodeURIComponent(name)
  } catch (error) {
    throw malformed(text, 'its export is encoded wrongly', error)
  }
}
function malformed(text: string, problem: string, cause?: unknown): ClientError {
  return new ClientError('URL_MALFORMED', `${JSON.stringify(text)} is not the address of an NBD export: ${problem}.`, cause === undefined ? undefined : { cause })
}
