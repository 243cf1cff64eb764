// npm run bench: builds, then measures Roost beside restic and borg, and its parts by themselves (docs/benchmarks.md).
//
//   npm run bench                                 the comparison, on system files of this machine, then the parts and the index
//   npm run bench -- --data DIR [--image FILE]    the comparison on given data
//   npm run bench -- --only tree|image|parts      one of them; --rounds N repeats the comparison and shows medians
//   npm run bench -- --only targets               uploads to real Swift beside curl
//   npm run bench -- --only boot                  a guest from `roost nbd` beside the local raw file, packs on files and on Swift
//   npm run bench -- --only disks --gib N         a disk by its dirty bitmap, beside nbdcopy, qemu-img and restic
//   npm run bench -- --only vm                    a machine's disk after 1 % random writes, against restic and reading it all
//   npm run bench -- --only gc --chunks N         a collection at N chunks, and repacking beside a plain copy
//   npm run bench -- --only replication           between two servers, with latency, beside a plain copy of the same packs
//   npm run bench -- --only index --chunks N      the index at N chunks (1 000 000 and 10 000 000 without)
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { build, installIfNeeded, ROOT, run } from './prepare.mjs'

const given = process.argv.slice(2)
const only = given.includes('--only') ? given[given.indexOf('--only') + 1] : undefined
const chunks = given.includes('--chunks') ? [given[given.indexOf('--chunks') + 1]] : ['1000000', '10000000']

installIfNeeded()
build()
const bench = (name, ...args) => {
  const file = join('dist', 'bench', `${name}.js`)
  if (!existsSync(join(ROOT, file))) throw new Error(`${file} was not built`)
  if (!given.includes('--json')) console.log(`\n== ${name} ${args.join(' ')}`)
  run(process.execPath, [file, ...args])
}
if (only === undefined || only === 'tree' || only === 'image') bench('compare-bench', ...given)
if (only === undefined || only === 'parts') for (const name of ['chunker-bench', 'pack-bench', 'missing-bench']) bench(name)
if (only === undefined || only === 'disks') bench('disk-bench', ...(given.includes('--gib') ? ['--gib', given[given.indexOf('--gib') + 1]] : []))
if (only === undefined || only === 'targets') bench('target-bench')
if (only === undefined || only === 'replication') bench('replication-bench', ...(only === 'replication' ? given : []))
if (only === undefined || only === 'boot') bench('boot-bench')
if (only === undefined || only === 'vm') bench('vm-bench', ...given.filter((_word, at) => !['--only', 'vm'].includes(given[at])))
if (only === undefined || only === 'index') for (const count of chunks) bench('index-bench', '--chunks', count)
if (only === undefined || only === 'gc') for (const [at, count] of chunks.entries()) bench('gc-bench', '--chunks', count, ...(at === 0 ? [] : ['--repack-mib', '0', '--push-mib', '0']))
