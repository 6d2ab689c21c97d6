// Package debug leaves panics alone, so that they end the process and show
// where they came from.
package debug

import (
	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Setup reads: debug
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	for _, d := range lines {
		if err := d.Flag(); err != nil {
			return nil, err
		}
	}
	b.Debug = true
	return nil, nil
}
