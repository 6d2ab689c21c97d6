package sandbox

import "errors"

// undo takes back what was done so far, last first, when a later step fails.
type undo []func() error

func (u *undo) push(f func() error) { *u = append(*u, f) }

// run takes everything back once; what cannot be taken back is in the error.
func (u *undo) run() error {
	var errs []error
	for i := len(*u) - 1; i >= 0; i-- {
		errs = append(errs, (*u)[i]())
	}
	*u = nil
	return errors.Join(errs...)
}
