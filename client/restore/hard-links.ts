/** Joins again the names that were one file: the first restored name of a group carries the content, later ones link to it.
 *  Memory: one entry per group whose names were not all seen yet. */
import type { Entry } from '../tree/entry.js'
import type { TargetDirectory } from './target-directory.js'

export interface LinkName { readonly directory: TargetDirectory; readonly entry: Entry }
type Linked = (first: LinkName | undefined) => void
interface Group { unseen: number; state: 'pending' | 'done' | 'failed'; readonly first: LinkName; readonly waiting: Linked[] }

export class HardLinks {
  readonly #groups = new Map<string, Group>()

  /** True when `name` is a later one of its group: `linked` is then called, now or once the first is there, with the first
   *  name, or with undefined when the first could not be restored. False: restore it, then call settle(). */
  joins(name: LinkName, linked: Linked): boolean {
    const key = groupKey(name.entry)
    const group = this.#groups.get(key)
    if (group === undefined) {
      this.#groups.set(key, { unseen: name.entry.linkCount - 1, state: 'pending', first: name, waiting: [] })
      return false
    }
    if (--group.unseen === 0 && group.state !== 'pending') this.#groups.delete(key)
    if (group.state === 'pending') group.waiting.push(linked)
    else linked(group.state === 'done' ? group.first : undefined)
    return true
  }
  settle({ entry }: LinkName, isRestored: boolean): void {
    const key = groupKey(entry)
    const group = this.#groups.get(key)
    if (group === undefined) return
    group.state = isRestored ? 'done' : 'failed'
    for (const linked of group.waiting.splice(0)) linked(isRestored ? group.first : undefined)
    if (group.unseen <= 0) this.#groups.delete(key)
  }
}
export const isHardLinked = (entry: Entry): boolean => entry.linkCount > 1
const groupKey = (entry: Entry): string => `${entry.device}:${entry.inode}`
