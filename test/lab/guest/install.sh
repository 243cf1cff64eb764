#!/bin/bash
# Installs what the guest lab needs, from Debian's packages: QEMU and the tools that make a guest's kernel, memory disk and images.
set -euo pipefail
packages=(libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils libnbd-bin seabios busybox-static e2fsprogs kmod cpio socat syslinux syslinux-common mtools dosfstools fdisk)
commands=(libvirtd virsh qemu-system-x86_64 qemu-img nbdcopy busybox e2fsck cpio socat syslinux mcopy mkfs.vfat sfdisk)
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for command in "${commands[@]}"; do command -v "$command" >/dev/null 2>&1 || missing+=("$command"); done
[ "${#missing[@]}" -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || { echo "guest lab: ${missing[*]} are missing, and this user cannot install them (${packages[*]})" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get -o DPkg::Lock::Timeout=600 update -qq
apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
