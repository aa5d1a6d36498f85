package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// certificate is a self-signed pair in PEM.
type certificate struct{ cert, key []byte }

func newCertificate(t *testing.T, name string, serial int64) certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return certificate{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})}
}

// write puts bytes in the place of a file, as those who renew certificates
// do.
func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// trusting returns a client that speaks to whom a pool vouches for.
func trusting(pool *x509.CertPool, name string) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: name},
	}}
}

// serial returns the serial number of the certificate that addr shows.
func serial(t *testing.T, addr string) int64 {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatalf("shaking hands: %v", err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestServeTLS(t *testing.T) {
	w, key := newHostedWorld(t)
	pair := newCertificate(t, "vault.example.com", 1)
	certFile, keyFile := filepath.Join(w.root, "c.pem"), filepath.Join(w.root, "k.pem")
	write(t, certFile, pair.cert)
	write(t, keyFile, pair.key)
	h := w.host(setting{}, "--listen", "0.0.0.0:0", "--tls-cert", certFile, "--tls-key", keyFile, "--allow-host", "127.0.0.1", "--drain-wait", "0s", "--log-level", "debug")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pair.cert)
	if err := fetchSecret(trusting(pool, "vault.example.com"), h.url, key, "TOKEN", "CANARY-served"); err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimSuffix(strings.TrimPrefix(h.url, "https://"), "/mcp")
	c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ConnectionState(); got.Version != tls.VersionTLS13 || got.NegotiatedProtocol != "h2" {
		t.Errorf("version %x, protocol %q, want 1.3 and h2", got.Version, got.NegotiatedProtocol)
	}
	c.Close()
	if c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS12}); err == nil {
		c.Close()
		t.Error("it speaks TLS 1.2")
	}
	if err := fetchSecret(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+addr+"/mcp", key, "TOKEN", "CANARY-served"); err == nil {
		t.Error("it serves in clear on the port of TLS")
	}
	h.waitFor(`level=DEBUG msg="tls handshake failed"`)
	h.stop()
	if _, log, _ := strings.Cut(h.text(), "\n"); strings.Contains(log, "127.0.0.1") { // after the line of readiness
		t.Errorf("the log names a caller's address:\n%s", log)
	}
}

// TestServeReloadsCertificate renews a pair in two steps, and in between
// breaks it in every way that files break.
func TestServeReloadsCertificate(t *testing.T) {
	t.Parallel()
	w, _ := newHostedWorld(t)
	one, two := newCertificate(t, "vault.example.com", 1), newCertificate(t, "vault.example.com", 2)
	dir := filepath.Join(w.root, "live")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	write(t, certFile, one.cert)
	write(t, keyFile, one.key)
	link := filepath.Join(w.root, "k.pem") // as ACME clients name the newest
	if err := os.Symlink(keyFile, link); err != nil {
		t.Fatal(err)
	}
	h := w.host(setting{}, "--listen", "127.0.0.1:0", "--tls-cert", certFile, "--tls-key", link)
	addr := strings.TrimSuffix(strings.TrimPrefix(h.url, "https://"), "/mcp")
	warnings := func() int { return strings.Count(h.text(), "level=WARN") }
	if got := serial(t, addr); got != 1 {
		t.Fatalf("serial %d, want 1", got)
	}
	for name, spoil := range map[string]func(){
		"half a certificate":         func() { write(t, certFile, two.cert[:len(two.cert)/2]) },
		"a key of another":           func() { write(t, certFile, two.cert) },
		"no certificate":             func() { _ = os.Remove(certFile) },
		"an empty key":               func() { write(t, keyFile, nil) },
		"a key that everybody reads": func() { _ = os.Chmod(keyFile, 0o644); write(t, certFile, append(one.cert, '\n')) },
	} {
		before := warnings()
		spoil()
		within(t, "a warning about "+name, func() bool {
			if got := serial(t, addr); got != 1 {
				t.Fatalf("%s: serial %d, want 1", name, got)
			}
			return warnings() > before
		})
		write(t, certFile, one.cert)
		write(t, keyFile, one.key)
		reloads := strings.Count(h.text(), "certificate reloaded")
		within(t, "the repaired pair", func() bool { serial(t, addr); return strings.Count(h.text(), "certificate reloaded") > reloads })
	}
	write(t, certFile, two.cert)
	write(t, keyFile, two.key)
	within(t, "the new pair", func() bool { return serial(t, addr) == 2 })
	h.stop()
	if strings.Contains(h.text(), "PRIVATE KEY") {
		t.Error("the log holds a key")
	}
}

