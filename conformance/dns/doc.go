// Package dns asks real CoreDNS and Rutter the same questions. Both read the
// same Corefile and watch the same API server; every part of every answer that
// a client can see must be equal, or be listed in known_test.go with a reason.
//
// A case is a file in testdata/corefiles: a Corefile, queries, and the files
// that the Corefile names. Run it with
//
//	go test ./dns -run Conformance/kubeadm -v
//
// after scripts/build-peers.sh and make build. RUTTER_BIN, RUTTER_REGISTRY_BIN
// and COREDNS_BIN name other programs than those in bin/.
package dns
