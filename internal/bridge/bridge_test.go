package bridge_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/internal/bridge"
)

// canary is the bearer of every test. It may reach the endpoint and nothing
// else.
const canary = "slk1_CANARY0bearer0of0this0test"

// TestMain makes the certificate of httptest a trusted one, as SSL_CERT_FILE
// does for a private authority, before anything reads the system's roots.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "bridge")
	if err != nil {
		panic(err)
	}
	s := httptest.NewTLSServer(http.NotFoundHandler())
	path := filepath.Join(dir, "roots.pem")
	err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600)
	s.Close()
	if err != nil {
		panic(err)
	}
	_ = os.Setenv("SSL_CERT_FILE", path)
	_ = os.Setenv("SSL_CERT_DIR", dir)
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// ownRoots reports whether SSL_CERT_FILE counts on this system.
func ownRoots() bool { return runtime.GOOS != "darwin" && runtime.GOOS != "windows" }

func mustParse(t testing.TB, url string) bridge.Endpoint {
	t.Helper()
	e, err := bridge.ParseEndpoint(url)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// options leads to an endpoint with the canary as the bearer.
func options(t testing.TB, url string) bridge.Options {
	return bridge.Options{Endpoint: mustParse(t, url), Key: func() (string, *bridge.Refusal) { return canary, nil }, Version: "test"}
}

// play runs a bridge on these lines to its end and returns what it wrote. The
// bearer must be in none of it, nor in the log.
func play(t *testing.T, o bridge.Options, lines ...string) []string {
	t.Helper()
	var out, log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if err := bridge.Serve(t.Context(), o, strings.NewReader(strings.Join(lines, "\n")+"\n"), &out); err != nil {
		t.Fatalf("Serve = %v", err)
	}
	for what, text := range map[string]string{"output": out.String(), "log": log.String()} {
		if strings.Contains(text, canary) {
			t.Errorf("the bearer is in the %s: %s", what, text)
		}
	}
	var got []string
	for l := range strings.Lines(out.String()) {
		l = strings.TrimSuffix(l, "\n")
		if !json.Valid([]byte(l)) {
			t.Errorf("not JSON: %q", l)
		}
		got = append(got, l)
	}
	return got
}

// one is play of a single request with one answer.
func one(t *testing.T, o bridge.Options, line string) string {
	t.Helper()
	got := play(t, o, line)
	if len(got) != 1 {
		t.Fatalf("%d answers to %s: %q", len(got), line, got)
	}
	return got[0]
}

// refusal is what a tools/call is told.
type refusal struct {
	Error   string `json:"error"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
	Retry   int64  `json:"retry_after_ms"`
}

// told reads a tool error.
func told(t *testing.T, line string) refusal {
	t.Helper()
	var a struct {
		ID     json.RawMessage
		Result struct {
			Content []struct{ Type, Text string }
			IsError bool
		}
	}
	if err := json.Unmarshal([]byte(line), &a); err != nil || !a.Result.IsError || len(a.Result.Content) != 1 || a.Result.Content[0].Type != "text" {
		t.Fatalf("not a tool error: %s", line)
	}
	var r refusal
	if err := json.Unmarshal([]byte(a.Result.Content[0].Text), &r); err != nil || r.Error == "" || r.Message == "" {
		t.Fatalf("not a refusal: %s", line)
	}
	return r
}

func call(id, tool string) string {
	return `{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"` + tool + `","arguments":{"label":"X"}}}`
}

const modernMeta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"}}`

func ping(id string) string { return `{"jsonrpc":"2.0","id":` + id + `,"method":"ping"}` }

const initialize = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`

// request is a message as an endpoint reads it.
type request struct {
	ID     json.RawMessage
	Method string
	Params struct{ Name string }
}

// endpoint is an HTTP server that wants the bearer and answers like MCP says:
// initialize, and any other request with an empty result.
func endpoint(t testing.TB, h func(w http.ResponseWriter, r *http.Request, m request) bool) *httptest.Server {
	s := httptest.NewServer(handler(h))
	t.Cleanup(s.Close)
	return s
}

func handler(h func(w http.ResponseWriter, r *http.Request, m request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m request
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil || r.Method != http.MethodPost || r.URL.Path != "/mcp" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		if r.Header.Get("Authorization") != "Bearer "+canary {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if h != nil && h(w, r, m) {
			return
		}
		result := `{}`
		if m.Method == "initialize" {
			result = `{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"test","version":"7"}}`
		}
		answer(w, m.ID, result)
	})
}

func answer(w http.ResponseWriter, id json.RawMessage, result string) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, "{\"jsonrpc\": \"2.0\",\n \"id\": %s, \"result\": %s}\n", id, result)
}

func TestEveryRequestIsAnsweredUnderItsID(t *testing.T) {
	s := endpoint(t, func(w http.ResponseWriter, _ *http.Request, m request) bool {
		id := m.ID
		if string(id) == "9007199254740993" {
			id = json.RawMessage("9007199254740992") // as servers do that read numbers as float64
		}
		answer(w, id, `{"for":`+string(m.ID)+`}`)
		return true
	})
	var lines []string
	want := map[string]bool{}
	for i := range 300 {
		id := fmt.Sprint(i)
		if i%2 == 0 {
			id = fmt.Sprintf(`"x-%d"`, i)
		}
		lines = append(lines, call(id, "get_secret"))
		want[`{"jsonrpc":"2.0","id":`+id+`,"result":{"for":`+id+`}}`] = true
	}
	for _, id := range []string{"9007199254740993", "-1.50e3", `"\u0041\n"`} {
		lines = append(lines, ping(id))
		want[`{"jsonrpc":"2.0","id":`+id+`,"result":{"for":`+id+`}}`] = true
	}
	for _, l := range play(t, options(t, s.URL), lines...) {
		if !want[l] {
			t.Errorf("answer %s was not asked for", l)
		}
		delete(want, l)
	}
	for l := range want {
		t.Errorf("no answer %s", l)
	}
}

func TestHandshakeIsAnsweredBeforeTheNextLine(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	s := endpoint(t, func(_ http.ResponseWriter, r *http.Request, m request) bool {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, m.Method+" "+r.Header.Get("Mcp-Protocol-Version"))
		return false
	})
	got := play(t, options(t, s.URL), initialize, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, ping("1"))
	if diff := cmp.Diff([]string{"initialize ", "ping 2025-06-18"}, seen); diff != "" {
		t.Errorf("the endpoint saw (-want +got):\n%s", diff)
	}
	if len(got) != 2 || !strings.Contains(got[0], `"id":0,`) {
		t.Errorf("answers: %q", got)
	}
}

func TestModernHeadersRepeatTheBody(t *testing.T) {
	headers := make(chan http.Header, 1)
	s := endpoint(t, func(_ http.ResponseWriter, r *http.Request, _ request) bool {
		headers <- r.Header
		return false
	})
	for _, c := range []struct{ method, params, version, name string }{
		{"tools/call", `"name":"get_secret",` + modernMeta, "2026-07-28", "get_secret"},
		{"tools/call", `"name":"schlüssel",` + modernMeta, "2026-07-28", "=?base64?c2NobMO8c3NlbA==?="},
		{"tools/call", `"name":" a",` + modernMeta, "2026-07-28", "=?base64?IGE=?="},
		{"tools/call", `"name":"a\nX-Evil: 1",` + modernMeta, "2026-07-28", "=?base64?YQpYLUV2aWw6IDE=?="},
		{"tools/call", `"name":"=?base64?YQ==?=",` + modernMeta, "2026-07-28", "=?base64?PT9iYXNlNjQ/WVE9PT89?="},
		{"resources/read", `"uri":"x://y",` + modernMeta, "2026-07-28", "x://y"},
		{"tools/list", modernMeta, "2026-07-28", ""},
		{"tools/call", `"name":"get_secret"`, "", ""},
		{"tools/call", `"name":"get_secret","_meta":{"io.modelcontextprotocol/protocolVersion":"2025-11-25"}`, "", ""},
	} {
		line := `{"jsonrpc":"2.0","id":1,"method":"` + c.method + `","params":{` + c.params + `}}`
		one(t, options(t, s.URL), line)
		h := <-headers
		want := []string{c.version, "", c.name}
		if c.version != "" {
			want[1] = c.method
		}
		if diff := cmp.Diff(want, []string{h.Get("Mcp-Protocol-Version"), h.Get("Mcp-Method"), h.Get("Mcp-Name")}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", line, diff)
		}
		if h.Get("X-Evil") != "" || h.Get("Idempotency-Key") != "" || h.Get("User-Agent") != "solekey/test" {
			t.Errorf("headers %v", h)
		}
	}
}

func TestWhatIsNoMessageDoesNotReachTheEndpoint(t *testing.T) {
	s := endpoint(t, func(_ http.ResponseWriter, _ *http.Request, m request) bool {
		t.Errorf("the endpoint saw %s", m.Method)
		return false
	})
	deep := strings.Repeat(`[`, 40) + strings.Repeat(`]`, 40)
	for _, c := range []struct{ line, want string }{
		{`{`, `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}`},
		{"\"\xff\"", `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}`},
		{`[]`, `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Batches are not supported."}}`},
		{`{"jsonrpc":"2.0","id":null,"method":"ping"}`, `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"The id must be a string or a number."}}`},
		{`{"jsonrpc":"1.0","id":4,"method":"ping"}`, `{"jsonrpc":"2.0","id":4,"error":{"code":-32600,"message":"Invalid request"}}`},
		{`{"jsonrpc":"2.0","id":5,"method":"ping","params":` + deep + `}`, `{"jsonrpc":"2.0","id":5,"error":{"code":-32600,"message":"The request is nested too deeply, or holds too many values."}}`},
		{strings.Repeat("x", 1<<20+1), `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"The line is longer than 1 MiB."}}`},
	} {
		if got := one(t, options(t, s.URL), c.line); got != c.want {
			t.Errorf("%.60s: %s, want %s", c.line, got, c.want)
		}
	}
	for _, quiet := range []string{"", "  ", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, `{"jsonrpc":"2.0","id":6,"result":{}}`} {
		if got := play(t, options(t, s.URL), quiet); len(got) != 0 {
			t.Errorf("%q is answered: %q", quiet, got)
		}
	}
}

