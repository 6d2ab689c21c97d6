// Package integration tests the built rutter-registry from outside, as its
// users meet it: command line, files, signals and the API. Its tests start
// the binary that RUTTER_REGISTRY_BIN names, or build it first.
package integration
