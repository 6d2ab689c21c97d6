// Package proxy holds Rutter's service load balancer against real kube-proxy:
// one table of scenarios, real packets between network namespaces, and for
// every row the same outcome, or a deviation that docs/compatibility.md lists
// with its reason.
//
// The tests need root and the programs rutter, rutter-registry and kube-proxy
// (`make build`, scripts/build-peers.sh). Read in this order:
//
//	rows_test.go      the table: what is there, who asks what, the outcome
//	changes_test.go   … and what a change does to it
//	variants_test.go  … under other proxy configurations
//	world_test.go     the network: two nodes, pods, an outside client
//	column_test.go    the proxies that are compared; another one is a line
//	table_test.go     what a scenario, a step, a path and a row are
//	run_test.go       how rows are run and judged, observe_test.go how one is seen
package proxy
