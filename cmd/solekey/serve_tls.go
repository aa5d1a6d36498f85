package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// Where the endpoint's certificates come from: files, or an ACME authority.

// newTLS returns the settings that both sources share.
func newTLS(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: get}
}

const (
	pairCheck = time.Second // how often a change of the files is looked for
	pairBytes = 1 << 20
)

// fileState is what of a file changes when its content does.
type fileState struct {
	mod  time.Time
	size int64
}

// pairFiles is a certificate and its key in two files, which whoever renews
// them replaces one after the other.
type pairFiles struct {
	cert, key string
	log       *slog.Logger
	now       func() time.Time

	mu     sync.Mutex
	pair   *tls.Certificate
	looked time.Time
	loaded [2]fileState // of the pair that is served
	warned string       // of this cause, since the last pair that was whole
}

// fileTLS serves the pair in two files, and the one that takes its place.
func fileTLS(cert, key string, log *slog.Logger, now func() time.Time) (*tls.Config, error) {
	p := &pairFiles{cert: cert, key: key, log: log, now: now, looked: now()}
	var err error
	if p.loaded, err = p.states(); err == nil {
		p.pair, err = loadPair(cert, key)
	}
	if err != nil {
		if _, ok := errors.AsType[*failure](err); ok {
			return nil, err
		}
		return nil, failf(exitUsage, "the certificate and its key cannot be used: %v", err)
	}
	return newTLS(p.get), nil
}

// get returns the pair for a handshake.
func (p *pairFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.now(); now.Sub(p.looked) >= pairCheck || now.Before(p.looked) {
		p.looked = now
		p.refresh()
	}
	return p.pair, nil
}

// refresh loads the pair again if a file changed. A pair that is broken, half
// written or of two generations is left until it is whole.
func (p *pairFiles) refresh() {
	at, err := p.states()
	if err == nil && at == p.loaded {
		return
	}
	var pair *tls.Certificate
	if err == nil {
		pair, err = loadPair(p.cert, p.key)
	}
	if err != nil {
		if cause := err.Error(); cause != p.warned {
			p.warned = cause
			p.log.Warn("the certificate changed and cannot be used; the one before is served", slog.String("cause", cause))
		}
		return
	}
	p.pair, p.loaded, p.warned = pair, at, ""
	p.log.Info("certificate reloaded", slog.Time("expires", pair.Leaf.NotAfter))
}

func (p *pairFiles) states() (out [2]fileState, err error) {
	for i, name := range []string{p.cert, p.key} {
		info, err := os.Stat(name)
		if err != nil {
			return [2]fileState{}, err
		}
		out[i] = fileState{info.ModTime(), info.Size()}
	}
	return out, nil
}

// loadPair reads a certificate chain and its key. Errors name files, never
// content.
func loadPair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := readPEM(certFile, false)
	if err != nil {
		return nil, err
	}
	key, err := readPEM(keyFile, true)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &pair, nil
}

// readPEM reads a file of a certificate. Symbolic links are followed, since
// ACME clients and Kubernetes keep the newest pair behind one. A secret file
// that everybody may read is refused; a group may read it, as such files often
// belong to root and to the group of those who serve.
func readPEM(path string, secret bool) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // before it is opened: a pipe would wait for its other end
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, err
	}
	if secret && runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		return nil, failf(exitUsage, "%s can be opened by everybody (mode %04o)", path, info.Mode().Perm()).hint("chmod 600 " + path)
	}
	b, err := io.ReadAll(io.LimitReader(f, pairBytes+1))
	if err == nil && len(b) > pairBytes {
		err = fmt.Errorf("%s is too large for a certificate", path)
	}
	return b, err
}

// acmeOptions is what the flags say about certificates by ACME.
type acmeOptions struct {
	domains   []string
	email     string
	directory string
	cache     string
}

