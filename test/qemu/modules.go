package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// module is a kernel module, as its .modinfo section describes it.
type module struct {
	Name    string
	Aliases []string
	Depends []string
	file    string // on the host
}

// indexFile is where the guest's modprobe finds what there is: the package of
// a kernel has no index, depmod makes it when it is installed.
const indexFile = "/modules.json"

func (m *module) path() string { return "/usr/lib/modules/" + m.Name + ".ko" }

// wanted are the modules that the guest gets, as paths below kernel/, with all
// that these need.
var wanted = []string{
	"net/netfilter/*", "net/netfilter/ipset/*", "net/netfilter/ipvs/*",
	"net/ipv4/netfilter/*", "net/ipv6/netfilter/*", "net/sctp/*", "net/bridge/br_netfilter*", "net/xfrm/xfrm_user*",
	"drivers/net/veth*", "drivers/net/dummy*", "drivers/net/virtio_net*", "drivers/virtio/virtio_pci.*",
}

// findModules lists the modules of an unpacked kernel package.
func findModules(kernel string) ([]*module, error) {
	var roots []string
	for _, r := range []string{"lib/modules/*/kernel", "usr/lib/modules/*/kernel"} {
		found, _ := filepath.Glob(filepath.Join(kernel, r))
		roots = append(roots, found...)
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("%s has no kernel modules (scripts/qemu.sh fetches them)", kernel)
	}
	root := roots[0]
	byName := make(map[string]string)
	var queue []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		name, rest, ok := strings.Cut(d.Name(), ".ko")
		if err != nil || d.IsDir() || !ok || strings.Contains(rest, "/") {
			return err
		}
		name = strings.ReplaceAll(name, "-", "_")
		byName[name] = p
		rel, _ := filepath.Rel(root, p)
		if slices.ContainsFunc(wanted, func(w string) bool { ok, _ := path.Match(w, rel); return ok }) {
			queue = append(queue, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var list []*module
	seen := make(map[string]bool)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] || byName[name] == "" {
			continue // built in
		}
		seen[name] = true
		m := &module{Name: name, file: byName[name]}
		if err := m.describe(); err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
		list = append(list, m)
		queue = append(queue, m.Depends...)
	}
	return list, nil
}

// read returns the module, unpacked.
func (m *module) read() ([]byte, error) {
	switch filepath.Ext(m.file) {
	case ".xz":
		return exec.Command("xz", "-dc", m.file).Output()
	case ".zst":
		return exec.Command("zstd", "-dc", m.file).Output()
	}
	return os.ReadFile(m.file)
}

func (m *module) describe() error {
	b, err := m.read()
	if err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch {
		case key == "alias":
			m.Aliases = append(m.Aliases, strings.ReplaceAll(value, "-", "_"))
		case key == "depends" && value != "":
			m.Depends = strings.Split(strings.ReplaceAll(value, "-", "_"), ",")
		case key == "softdep":
			// "pre: a b post: c"; what is missing is left out.
			for _, w := range strings.Fields(value) {
				if !strings.HasSuffix(w, ":") {
					m.Depends = append(m.Depends, strings.ReplaceAll(w, "-", "_"))
				}
			}
		}
	}
	return nil
}

var errNoModule = errors.New("no module")

// modprobe is the guest's: it loads what the first argument that is no option
// names, with what that needs. The kernel calls it with an alias, iptables with
// options behind the name.
func modprobe(args []string) error {
	i := slices.IndexFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") })
	if i < 0 {
		return errors.New("no module named")
	}
	text, err := os.ReadFile(indexFile)
	if err != nil {
		return err
	}
	var index []*module
	if err := json.Unmarshal(text, &index); err != nil {
		return err
	}
	want := strings.ReplaceAll(args[i], "-", "_")
	found := false
	for _, m := range index {
		match := func(alias string) bool { ok, _ := path.Match(alias, want); return ok }
		if m.Name != want && !slices.ContainsFunc(m.Aliases, match) {
			continue
		}
		found = true
		if err := load(index, m.Name, 0); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%w is called %s", errNoModule, want)
	}
	return nil
}

func load(index []*module, name string, depth int) error {
	i := slices.IndexFunc(index, func(m *module) bool { return m.Name == name })
	if i < 0 || depth > 20 {
		return nil // built in; or a soft dependency in a circle
	}
	if _, err := os.Stat("/sys/module/" + name + "/initstate"); err == nil {
		return nil
	}
	for _, d := range index[i].Depends {
		if err := load(index, d, depth+1); err != nil {
			return err
		}
	}
	f, err := os.Open(index[i].path())
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	return nil
}
