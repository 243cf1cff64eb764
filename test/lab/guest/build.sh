#!/bin/bash
# Builds a guest from Debian's packages into DIR: boot.raw (MBR, FAT16 with syslinux, kernel and memory disk, ext4) which boots by itself, and
# data.raw (an ext4). No mount, no loop device, no root. The kernel and the agent are unpacked, not installed.
#
#   build.sh DIR     DIR/packages is kept between builds; the rest is made anew and appears at once, by DIR/ready
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
export PATH="$PATH:/usr/sbin:/sbin"
exec 9> "$dir/lock"
flock 9
version=$(cat "$here"/{build.sh,init,workload,verify,fsfreeze-hook} | sha256sum | cut -c1-16)
[ "$(cat "$dir/ready" 2>/dev/null || true)" != "$version" ] || exit 0
rm -f "$dir/ready"

unpacked=$dir/packages/unpacked
if [ ! -e "$dir/packages/complete" ]; then
  rm -rf "$dir/packages" && mkdir -p "$unpacked"
  kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2; exit}')
  if [ -z "$kernel" ] && [ "$(id -u)" = 0 ]; then
    apt-get -o DPkg::Lock::Timeout=600 update -qq
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2; exit}')
  fi
  [ -n "$kernel" ] || { echo "guest lab: the package lists know no linux-image-cloud-amd64" >&2; exit 1; }
  (cd "$dir/packages" && apt-get -o DPkg::Lock::Timeout=600 -o APT::Sandbox::User=root download -qq "$kernel" qemu-guest-agent liburing2 >/dev/null)
  for package in "$dir"/packages/*.deb; do dpkg -x "$package" "$unpacked"; rm "$package"; done
  touch "$dir/packages/complete"
fi
kernel=$(ls "$unpacked"/boot/vmlinuz-* | head -1)
release=${kernel##*/vmlinuz-}

work=$(mktemp -d "$dir/work.XXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,modules,etc/qemu,lib64,usr/sbin,usr/bin,proc,sys,dev,run,tmp,data,data2,var}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$here/init" "$root/init"
cp "$here/workload" "$here/verify" "$root/bin/"
cp "$here/fsfreeze-hook" "$root/etc/qemu/"
chmod 755 "$root/init" "$root/bin"/* "$root/etc/qemu/fsfreeze-hook"
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console scsi_common scsi_mod sd_mod virtio_scsi libata ata_piix libahci ahci; do
  found=$(find "$unpacked/lib/modules/$release" -name "$module.ko*" | head -1)
  [ -z "$found" ] || cp "$found" "$root/modules/"
done
agent=$unpacked/usr/sbin/qemu-ga
cp "$agent" "$root/usr/sbin/"
LD_LIBRARY_PATH="$unpacked/usr/lib/x86_64-linux-gnu" ldd "$agent" | grep -o '/[^ ]*' | while read -r library; do
  place=$root/${library#"$unpacked"}
  mkdir -p "$(dirname "$place")" && cp -L "$library" "$place"
done
(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -6 > "$work/initrd.gz"

tree=$work/tree
mkdir "$tree" && echo 'made by mkfs' > "$tree/hello"
truncate -s 128M "$work/data.raw"
mkfs.ext4 -q -F -d "$tree" "$work/data.raw"
truncate -s 256M "$work/boot.raw"
printf 'label: dos\nlabel-id: 0x526f6f73\nstart=2048, size=65536, type=6, bootable\nstart=67584, type=83\n' | sfdisk -q "$work/boot.raw"
mkfs.vfat -F 16 --offset 2048 -h 2048 "$work/boot.raw" 32768 >/dev/null
cat > "$work/syslinux.cfg" <<'CFG'
DEFAULT linux
PROMPT 0
TIMEOUT 0
LABEL linux
 KERNEL vmlinuz
 APPEND initrd=initrd.gz console=ttyS0 quiet panic=1
CFG
for file in "$kernel:vmlinuz" "$work/initrd.gz:initrd.gz" "$work/syslinux.cfg:syslinux.cfg"; do mcopy -i "$work/boot.raw@@1M" "${file%%:*}" "::${file##*:}"; done
syslinux --offset 1048576 --install "$work/boot.raw"
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/boot.raw" bs=440 count=1 conv=notrunc status=none
mkfs.ext4 -q -F -d "$tree" -E offset=$((67584 * 512)) "$work/boot.raw" $(((256 * 2048 - 67584) / 2))k
cp "$kernel" "$work/vmlinuz"
chmod 644 "$work/vmlinuz"
mv "$work"/{boot.raw,data.raw,vmlinuz,initrd.gz} "$dir/"
echo "$version" > "$dir/ready"
