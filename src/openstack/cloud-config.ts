/** Where and as whom to log in, from clouds.yaml or the OS_* variables, as OpenStack's own clients read them (openstacksdk). Read anew at every
 *  login, so that credentials change without a restart.
 */
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { isErrno } from '../core/errors.js'
import { parseYamlAsWritten } from '../core/yaml.js'
import { CloudError } from './cloud-error.js'

export type Environment = Readonly<Record<string, string | undefined>>
export interface CloudConfig {
  /** For messages: "cloud NAME of PATH" or "the OS_* variables". */
  readonly origin: string
  readonly authType: 'password' | 'applicationCredential' | 'token' | 'v1'
  readonly authUrl: string
  /** Values of the `auth` section, by openstacksdk's names. */
  readonly auth: Readonly<Record<string, string>>
  readonly region?: string
  readonly interface?: string
  /** By openstacksdk's name of the service, with underscores: `object_store`, `compute`, `image`, `network`. */
  readonly endpointOverrides: Readonly<Record<string, string>>
  readonly ca?: string
  readonly verify: boolean
}

const AUTH_KEYS = ['auth_url', 'username', 'user_id', 'password', 'user_domain_name', 'user_domain_id', 'project_name', 'project_id', 'project_domain_name',
  'project_domain_id', 'domain_name', 'domain_id', 'system_scope', 'trust_id', 'default_domain', 'default_domain_name', 'default_domain_id', 'token',
  'application_credential_id', 'application_credential_name', 'application_credential_secret'] as const
const ALIASES: Readonly<Record<string, string>> = { tenant_name: 'project_name', tenant_id: 'project_id', user_name: 'username', auth_token: 'token' }
const AUTH_TYPES: Readonly<Record<string, CloudConfig['authType']>> = {
  password: 'password', v3password: 'password', token: 'token', v3token: 'token', v3applicationcredential: 'applicationCredential', v1password: 'v1' }

/** @param cloud a name in clouds.yaml; undefined: OS_CLOUD, else the variables alone.
 *  @throws {CloudError} CLOUD_NOT_CONFIGURED naming what is missing, never a secret */
export async function readCloudConfig(cloud: string | undefined, environment: Environment, auth?: string): Promise<CloudConfig> {
  const name = auth === 'env' ? undefined : cloud ?? emptyAsAbsent(environment['OS_CLOUD'])
  return name === undefined ? fromEnvironment(environment) : await fromFiles(name, environment)
}

async function fromFiles(name: string, environment: Environment): Promise<CloudConfig> {
  const found = await readFirst('clouds', environment['OS_CLIENT_CONFIG_FILE'], environment)
  if (found === undefined) throw refused(`There is no clouds.yaml to look up the cloud "${name}" in: set OS_CLIENT_CONFIG_FILE, or put it in /etc/openstack.`)
  const secure = await readFirst('secure', environment['OS_CLIENT_SECURE_FILE'], environment)
  const section = merged(cloudOf(found.value, name), cloudOf(secure?.value, name))
  const origin = `the cloud "${name}" in ${found.path}`
  if (section === undefined) throw refused(`${found.path} has no cloud named "${name}".`)
  const authSection = isRecord(section['auth']) ? section['auth'] : {}
  if (section['profile'] !== undefined && authSection['auth_url'] === undefined)
    throw refused(`${origin} rests on the vendor profile ${JSON.stringify(section['profile'])}; write its auth_url into the section.`)
  const text = (key: string): string | undefined => scalar(section[key])
  const verify = !isNo(section['verify']) && !isYes(section['insecure'])
  return await finish(origin, collectAuth((key) => scalar(authSection[key]) ?? text(key)), {
    authType: text('auth_type'), region: text('region_name') ?? firstRegion(section['regions']), interface: text('interface') ?? text('endpoint_type'),
    endpointOverrides: overridesBy((service) => text(`${service}_endpoint_override`)), caFile: text('cacert'), verify })
}
function fromEnvironment(environment: Environment): Promise<CloudConfig> {
  const of = (name: string): string | undefined => emptyAsAbsent(environment[name])
  const auth = collectAuth((key) => of(`OS_${key.toUpperCase()}`))
  if (auth['auth_url'] === undefined && of('ST_AUTH') !== undefined)
    return finish('the ST_* variables', { auth_url: of('ST_AUTH')!, ...(of('ST_USER') && { username: of('ST_USER')! }), ...(of('ST_KEY') && { password: of('ST_KEY')! }) },
      { authType: 'v1password', endpointOverrides: {}, verify: true })
  return finish('the OS_* variables', auth, { authType: of('OS_AUTH_TYPE'), region: of('OS_REGION_NAME'), interface: of('OS_INTERFACE') ?? of('OS_ENDPOINT_TYPE'),
    endpointOverrides: overridesBy((service) => of(`OS_${service.toUpperCase()}_ENDPOINT_OVERRIDE`) ?? (service === 'object_store' ? of('OS_STORAGE_URL') : undefined)), caFile: of('OS_CACERT'),
    verify: !['1', 'true', 'yes'].includes((of('OS_INSECURE') ?? '').toLowerCase()) })
}

