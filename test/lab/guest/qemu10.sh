#!/bin/bash
# Finds a QEMU 10 and prints it, an argument a line: the installed one, or one that is unpacked into DIR from the backports of the Debian that is here
# (nothing is installed). QEMU 7.2 aborts with disks in an iothread, so those are tested with this one.
#
#   qemu10.sh DIR    what is unpacked stays there, complete as soon as DIR/complete exists
set -euo pipefail
version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p')
[ "${version:-0}" -lt 10 ] || { echo qemu-system-x86_64; exit 0; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
exec 9> "$dir/lock"
flock 9
if [ ! -e "$dir/complete" ]; then
  # The mirror that this machine uses already, for the suite beside its own.
  target=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk '$2 ~ /^[a-z]+$/ && $1 ~ /\/debian\/?$/ && !seen++')
  read -r uri suite <<< "$target" || true
  [ -n "${suite:-}" ] || { echo "qemu10: apt knows no Debian mirror here" >&2; exit 1; }
  rm -rf "$dir/apt" "$dir/root" && mkdir -p "$dir"/apt/{lists,cache/archives}/partial "$dir/root"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite-backports main" > "$dir/apt/sources.list"
  options=(-qq -o "Dir::Etc::SourceList=$dir/apt/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$dir/apt/lists" -o "Dir::Cache=$dir/apt/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update >&2
  packages=()
  for package in qemu-system-x86 qemu-system-common qemu-system-data; do
    found=$(apt-cache "${options[@]}" madison "$package" | awk -F'|' '{gsub(/ /, "", $2)} $2 ~ /^1:10\./ && !seen++ {print $2}')
    [ -n "$found" ] || { echo "qemu10: $suite-backports has no $package 10" >&2; exit 1; }
    packages+=("$package=$found")
  done
  (cd "$dir/apt" && apt-get "${options[@]}" download "${packages[@]}" >&2)
  for package in "$dir"/apt/*.deb; do dpkg -x "$package" "$dir/root"; done
  rm -rf "$dir/apt"
  "$dir/root/usr/bin/qemu-system-x86_64" --version > "$dir/complete.new"
  mv "$dir/complete.new" "$dir/complete"
fi
printf '%s\n' "$dir/root/usr/bin/qemu-system-x86_64" -L "$dir/root/usr/share/qemu" -L /usr/share/seabios -L /usr/lib/ipxe/qemu
