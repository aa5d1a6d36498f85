package mcp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// event is one of an event stream; a comment has the name ":".
type event struct{ name, data string }

// nextEvent reads one event or comment.
func nextEvent(r *bufio.Reader) (event, error) {
	var e event
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return e, err
		}
		field, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		text = strings.TrimPrefix(text, " ")
		switch {
		case line == "\n":
			return e, nil
		case field == "event":
			e.name = text
		case field == "data":
			e.data += text
		case field == "":
			e.name = ":"
		}
	}
}

// readEvents reads a stream to its end.
func readEvents(t testing.TB, r *bufio.Reader) []event {
	t.Helper()
	var all []event
	for {
		e, err := nextEvent(r)
		if err == io.EOF && e == (event{}) {
			return all
		}
		if err != nil {
			t.Fatalf("reading events: %v after %v", err, e)
		}
		all = append(all, e)
	}
}

// stream is an open event stream of /sse.
type stream struct {
	site   *site
	key    identity.Key
	path   string     // where to post
	events chan event // after the first one; closed when the stream ends
	leave  context.CancelFunc
}

// stream opens an event stream; it ends with the test.
func (s *site) stream(t testing.TB, k identity.Key) *stream {
	t.Helper()
	st, a := s.tryStream(t, k)
	if st == nil {
		t.Fatalf("GET /sse = %d %s", a.status, a.body)
	}
	return st
}

// tryStream opens an event stream, or returns the answer that is none.
func (s *site) tryStream(t testing.TB, k identity.Key, header ...string) (*stream, answered) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/sse", nil)
	if err != nil {
		t.Fatal(err)
	}
	setHeaders(r, k, header...)
	resp, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer cancel()
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return nil, answered{resp.StatusCode, resp.Header, string(text)}
	}
	in := bufio.NewReader(resp.Body)
	first, err := nextEvent(in)
	if err != nil || first.name != "endpoint" || !strings.HasPrefix(first.data, "/message?sessionId=") {
		t.Fatalf("the first event is %+v, %v", first, err)
	}
	st := &stream{site: s, key: k, path: first.data, events: make(chan event, 1<<12), leave: cancel}
	go func() {
		defer close(st.events)
		defer resp.Body.Close()
		for {
			e, err := nextEvent(in)
			if err != nil {
				if !errors.Is(err, context.Canceled) && e != (event{}) {
					st.events <- event{"torn", e.data}
				}
				return
			}
			st.events <- e
		}
	}()
	t.Cleanup(cancel)
	return st, answered{resp.StatusCode, resp.Header, ""}
}

// reply returns the next message of the stream.
func (st *stream) reply(t testing.TB) reply {
	t.Helper()
	for e := range st.events {
		switch e.name {
		case ":":
		case "message":
			return replies(t, e.data+"\n")[0]
		default:
			t.Fatalf("an event that is no message: %+v", e)
		}
	}
	t.Fatal("the stream has ended")
	return reply{}
}

// ask posts one request and returns the next message of the stream.
func (st *stream) ask(t testing.TB, body string) reply {
	t.Helper()
	if a := st.site.post(st.path, st.key, body); a.status != 202 || a.body != "" {
		t.Fatalf("POST %s = %d %s", st.path, a.status, a.body)
	}
	return st.reply(t)
}

// ended waits for the end of the stream, for at most 30 s, and returns when it
// came. What was on it before is dropped.
func (st *stream) ended(t testing.TB) time.Time {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case _, ok := <-st.events:
			if !ok {
				return time.Now()
			}
		case <-late:
			t.Error("the stream goes on")
			return time.Now()
		}
	}
}