func TestLastLineNeedsNoNewline(t *testing.T) {
	s := endpoint(t, nil)
	var out bytes.Buffer
	if err := bridge.Serve(t.Context(), options(t, s.URL), strings.NewReader(ping("1")), &out); err != nil || out.String() != `{"jsonrpc":"2.0","id":1,"result":{}}`+"\n" {
		t.Errorf("Serve = %v, wrote %q", err, out.String())
	}
}

// session is a running bridge whose input stays open.
type session struct {
	t    *testing.T
	in   *io.PipeWriter
	out  *bufio.Reader
	done chan error
}

func open(t *testing.T, o bridge.Options) *session {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	s := &session{t: t, in: inW, out: bufio.NewReader(outR), done: make(chan error, 1)}
	go func() {
		s.done <- bridge.Serve(context.Background(), o, inR, outW)
		_ = outW.Close()
	}()
	t.Cleanup(func() { _ = inW.Close() })
	return s
}

func (s *session) send(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) line() string {
	s.t.Helper()
	l, err := s.out.ReadString('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSuffix(l, "\n")
}

// close ends the input and returns what is still written.
func (s *session) close() string {
	s.t.Helper()
	_ = s.in.Close()
	rest, err := io.ReadAll(s.out)
	if err := <-s.done; err != nil {
		s.t.Errorf("Serve = %v", err)
	}
	if err != nil {
		s.t.Error(err)
	}
	return string(rest)
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: did not happen", what)
	}
}