func TestServeRefusesOpenKey(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes are of Unix")
	}
	w := newWorld(t)
	pair := newCertificate(t, "vault.example.com", 1)
	certFile, keyFile := filepath.Join(w.root, "c.pem"), filepath.Join(w.root, "k.pem")
	write(t, certFile, pair.cert)
	write(t, keyFile, pair.key)
	if err := os.Chmod(keyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	out := w.run("serve", "--listen", "127.0.0.1:0", "--tls-cert", certFile, "--tls-key", keyFile)
	if out.code != exitUsage || !strings.Contains(out.stderr, "try: chmod 600 ") {
		t.Errorf("a key that everybody reads: %v", out)
	}
	if err := os.Chmod(keyFile, 0o640); err != nil {
		t.Fatal(err)
	}
	w.host(setting{}, "--listen", "127.0.0.1:0", "--tls-cert", certFile, "--tls-key", keyFile).stop()
}

// TestServeACME gets a certificate from a real authority, Let's Encrypt's
// test server, and serves it; the next process finds it in the cache.
func TestServeACME(t *testing.T) {
	pebble, err := exec.LookPath("pebble")
	if err != nil {
		t.Skip("pebble is not in PATH: go install github.com/letsencrypt/pebble/v2/cmd/pebble@latest")
	}
	t.Parallel()
	w, key := newHostedWorld(t)
	const domain = "vault.example.com"
	ca := newCertificate(t, "localhost", 1)
	write(t, filepath.Join(w.root, "ca.pem"), ca.cert)
	write(t, filepath.Join(w.root, "ca.key"), ca.key)
	api, admin, port := freePort(t), freePort(t), freePort(t)
	write(t, filepath.Join(w.root, "pebble.json"), fmt.Appendf(nil,
		`{"pebble":{"listenAddress":"127.0.0.1:%d","managementListenAddress":"127.0.0.1:%d","certificate":%q,"privateKey":%q,"httpPort":1,"tlsPort":%d}}`,
		api, admin, filepath.Join(w.root, "ca.pem"), filepath.Join(w.root, "ca.key"), port))
	cmd := exec.Command(pebble, "-config", filepath.Join(w.root, "pebble.json"), "-dnsserver", everythingIsHere(t))
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(func() {
		gone()
		if t.Failed() {
			t.Logf("pebble: %s", &said)
		}
	})
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM(ca.cert)
	root := fetchRoot(t, trusting(trust, "localhost"), fmt.Sprintf("https://127.0.0.1:%d/roots/0", admin))

	args := []string{"--listen", fmt.Sprintf("127.0.0.1:%d", port), "--acme-domain", domain, "--acme-email", "ops@example.com", "--acme-directory", fmt.Sprintf("https://localhost:%d/dir", api)}
	h := w.host(setting{env: []string{"SSL_CERT_FILE=" + filepath.Join(w.root, "ca.pem")}}, args...)
	h.waitFor("certificate from the ACME authority")
	if err := fetchSecret(trusting(root, domain), h.url, key, "TOKEN", "CANARY-served"); err != nil {
		t.Errorf("over the certificate: %v\n%s", err, h.text())
	}
	if err := fetchSecret(trusting(root, "other.example.com"), h.url, key, "TOKEN", "CANARY-served"); err == nil {
		t.Error("it gets certificates for any name")
	}
	h.stop()
	cache := filepath.Join(w.store, "acme")
	if info, err := os.Stat(cache); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the cache: %v, %v, want mode 0700", info, err)
	}
	gone() // the second process has only the cache
	h = w.host(setting{}, args...)
	if err := fetchSecret(trusting(root, domain), h.url, key, "TOKEN", "CANARY-served"); err != nil {
		t.Errorf("from the cache: %v\n%s", err, h.text())
	}
	h.stop()
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// fetchRoot waits for the authority and returns the root it signs with.
func fetchRoot(t *testing.T, c *http.Client, url string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	within(t, "the authority's root", func() bool {
		resp, err := c.Get(url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return err == nil && pool.AppendCertsFromPEM(b)
	})
	return pool
}

// everythingIsHere is a DNS server, over TCP, by which every name is
// 127.0.0.1. Each connection asks once.
func everythingIsHere(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-over })
	go func() {
		defer close(over)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answerDNS(c)
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

func answerDNS(c net.Conn) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	q := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, q); err != nil {
		return
	}
	a := here(q)
	_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
}

// here answers one question: an A record if it asks for one, else nothing.
func here(q []byte) []byte {
	const header = 12
	end := header
	for q[end] != 0 {
		end += int(q[end]) + 1
	}
	end += 5 // the root label, type and class
	a := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[header:end]...)
	if binary.BigEndian.Uint16(q[end-4:]) == 1 {
		a[7] = 1
		a = append(a, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
	}
	return a
}
