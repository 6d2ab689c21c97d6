package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// Sweep takes away what pods left whose supervisor died: namespaces, links,
// routes, directories. It returns their records, so that the caller can take
// their objects out of the API. Pods that ended in order and only left record
// and log stay, unless ended is set. Living pods are never touched.
func Sweep(ctx context.Context, runDir string, ended bool) ([]Record, error) {
	if _, err := os.Stat(filepath.Join(runDir, podsDir)); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	unlock, err := lockRunDir(runDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	pods, err := List(runDir)
	if err != nil {
		return nil, err
	}
	var swept []Record
	var errs []error
	known := make(map[string]bool)
	for _, p := range pods {
		if p.Live || p.Ended() && !ended {
			known[p.Link] = true
			continue
		}
		if err := ctx.Err(); err != nil {
			return swept, errors.Join(append(errs, err)...)
		}
		if err := removeEntry(p); err != nil {
			errs = append(errs, err)
			continue
		}
		swept = append(swept, p.Record)
	}
	if CheckPrivilege() != nil {
		return swept, errors.Join(errs...) // who may not make links has made none
	}
	left, err := strangers(runDir, known)
	errs = append(errs, err)
	for _, link := range left {
		errs = append(errs, removeLink(link))
	}
	return swept, errors.Join(errs...)
}

// removeEntry takes away a dead pod. Its processes are gone already: they went
// with the lifeline.
func removeEntry(p Entry) error {
	if p.Shared {
		return os.RemoveAll(p.Dir)
	}
	err := removeLink(p.Link)
	if p.NetNS != "" {
		err = errors.Join(err, removeNetNS(p.NetNS))
	}
	if err != nil {
		return err // keep the record, for the next sweep
	}
	return os.RemoveAll(p.Dir)
}

// Forget removes what an ended pod left. It does nothing to a living one.
func Forget(runDir, id string) error {
	unlock, err := lockRunDir(runDir)
	if err != nil {
		return err
	}
	defer unlock()
	dir := filepath.Join(runDir, podsDir, id)
	if locked(filepath.Join(dir, lockFile)) {
		return errors.New("the pod still runs")
	}
	return os.RemoveAll(dir)
}