func TestCancellationEndsThePost(t *testing.T) {
	arrived, ended := make(chan struct{}, 2), make(chan struct{}, 2)
	s := endpoint(t, func(_ http.ResponseWriter, r *http.Request, m request) bool {
		if m.Method != "tools/call" {
			return false
		}
		arrived <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
		return true
	})
	b := open(t, options(t, s.URL))
	b.send(call("1", "get_totp_code"))
	within(t, "the call arrives", arrived)
	b.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}`)
	b.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"1"}}`)
	b.send(ping("3"))
	if got := b.line(); got != `{"jsonrpc":"2.0","id":3,"result":{}}` {
		t.Errorf("answer %s", got)
	}
	select {
	case <-ended:
		t.Error("the cancellation of another id ended the call")
	default:
	}
	b.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`)
	within(t, "the POST ends", ended)
	if rest := b.close(); rest != "" {
		t.Errorf("a cancelled request is answered: %s", rest)
	}
}

func TestEndOfInputWaitsForAnswers(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 8)
	s := endpoint(t, func(http.ResponseWriter, *http.Request, request) bool {
		arrived <- struct{}{}
		<-release
		return false
	})
	b := open(t, options(t, s.URL))
	for i := range 8 {
		b.send(call(fmt.Sprint(i), "get_secret"))
	}
	for range 8 {
		within(t, "a call arrives", arrived)
	}
	time.AfterFunc(100*time.Millisecond, func() { close(release) })
	if got := strings.Count(b.close(), `"result":{}`); got != 8 {
		t.Errorf("%d answers after the end of input, want 8", got)
	}
}

func TestCallThatOutlivesTheDrainIsRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the drain to end")
	}
	t.Parallel()
	s := endpoint(t, func(_ http.ResponseWriter, r *http.Request, _ request) bool {
		<-r.Context().Done()
		return true
	})
	if r := told(t, one(t, options(t, s.URL), call("1", "get_secret"))); r.Error != "unavailable" || !strings.Contains(r.Message, "had not answered when this session ended") {
		t.Errorf("refusal %+v", r)
	}
}

func TestAtMost16CallsAreAtTheEndpoint(t *testing.T) {
	var mu sync.Mutex
	running, most := 0, 0
	full, release := make(chan struct{}), make(chan struct{})
	s := endpoint(t, func(_ http.ResponseWriter, _ *http.Request, m request) bool {
		if m.Method != "tools/call" {
			return false
		}
		mu.Lock()
		running++
		if most = max(most, running); running == 16 {
			close(full)
		}
		mu.Unlock()
		<-release
		mu.Lock()
		running--
		mu.Unlock()
		return false
	})
	b := open(t, options(t, s.URL))
	for i := range 40 {
		b.send(call(fmt.Sprint(i), "get_secret"))
	}
	within(t, "16 calls arrive", full)
	b.send(ping("99"))
	if got := b.line(); !strings.Contains(got, `"id":99,`) {
		t.Errorf("a ping waits behind calls: %s", got)
	}
	mu.Lock()
	running = -1000 // the count is over
	mu.Unlock()
	close(release)
	if got := strings.Count(b.close(), `"result":{}`); got != 40 || most != 16 {
		t.Errorf("%d answers, at most %d at once; want 40 and 16", got, most)
	}
}

func TestBrokenOutputEndsTheBridge(t *testing.T) {
	s := endpoint(t, nil)
	inR, inW := io.Pipe()
	defer inW.Close()
	outR, outW := io.Pipe()
	_ = outR.Close()
	done := make(chan error, 1)
	go func() { done <- bridge.Serve(context.Background(), options(t, s.URL), inR, outW) }()
	if _, err := io.WriteString(inW, ping("1")+"\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("Serve = nil, want the failure of out")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Serve goes on")
	}
}

// A client that reads nothing does not keep the bridge alive.
func TestDeafClientEndsWithItsInput(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the drain to end")
	}
	t.Parallel()
	s := endpoint(t, nil)
	outR, outW := io.Pipe()
	defer outR.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = bridge.Serve(context.Background(), options(t, s.URL), strings.NewReader(ping("1")+"\n"+ping("2")+"\n"), outW)
	}()
	within(t, "Serve ends", done)
}

func BenchmarkRoundTrip(b *testing.B) {
	s := endpoint(b, nil)
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	go func() { _ = bridge.Serve(context.Background(), options(b, s.URL), inR, outW) }()
	defer inW.Close()
	r := bufio.NewReader(outR)
	line := []byte(call("1", "get_secret") + "\n")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := inW.Write(line); err != nil {
			b.Fatal(err)
		}
		if _, err := r.ReadSlice('\n'); err != nil {
			b.Fatal(err)
		}
	}
}
