/** Real Swift and Keystone for tests. One shared lab is started by scripts/test.mjs (ROOST_LAB names its description); tests that break parts of it
 *  start their own.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { LabDescription, LabOptions } from '../lab/start-lab.mjs'

export type LabPart = 'swift-proxy' | 'swift-kproxy' | 'swift-object' | 'swift-object2' | 'swift-object3' | 'swift-container' | 'swift-account' | 'keystone' | 'memcached'
  | 'glance' | 'nova-api' | 'nova-compute'
export interface Lab extends LabDescription {
  stop(part: LabPart): void
  start(part: LabPart): void
  freeze(part: LabPart): void
  thaw(part: LabPart): void
}
// Not compiled: it is read where it lies, in test/lab of the sources.
const root = fileURLToPath(new URL('.', import.meta.url)).replace(/\/(dist|\.build\/[^/]+)\/test\/support\/$/, '')
const tools = await import(join(root, 'test/lab/start-lab.mjs')) as typeof import('../lab/start-lab.mjs')

export const labInstalled = tools.labInstalled()
/** For `skip` of a test: false when the services are there. */
export const withoutLab = labInstalled ? false : 'Swift and Keystone are not installed (test/lab/install.sh)'

/** For `skip` of a test that needs Glance or Nova. */
export const withoutCloud = tools.cloudInstalled() ? false : 'Glance and Nova are not installed (test/lab/install.sh cloud)'

/** The lab of this run, or undefined where there is none. Its parts must be left alone. */
export function sharedLab(): LabDescription | undefined {
  const path = process.env['ROOST_LAB']
  return path === undefined ? undefined : JSON.parse(readFileSync(path, 'utf8')) as LabDescription
}
/** A lab of the test's own, gone after it. */
export async function startLab(t: Pick<TestContext, 'after'>, options: Omit<LabOptions, 'directory'>): Promise<Lab> {
  const directory = mkdtempSync(join(tmpdir(), 'roost-lab-'))
  const lab = await tools.startLab({ directory, ...options }).catch((error: unknown) => {
    rmSync(directory, { recursive: true, force: true })
    throw error
  })
  t.after(() => { tools.stopLab(lab) })
  return { ...lab, stop: (part) => { tools.controlLab(lab, 'stop', part) }, start: (part) => { tools.controlLab(lab, 'start', part) },
    freeze: (part) => { tools.controlLab(lab, 'freeze', part) }, thaw: (part) => { tools.controlLab(lab, 'thaw', part) } }
}
