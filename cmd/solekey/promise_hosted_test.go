package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// made is what the commands that make keys print.
type made struct {
	Key    string    `json:"key"`
	ID     string    `json:"key_id"`
	Vault  string    `json:"id"`
	Ends   time.Time `json:"expires_at"` // of the key that is made
	EndsAt time.Time `json:"ends_at"`    // of the key that is replaced
}

// makeKey runs a command that makes a key.
func (w *world) makeKey(args ...string) made {
	w.t.Helper()
	var m made
	out := w.must(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out.stdout), &m); err != nil || m.ID == "" {
		w.t.Fatalf("solekey %q: %v", args, out)
	}
	return m
}

// newKeyring returns a store with one identity, whose key is in a profile.
func newKeyring(t *testing.T) *world {
	if runtime.GOOS == "windows" {
		t.Skip("SIGTERM is of Unix")
	}
	w := newWorld(t)
	w.must("identity", "create", "ci")
	w.put("ci", "TOKEN", "CANARY-served")
	return w
}

// mustOpen opens a stream that has to be granted.
func (a *agent) mustOpen(t *testing.T) *session {
	t.Helper()
	s, r, err := a.open()
	if s == nil {
		t.Fatalf("opening an event stream: %s, %v", r.said(), err)
	}
	t.Cleanup(s.close)
	return s
}

// ways are the ways to read a label.
func ways(a *agent, s *session) map[string]func(context.Context, string) (reply, error) {
	return map[string]func(context.Context, string) (reply, error){"legacy": a.legacy, "modern": a.modern, "event stream": s.get}
}

// endsBy wants a stream to end by itself, and returns when it did.
func (s *session) endsBy(t *testing.T, limit time.Time) time.Time {
	t.Helper()
	select {
	case <-s.over:
	case <-time.After(time.Until(limit)):
		t.Error("an event stream outlives its key")
		s.close()
	}
	return s.ended
}

// streamLimit is how long a stream may outlive its key on a machine that may
// be busy; the promise is one second.
func streamLimit() time.Duration {
	if soaking() {
		return time.Second
	}
	return 10 * time.Second
}

