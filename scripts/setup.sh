#!/bin/sh
# Installs what a make target needs and the machine lacks. On Debian and its
# relatives, as root, that is done with apt-get; elsewhere the missing packages
# are named. Usage: setup.sh build|up|test|bench
set -eu

# Each line: the command that must exist, and the Debian package that has it.
needs() {
	case $1 in
	build) echo "git git
gcc gcc" ;;
	up) needs build; echo "ip iproute2
curl curl
nslookup bind9-dnsutils" ;;
	test) needs up; echo "dig bind9-dnsutils
nft nftables
conntrack conntrack" ;;
	bench) needs test; echo "dnsperf dnsperf" ;;
	*) echo "setup.sh: unknown target $1 (build, up, test or bench)" >&2; exit 2 ;;
	esac
}

# Debian keeps some of these where an ordinary user's PATH does not look.
PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
packages=$(needs "$1" | while read -r command package; do
	command -v "$command" >/dev/null 2>&1 || echo "$package"
done | sort -u | tr '\n' ' ')

if ! command -v go >/dev/null 2>&1; then
	packages="$packages golang-go"
fi

if [ -n "${packages% }" ]; then
	if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
		echo "setup: installing with apt-get: $packages"
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -qq
		# shellcheck disable=SC2086
		apt-get install -y -qq --no-install-recommends $packages >/dev/null
	else
		echo "setup: missing packages (Debian's names): $packages" >&2
		echo "setup: install them, or run this as root on Debian and it does" >&2
		exit 1
	fi
fi

# Go 1.21 and later fetch the version that go.mod names by themselves.
version=$(go env GOVERSION 2>/dev/null || go version | cut -d' ' -f3)
case $version in
go1.2[1-9]* | go1.[3-9][0-9]* | devel*) ;;
*)
	echo "setup: Go here is $version; 1.21 or later is needed (it then fetches the one that go.mod names)." >&2
	echo "setup: see https://go.dev/dl/ or Debian backports" >&2
	exit 1
	;;
esac
