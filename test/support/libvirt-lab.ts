/** A libvirtd of the test's own: its configuration, state and sockets lie in the test's folder, by a mount namespace; QEMU runs as another user. */
import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { hasTool, isRoot } from './run-roost.js'

/** Of Debian's libvirt-qemu. It need not exist: the namespace has a passwd of its own. */
const USER = 64055
const START_MS_MAX = 120_000

export const withoutLibvirt = ((): false | string => {
  const lacking = ['libvirtd', 'virsh', 'unshare'].filter((name) => !hasTool(name))
  if (lacking.length > 0) return `not installed: ${lacking.join(', ')} (test/lab/guest/install.sh)`
  if (!isRoot || spawnSync('unshare', ['-m', 'true']).status !== 0) return 'a mount namespace needs root'
  return false
})()

export interface Libvirt { readonly uri: string; readonly directory: string; virsh(...args: readonly string[]): string }
export async function startLibvirt(t: Pick<TestContext, 'after'>, directory: string): Promise<Libvirt> {
  for (const name of ['etc', 'run', 'lib', 'cache', 'sock']) mkdirSync(join(directory, name), { recursive: true })
  writeFileSync(join(directory, 'etc', 'qemu.conf'), 'user = "libvirt-qemu"\ngroup = "libvirt-qemu"\nsecurity_driver = "none"\nstdio_handler = "file"\ncgroup_controllers = [ ]\nnamespaces = [ ]\n')
  const config = join(directory, 'libvirtd.conf')
  writeFileSync(config, `unix_sock_dir = "${join(directory, 'sock')}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n`)
  const without = (path: string): string => readFileSync(path, 'utf8').split('\n').filter((line) => line !== '' && !line.startsWith('libvirt-qemu:')).join('\n')
  writeFileSync(join(directory, 'passwd'), `${without('/etc/passwd')}\nlibvirt-qemu:x:${USER}:${USER}::/:/usr/sbin/nologin\n`)
  writeFileSync(join(directory, 'group'), `${without('/etc/group')}\nlibvirt-qemu:x:${USER}:\n`)
  const binds = [['passwd', '/etc/passwd'], ['group', '/etc/group'], ['etc', '/etc/libvirt'], ['run', '/run/libvirt'], ['lib', '/var/lib/libvirt'], ['cache', '/var/cache/libvirt']] as const
  const steps = binds.flatMap(([name, path]) => [...(name === 'passwd' || name === 'group' ? [] : [`mkdir -p ${path}`]), `mount --bind '${join(directory, name)}' ${path}`])
  const daemon = spawn('unshare', ['-m', 'sh', '-ec', [...steps, `exec libvirtd -f '${config}' -p '${join(directory, 'pid')}'`].join('; ')], { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  daemon.stderr.on('data', (bytes: Buffer) => { said = (said + bytes.toString()).slice(-4_000) })
  const uri = `qemu:///system?socket=${join(directory, 'sock', 'libvirt-sock')}`
  const run = (args: readonly string[], timeout: number): ReturnType<typeof spawnSync> => spawnSync('virsh', ['--quiet', '--connect', uri, ...args], { encoding: 'utf8', timeout })
  t.after(() => { daemon.kill('SIGKILL') })
  for (const end = performance.now() + START_MS_MAX; !existsSync(join(directory, 'sock', 'libvirt-sock')) || run(['capabilities'], START_MS_MAX).status !== 0;) {
    if (performance.now() > end || daemon.exitCode !== null) throw new Error(`libvirtd does not start: ${said}`)
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
  return { uri, directory, virsh: (...args) => {
    const { status, stdout, stderr } = run(args, START_MS_MAX)
    if (status !== 0) throw new Error(`virsh ${args.join(' ')} failed: ${stderr.toString()}`)
    return stdout.toString()
  } }
}
/** A domain that boots from a disk in a folder that QEMU's user is given. Its serial line goes to `serial` there. */
export function defineDomain(t: Pick<TestContext, 'after'>, { virsh, directory: state }: Libvirt, directory: string, disk: string): void {
  chmodSync(directory, 0o755)
  for (const path of [directory, disk]) chownSync(path, USER, USER)
  const path = join(directory, 'domain.xml')
  writeFileSync(path, `<domain type='qemu'><name>web1</name><memory unit='MiB'>160</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${disk}'/><target dev='vda' bus='virtio'/></disk>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<serial type='file'><source path='${join(directory, 'serial')}'/></serial><graphics type='vnc' passwd='hunter2'/><memballoon model='none'/></devices></domain>\n`)
  virsh('define', path)
  virsh('start', 'web1')
  const pid = Number(readFileSync(join(state, 'run', 'qemu', 'web1.pid'), 'utf8'))
  t.after(() => { try { process.kill(pid, 'SIGKILL') } catch { /* it is gone */ } })
}
