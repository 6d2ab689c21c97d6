# Rutter's tasks. `make help` lists them; `make up` and `make test` are the two
# to know. On Debian, as root, each installs what it lacks (scripts/setup.sh).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# .cache/go is there only if setup.sh had to fetch Go.
export PATH := $(CURDIR)/.cache/go/bin:$(PATH):/usr/local/go/bin:/usr/sbin:/sbin

LDFLAGS := -s -w
# The nested modules keep their heavy dependencies out of the main one.
registry_sources := $(shell find registry -name '*.go' -not -name '*_test.go' 2>/dev/null) registry/go.mod registry/go.sum

.PHONY: help
help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: setup-build bin/rutter-registry rutter ## build bin/rutter and bin/rutter-registry

.PHONY: rutter
rutter: setup-build
	@go build -ldflags '$(LDFLAGS)' -o bin/rutter ./cmd/rutter

bin/rutter-registry: $(registry_sources) | setup-build
	@echo "Building bin/rutter-registry. It contains Kubernetes' API server: the first build"
	@echo "takes 5 to 15 minutes on two cores, later ones are skipped."
	@scripts/build-with-progress.sh registry '$(LDFLAGS)' $(CURDIR)/$@

.PHONY: kubectl
kubectl: bin/kubectl ## build the stock kubectl of the registry's Kubernetes version, if you have none
bin/kubectl: registry/go.mod | setup-build
	cd registry && go build -ldflags '$(LDFLAGS)' -o ../$@ k8s.io/kubernetes/cmd/kubectl

.PHONY: up
up: setup-up build ## run the whole system here, with a demo; Ctrl-C takes it down
	@exec bin/rutter up --demo

.PHONY: test
test: setup-test build ## everything that must hold: format, vet, staticcheck, unit tests with the race detector, end-to-end tests
	@scripts/test.sh

.PHONY: conformance
conformance: setup-test build ## the same inputs to Rutter and to real CoreDNS and kube-proxy, outcomes compared (part of test)
	@scripts/conformance.sh

.PHONY: lint
lint: setup-build ## gofmt, go vet and staticcheck
	@scripts/lint.sh

.PHONY: fuzz
fuzz: setup-build ## each fuzz target for a minute
	@scripts/fuzz.sh

.PHONY: bench
bench: setup-bench build ## side by side with CoreDNS, kube-proxy and a bare echo; prints ratios (about half an hour)
	@scripts/bench.sh

.PHONY: clean
clean: ## remove what was built (not Go's cache)
	rm -rf bin

.PHONY: setup-build setup-up setup-test setup-bench
setup-build setup-up setup-test setup-bench: setup-%:
	@scripts/setup.sh $*