interface Rest {
  authType: string | undefined; region?: string | undefined; interface?: string | undefined; endpointOverrides: Readonly<Record<string, string>>; caFile?: string | undefined; verify: boolean
}
async function finish(origin: string, auth: Readonly<Record<string, string>>, rest: Rest): Promise<CloudConfig> {
  const authType = rest.authType === undefined ? guessType(auth) : AUTH_TYPES[rest.authType]
  if (authType === undefined) throw refused(`${origin}: the auth_type ${JSON.stringify(rest.authType)} is not supported; there are ${Object.keys(AUTH_TYPES).join(', ')}.`)
  const authUrl = auth['auth_url']
  if (authUrl === undefined || !/^https?:\/\//.test(authUrl)) throw refused(`${origin} gives no auth_url that starts with http:// or https://.`)
  const needs = { password: ['password'], v1: ['username', 'password'], token: ['token'], applicationCredential: ['application_credential_secret'] }[authType]
  for (const key of needs) if (auth[key] === undefined) throw refused(`${origin} gives no ${key}.`)
  if (authType === 'password' && auth['username'] === undefined && auth['user_id'] === undefined) throw refused(`${origin} gives no username.`)
  const ca = rest.caFile === undefined ? undefined : await readFile(rest.caFile, 'utf8').catch((error: unknown) => {
    throw refused(`${origin}: the cacert file ${rest.caFile} cannot be read.`, error)
  })
  const { verify, endpointOverrides } = rest
  return { origin, authType, authUrl, auth, verify, endpointOverrides,
    ...(rest.region && { region: rest.region }), ...(rest.interface && { interface: rest.interface }),
    ...(ca !== undefined && { ca }) }
}
function guessType(auth: Readonly<Record<string, string>>): CloudConfig['authType'] {
  if (auth['application_credential_secret'] !== undefined) return 'applicationCredential'
  return auth['token'] !== undefined && auth['password'] === undefined ? 'token' : 'password'
}
const OVERRIDABLE = ['object_store', 'compute', 'image', 'network'] as const
function overridesBy(of: (service: string) => string | undefined): Record<string, string> {
  return Object.fromEntries(OVERRIDABLE.flatMap((service) => {
    const url = of(service)
    return url === undefined ? [] : [[service, url] as const]
  }))
}
function collectAuth(of: (key: string) => string | undefined): Record<string, string> {
  const auth: Record<string, string> = {}
  for (const [alias, key] of Object.entries(ALIASES)) { const value = of(alias); if (value !== undefined) auth[key] = value }
  for (const key of AUTH_KEYS) { const value = of(key); if (value !== undefined) auth[key] = value }
  return auth
}

/** As openstacksdk looks: the named file, else the working directory, the user's and the system's. */
async function readFirst(stem: string, named: string | undefined, environment: Environment): Promise<{ path: string; value: unknown } | undefined> {
  const home = environment['HOME'] ?? homedir()
  const directories = ['.', join(environment['XDG_CONFIG_HOME'] ?? join(home, '.config'), 'openstack'), '/etc/openstack']
  const paths = emptyAsAbsent(named) === undefined ? directories.flatMap((at) => ['yaml', 'yml', 'json'].map((ending) => join(at, `${stem}.${ending}`))) : [named!]
  for (const path of paths) {
    let text: string
    try { text = await readFile(path, 'utf8') } catch (error) {
      if (isErrno(error, 'ENOENT') && paths.length > 1) continue
      throw refused(`${path} cannot be read.`, error)
    }
    try { return { path, value: parseYamlAsWritten(text) } } catch { throw refused(`${path} is not YAML.`) } // the parser's message would quote secrets
  }
  return undefined
}
function cloudOf(value: unknown, name: string): Record<string, unknown> | undefined {
  const clouds = isRecord(value) ? value['clouds'] : undefined
  const section = isRecord(clouds) ? clouds[name] : undefined
  return isRecord(section) ? section : undefined
}
function merged(below: Record<string, unknown> | undefined, above: Record<string, unknown> | undefined): Record<string, unknown> | undefined {
  if (below === undefined || above === undefined) return below ?? above
  const result = { ...below }
  for (const [key, value] of Object.entries(above)) result[key] = isRecord(value) && isRecord(result[key]) ? merged(result[key], value) : value
  return result
}
const firstRegion = (regions: unknown): string | undefined => Array.isArray(regions) ? scalar(isRecord(regions[0]) ? regions[0]['name'] : regions[0]) : undefined
const scalar = (value: unknown): string | undefined => typeof value === 'string' && !['', '~', 'null'].includes(value) ? value : undefined
const isNo = (value: unknown): boolean => typeof value === 'string' && /^(false|no|off|0)$/i.test(value)
const isYes = (value: unknown): boolean => typeof value === 'string' && /^(true|yes|on|1)$/i.test(value)
const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value)
const emptyAsAbsent = (text: string | undefined): string | undefined => text === '' ? undefined : text
const refused = (message: string, cause?: unknown): CloudError => new CloudError('CLOUD_NOT_CONFIGURED', message, {}, cause === undefined ? undefined : { cause })
