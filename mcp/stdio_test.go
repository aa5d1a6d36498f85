package mcp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

func TestPipedCallsAreAllAnswered(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	lines := []string{request(`"init"`, "initialize", `{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}`), `{"jsonrpc":"2.0","method":"notifications/initialized"}`}
	const calls = 500
	for id := range calls {
		lines = append(lines, call(id, "get_secret", `{"label":"openai"}`))
	}
	start := time.Now()
	got := talk(t, h.server, k, lines...) // the last line has no end
	if string(got[0].ID) != `"init"` {
		t.Errorf("the first answer is %s, want that of initialize", got[0].raw)
	}
	byID := byID(t, got)
	if len(byID) != calls+1 {
		t.Fatalf("%d answers, want %d", len(byID), calls+1)
	}
	for id := range calls {
		if v := value[map[string]any](t, byID[fmt.Sprint(id)]); v["value"] != "CANARY-value" {
			t.Fatalf("call %d = %v", id, v)
		}
	}
	t.Logf("%d calls in %v", calls, time.Since(start))
}

func TestLinesThatAreNoRequests(t *testing.T) {
	s := deadServer(identity.ErrExpired)
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for name, c := range map[string]struct {
		line, id string
		code     int // 0: no answer at all
	}{
		"text":               {"CANARY", "null", -32700},
		"half":               {`{"jsonrpc":"2.0","id":1,"method":"CANARY`, "null", -32700},
		"two values":         {`{"jsonrpc":"2.0","id":1,"method":"ping"}{}`, "null", -32700},
		"NULs":               {"\x00\x00CANARY", "null", -32700},
		"NUL in a text":      {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pi\x00ng\"}", "null", -32700},
		"no UTF-8":           {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"CANARY\xff\"}", "null", -32700},
		"batch":              {`[{"jsonrpc":"2.0","id":1,"method":"ping"}]`, "null", -32600},
		"empty batch":        {`[]`, "null", -32600},
		"number":             {`7`, "null", -32600},
		"string":             {`"CANARY"`, "null", -32600},
		"null":               {`null`, "null", -32600},
		"empty object":       {`{}`, "null", -32600},
		"no version":         {`{"id":1,"method":"ping"}`, "1", -32600},
		"wrong version":      {`{"jsonrpc":"CANARY","id":1,"method":"ping"}`, "1", -32600},
		"no method":          {`{"jsonrpc":"2.0","id":1}`, "1", -32600},
		"method is a number": {`{"jsonrpc":"2.0","id":1,"method":7}`, "1", -32600},
		"unknown method":     {`{"jsonrpc":"2.0","id":1,"method":"CANARY"}`, "1", -32601},
		"id null":            {`{"jsonrpc":"2.0","id":null,"method":"ping"}`, "null", -32600},
		"id object":          {`{"jsonrpc":"2.0","id":{"CANARY":1},"method":"ping"}`, "null", -32600},
		"id true":            {`{"jsonrpc":"2.0","id":true,"method":"ping"}`, "null", -32600},
		"long id":            {`{"jsonrpc":"2.0","id":"` + strings.Repeat("x", 1200) + `","method":"ping"}`, "null", -32600},
		"overflowing id":     {`{"jsonrpc":"2.0","id":1e999,"method":"ping"}`, "1e999", -32600},
		"overflowing number": {call(1, "get_secret", `{"label":1e999}`), "1", -32600},
		"deep":               {request(1, "ping", `{"a":`+deep(40)+`}`), "1", -32600},
		"very deep":          {request(1, "ping", `{"a":`+deep(20000)+`}`), "null", -32600},
		"params is a list":   {request(1, "tools/call", `["CANARY"]`), "1", -32600},
		"params is a text":   {request(1, "tools/call", `"CANARY"`), "1", -32600},
		"cursor":             {request(1, "tools/list", `{"cursor":"CANARY!"}`), "1", -32602},
		"modern, bare":       {request(1, "tools/list", `{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}`), "1", -32602},
		"future":             {request(1, "tools/list", `{"_meta":{"io.modelcontextprotocol/protocolVersion":"2099-01-01","io.modelcontextprotocol/clientCapabilities":{}}}`), "1", -32022},
		"modern initialize":  {request(1, "initialize", "{"+meta+"}"), "1", -32601},
		"legacy discover":    {request(1, "server/discover", "{}"), "1", -32601},
		"resources":          {request(1, "resources/read", `{"uri":"CANARY"}`), "1", -32601},
		"logging":            {request(1, "logging/setLevel", `{"level":"debug"}`), "1", -32601},
		"tasks":              {request(1, "tasks/list", `{}`), "1", -32601},
		"request and answer": {`{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}`, "1", -32600},
		"blank":              {" \t ", "", 0},
		"answer":             {`{"jsonrpc":"2.0","id":1,"result":{"CANARY":1}}`, "", 0},
		"error":              {`{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"CANARY"}}`, "", 0},
		"notification":       {`{"jsonrpc":"2.0","method":"CANARY"}`, "", 0},
		"wrong cancellation": {`{"jsonrpc":"2.0","method":"notifications/cancelled","params":["CANARY"]}`, "", 0},
	} {
		out := pipe(t, s, identity.Key{}, c.line, request(99, "ping", "{}"))
		if strings.Contains(out, "CANARY") {
			t.Errorf("%s: the answer quotes the line: %s", name, out)
		}
		var got []reply
		for _, r := range replies(t, out) {
			if string(r.ID) != "99" {
				got = append(got, r)
			} else if string(r.Result) != "{}" {
				t.Errorf("%s: the next line answers %s", name, r.raw)
			}
		}
		switch {
		case c.code == 0 && len(got) == 0:
		case len(got) != 1 || got[0].Error == nil || got[0].Error.Code != c.code || string(got[0].ID) != c.id || got[0].Error.Message == "":
			t.Errorf("%s: %s, want %d with id %s", name, out, c.code, c.id)
		}
	}
}

