#!/usr/bin/env bash
# Builds a nested module's main package, counting the packages as they are
# compiled. Usage: build-with-progress.sh MODULE_DIR LDFLAGS OUTPUT
set -euo pipefail
cd "$1"
mkdir -p "$(dirname "$3")"
total=$(go list -deps . | wc -l)
start=$(date +%s)
# -v names each package as it is compiled; packages in Go's cache are not named.
go build -v -ldflags "$2" -o "$3" . 2>&1 | awk -v total="$total" -v start="$start" '
	/^[a-zA-Z0-9_.\/-]+$/ {
		n++
		if (n % 50 == 0) {
			"date +%s" | getline now; close("date +%s")
			printf "  %d packages compiled (of at most %d), %d s\n", n, total, now - start
			fflush()
		}
		next
	}
	{ print; fflush() }'
echo "  built $(basename "$3") in $(($(date +%s) - start)) s"
