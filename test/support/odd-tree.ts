/** A tree of everything that file systems hold and backups forget. Seeded: the same bytes each time. */
import { chmodSync, closeSync, ftruncateSync, linkSync, mkdirSync, openSync, symlinkSync, writeFileSync, writeSync } from 'node:fs'
import { hasTool, isRoot, tool } from './run-roost.js'

/** Numbers that look random and are the same each run (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
/** Incompressible bytes. */
export function noise(bytes: number, seed: number): Buffer {
  const next = seeded(seed)
  const out = Buffer.allocUnsafe(bytes)
  for (let at = 0; at < bytes; at += 4) {
    const value = Math.floor(next() * 2 ** 32)
    for (let i = 0; i < 4 && at + i < bytes; i++) out[at + i] = value >>> (8 * i)
  }
  return out
}

export interface OddTree { readonly path: string; readonly skipped: readonly string[] }
const bytesPath = (root: string, name: Buffer): Buffer => Buffer.concat([Buffer.from(`${root}/`), name])

export function makeOddTree(root: string): OddTree {
  const skipped: string[] = []
  mkdirSync(root)
  // Names: invalid UTF-8, newlines, leading dashes, spaces, the longest possible, one that only looks like "..".
  const names = [Buffer.from([0xff, 0xfe, 0x41]), Buffer.from('line\nbreak'), Buffer.from('-rf'), Buffer.from(' '), Buffer.from('a\\b"c\'d'),
    Buffer.alloc(255, 'x'), Buffer.from('...'), Buffer.from('ünï🦉'), Buffer.from([0xc3]), Buffer.from('*?[z]')]
  names.forEach((name, i) => writeFileSync(bytesPath(root, name), `content ${i}`))
  // Sizes around what is inlined, cut and packed.
  mkdirSync(`${root}/sizes`)
  for (const bytes of [0, 1, 4095, 4096, 131_072, 131_073, 1_048_576, 5_000_000]) writeFileSync(`${root}/sizes/${bytes}`, noise(bytes, bytes + 1))
  writeFileSync(`${root}/sizes/same-as-5000000`, noise(5_000_000, 5_000_001))
  // Links.
  mkdirSync(`${root}/links`)
  writeFileSync(`${root}/links/first`, 'shared')
  linkSync(`${root}/links/first`, `${root}/links/second`)
  mkdirSync(`${root}/links/deeper`)
  linkSync(`${root}/links/first`, `${root}/links/deeper/third`)
  symlinkSync('../sizes/4096', `${root}/links/relative`)
  symlinkSync('/nowhere/at/all', `${root}/links/broken`)
  symlinkSync(Buffer.from([0x2f, 0xff, 0x0a]), `${root}/links/to-bytes`)
  symlinkSync('.', `${root}/links/loop`)
  linkSync(`${root}/links/broken`, `${root}/links/broken-too`)
  // Modes, and a directory that its owner may not write.
  writeFileSync(`${root}/setuid`, '#!/bin/sh\n')
  chmodSync(`${root}/setuid`, 0o4755)
  mkdirSync(`${root}/sticky`)
  chmodSync(`${root}/sticky`, 0o1777)
  mkdirSync(`${root}/read-only`)
  writeFileSync(`${root}/read-only/inside`, 'in a directory that nobody may write')
  chmodSync(`${root}/read-only/inside`, 0o400)
  chmodSync(`${root}/read-only`, 0o555)
  mkdirSync(`${root}/empty`)
  // Sparse: a hole before, between and after the data.
  const sparse = openSync(`${root}/sparse`, 'w')
  writeSync(sparse, noise(70_000, 7), 0, 70_000, 1_000_000)
  writeSync(sparse, Buffer.from('end of data'), 0, 11, 40_000_000)
  ftruncateSync(sparse, 50_000_000)
  closeSync(sparse)
  // 200 directories deep, and one with many entries.
  mkdirSync(`${root}/${Array.from({ length: 200 }, (_unused, i) => `d${i}`).join('/')}`, { recursive: true })
  writeFileSync(`${root}/${Array.from({ length: 200 }, (_unused, i) => `d${i}`).join('/')}/bottom`, 'deep')
  mkdirSync(`${root}/many`)
  for (let i = 0; i < 3000; i++) writeFileSync(`${root}/many/file-${i}`, `number ${i}`)
  tool('mkfifo', [`${root}/fifo`])
  if (isRoot) {
    tool('mknod', [`${root}/null-device`, 'c', '1', '3'])
    tool('mknod', [`${root}/block-device`, 'b', '7', '200'])
    tool('chown', ['12345:54321', `${root}/sizes/1`, `${root}/links/relative`, '-h'])
  } else skipped.push('devices and foreign owners (not root)')
  if (hasTool('setfattr')) {
    tool('setfattr', ['-n', 'user.comment', '-v', 'hello', `${root}/sizes/4096`])
    tool('setfattr', ['-n', 'user.bytes', '-v', '0x00ff00', `${root}/empty`])
  } else skipped.push('extended attributes (no setfattr)')
  if (hasTool('setfacl')) {
    tool('setfacl', ['-m', 'u:12345:rwx,g:54321:r', `${root}/sizes/131072`])
    tool('setfacl', ['-d', '-m', 'u:12345:rx', `${root}/empty`])
  } else skipped.push('POSIX ACLs (no setfacl)')
  // Times in ns, before 1970 and far ahead; directories last, since making entries changes them.
  for (const [time, path] of [['@1234567890.123456789', 'sizes/0'], ['@-86400.5', 'sizes/1'], ['@4102444800.000000001', 'sizes/4095'],
    ['@1111111111.987654321', 'links/broken'], ['@1000000000.000000007', 'empty'], ['@1500000000.1', 'fifo']] as const)
    tool('touch', ['-h', '-d', time, `${root}/${path}`])
  tool('touch', ['-d', '@999999999.999999999', root])
  return { path: root, skipped }
}
/** rsync's opinion: empty when it would change nothing. */
export function rsyncDifferences(left: string, right: string): string {
  return tool('rsync', ['-aHAXSnci', '--delete', `${left}/`, `${right}/`])
}