func TestSessionOpensNothing(t *testing.T) {
	h := newHouse(t)
	k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
	h.put(k, secret("openai", "CANARY-mine"))
	h.put(other, secret("openai", "CANARY-other"))
	second, err := h.keeper.AddKey(t.Context(), k.Identity(), k, "second", identity.Grant{Scopes: identity.DefaultScopes})
	if err != nil {
		t.Fatal(err)
	}
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	st, gone := s.stream(t, k), s.stream(t, k)
	gone.leave()
	eventually(t, "one stream is open", func() bool { return s.seen.open() == 1 })
	elsewhere := h.open(t, mcp.HTTPOptions{Loopback: true}).stream(t, k)
	body := call(1, "get_secret", `{"label":"openai"}`)
	id := strings.TrimPrefix(st.path, "/message?sessionId=")
	for name, c := range map[string]struct {
		path   string
		key    identity.Key
		status int
	}{
		"other identity":             {st.path, other, 404},
		"other slot of the identity": {st.path, second, 404},
		"no key":                     {st.path, identity.Key{}, 401},
		"key of nobody":              {st.path, identity.NewKey(identity.Agent, k.Identity()), 401},
		"ended":                      {gone.path, k, 404},
		"of another process":         {elsewhere.path, k, 404},
		"invented":                   {"/message?sessionId=" + strings.Repeat("A", len(id)), k, 404},
		"cut":                        {st.path[:len(st.path)-1], k, 404},
		"longer":                     {st.path + "A", k, 404},
		"in lower case":              {"/message?sessionId=" + strings.ToLower(id), k, 404},
		"missing":                    {"/message", k, 404},
		"empty":                      {"/message?sessionId=", k, 404},
		"other parameter":            {"/message?session_id=" + id, k, 404},
		"as a header":                {"/message", k, 404},
		"second of two":              {"/message?sessionId=x&sessionId=" + id, k, 404},
		"the name of an HTTP call":   {"/message?sessionId=http-1", k, 404},
	} {
		for range 2 {
			a := s.post(c.path, c.key, body, "Mcp-Session-Id", id)
			if a.status != c.status || strings.Contains(a.body, "CANARY") {
				t.Errorf("%s: %d %s, want %d", name, a.status, a.body, c.status)
			}
		}
	}
	// The control, and proof that nothing of the above came through.
	if v := value[map[string]any](t, st.ask(t, body)); v["value"] != "CANARY-mine" {
		t.Errorf("get_secret = %v", v)
	}
	if len(st.events) != 0 {
		t.Errorf("there is more on the stream: %v", <-st.events)
	}
	if len(id) < 26 || id == strings.TrimPrefix(gone.path, "/message?sessionId=") {
		t.Errorf("the session id is %q", id)
	}
}

func TestStreamHeaders(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Origins: []string{"https://app.example.com"}})
	_, a := s.tryStream(t, k, "Origin", "https://app.example.com")
	proper(t, "/sse", a)
	if a.header.Get("Content-Type") != "text/event-stream" || a.header.Get("X-Accel-Buffering") != "no" {
		t.Errorf("headers of /sse = %v", a.header)
	}
}

