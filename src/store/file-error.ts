/** The one translator of file system errors into catalogued ones, each with a sentence that says what to do.
 *
 *  ENOENT is not here: whether a missing name is an absent object or a vanished disk is for the store to find out.
 */
import { RoostError, isErrno } from '../core/errors.js'

const ADVICE: Readonly<Record<string, string>> = {
  ENOSPC: 'it is full; free space on it or enlarge it',
  EDQUOT: 'its quota is used up; raise the quota or free space',
  EFBIG: 'the object is larger than its file system allows; use another file system',
  EACCES: 'access is denied; give the server\'s user read and write permission on it',
  EPERM: 'the operation is not permitted; check the owner and the flags of the folder',
  EROFS: 'it is mounted read-only; check the disk and mount it writable',
  EIO: 'the disk reports an input/output error; check the disk and the kernel log',
  ENOTDIR: 'a file stands where a folder is needed; move the foreign file away',
  EISDIR: 'a folder stands where an object is needed; move the foreign folder away',
  ELOOP: 'symbolic links form a loop; mend them',
  ENAMETOOLONG: 'its path is too long; use a shorter one',
}

/** @returns the RoostError for an errno exception; everything else (ours to fix, or a cancellation) unchanged. */
export function toStoreError(error: unknown, place: string): unknown {
  if (!isErrno(error) || error instanceof RoostError) return error
  const code = error.code ?? 'unknown'
  const advice = ADVICE[code]
  if (advice !== undefined) return new RoostError('STORE_REFUSED', `The target ${place} refused: ${advice}.`, { errno: code }, { cause: error })
  return new RoostError('STORE_UNAVAILABLE', `The target ${place} does not answer as it should (${code}); check that it is mounted and healthy.`,
    { errno: code }, { cause: error })
}
