// Package multisocket sets how many sockets are opened per address.
package multisocket

import (
	"runtime"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Setup reads: multisocket [NUMBER]
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	if err := lines[0].Want(0, 1, "nothing, or a number"); err != nil {
		return nil, err
	}
	b.Sockets = runtime.GOMAXPROCS(0)
	if len(lines[0].Args) == 0 {
		return nil, nil
	}
	var err error
	b.Sockets, err = lines[0].Args[0].Number(1, 1024)
	return nil, err
}
