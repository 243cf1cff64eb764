/** The architecture as a test: layers, one importer a package, banned calls, cycles, and documents equal to code. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, normalize, relative } from 'node:path'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { ERROR_HINTS } from '../src/cli/error-hints.js'
import { ERROR_CATALOGUE } from '../src/core/errors.js'
import { LIMITS } from '../src/core/limits.js'

/** The project's root, from wherever this file was built to. */
const ROOT = ((): string => {
  let at = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(at, 'package.json'))) at = dirname(at)
  return at
})()

/** Layer → layers that it may import besides itself. `client` may take core's pure parts and the protocol. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  'src/core': [],
  'src/protocol': ['src/core'],
  'src/http': ['src/core'],
  'src/openstack': ['src/core', 'src/http'],
  'src/store': ['src/core', 'src/http', 'src/openstack'],
  'src/index': ['src/core'],
  'src/repo': ['src/core', 'src/store', 'src/index'],
  'src/gc': ['src/core', 'src/store', 'src/index', 'src/repo'],
  'src/replication': ['src/core', 'src/protocol', 'src/repo'],
  'src/server': ['src/core', 'src/protocol', 'src/repo', 'src/gc', 'src/replication'],
  'client': ['src/core', 'src/protocol', 'src/openstack'],
  'src/cli': ['src/core', 'src/protocol', 'src/openstack', 'src/store', 'src/index', 'src/repo', 'src/gc', 'src/replication', 'src/server', 'client'],
}
/** Core files that belong to the server's side: the thin client has no sealing, no store and no YAML. */
const NOT_FOR_CLIENT = ['src/core/seal.ts', 'src/core/yaml.ts']

/** Package → the only file (or folder, with a slash) that may import it. */
const ONLY_IMPORTER: Readonly<Record<string, string>> = {
  blake3: 'src/core/hash.ts',
  tweetnacl: 'src/core/nacl.ts',
  'zstd-napi': 'src/core/zstd.ts',
  lmdb: 'src/index/lmdb-index.ts',
  fastify: 'src/server/',
  pino: 'src/server/logger.ts',
  koffi: 'src/core/ffi.ts',
  commander: 'src/cli/',
  undici: 'src/http/http.ts',
  yaml: 'src/core/yaml.ts',
  croner: 'src/server/jobs/cron-schedule.ts',
  '@aws-sdk/client-s3': 'src/store/s3/s3-client.ts',
  '@aws-sdk/credential-providers': 'src/store/s3/credentials.ts',
}

