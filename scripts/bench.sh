#!/usr/bin/env bash
# Rutter beside the programs it replaces, in one run. Needs what `make build`
# builds, and dnsperf; Knot DNS, Unbound and dnsmasq take part if installed.
#
#   scripts/bench.sh [-short] [-markdown] [flags] [size] [dns] [proxy] [userspace]
#
# The peers are built from their Go modules when they are not there yet: about
# five minutes each on two cores with an empty build cache.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
scripts/build-peers.sh
(cd bench && go build -o ../bin/peers/bench .)
bin/peers/bench "$@"
# Few kernels have IPVS at hand: it is measured on Debian's, in an emulated machine.
case " $* " in
*" size "* | *" dns "* | *" userspace "* | *" -h "* | *" -only"*) ;;
*) scripts/qemu.sh bench ;;
esac
