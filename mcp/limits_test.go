package mcp_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
)

func TestKeyThatFailsOftenIsHeldUp(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	ping := request(1, "ping", "{}")
	guess := func() identity.Key { return identity.NewKey(identity.Agent, k.Identity()) }
	wrong := "Bearer " + guess().Reveal()
	for name, bearer := range map[string]string{"wrong": wrong, "malformed": "Bearer x"} {
		for i := range 50 {
			path := []string{"/mcp", "/message"}[i%2]
			if a := s.post(path, identity.Key{}, ping, "Authorization", bearer); a.status != 401 {
				t.Fatalf("%s key, attempt %d = %d %s", name, i, a.status, a.body)
			}
		}
		for _, path := range []string{"/mcp", "/message?sessionId=x"} {
			a := s.post(path, identity.Key{}, ping, "Authorization", bearer, "X-Forwarded-For", "192.0.2.77")
			if got := decode[refusal](t, a.body); a.status != 429 || got.Error != "rate_limited" || got.Retry <= 0 {
				t.Errorf("%s key, attempt 51 on %s = %d %s", name, path, a.status, a.body)
			}
			proper(t, name, a)
		}
	}
	for name, c := range map[string]struct {
		bearer string
		status int
	}{"another malformed one": {"Bearer y", 429}, "another wrong one": {"Bearer " + guess().Reveal(), 401}, "the right one": {"Bearer " + k.Reveal(), 200}, "none": {"", 401}} {
		if a := s.post("/mcp", identity.Key{}, ping, "Authorization", c.bearer); a.status != c.status {
			t.Errorf("%s beside it = %d %s, want %d", name, a.status, a.body, c.status)
		}
	}
	h.pass(time.Second) // 10 more
	for i := range 11 {
		if a := s.post("/mcp", identity.Key{}, ping, "Authorization", wrong); a.status != map[bool]int{true: 401, false: 429}[i < 10] {
			t.Errorf("after a second, attempt %d = %d %s", i, a.status, a.body)
		}
	}
}

// A thousand wrong keys bar their address for keys that are not known yet; not
// for one that has proved itself, which behind a proxy may be somebody else's.
func TestFailedKeysBarTheirAddress(t *testing.T) {
	h := newHouse(t)
	k, late := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
	handler := h.serveHTTP(h.keeper.Unlock, mcp.HTTPOptions{Loopback: true, Rate: -1, Forwarded: true}).Handler()
	ask := func(k identity.Key, from string) int {
		return direct(handler, k, "/mcp", request(1, "ping", "{}"), "X-Forwarded-For", from).Code
	}
	guess := func() identity.Key { return identity.NewKey(identity.Agent, k.Identity()) }
	const from, elsewhere = "192.0.2.1", "192.0.2.2"
	if got := ask(k, from); got != 200 {
		t.Fatalf("the right key = %d", got)
	}
	for i := range 1000 {
		if got := ask(guess(), from); got != 401 {
			t.Fatalf("wrong key %d = %d", i, got)
		}
	}
	if got := ask(guess(), from); got != 429 {
		t.Errorf("wrong key 1001 = %d", got)
	}
	if got := ask(late, from); got != 429 {
		t.Errorf("a right key that is not known yet = %d", got)
	}
	for range 100 {
		if got := ask(k, from); got != 200 {
			t.Fatalf("a key that has proved itself = %d", got)
		}
	}
	if got := ask(guess(), elsewhere); got != 401 {
		t.Errorf("a wrong key from elsewhere = %d", got)
	}
	h.pass(10 * time.Millisecond) // two more
	if got := ask(late, from); got != 200 {
		t.Errorf("a right key after the wait = %d", got)
	}
	for i, want := range []int{401, 401, 429} { // the right one took nothing
		if got := ask(guess(), from); got != want {
			t.Errorf("wrong key %d after the wait = %d, want %d", i, got, want)
		}
	}
	// A proven key that is closed is known no more.
	if err := revoke(h.keeper, k); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := ask(k, from); got != 401 {
			t.Errorf("a revoked key = %d", got)
		}
	}
}

