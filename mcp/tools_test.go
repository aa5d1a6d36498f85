package mcp_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault"
)

var update = flag.Bool("update", false, "write the golden files")

// textLog logs to b, everything.
func textLog(b *strings.Builder) *slog.Logger {
	return slog.New(slog.NewTextHandler(&locked{b: b}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type locked struct {
	mu sync.Mutex
	b  *strings.Builder
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func deadServer(err error) *mcp.Server {
	return mcp.New(func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) { return nil, err }, mcp.Options{})
}

func TestToolsAreGoldenAndSmall(t *testing.T) {
	got := talk(t, deadServer(identity.ErrExpired), identity.Key{}, request(1, "tools/list", "{}"))[0].Result
	golden := filepath.Join("testdata", "tools.json")
	if *update {
		if err := os.WriteFile(golden, append(bytes.Clone(got), '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Errorf("tools/list differs from %s (-want +got):\n%s", golden, diff)
	}
	if len(got) > 4096 {
		t.Errorf("tools/list is %d bytes, want at most 4096", len(got))
	}
	var list struct{ Tools []map[string]json.RawMessage }
	if err := json.Unmarshal(got, &list); err != nil {
		t.Fatal(err)
	}
	for _, tool := range list.Tools {
		var hints map[string]bool
		if err := json.Unmarshal(tool["annotations"], &hints); err != nil || len(hints) != 4 {
			t.Errorf("%s has hints %v, want all four", tool["name"], hints)
		}
	}
}

func TestBothErasGetTheSameValues(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-<openai>&"))
	c := dial(t, h.server, k)
	for id, version := range []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"} {
		r := c.ask(request(id, "initialize", `{"protocolVersion":"`+version+`","capabilities":{},"clientInfo":{"name":"t","version":"1"}}`))
		got := decode[struct {
			ProtocolVersion, Instructions string
			ServerInfo                    struct{ Name, Title, Version string }
			Capabilities                  map[string]any
		}](t, string(r.Result))
		if got.ProtocolVersion != version || got.ServerInfo.Name != "solekey" || got.ServerInfo.Title != "solekey" || got.ServerInfo.Version != "1.2.3" || !strings.HasPrefix(got.Instructions, "Credentials by label.") {
			t.Errorf("initialize %s = %+v", version, got)
		}
		if diff := cmp.Diff(map[string]any{"tools": map[string]any{}}, got.Capabilities); diff != "" {
			t.Errorf("capabilities (-want +got):\n%s", diff)
		}
	}
	discover := decode[struct {
		SupportedVersions []string
		TTL               int64 `json:"ttlMs"`
		CacheScope        string
		ResultType        string
	}](t, string(c.ask(request(9, "server/discover", "{"+meta+"}")).Result))
	if !slices.Contains(discover.SupportedVersions, "2026-07-28") || discover.TTL != 60000 || discover.CacheScope != "private" || discover.ResultType != "complete" {
		t.Errorf("server/discover = %+v", discover)
	}
	for era, params := range eras {
		r := c.ask(request(`"`+era+`"`, "tools/call", params(`"name":"get_secret","arguments":{"label":"openai"}`)))
		got := value[map[string]any](t, r)
		want := map[string]any{"label": "openai", "kind": "secret", "field": "value", "value": "CANARY-<openai>&", "encoding": "utf-8", "fields": []any{"value"}, "version": 1.0}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s get_secret (-want +got):\n%s", era, diff)
		}
		if text := r.result(t).Content[0].Text; !strings.Contains(text, "CANARY-<openai>&") {
			t.Errorf("%s text block escapes the value: %s", era, text)
		}
		var list struct{ Tools []struct{ Name string } }
		if err := json.Unmarshal(c.ask(request(3, "tools/list", params(""))).Result, &list); err != nil || len(list.Tools) != 3 {
			t.Errorf("%s tools/list = %v, %v", era, list, err)
		}
	}
}

func TestListShowsNoValue(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	used := secret("b/used", "CANARY-used")
	used.Exposure, used.Tags, used.Expires = vault.ExposeUse, []string{"prod"}, noon.Add(time.Hour)
	h.put(k, secret("a/plain", "CANARY-plain"), used, seeded("b/totp"))
	out := talk(t, h.server, k, call(1, "list_labels", `{}`))[0]
	want := map[string]any{"count": 3.0, "truncated": false, "labels": []any{
		map[string]any{"label": "a/plain", "kind": "secret", "exposure": "reveal", "has_totp": false},
		map[string]any{"label": "b/totp", "kind": "totp", "exposure": "never", "has_totp": true},
		map[string]any{"label": "b/used", "kind": "secret", "exposure": "use", "has_totp": false, "expires_at": "2026-03-01T13:00:01Z", "tags": []any{"prod"}},
	}}
	if diff := cmp.Diff(want, value[map[string]any](t, out)); diff != "" {
		t.Errorf("list_labels (-want +got):\n%s", diff)
	}
	for arguments, want := range map[string]float64{`{"prefix":"b/"}`: 2, `{"prefix":""}`: 3, `{"prefix":null}`: 3, `{"prefix":"zz"}`: 0, `null`: 3} {
		got := value[map[string]any](t, talk(t, h.server, k, call(1, "list_labels", arguments))[0])
		if got["count"] != want || len(got["labels"].([]any)) != int(want) {
			t.Errorf("list_labels %s = %v, want %v labels", arguments, got, want)
		}
	}
	if got := talk(t, h.server, k, request(1, "tools/call", `{"name":"list_labels"}`))[0]; value[map[string]any](t, got)["count"] != 3.0 {
		t.Errorf("list_labels without arguments = %s", got.raw)
	}
}

func TestLongListsAreTruncated(t *testing.T) {
	h := newHouse(t)
	for name, tags := range map[string][]string{"many": nil, "wide": {strings.Repeat("t", 64), strings.Repeat("u", 64), strings.Repeat("v", 64)}} {
		k := h.agent(name, identity.Grant{})
		var es []vault.NewEntry
		for i := range 520 {
			e := secret(vault.Label(fmt.Sprintf("label-%04d", i)), "v")
			e.Tags = tags
			es = append(es, e)
		}
		h.put(k, es...)
		r := talk(t, h.server, k, call(1, "list_labels", `{}`))[0]
		got := value[struct {
			Labels    []struct{ Label string }
			Count     int
			Truncated bool
		}](t, r)
		size := len(r.result(t).Structured)
		if !got.Truncated || got.Count != len(got.Labels) || got.Count > 500 || size > 64<<10 || (tags == nil && got.Count != 500) {
			t.Errorf("%s: %d labels counted as %d, truncated %v, %d bytes", name, len(got.Labels), got.Count, got.Truncated, size)
		}
		if !slices.IsSortedFunc(got.Labels, func(a, b struct{ Label string }) int { return strings.Compare(a.Label, b.Label) }) {
			t.Errorf("%s: labels are out of order", name)
		}
	}
}

func TestBytesThatAreNoTextComeAsBase64(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	raw := "\xff\x00\xfe\n"
	h.put(k, secret("bytes", raw), secret("text", "a\x00b\nü"))
	got := value[map[string]any](t, talk(t, h.server, k, call(1, "get_secret", `{"label":"bytes"}`))[0])
	if got["encoding"] != "base64" || got["value"] != base64.StdEncoding.EncodeToString([]byte(raw)) {
		t.Errorf("get_secret of bytes = %v", got)
	}
	got = value[map[string]any](t, talk(t, h.server, k, call(1, "get_secret", `{"label":"text"}`))[0])
	if got["encoding"] != "utf-8" || got["value"] != "a\x00b\nü" {
		t.Errorf("get_secret of text = %v", got)
	}
}

func TestFieldsOfAnEntry(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, vault.NewEntry{Label: "login", Kind: vault.KindLogin, Expires: noon.Add(time.Hour), Fields: []vault.Field{
		{Name: "value", Value: []byte("CANARY-pass")}, {Name: "username", Value: []byte("joe")}, {Name: "pin", Value: []byte("CANARY-pin"), Never: true},
	}})
	out := pipe(t, h.server, k,
		call(1, "get_secret", `{"label":"login","field":"username"}`), call(2, "get_secret", `{"label":"login","field":"pin"}`),
		call(3, "get_secret", `{"label":"login","field":"nothing"}`), call(4, "get_secret", `{"name":"login","field":null}`))
	if strings.Contains(out, "CANARY-pin") {
		t.Errorf("a field that never leaves left: %s", out)
	}
	got := byID(t, replies(t, out))
	want := map[string]any{"label": "login", "kind": "login", "field": "username", "value": "joe", "encoding": "utf-8", "fields": []any{"username", "value"}, "version": 1.0, "expires_at": "2026-03-01T13:00:01Z"}
	if diff := cmp.Diff(want, value[map[string]any](t, got["1"])); diff != "" {
		t.Errorf("get_secret with field (-want +got):\n%s", diff)
	}
	if w := got["2"].refusal(t).Error; w != "not_found" {
		t.Errorf("a field that never leaves must look absent, answers %s", w)
	}
	if w := got["3"].refusal(t).Error; w != "not_found" {
		t.Errorf("a field that is absent answers %s", w)
	}
	if v := value[map[string]any](t, got["4"]); v["value"] != "CANARY-pass" {
		t.Errorf("name in place of label gives %v", v)
	}
}

func byID(t testing.TB, rs []reply) map[string]reply {
	t.Helper()
	m := map[string]reply{}
	for _, r := range rs {
		if _, twice := m[string(r.ID)]; twice {
			t.Fatalf("two answers with id %s", r.ID)
		}
		m[string(r.ID)] = r
	}
	return m
}

func TestSeedNeverLeaves(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, seeded("github"))
	code := talk(t, h.server, k, call(1, "get_totp_code", `{"label":"github","min_remaining":5}`))[0]
	parsed, err := totp.Parse("otpauth://totp/x?period=300&secret=" + seed)
	if err != nil {
		t.Fatal(err)
	}
	want, err := parsed.Code(noon)
	if err != nil {
		t.Fatal(err)
	}
	wantOut := map[string]any{"label": "github", "code": want.Digits, "remaining": 299.0, "period": 300.0, "valid_until": "2026-03-01T12:05:00Z"}
	if diff := cmp.Diff(wantOut, value[map[string]any](t, code)); diff != "" {
		t.Errorf("get_totp_code (-want +got):\n%s", diff)
	}
	out := pipe(t, h.server, k, call(1, "get_secret", `{"label":"github"}`), call(2, "get_secret", `{"label":"github","field":"value"}`),
		call(3, "list_labels", `{}`), call(4, "get_totp_code", `{"label":"github"}`), call(5, "get_totp_code", `{"label":"github","field":"value"}`))
	for _, form := range []string{seed, strings.ToLower(seed), "otpauth"} {
		if strings.Contains(out+code.raw+h.log.String(), form) {
			t.Errorf("the seed left: %s", out)
		}
	}
	if r := byID(t, replies(t, out))["1"].refusal(t); r.Error != "forbidden" || !strings.Contains(r.Hint, "get_totp_code") {
		t.Errorf("get_secret of a seed = %+v, want forbidden with the call to make", r)
	}
	// The control: the search finds a value that may leave.
	h.put(k, secret("plain", seed))
	if out := pipe(t, h.server, k, call(1, "get_secret", `{"label":"plain"}`)); !strings.Contains(out, seed) {
		t.Errorf("the search would miss a seed: %s", out)
	}
}

func TestDeadKeyStillListsTheTools(t *testing.T) {
	h := newHouse(t)
	dead := h.agent("dead", identity.Grant{Scopes: identity.Scopes(identity.List)})
	if _, err := h.keeper.Revoke(t.Context(), dead.Identity(), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]identity.Key{"zero": {}, "unknown": identity.NewKey(identity.Agent, identity.NewID()), "revoked": dead} {
		for era, params := range eras {
			var list struct{ Tools []struct{ Name string } }
			r := talk(t, h.server, k, request(1, "tools/list", params("")))[0]
			if err := json.Unmarshal(r.Result, &list); err != nil || len(list.Tools) != 3 {
				t.Errorf("tools/list with a %s key, %s = %s, want three tools", name, era, r.raw)
			}
		}
	}
}

func TestRevokeEndsTheNextCall(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	c := dial(t, h.server, k)
	if got := value[map[string]any](t, c.ask(call(1, "get_secret", `{"label":"openai"}`))); got["value"] != "CANARY-value" {
		t.Fatalf("get_secret = %v", got)
	}
	if _, err := h.keeper.Revoke(t.Context(), k.Identity(), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	for id, line := range []string{call(2, "get_secret", `{"label":"openai"}`), call(3, "list_labels", `{}`), call(4, "get_totp_code", `{"label":"openai"}`), call(5, "get_secret", `7`)} {
		if r := c.ask(line).refusal(t); r.Error != "revoked" || !strings.HasPrefix(r.Hint, "Stop.") {
			t.Errorf("call %d after revoke answers %+v", id, r)
		}
	}
	if r := c.ask(request(6, "ping", "{}")); string(r.Result) != "{}" {
		t.Errorf("ping after revoke = %s, want the process to stay up", r.raw)
	}
}

// Both sessions use the same ids on one Server: nothing of one may reach the
// other.
func TestIdentitiesDoNotMix(t *testing.T) {
	h := newHouse(t)
	const calls = 60
	keys := map[string]identity.Key{}
	for _, name := range []string{"aaaa", "bbbb"} {
		keys[name] = h.agent(name, identity.Grant{})
		h.put(keys[name], secret("shared", "CANARY-"+name), secret(vault.Label("only-"+name), "CANARY-"+name))
	}
	outs := map[string]string{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for name, k := range keys {
		all.Go(func() {
			var lines []string
			for id := range calls {
				switch id % 3 {
				case 0:
					lines = append(lines, call(id, "get_secret", `{"label":"shared"}`))
				case 1:
					lines = append(lines, request(id, "tools/call", eras["modern"](`"name":"get_secret","arguments":{"label":"shared"}`)))
				default:
					lines = append(lines, call(id, "list_labels", `{}`), fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}`, id+calls))
				}
			}
			out := pipe(t, h.server, k, lines...)
			mu.Lock()
			defer mu.Unlock()
			outs[name] = out
		})
	}
	all.Wait()
	for name, other := range map[string]string{"aaaa": "bbbb", "bbbb": "aaaa"} {
		if strings.Contains(outs[name], other) {
			t.Errorf("the output of %s holds something of %s", name, other)
		}
		got := byID(t, replies(t, outs[name]))
		if len(got) != calls || strings.Count(outs[name], "CANARY-"+name) != 2*2*calls/3 {
			t.Errorf("%s has %d answers with %d values", name, len(got), strings.Count(outs[name], "CANARY-"+name))
		}
	}
}

func TestLogHoldsNoArgumentAndNoValue(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	out := pipe(t, h.server, k, call(1, "get_secret", `{"label":"openai"}`), call(2, "get_secret", `{"label":"CANARY-label"}`),
		call(3, "get_secret", `{"label":{"CANARY":1}}`), call(4, "CANARY-tool", `{}`), request(5, "CANARY-method", "{}"), "CANARY-line")
	if !strings.Contains(out, "CANARY-value") {
		t.Fatalf("the value was not served: %s", out)
	}
	if strings.Contains(h.log.String(), "CANARY") {
		t.Errorf("the log holds data of a call: %s", h.log)
	}
}
