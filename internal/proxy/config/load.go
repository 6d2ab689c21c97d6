package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/rutter-project/rutter/internal/proxy"
)

// Load reads a file. Unknown and repeated fields are no errors but warnings, as
// with kube-proxy, so that a file for another version still works; each names
// file and field. Defaults are filled in; the result is not validated.
func Load(path string) (c *Config, warnings []string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read the proxy's configuration: %w", err)
	}
	c, warnings, err = Parse(text)
	for i := range warnings {
		warnings[i] = path + ": " + warnings[i]
	}
	if err != nil {
		return nil, warnings, fmt.Errorf("%s: %w", path, err)
	}
	return c, warnings, nil
}

// Parse reads a configuration in YAML or JSON, as Load does.
func Parse(text []byte) (c *Config, warnings []string, err error) {
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		var again error
		if data, again = yaml.YAMLToJSON(text); again != nil {
			return nil, nil, oneLine(again)
		}
		warnings = append(warnings, oneLine(err).Error())
	}
	var identity struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if _, err := json.UnmarshalStrict(data, &identity); err != nil {
		return nil, warnings, oneLine(err)
	}
	switch {
	case identity.Kind != Kind:
		return nil, warnings, fmt.Errorf("kind is %q: must be %s", identity.Kind, Kind)
	case identity.APIVersion != APIVersion:
		return nil, warnings, fmt.Errorf("apiVersion is %q: must be %s", identity.APIVersion, APIVersion)
	}
	c = &Config{}
	strict, err := json.UnmarshalStrict(data, c)
	if err != nil {
		return nil, warnings, oneLine(err)
	}
	for _, e := range strict {
		warnings = append(warnings, ignoredField(e.Error()))
	}
	c.Default()
	return c, warnings, nil
}

// Marshal writes a configuration as a file has it.
func (c *Config) Marshal() ([]byte, error) { return yaml.Marshal(c) }

// oneLine makes one line of an error, in words of configuration rather than of
// Go's decoder.
func oneLine(err error) error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	for _, prefix := range []string{"error converting YAML to JSON: ", "yaml: unmarshal errors: ", "yaml: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	if m := wrongType.FindStringSubmatch(text); m != nil {
		want := "a block of fields"
		if w, ok := typeWords[m[3]]; ok {
			want = w
		}
		text = fmt.Sprintf("%s is a %s: must be %s", m[2], m[1], want)
		if want == "text" && (m[1] == "bool" || m[1] == "number") {
			text += " (put it in quotes)" // YAML takes n, on and 12 for something else
		}
	}
	return errors.New(text)
}

var wrongType = regexp.MustCompile(`cannot unmarshal (\S+) into Go struct field \w+\.(\S+) of type (\S+)`)

var typeWords = map[string]string{
	"config.Duration": "a duration such as 30s", "string": "text", "bool": "true or false",
	"int32": "a number", "uint32": "a number", "float32": "a number", "[]string": "a list of texts", "map[string]bool": "names with true or false",
}

func isIPv6(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is6()
}

// withPort completes an address that may lack host or port.
func withPort(s, host, port string) string {
	switch {
	case s == "":
		return host + ":" + port
	case isIPv6(s):
		return net.JoinHostPort(s, port)
	case !strings.Contains(s, ":"):
		return s + ":" + port
	}
	return s
}

// warnings of a legal configuration that does not do what it looks like.
func (c *Config) Warnings() []string {
	var w []string
	if c.Mode != "" && !slices.Contains(proxy.Modes(), c.Mode) {
		w = append(w, fmt.Sprintf("mode is %s: services are programmed with nftables in its place, which needs nothing else", c.Mode))
	}
	if c.DetectLocalMode == LocalByClusterCIDR && c.ClusterCIDR == "" {
		w = append(w, "detectLocalMode is ClusterCIDR and clusterCIDR is empty: no source is known to be a pod's, so traffic from outside to cluster IPs is not masqueraded")
	}
	for name := range c.FeatureGates {
		if name != "AllowServiceExternalIPs" && name != "AllAlpha" && name != "AllBeta" {
			w = append(w, fmt.Sprintf("featureGates.%s has no effect here", name))
		}
	}
	slices.Sort(w)
	return w
}
