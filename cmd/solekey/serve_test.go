package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hosted is a running `solekey serve`.
type hosted struct {
	w    *world
	cmd  *exec.Cmd
	args []string
	url  string // of /mcp
	side string // http://ADDR of the private port; empty: none

	said chan struct{} // closed when stderr ended
	mu   sync.Mutex
	log  bytes.Buffer
}

// host starts `solekey serve` and waits for the line that says it is ready.
func (w *world) host(set setting, args ...string) *hosted {
	w.t.Helper()
	h := &hosted{w: w, args: append([]string{"serve"}, args...), said: make(chan struct{})}
	h.cmd = w.command(context.Background(), set, h.args...)
	out, err := h.cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = h.cmd.Process.Kill(); h.end() })
	ready := make(chan string, 1)
	go h.read(out, ready)
	select {
	case line := <-ready:
		h.find(line)
	case <-h.said:
		w.t.Fatalf("solekey %q ended: %s", h.args, h.text())
	case <-time.After(patience):
		w.t.Fatalf("solekey %q does not get ready: %s", h.args, h.text())
	}
	return h
}

// find takes the addresses from the line of readiness, text or JSON.
func (h *hosted) find(line string) {
	var at struct{ URL, Metrics string }
	if json.Unmarshal([]byte(line), &at) != nil {
		at.URL, line, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "solekey: "), " ")
		_, at.Metrics, _ = strings.Cut(strings.TrimRight(line, ")"), "metrics ")
	}
	h.url = at.URL
	if at.Metrics != "" {
		h.side = "http://" + at.Metrics
	}
}

// read collects stderr and hands over the first line of readiness.
func (h *hosted) read(out io.Reader, ready chan<- string) {
	defer close(h.said)
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		h.mu.Lock()
		h.log.WriteString(line)
		h.mu.Unlock()
		if strings.HasPrefix(line, "solekey: http") || strings.Contains(line, `"msg":"serving"`) {
			select {
			case ready <- line:
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

func (h *hosted) text() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.String()
}

// signal sends a signal and does not wait for what it does.
func (h *hosted) signal(s os.Signal) {
	h.w.t.Helper()
	if err := h.cmd.Process.Signal(s); err != nil {
		h.w.t.Fatal(err)
	}
}

// end waits for the process and returns its exit code.
func (h *hosted) end() int {
	select {
	case <-h.said:
	case <-time.After(patience):
		_ = h.cmd.Process.Kill()
		<-h.said
		h.w.t.Errorf("solekey %q does not end", h.args)
	}
	_ = h.cmd.Wait() // of a second call the error says so
	h.w.note(h.args, h.text())
	return h.cmd.ProcessState.ExitCode()
}

// stop ends the process as a supervisor does, and wants exit code 0.
func (h *hosted) stop() {
	h.w.t.Helper()
	h.signal(syscall.SIGTERM)
	if code := h.end(); code != 0 {
		h.w.t.Errorf("solekey %q after SIGTERM: exit code %d, want 0\n%s", h.args, code, h.text())
	}
}

// waitFor wants a text on stderr before long.
func (h *hosted) waitFor(text string) {
	h.w.t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(h.text(), text); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			h.w.t.Fatalf("solekey %q does not say %q: %s", h.args, text, h.text())
		}
	}
}

