package mcp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// site is a house behind a real HTTP server.
type site struct {
	*house
	t      testing.TB
	front  *mcp.Server
	client *http.Client
	url    string
	dial   func() (net.Conn, error)
	seen   *watcher
	close  func()
}

// watcher is an Observer that counts.
type watcher struct {
	mu       sync.Mutex
	requests map[string]int // by path and status
	calls    map[string]int // by tool and word
	streams  int
}

func (w *watcher) Request(path string, status int, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests[fmt.Sprintf("%s %d", path, status)]++
}

func (w *watcher) Call(tool string, word vault.Word, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[fmt.Sprintf("%s %s", tool, word)]++
}

func (w *watcher) Streams(delta int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.streams += delta
}

func (w *watcher) open() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams
}

// open serves the house on a port of 127.0.0.1.
func (h *house) open(t testing.TB, o mcp.HTTPOptions) *site {
	t.Helper()
	return h.openWith(t, h.keeper.Unlock, o)
}

func (h *house) openWith(t testing.TB, u mcp.Unlock, o mcp.HTTPOptions) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	return h.serveOn(t, u, o, l, "http://"+addr, func() (net.Conn, error) { return net.Dial("tcp", addr) })
}

// openInside serves the house without a network, for bubbles of synctest.
func (h *house) openInside(t testing.TB, o mcp.HTTPOptions) *site {
	t.Helper()
	l := &inside{conns: make(chan net.Conn), closed: make(chan struct{})}
	return h.serveOn(t, h.keeper.Unlock, o, l, "http://localhost", l.dial)
}

func (h *house) serveOn(t testing.TB, u mcp.Unlock, o mcp.HTTPOptions, l net.Listener, url string, dial func() (net.Conn, error)) *site {
	seen := &watcher{requests: map[string]int{}, calls: map[string]int{}}
	if o.Observe == nil {
		o.Observe = seen
	}
	s := &site{house: h, t: t, front: h.serveHTTP(u, o), url: url, dial: dial, seen: seen}
	web := &http.Server{Handler: s.front.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, MaxHeaderBytes: 16 << 10}
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(l) }()
	transport := &http.Transport{
		DialContext:         func(context.Context, string, string) (net.Conn, error) { return dial() },
		MaxIdleConnsPerHost: 256,
	}
	s.client = &http.Client{Transport: transport}
	s.close = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.front.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		transport.CloseIdleConnections()
		web.Close()
		<-ended
	})
	t.Cleanup(s.close)
	return s
}

// inside is a listener without a network.
type inside struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *inside) dial() (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *inside) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *inside) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (l *inside) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// answered is an HTTP answer.
type answered struct {
	status int
	header http.Header
	body   string
}

// reply reads the answer as a JSON-RPC message.
func (a answered) reply(t testing.TB) reply {
	t.Helper()
	if kind := a.header.Get("Content-Type"); kind != "application/json" {
		t.Fatalf("%d with Content-Type %q, want JSON: %s", a.status, kind, a.body)
	}
	return replies(t, a.body+"\n")[0]
}