// TestKeysOfOneIdentityEndAlone revokes one of two keys: its calls and its
// stream end, the other key does not notice.
func TestKeysOfOneIdentityEndAlone(t *testing.T) {
	t.Parallel()
	w := newKeyring(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	other := beginSteady(t, h, w.keyOf("ci"), "TOKEN", "CANARY-served")
	for round := range rounds(1, 2, 20) {
		second := w.makeKey("key", "add", "ci", "--print-key")
		a := newAgent(h, second.Key)
		s := a.mustOpen(t)
		for way, ask := range ways(a, s) { // control: a live key is served in every way
			if r, err := ask(t.Context(), "TOKEN"); err != nil || r.text("value") != "CANARY-served" {
				t.Errorf("%s before revoke: %s, %v", way, r.said(), err)
			}
		}
		w.must("key", "revoke", "ci", second.ID, "--yes")
		returned := time.Now()
		for way, ask := range ways(a, s) {
			if r, err := ask(t.Context(), "TOKEN"); err != nil || r.status != http.StatusUnauthorized || r.word != "revoked" {
				t.Errorf("%s after revoke: %s, %v, want 401 revoked", way, r.said(), err)
			}
		}
		if s, r, err := a.open(); s != nil || r.status != http.StatusUnauthorized || r.word != "revoked" {
			t.Errorf("a new stream after revoke: %s, %v, want 401 revoked", r.said(), err)
		}
		t.Logf("round %d: the stream ended %v after revoke", round, s.endsBy(t, returned.Add(streamLimit())).Sub(returned))
		a.close()
	}
	other.end(t)
	h.stop()
}

// TestKeyEndsOnTime watches keys that end by the clock, one because it was
// made so and one because it was rotated: neither call nor stream ends before
// that, nor lives on; the key that comes after is served throughout.
func TestKeyEndsOnTime(t *testing.T) {
	t.Parallel()
	w := newKeyring(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	old := newAgent(h, w.keyOf("ci"))
	kept := old.mustOpen(t)
	brief := w.makeKey("key", "add", "ci", "--print-key", "--expires", "3s")
	guest := newAgent(h, brief.Key)
	expiring := guest.mustOpen(t)
	rotated := w.makeKey("identity", "rotate", "ci", "--grace", "3s")
	next := beginSteady(t, h, w.keyOf("ci"), "TOKEN", "CANARY-served")
	var watched sync.WaitGroup
	watched.Go(func() { watchEnd(t, "the key that expires", guest, expiring, brief.Ends) })
	watched.Go(func() { watchEnd(t, "the key that was rotated", old, kept, rotated.EndsAt) })
	watched.Wait()
	next.end(t)
	h.stop()
}

// watchEnd calls with a key until past its end, which is said in whole
// seconds.
func watchEnd(t *testing.T, what string, a *agent, s *session, end time.Time) {
	if end.IsZero() {
		t.Errorf("%s has no end", what)
		return
	}
	served, refused := 0, 0
	for time.Now().Before(end.Add(1500 * time.Millisecond)) {
		for way, ask := range ways(a, s) {
			begun := time.Now()
			r, err := ask(t.Context(), "TOKEN")
			ok := r.text("value") == "CANARY-served"
			switch {
			case !ok && time.Now().Before(end):
				t.Errorf("%s, %s, %v before its end: %s, %v", what, way, time.Until(end), r.said(), err)
			case ok && begun.After(end.Add(time.Second)):
				t.Errorf("%s, %s, %v after its end: a value", what, way, time.Since(end))
			case !ok:
				refused++
			default:
				served++
			}
		}
		<-time.After(20 * time.Millisecond)
	}
	over := s.endsBy(t, end.Add(time.Second+streamLimit()))
	if over.Before(end) {
		t.Errorf("the stream of %s ended %v before it", what, end.Sub(over))
	}
	if served == 0 || refused == 0 {
		t.Errorf("%s: %d calls served, %d refused, want some of each", what, served, refused)
	}
	t.Logf("%s: its stream ended %v after it", what, over.Sub(end))
}

// TestHostedServerShowsNoSecrets uses a server in many ways, good and bad, and
// looks for values, keys, labels, names and session ids in everything that it
// prints of itself at its most talkative, and in its arguments and
// environment.
func TestHostedServerShowsNoSecrets(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "text"} {
		g := newGossip(t)
		h := g.host(setting{}, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log-level", "debug", "--log-format", format)
		g.speak(h)
		g.mishear(h)
		_, metrics := h.ask("/metrics")
		g.wants("the metrics", []byte(metrics))
		g.process(h)
		h.stop()
		g.wants("the log in "+format, []byte(h.text()))
		if !strings.Contains(h.text(), "request") || !strings.Contains(metrics, `solekey_http_requests_total{path="/message"`) {
			t.Errorf("the server says too little to judge: %s\n%s", h.text(), metrics)
		}
		for name, value := range g.values { // control
			if got := g.found([]byte(h.text() + value + metrics)); len(got) == 0 {
				t.Errorf("%s would not be found", name)
			}
		}
	}
}

// gossip is a cage whose canaries include what names things.
type gossip struct {
	*cage
	label, key, name string
}

func newGossip(t *testing.T) *gossip {
	if runtime.GOOS == "windows" {
		t.Skip("SIGTERM is of Unix")
	}
	r := seeded(t)
	g := &gossip{cage: &cage{world: newWorld(t), out: t.TempDir(), forms: map[string][][]byte{}, values: map[string]string{}}}
	g.label, g.name = "CANARY-label-"+letters(r, 12), "canary-name-"+strings.ToLower(letters(r, 12))
	m := g.makeKey("identity", "create", g.name, "--print-key")
	g.key = m.Key
	for name, value := range map[string]string{
		"value": "CANARY-value-" + letters(r, 20), "label": g.label, "name": g.name, "key": m.Key, "identity": m.Vault,
		"stranger": "CANARY-stranger-" + letters(r, 20), "address": "CANARY-address-" + letters(r, 20), "key id": m.ID,
	} {
		g.add(name, value)
	}
	g.forms["key id"] = [][]byte{[]byte(m.ID)} // too short for its encodings to mean anything
	g.addSeed("seed", base32Text(r, 32))
	g.put(g.name, g.label, g.values["value"])
	g.put(g.name, g.label+"/otp", "otpauth://totp/Site:me?issuer=Site&secret="+g.values["seed"])
	return g
}

// speak makes the calls that succeed.
func (g *gossip) speak(h *hosted) {
	a := newAgent(h, g.key)
	s := a.mustOpen(g.t)
	g.add("session", s.id)
	for way, ask := range ways(a, s) {
		if r, err := ask(g.t.Context(), g.label); err != nil || r.text("value") != g.values["value"] {
			g.t.Errorf("%s: %s, %v", way, r.said(), err)
		}
	}
	code := fmt.Sprintf(`{"label":%q,"min_remaining":0}`, g.label+"/otp") // once: a second one is waited for
	if r, err := s.call(g.t.Context(), "get_totp_code", code); err != nil || len(r.text("code")) != 6 {
		g.t.Errorf("get_totp_code: %s, %v", r.said(), err)
	}
	for _, c := range []struct{ tool, args string }{
		{"list_labels", "{}"}, {"get_secret", labelArg(g.label + "/otp")}, {"get_secret", labelArg(g.values["stranger"])},
		{g.values["stranger"], "{}"}, {"get_secret", `{"` + g.values["stranger"] + `":1}`},
	} {
		for way, ask := range map[string]func() (reply, error){
			"post":   func() (reply, error) { return a.post(g.t.Context(), "/mcp", callText(1, c.tool, c.args, ""), nil) },
			"stream": func() (reply, error) { return s.call(g.t.Context(), c.tool, c.args) },
		} {
			if r, err := ask(); err != nil || r.status != http.StatusOK {
				g.t.Errorf("%s %s: %s, %v", way, c.tool, r.said(), err)
			}
		}
	}
}

// mishear makes requests that are refused, with canaries at every place.
func (g *gossip) mishear(h *hosted) {
	a, odd := newAgent(h, g.key), g.values["stranger"]
	call := callText(1, "get_secret", labelArg(g.label), "")
	for _, q := range []struct {
		path, body string
		header     map[string]string
	}{
		{"/mcp?key=" + g.key, call, nil},
		{"/mcp?q=" + g.values["address"], call, nil},
		{"/" + g.values["address"], call, nil},
		{"/message?sessionId=" + odd, call, nil},
		{"/mcp", call, map[string]string{"Cookie": "key=" + g.key}},
		{"/mcp", call, map[string]string{"Authorization": "Bearer " + odd}},
		{"/mcp", call, map[string]string{"Authorization": "Bearer " + g.key + g.key}},
		{"/mcp", call, map[string]string{"Authorization": "Basic " + g.key}},
		{"/mcp", call, map[string]string{"Origin": "https://" + odd + ".example"}},
		{"/mcp", call, map[string]string{"User-Agent": odd, "Referer": odd, "X-Forwarded-For": odd, "MCP-Protocol-Version": odd}},
		{"/mcp", call, map[string]string{"Content-Type": odd}},
		{"/mcp", `{"jsonrpc":"2.0","id":1,"method":"` + odd + `","params":{}}`, nil},
		{"/mcp", callText(1, "get_secret", labelArg(g.key), ""), nil},
		{"/mcp", `{"jsonrpc":"2.0","id":"` + odd + `","method":`, nil},
		{"/mcp", odd + strings.Repeat("x", 300<<10), nil},
		{"/mcp", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"` + odd + `","version":"` + odd + `"}}}`, nil},
	} {
		if _, err := a.post(g.t.Context(), q.path, q.body, q.header); err != nil && len(q.body) < 1<<10 {
			g.t.Errorf("POST %.60s: %v", q.path, err)
		}
	}
	for range 20 { // those who go away
		ctx, cancel := context.WithTimeout(g.t.Context(), time.Millisecond)
		_, _ = a.post(ctx, "/mcp", call, nil)
		cancel()
	}
	_, _ = rawAsk(strings.TrimPrefix(a.base, "http://"), odd+" / HTTP/1.1\r\n"+odd+"\r\n\r\n", patience) // and one who speaks no HTTP
	g.must("identity", "revoke", g.name, "--yes")
	if r, err := a.legacy(g.t.Context(), g.label); err != nil || r.status != http.StatusUnauthorized {
		g.t.Errorf("after revoke: %s, %v", r.said(), err)
	}
}

// process reads what the system shows of the server.
func (g *gossip) process(h *hosted) {
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", h.cmd.Process.Pid, file))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue // another system, or the server hides it from us too
		}
		if err != nil || len(b) == 0 {
			g.t.Errorf("%s of the server: %d bytes, %v", file, len(b), err)
		}
		g.wants(file+" of the server", b)
	}
	// Control: a server that was given canaries that way.
	c := g.host(setting{env: []string{"PLANTED=" + g.key}}, "--listen", "127.0.0.1:0", "--allow-host", g.label)
	for file, want := range map[string]string{"cmdline": "label", "environ": "key"} {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.cmd.Process.Pid, file)); err == nil {
			g.wants(file+" of the control", b, want)
		}
	}
	c.stop()
}

// TestNewKeyIsServedWhileTheOldOneIsTried rotates a key while several clients
// go on trying with the old one, from the same address and as fast as they
// can. The new key is served at its first call, and at every one after it.
func TestNewKeyIsServedWhileTheOldOneIsTried(t *testing.T) {
	t.Parallel()
	w := newKeyring(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	old := w.keyOf("ci")
	w.must("identity", "rotate", "ci", "--grace", "0")
	stop := make(chan struct{})
	var tried atomic.Int64
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			a := newAgent(h, old)
			defer a.close()
			for {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				if r, err := a.legacy(t.Context(), "TOKEN"); err != nil || r.status == http.StatusOK {
					t.Errorf("the old key: %s, %v", r.said(), err)
				}
				tried.Add(1)
			}
		})
	}
	within(t, "a crowd with the old key", func() bool { return tried.Load() > 200 })
	a := newAgent(h, w.keyOf("ci"))
	defer a.close()
	for i := range 20 {
		if r, err := a.legacy(t.Context(), "TOKEN"); err != nil || r.text("value") != "CANARY-served" {
			t.Errorf("call %d with the new key: %s, %v", i, r.said(), err)
		}
	}
	close(stop)
	clients.Wait()
	h.stop()
}

// TestRotationDoesNotRunOut rotates more often than an identity may have keys:
// those that ended make room.
func TestRotationDoesNotRunOut(t *testing.T) {
	t.Parallel()
	w := newKeyring(t)
	for range 3 {
		var last made
		for range 8 {
			last = w.makeKey("identity", "rotate", "ci", "--grace", "1s")
		}
		<-time.After(time.Until(last.EndsAt.Add(1100 * time.Millisecond))) // its end is said in whole seconds
	}
	if out := w.must("get", "TOKEN", "--profile", "ci"); strings.TrimSpace(out.stdout) != "CANARY-served" {
		t.Errorf("get after all rotations: %v", out)
	}
}