func TestOldKeyLosesItsStreamAfterRotation(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	st := s.stream(t, k)
	fresh, err := h.keeper.Rotate(t.Context(), k.Identity(), k, vault.Rotation{Grace: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	body := call(1, "get_secret", `{"label":"openai"}`)
	if a := s.post(st.path, fresh, body); a.status != 404 {
		t.Errorf("the new key on the old key's stream = %d %s", a.status, a.body)
	}
	// The control: within the grace the old key goes on, and the new one has
	// its own stream.
	for _, st := range []*stream{st, s.stream(t, fresh)} {
		if v := value[map[string]any](t, st.ask(t, body)); v["value"] != "CANARY-value" {
			t.Errorf("get_secret = %v", v)
		}
	}
	h.pass(time.Minute)
	if a := s.post(st.path, k, body); a.status != 401 {
		t.Errorf("the old key after its grace = %d %s", a.status, a.body)
	}
	st.ended(t)
}

// What ends a stream, and how long it takes at most. The first is the control:
// nothing happens, and the stream stays.
func TestStreamEndsWithItsKey(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(*site, identity.Key) error
		within  time.Duration // 0: it does not end
	}{
		"nothing": {func(*site, identity.Key) error { return nil }, 0},
		"revoke":  {func(s *site, k identity.Key) error { return revoke(s.keeper, k) }, time.Second},
		"revoke of the slot": {func(s *site, k identity.Key) error {
			_, err := s.keeper.Revoke(context.Background(), k.Identity(), vault.Revocation{Slots: []identity.SlotID{k.Slot()}})
			return err
		}, time.Second},
		"shred": {func(s *site, k identity.Key) error {
			_, err := s.keeper.Revoke(context.Background(), k.Identity(), vault.Revocation{Shred: true})
			return err
		}, time.Second},
		"rotation": {func(s *site, k identity.Key) error {
			_, err := s.keeper.Rotate(context.Background(), k.Identity(), k, vault.Rotation{})
			return err
		}, time.Second},
		"expiry": {func(s *site, _ identity.Key) error { s.pass(time.Hour); return nil }, time.Second},
		"storage that fails": {func(s *site, _ identity.Key) error {
			err := errors.New("gone")
			s.backend.reads.Store(&err)
			return nil
		}, 11 * time.Second},
		"storage that fails for a while": {func(s *site, _ identity.Key) error {
			err := errors.New("gone")
			s.backend.reads.Store(&err)
			time.Sleep(8 * time.Second)
			s.backend.reads.Store(nil)
			return nil
		}, 0},
		"revoke after that": {func(s *site, k identity.Key) error {
			err := errors.New("gone")
			s.backend.reads.Store(&err)
			time.Sleep(8 * time.Second)
			s.backend.reads.Store(nil)
			return revoke(s.keeper, k)
		}, time.Second},
		"revoke of another slot": {func(s *site, k identity.Key) error {
			other, err := s.keeper.AddKey(context.Background(), k.Identity(), k, "other", identity.Grant{Scopes: identity.DefaultScopes})
			if err != nil {
				return err
			}
			_, err = s.keeper.Revoke(context.Background(), k.Identity(), vault.Revocation{Slots: []identity.SlotID{other.Slot()}})
			return err
		}, 0},
		"revoke of another identity": {func(s *site, _ identity.Key) error { return revoke(s.keeper, s.agent("b", identity.Grant{})) }, 0},
		"shutdown":                   {func(s *site, _ identity.Key) error { return s.front.Shutdown(context.Background()) }, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				k := h.agent("a", identity.Grant{Scopes: identity.DefaultScopes, Expires: noon.Add(time.Hour)})
				s := h.openInside(t, mcp.HTTPOptions{Loopback: true})
				streams := []*stream{s.stream(t, k), s.stream(t, k), s.stream(t, k)}
				time.Sleep(2*time.Second + 137*time.Millisecond) // of the bubble's clock
				if err := c.happens(s, k); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if c.within == 0 {
					time.Sleep(10 * time.Second)
					for _, st := range streams {
						st.ask(t, request(1, "ping", "{}"))
					}
					return
				}
				for _, st := range streams {
					if took := st.ended(t).Sub(start); took > c.within {
						t.Errorf("the stream ended after %v", took)
					}
				}
				if got := s.seen.open(); got != 0 {
					t.Errorf("%d streams are still counted", got)
				}
			})
		})
	}
}

func revoke(keeper *vault.Keeper, k identity.Key) error {
	_, err := keeper.Revoke(context.Background(), k.Identity(), vault.Revocation{})
	return err
}

// The keepers share a directory as two processes do, and wait for each other
// in the kernel: the clock is the real one.
func TestStreamEndsWhenAnotherProcessRevokes(t *testing.T) {
	h := newHouse(t)
	k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	st, stays := s.stream(t, k), s.stream(t, other)
	if err := revoke(h.neighbour(), k); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if took := st.ended(t).Sub(start); took > time.Second {
		t.Errorf("the stream ended after %v", took)
	}
	stays.ask(t, request(1, "ping", "{}"))
}

func TestPanicOfAJudgementEndsOnlyItsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		k := h.agent("a", identity.Grant{})
		s := h.openInside(t, mcp.HTTPOptions{Loopback: true})
		st := s.stream(t, k)
		text := "CANARY in a panic"
		h.backend.getting.Store(&text)
		st.ended(t)
		h.backend.getting.Store(nil)
		s.stream(t, k).ask(t, request(1, "ping", "{}"))
		if log := h.log.String(); strings.Contains(log, "CANARY") || !strings.Contains(log, "msg=panic") {
			t.Errorf("the log = %s", log)
		}
	})
}