// post posts a body with a key. header holds names and values by turns; a
// value of "" takes a header away.
func (s *site) post(path string, k identity.Key, body string, header ...string) answered {
	s.t.Helper()
	a, err := s.try(path, k, body, header...)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *site) try(path string, k identity.Key, body string, header ...string) (answered, error) {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.url+path, strings.NewReader(body))
	if err != nil {
		return answered{}, err
	}
	setHeaders(r, k, header...)
	resp, err := s.client.Do(r)
	if err != nil {
		return answered{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answered{resp.StatusCode, resp.Header, string(text)}, err
}

func setHeaders(r *http.Request, k identity.Key, header ...string) {
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	if !k.IsZero() {
		r.Header.Set("Authorization", "Bearer "+k.Reveal())
	}
	for i := 0; i < len(header); i += 2 {
		if r.Header.Set(header[i], header[i+1]); header[i+1] == "" {
			r.Header.Del(header[i])
		}
	}
}

// modernHeaders are those that revision 2026-07-28 wants beside a body.
func modernHeaders(method, params string) []string {
	var p struct{ Name string }
	_ = json.Unmarshal([]byte(params), &p)
	return []string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", method, "Mcp-Name", p.Name}
}

// wires are the transports and eras that the endpoint is asked by.
var wires = []string{"mcp legacy", "mcp modern", "sse legacy", "sse modern"}

// asker asks one request and returns its answer.
type asker func(id any, method, params string) reply

// wire returns the way to ask that name says; params are without _meta.
func (s *site) wire(t testing.TB, name string, k identity.Key) asker {
	t.Helper()
	transport, era, _ := strings.Cut(name, " ")
	if transport == "sse" {
		st := s.stream(t, k)
		return func(id any, method, params string) reply {
			t.Helper()
			return st.ask(t, request(id, method, eras[era](params)))
		}
	}
	return func(id any, method, params string) reply {
		t.Helper()
		params = eras[era](params)
		var header []string
		if era == "modern" {
			header = modernHeaders(method, params)
		}
		return s.post("/mcp", k, request(id, method, params), header...).reply(t)
	}
}

// get returns the params of a get_secret call.
func get(label string) string {
	return fmt.Sprintf(`"name":"get_secret","arguments":{"label":%q}`, label)
}

func soaking() bool { return os.Getenv("SOLEKEY_SOAK") != "" && os.Getenv("SOLEKEY_SOAK") != "0" }

// eventually waits until ok, for at most 10 s.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s it is still not so: %s", what)
		}
	}
}

// settled waits until no more goroutines run than before.
func settled(t testing.TB, before int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before it were %d:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

func TestEveryTransportServesBothEras(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-<openai>&"))
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	for _, name := range wires {
		ask := s.wire(t, name, k)
		if strings.HasSuffix(name, "legacy") {
			for _, version := range []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "CANARY"} {
				r := ask(1, "initialize", `"protocolVersion":"`+version+`","capabilities":{},"clientInfo":{"name":"t","version":"1"}`)
				got := decode[struct{ ProtocolVersion string }](t, string(r.Result)).ProtocolVersion
				if want := version; got != want && (want < "2026" || got != "2025-11-25") {
					t.Errorf("%s: initialize %s = %s", name, version, r.raw)
				}
			}
		} else if r := ask(`"d"`, "server/discover", ""); !strings.Contains(string(r.Result), `"2026-07-28"`) || string(r.ID) != `"d"` {
			t.Errorf("%s: server/discover = %s", name, r.raw)
		}
		if r := ask(7, "tools/list", ""); strings.Count(string(r.Result), `"inputSchema"`) != 3 {
			t.Errorf("%s: tools/list = %s", name, r.raw)
		}
		r := ask(`"c"`, "tools/call", get("openai"))
		if v := value[map[string]any](t, r); v["value"] != "CANARY-<openai>&" || string(r.ID) != `"c"` {
			t.Errorf("%s: get_secret = %s", name, r.raw)
		}
		if r := ask(8, "tools/call", get("openaj")); r.refusal(t).Error != "not_found" {
			t.Errorf("%s: get_secret of an absent label = %s", name, r.raw)
		}
		if r := ask(9, "tools/call", `"name":"get_secret","arguments":"CANARY"`); r.refusal(t).Error != "bad_request" || strings.Contains(r.raw, "CANARY") {
			t.Errorf("%s: arguments that are a text = %s", name, r.raw)
		}
		if r := ask(10, "tools/call", `"name":"unknown"`); r.Error == nil || r.Error.Code != -32602 {
			t.Errorf("%s: an unknown tool = %s", name, r.raw)
		}
	}
}

