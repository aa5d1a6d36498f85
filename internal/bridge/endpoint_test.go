package bridge_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/solekey/solekey/internal/bridge"
)

// A certificate that nobody vouches for, and plain HTTP where TLS is meant,
// end before the bearer is sent.
func TestBearerNeedsATrustedCertificate(t *testing.T) {
	var seen atomic.Int32
	h := handler(func(http.ResponseWriter, *http.Request, request) bool { seen.Add(1); return false })
	own := httptest.NewUnstartedServer(h)
	own.TLS = &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	own.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	own.StartTLS()
	t.Cleanup(own.Close)
	if r := told(t, one(t, options(t, own.URL), call("1", "get_secret"))); !strings.Contains(r.Message, "certificate that this machine does not trust") {
		t.Errorf("unknown authority: %+v", r)
	}
	clear := httptest.NewServer(h)
	t.Cleanup(clear.Close)
	if r := told(t, one(t, options(t, strings.Replace(clear.URL, "http:", "https:", 1)), call("1", "get_secret"))); r.Error != "unavailable" {
		t.Errorf("no TLS: %+v", r)
	}
	old := httptest.NewUnstartedServer(h)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10} //nolint:gosec // that it is refused is tested
	old.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	old.StartTLS()
	t.Cleanup(old.Close)
	if r := told(t, one(t, options(t, old.URL), call("1", "get_secret"))); r.Error != "unavailable" {
		t.Errorf("TLS 1.1: %+v", r)
	}
	if seen.Load() != 0 {
		t.Errorf("%d requests got through", seen.Load())
	}
	if !ownRoots() {
		return
	}
	trusted := httptest.NewUnstartedServer(h)
	trusted.EnableHTTP2 = true
	trusted.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	trusted.StartTLS()
	t.Cleanup(trusted.Close)
	if got := one(t, options(t, trusted.URL), call("1", "get_secret")); !strings.Contains(got, `"result":{}`) || seen.Load() != 1 {
		t.Errorf("control: %s", got)
	}
	wrongName := strings.Replace(trusted.URL, "127.0.0.1", "localhost", 1)
	if r := told(t, one(t, options(t, wrongName), call("1", "get_secret"))); !strings.Contains(r.Message, "does not trust") {
		t.Errorf("another name: %+v", r)
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestPlainHTTPStaysOnThisMachine(t *testing.T) {
	for url, want := range map[string]string{
		"https://vault.example.com":            "https://vault.example.com/mcp",
		"https://Vault.Example.com:7653/":      "https://vault.example.com:7653/mcp",
		" https://vault.example.com/team/mcp ": "https://vault.example.com/team/mcp",
		"HTTPS://vault.example.com":            "https://vault.example.com/mcp",
		"http://127.0.0.1:7653":                "http://127.0.0.1:7653/mcp",
		"http://[::1]:7653":                    "http://[::1]:7653/mcp",
		"http://localhost":                     "http://localhost/mcp",
		"http://127.9.9.9/x":                   "http://127.9.9.9/x",
	} {
		e, err := bridge.ParseEndpoint(url)
		if err != nil || e.String() != want {
			t.Errorf("ParseEndpoint(%q) = %v, %v, want %s", url, e, err, want)
			continue
		}
		if same, err := bridge.ParseEndpoint(e.String()); err != nil || same != e {
			t.Errorf("ParseEndpoint(%q) = %v, %v: not stable", e, same, err)
		}
	}
	for url, want := range map[string]error{
		"http://vault.example.com": bridge.ErrScheme, "http://10.0.0.1": bridge.ErrScheme, "http://0.0.0.0": bridge.ErrScheme,
		"http://localhost.example.com": bridge.ErrScheme, "http://127.0.0.1.example.com": bridge.ErrScheme, "http://[::ffff:10.0.0.1]": bridge.ErrScheme,
		"vault.example.com": bridge.ErrScheme, "": bridge.ErrScheme, "ftp://vault.example.com": bridge.ErrScheme, "//vault.example.com": bridge.ErrScheme,
		"https://": bridge.ErrURL, "https:vault.example.com": bridge.ErrURL, "https://user:" + canary + "@vault.example.com": bridge.ErrURL,
		"https://vault.example.com/mcp?key=" + canary: bridge.ErrURL, "https://vault.example.com/#" + canary: bridge.ErrURL, "https://vault.example.com/?": bridge.ErrURL,
		"https://vault.example.com:" + canary: bridge.ErrURL, "https://va ult": bridge.ErrURL, "https://v\nx": bridge.ErrURL, "https://vault.example.com:": bridge.ErrURL,
		"https://" + strings.Repeat("a", 3000): bridge.ErrURL, "https://bücher.example": bridge.ErrURL,
	} {
		e, err := bridge.ParseEndpoint(url)
		if !errors.Is(err, want) || e != (bridge.Endpoint{}) {
			t.Errorf("ParseEndpoint(%q) = %v, %v, want %v", url, e, err, want)
		}
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("the error repeats the URL: %v", err)
		}
	}
}