func TestShutdownOpensNoNewStream(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	st := s.stream(t, k)
	if err := s.front.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	st.ended(t)
	if a := s.post(st.path, k, request(1, "ping", "{}")); a.status != 404 {
		t.Errorf("/message after Shutdown = %d %s", a.status, a.body)
	}
	if st, a := s.tryStream(t, k); st != nil || a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("/sse after Shutdown = %d %s", a.status, a.body)
	}
	// /mcp goes on until the HTTP server ends it.
	if a := s.post("/mcp", k, request(1, "ping", "{}")); a.status != 200 {
		t.Errorf("/mcp after Shutdown = %d %s", a.status, a.body)
	}
}

func TestShutdownWaitsForWhatRuns(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		h := newHouse(t)
		k := h.agent("a", identity.Grant{})
		h.put(k, secret("openai", "x"))
		s := h.open(t, mcp.HTTPOptions{Loopback: true})
		st := s.stream(t, k)
		gate := h.shut()
		gate.deaf = deaf
		s.post(st.path, k, call(1, "get_secret", `{"label":"openai"}`))
		<-gate.waiting
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if !deaf {
			ctx = t.Context() // the call ends with its stream
		}
		err := s.front.Shutdown(ctx)
		cancel()
		s.seen.mu.Lock()
		ended := s.seen.calls["get_secret unavailable"] == 1
		s.seen.mu.Unlock()
		if ended == deaf || errors.Is(err, context.DeadlineExceeded) != deaf {
			t.Errorf("Shutdown of a call that is deaf (%v) = %v; the call has ended: %v", deaf, err, ended)
		}
		h.lift(gate)
		s.close()
	}
}

func TestStreamIsKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		k := h.agent("a", identity.Grant{})
		s := h.openInside(t, mcp.HTTPOptions{Loopback: true})
		st := s.stream(t, k)
		time.Sleep(time.Minute + time.Second)
		if len(st.events) != 4 {
			t.Errorf("%d events of an idle stream in a minute, want one every 15 s", len(st.events))
		}
		for range len(st.events) {
			if e := <-st.events; e.name != ":" || e.data != "" {
				t.Errorf("an event of an idle stream is %+v", e)
			}
		}
		st.ask(t, request(1, "ping", "{}"))
	})
}

// stall opens a stream whose reader takes the first event and then no byte
// more, and returns its path.
func (s *site) stall(t testing.TB, k identity.Key) (net.Conn, string) {
	t.Helper()
	conn, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET /sse HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", k.Reveal())
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	e, err := nextEvent(bufio.NewReader(resp.Body))
	if err != nil {
		t.Fatal(err)
	}
	return conn, e.data
}

func TestStalledReaderIsDropped(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(*site, identity.Key) error
		want    time.Duration
	}{
		"nothing":  {func(*site, identity.Key) error { return nil }, 10 * time.Second},
		"revoke":   {func(s *site, k identity.Key) error { return revoke(s.keeper, k) }, time.Second},
		"shutdown": {func(s *site, _ identity.Key) error { return s.front.Shutdown(context.Background()) }, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				k := h.agent("a", identity.Grant{})
				h.put(k, secret("big", strings.Repeat("x", 60_000)))
				s := h.openInside(t, mcp.HTTPOptions{Loopback: true})
				_, path := s.stall(t, k)
				if a := s.post(path, k, call(1, "get_secret", `{"label":"big"}`)); a.status != 202 {
					t.Fatalf("POST = %d %s", a.status, a.body)
				}
				time.Sleep(time.Second) // the answer is there, and stuck
				start := time.Now()
				if err := c.happens(s, k); err != nil {
					t.Fatal(err)
				}
				for s.seen.open() > 0 && time.Since(start) < time.Minute {
					time.Sleep(10 * time.Millisecond)
				}
				if took := time.Since(start); took > c.want+10*time.Millisecond || c.want == 10*time.Second && took < 8*time.Second {
					t.Errorf("a stream that nobody reads ended after %v, want %v", took, c.want)
				}
			})
		})
	}
}