// Who holds a key that is closed waits alone: the key that follows it may come
// from the same address.
func TestClosedKeyBarsOnlyItself(t *testing.T) {
	h := newHouse(t)
	dead, dying, fresh := h.agent("dead", identity.Grant{}), h.agent("dying", identity.Grant{Scopes: identity.DefaultScopes, Expires: noon.Add(time.Second)}), h.agent("fresh", identity.Grant{})
	if err := revoke(h.keeper, dead); err != nil {
		t.Fatal(err)
	}
	h.pass(time.Second)
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	ping := request(1, "ping", "{}")
	for word, k := range map[string]identity.Key{"revoked": dead, "expired": dying} {
		for i := range 50 {
			if a := s.post("/mcp", k, ping); a.status != 401 || decode[refusal](t, a.body).Error != word {
				t.Fatalf("a %s key, attempt %d = %d %s", word, i, a.status, a.body)
			}
		}
		if a := s.post("/mcp", k, ping); a.status != 429 {
			t.Errorf("a %s key, attempt 51 = %d %s", word, a.status, a.body)
		}
	}
	if a := s.post("/mcp", identity.Key{}, ping, "Authorization", "Bearer x"); a.status != 401 {
		t.Errorf("a malformed key beside them = %d %s", a.status, a.body)
	}
	if a := s.post("/mcp", fresh, ping); a.status != 200 {
		t.Errorf("a right key beside them = %d %s", a.status, a.body)
	}
}

func TestForwardedAddressIsTheLastEntry(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "x"))
	bad := func(s *site, headers ...string) int {
		r := raw{method: "POST", target: "/mcp"}.plus("Host: localhost", "Connection: close", "Content-Length: 0").bearer("x").plus(prefixed("X-Forwarded-For: ", headers)...)
		return s.send(t, r).status
	}
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Forwarded: true, Rate: -1})
	for i := range 50 {
		if got := bad(s, fmt.Sprintf("10.0.0.%d, 192.0.2.1", i)); got != 401 {
			t.Fatalf("wrong key %d = %d", i, got)
		}
	}
	for name, c := range map[string]struct {
		headers []string
		status  int
	}{
		"same":                {[]string{"192.0.2.1"}, 429},
		"invented before it":  {[]string{"198.51.100.9, 192.0.2.1"}, 429},
		"in a header before":  {[]string{"198.51.100.9", "192.0.2.1"}, 429},
		"mapped into IPv6":    {[]string{"::ffff:192.0.2.1"}, 429},
		"another":             {[]string{"192.0.2.1, 198.51.100.9"}, 401},
		"another, by headers": {[]string{"192.0.2.1", "198.51.100.9"}, 401},
		"no address":          {[]string{"192.0.2.1, unknown"}, 401}, // that of the connection counts
		"none":                {nil, 401},
		"empty":               {[]string{""}, 401},
		"IPv6":                {[]string{"2001:db8::1"}, 401},
	} {
		if got := bad(s, c.headers...); got != c.status {
			t.Errorf("%s: %d, want %d", name, got, c.status)
		}
	}
	for i := range 60 {
		bad(s, fmt.Sprintf("2001:db8:0:7::%x", i+1))
	}
	if got := bad(s, "2001:db8:0:7:ffff::1"); got != 429 {
		t.Errorf("another address of a barred IPv6 subnet = %d", got)
	}
	if got := bad(s, "2001:db8:0:8::1"); got != 401 {
		t.Errorf("an address of the subnet beside it = %d", got)
	}
	// Without a proxy the header says nothing, neither for the limit nor for
	// the audit log.
	plain := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	for i := range 50 {
		bad(plain, fmt.Sprintf("10.0.0.%d", i))
	}
	if got := bad(plain, "10.9.9.9"); got != 429 {
		t.Errorf("an invented address evades the limit: %d", got)
	}
	s.post("/mcp", k, call(1, "get_secret", `{"label":"openai"}`), "X-Forwarded-For", "10.1.1.1, 192.0.2.44")
	h.open(t, mcp.HTTPOptions{Loopback: true}).post("/mcp", k, call(1, "get_secret", `{"label":"openai"}`), "X-Forwarded-For", "10.1.1.1, 192.0.2.44")
	var from []string
	for line, err := range h.keeper.Audit(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if line.Via == "http" && line.Name == "a" {
			from = append(from, line.From)
		}
	}
	if want := []string{"192.0.2.44", "127.0.0.1"}; !slices.Equal(from, want) {
		t.Errorf("the audit log has the addresses %q, want %q", from, want)
	}
}