/** What may not be written → files that may. */
const BANNED: readonly { readonly what: string; readonly pattern: RegExp; readonly except: readonly string[] }[] = [
  { what: 'Date.now() or new Date() outside the clock', pattern: /\bDate\.now\(|\bnew Date\(\s*\)/, except: ['src/core/clock.ts'] },
  { what: 'new Date(ms) outside what is shown to people', pattern: /\bnew Date\(\s*[^)\s]/,
    except: ['src/core/clock.ts', 'src/cli/format.ts', 'src/server/logger.ts'] },
  { what: 'Math.random()', pattern: /\bMath\.random\(/, except: [] },
  { what: 'process.env outside the settings', pattern: /\bprocess\.env\b/, except: ['src/cli/settings.ts'] },
  { what: 'randomBytes outside core/random', pattern: /\b(?:randomBytes|randomUUID)\(/, except: ['src/core/random.ts', 'src/core/nacl.ts'] },
  { what: 'String(error) instead of { cause }', pattern: /\bString\((?:err|error|cause)\b/, except: [] },
  { what: 'a default export', pattern: /^export default\b/m, except: [] },
  { what: 'a barrel (re-export of a whole module)', pattern: /^export \* /m, except: [] },
  { what: 'any', pattern: /\bas any\b|<any\b|\bany\[\]|[\w\])?]: any\b/, except: [] },
  { what: '@ts-ignore', pattern: /@ts-(?:ignore|nocheck)/, except: [] },
]
const COLUMNS_MAX = 200
const FILE_LINES_MAX = 460
const GENERATED = 'client/chunker/gear-wasm.ts'

const sources = [...filesUnder('src'), ...filesUnder('client')]
const text = new Map(sources.map((path) => [path, readFileSync(join(ROOT, path), 'utf8')]))
const codeOnly = new Map([...text].map(([path, source]) => [path, withoutComments(source)]))
const imports = new Map(sources.map((path) => [path, importsOf(path)]))

describe('the architecture', () => {
  test('the probe itself works: it sees the sources and their imports', () => {
    assert.ok(sources.length > 20)
    assert.ok([...imports.values()].flat().some((edge) => edge.startsWith('src/core/')))
    assert.ok(sources.every((path) => layerOf(path) !== undefined), `without a layer: ${sources.filter((path) => layerOf(path) === undefined).join(', ')}`)
  })
  test('every import points down the layers', () => {
    const breaches = [...imports].flatMap(([path, edges]) => edges.filter((edge) => {
      const from = layerOf(path)!
      const to = layerOf(edge)
      return to !== undefined && to !== from && !MAY_IMPORT[from]!.includes(to)
    }).map((edge) => `${path} → ${edge}`))
    assert.deepEqual(breaches, [])
  })
  test('the client takes nothing of the core that belongs to the server', () => {
    const breaches = [...imports].filter(([path]) => path.startsWith('client/'))
      .flatMap(([path, edges]) => edges.filter((edge) => NOT_FOR_CLIENT.includes(edge)).map((edge) => `${path} → ${edge}`))
    assert.deepEqual(breaches, [])
  })
  test('each package has one importer, and no package comes in unlisted', () => {
    const breaches = [...imports].flatMap(([path, edges]) => edges.filter(isPackage).filter((edge) => {
      const owner = ONLY_IMPORTER[packageName(edge)]
      return owner === undefined || !(owner.endsWith('/') ? path.startsWith(owner) : path === owner)
    }).map((edge) => `${path} → ${edge}`))
    assert.deepEqual(breaches, [])
  })
  test('every dependency of package.json is imported somewhere', () => {
    const used = new Set([...imports.values()].flat().filter(isPackage).map(packageName))
    assert.deepEqual(Object.keys(readJson('package.json')['dependencies'] as object).filter((name) => !used.has(name)), [])
  })
  test('no module is part of a cycle', () => assert.deepEqual(findCycles(), []))
  test('nothing banned is written', () => {
    const breaches = BANNED.flatMap(({ what, pattern, except }) =>
      [...codeOnly].filter(([path, code]) => !except.includes(path) && pattern.test(code)).map(([path]) => `${path}: ${what}`))
    assert.deepEqual(breaches, [])
  })
  test('no source file or line is overlong', () => {
    const breaches = [...text].filter(([path]) => path !== GENERATED).flatMap(([path, source]) => {
      const lines = source.split('\n')
      const wide = lines.findIndex((line) => line.length > COLUMNS_MAX)
      return [...(lines.length > FILE_LINES_MAX ? [`${path}: ${lines.length} lines`] : []),
        ...(wide < 0 ? [] : [`${path}:${wide + 1}: ${lines[wide]!.length} columns`])]
    })
    assert.deepEqual(breaches, [])
  })
  test('every source file opens with a header that says what it is', () => {
    assert.deepEqual([...text].filter(([path, source]) => path !== GENERATED && !/^(?:\/\*\*|\/\/)/.test(source)).map(([path]) => path), [])
  })
})

describe('documents and code say the same', () => {
  test('docs/errors.md lists exactly the codes of the catalogue, with their status and advice', () => {
    const documented = [...readText('docs/errors.md').matchAll(/^\| `([A-Z_]+)` \| (\d{3}) \| ([a-z-]+) \|/gm)]
      .map(([, code, http, retry]) => `${code} ${http} ${retry}`)
    const catalogue = Object.entries(ERROR_CATALOGUE).map(([code, { http, retry }]) => `${code} ${http} ${retry}`)
    assert.deepEqual(documented.sort(), catalogue.sort())
  })
  test('docs/limits.md lists exactly the limits, with their values', () => {
    const documented = [...readText('docs/limits.md').matchAll(/^\| `(\w+)` \| ([\d_]+) \|/gm)]
      .map(([, name, value]) => `${name} ${Number(value!.replaceAll('_', ''))}`)
    assert.deepEqual(documented.sort(), Object.entries(LIMITS).map(([name, value]) => `${name} ${value}`).sort())
  })
  test('every code of the catalogue is thrown or answered somewhere', () => {
    const elsewhere = [...codeOnly].filter(([path]) => path !== 'src/core/errors.ts' && path !== 'src/cli/error-hints.ts').map(([, code]) => code)
    assert.deepEqual(Object.keys(ERROR_CATALOGUE).filter((code) => !elsewhere.some((source) => source.includes(`'${code}'`))), [])
  })
  test('every code has a hint that says what to do', () => {
    assert.deepEqual(Object.entries(ERROR_HINTS).filter(([, hint]) => hint.length < 10).map(([code]) => code), [])
  })
  test('every link between documents leads somewhere', () => {
    const documents = ['README.md', ...filesUnder('docs', '.md')]
    const broken = documents.flatMap((path) => [...readText(path).matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)]
      .filter(([, target]) => !existsSync(join(ROOT, dirname(path), target!))).map(([, target]) => `${path} → ${target}`))
    assert.deepEqual(broken, [])
  })
  test('the dependencies are exact, and the lock file names no host', () => {
    const manifest = readJson('package.json') as Record<string, Record<string, string>>
    const loose = [...Object.entries(manifest['dependencies']!), ...Object.entries(manifest['devDependencies']!)]
      .filter(([, version]) => !/^\d+\.\d+\.\d+(?:-[\w.]+)?$/.test(version))
    assert.deepEqual(loose, [])
    assert.doesNotMatch(readText('package-lock.json'), /"resolved":/)
    assert.match(readText('package-lock.json'), /"integrity":/)
  })
})

function filesUnder(directory: string, suffix = '.ts'): string[] {
  if (!existsSync(join(ROOT, directory))) return []
  return readdirSync(join(ROOT, directory)).sort().flatMap((name) => {
    const path = join(directory, name)
    if (path === join('client', 'chunker', 'assembly')) return [] // AssemblyScript: another language, built apart
    return statSync(join(ROOT, path)).isDirectory() ? filesUnder(path, suffix) : path.endsWith(suffix) ? [path] : []
  })
}
function readText(path: string): string { return readFileSync(join(ROOT, path), 'utf8') }
function readJson(path: string): Record<string, unknown> { return JSON.parse(readText(path)) as Record<string, unknown> }

function layerOf(path: string): string | undefined {
  return Object.keys(MAY_IMPORT).find((layer) => path.startsWith(`${layer}/`))
}
const isPackage = (edge: string): boolean => !edge.startsWith('node:') && !/^(?:src|client|test|bench)\//.test(edge)
const packageName = (edge: string): string => edge.split('/').slice(0, edge.startsWith('@') ? 2 : 1).join('/')

/** What a file imports: project files as paths from the root, anything else as written. Workers named by URL count too. */
function importsOf(path: string): string[] {
  const code = codeOnly.get(path)!
  const found = [
    ...code.matchAll(/^\s*(?:import|export)\b[^'"`;]*?\bfrom\s*'([^']+)'/gm), ...code.matchAll(/^\s*import\s*'([^']+)'/gm),
    ...code.matchAll(/\bimport\(\s*'([^']+)'\s*\)/g), ...code.matchAll(/\bnew URL\(\s*'(\.[^']+)',\s*import\.meta\.url/g),
  ].map(([, target]) => target!)
  return found.map((target) => target.startsWith('.')
    ? relative(ROOT, normalize(join(ROOT, dirname(path), target))).replace(/\.js$/, '.ts') : target)
}
/** Modules that import each other round; type-only imports do not run and so do not count. */
function findCycles(): string[] {
  const edges = new Map(sources.map((path) => [path, runtimeImportsOf(path)]))
  const state = new Map<string, 'open' | 'done'>()
  const cycles: string[] = []
  const visit = (path: string, trail: readonly string[]): void => {
    if (state.get(path) === 'done') return
    if (state.get(path) === 'open') { cycles.push([...trail.slice(trail.indexOf(path)), path].join(' → ')); return }
    state.set(path, 'open')
    for (const next of edges.get(path) ?? []) visit(next, [...trail, path])
    state.set(path, 'done')
  }
  for (const path of sources) visit(path, [])
  return cycles
}
function runtimeImportsOf(path: string): string[] {
  return [...codeOnly.get(path)!.matchAll(/^\s*(?:import|export)\s+(?!type\b)[^'"`;]*?\bfrom\s*'(\.[^']+)'/gm)]
    .map(([, target]) => relative(ROOT, normalize(join(ROOT, dirname(path), target!))).replace(/\.js$/, '.ts'))
}
/** Blanks comments, keeping strings (import paths) and line structure. */
function withoutComments(source: string): string {
  return source.replace(/'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|\/\*[\s\S]*?\*\/|(?<![:\\/'])\/\/[^\n]*/g, (match) =>
    match.startsWith('/') ? match.replace(/[^\n]/g, ' ') : match)
}