// TestUnreadAnswersCountAsRunning is an agent who opens every stream it may
// have, reads none of them, and asks on each for as much as the stream holds:
// 512 answers of up to 150 KiB, which took 300 MiB of the server, where two
// such agents end it for all. What is answered and not written is within the
// room of the identity, and the others have theirs.
func TestUnreadAnswersCountAsRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		k, other := h.agent("a", identity.Grant{}), h.agent("b", identity.Grant{})
		h.put(k, secret("openai", "CANARY-value"))
		h.put(other, secret("openai", "CANARY-other"))
		s := h.openInside(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
		accepted := 0
		for range 8 {
			_, path := s.stall(t, k)
			for id := range 64 {
				switch a := s.post(path, k, call(id, "get_secret", `{"label":"openai"}`)); a.status {
				case 202:
					accepted++
				case 429:
				default:
					t.Fatalf("POST = %d %s", a.status, a.body)
				}
				synctest.Wait() // its answer is there, and waits
			}
		}
		if accepted != 128 {
			t.Errorf("%d answers wait for readers, want 128", accepted)
		}
		if a := s.post("/mcp", other, call(1, "get_secret", `{"label":"openai"}`)); !strings.Contains(a.body, "CANARY-other") {
			t.Errorf("a call of another identity = %d %s", a.status, a.body)
		}
		// The control: streams that were dropped hold no room.
		time.Sleep(12 * time.Second)
		st := s.stream(t, k)
		for id := range 200 {
			if v := value[map[string]any](t, st.ask(t, call(id, "get_secret", `{"label":"openai"}`))); v["value"] != "CANARY-value" {
				t.Fatalf("call %d afterwards = %v", id, v)
			}
		}
		st.leave()
	})
}

func TestUnansweredRequestsOfOneStreamAreBounded(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	st := s.stream(t, k)
	gate := h.shut()
	for id := range 64 {
		if a := s.post(st.path, k, call(id, "get_secret", `{"label":"openai"}`)); a.status != 202 {
			t.Fatalf("request %d = %d %s", id, a.status, a.body)
		}
	}
	for range 3 {
		a := s.post(st.path, k, request(99, "ping", "{}"))
		if a.status != 429 || decode[refusal](t, a.body).Error != "rate_limited" {
			t.Errorf("request 65 = %d %s", a.status, a.body)
		}
		proper(t, "request 65", a)
	}
	if a := s.post(st.path, k, `{"jsonrpc":"2.0","method":"notifications/initialized"}`); a.status != 202 {
		t.Errorf("a notification = %d %s", a.status, a.body)
	}
	other := s.stream(t, k) // has places of its own
	other.ask(t, request(1, "ping", "{}"))
	h.lift(gate)
	got := map[string]bool{}
	for range 64 {
		r := st.reply(t)
		got[string(r.ID)] = value[map[string]any](t, r)["value"] == "CANARY-value"
	}
	if len(got) != 64 || got["99"] {
		t.Errorf("answers = %v", got)
	}
	st.ask(t, request(100, "ping", "{}"))
}

func TestCallsEndWithTheirStream(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	before := runtime.NumGoroutine()
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	gate := h.shut()
	for range 2 {
		var streams []*stream
		for range 8 {
			st := s.stream(t, k)
			streams = append(streams, st)
			for id := range 16 {
				s.post(st.path, k, call(id, "get_secret", `{"label":"openai"}`))
			}
		}
		for range 8 * 16 {
			<-gate.waiting
		}
		for _, st := range streams {
			st.leave()
		}
		eventually(t, "no stream is open", func() bool { return s.seen.open() == 0 })
	}
	eventually(t, "every call has ended", func() bool {
		s.seen.mu.Lock()
		defer s.seen.mu.Unlock()
		return s.seen.calls["get_secret unavailable"] == 2*8*16
	})
	h.lift(gate)
	// The control: there is room for as many again.
	st := s.stream(t, k)
	if v := value[map[string]any](t, st.ask(t, call(1, "get_secret", `{"label":"openai"}`))); v["value"] != "CANARY-value" {
		t.Errorf("get_secret = %v", v)
	}
	s.close()
	settled(t, before)
}
