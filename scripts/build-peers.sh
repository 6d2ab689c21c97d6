#!/usr/bin/env bash
# Builds CoreDNS and kube-proxy from their Go modules into bin/peers, where
# they are not there yet or the module was changed since.
set -euo pipefail
cd "$(dirname "$0")/.."
build() {
	local module=conformance/peers/$1 program=$PWD/bin/peers/$1
	if [ "$program" -nt "$module/go.mod" ]; then
		return
	fi
	echo "Building bin/peers/$1 from $2: minutes, the first time." >&2
	mkdir -p bin/peers
	(cd "$module" && go build -o "$program" "$2")
}
build coredns github.com/coredns/coredns
build kube-proxy k8s.io/kubernetes/cmd/kube-proxy