func (o *acmeOptions) check() error {
	for _, d := range o.domains {
		if !strings.Contains(strings.Trim(d, "."), ".") || strings.ContainsAny(d, "*:/ @") {
			return failf(exitUsage, "--acme-domain takes the full name of a host, such as vault.example.com")
		}
	}
	if o.directory != "" { // the account's key signs for it, so nobody may stand between
		if u, err := url.Parse(o.directory); err != nil || u.Scheme != "https" || u.Host == "" {
			return failf(exitUsage, "--acme-directory takes an https URL").hint("solekey serve --acme-directory https://ca.example.com/dir --acme-domain NAME")
		}
	}
	return nil
}

// newACME returns what gets certificates by ACME, keeps them in the cache
// directory and renews them. Its requests end with the context.
func newACME(ended context.Context, o acmeOptions, log *slog.Logger, now func() time.Time) (*acmeCerts, error) {
	if err := ownDir(o.cache); err != nil {
		return nil, err
	}
	m := &autocert.Manager{
		Prompt: autocert.AcceptTOS, Email: o.email, Cache: autocert.DirCache(o.cache), HostPolicy: autocert.HostWhitelist(o.domains...),
		Client: &acme.Client{
			DirectoryURL: o.directory, UserAgent: "solekey/" + version().Version,
			HTTPClient: &http.Client{Timeout: time.Minute, Transport: endingWith{ended, http.DefaultTransport}},
		},
	}
	return &acmeCerts{manager: m, domains: o.domains, log: log, now: now}, nil
}

// tls returns the settings of a port on which the authority proves the names.
func (a *acmeCerts) tls() *tls.Config {
	c := newTLS(a.get)
	c.NextProtos = append(c.NextProtos, acme.ALPNProto)
	return c
}

// ownDir makes a directory that nobody else can look into.
func ownDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return failf(exitUsage, "making the directory for certificates: %v", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return failf(exitUsage, "looking at the directory for certificates: %v", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return failf(exitUsage, "%s can be opened by others (mode %04o), and keys would rest there", filepath.Clean(dir), info.Mode().Perm()).hint("chmod 700 " + dir)
	}
	return nil
}

// acmeCerts is an autocert.Manager whose errors are logged: a handshake is the
// only place where they show.
type acmeCerts struct {
	manager *autocert.Manager
	domains []string
	log     *slog.Logger
	now     func() time.Time

	mu     sync.Mutex
	logged time.Time
}

// get returns the certificate for a handshake. Who speaks TLS 1.3 takes an
// ECDSA certificate; autocert would get a second one, of RSA, for clients that
// name only suites of 1.3.
func (a *acmeCerts) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := a.manager.GetCertificate(&tls.ClientHelloInfo{
		ServerName: hello.ServerName, SupportedProtos: hello.SupportedProtos,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
	if err != nil && a.served(hello.ServerName) {
		a.tell(err)
	}
	return cert, err
}

// served reports that a name is one of ours. Errors about others are a
// stranger's.
func (a *acmeCerts) served(name string) bool {
	for _, d := range a.domains {
		if strings.EqualFold(strings.TrimSuffix(name, "."), strings.TrimSuffix(d, ".")) {
			return true
		}
	}
	return false
}

// tell logs what the authority, or the way to it, has against a certificate,
// at most once a minute.
func (a *acmeCerts) tell(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.now(); now.Sub(a.logged) >= time.Minute {
		a.logged = now
		a.log.Warn("no certificate from the ACME authority", slog.String("cause", err.Error()))
	}
}

// fetch asks for the certificate of a domain before a client does, so that
// what is wrong shows in the log at once.
func (a *acmeCerts) fetch(ended context.Context, domain string) {
	cert, err := a.get(&tls.ClientHelloInfo{ServerName: domain})
	if err != nil || ended.Err() != nil {
		return
	}
	leaf := cert.Leaf
	if leaf == nil {
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return
		}
	}
	a.log.Info("certificate from the ACME authority", slog.String("domain", domain), slog.Time("expires", leaf.NotAfter))
}

// endingWith lets requests end with a context, as autocert takes none.
type endingWith struct {
	ended context.Context
	next  http.RoundTripper
}

// RoundTrip sends a request as long as the context lives. The body of the
// answer is read after it returns, so what cancels the request stays; there
// are a few requests in a month.
func (e endingWith) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	context.AfterFunc(e.ended, cancel)
	return e.next.RoundTrip(r.WithContext(ctx))
}
