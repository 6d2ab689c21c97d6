#!/usr/bin/env bash
# Runs what needs IPVS on Debian's kernel, in an emulated machine (test/qemu),
# whatever kernel this host has. Usage:
#
#	qemu.sh test                  the tests of mode ipvs, and changes of mode
#	qemu.sh bench                 its benchmarks
#	qemu.sh conformance [FLAG]... the conformance table, mode ipvs: all of it, or
#	                              -rows REGEXP
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

if [ "$(uname -m)" != x86_64 ]; then
	echo "qemu.sh: left out on $(uname -m): it knows the kernel of amd64 only" >&2
	exit 0
fi

# The kernel's package is unpacked, not installed: nothing of this host changes.
# KERNEL_PACKAGE names another one, as in linux-image-6.12.48+deb13-cloud-amd64.
if [ ! -e "$kernel/complete" ]; then
	fetch=$(mktemp -d)
	trap 'rm -rf "$fetch"' EXIT
	package=${KERNEL_PACKAGE:-$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1 || true)}
	if [ -z "$package" ]; then
		apt-get update -qq
		package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1 || true)
	fi
	if [ -z "$package" ]; then
		echo "qemu.sh: this host's package sources have no linux-image-cloud-amd64, as Debian's have: name a kernel package in KERNEL_PACKAGE" >&2
		exit 1
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
	/usr/sbin/nft /usr/sbin/ipset /usr/sbin/ipvsadm /usr/lib/x86_64-linux-gnu/xtables /usr/bin/dash /bin/sh /bin/cat "$(command -v ip)"; do
	[ ! -e "$f" ] || files+=(-file "$f")
done

vm() { "$tool" -kernel "$kernel" -env RUTTER_IPVS=1 "${files[@]}" "$@"; }

# The registry runs outside of the machine, which would make it slow.
registry() {
	data=$(mktemp -d)
	port=$((20000 + RANDOM % 10000))
	bin/rutter-registry --data-dir "$data/registry" --secure-port "$port" \
		--service-cidr 10.96.0.0/16,fd00:96::/112 --pod-cidr 10.244.0.0/16,fd00:244::/48 >"$data/log" 2>&1 &
	pid=$!
	trap 'kill $pid 2>/dev/null; wait $pid 2>/dev/null; rm -rf "$data"' EXIT
	for _ in $(seq 600); do
		[ ! -e "$data/registry/admin.kubeconfig" ] || return 0
		kill -0 $pid 2>/dev/null || break
		sleep 0.2
	done
	cat "$data/log" >&2
	return 1
}

case ${1:-} in
conformance)
	shift
	registry
	CGO_ENABLED=0 go -C conformance test -c -o "$PWD/.cache/conformance.test" ./proxy
	rutter=${RUTTER_BIN:-$PWD/bin/rutter}
	# -kinds 'kube-proxy ipvs' or ipvs compares kube-proxy, too.
	peers=()
	case "$*" in
	*-kinds*kube* | *"-kinds ipvs"*) peers=(-env KUBE_PROXY_BIN="$PWD/bin/peers/kube-proxy" -file "$PWD/bin/peers/kube-proxy") ;;
	esac
	cd conformance/proxy
	vm -env RUTTER_KUBECONFIG="$data/registry/admin.kubeconfig" -file "$data/registry/admin.kubeconfig" -forward "$port" \
		-env RUTTER_BIN="$rutter" -file "$rutter" "${peers[@]}" \
		"$PWD/../../.cache/conformance.test" -test.run TestProxy -test.timeout 15m -kinds 'rutter ipvs' "$@"
	;;
test | bench)
	what=$1
	shift
	CGO_ENABLED=0 go test -c -o .cache/ipvs.test ./internal/proxy/ipvs
	cd internal/proxy/ipvs
	if [ "$what" = test ]; then
		vm ../../../.cache/ipvs.test -test.v -test.timeout 15m "$@"
		# From each mode to each other, by the process that runs.
		cd ..
		CGO_ENABLED=0 go test -c -o ../../.cache/proxy.test .
		vm ../../.cache/proxy.test -test.run 'TestSwitch/^((nftables|iptables)_to_ipvs|ipvs_to_(nftables|iptables))$' -test.timeout 10m
	else
		vm -memory 3072 ../../../.cache/ipvs.test -test.run - -test.bench . -test.timeout 15m "$@"
	fi
	;;
run)
	shift
	vm "$@"
	;;
*)
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
