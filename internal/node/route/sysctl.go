package route

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Sysctl reads a kernel setting of the calling thread's network namespace; its
// name has slashes, because interface names may have dots.
func Sysctl(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join("/proc/sys", name))
	return strings.TrimSpace(string(text)), err
}

// SetSysctl sets one if it is not so already, which also works where /proc/sys
// is mounted read-only and somebody else has set it.
func SetSysctl(name, value string) error {
	have, err := Sysctl(name)
	if err != nil {
		return fmt.Errorf("reading sysctl %s: %w", name, err)
	}
	if have == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("setting sysctl %s from %s to %s: %w", name, have, value, err)
	}
	return nil
}
