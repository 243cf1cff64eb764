/** What a machine writes to its serial console: the last lines, cleaned of what moves a cursor, and whether a line fits. Memory: LINES_KEPT lines. */
import type { Readable } from 'node:stream'

const LINES_KEPT = 200
const LINE_CHARACTERS_MAX = 4_096
/** Of ANSI: boot loaders draw with them. */
const ESCAPES = /\u001b(?:\[[0-9;?]*[A-Za-z]|[()][A-Za-z0-9]|[=>cMDE78])/g
const UNPRINTABLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g

export class SerialLog {
  readonly #lines: string[] = []
  #line = ''
  #test: ((line: string) => boolean) | undefined
  #found: () => void = () => undefined
  /** Resolves when a line fits, and also the line that is not at its end yet: prompts have no newline. */
  readonly matched: Promise<void>
  constructor(stream: Readable, test?: (line: string) => boolean) {
    this.#test = test
    this.matched = new Promise((resolve) => { this.#found = resolve })
    stream.setEncoding('latin1')
    stream.on('data', (text: string) => { this.#take(text) }).on('error', () => undefined) // its end is QEMU's, which is told
  }
  lines(count: number): string[] { return [...this.#lines, ...(this.#line === '' ? [] : [clean(this.#line)])].slice(-count) }

  #take(text: string): void {
    for (const [i, part] of text.split('\n').entries()) {
      if (i > 0) this.#endLine()
      this.#line = (this.#line + part).slice(0, LINE_CHARACTERS_MAX)
    }
    this.#look(this.#line)
  }
  #endLine(): void {
    this.#look(this.#line)
    this.#lines.push(clean(this.#line))
    if (this.#lines.length > LINES_KEPT) this.#lines.shift()
    this.#line = ''
  }
  #look(line: string): void {
    if (this.#test?.(clean(line)) !== true) return
    this.#test = undefined
    this.#found()
  }
}
const clean = (line: string): string => Buffer.from(line, 'latin1').toString('utf8').replace(ESCAPES, '').replace(UNPRINTABLE, '')
