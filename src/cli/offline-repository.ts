/** A repository opened straight from a data directory, while no server has it: for check and rebuild. */
import type { Repository } from '../repo/repository.js'
import { DataLockedError, lockDataDirectory } from '../server/data-lock.js'
import { SERVER_CONFIG_DEFAULTS } from '../server/config.js'
import type { CommandContext } from './context.js'
import { processEnvironment } from './settings.js'
import { UsageError } from './exit-codes.js'

export async function withOfflineRepository(context: CommandContext, where: { readonly dataDirectory: string; readonly name: string },
  work: (repository: Repository) => Promise<void>): Promise<void> {
  // Loaded here, not above: commands that go through the server must not carry the repository's parts.
  const { openRepositoryHost } = await import('../repo/repository-host.js')
  const { collectGarbage } = await import('../gc/collect.js')
  const lock = await lockDataDirectory(where.dataDirectory).catch((error: unknown) => {
    if (error instanceof DataLockedError)
      throw new UsageError(`${error.message} Stop the server first, or ask it: leave --data out.`, { cause: error })
    throw error
  })
  try {
    const host = await openRepositoryHost({
      dataDirectory: where.dataDirectory, workers: SERVER_CONFIG_DEFAULTS.workers, spoolBytes: SERVER_CONFIG_DEFAULTS.spoolBytes,
      environment: processEnvironment(), collector: collectGarbage,
      report: (repository, event) => {
        if (event.type !== 'recovered' && event.error !== undefined) context.output.warn(`${repository}: ${event.error.message}`)
      },
    })
    try {
      await work(host.get(where.name))
    } finally {
      await host.close()
    }
  } finally {
    await lock.release()
  }
}
