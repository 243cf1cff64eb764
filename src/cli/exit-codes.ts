/** What the process's exit code says (docs/operations.md §Exit codes). */
export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  /** The work was done, but something could not be read or was damaged; each case was named. */
  doneWithProblems: 3,
  /** The snapshot is whole in the server's spool, and not on enough of its targets yet. */
  notYetDurable: 4,
  interrupted: 130,
} as const
export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

/** The command line itself is wrong: nothing was attempted. Exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}
