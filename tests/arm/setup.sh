#!/usr/bin/env bash
# Fetches what tests/arm/emulated.py needs into a folder: needs no root, leaves the machine as it is.
#
#     PYTHON=$PWD/.venv/bin/python bash tests/arm/setup.sh .arm
#
# From the Debian mirror and the Python index that this machine is set up for: QEMU and two cross
# compilers (tools/), Debian's Python for 64-bit and 32-bit ARM (arm64/, armhf/), LiteRT for the first
# (litert/), a kernel (kernel/), and the first file system of a virtual machine (initrd).
set -euo pipefail
here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
cd "$1"
folder=$PWD

. /etc/os-release
# Of all sources only the release itself: its security suite for armhf is broken on some mirrors.
mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
  awk -v release="$VERSION_CODENAME" '$1 == release && $2 == "main" { print $3; exit }')
if [ -z "$mirror" ]; then
  echo "setup.sh: no source of Debian packages found, wanted one of $VERSION_CODENAME main" >&2
  exit 2
fi

# fetch FOLDER ARCHITECTURE PACKAGE...: unpacks packages and what they depend on, with an apt of its
# own to which nothing is installed yet.
fetch() {
  local into=$folder/$1 apt=$folder/apt/$2
  rm -rf "$into" "$apt"
  mkdir -p "$into" "$apt/lists/partial" "$apt/archives/partial"
  touch "$apt/status"
  echo "deb $mirror $VERSION_CODENAME main" > "$apt/sources.list"
  cat > "$apt/apt.conf" <<END
APT::Architecture "$2";
APT::Architectures "$2";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Debug::NoLocking "true";
END
  export APT_CONFIG=$apt/apt.conf
  apt-get -qq update
  apt-get -qq -y --download-only install "${@:3}"
  for package in "$apt"/archives/*.deb; do
    case $package in */libc6_*_amd64.deb) continue ;; esac # tools run on the machine's own
    dpkg -x "$package" "$into"
  done
}

fetch tools amd64 qemu-user qemu-system-arm e2fsprogs gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf \
  libc6-dev-arm64-cross libc6-dev-armhf-cross
fetch armhf armhf python3.11-minimal libpython3.11-stdlib
fetch arm64 arm64 python3.11-minimal libpython3.11-stdlib libstdc++6 busybox-static
# What an installation does: else every start compiles the library anew, in 2.6 MB more.
"$PYTHON" -m compileall -q --invalidation-mode unchecked-hash armhf/usr/lib/python3.11 \
  arm64/usr/lib/python3.11
# LiteRT reads this, and under QEMU's user emulation would find the features of the host.
mkdir -p arm64/proc
printf 'processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd03\n' \
  > arm64/proc/cpuinfo

rm -rf wheels litert
"$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 \
  --platform manylinux_2_27_aarch64 -d wheels -r "$here/../../requirements/demo.lock"
"$PYTHON" -m zipfile -e wheels/*.whl litert

# The smallest of Debian's kernels, without what it depends on to be installed.
kernel=$(apt-cache depends linux-image-cloud-arm64 | awk '$1 == "Depends:" { print $2; exit }')
(cd apt && apt-get -qq download "$kernel")
rm -rf kernel initramfs
dpkg -x apt/"$kernel"_*.deb kernel
mkdir -p initramfs/dev initramfs/disk
cp "$here/init" arm64/bin/busybox initramfs/
for module in virtio virtio_ring virtio_mmio virtio_blk; do
  cp "$(find kernel -name $module.ko)" initramfs/
done
export LD_LIBRARY_PATH=$folder/tools/usr/lib/x86_64-linux-gnu:$folder/tools/lib/x86_64-linux-gnu
(cd initramfs && find . |
  ../tools/usr/bin/qemu-aarch64 ../arm64/bin/busybox cpio -o -H newc 2> /dev/null) > initrd

cc -O2 -Wall -Wextra -shared -fPIC -o count.so "$here/count.c"
rm -rf apt wheels # half of all, and a second fetch takes seconds
