/** YAML (and with it JSON) that people write by hand. The only importer of yaml. */
import { parse } from 'yaml'

/** Every scalar as it is written: a password 0123 or 1e3 is no number. Merge keys count. Throws what the parser throws; its messages quote the text. */
export function parseYamlAsWritten(text: string): unknown { return parse(text, { schema: 'failsafe', merge: true }) }

/** Numbers, booleans and null as YAML 1.2 knows them. Throws what the parser throws; its messages say the line. */
export function parseYaml(text: string): unknown { return parse(text, { schema: 'core', merge: false, maxAliasCount: 0 }) }
