// Makes a fresh clone runnable: installs the locked dependencies if they are absent and builds. Shared by the other scripts.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('..', import.meta.url))

/** Runs a command with the terminal's streams; exits with its code when it fails. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: ROOT, stdio: 'inherit', ...options })
  if (result.error !== undefined) {
    console.error(`${command} could not be started: ${result.error.message}`)
    process.exit(1)
  }
  if (result.status !== 0) process.exit(result.status ?? 1)
}

export function installIfNeeded() {
  if (existsSync(join(ROOT, 'node_modules', '.package-lock.json'))) return
  console.log('Installing dependencies (npm ci) …')
  run('npm', ['ci', '--no-audit', '--no-fund'])
}

export function build() {
  run(process.execPath, [join('scripts', 'build-wasm.mjs')])
  run(process.execPath, [join('node_modules', 'typescript', 'bin', 'tsc')])
}

/** Every file under `directory` that `accept` takes, sorted: the order of tests is the same everywhere. */
export function filesUnder(directory, accept) {
  const found = []
  for (const name of readdirSync(directory)) {
    const path = join(directory, name)
    if (statSync(path).isDirectory()) found.push(...filesUnder(path, accept))
    else if (accept(path)) found.push(path)
  }
  return found.sort()
}
