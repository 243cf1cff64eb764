/** What a snapshot says of a machine besides its disks: the file `machine.json` at the top of its tree (docs/machines.md specifies it).
 *
 *  It is for bringing the machine back where nothing of it is left, so it repeats what other systems hold: QEMU's devices, libvirt's
 *  XML, Nova's record. Whoever reads it takes it for what a stranger wrote: parseMachineDescription checks the shape and the bounds.
 */

/** The name of the file in the snapshot. */
export const MACHINE_FILE = 'machine.json'
/** Of the file. Libvirt's XML and Nova's records are some tens of KiB. */
export const MACHINE_FILE_BYTES_MAX = 4 * 1024 * 1024

export interface MachineDescription {
  readonly format: 1
  /** QEMU's, libvirt's or Nova's name of the machine; the source's name where none of them knows one. */
  readonly name: string
  readonly uuid?: string
  /** ISO 8601, UTC. */
  readonly capturedAt: string
  /** `agent`: file systems were frozen by the guest agent; `crash`: as after a power cut; `stopped`: the machine did not run. */
  readonly consistency: 'agent' | 'crash' | 'stopped'
  readonly qemu?: QemuDescription
  readonly libvirtXml?: string
  readonly nova?: NovaDescription
}

export interface QemuDescription {
  readonly version: string
  /** Such as `pc-i440fx-7.2`. */
  readonly machineType: string
  readonly cpuModel?: string
  readonly cpus: number
  readonly memoryBytes: number
  readonly firmware: 'bios' | 'uefi'
  /** With -kernel: the machine does not boot from its disks alone. */
  readonly kernel?: { readonly file: string; readonly initrd?: string; readonly commandLine?: string }
  readonly disks: readonly DiskDescription[]
  readonly networkCards: readonly { readonly model: string; readonly mac: string }[]
}
/** A disk of the machine. `image` is the name of its entry in the snapshot. */
export interface DiskDescription {
  readonly image: string
  readonly bytes: number
  /** QEMU's device model, such as `virtio-blk-pci` or `scsi-hd`. */
  readonly device: string
  /** Its id or path in QEMU. */
  readonly qdev: string
  /** As it was on the host: `qcow2`, `raw`, … and where. */
  readonly format: string
  readonly file?: string
  readonly bootIndex?: number
  readonly serial?: string
}

/** Nova's record of a server, with what it refers to resolved, so that it can be made anew in another cloud. Bodies are as the APIs gave them. */
export interface NovaDescription {
  readonly serverId: string
  readonly projectId?: string
  /** The body of GET /servers/ID, without addresses of consoles and without secrets. */
  readonly server: Readonly<Record<string, unknown>>
  readonly flavor: { readonly name?: string; readonly vcpus: number; readonly ramMiB: number; readonly diskGiB: number; readonly ephemeralGiB?: number
    readonly swapMiB?: number; readonly extraSpecs?: Readonly<Record<string, string>> }
  readonly image?: { readonly id: string; readonly name?: string; readonly properties: Readonly<Record<string, unknown>> }
  readonly keyName?: string
  readonly securityGroups: readonly string[]
  readonly metadata: Readonly<Record<string, string>>
  readonly tags: readonly string[]
  /** `networkId` is absent where only Nova's list of addresses could be read. */
  readonly ports: readonly { readonly networkId?: string; readonly networkName?: string; readonly mac: string
    readonly fixedIps: readonly { readonly address: string; readonly subnetId?: string }[] }[]
  readonly volumes: readonly { readonly id: string; readonly device?: string; readonly deleteOnTermination?: boolean }[]
  readonly availabilityZone?: string
  readonly configDrive?: boolean
  readonly userData?: string
  /** What could not be read, in words. */
  readonly warnings: readonly string[]
}
