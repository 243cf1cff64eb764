/** A real restic whose repository unlocks fast, so that many short runs fit into one test.
 *
 *  restic spends half a second on its key derivation in every run. Its key slot is replaced by one of the same master key with a cheap
 *  derivation, written in restic's own format: scrypt, then AES-256-CTR and Poly1305-AES.
 */
import { execFile, spawnSync } from 'node:child_process'
import { createCipheriv, createHash, scryptSync } from 'node:crypto'
import { readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
const PASSWORD = 'restic'
/** Major and minor version, or undefined when there is none. */
export const resticVersion = ((): readonly [number, number] | undefined => {
  const match = /^restic (\d+)\.(\d+)/.exec(spawnSync('restic', ['version'], { encoding: 'utf8' }).stdout ?? '')
  return match === null ? undefined : [Number(match[1]), Number(match[2])]
})()

export class Restic {
  private constructor(readonly directory: string) {}
  static async init(directory: string): Promise<Restic> {
    const restic = new Restic(directory)
    await restic.run(['init', '-q'])
    const masterKey = await restic.run(['cat', 'masterkey'])
    const keys = join(directory, 'repository', 'keys')
    const old = await readdir(keys)
    const slot = cheapSlot(Buffer.from(JSON.stringify(JSON.parse(masterKey))))
    await writeFile(join(keys, createHash('sha256').update(slot).digest('hex')), slot)
    for (const name of old) await rm(join(keys, name))
    return restic
  }
  async run(args: readonly string[], timeZone = 'UTC'): Promise<string> {
    const { stdout } = await run('restic', [...args, '--no-cache'], { cwd: this.directory, maxBuffer: 2 ** 26,
      env: { PATH: '/usr/bin:/bin:/usr/local/bin', HOME: this.directory, RESTIC_PASSWORD: PASSWORD, RESTIC_REPOSITORY: join(this.directory, 'repository'), TZ: timeZone } })
    return stdout
  }
}

function cheapSlot(masterKey: Buffer): Buffer {
  const [N, r, p] = [2, 1, 1], salt = Buffer.alloc(64, 1), nonce = Buffer.alloc(16, 2)
  const derived = scryptSync(PASSWORD, salt, 64, { N, r, p })
  const cipher = createCipheriv('aes-256-ctr', derived.subarray(0, 32), nonce)
  const sealed = Buffer.concat([cipher.update(masterKey), cipher.final()])
  const pad = createCipheriv('aes-128-ecb', derived.subarray(32, 48), null).update(nonce)
  const data = Buffer.concat([nonce, sealed, poly1305(sealed, derived.subarray(48, 64), pad)])
  return Buffer.from(JSON.stringify({ created: '2024-01-01T00:00:00Z', username: 'u', hostname: 'h', kdf: 'scrypt', N, r, p, salt: salt.toString('base64'), data: data.toString('base64') }))
}
const littleEndian = (bytes: Uint8Array): bigint => bytes.reduceRight((sum, byte) => sum * 256n + BigInt(byte), 0n)
function poly1305(message: Buffer, r: Buffer, pad: Buffer): Buffer {
  const prime = (1n << 130n) - 5n, key = littleEndian(r) & 0x0ffffffc0ffffffc0ffffffc0fffffffn
  let sum = 0n
  for (let at = 0; at < message.length; at += 16) sum = (sum + littleEndian(Buffer.concat([message.subarray(at, at + 16), Buffer.from([1])]))) * key % prime
  let tag = sum + littleEndian(pad)
  return Buffer.from(Array.from({ length: 16 }, () => { const byte = Number(tag & 255n); tag >>= 8n; return byte }))
}
