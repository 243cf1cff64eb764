/** From an address to a monitor, and to the agent beside it. */
import { statSync } from 'node:fs'
import type { Clock } from '../../src/core/clock.js'
import { isErrno } from '../../src/core/errors.js'
import { ClientError } from '../../src/protocol/client-errors.js'
import { property } from './block-devices.js'
import type { AgentAddress } from './guest-agent.js'
import type { Monitor, MonitorAddress, MonitorCall } from './monitor.js'
import { QmpSocket } from './qmp-socket.js'
import { fieldsOf, listOf, textOf } from './values.js'
import { domainXml, qemuOwner, VirshMonitor } from './virsh.js'

export async function openMonitor(address: MonitorAddress, clock: Clock, signal?: AbortSignal): Promise<Monitor> {
  return address.kind === 'socket' ? await QmpSocket.open(address.path, clock, signal) : new VirshMonitor(address)
}
/** Whose QEMU it is: files for it must be that user's. Undefined where nothing says so. */
export async function ownerOf(address: MonitorAddress, call: MonitorCall = {}): Promise<{ readonly uid: number; readonly gid: number } | undefined> {
  if (address.kind === 'libvirt') return qemuOwner(await domainXml(address, call))
  try {
    const { uid, gid } = statSync(address.path)
    return { uid, gid }
  } catch (error) {
    throw isErrno(error) ? new ClientError('MACHINE_UNREACHABLE', `The socket ${address.path} cannot be reached.`, { cause: error }) : error
  }
}

/** The guest agent's socket as QEMU itself tells it: the character device of the port by which agents are known. A string says why there is none. */
export async function findAgent(monitor: Monitor, address: MonitorAddress, call: MonitorCall = {}): Promise<AgentAddress | string> {
  if (address.kind === 'libvirt') return address
  const ports: string[] = []
  for (const parent of ['/machine/peripheral', '/machine/peripheral-anon']) {
    for (const entry of listOf(await monitor.execute('qom-list', { path: parent }, call))) {
      if (entry['type'] === 'child<virtserialport>') ports.push(`${parent}/${textOf(entry['name']) ?? ''}`)
    }
  }
  for (const port of ports) {
    if (await property(monitor, port, 'name', call) !== 'org.qemu.guest_agent.0') continue
    const label = textOf(await property(monitor, port, 'chardev', call))
    const device = listOf(await monitor.execute('query-chardev', undefined, call)).find((entry) => entry['label'] === label)
    if (device?.['frontend-open'] === false) return 'no agent runs in the guest'
    const path = /^(?:disconnected:)?unix:(\/[^,]+)(?:,|$)/.exec(textOf(device?.['filename']) ?? '')?.[1]
    if (path === undefined) return 'the agent\'s port leads to no unix socket; name one with --agent'
    // A QEMU that was taken over must not send us to sockets of others.
    const [agent, own] = [path, address.path].map((socket) => statSync(socket, { throwIfNoEntry: false }))
    if (agent?.uid !== own?.uid) return `${path} is not of the user who has the monitor's socket; name it with --agent if it is right`
    return { kind: 'socket', path }
  }
  return 'the machine has no port for a guest agent'
}
/** The status of a machine in a word, such as `running`. */
export const statusOf = async (monitor: Monitor, call: MonitorCall = {}): Promise<string> =>
  textOf(fieldsOf(await monitor.execute('query-status', undefined, call))['status']) ?? 'unknown'