func TestMemoryOfFailuresIsBounded(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	handler := h.serveHTTP(h.keeper.Unlock, mcp.HTTPOptions{Loopback: true, Forwarded: true, Rate: -1}).Handler()
	bad := func(from, to int) {
		for i := from; i < to; i++ {
			if w := direct(handler, identity.Key{}, "/mcp", "", "Authorization", "Bearer x", "X-Forwarded-For", fmt.Sprintf("2001:db8:%x:%x::1", i>>16, i&0xffff)); w.Code != 401 {
				t.Fatalf("a first failure = %d", w.Code)
			}
		}
	}
	bad(0, 5000)
	before := heap()
	bad(5000, 15_000)
	if after := heap(); after > before+256<<10 {
		t.Errorf("10,000 more addresses keep %d bytes", after-before)
	}
	if w := direct(handler, k, "/mcp", request(1, "ping", "{}"), "X-Forwarded-For", "2001:db8:f::1"); w.Code != 200 {
		t.Errorf("a right key from one address too many = %d %s", w.Code, w.Body)
	}
}

func TestCallsOverTheRateAreToldWhenToComeBack(t *testing.T) {
	for _, name := range wires {
		h := newHouse(t)
		k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
		h.put(k, secret("openai", "CANARY-value"))
		h.put(other, secret("openai", "CANARY-other"))
		second, err := h.keeper.AddKey(t.Context(), k.Identity(), k, "second", identity.Grant{Scopes: identity.DefaultScopes})
		if err != nil {
			t.Fatal(err)
		}
		s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: 2})
		ask, sibling, theirs := s.wire(t, name, k), s.wire(t, name, second), s.wire(t, name, other)
		for id := range 8 { // a burst of four seconds
			if r := ask(id, "tools/call", get("openai")); value[map[string]any](t, r)["value"] != "CANARY-value" {
				t.Errorf("%s: call %d = %s", name, id, r.raw)
			}
		}
		lines := len(denials(t, h))
		for _, ask := range []asker{ask, sibling} { // another key is no way round
			r := ask(9, "tools/call", get("openai"))
			if got := r.refusal(t); got.Error != "rate_limited" || got.Retry != 500 || got.Hint == "" || strings.Contains(r.raw, "CANARY") {
				t.Errorf("%s: a call over the rate = %s", name, r.raw)
			}
		}
		if got := len(denials(t, h)) - lines; got != 0 {
			t.Errorf("%s: calls over the rate left %d audit lines", name, got)
		}
		if r := ask(10, "tools/list", ""); r.Error != nil {
			t.Errorf("%s: tools/list is no call: %s", name, r.raw)
		}
		if r := theirs(11, "tools/call", get("openai")); value[map[string]any](t, r)["value"] != "CANARY-other" {
			t.Errorf("%s: a call of another identity = %s", name, r.raw)
		}
		h.pass(499 * time.Millisecond)
		if r := ask(12, "tools/call", get("openai")); r.refusal(t).Retry < 1 {
			t.Errorf("%s: a call before the wait is over = %s", name, r.raw)
		}
		h.pass(time.Millisecond)
		if r := ask(13, "tools/call", get("openai")); value[map[string]any](t, r)["value"] != "CANARY-value" {
			t.Errorf("%s: a call after the wait = %s", name, r.raw)
		}
		if r := ask(14, "tools/call", get("openai")); r.refusal(t).Error != "rate_limited" {
			t.Errorf("%s: one more = %s", name, r.raw)
		}
		s.close()
	}
}

