package kubeapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// Unreachable tells whether err means that no answer came from an API server,
// or one that says to ask again: the states that are waited out. An answer
// that says no is not one of them.
func Unreachable(err error) bool {
	if err == nil {
		return false
	}
	var netErr net.Error
	var urlErr *url.Error
	switch {
	case errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &netErr), errors.As(err, &urlErr), utilnet.IsConnectionRefused(err), utilnet.IsProbableEOF(err):
		return true
	}
	return apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsTimeout(err) || apierrors.IsInternalError(err)
}

// Explain words an error of this client in one line: which server, what, and
// the mend. Its kind stays visible to errors.As and to the predicates of
// apierrors.
func (c *Client) Explain(err error) error {
	switch {
	case err == nil:
		return nil
	case untrusted(err):
		return fmt.Errorf("API server %s cannot be trusted: %w; the kubeconfig is of another registry, take the one it wrote", c.host, root(err))
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("API server %s does not accept the credentials of the kubeconfig: %w; use a kubeconfig that this registry wrote (--kubeconfig)", c.host, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("API server %s refuses: %w; use a kubeconfig with that right (--kubeconfig)", c.host, err)
	case Unreachable(err):
		return fmt.Errorf("API server %s does not answer: %w; is the registry running, and is this its address (--kubeconfig)?", c.host, root(err))
	}
	return err
}

// untrusted tells whether the server's certificate was not accepted.
func untrusted(err error) bool {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &invalid)
}

// root drops the request line that url.Error puts in front: the server has
// been named already.
func root(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
