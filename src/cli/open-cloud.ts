/** The cloud that OS_* variables or clouds.yaml name, for commands that deal with OpenStack. Logs in when it is first asked something. */
import type { Cloud } from '../openstack/cloud.js'
import type { CommandContext } from './context.js'

/** Interactive: somebody waits, and a backup goes on without. */
const ANSWER_MS = 20_000

export async function withCloud<T>(context: CommandContext, name: string | undefined, work: (cloud: Cloud) => Promise<T>): Promise<T> {
  // Here, not above: few commands need them.
  const { Cloud } = await import('../openstack/cloud.js')
  const { readCloudConfig } = await import('../openstack/cloud-config.js')
  const cloud = new Cloud({ readConfig: () => readCloudConfig(name, context.runtime.environment), clock: context.clock, deadlines: { answerMs: ANSWER_MS } })
  try {
    return await work(cloud)
  } finally {
    await cloud.close()
  }
}
