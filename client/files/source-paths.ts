/** The tree of chosen paths: which names to follow from '/' until everything below is wanted. */
import { realpathSync } from 'node:fs'

/** Names are latin1 strings: one character a byte. */
export interface PathPlan { isChosen: boolean; readonly children: Map<string, PathPlan> }

/** Merges absolute paths into a tree; one inside another is covered by it. A path is taken as where its directory really
 *  is: '/bin/sh' with /bin → usr/bin is saved as /usr/bin/sh, since a link on the way cannot also be a directory. The last
 *  name is not followed: a chosen symlink is saved as one. `onMissing` hears of paths whose directory cannot be resolved. */
export function planPaths(paths: readonly Uint8Array[], onMissing: (path: string, error: unknown) => void): PathPlan {
  const root: PathPlan = { isChosen: false, children: new Map() }
  for (const path of paths) {
    const text = Buffer.from(path).toString('latin1')
    let names: string[]
    try { names = resolvedNames(text) } catch (error) { onMissing(text, error); continue }
    let at = root
    for (const name of names) {
      if (at.isChosen) break
      let next = at.children.get(name)
      if (next === undefined) at.children.set(name, next = { isChosen: false, children: new Map() })
      at = next
    }
    at.isChosen = true
    at.children.clear()
  }
  return root
}

function resolvedNames(path: string): string[] {
  const names = path.split('/').filter((name) => name !== '' && name !== '.')
  const last = names.at(-1)
  if (last === undefined) return []
  // '..' at the end names a directory; where that really is decides.
  const followed = last === '..' ? names : names.slice(0, -1)
  const real = realpathSync.native(Buffer.from(`/${followed.join('/')}`, 'latin1'), { encoding: 'buffer' })
  const resolved = real.toString('latin1').split('/').filter((name) => name !== '')
  return last === '..' ? resolved : [...resolved, last]
}
