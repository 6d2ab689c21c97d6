#!/usr/bin/env bash
# The same inputs to Rutter and to real CoreDNS and kube-proxy. Needs what
# `make build` builds; builds the peers when they are not there yet. Arguments
# go to go test, such as: -run Conformance/kubeadm -v
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
export RUTTER_BIN=${RUTTER_BIN:-$PWD/bin/rutter} RUTTER_REGISTRY_BIN=${RUTTER_REGISTRY_BIN:-$PWD/bin/rutter-registry}
scripts/build-peers.sh
cd conformance
exec go test -count=1 -timeout 20m "$@" ./...
