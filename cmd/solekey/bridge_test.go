package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// visitor is a machine without a store that has a profile for an endpoint.
func visitor(t *testing.T, url, key string) *world {
	t.Helper()
	v := newBareWorld(t)
	out := v.mustWith(key, "profile", "add", "far", "--remote", url, "--stdin")
	if !strings.Contains(out.stdout, "ok, 3 tools") {
		t.Errorf("profile add: %v", out)
	}
	return v
}

// TestBridgeReachesAHostedVault walks a profile with a URL through the life of
// its key: use, rotation, revocation, and an endpoint that goes and comes.
func TestBridgeReachesAHostedVault(t *testing.T) {
	w, key := newHostedWorld(t)
	w.must("identity", "create", "other")
	w.put("other", "OTHERS", "CANARY-of-another")
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	v := visitor(t, h.url, key)
	s := v.serve("--profile", "far")
	s.get("TOKEN").wants(t, "a value over the bridge", "CANARY-served", "")
	s.get("OTHERS").wants(t, "a label of another identity", "", "not_found")

	// The owner rotates the key; once the new one is here, the running bridge takes it.
	oldKey := v.root + "/old.key"
	if err := os.WriteFile(oldKey, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	next := strings.TrimSpace(w.must("identity", "rotate", "ci", "--api-key-file", oldKey, "--grace", "0", "--print-key").stdout)
	if a := s.get("TOKEN"); a.text("value") != "" || a.word != "revoked" && a.word != "unauthorized" {
		t.Errorf("with the old key: %v", a)
	}
	if err := os.WriteFile(v.keyFile("far"), []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	s.get("TOKEN").wants(t, "with the new key", "CANARY-served", "")

	addr := strings.TrimSuffix(strings.TrimPrefix(h.url, "http://"), "/mcp")
	h.stop()
	s.get("TOKEN").wants(t, "while the endpoint is down", "", "unavailable")
	h = w.host(setting{}, "--listen", addr)
	s.get("TOKEN").wants(t, "once it is up again", "CANARY-served", "")

	w.must("identity", "revoke", "ci", "--yes")
	s.get("TOKEN").wants(t, "after the revocation", "", "revoked")
	if code := s.close(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	fresh := v.serve("--profile", "far")
	fresh.get("TOKEN").wants(t, "a new bridge with a revoked key", "", "revoked")
	fresh.close()
	h.stop()

	if out := v.start(setting{stdin: next}, "profile", "add", "again", "--remote", h.url, "--stdin"); out.code != exitUnavailable {
		t.Errorf("profile add to an endpoint that is down: %v", out)
	}
	for _, text := range []string{s.stdout.String(), s.stderr.String(), fresh.stdout.String(), fresh.stderr.String(), h.text()} {
		for _, k := range []string{key, next} {
			if strings.Contains(text, k) {
				t.Errorf("a key is in: %s", text)
			}
		}
	}
}

// TestProfileAddRefusesADeadKey keeps nothing that does not work.
// TestNewKeyDoesNotReachTheOldHost: a profile is made anew for another
// endpoint while a bridge to the old one runs, which answers 401 and hopes.
func TestNewKeyDoesNotReachTheOldHost(t *testing.T) {
	var mu sync.Mutex
	heard := map[string]bool{}
	old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		heard[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")] = true
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer old.Close()
	w, first := newHostedWorld(t)
	second := strings.TrimSpace(w.must("identity", "create", "second", "--print-key").stdout)
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	v := newBareWorld(t)
	v.mustWith(first, "profile", "add", "far", "--remote", old.URL, "--stdin", "--no-check")
	s := v.serve("--profile", "far")
	s.get("TOKEN").wants(t, "from the old host", "", "unauthorized")
	v.must("profile", "rm", "far", "--yes")
	v.mustWith(second, "profile", "add", "far", "--remote", h.url, "--stdin")
	s.get("TOKEN").wants(t, "once the profile leads elsewhere", "", "unauthorized")
	s.close()
	h.stop()
	mu.Lock()
	defer mu.Unlock()
	if !heard[first] || heard[second] {
		t.Errorf("the old host heard its own key: %v, the new one: %v, want true and false", heard[first], heard[second])
	}
}

func TestProfileAddRefusesADeadKey(t *testing.T) {
	w, key := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	v := visitor(t, h.url, key)
	w.must("identity", "revoke", "ci", "--yes")
	out := v.start(setting{stdin: key}, "profile", "add", "dead", "--remote", h.url, "--stdin")
	if out.code != exitRefused || !strings.Contains(out.stderr, "nothing was stored") || strings.Contains(out.stderr, key) {
		t.Errorf("a revoked key: %v", out)
	}
	if _, err := os.Stat(v.keyFile("dead")); err == nil {
		t.Error("the key was kept")
	}
	if out := v.run("profile", "show", "dead"); out.code != exitNotFound {
		t.Errorf("profile show: %v", out)
	}
}

// TestBridgeAnswersLikeStdio compares, line by line, what a client gets from a
// store on its machine and from the same store over a bridge.
func TestBridgeAnswersLikeStdio(t *testing.T) {
	w, key := newHostedWorld(t)
	h := w.host(setting{}, "--listen", "127.0.0.1:0")
	v := visitor(t, h.url, key)
	own := w.root + "/own.key"
	if err := os.WriteFile(own, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	const modern = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"}}`
	lines := []string{
		`{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`,
		`{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{` + modern + `}}`,
		`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"TOKEN"}}}`,
		`{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"TOKEN"},` + modern + `}}`,
		`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"NONE"},` + modern + `}}`,
		`{"jsonrpc":"2.0","id":6,"method":"tools/call","params":{"name":"get_secret","arguments":[]}}`,
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"n\u00f6","arguments":{}}}`,
		`{"jsonrpc":"2.0","id":8,"method":"server/discover","params":{` + modern + `}}`,
		`{"jsonrpc":"2.0","id":9,"method":"subscriptions/listen","params":{"notifications":{},` + modern + `}}`,
		`{"jsonrpc":"2.0","id":10,"method":"prompts/list"}`,
		`{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}`,
		`{"jsonrpc":"2.0","id":12,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2031-01-01"}}}`,
		`{`, `[]`, `{"jsonrpc":"2.0","id":null,"method":"ping"}`, `{"jsonrpc":"2.0","id":13}`, `{"jsonrpc":"2.0","id":14,"result":{}}`,
		`{"jsonrpc":"2.0","id":15,"method":"x","params":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`,
		strings.Repeat(" ", 1<<20) + `{"jsonrpc":"2.0","id":16,"method":"ping"}`,
	}
	input := strings.Join(lines, "\n")
	local := sortedLines(w.mustWith(input, "mcp", "--api-key-file", own).stdout)
	remote := sortedLines(v.mustWith(input, "mcp", "--profile", "far").stdout)
	if len(local) != 20 {
		t.Errorf("%d answers over stdio; the test sees too little", len(local))
	}
	if diff := cmp.Diff(local, remote); diff != "" {
		t.Errorf("answers differ (-stdio +bridge):\n%s", diff)
	}
}

// sortedLines returns lines in order, each with its members in order.
func sortedLines(text string) []string {
	var out []string
	for l := range strings.Lines(text) {
		var v map[string]any
		d := json.NewDecoder(strings.NewReader(l))
		d.UseNumber()
		if d.Decode(&v) == nil {
			b, _ := json.Marshal(v)
			l = string(b)
		}
		out = append(out, strings.TrimSpace(l))
	}
	slices.Sort(out)
	return out
}
