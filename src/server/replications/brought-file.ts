/** What a replication has brought: a file of lines, one snapshot's id each. Losing it, or its last lines, brings back what its sink's retention dropped; no more. */
import { appendFile, readFile, rm } from 'node:fs/promises'
import { isErrno } from '../../core/errors.js'
import type { Brought } from '../../replication/run-replication.js'
import { writePrivateFile } from '../atomic-json-file.js'

export class BroughtFile implements Brought {
  readonly #ids: Set<string>
  private constructor(readonly path: string, ids: Set<string>) { this.#ids = ids }
  static async open(path: string): Promise<BroughtFile> {
    try {
      const lines = (await readFile(path, 'utf8')).split('\n')
      return new BroughtFile(path, new Set(lines.filter((line) => /^[0-9a-f]{64}$/.test(line)))) // a line that a crash cut short is none
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return new BroughtFile(path, new Set())
      throw error
    }
  }
  has(id: string): boolean { return this.#ids.has(id) }
  list(): readonly string[] { return [...this.#ids] }
  async add(id: string): Promise<void> {
    if (this.#ids.has(id)) return
    this.#ids.add(id)
    await appendFile(this.path, `\n${id}\n`, { mode: 0o600 })
  }
  async keepOnly(isListed: (id: string) => boolean): Promise<void> {
    const kept = [...this.#ids].filter(isListed)
    if (kept.length === this.#ids.size) return
    await writePrivateFile(this.path, kept.map((id) => `${id}\n`).join(''))
    this.#ids.clear()
    for (const id of kept) this.#ids.add(id)
  }
  static async remove(path: string): Promise<void> { await rm(path, { force: true }) }
}
