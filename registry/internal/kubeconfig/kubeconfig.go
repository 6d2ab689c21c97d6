// Package kubeconfig writes the files with which clients find and trust the
// registry. Certificates and keys are embedded, so that one file can be
// carried to another host.
package kubeconfig

import (
	"encoding/json"
	"fmt"

	"github.com/rutter-project/rutter/registry/internal/atomicfile"
	"sigs.k8s.io/yaml"
)

// Access is what one client needs.
type Access struct {
	Server string // https URL
	CA     []byte // PEM
	User   string // a name for the entry; the identity is in the certificate
	Cert   []byte // PEM
	Key    []byte // PEM
}

// The shapes of k8s.io/client-go/tools/clientcmd/api/v1, as far as they are
// used; []byte becomes base64 in JSON, which is what the format wants.
type (
	file struct {
		APIVersion     string         `json:"apiVersion"`
		Kind           string         `json:"kind"`
		Clusters       []namedCluster `json:"clusters"`
		Users          []namedUser    `json:"users"`
		Contexts       []namedContext `json:"contexts"`
		CurrentContext string         `json:"current-context"`
	}
	namedCluster struct {
		Name    string  `json:"name"`
		Cluster cluster `json:"cluster"`
	}
	cluster struct {
		Server string `json:"server"`
		CA     []byte `json:"certificate-authority-data"`
	}
	namedUser struct {
		Name string `json:"name"`
		User user   `json:"user"`
	}
	user struct {
		Cert []byte `json:"client-certificate-data"`
		Key  []byte `json:"client-key-data"`
	}
	namedContext struct {
		Name    string      `json:"name"`
		Context contextRefs `json:"context"`
	}
	contextRefs struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	}
)

const clusterName = "rutter"

// Render gives the file's content.
func Render(a Access) ([]byte, error) {
	name := a.User + "@" + clusterName
	j, err := json.Marshal(file{
		APIVersion:     "v1",
		Kind:           "Config",
		Clusters:       []namedCluster{{clusterName, cluster{a.Server, a.CA}}},
		Users:          []namedUser{{a.User, user{a.Cert, a.Key}}},
		Contexts:       []namedContext{{name, contextRefs{clusterName, a.User}}},
		CurrentContext: name,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a kubeconfig: %w", err)
	}
	return yaml.JSONToYAML(j)
}

// Write replaces path, readable by its owner only: it holds a private key.
func Write(path string, a Access) error {
	b, err := Render(a)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b, 0o600)
}
