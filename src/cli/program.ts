/** The command line as a tree of commands; each group declares its own in commands/. */
import { Command } from 'commander'
import type { Registry } from './command.js'
import { registerBackup } from './commands/backup.js'
import { registerBoot } from './commands/boot.js'
import { registerBrowse } from './commands/browse.js'
import { registerGc } from './commands/gc.js'
import { registerJobs } from './commands/jobs.js'
import { registerKey } from './commands/key.js'
import { registerMachine } from './commands/machine.js'
import { registerMaintenance } from './commands/maintenance.js'
import { registerNbd } from './commands/nbd.js'
import { registerReplicate } from './commands/replicate.js'
import { registerRepo } from './commands/repo.js'
import { registerRestore } from './commands/restore.js'
import { registerRetention } from './commands/retention.js'
import { registerServer } from './commands/server.js'
import { registerSnapshots } from './commands/snapshots.js'
import { registerTarget } from './commands/target.js'
import { registerToken } from './commands/token.js'
import type { Runtime } from './context.js'
import type { ExitCode } from './exit-codes.js'

const OVERVIEW = `
Where things are (flags win over the environment, the environment over ~/.config/roost/config.json):
  ROOST_REPOSITORY   http(s)://host:port/NAME
  ROOST_TOKEN_FILE   a file with the token (or ROOST_TOKEN, the token itself; never on the command line)
  ROOST_CA_FILE      the authority that signed the server's certificate
  ROOST_RETRY_SECONDS  how long to go on trying when server or network fail
  ROOST_VERIFY_KEY   the public key that snapshots must be signed with

Exit codes: 0 done · 1 failed · 2 wrong usage · 3 done, but some sources were unreadable or data damaged ·
4 safe in the server's spool, not on its targets yet · 130 interrupted

Examples:
  roost server --data /srv/roost
  roost repo create main
  roost backup /etc /home --exclude-caches
  roost restore latest:/home/ann --target /tmp/back`

export function buildProgram(runtime: Runtime, finish: (code: ExitCode) => void): Command {
  const program = new Command('roost')
  program
    .description('Deduplicating, encrypted backups: a storage-centric server and thin clients.')
    .option('-r, --repository <url>', 'the repository: http(s)://host:port/NAME (ROOST_REPOSITORY)')
    .option('--server <url>', 'the server, for commands that concern no repository (ROOST_SERVER)')
    .option('--token-file <file>', 'a file that holds the token (ROOST_TOKEN_FILE)')
    .option('--ca-file <file>', "PEM of the authority that signed the server's certificate (ROOST_CA_FILE)")
    .option('--verify-key <hex>', 'refuse snapshots that this public key, or one of several with commas between, did not sign (ROOST_VERIFY_KEY)')
    .option('--allow-plain-http', 'send the token unencrypted to another machine (a trusted network)')
    .option('--config <file>', 'the config file (ROOST_CONFIG)')
    .option('--json', 'print results as one JSON object a line')
    .option('-q, --quiet', 'print no progress and no summaries')
    .option('-v, --verbose', 'print more; on failure, the stack')
    .version('0.1.0', '--version')
    .addHelpText('after', OVERVIEW)
    .showHelpAfterError('(--help shows the options)')
    .configureOutput({ writeOut: (text) => { runtime.stdout.write(text) }, writeErr: (text) => { runtime.stderr.write(text) } })
    .exitOverride()
  const registry: Registry = { program, runtime, finish }
  for (const register of [registerServer, registerRepo, registerToken, registerBackup, registerSnapshots, registerBrowse, registerRestore, registerNbd, registerMachine,
    registerBoot, registerGc, registerMaintenance, registerJobs, registerRetention, registerTarget, registerReplicate, registerKey]) register(registry)
  return program
}