func TestKeyShowsOnlyItsTools(t *testing.T) {
	h := newHouse(t)
	all := h.agent("a", identity.Grant{})
	narrow, err := h.keeper.AddKey(t.Context(), all.Identity(), all, "narrow", identity.Grant{Scopes: identity.Scopes(identity.List)})
	if err != nil {
		t.Fatal(err)
	}
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	for _, name := range wires {
		for k, want := range map[*identity.Key]int{&all: 3, &narrow: 1} {
			ask := s.wire(t, name, *k)
			r := ask(1, "tools/list", "")
			if got := strings.Count(string(r.Result), `"inputSchema"`); got != want {
				t.Errorf("%s: %d tools, want %d", name, got, want)
			}
			if r := ask(2, "tools/call", get("x")); (r.Error != nil) != (want == 1) {
				t.Errorf("%s: get_secret with %d tools = %s", name, want, r.raw)
			}
		}
	}
}

// Every rule of revision 2026-07-28 about headers, and what else makes a
// request modern or not. The first row is the control of all others.
func TestModernHeaders(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	encoded := func(name string) string { return "=?base64?" + base64.StdEncoding.EncodeToString([]byte(name)) + "?=" }
	future := strings.Replace(meta, "2026-07-28", "2099-01-01", 1)
	good := request(1, "tools/call", eras["modern"](get("openai")))
	for name, c := range map[string]struct {
		body   string
		header []string // over the right ones
		status int
		code   int // 0: the value
	}{
		"right":                     {good, nil, 200, 0},
		"name in base64":            {good, []string{"Mcp-Name", encoded("get_secret")}, 200, 0},
		"body legacy, no headers":   {call(1, "get_secret", `{"label":"openai"}`), []string{"MCP-Protocol-Version", "", "Mcp-Method", "", "Mcp-Name", ""}, 200, 0},
		"body legacy, old header":   {call(1, "get_secret", `{"label":"openai"}`), []string{"MCP-Protocol-Version", "2025-06-18", "Mcp-Method", "", "Mcp-Name", ""}, 200, 0},
		"no version header":         {good, []string{"MCP-Protocol-Version", ""}, 400, -32020},
		"no headers at all":         {good, []string{"MCP-Protocol-Version", "", "Mcp-Method", "", "Mcp-Name", ""}, 400, -32020},
		"other version header":      {good, []string{"MCP-Protocol-Version", "2025-11-25"}, 400, -32020},
		"future version header":     {good, []string{"MCP-Protocol-Version", "2099-01-01"}, 400, -32020},
		"no version in the body":    {call(1, "get_secret", `{"label":"openai"}`), nil, 400, -32602},
		"version is a number":       {strings.Replace(good, `"2026-07-28"`, `20260728`, 1), nil, 400, -32602},
		"no method header":          {good, []string{"Mcp-Method", ""}, 400, -32020},
		"other method header":       {good, []string{"Mcp-Method", "tools/list"}, 400, -32020},
		"method in capitals":        {good, []string{"Mcp-Method", "Tools/Call"}, 400, -32020},
		"method in base64":          {good, []string{"Mcp-Method", encoded("tools/call")}, 400, -32020},
		"no name header":            {good, []string{"Mcp-Name", ""}, 400, -32020},
		"other name header":         {good, []string{"Mcp-Name", "list_labels"}, 400, -32020},
		"other name in base64":      {good, []string{"Mcp-Name", encoded("list_labels")}, 400, -32020},
		"broken base64":             {good, []string{"Mcp-Name", "=?base64?%%%?="}, 400, -32020},
		"canary as a name header":   {good, []string{"Mcp-Name", "CANARY"}, 400, -32020},
		"resumption":                {good, []string{"Last-Event-ID", "1"}, 400, -32020},
		"unknown version":           {strings.Replace(good, "2026-07-28", "2099-01-01", 1), []string{"MCP-Protocol-Version", "2099-01-01"}, 400, -32022},
		"unknown version, list":     {request(1, "tools/list", "{"+future+"}"), []string{"MCP-Protocol-Version", "2099-01-01", "Mcp-Method", "tools/list", "Mcp-Name", ""}, 400, -32022},
		"bare _meta":                {request(1, "tools/list", `{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}`), []string{"Mcp-Method", "tools/list", "Mcp-Name", ""}, 400, -32602},
		"initialize":                {request(1, "initialize", "{"+meta+"}"), []string{"Mcp-Method", "initialize", "Mcp-Name", ""}, 404, -32601},
		"ping":                      {request(1, "ping", "{"+meta+"}"), []string{"Mcp-Method", "ping", "Mcp-Name", ""}, 404, -32601},
		"logging":                   {request(1, "logging/setLevel", `{"level":"debug",`+meta+`}`), []string{"Mcp-Method", "logging/setLevel", "Mcp-Name", ""}, 404, -32601},
		"resources":                 {request(1, "resources/list", "{"+meta+"}"), []string{"Mcp-Method", "resources/list", "Mcp-Name", ""}, 404, -32601},
		"resources/subscribe":       {request(1, "resources/subscribe", `{"uri":"CANARY",`+meta+`}`), []string{"Mcp-Method", "resources/subscribe", "Mcp-Name", ""}, 404, -32601},
		"tasks":                     {request(1, "tasks/list", "{"+meta+"}"), []string{"Mcp-Method", "tasks/list", "Mcp-Name", ""}, 404, -32601},
		"no such method":            {request(1, "CANARY", "{"+meta+"}"), []string{"Mcp-Method", "CANARY", "Mcp-Name", ""}, 404, -32601},
		"no such tool":              {request(1, "tools/call", eras["modern"](`"name":"unknown"`)), []string{"Mcp-Name", "unknown"}, 400, -32602},
		"no such tool with a blank": {request(1, "tools/call", eras["modern"](`"name":"CANARY x"`)), []string{"Mcp-Name", "CANARY x"}, 400, -32602},
	} {
		a := s.post("/mcp", k, c.body, append(modernHeaders("tools/call", eras["legacy"](get("openai"))), c.header...)...)
		r := a.reply(t)
		if a.status != c.status {
			t.Errorf("%s: status %d, want %d: %s", name, a.status, c.status, a.body)
		}
		switch {
		case c.code == 0:
			if value[map[string]any](t, r)["value"] != "CANARY-value" {
				t.Errorf("%s: %s", name, a.body)
			}
			continue
		case r.Error == nil || r.Error.Code != c.code || string(r.ID) != "1":
			t.Errorf("%s: %s, want %d with id 1", name, a.body, c.code)
		}
		if strings.Contains(a.body, "CANARY") {
			t.Errorf("%s: the answer quotes the request: %s", name, a.body)
		}
		if c.code == -32022 {
			got := decode[struct {
				Error struct{ Data struct{ Supported []string } }
			}](t, a.body)
			if !slices.Contains(got.Error.Data.Supported, "2026-07-28") {
				t.Errorf("%s: the error names no supported version: %s", name, a.body)
			}
		}
	}
}

