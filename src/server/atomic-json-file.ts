/** Small private files that are whole or absent: temp + fsync + rename + directory fsync, mode 0600. */
import { open, readFile, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { isErrno } from '../core/errors.js'

/** The parsed JSON, or undefined when the file is absent. Any other failure throws: unreadable is not absent. */
export async function readJsonFile(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as unknown
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return undefined
    throw new Error(`${path} cannot be read`, { cause: error })
  }
}

export async function writeJsonFile(path: string, value: unknown): Promise<void> {
  await writePrivateFile(path, JSON.stringify(value, null, 2) + '\n')
}

/** Durable when it resolves; before that the old content or the new one is found, never a mixture.
 *  Concurrency: one writer a path at a time. */
export async function writePrivateFile(path: string, content: string): Promise<void> {
  const temporary = `${path}.new`
  await rm(temporary, { force: true })
  // 'wx' after rm: a file of someone else's making, with other permissions, is never written into.
  const file = await open(temporary, 'wx', 0o600)
  try {
    await file.writeFile(content)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(temporary, path)
  const directory = await open(dirname(path), 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}
