/** Waits until a descriptor is readable: poll(2), for at most a short while, so that the waiting thread can be stopped. */
import { setImmediate as turn } from 'node:timers/promises'
import { isErrno } from '../../src/core/errors.js'
import { koffi } from '../../src/core/ffi.js'

const POLLIN = 1
/** Longest stretch in which the thread hears nothing else. */
const STRETCH_MS = 200

let poll: ((fds: Buffer, count: number, timeoutMs: number) => number) | undefined

/** Resolves when a read of `fd` will not block: bytes, end of file, or an error to be met. Rejects with `signal.reason`. */
export async function readable(fd: number, signal: AbortSignal): Promise<void> {
  poll ??= koffi.load(null).func('int poll(void *fds, unsigned long count, int timeout)')
  const entry = Buffer.alloc(8)
  entry.writeInt32LE(fd, 0)
  entry.writeInt16LE(POLLIN, 4)
  for (;;) {
    signal.throwIfAborted()
    const ready = poll(entry, 1, 0) // the usual case costs no turn of the event loop
    if (ready > 0) return
    await turn()
    signal.throwIfAborted()
    if (poll(entry, 1, STRETCH_MS) > 0) return
  }
}
/** EAGAIN of a descriptor that someone else made non-blocking. */
export const isTryAgain = (error: unknown): boolean => isErrno(error, 'EAGAIN') || isErrno(error, 'EINTR')
