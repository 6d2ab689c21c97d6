#!/usr/bin/env bash
# Runs what needs IPVS on Debian's kernel, in an emulated machine (test/qemu),
# whatever kernel this host has. Usage:
#
#	qemu.sh test                  the tests of mode ipvs
#	qemu.sh bench                 its benchmarks
#	qemu.sh conformance           the conformance table, mode ipvs
#	qemu.sh run PROGRAM [ARG]...  a program of yours
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin
kernel=$PWD/.cache/vm-kernel

if ! command -v qemu-system-x86_64 >/dev/null; then
	echo "qemu.sh: qemu-system-x86_64 is missing: install Debian's package qemu-system-x86 (make test does, as root)" >&2
	# On a machine of its own that installs what it lacks, this is a failure.
	[ "${1:-}" != test ] && [ "${1:-}" != conformance ] || [ -n "${CI:-}" ] || exit 0
	exit 1
fi

# The kernel's package is unpacked, not installed: nothing of this host changes.
# KERNEL_PACKAGE names another one, as in linux-image-6.12.48+deb13-cloud-amd64.
if [ ! -e "$kernel/complete" ]; then
	fetch=$(mktemp -d)
	trap 'rm -rf "$fetch"' EXIT
	package=${KERNEL_PACKAGE:-$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)}
	if [ -z "$package" ]; then
		apt-get update -qq
		package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
	fi
	echo "qemu.sh: fetching $package"
	chmod 755 "$fetch"
	(cd "$fetch" && { apt-get download -qq "$package" 2>/dev/null || { apt-get update -qq && apt-get download -qq "$package"; }; })
	rm -rf "$kernel"
	mkdir -p "$kernel"
	dpkg -x "$fetch"/*.deb "$kernel"
	touch "$kernel/complete"
fi

tool=$PWD/.cache/qemu
CGO_ENABLED=0 go build -o "$tool" ./test/qemu

# What iptables needs: its programs, those behind them, and their extensions.
files=()
for f in /usr/sbin/{ip6tables,iptables}{,-save,-restore,-nft,-nft-save,-nft-restore,-legacy,-legacy-save,-legacy-restore} \
	/usr/sbin/nft /usr/sbin/ipset /usr/sbin/ipvsadm /usr/lib/x86_64-linux-gnu/xtables /usr/bin/dash /bin/sh; do
	[ ! -e "$f" ] || files+=(-file "$f")
done

vm() { "$tool" -kernel "$kernel" -env RUTTER_IPVS=1 "${files[@]}" "$@"; }

case ${1:-} in
run)
	shift
	vm "$@"
	;;
*)
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