func TestIDsComeBackAsTheyWere(t *testing.T) {
	s := deadServer(identity.ErrExpired)
	for _, id := range []string{`0`, `-1`, `12345678901234567890123`, `1.50`, `""`, `"1"`, `"ü\u00fc\n"`, `1e3`} {
		for _, line := range []string{request(id, "ping", "{}"), call(id, "list_labels", "{}"), request(id, "nothing", "{}"), request(id, "tools/list", eras["modern"](""))} {
			if got := talk(t, s, identity.Key{}, line); len(got) != 1 || string(got[0].ID) != id {
				t.Errorf("%s gives %v", line, got)
			}
		}
	}
}

func TestLongLineIsSkipped(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	pad := func(n int) string {
		line := call(1, "get_secret", `{"label":"openai"}`)
		return line + strings.Repeat(" ", n-len(line))
	}
	got := talk(t, h.server, k, pad(1<<20+1), call(2, "get_secret", `{"label":"openai"}`), strings.Repeat("CANARY", 1<<20))
	all := map[string]int{}
	for _, r := range got {
		all[string(r.ID)]++
		if string(r.ID) == "null" && r.Error.Code != -32600 {
			t.Errorf("a long line answers %s", r.raw)
		}
	}
	if all["null"] != 2 || all["2"] != 1 || len(got) != 3 {
		t.Errorf("answers by id = %v", all)
	}
	// The control: one byte less is served.
	if got := talk(t, h.server, k, pad(1<<20)); value[map[string]any](t, got[0])["value"] != "CANARY-value" {
		t.Errorf("a line of 1 MiB answers %s", got[0].raw)
	}
}

func TestListenEndsAtOnceAfterItsAcknowledgement(t *testing.T) {
	for range 50 {
		got := talk(t, deadServer(identity.ErrExpired), identity.Key{}, request(5, "subscriptions/listen", `{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["x"]},`+meta+`}`))
		if len(got) != 2 || got[0].Method != "notifications/subscriptions/acknowledged" || string(got[1].ID) != "5" || got[1].Error != nil {
			t.Fatalf("subscriptions/listen = %+v", got)
		}
	}
}

// stuck returns a server whose calls wait until their context ends, and a
// channel with one element for each call that waits.
func stuck() (*mcp.Server, chan struct{}) {
	waiting := make(chan struct{}, 10000)
	return mcp.New(func(ctx context.Context, _ identity.Key, _ vault.Source) (*vault.Vault, error) {
		waiting <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}, mcp.Options{}), waiting
}

func TestCallsEndAtTheirDeadline(t *testing.T) {
	for tool, limit := range map[string]time.Duration{"get_secret": 10 * time.Second, "list_labels": 10 * time.Second, "get_totp_code": 45 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := stuck()
			start := time.Now()
			r := dial(t, s, identity.Key{}).ask(call(1, tool, `{"label":"x"}`))
			if got := time.Since(start); got != limit || r.refusal(t).Error != "unavailable" {
				t.Errorf("%s ended after %v with %s, want unavailable after %v", tool, got, r.raw, limit)
			}
		})
	}
}

func TestWaitingCallsHoldUpNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, waiting := stuck()
		c := dial(t, s, identity.Key{})
		for id := range 200 {
			c.send(call(id, "get_totp_code", `{"label":"x"}`))
		}
		synctest.Wait()
		if len(waiting) != 16 {
			t.Errorf("%d calls run side by side, want 16", len(waiting))
		}
		if r := c.ask(request(`"p"`, "ping", "{}")); string(r.ID) != `"p"` {
			t.Errorf("the first answer is %s", r.raw)
		}
	})
}

func TestCancellationReachesOnlyItsOwnConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := stuck()
		a, b := dial(t, s, identity.Key{}), dial(t, s, identity.Key{})
		a.send(call(3, "get_secret", `{"label":"x"}`))
		b.send(call(3, "get_secret", `{"label":"x"}`))
		synctest.Wait()
		start := time.Now()
		a.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":4}}`)
		a.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":3}}`)
		if r := a.next(); r.refusal(t).Error != "unavailable" || time.Since(start) != 0 {
			t.Errorf("the cancelled call answers %s after %v", r.raw, time.Since(start))
		}
		if r := b.next(); time.Since(start) != 10*time.Second {
			t.Errorf("the other's call 3 ended after %v: %s", time.Since(start), r.raw)
		}
	})
}

func TestEndOfInputWaitsForRunningCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := stuck()
		var out bytes.Buffer
		start := time.Now()
		var lines []string
		for id := range 40 {
			lines = append(lines, call(id, "get_totp_code", `{"label":"x"}`))
		}
		if err := s.ServeStdio(t.Context(), identity.Key{}, strings.NewReader(strings.Join(lines, "\n")), &out); err != nil {
			t.Fatal(err)
		}
		if got := len(replies(t, out.String())); got != 40 || time.Since(start) != 5*time.Second {
			t.Errorf("%d answers after %v, want all 40 after 5 s", got, time.Since(start))
		}
	})
}

func TestDeafCallsAreLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		s := mcp.New(func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) {
			<-free
			return nil, identity.ErrExpired
		}, mcp.Options{})
		var out bytes.Buffer
		start := time.Now()
		if err := s.ServeStdio(t.Context(), identity.Key{}, strings.NewReader(call(1, "list_labels", "{}")), &out); err != nil || time.Since(start) != 7*time.Second {
			t.Errorf("ServeStdio = %v after %v", err, time.Since(start))
		}
		close(free)
		synctest.Wait()
		if out.Len() != 0 {
			t.Errorf("written after ServeStdio returned: %s", &out)
		}
	})
}

func TestEndOfContextIsLikeEndOfInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := stuck()
		ctx, cancel := context.WithCancel(t.Context())
		in, feed := io.Pipe()
		var out bytes.Buffer
		done := make(chan error, 1)
		go func() { done <- s.ServeStdio(ctx, identity.Key{}, in, &out) }()
		io.WriteString(feed, call(1, "get_secret", `{"label":"x"}`)+"\n")
		synctest.Wait()
		start := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(start) != 5*time.Second || len(replies(t, out.String())) != 1 {
			t.Errorf("ServeStdio = %v after %v with %q", err, time.Since(start), &out)
		}
		io.WriteString(feed, request(2, "ping", "{}")+"\n") // read by nobody, or not served
		feed.Close()
		synctest.Wait()
		if strings.Contains(out.String(), `"id":2`) {
			t.Errorf("a line after the end was served: %s", &out)
		}
	})
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
func (f failing) Read([]byte) (int, error)  { return 0, f.err }

func TestFailuresOfThePipesAreErrors(t *testing.T) {
	s, gone := deadServer(identity.ErrExpired), errors.New("gone")
	in, feed := io.Pipe()
	go io.WriteString(feed, request(1, "ping", "{}")+"\n")
	if err := s.ServeStdio(t.Context(), identity.Key{}, in, failing{gone}); !errors.Is(err, gone) {
		t.Errorf("ServeStdio without a reader = %v", err)
	}
	if err := s.ServeStdio(t.Context(), identity.Key{}, failing{gone}, io.Discard); !errors.Is(err, gone) {
		t.Errorf("ServeStdio without a writer = %v", err)
	}
	feed.Close()
	if err := s.ServeStdio(t.Context(), identity.Key{}, strings.NewReader(request(1, "ping", "{}")), failing{gone}); !errors.Is(err, gone) {
		t.Errorf("ServeStdio whose last answer is lost = %v", err)
	}
}