func TestRequestsOverTheRateAre429(t *testing.T) {
	h := newHouse(t)
	k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: 1})
	ping := request(1, "ping", "{}")
	for i := range 20 { // 5 a second, bursts of 4 seconds
		if a := s.post([]string{"/mcp", "/message"}[i%2], k, ping); a.status != []int{200, 404}[i%2] {
			t.Fatalf("request %d = %d %s", i, a.status, a.body)
		}
	}
	for _, path := range []string{"/mcp", "/message"} {
		a := s.post(path, k, ping)
		got := decode[refusal](t, a.body)
		if wait, err := strconv.Atoi(a.header.Get("Retry-After")); a.status != 429 || err != nil || wait < 1 || got.Error != "rate_limited" || got.Retry != 200 {
			t.Errorf("%s over the rate = %d %v %s", path, a.status, a.header, a.body)
		}
	}
	if st, a := s.tryStream(t, k); st != nil || a.status != 429 {
		t.Errorf("/sse over the rate = %d %s", a.status, a.body)
	}
	if a := s.post("/mcp", other, ping); a.status != 200 {
		t.Errorf("a request of another identity = %d %s", a.status, a.body)
	}
	h.pass(200 * time.Millisecond)
	if a := s.post("/mcp", k, ping); a.status != 200 {
		t.Errorf("a request after the wait = %d %s", a.status, a.body)
	}
}

func TestGreatRequestsCountAsMany(t *testing.T) {
	h := newHouse(t)
	k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: 1})
	ping := request(1, "ping", "{}")
	great := ping + strings.Repeat(" ", 64<<10-len(ping)) // 17 of 20
	for i, c := range []struct {
		body   string
		key    identity.Key
		status int
	}{{great, k, 200}, {ping, k, 200}, {ping, k, 200}, {ping, k, 200}, {ping, k, 429}, {great, other, 200}, {great, other, 429}} {
		if a := s.post("/mcp", c.key, c.body); a.status != c.status {
			t.Errorf("request %d of %d bytes = %d %s, want %d", i, len(c.body), a.status, a.body, c.status)
		}
	}
	h.pass(4 * time.Second)
	if a := s.post("/mcp", k, ping+strings.Repeat(" ", 250<<10)); a.status != 429 && a.status != 200 {
		t.Errorf("the greatest request = %d %s", a.status, a.body)
	}
}

func TestRateDefaultsAndIsSwitchedOff(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.backend.Backend = memory{h.backend.Backend}
	for rate, want := range map[int]int{0: 4 * mcp.DefaultRate, -1: math.MaxInt, math.MinInt: math.MaxInt, math.MaxInt: math.MaxInt, 3: 12} {
		most := 100
		if rate == 0 || rate == -1 {
			most = 5 * mcp.DefaultRate
		}
		handler := h.serveHTTP(h.keeper.Unlock, mcp.HTTPOptions{Loopback: true, Rate: rate}).Handler()
		served := 0
		for ; served < most; served++ {
			if strings.Contains(direct(handler, k, "/mcp", call(1, "list_labels", "{}")).Body.String(), "rate_limited") {
				break
			}
		}
		if served != min(want, most) {
			t.Errorf("rate %d serves %d calls at once, want %d", rate, served, want)
		}
	}
}

