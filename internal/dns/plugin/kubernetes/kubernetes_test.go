package kubernetes_test

import (
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes/clustertest"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

func published() *kubernetes.Store {
	store := kubernetes.NewStore(nil)
	store.Now = func() time.Time { return time.Unix(1700000000, 0) }
	cat := clustertest.New()
	sub := cat.Subscribe()
	defer sub.Close()
	store.Publish(cat, sub.Take())
	return store
}

// The expected answers are CoreDNS's, but for what docs/compatibility.md lists.
func TestAnswers(t *testing.T) {
	plugintest.Scripts(t, plugin.Entry{Name: "kubernetes", Setup: kubernetes.Setup(published().ForAll), Effect: plugin.Local})
}