// fuzzHouse is a real vault for fuzz targets, and the key of the agent that
// is asked.
func fuzzHouse(f *testing.F) (*house, identity.Key) {
	h := newHouse(f)
	k := h.agent("a", identity.Grant{})
	used := secret("used", "CANARY-used")
	used.Exposure = vault.ExposeUse
	other := h.agent("b", identity.Grant{})
	h.put(k, secret("openai", "CANARY-openai"), used, seeded("github"))
	h.put(other, secret("openai", "CANARY-other"), secret("theirs", "CANARY-theirs"))
	return h, k
}

// served checks what a connection answered to in: JSON lines, no panic, no
// seed, and a value only in the answer to get_secret of its label.
func (h *house) served(t *testing.T, k identity.Key, in []byte) []reply {
	t.Helper()
	var out bytes.Buffer
	start := time.Now()
	if err := h.server.ServeStdio(t.Context(), k, bytes.NewReader(in), &out); err != nil {
		t.Fatalf("ServeStdio: %v", err)
	}
	if took := time.Since(start); took > drain {
		t.Fatalf("%q took %v", in, took)
	}
	all := replies(t, out.String())
	for _, r := range all {
		if !strings.Contains(r.raw, "CANARY") || bytes.Contains(in, []byte("CANARY")) {
			continue
		}
		if v := value[map[string]any](t, r); v["label"] != "openai" || v["value"] != "CANARY-openai" {
			t.Fatalf("%q gives %s", in, r.raw)
		}
	}
	if s := out.String(); strings.Contains(s, seed) || strings.Contains(s, "goroutine ") || strings.Contains(h.log.String(), "panic") {
		t.Fatalf("%q gives %s\n%s", in, s, h.log)
	}
	return all
}

// drain is how long a connection waits at its end for calls that hang.
const drain = 5 * time.Second

// FuzzStdio feeds arbitrary bytes to a server.
func FuzzStdio(f *testing.F) {
	h, k := fuzzHouse(f)
	for _, line := range []string{
		call(1, "get_secret", `{"label":"openai"}`), call(2, "get_secret", `{"label":"used","field":"value"}`), call(3, "get_totp_code", `{"label":"github","min_remaining":0}`),
		call(4, "list_labels", `{"prefix":""}`), request(5, "initialize", `{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}`),
		request(6, "tools/list", eras["modern"]("")), request(7, "server/discover", "{"+meta+"}"), request(8, "tools/call", eras["modern"](`"name":"get_secret","arguments":{"label":"openai"}`)),
		request(9, "subscriptions/listen", `{"notifications":{},`+meta+`}`), `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`, "[]", "\x00\n\xff\n{}", call(10, "get_secret", `{"label":"theirs"}`),
	} {
		f.Add([]byte(line))
		f.Add([]byte(line + "\n" + line))
	}
	f.Fuzz(func(t *testing.T, in []byte) { h.served(t, k, in) })
}

// FuzzArguments calls every tool with arbitrary arguments: each call has one
// answer.
func FuzzArguments(f *testing.F) {
	h, k := fuzzHouse(f)
	for _, arguments := range []string{
		`{"label":"openai"}`, `{"name":"openai","field":"value"}`, `{"label":"github","min_remaining":10}`, `{"prefix":"o"}`, `null`, `[]`, `"x"`, `{"label":{"a":[1]}}`,
		`{"label":"openai","label":"theirs"}`, `{"label":"\u006fpenai"}`, `{"label":"openai\u0000"}`, `{"min_remaining":1e2,"label":"github"}`, `{"":"","label":"used"}`,
	} {
		f.Add(arguments)
	}
	f.Fuzz(func(t *testing.T, arguments string) {
		if strings.ContainsAny(arguments, "\n") {
			t.Skip("more than one line")
		}
		for id, tool := range []string{"get_secret", "get_totp_code", "list_labels"} {
			line := `{"jsonrpc":"2.0","id":` + fmt.Sprint(id) + `,"method":"tools/call","params":{"name":"` + tool + `","arguments":` + arguments + `}}`
			got := slices.DeleteFunc(h.served(t, k, []byte(line)), func(r reply) bool { return r.Method != "" })
			if len(got) != 1 {
				t.Fatalf("%s %q has %d answers", tool, arguments, len(got))
			}
		}
	})
}
