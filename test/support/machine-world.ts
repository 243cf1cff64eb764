/** A server with the snapshot of a bootable machine, and a temporary directory that tells what commands leave behind. */
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import type { TestContext } from 'node:test'
import { openWorld, type RoostWorld } from './run-roost.js'

export async function worldWithMachine(t: TestContext, images: string): Promise<RoostWorld> {
  const world = await openWorld(t)
  mkdirSync(world.path('tmp'))
  world.environment['TMPDIR'] = world.path('tmp')
  await world.ok(['backup', '--image', `${images}/boot.raw`, '--source', 'web1'])
  return world
}
export const leftBehind = (world: RoostWorld): string[] => readdirSync(world.path('tmp')).filter((name) => name.startsWith('roost-'))
/** QEMUs whose sockets are in the world. */
export function machinesOf(world: RoostWorld): number[] {
  return readdirSync('/proc').filter((pid) => /^\d+$/.test(pid)).map(Number).filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(world.path('tmp')) && readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('qemu')
    } catch {
      return false // it is gone
    }
  })
}
export async function until(what: () => boolean | Promise<boolean>, why: () => string = () => 'it'): Promise<void> {
  for (let attempt = 0; attempt < 600; attempt++) {
    if (await what()) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error(`it did not come to pass: ${why()}`)
}
