#!/usr/bin/env bash
# The whole test suite, in the order in which failures are cheapest to see.
# Needs what `make build` builds; as root it also runs the tests that make
# network namespaces.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUTTER_BIN=$PWD/bin/rutter RUTTER_REGISTRY_BIN=$PWD/bin/rutter-registry

# The end-to-end tests use the stock kubectl: this machine's, or our build of it.
export PATH=$PATH:$PWD/bin
command -v kubectl >/dev/null || make kubectl

step() { printf '\n== %s (%s s so far)\n' "$1" "$SECONDS"; }

step "format, vet, staticcheck"
scripts/lint.sh

step "unit tests, race detector on"
go test -race -timeout 15m $(go list ./... | grep -v -e /test/e2e -e /test/rootless)

# Packages that import Kubernetes' server run without the race detector: with
# it all of that would be compiled a second time. -count=1 where a test runs a
# built binary, whose changes Go's test cache does not see.
step "registry"
(
	cd registry
	go test -race ./internal/config ./internal/pki ./internal/kubeconfig ./internal/datadir ./internal/logging
	go test ./internal/etcd
	go test -count=1 -timeout 15m ./integration
)

step "end to end"
go test -count=1 -timeout 15m -p 1 ./test/e2e/... ./test/rootless

step "conformance with CoreDNS and kube-proxy"
scripts/conformance.sh

# Emulation is slow: of the conformance table a part of each kind, twice if need
# be. `scripts/qemu.sh conformance` runs all of it.
step "mode ipvs, on Debian's kernel in an emulated machine"
scripts/qemu.sh test
rows='^(plain|none|itp-local|etp-local|etp-local-away|ranges|affinity|endpoint-replaced|service-deleted|policies-changed|affinity-kept|proxy-stopped|cleaned-up|tables-removed)$'
scripts/qemu.sh conformance -rows "$rows" || scripts/qemu.sh conformance -rows "$rows"

printf '\n== all passed in %s s\n' "$SECONDS"
