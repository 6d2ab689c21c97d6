// Package version tells which build this is, from what the Go tool recorded in
// the binary.
package version

import "runtime/debug"

// Info identifies a build.
type Info struct {
	Version string // module version, or "devel"
	Commit  string // short commit, with "+dirty" for a changed tree; "unknown" without VCS data
}

// Get reads the build information of the running binary.
func Get() Info {
	v := Info{Version: "devel", Commit: "unknown"}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		v.Version = bi.Main.Version
	}
	dirty := ""
	for _, s := range bi.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			v.Commit = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	v.Commit += dirty
	return v
}
