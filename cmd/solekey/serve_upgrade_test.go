//go:build linux

package main

import (
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// clientele is callers that read one label without end and retry nothing, except
// what net/http repeats by itself: a request on an idle connection of which
// no byte was written.
type clientele struct {
	done, failed atomic.Int64
	stop         atomic.Bool
	wait         sync.WaitGroup

	mu    sync.Mutex
	first []string // of the failures
}

// call starts n callers, half of which open a connection per request, and a
// fourth of which pause between requests.
func (c *clientele) call(n int, url, key string) {
	for i := range n {
		client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
		c.wait.Go(func() {
			defer client.CloseIdleConnections()
			for !c.stop.Load() {
				err := fetchSecret(client, url, key, "TOKEN", "CANARY-served")
				c.done.Add(1)
				if err != nil {
					c.fail(err)
				}
				if i%4 == 3 {
					time.Sleep(time.Duration(i) * time.Millisecond)
				}
			}
		})
	}
}

func (c *clientele) fail(err error) {
	c.failed.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.first) < 5 {
		c.first = append(c.first, err.Error())
	}
}

// until lets the callers run until they have made n requests.
func (c *clientele) until(n int64) {
	for end := time.Now().Add(10 * time.Minute); c.done.Load() < n && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *clientele) end() {
	c.stop.Store(true)
	c.wait.Wait()
}

const clients = 16

// TestServeUpgradeFailsNoRequest replaces a server by a newer one on the same
// port, again and again, under load.
func TestServeUpgradeFailsNoRequest(t *testing.T) {
	w, key := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0", "--rate", "0", "--takeover")
	addr := strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/mcp")
	var c clientele
	c.call(clients, h.url, key)
	upgrades := 0
	for goal := int64(rounds(500, 2500, 50000)); c.done.Load() < goal; upgrades++ {
		next := w.host(setting{}, "--listen", addr, "--rate", "0", "--takeover")
		h.stop()
		h = next
		c.until(c.done.Load() + 300)
	}
	c.end()
	h.stop()
	t.Logf("%d upgrades: %d requests, %d failed", upgrades, c.done.Load(), c.failed.Load())
	if c.failed.Load() > 0 || upgrades == 0 {
		t.Errorf("%d of %d requests failed in %d upgrades, want none: %q", c.failed.Load(), c.done.Load(), upgrades, c.first)
	}
}

// TestServeStopThenStartFailsNoRequest tells the old server to stop first and
// starts the new one while the old one still accepts.
func TestServeStopThenStartFailsNoRequest(t *testing.T) {
	w, key := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0", "--rate", "0", "--drain-wait", "2s", "--takeover")
	addr := strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/mcp")
	var c clientele
	c.call(clients, h.url, key)
	for range rounds(1, 1, 10) {
		c.until(c.done.Load() + 300)
		h.signal(syscall.SIGTERM)
		next := w.host(setting{}, "--listen", addr, "--rate", "0", "--drain-wait", "2s", "--takeover")
		if code := h.end(); code != 0 {
			t.Errorf("exit code %d, want 0: %s", code, h.text())
		}
		h = next
	}
	c.end()
	h.stop()
	if c.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, want none: %q", c.failed.Load(), c.done.Load(), c.first)
	}
	t.Logf("%d requests, %d failed", c.done.Load(), c.failed.Load())
}

// TestServeRestartOnSystemdSocketFailsNoRequest restarts a server whose
// socket the service manager holds: callers wait in its queue.
func TestServeRestartOnSystemdSocketFailsNoRequest(t *testing.T) {
	w, key := newHostedWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start := func() *hosted {
		return w.host(setting{fd3: f, shell: "LISTEN_PID=$$; LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS"}, "--listen", "192.0.2.1:1", "--rate", "0")
	}
	h := start()
	if want := "http://" + l.Addr().String() + "/mcp"; h.url != want {
		t.Fatalf("it serves %s, want %s", h.url, want)
	}
	var c clientele
	c.call(clients, h.url, key)
	for goal := int64(rounds(500, 2500, 50000)); c.done.Load() < goal; {
		h.stop()
		h = start()
		c.until(c.done.Load() + 300)
	}
	c.end()
	h.stop()
	if c.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, want none: %q", c.failed.Load(), c.done.Load(), c.first)
	}
	t.Logf("%d requests, %d failed", c.done.Load(), c.failed.Load())
}

// TestServeUpgradeBites kills servers instead: the tests above must be able
// to see a failed request.
func TestServeUpgradeBites(t *testing.T) {
	w, key := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0", "--rate", "0", "--takeover")
	addr := strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/mcp")
	var c clientele
	c.call(clients, h.url, key)
	c.until(100)
	h.signal(syscall.SIGKILL)
	h.end()
	h = w.host(setting{}, "--listen", addr, "--rate", "0")
	c.until(c.done.Load() + 100)
	c.end()
	h.stop()
	if c.failed.Load() == 0 {
		t.Error("no request failed when a server was killed")
	}
}
