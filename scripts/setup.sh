#!/bin/sh
# Installs what a make target needs and the machine lacks. On Debian and its
# relatives, as root, that is done with apt-get; elsewhere the missing packages
# are named. Usage: setup.sh build|up|test|bench
set -eu

# Each line: the command or file that must exist, and the Debian package that
# has it. The race detector links with C.
needs() {
	case $1 in
	build) echo "git git
gcc gcc
/usr/include/stdlib.h libc6-dev" ;;
	up) needs build; echo "ip iproute2
curl curl
nslookup bind9-dnsutils" ;;
	test) needs up; echo "dig bind9-dnsutils
nft nftables
conntrack conntrack
iptables iptables
etcd etcd-server
qemu-system-x86_64 qemu-system-x86
xz xz-utils
nsenter util-linux" ;;
	bench) needs test; echo "dnsperf dnsperf
knotd knot
unbound unbound
dnsmasq dnsmasq-base
haproxy haproxy" ;;
	*) echo "setup.sh: unknown target $1 (build, up, test or bench)" >&2; exit 2 ;;
	esac
}

# Debian keeps some of these where an ordinary user's PATH does not look.
PATH=$(dirname "$0")/../.cache/go/bin:$PATH:/usr/sbin:/sbin:/usr/local/go/bin
packages=$(needs "$1" | while read -r command package; do
	command -v "$command" >/dev/null 2>&1 || [ -e "$command" ] || echo "$package"
done | sort -u | tr '\n' ' ')

if ! command -v go >/dev/null 2>&1; then
	packages="${packages}golang-go"
fi

if [ -n "${packages% }" ]; then
	if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
		echo "setup: installing with apt-get: $packages"
		export DEBIAN_FRONTEND=noninteractive
		# Some packages (etcd, name servers) would start a service at once; we
		# want their programs only.
		if [ ! -e /usr/sbin/policy-rc.d ]; then
			printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
			chmod +x /usr/sbin/policy-rc.d
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT
			trap 'exit 1' HUP INT TERM # without it a signal skips EXIT's
		fi
		apt-get update -qq
		# shellcheck disable=SC2086
		apt-get install -y -qq --no-install-recommends $packages >/dev/null
	else
		echo "setup: missing packages (Debian's names): $packages" >&2
		echo "setup: install them, or run this as root on Debian and it does" >&2
		exit 1
	fi
fi

# Go 1.21 and later fetch the version that go.mod names by themselves. An older
# one (Debian 12 has 1.19) can fetch it as the module that it is; what the newer
# ones do besides is to make its programs executable.
version=$(go version | cut -d' ' -f3)
case $version in
go1.2[1-9]* | go1.[3-9][0-9]* | devel*) exit 0 ;;
esac
want=$(sed -n 's/^go //p' "$(dirname "$0")/../go.mod")
cache=$(dirname "$0")/../.cache
[ ! -x "$cache/go/bin/go" ] || exit 0
toolchain=golang.org/toolchain@v0.0.1-go$want.linux-$(go env GOARCH)
echo "setup: Go here is $version; fetching $want for this project"
mkdir -p "$cache"
# Outside the project: its go.mod is too new for the old Go to read.
(cd / && go mod download "$toolchain")
dir=$(cd / && go env GOMODCACHE)/$toolchain
chmod -R u+w "$dir"
chmod +x "$dir"/bin/* "$dir"/pkg/tool/*/*
ln -sfn "$dir" "$cache/go"
