/** Parts of other services' answers, taken only where they have the shape that is expected. */
import type { Json } from '../../src/openstack/cloud.js'

export const record = (value: unknown): Json => typeof value === 'object' && value !== null && !Array.isArray(value) ? value as Json : {}
export const records = (value: unknown): Json[] => Array.isArray(value) ? value.filter((one) => typeof one === 'object' && one !== null).map(record) : []
export const text = (value: unknown): string | undefined => typeof value === 'string' && value !== '' ? value : undefined
export const whole = (value: unknown): number | undefined => typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : undefined
export const texts = (value: unknown): string[] => Array.isArray(value) ? value.filter((one) => typeof one === 'string') : []
export const textMap = (value: unknown): Record<string, string> =>
  Object.fromEntries(Object.entries(record(value)).filter((pair): pair is [string, string] => typeof pair[1] === 'string'))