func TestRunningCallsOfAnIdentityAreBounded(t *testing.T) {
	h := newHouse(t)
	k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	h.put(other, secret("openai", "CANARY-other"))
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	gate := h.shut()
	answers := make(chan answered, 128)
	for range 128 {
		go func() {
			a, err := s.try("/mcp", k, call(1, "get_secret", `{"label":"openai"}`))
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
	}
	for range 128 {
		<-gate.waiting
	}
	st := s.stream(t, k)
	for _, path := range []string{"/mcp", st.path} {
		for _, body := range []string{call(2, "list_labels", "{}"), request(2, "ping", "{}"), `{"jsonrpc":"2.0","method":"notifications/initialized"}`} {
			a := s.post(path, k, body)
			if got := decode[refusal](t, a.body); a.status != 429 || got.Error != "rate_limited" || got.Retry != 250 {
				t.Errorf("request 129 on %s = %d %s", path, a.status, a.body)
			}
			proper(t, path, a)
		}
	}
	h.backend.gate.Store(nil)
	if a := s.post("/mcp", other, call(2, "get_secret", `{"label":"openai"}`)); !strings.Contains(a.body, "CANARY-other") {
		t.Errorf("a call of another identity = %s", a.body)
	}
	close(gate.open)
	for range 128 {
		if a := <-answers; !strings.Contains(a.body, "CANARY-value") {
			t.Errorf("a call that waited = %s", a.body)
		}
	}
	if a := s.post("/mcp", k, call(3, "get_secret", `{"label":"openai"}`)); !strings.Contains(a.body, "CANARY-value") {
		t.Errorf("a call afterwards = %s", a.body)
	}
}

func TestStreamsOfAnIdentityAreBounded(t *testing.T) {
	h := newHouse(t)
	k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
	second, err := h.keeper.AddKey(t.Context(), k.Identity(), k, "second", identity.Grant{Scopes: identity.DefaultScopes})
	if err != nil {
		t.Fatal(err)
	}
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	var streams []*stream
	for range 8 {
		streams = append(streams, s.stream(t, k))
	}
	for _, k := range []identity.Key{k, second} {
		st, a := s.tryStream(t, k)
		if st != nil || a.status != 429 || decode[refusal](t, a.body).Error != "rate_limited" {
			t.Errorf("stream 9 = %d %s", a.status, a.body)
		}
		proper(t, "stream 9", a)
	}
	s.stream(t, other).ask(t, request(1, "ping", "{}"))
	streams[3].leave()
	eventually(t, "a stream has ended", func() bool { return s.seen.open() == 8 })
	s.stream(t, second).ask(t, request(1, "ping", "{}"))
	for i, st := range streams {
		if i != 3 {
			st.ask(t, request(i, "ping", "{}"))
		}
	}
}

// Ten thousand handshakes and ten thousand requests that nobody waits for
// leave nothing behind.
func TestNothingIsKeptOfWhatIsOver(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	h.backend.Backend = memory{h.backend.Backend}
	handler := h.serveHTTP(h.keeper.Unlock, mcp.HTTPOptions{Loopback: true, Rate: -1}).Handler()
	hello := request(1, "initialize", `{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}`)
	get := call(1, "get_secret", `{"label":"openai"}`)
	abandoned := func(i int) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var body io.Reader = strings.NewReader(get)
		switch i % 3 {
		case 0:
			body = io.MultiReader(strings.NewReader(get[:20]), iotest.ErrReader(io.ErrUnexpectedEOF))
		case 1:
			cancel()
		default:
			body = io.MultiReader(body, endOf(cancel))
		}
		r := httptest.NewRequest(http.MethodPost, "/mcp", body).WithContext(ctx)
		r.Host, r.ContentLength = "localhost", -1
		setHeaders(r, k, "Mcp-Session-Id", fmt.Sprint("session-", i))
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	round := func(n int) {
		var both sync.WaitGroup
		both.Go(func() {
			for i := range n {
				if w := direct(handler, k, "/mcp", hello, "Mcp-Session-Id", fmt.Sprint("session-", i)); w.Code != 200 {
					t.Errorf("initialize = %d %s", w.Code, w.Body)
					return
				}
			}
		})
		both.Go(func() {
			for i := range n {
				abandoned(i)
			}
		})
		both.Wait()
	}
	n := 10_000
	if testing.Short() {
		n = 1000
	}
	round(300)
	goroutines, before := runtime.NumGoroutine(), heap()
	round(n)
	settled(t, goroutines)
	if after := heap(); after > before+2<<20 {
		t.Errorf("%d of each keep %d bytes", n, after-before)
	}
	// The control: the measure finds what is kept.
	kept := make([][]byte, 0, n)
	for range n {
		kept = append(kept, make([]byte, 2<<20/n+100))
	}
	if after := heap(); after < before+2<<20 {
		t.Errorf("the measure does not find %d bytes in %d pieces", 2<<20, len(kept))
	}
	runtime.KeepAlive(kept)
}

// heap returns how many bytes are kept.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// endOf is a reader that has nothing, and calls f when that is found out.
type endOf func()

func (f endOf) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}
