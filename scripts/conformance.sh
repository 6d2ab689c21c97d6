#!/usr/bin/env bash
# The same inputs to Rutter and to the programs it replaces, outcomes compared.
# Needs what `make build` builds; builds CoreDNS and kube-proxy itself.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUTTER_BIN=$PWD/bin/rutter RUTTER_REGISTRY_BIN=$PWD/bin/rutter-registry
scripts/build-peers.sh
cd conformance
go vet ./...
packages=$(go list ./...)
# The peers keep their own time: a run that fails is repeated once, in full, and
# both are in the output.
# shellcheck disable=SC2086
go test -count=1 -timeout 20m $packages || {
	echo "conformance: repeating what failed" >&2
	go test -count=1 -timeout 20m $packages
}
