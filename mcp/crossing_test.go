package mcp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// party is one key in a storm of calls, and what it must be told.
type party struct {
	name   string // of the identity; it is in all of its values
	key    identity.Key
	narrow bool // scope read, and the labels l-* only
}

// expect reports what is wrong with the answer to request n of p.
func (p *party) expect(n int, id string, answer []byte) string {
	if !bytes.HasPrefix(answer, []byte(`{"jsonrpc":"2.0","id":`+id+`,`)) || !bytes.HasSuffix(answer, []byte("}")) {
		return fmt.Sprintf("request %s of %s has the answer %s", id, p.name, answer)
	}
	text, want := string(answer), ""
	switch label := n % 8; {
	case n%16 == 15: // tools/list
		want = fmt.Sprintf("%d tools", map[bool]int{true: 1, false: 3}[p.narrow])
		text = fmt.Sprintf("%d tools", strings.Count(text, `"inputSchema"`))
	case n%16 == 14 && p.narrow:
		want = "tool 'list_labels' not found"
	case n%16 == 14:
		want = `"count":10,`
	case n%16 == 13 && p.narrow:
		want = "No label hidden for this key."
	case n%16 == 13:
		want = `"value":"CANARY-` + p.name + `-hidden"`
	default:
		want = fmt.Sprintf(`"label":"l-%d","value":"CANARY-%s-l-%d"`, label, p.name, label)
		want = want[strings.Index(want, `"value"`):]
	}
	if !strings.Contains(text, want) {
		return fmt.Sprintf("request %d of %s has the answer %s", n, p.name, answer)
	}
	for _, other := range []string{"aaaa", "bbbb"} {
		if other != p.name && strings.Contains(string(answer), other) {
			return fmt.Sprintf("%s is told %s", p.name, answer)
		}
	}
	return ""
}

// asks returns request n of any party.
func asks(n int, id, era string) (body string, header []string) {
	method, params := "tools/call", get(fmt.Sprintf("l-%d", n%8))
	switch n % 16 {
	case 15:
		method, params = "tools/list", ""
	case 14:
		params = `"name":"list_labels"`
	case 13:
		params = get("hidden")
	}
	params = eras[era](params)
	if era == "modern" {
		header = modernHeaders(method, params)
	}
	return request(id, method, params), append(header, "Mcp-Session-Id", "the-same-for-all")
}

// storm is two identities with two keys each, and how many calls they make
// together.
type storm struct {
	site    *site
	parties []*party
	left    atomic.Int64
	crossed atomic.Int64
	mu      sync.Mutex
	first   string
}

func newStorm(t *testing.T, calls int, mix func(mcp.Unlock) mcp.Unlock) *storm {
	t.Helper()
	h := newHouse(t)
	st := &storm{}
	st.left.Store(int64(calls))
	for _, name := range []string{"aaaa", "bbbb"} {
		k := h.agent(name, identity.Grant{})
		var es []vault.NewEntry
		for i := range 8 {
			label := fmt.Sprintf("l-%d", i)
			es = append(es, secret(vault.Label(label), "CANARY-"+name+"-"+label))
		}
		h.put(k, append(es, secret("hidden", "CANARY-"+name+"-hidden"), seeded("github"))...)
		narrow, err := h.keeper.AddKey(t.Context(), k.Identity(), k, "narrow", identity.Grant{Scopes: identity.Scopes(identity.Read), Globs: []identity.Glob{"l-*"}})
		if err != nil {
			t.Fatal(err)
		}
		st.parties = append(st.parties, &party{name, k, false}, &party{name, narrow, true})
	}
	h.backend.Backend = memory{h.backend.Backend} // the audit sync is not what is tested
	st.site = h.openWith(t, mix(h.keeper.Unlock), mcp.HTTPOptions{Loopback: true, Rate: -1})
	return st
}

func (st *storm) heard(p *party, n int, id string, answer []byte) {
	if wrong := p.expect(n, id, answer); wrong != "" {
		st.crossed.Add(1)
		st.mu.Lock()
		defer st.mu.Unlock()
		if st.first == "" {
			st.first = wrong
		}
	}
}

