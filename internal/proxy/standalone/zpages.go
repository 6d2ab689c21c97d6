package standalone

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// The pages for people debugging that every Kubernetes component has (KEP-4827,
// KEP-4828): text that is not to be parsed. Structured answers are not given,
// whose format is not settled.
const zpageHeading = "\n%s %s\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"

// statusz tells what runs here, since when.
func statusz(version string, started time.Time, paths []string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, zpageHeading, "kube-proxy", "statusz")
		fmt.Fprintf(w, "\nStarted: %s\nUp: %s\nGo version: %s\nBinary version: Rutter %s\nPaths: %s\n",
			started.Format(time.UnixDate), time.Since(started).Round(time.Second), runtime.Version(), version, strings.Join(paths, " "))
	}
}

// flagz tells the command line's flags.
func flagz(flags func() []string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, zpageHeading, "kube-proxy", "flagz")
		for _, f := range flags() {
			fmt.Fprintln(w, f)
		}
	}
}

// sli keeps of all metrics what /metrics/slis shows (KEP-3466): this process
// has no health checks that are counted one by one, as kube-proxy has none.
func sli(all prometheus.Gatherer) prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		families, err := all.Gather()
		for _, f := range families {
			if f.GetName() == "process_start_time_seconds" {
				return []*dto.MetricFamily{f}, err
			}
		}
		return nil, err
	})
}
