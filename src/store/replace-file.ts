/** Replaces a small local file so that after a crash it is the old one or the new one, whole. */
import { dirname } from 'node:path'
import { isErrno } from '../core/errors.js'
import { systemRandom } from '../core/random.js'
import type { FileEffects } from './file-effects.js'

/** Durable when it resolves. Mode 0600 from the first byte. */
export async function replaceFile(path: string, bytes: Buffer, effects: FileEffects): Promise<void> {
  const temporary = `${path}.${systemRandom.bytes(6).toString('hex')}.tmp`
  try {
    const fd = await effects.open(temporary, { flags: 'wx', mode: 0o600 })
    try {
      await effects.write(fd, bytes, 0)
      await effects.fsync(fd)
    } finally {
      await effects.close(fd)
    }
    await effects.rename(temporary, path)
  } catch (error) {
    await effects.unlink(temporary).catch((failure: unknown) => {
      if (!isErrno(failure, 'ENOENT')) throw failure // it was renamed, or never made
    })
    throw error
  }
  await effects.fsyncDirectory(dirname(path))
}