// run makes all calls: over a network, straight into the handler and on event
// streams, in both eras, under the same ids everywhere.
func (st *storm) run(t *testing.T) {
	handler := st.site.front.Handler()
	var all sync.WaitGroup
	for _, p := range st.parties {
		for era := range eras {
			for range map[string]int{"legacy": 3, "modern": 1}[era] {
				all.Go(func() {
					for n := 0; st.left.Add(-1) >= 0; n++ {
						id := fmt.Sprint(n % 97)
						body, header := asks(n, id, era)
						r := httptest.NewRequest(http.MethodPost, "/mcp", strings.NewReader(body))
						r.Host = "localhost"
						setHeaders(r, p.key, header...)
						w := httptest.NewRecorder()
						handler.ServeHTTP(w, r)
						st.heard(p, n, id, w.Body.Bytes())
					}
				})
			}
			all.Go(func() {
				for n := 0; st.left.Add(-1) >= 0; n++ {
					id := fmt.Sprint(n % 97)
					body, header := asks(n, id, era)
					a, err := st.site.try("/mcp", p.key, body, header...)
					if err != nil {
						t.Error(err)
						return
					}
					st.heard(p, n, id, []byte(a.body))
				}
			})
		}
		stream := st.site.stream(t, p.key)
		all.Go(func() { st.onStream(t, handler, p, stream) })
	}
	all.Wait()
}

