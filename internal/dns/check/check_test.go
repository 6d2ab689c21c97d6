package check_test

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/check"
	"github.com/rutter-project/rutter/internal/dns/plugin/order"
)

// TestCheck compares the text for each Corefile in testdata with what is
// expected; hashes are left out.
func TestCheck(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	hash := regexp.MustCompile(`SHA512 [0-9a-f]{128}`)
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			r := check.Check("Corefile", ar.Files[0].Data, corefile.Options{}, order.List(nil))
			var got strings.Builder
			for _, e := range r.Errors {
				got.WriteString(e.Text + "\n")
			}
			if err := r.Write(&got); err != nil {
				t.Fatal(err)
			}
			if r.Valid != (len(r.Errors) == 0) {
				t.Errorf("valid is %t with %d errors", r.Valid, len(r.Errors))
			}
			if diff := cmp.Diff(string(ar.Files[1].Data), hash.ReplaceAllString(got.String(), "SHA512 ...")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