// TestARequestMeansOneThing is a client whose gateway looks into requests and
// lets list_labels through: it hides get_secret where our decoder finds it and
// others do not, behind a name that is given twice or in other letters, or
// behind a header that is. None of these is served, with the old revisions or
// the modern one.
func TestARequestMeansOneThing(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	st := s.stream(t, k)
	const args = `"arguments":{"label":"openai"}`
	secretly := `"params":{"name":"get_secret",` + args + `}`
	say := func(members string) string { return `{"jsonrpc":"2.0","id":1,` + members + `}` }
	for name, body := range map[string]string{
		"method twice":             say(`"method":"tools/list","method":"tools/call",` + secretly),
		"method in capitals":       say(`"Method":"tools/call",` + secretly),
		"method twice, one large":  say(`"method":"tools/list","METHOD":"tools/call",` + secretly),
		"method twice, escaped":    say(`"method":"tools/list","\u006dethod":"tools/call",` + secretly),
		"params twice":             say(`"method":"tools/call","params":{"name":"list_labels"},` + secretly),
		"params twice, one large":  say(`"method":"tools/call","params":{"name":"list_labels"},"Params":{"name":"get_secret",` + args + `}`),
		"params in two halves":     say(`"method":"tools/call",` + secretly + `,"params":{}`),
		"name twice":               say(`"method":"tools/call","params":{"name":"list_labels","name":"get_secret",` + args + `}`),
		"name twice, one large":    say(`"method":"tools/call","params":{"name":"list_labels","Name":"get_secret",` + args + `}`),
		"name twice, escaped":      say(`"method":"tools/call","params":{"name":"list_labels","\u004eame":"get_secret",` + args + `}`),
		"arguments twice":          say(`"method":"tools/call","params":{"name":"get_secret","arguments":{},` + args + `}`),
		"arguments with a long s":  say(`"method":"tools/call","params":{"name":"get_secret","arguments":{},"argument\u017f":{"label":"openai"}}`),
		"id twice":                 say(`"ID":2,"method":"tools/call",` + secretly),
		"answer that is a request": say(`"Result":null,"method":"tools/call",` + secretly),
		"blanks about":             " { \"jsonrpc\" : \"2.0\" , \"id\" : [ ] , \"id\" : 1 , \"method\" : \"tools/call\" , " + secretly + " } ",
	} {
		for _, path := range []string{"/mcp", st.path} {
			if a := s.post(path, k, body); a.status != 400 || strings.Contains(a.body, "CANARY") {
				t.Errorf("%s on %s = %d %s", name, path, a.status, a.body)
			}
		}
	}
	modern := func(members string) string { return request(1, "tools/call", "{"+members+","+meta+"}") }
	header := modernHeaders("tools/call", eras["legacy"](get("openai")))
	for name, c := range map[string]struct {
		body   string
		header []string
	}{
		"name twice":          {modern(`"Name":"list_labels",` + get("openai")), nil},
		"params in halves":    {say(`"method":"tools/call","params":{` + get("openai") + `},"params":{"name":"get_secret",` + meta + `}`), nil},
		"_meta twice":         {modern(`"_meta":{},` + get("openai")), nil},
		"version twice":       {strings.Replace(modern(get("openai")), `"_meta":{`, `"_meta":{"io.modelcontextprotocol/protocolversion":"2025-11-25",`, 1), nil},
		"name header twice":   {modern(get("openai")), []string{"Mcp-Name", "list_labels"}},
		"method header twice": {modern(get("openai")), []string{"Mcp-Method", "ping"}},
	} {
		r, err := http.NewRequest(http.MethodPost, s.url+"/mcp", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		setHeaders(r, k, header...)
		for i := 0; i < len(c.header); i += 2 {
			r.Header.Add(c.header[i], c.header[i+1])
		}
		resp, err := s.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 400 || strings.Contains(string(text), "CANARY") {
			t.Errorf("modern, %s = %d %s %v", name, resp.StatusCode, text, err)
		}
	}
	// The control: names that only look alike, and the same ones elsewhere.
	for name, body := range map[string]string{
		"plain":         say(`"method":"tools/call",` + secretly),
		"others twice":  say(`"x":1,"x":{"method":1},"method":"tools/call",` + secretly),
		"names in text": say(`"x":"\"method\":","method":"tools/call",` + secretly),
		"deeper":        say(`"method":"tools/call","params":{"name":"get_secret","_meta":{"name":"a","Name":["b",{"method":"c","method":""}]},` + args + `}`),
	} {
		if v := value[map[string]any](t, s.post("/mcp", k, body).reply(t)); v["value"] != "CANARY-value" {
			t.Errorf("%s = %v", name, v)
		}
	}
}

func TestLegacyVersionHeader(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	hello := request(1, "initialize", `{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}`)
	for version, status := range map[string]int{"": 200, "2024-11-05": 200, "2025-03-26": 200, "2025-06-18": 200, "2025-11-25": 200, "1999-01-01": 400, "CANARY": 400, "2025-06-19": 400} {
		a := s.post("/mcp", k, request(2, "tools/list", "{}"), "MCP-Protocol-Version", version)
		if version == "CANARY" { // reads as a revision later than all dates
			if a.status != 400 || strings.Contains(a.body, "CANARY") {
				t.Errorf("tools/list with version %q = %d %s", version, a.status, a.body)
			}
			continue
		}
		if a.status != status || (status == 400) != (a.reply(t).Error != nil) {
			t.Errorf("tools/list with version %q = %d %s, want %d", version, a.status, a.body, status)
		}
		if a := s.post("/mcp", k, hello, "MCP-Protocol-Version", version); a.status != 200 || a.reply(t).Error != nil {
			t.Errorf("initialize with version %q = %d %s", version, a.status, a.body)
		}
	}
	if a := s.post("/mcp", k, request(2, "nothing", "{}")); a.status != 200 || a.reply(t).Error.Code != -32601 {
		t.Errorf("an unknown method = %d %s, want 200 with -32601 as legacy clients read it", a.status, a.body)
	}
	if a := s.post("/mcp", k, request(2, "tools/list", "{}"), "Last-Event-ID", "4", "Mcp-Method", "CANARY", "Mcp-Name", "CANARY"); a.status != 200 {
		t.Errorf("headers of the other era = %d %s", a.status, a.body)
	}
}

func TestMessagesWithoutAnswerAreAccepted(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	st := s.stream(t, k)
	for _, body := range []string{
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		`{"jsonrpc":"2.0","method":"notifications/initialized","params":{` + meta + `}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":["CANARY"]}`,
		`{"jsonrpc":"2.0","method":"tools/call","params":{"name":"get_secret"}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"CANARY":1}}`,
		`{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"CANARY"}}`,
	} {
		for _, path := range []string{"/mcp", st.path} {
			for _, header := range [][]string{nil, {"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "CANARY"}} {
				if a := s.post(path, k, body, header...); a.status != 202 || a.body != "" {
					t.Errorf("%s of %s = %d %q", path, body, a.status, a.body)
				}
			}
		}
	}
	// The control: the stream has heard nothing of it, and still hears.
	if r := st.ask(t, request(99, "ping", "{}")); string(r.ID) != "99" {
		t.Errorf("the first event is %s", r.raw)
	}
}

func TestListenIsAShortStreamOnEveryTransport(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	params := `{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["x"]},` + meta + `}`
	body := request(5, "subscriptions/listen", params)
	st := s.stream(t, k)
	check := func(where string, got []reply) {
		t.Helper()
		if len(got) != 2 || got[0].Method != "notifications/subscriptions/acknowledged" || string(got[1].ID) != "5" || got[1].Error != nil {
			t.Errorf("%s: subscriptions/listen = %+v", where, got)
		}
	}
	for range 50 {
		a := s.post("/mcp", k, body, modernHeaders("subscriptions/listen", params)...)
		if a.status != 200 || a.header.Get("Content-Type") != "text/event-stream" || a.header.Get("X-Accel-Buffering") != "no" || a.header.Get("Cache-Control") != "no-store" {
			t.Fatalf("subscriptions/listen = %d %v", a.status, a.header)
		}
		var got []reply
		for _, e := range readEvents(t, bufio.NewReader(strings.NewReader(a.body))) {
			got = append(got, replies(t, e.data+"\n")...)
		}
		check("/mcp", got)
		s.post(st.path, k, body)
		check("/sse", []reply{st.reply(t), st.reply(t)})
	}
}

func TestIDsComeBackAsTheyWereOverHTTP(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	for _, name := range wires {
		ask := s.wire(t, name, k)
		for _, id := range []string{`0`, `-1`, `12345678901234567890123`, `1.50`, `""`, `"1"`, `"ü"`, `1e3`, `"` + strings.Repeat("x", 1022) + `"`} {
			for _, method := range []string{"tools/list", "nothing"} {
				if got := ask(id, method, ""); string(got.ID) != id {
					t.Errorf("%s: id %s of %s comes back as %s", name, id, method, got.raw)
				}
			}
			if got := ask(id, "tools/call", get("x")); string(got.ID) != id {
				t.Errorf("%s: id %s of a call comes back as %s", name, id, got.raw)
			}
		}
	}
}

func TestKeyIsProvedOnEveryRequest(t *testing.T) {
	h := newHouse(t)
	for _, name := range wires {
		k := h.agent("a-"+strings.ReplaceAll(name, " ", "-"), identity.Grant{})
		h.put(k, secret("openai", "CANARY-value"))
		s := h.open(t, mcp.HTTPOptions{Loopback: true})
		ask := s.wire(t, name, k)
		if v := value[map[string]any](t, ask(1, "tools/call", get("openai"))); v["value"] != "CANARY-value" {
			t.Fatalf("%s: get_secret = %v", name, v)
		}
		st := s.stream(t, k)
		if _, err := h.keeper.Revoke(t.Context(), k.Identity(), vault.Revocation{}); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/mcp", st.path} {
			a := s.post(path, k, call(2, "get_secret", `{"label":"openai"}`))
			if got := decode[refusal](t, a.body); a.status != 401 || got.Error != "revoked" || !strings.HasPrefix(got.Hint, "Stop.") {
				t.Errorf("%s after revoke = %d %s", path, a.status, a.body)
			}
		}
		s.close()
	}
}

// A running call goes on to its end; what waited is judged again, so the
// value stays inside.
func TestRevokeDuringACallKeepsTheValue(t *testing.T) {
	h := newHouse(t)
	for _, transport := range []string{"/mcp", "/sse"} {
		k := h.agent("a"+transport[1:], identity.Grant{})
		h.put(k, secret("openai", "CANARY-value"))
		s := h.open(t, mcp.HTTPOptions{Loopback: true})
		s.post("/mcp", k, call(0, "get_secret", `{"label":"openai"}`)) // the value leaves the mailbox
		gate := h.shut()
		got := make(chan string, 1)
		go func() {
			if transport == "/sse" {
				st := s.stream(t, k)
				s.post(st.path, k, call(1, "get_secret", `{"label":"openai"}`))
				text := ""
				for e := range st.events {
					text += e.data
				}
				got <- text
				return
			}
			got <- s.post("/mcp", k, call(1, "get_secret", `{"label":"openai"}`)).body
		}()
		<-gate.waiting
		h.backend.gate.Store(nil) // the line of the revocation is not held up
		if _, err := h.keeper.Revoke(t.Context(), k.Identity(), vault.Revocation{}); err != nil {
			t.Fatal(err)
		}
		close(gate.open)
		if text := <-got; strings.Contains(text, "CANARY") || transport == "/mcp" && !strings.Contains(text, "revoked") {
			t.Errorf("%s: a call that waited through a revocation answers %s", transport, text)
		}
		s.close()
	}
}

func TestClientThatLeavesEndsItsCall(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	before := runtime.NumGoroutine()
	s := h.open(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	gate := h.shut()
	const callers = 200 // more than may run at once
	for range callers / 50 {
		var all sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 50 {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/mcp", strings.NewReader(call(1, "get_secret", `{"label":"openai"}`)))
			if err != nil {
				t.Fatal(err)
			}
			setHeaders(r, k)
			all.Go(func() {
				if resp, err := s.client.Do(r); !errors.Is(err, context.Canceled) {
					t.Errorf("a call at the gate answers %v, %v", resp, err)
				}
			})
		}
		for range 50 {
			<-gate.waiting
		}
		cancel()
		all.Wait()
	}
	eventually(t, "every call has ended", func() bool {
		s.seen.mu.Lock()
		defer s.seen.mu.Unlock()
		return s.seen.calls["get_secret unavailable"] == callers
	})
	h.lift(gate)
	// The control: there is room for a call.
	if a := s.post("/mcp", k, call(1, "get_secret", `{"label":"openai"}`)); !strings.Contains(a.body, "CANARY-value") {
		t.Errorf("after %d abandoned calls: %s", callers, a.body)
	}
	s.close()
	settled(t, before)
}

func TestObserverHearsOfEverythingWithoutNames(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	s.post("/mcp", k, call(1, "get_secret", `{"label":"openai"}`))
	s.post("/mcp", k, call(1, "get_secret", `{"label":"CANARY"}`))
	s.post("/mcp", identity.Key{}, call(1, "get_secret", `{"label":"CANARY"}`))
	s.post("/CANARY", k, "")
	st := s.stream(t, k)
	st.ask(t, call(1, "list_labels", `{}`))
	if got := s.seen.open(); got != 1 {
		t.Errorf("%d streams are open, want 1", got)
	}
	st.leave()
	eventually(t, "no stream is open", func() bool { return s.seen.open() == 0 })
	s.close()
	want := map[string]int{"/mcp 200": 2, "/mcp 401": 1, "other 404": 1, "/sse 200": 1, "/message 202": 1}
	if diff := cmp.Diff(want, s.seen.requests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"get_secret ": 1, "get_secret not_found": 1, "list_labels ": 1}, s.seen.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// direct asks the handler without a network.
func direct(h http.Handler, k identity.Key, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Host = "localhost"
	setHeaders(r, k, header...)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// FuzzMessage posts arbitrary bodies with the right key: an answer is JSON-RPC
// under the id that was given, and holds a value only if it was asked for.
func FuzzMessage(f *testing.F) {
	h, k := fuzzHouse(f)
	handler := h.serveHTTP(h.keeper.Unlock, mcp.HTTPOptions{Loopback: true, Rate: -1}).Handler()
	for _, body := range []string{
		call(1, "get_secret", `{"label":"openai"}`), call(`"<id>"`, "get_secret", `{"label":"used"}`), call(-3.5, "list_labels", `{}`), request(6, "tools/list", eras["modern"]("")),
		request(7, "server/discover", "{"+meta+"}"), request(8, "tools/call", eras["modern"](get("openai"))), request(9, "subscriptions/listen", `{"notifications":{},`+meta+`}`),
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`, `[]`, `[{}]`, `{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}`, `{"jsonrpc":"2.0","ID":1,"METHOD":"ping"}`,
		`{"jsonrpc":"2.0","id":null,"method":"ping"}`, "\xef\xbb\xbf{}", "{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"ping\"}", strings.Repeat("[", 40), "", "null",
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"openai"}},"params":{}}`,
	} {
		f.Add([]byte(body), "")
		f.Add([]byte(body), "2026-07-28")
	}
	f.Fuzz(func(t *testing.T, body []byte, version string) {
		var header []string
		var m struct {
			ID     json.RawMessage
			Method string
			Params json.RawMessage
		}
		bad := json.Unmarshal(body, &m)
		if version != "" {
			header = modernHeaders(m.Method, string(m.Params))
		}
		w := direct(handler, k, "/mcp", string(body), header...)
		if strings.Contains(h.log.String(), "panic") {
			t.Fatalf("%q panics: %s", body, h.log)
		}
		text := w.Body.String()
		if w.Code == http.StatusAccepted && text == "" {
			return
		}
		answers := []string{text}
		if w.Header().Get("Content-Type") == "text/event-stream" {
			answers = nil
			for _, e := range readEvents(t, bufio.NewReader(strings.NewReader(text))) {
				answers = append(answers, e.data)
			}
		}
		for _, text := range answers {
			if decode[map[string]any](t, text)["jsonrpc"] != "2.0" {
				if identity.LooksLikeKey(string(body)) || len(body) > 256<<10 {
					return
				}
				t.Fatalf("%q answers %s", body, text)
			}
			r := replies(t, text+"\n")[0]
			if r.Method == "" && string(r.ID) != "null" && (bad != nil && m.ID == nil || !sameJSON(m.ID, r.ID)) {
				t.Fatalf("%q answers under another id: %s", body, text)
			}
			if strings.Contains(text, "CANARY") && !bytes.Contains(body, []byte("CANARY")) {
				if v := value[map[string]any](t, r); v["label"] != "openai" || v["value"] != "CANARY-openai" {
					t.Fatalf("%q gives %s", body, text)
				}
			}
		}
	})
}

// sameJSON compares two JSON values, numbers by their text.
func sameJSON(a, b []byte) bool {
	read := func(text []byte) (v any) {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if d.Decode(&v) != nil {
			return nil
		}
		return v
	}
	return cmp.Equal(read(a), read(b))
}
