/** Reading what QEMU answers: a field that is absent or of another type is undefined, never a crash. */
export type Fields = Readonly<Record<string, unknown>>

export const fieldsOf = (value: unknown): Fields => typeof value === 'object' && value !== null && !Array.isArray(value) ? value as Fields : {}
export const listOf = (value: unknown): readonly Fields[] => Array.isArray(value) ? value.map(fieldsOf) : []
export const textOf = (value: unknown): string | undefined => typeof value === 'string' && value !== '' ? value : undefined
export const countOf = (value: unknown): number | undefined => typeof value === 'number' && Number.isSafeInteger(value) ? value : undefined
