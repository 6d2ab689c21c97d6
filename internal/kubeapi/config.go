// Package kubeapi is the small client for the Kubernetes API that everything
// in Rutter but the watch of the catalogue uses: the core/v1 kinds a node
// writes and reads, and nothing else, so that no other API group is linked in.
package kubeapi

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/rutter-project/rutter/internal/version"
)

// AgentKubeconfig is the name, in the run directory, of the kubeconfig that
// the registry's side leaves for the programs of this node.
const AgentKubeconfig = "agent.kubeconfig"

// nodeNameFile is the name, in the run directory, of the file that tells the
// programs of this node what it is called.
const nodeNameFile = "node-name"

// SaveNodeName tells the programs that use runDir the name of this node.
func SaveNodeName(runDir, name string) error {
	if err := os.WriteFile(filepath.Join(runDir, nodeNameFile), []byte(name+"\n"), 0o644); err != nil {
		return fmt.Errorf("leaving the node's name for `rutter run`: %w", err)
	}
	return nil
}

// NodeName is the name that the agent left in runDir, else the host's, in lower
// case as the kubelet has it.
func NodeName(runDir string) (string, error) {
	if b, err := os.ReadFile(filepath.Join(runDir, nodeNameFile)); err == nil && len(bytes.TrimSpace(b)) > 0 {
		return string(bytes.TrimSpace(b)), nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("reading the host name (or name the node with --node-name): %w", err)
	}
	return strings.ToLower(name), nil
}

// Path decides which kubeconfig to use: the flag, else $KUBECONFIG, else the
// agent's in runDir. A list in $KUBECONFIG is cut to its first entry: merging
// several files is for people, not for node programs.
func Path(flag, runDir string) string {
	if flag != "" {
		return flag
	}
	if list := filepath.SplitList(os.Getenv(clientcmd.RecommendedConfigPathEnvVar)); len(list) > 0 {
		return list[0]
	}
	return filepath.Join(runDir, AgentKubeconfig)
}

// Load reads the kubeconfig at path and sets what all clients of Rutter share.
// It does not connect.
func Load(path string) (*rest.Config, error) {
	switch f, err := os.Open(path); {
	case err == nil:
		f.Close()
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no kubeconfig at %s: start `rutter up` (or the registry), or name another one with --kubeconfig or $KUBECONFIG", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("reading kubeconfig: %w: run as root (sudo), or name one of your own with --kubeconfig or $KUBECONFIG", err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", path, err)
	}
	cfg.UserAgent = "rutter/" + version.Get().Version
	cfg.WarningHandler = rest.NoWarnings{}
	// The default limit of 5 requests/s is meant for people's tools; a node
	// is held back by the server's fairness queues instead.
	cfg.QPS = -1
	return cfg, nil
}