// ask gets a path of the private port.
func (h *hosted) ask(path string) (status int, body string) {
	h.w.t.Helper()
	resp, err := http.Get(h.side + path)
	if err != nil {
		h.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.w.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// wants wants an answer of the private port.
func (h *hosted) wants(path string, status int, body string) {
	h.w.t.Helper()
	if s, b := h.ask(path); s != status || strings.TrimSpace(b) != body {
		h.w.t.Errorf("GET %s = %d %q, want %d %q", path, s, b, status, body)
	}
}

// fetchSecret reads a label over HTTP; an error says what came instead of the
// value.
func fetchSecret(c *http.Client, url, key, label, value string) error {
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":%q}}}`, label)
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var a struct {
		Result struct{ StructuredContent struct{ Value string } }
	}
	if json.Unmarshal(b, &a) != nil || a.Result.StructuredContent.Value != value {
		return fmt.Errorf("status %d, %s", resp.StatusCode, b)
	}
	return nil
}

// newHostedWorld returns a world with an identity, a value, and the key.
func newHostedWorld(t *testing.T) (w *world, key string) {
	if runtime.GOOS == "windows" {
		t.Skip("SIGTERM is of Unix")
	}
	w = newWorld(t)
	key = strings.TrimSpace(w.must("identity", "create", "ci", "--print-key").stdout)
	w.put("ci", "TOKEN", "CANARY-served")
	return w, key
}

func TestServeDrains(t *testing.T) {
	w, key := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--drain-wait", "700ms")
	h.wants("/livez", 200, "live")
	h.wants("/readyz", 200, "ready")
	client := &http.Client{Transport: &http.Transport{}}
	if err := fetchSecret(client, h.url, key, "TOKEN", "CANARY-served"); err != nil {
		t.Fatal(err)
	}
	h.signal(syscall.SIGTERM)
	h.waitFor("draining")
	h.wants("/readyz", 503, "draining")
	h.wants("/livez", 200, "live")
	if err := fetchSecret(&http.Client{Transport: &http.Transport{}}, h.url, key, "TOKEN", "CANARY-served"); err != nil {
		t.Errorf("a new connection while others look away: %v", err)
	}
	if code := h.end(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if strings.Contains(h.text(), "cut off") {
		t.Errorf("an idle server cut calls off: %s", h.text())
	}
}

// TestServeSecondSignalEndsAtOnce wants no wait for a drain that nobody wants.
func TestServeSecondSignalEndsAtOnce(t *testing.T) {
	w, _ := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0", "--drain-wait", "10m")
	h.signal(syscall.SIGTERM)
	h.waitFor("draining")
	for over := false; !over; { // the first of them can come before the program lets go of signals
		_ = h.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-h.said:
			over = true
		case <-time.After(20 * time.Millisecond):
		}
	}
	if code := h.end(); code == 0 {
		t.Errorf("exit code %d after two signals, want the signal's", code)
	}
}

// TestServeShowsNoSecrets reads everything that a server says of itself, at
// its most talkative.
func TestServeShowsNoSecrets(t *testing.T) {
	w, key := newHostedWorld(t)
	for _, format := range []string{"text", "json"} {
		h := w.host(setting{}, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log-level", "debug", "--log-format", format)
		client := &http.Client{Transport: &http.Transport{}}
		_ = fetchSecret(client, h.url+"?q=CANARY-query", key, "TOKEN", "CANARY-served")
		if err := fetchSecret(client, h.url, key, "TOKEN", "CANARY-served"); err != nil {
			t.Fatal(err)
		}
		if err := fetchSecret(client, h.url, "CANARY-key", "TOKEN", "CANARY-served"); err == nil {
			t.Error("a wrong key reads a value")
		}
		hello(t, strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/mcp"))
		_, metrics := h.ask("/metrics")
		h.stop()
		for what, text := range map[string]string{"log": h.text(), "metrics": metrics} {
			for _, secret := range []string{"CANARY", key, "TOKEN", "ci\"", "127.0.0.1:5"} {
				if strings.Contains(text, secret) {
					t.Errorf("%s (%s) shows %s:\n%s", what, format, secret, text)
				}
			}
		}
		for _, want := range []string{`solekey_tool_calls_total{tool="get_secret",outcome="ok"} `, `solekey_http_requests_total{path="/mcp",status="401"} 1`, "process_cpu_seconds_total"} {
			if !strings.Contains(metrics, want) {
				t.Errorf("the metrics lack %s:\n%s", want, metrics)
			}
		}
		for _, want := range []string{"requests refused", "/mcp", "draining", "stopped"} {
			if !strings.Contains(h.text(), want) {
				t.Errorf("the log (%s) lacks %s:\n%s", format, want, h.text())
			}
		}
	}
}

// hello says something that is no HTTP.
func hello(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "CANARY-hello\r\n\r\n")
	_, _ = io.ReadAll(c)
}

// TestServeNotReadyWithoutStore takes the store away from a running server.
func TestServeNotReadyWithoutStore(t *testing.T) {
	w, _ := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
	h.wants("/readyz", 200, "ready")
	if err := os.Rename(filepath.Join(w.store, "vault.db"), filepath.Join(w.store, "away")); err != nil {
		t.Fatal(err)
	}
	within(t, "503 unavailable", func() bool { s, b := h.ask("/readyz"); return s == 503 && b == "unavailable\n" })
	h.wants("/livez", 200, "live")
	if err := os.Rename(filepath.Join(w.store, "away"), filepath.Join(w.store, "vault.db")); err != nil {
		t.Fatal(err)
	}
	within(t, "200 ready", func() bool { s, _ := h.ask("/readyz"); return s == 200 })
	h.stop()
}

// within wants something to come true before long.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not come", what)
		}
	}
}

// TestServeBoundsStrangers says hello very slowly, and at great length.
func TestServeBoundsStrangers(t *testing.T) {
	t.Parallel()
	w, _ := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	addr := strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/mcp")
	slow, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	began := time.Now()
	_, _ = io.WriteString(slow, "POST /mcp HTTP/1.1\r\nHost: ")
	req, err := http.NewRequest(http.MethodPost, h.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Long", strings.Repeat("x", 2*headerBytes))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%d bytes of header: status %d, want 431", 2*headerBytes, resp.StatusCode)
	}
	_ = slow.SetReadDeadline(began.Add(patience))
	_, _ = io.ReadAll(slow)
	if took := time.Since(began); took > headerTime+10*time.Second {
		t.Errorf("half a header held its connection for %v, want %v", took, headerTime)
	}
	h.stop()
}

// TestServeTellsSystemd plays the service manager of a Type=notify unit.
func TestServeTellsSystemd(t *testing.T) {
	w, _ := newHostedWorld(t)
	path := filepath.Join(w.root, "run", "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	h := w.host(setting{env: []string{"NOTIFY_SOCKET=" + path}}, "--listen", "127.0.0.1:0")
	h.stop()
	b := make([]byte, 100)
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		_ = manager.SetReadDeadline(time.Now().Add(patience))
		n, err := manager.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("systemd was told %q, %v, want %q", b[:n], err, want)
		}
	}
}

// TestServeAddressInUse wants a second server on one port to be refused by
// name, and the first one to go on.
func TestServeAddressInUse(t *testing.T) {
	w, key := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	addr := strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/mcp")
	out := w.run("serve", "--listen", addr)
	if out.code != exitInternal || !strings.Contains(out.stderr, addr+" is in use") || !strings.Contains(out.stderr, "try: ") {
		t.Errorf("a second server: %v", out)
	}
	if err := fetchSecret(http.DefaultClient, h.url, key, "TOKEN", "CANARY-served"); err != nil {
		t.Error(err)
	}
	h.stop()
}