// onStream keeps up to eight requests of one stream running.
func (st *storm) onStream(t *testing.T, handler http.Handler, p *party, stream *stream) {
	defer stream.leave()
	era := []string{"legacy", "modern"}
	for n := 0; st.left.Add(-8) > -8; n += 8 {
		waiting := map[string]int{}
		for i := n; i < n+8; i++ {
			id := fmt.Sprint(i % 97)
			waiting[id] = i
			body, _ := asks(i, id, era[i%2])
			cancel := fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}`, (i+48)%97) // nothing of this stream
			if i%32 == 0 && (direct(handler, p.key, stream.path, cancel).Code != 202 || direct(handler, p.key, "/mcp", cancel).Code != 202) {
				t.Error("a cancellation was not accepted")
			}
			if w := direct(handler, p.key, stream.path, body); w.Code != 202 {
				t.Errorf("POST %s = %d %s", stream.path, w.Code, w.Body)
				return
			}
		}
		for range 8 {
			e, ok := <-stream.events
			for e.name == ":" {
				e, ok = <-stream.events
			}
			if !ok {
				t.Error("the stream has ended")
				return
			}
			var r reply
			if err := json.Unmarshal([]byte(e.data), &r); err != nil {
				t.Errorf("an event is %+v", e)
				return
			}
			i, asked := waiting[string(r.ID)]
			if !asked {
				i = -1 // no answer to anything
			}
			delete(waiting, string(r.ID))
			st.heard(p, max(i, 0), map[bool]string{true: string(r.ID), false: "nobody's"}[asked], []byte(e.data))
		}
	}
}

func TestNothingCrosses(t *testing.T) {
	calls := 100_000
	if testing.Short() {
		calls = 5000
	}
	if soaking() {
		calls = 2_000_000
	}
	st := newStorm(t, calls, func(u mcp.Unlock) mcp.Unlock { return u })
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	start := time.Now()
	st.run(t)
	if got := st.crossed.Load(); got != 0 {
		t.Errorf("%d of %d answers crossed, the first: %s", got, calls, st.first)
	}
	if strings.Contains(st.site.log.String(), "CANARY") {
		t.Errorf("the log holds a value: %s", st.site.log)
	}
	t.Logf("%d calls in %v", calls, time.Since(start))
}

// The controls: a server that mixes up one key in twenty is found out, as
// is one that gives a narrow key the vault of its wide sibling.
func TestStormNoticesMixedKeys(t *testing.T) {
	for name, pick := range map[string]func(st *storm, i int) identity.Key{
		"other identity": func(st *storm, i int) identity.Key { return st.parties[(i+2)%4].key },
		"other slot":     func(st *storm, i int) identity.Key { return st.parties[i^1].key },
	} {
		var st *storm
		var turn atomic.Int64
		st = newStorm(t, 1000, func(u mcp.Unlock) mcp.Unlock {
			return func(ctx context.Context, k identity.Key, from vault.Source) (*vault.Vault, error) {
				if from.Via == "http" && turn.Add(1)%20 == 0 {
					for i, p := range st.parties {
						if p.key.Slot() == k.Slot() {
							return u(ctx, pick(st, i), from)
						}
					}
				}
				return u(ctx, k, from)
			}
		})
		st.run(t)
		if st.crossed.Load() == 0 {
			t.Errorf("%s: nobody noticed", name)
		}
	}
}

// A cancellation reaches the requests of its own stream. The calls wait for
// the next step of a code, all under id 3.
func TestCancellationReachesOnlyItsOwnStream(t *testing.T) {
	for name, c := range map[string]struct {
		cancel func(s *site, b, second, other *stream) []answered
		status int
		ends   bool
	}{
		"nothing":        {func(*site, *stream, *stream, *stream) []answered { return nil }, 0, false},
		"other identity": {func(s *site, _, _, other *stream) []answered { return cancel(s, other.path, other.key) }, 202, false},
		"other slot":     {func(s *site, _, second, _ *stream) []answered { return cancel(s, second.path, second.key) }, 202, false},
		"on /mcp": {func(s *site, b, _, other *stream) []answered {
			return append(cancel(s, "/mcp", b.key), cancel(s, "/mcp", other.key)...)
		}, 202, false},
		"on its session":  {func(s *site, b, _, other *stream) []answered { return cancel(s, b.path, other.key) }, 404, false},
		"by another slot": {func(s *site, b, second, _ *stream) []answered { return cancel(s, b.path, second.key) }, 404, false},
		"its own":         {func(s *site, b, _, _ *stream) []answered { return cancel(s, b.path, b.key) }, 202, true}, // the control
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				k, other := h.agent("b", identity.Grant{}), h.agent("a", identity.Grant{})
				second, err := h.keeper.AddKey(t.Context(), k.Identity(), k, "second", identity.Grant{Scopes: identity.DefaultScopes})
				if err != nil {
					t.Fatal(err)
				}
				h.put(k, seeded("one"), seeded("two"))
				h.pass(4*time.Minute + 57*time.Second) // 2 s are left of the step
				s := h.openInside(t, mcp.HTTPOptions{Loopback: true})
				b, bb, a := s.stream(t, k), s.stream(t, second), s.stream(t, other)
				if got := s.post(b.path, k, call(3, "get_totp_code", `{"label":"one"}`)); got.status != 202 {
					t.Fatalf("POST = %d %s", got.status, got.body)
				}
				posted := make(chan answered, 1)
				go func() { posted <- s.post("/mcp", k, call(3, "get_totp_code", `{"label":"two"}`)) }()
				synctest.Wait()
				for _, got := range c.cancel(s, b, bb, a) {
					if got.status != c.status {
						t.Errorf("the cancellation = %d %s, want %d", got.status, got.body, c.status)
					}
				}
				synctest.Wait()
				if c.ends {
					if r := b.reply(t); r.refusal(t).Error != "unavailable" {
						t.Errorf("a cancelled call = %s", r.raw)
					}
				} else if len(b.events) != 0 || len(posted) != 0 {
					t.Errorf("there is an answer before its time: %+v", <-b.events)
				}
				h.pass(2 * time.Second)
				time.Sleep(2 * time.Second) // of the bubble's clock
				if !c.ends {
					if v := value[map[string]any](t, b.reply(t)); v["label"] != "one" || len(fmt.Sprint(v["code"])) != 6 {
						t.Errorf("the code on the stream = %v", v)
					}
				}
				if v := value[map[string]any](t, (<-posted).reply(t)); v["label"] != "two" || len(fmt.Sprint(v["code"])) != 6 {
					t.Errorf("the code on /mcp = %v", v)
				}
			})
		})
	}
}

// cancel posts the cancellation of request 3, and of what else it may be
// called inside.
func cancel(s *site, path string, k identity.Key) []answered {
	var all []answered
	for _, id := range []string{"3", `"3"`, `"http-1"`} {
		for _, more := range []string{"", "," + meta} {
			all = append(all, s.post(path, k, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":`+id+more+`}}`, "Mcp-Session-Id", "http-1"))
		}
	}
	return all
}

func TestInventedSessionsMeanNothing(t *testing.T) {
	h := newHouse(t)
	k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
	h.put(k, secret("openai", "CANARY-aaaa"))
	h.put(other, secret("openai", "CANARY-bbbb"))
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	st := s.stream(t, other)
	for _, id := range []string{"x", "http-1", "mcp-session-00000000-0000-0000-0000-000000000000", strings.TrimPrefix(st.path, "/message?sessionId="), strings.Repeat("A", 4000)} {
		a := s.post("/mcp", k, call(1, "get_secret", `{"label":"openai"}`), "Mcp-Session-Id", id)
		if v := value[map[string]any](t, a.reply(t)); v["value"] != "CANARY-aaaa" || a.header.Get("Mcp-Session-Id") != "" {
			t.Errorf("with session %.40s: %v %s", id, a.header, a.body)
		}
		a = s.post("/mcp?sessionId="+id, k, request(1, "initialize", `{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}`), "Mcp-Session-Id", id)
		if a.status != 200 || a.header.Get("Mcp-Session-Id") != "" {
			t.Errorf("initialize with session %.40s = %d %v", id, a.status, a.header)
		}
	}
	if len(st.events) != 0 {
		t.Errorf("the other's stream has %+v", <-st.events)
	}
}
