package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

const (
	dialTime  = 5 * time.Second
	tlsTime   = 5 * time.Second
	quietTime = 60 * time.Second // until the first byte of an answer: a one-time code may take 45 s
	idleTime  = 60 * time.Second // less than what servers and proxies keep a connection open
	maxURL    = 2048
)

// The errors of [ParseEndpoint]. They do not repeat the URL, which may hold
// what does not belong there.
var (
	ErrScheme = errors.New("the URL of an endpoint begins with https://, or http:// for a loopback address")
	ErrURL    = errors.New("not the URL of an endpoint: it is a host, with or without a port and a path")
)

// Endpoint is the URL of an MCP endpoint: https, or http to this machine.
type Endpoint struct {
	url   string
	host  string // with the port, as messages name it
	plain bool   // http, so loopback only
}

// ParseEndpoint reads the URL of an endpoint. Without a path it leads to
// /mcp. User, query and fragment are refused.
func ParseEndpoint(text string) (Endpoint, error) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || len(text) > maxURL {
		return Endpoint{}, ErrURL
	}
	u.Host = strings.ToLower(u.Host)
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return Endpoint{}, ErrScheme
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" || !hostname(u.Hostname()) || strings.HasSuffix(u.Host, ":") {
		return Endpoint{}, ErrURL
	}
	if u.Path == "" || u.Path == "/" {
		u.Path, u.RawPath = "/mcp", ""
	}
	return Endpoint{url: u.String(), host: u.Host, plain: u.Scheme == "http"}, nil
}

// String returns the URL.
func (e Endpoint) String() string { return e.url }

// hostname reports that s is a name of ASCII letters, or an address.
func hostname(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return s != "" && len(s) <= 253 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-._") == ""
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}

// transport returns what carries requests to the endpoint and nowhere else.
// It follows no redirect, since nothing here does, and asks the proxy of the
// environment except for this machine.
func (e Endpoint) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTime, KeepAlive: 15 * time.Second}
	if e.plain {
		dialer.Control = loopbackOnly
	}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    tlsTime,
		ResponseHeaderTimeout:  quietTime,
		IdleConnTimeout:        idleTime,
		MaxIdleConnsPerHost:    maxCalls,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
}

// loopbackOnly refuses to connect to another machine, whatever a name
// resolves to.
func loopbackOnly(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || !to.Addr().Unmap().IsLoopback() {
		return errNotHere
	}
	return nil
}

var errNotHere = errors.New("plain HTTP leaves this machine")

// The refusals of what went wrong on the way. Their texts are constant but
// for the host.

const (
	hintWait  = "Repeat this call after the wait. If that does not help, tell the owner that the endpoint is down."
	hintURL   = "Tell the owner to check the URL with: solekey profile list."
	hintLater = 5 * time.Second
)

func (e Endpoint) wrong(message, hint string, retry time.Duration) *Refusal {
	return &Refusal{Word: "unavailable", Message: e.host + " " + message, Hint: hint, RetryAfter: retry}
}

func (e Endpoint) ended() *Refusal {
	return e.wrong("had not answered when this session ended.", "", 0)
}

// unreachable words an error of the network.
func (e Endpoint) unreachable(ctx context.Context, err error) *Refusal {
	var (
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		alert   tls.AlertError
		network net.Error
	)
	switch {
	case errors.Is(context.Cause(ctx), errEnding):
		return e.ended()
	case errors.Is(err, errNotHere):
		return e.wrong("is not on this machine, so plain HTTP is refused.", hintURL, 0)
	case errors.As(err, &cert):
		return e.wrong("has a certificate that this machine does not trust.", "Tell the owner to check the certificate of the endpoint.", 0)
	case errors.As(err, &record), errors.As(err, &alert):
		return e.wrong("does not agree on TLS.", hintURL, 0)
	case errors.As(err, &dns) && dns.IsNotFound:
		return e.wrong("is not a known host.", hintURL, hintLater)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return e.wrong("did not answer in time.", hintWait, hintLater)
	}
	return e.wrong("cannot be reached.", hintWait, hintLater)
}
