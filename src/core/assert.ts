/** Programmer's errors: broken assumptions of ours. Never caught below the process's edge. */
import { AssertionError } from 'node:assert'

export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError({ message, stackStartFn: assert })
}
export function assertNever(value: never): never {
  throw new AssertionError({ message: `unexpected case: ${JSON.stringify(value)}` })
}
