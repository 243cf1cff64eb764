/** The plain way to do many of something, for targets that have no request for it. */
import { forEachBounded } from '../core/concurrency.js'
import type { ByteRange, Call, ObjectKey, ObjectStore } from './object-store.js'

const DELETES_IN_FLIGHT_MAX = 4

export async function rangesOneByOne(store: Pick<ObjectStore, 'getRange'>, key: ObjectKey, ranges: readonly ByteRange[],
  call?: Call): Promise<Buffer[] | undefined> {
  const parts: Buffer[] = []
  for (const range of ranges) {
    const bytes = await store.getRange(key, range, call)
    if (bytes === undefined) return undefined
    parts.push(bytes)
  }
  return parts
}
export function deleteOneByOne(store: Pick<ObjectStore, 'delete'>, keys: readonly ObjectKey[], call?: Call): Promise<void> {
  return forEachBounded(keys, DELETES_IN_FLIGHT_MAX, (key) => store.delete(key, call))
}
