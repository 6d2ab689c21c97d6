#!/usr/bin/env bash
# Format, vet and staticcheck. The nested modules are vetted where their
# dependencies are compiled anyway.
set -euo pipefail
cd "$(dirname "$0")/.."
unformatted=$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l)
if [ -n "$unformatted" ]; then
	echo "lint: not formatted (run gofmt -w): $unformatted" >&2
	exit 1
fi
go vet ./...
go tool staticcheck ./...
(cd registry && go vet ./...)
# conformance.sh vets conformance/; bench/ uses its packages.
(cd bench && go vet ./...)
