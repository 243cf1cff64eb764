/** How a command is declared: the option parser's boilerplate in one place. */
import { Command, InvalidArgumentError, Option } from 'commander'
import { CommandContext, type CommandWork, type Runtime } from './context.js'
import { UsageError, type ExitCode } from './exit-codes.js'
import { parseBytes, parseInstant, parseSpan } from './format.js'
import type { GlobalFlags } from './settings.js'

export interface Registry {
  readonly program: Command
  readonly runtime: Runtime
  /** Called once a command ended well. */
  finish(code: ExitCode): void
}

/** Connects a command with its work: a context for it, closed whatever happens. */
export function does<Flags>(registry: Registry, command: Command, work: CommandWork<Flags>): Command {
  return command.action(async () => {
    const flags = command.optsWithGlobals<GlobalFlags & Flags>()
    const context = new CommandContext(registry.runtime, flags)
    try {
      registry.finish(await work(context, flags, command.args) ?? 0)
    } finally {
      await context.close()
    }
  })
}

export function withExamples(command: Command, examples: readonly string[]): Command {
  return command.addHelpText('after', `\nExamples:\n${examples.map((line) => `  ${line}`).join('\n')}`)
}

/** Gathers an option that may be given more than once. */
export const collect = (value: string, before: readonly string[] = []): readonly string[] => [...before, value]

/** Lets the parser report a wrong value with the option's name. */
const readBy = <T>(parse: (text: string) => T) => (text: string): T => {
  try {
    return parse(text)
  } catch (error) {
    if (error instanceof UsageError) throw new InvalidArgumentError(error.message)
    throw error
  }
}
export const sizeOption = readBy(parseBytes)
export const spanOption = readBy(parseSpan)
export const dateOption = readBy(parseInstant)
export function countOption(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('It must be a whole number.')
  return Number(text)
}
export const choiceOption = (flags: string, description: string, choices: readonly string[], fallback?: string): Option => {
  const option = new Option(flags, description).choices([...choices])
  return fallback === undefined ? option : option.default(fallback)
}
