/** One backup of a machine at a time, on this host: a name in the kernel's table of abstract sockets.
 *
 *  It ends with the process that holds it, however that ends, so there is no stale lock to recognise. Its reach is the network namespace.
 */
import { createServer } from 'node:net'
import { isErrno } from '../../src/core/errors.js'
import { digest } from '../../src/core/hash.js'

export interface MachineLock { release(): void }

/** Undefined: somebody alive holds it. */
export async function tryLock(what: string): Promise<MachineLock | undefined> {
  // sockaddr_un has 107 bytes for it: any name becomes a digest.
  const path = `\0roost-${digest(Buffer.from(what)).toString('hex').slice(0, 40)}`
  const server = createServer((socket) => { socket.destroy() })
  try {
    await new Promise<void>((resolve, reject) => { server.once('error', reject).listen({ path }, resolve) })
  } catch (error) {
    if (isErrno(error, 'EADDRINUSE')) return undefined
    throw error
  }
  server.unref()
  return { release: () => { server.close() } }
}
