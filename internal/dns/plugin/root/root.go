// Package root sets the directory that relative file names begin in.
package root

import (
	"fmt"
	"os"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Setup reads: root DIRECTORY
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	for _, d := range lines {
		if err := d.Want(1, 1, "a directory"); err != nil {
			return nil, err
		}
		b.Root = d.Args[0].Text
		if _, err := os.Stat(b.Root); err != nil {
			b.Log("root").Warn(fmt.Sprintf("%s:%d: root directory: %v", d.Name.File, d.Name.Line, err))
		}
	}
	return nil, nil
}
