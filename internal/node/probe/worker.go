package probe

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The API's defaults for a probe.
const (
	defaultTimeout          = time.Second
	defaultPeriod           = 10 * time.Second
	defaultSuccessThreshold = 1
	defaultFailureThreshold = 3
	firstRetry              = 100 * time.Millisecond
	unknownRetries          = 3
)

// Worker probes one process for as long as it runs.
//
//	             SuccessThreshold successes in a row
//	not ready ────────────────────────────────────────▶ ready
//	          ◀────────────────────────────────────────
//	             FailureThreshold failures in a row
//
// It begins not ready. Unknown results count for neither side.
type Worker struct {
	handler      Handler
	initialDelay time.Duration
	timeout      time.Duration
	period       time.Duration
	thresholds   [2]int // by Result

	ready bool
	last  Result
	run   int // how many results like last came in a row
}

// NewWorker takes timing and thresholds from p, with the API's defaults for
// what it leaves out.
func NewWorker(p *corev1.Probe, h Handler) *Worker {
	return &Worker{
		handler:      h,
		initialDelay: seconds(p.InitialDelaySeconds, 0),
		timeout:      seconds(p.TimeoutSeconds, defaultTimeout),
		period:       seconds(p.PeriodSeconds, defaultPeriod),
		thresholds: [2]int{
			Failure: threshold(p.FailureThreshold, defaultFailureThreshold),
			Success: threshold(p.SuccessThreshold, defaultSuccessThreshold),
		},
	}
}

func threshold(n int32, otherwise int) int {
	if n <= 0 {
		return otherwise
	}
	return int(n)
}

// Run probes until ctx ends and calls changed, from its own goroutine, each
// time readiness changes. Until the first success it probes in quick steps
// that grow to the period, so that a process which is ready soon after its
// start need not wait out a period; the kubelet gets the same from probing at
// each status sync.
func (w *Worker) Run(ctx context.Context, changed func(ready bool, why string)) {
	timer := time.NewTimer(w.initialDelay)
	defer timer.Stop()
	wait, succeeded := firstRetry, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		result, why := w.probe(ctx)
		if ctx.Err() != nil {
			return
		}
		if w.count(result) {
			changed(w.ready, why)
		}
		succeeded = succeeded || result == Success
		next := w.period
		if !succeeded && wait < w.period {
			next, wait = wait, 2*wait
		}
		timer.Reset(next)
	}
}

// probe looks once, again at once if the look could not be made.
func (w *Worker) probe(ctx context.Context) (result Result, why string) {
	for range unknownRetries {
		attempt, cancel := context.WithTimeout(ctx, w.timeout)
		result, why = w.handler.Probe(attempt)
		cancel()
		if result != Unknown {
			break
		}
	}
	return result, why
}

// count takes a result in and tells whether readiness changed by it.
func (w *Worker) count(r Result) bool {
	if r == Unknown {
		return false
	}
	if r != w.last {
		w.last, w.run = r, 0
	}
	w.run++
	ready := r == Success
	if w.run < w.thresholds[r] || ready == w.ready {
		return false
	}
	w.ready = ready
	return true
}
