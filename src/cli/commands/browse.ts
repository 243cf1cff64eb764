/** Placeholder. */
import type { Registry } from '../command.js'
export function registerBrowse(_registry: Registry): void { return }
