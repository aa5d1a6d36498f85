package mcp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// noon is the time in every house. It is early in a step of 300 s.
var noon = time.Date(2026, 3, 1, 12, 0, 1, 0, time.UTC)

const (
	meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"test","version":"1"}}`
	seed = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
)

// eras are the two ways to send the members of params.
var eras = map[string]func(params string) string{
	"legacy": func(params string) string { return "{" + params + "}" },
	"modern": func(params string) string {
		if params == "" {
			return "{" + meta + "}"
		}
		return "{" + params + "," + meta + "}"
	},
}

// house is a real store with its keeper and a server in front of it.
type house struct {
	t       testing.TB
	dir     string
	root    vault.Root
	keeper  *vault.Keeper
	backend *backend
	server  *mcp.Server
	log     *strings.Builder // of the server
	now     time.Time
	later   atomic.Int64 // on top of now; may be moved while calls run
}

// backend is a real engine that can be made to fail. All but journal may be
// changed while calls run.
type backend struct {
	storage.Backend
	journal error
	gate    atomic.Pointer[gate]
	reads   atomic.Pointer[error]  // of every Get
	panics  atomic.Pointer[string] // of every Append
	getting atomic.Pointer[string] // panics of every Get
}

// gate holds up whatever appends a line, until it is opened or the call ends.
type gate struct {
	deaf    bool // calls that end wait too
	open    chan struct{}
	waiting chan struct{} // one element for each call that has come to the gate
}

func (b *backend) Append(ctx context.Context, bodies ...[]byte) (uint64, error) {
	if b.journal != nil {
		return 0, b.journal
	}
	if text := b.panics.Load(); text != nil {
		panic(*text)
	}
	if g := b.gate.Load(); g != nil {
		g.waiting <- struct{}{}
		if g.deaf {
			ctx = context.WithoutCancel(ctx)
		}
		select {
		case <-g.open:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return b.Backend.Append(ctx, bodies...)
}

func (b *backend) Get(ctx context.Context, id identity.ID, keys ...string) (storage.Result, error) {
	if err := b.reads.Load(); err != nil {
		return storage.Result{}, *err
	}
	if text := b.getting.Load(); text != nil {
		panic(*text)
	}
	return b.Backend.Get(ctx, id, keys...)
}

// shut puts a gate before the journal: calls that read a value hang there.
func (h *house) shut() *gate {
	g := &gate{open: make(chan struct{}), waiting: make(chan struct{}, 1<<16)}
	h.backend.gate.Store(g)
	return g
}

// lift removes the gate for calls to come, and lets those that wait pass.
func (h *house) lift(g *gate) {
	h.backend.gate.Store(nil)
	close(g.open)
}

// pass lets time go by, for the clocks of the house.
func (h *house) pass(d time.Duration) { h.later.Add(int64(d)) }

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir(), root: vault.NewRoot(), log: &strings.Builder{}, now: noon}
	store, err := bolt.Create(h.dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h.backend = &backend{Backend: store}
	if _, err := vault.Init(t.Context(), h.backend, h.root, vault.InitOptions{NoRecovery: true, Now: h.clock}); err != nil {
		t.Fatal(err)
	}
	h.keeper = h.keep(h.backend)
	h.server = h.serve(h.keeper.Unlock)
	return h
}

// clock is the time in the house.
func (h *house) clock() time.Time { return h.now.Add(time.Duration(h.later.Load())) }

// keep returns a keeper of the store in b, until the test ends.
func (h *house) keep(b storage.Backend) *vault.Keeper {
	k := vault.Open(b, func(context.Context, identity.ID) (vault.Root, error) { return h.root, nil }, vault.Options{Now: h.clock})
	h.t.Cleanup(func() { k.Close() })
	return k
}

// neighbour returns a second keeper of the same directory, as another process
// has it.
func (h *house) neighbour() *vault.Keeper {
	h.t.Helper()
	store, err := bolt.Open(h.dir, bolt.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	return h.keep(store)
}

// serve returns another server of the house, with another way to unlock.
func (h *house) serve(u mcp.Unlock) *mcp.Server {
	return h.serveHTTP(u, mcp.HTTPOptions{})
}

// serveHTTP is serve, with options for HTTP.
func (h *house) serveHTTP(u mcp.Unlock, o mcp.HTTPOptions) *mcp.Server {
	return mcp.New(u, mcp.Options{Version: "1.2.3", Log: textLog(h.log), Now: h.clock, HTTP: o})
}

// agent creates an identity and returns its key.
func (h *house) agent(name string, g identity.Grant) identity.Key {
	h.t.Helper()
	k, err := h.keeper.Create(h.t.Context(), vault.NewIdentity{Name: name, Grant: g, NoRecovery: true})
	if err != nil {
		h.t.Fatal(err)
	}
	return k
}

func (h *house) put(k identity.Key, es ...vault.NewEntry) {
	h.t.Helper()
	if _, err := h.keeper.Import(h.t.Context(), k.Identity(), es, true); err != nil {
		h.t.Fatal(err)
	}
}

func secret(label vault.Label, value string) vault.NewEntry {
	return vault.NewEntry{Label: label, Fields: []vault.Field{{Name: "value", Value: []byte(value)}}}
}

func seeded(label vault.Label) vault.NewEntry {
	e := secret(label, "otpauth://totp/x?period=300&secret="+seed)
	e.Kind = vault.KindTOTP
	return e
}

// pipe serves lines that arrive at once, then end, and returns all that was
// written.
func pipe(t testing.TB, s *mcp.Server, k identity.Key, lines ...string) string {
	t.Helper()
	var out bytes.Buffer
	in := strings.NewReader(strings.Join(lines, "\n"))
	if err := s.ServeStdio(t.Context(), k, in, &out); err != nil {
		t.Fatalf("ServeStdio: %v", err)
	}
	return out.String()
}

// reply is one line of a server.
type reply struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  string          `json:"method"`
	Result  json.RawMessage `json:"result"`
	Error   *struct {
		Code    int
		Message string
	} `json:"error"`
	raw string
}

func replies(t testing.TB, out string) []reply {
	t.Helper()
	var all []reply
	for line := range strings.Lines(out) {
		r := reply{raw: line}
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Version != "2.0" || !strings.HasSuffix(line, "\n") {
			t.Fatalf("a line of the output is no message (%v): %q", err, line)
		}
		all = append(all, r)
	}
	return all
}

// talk is pipe, with the replies.
func talk(t testing.TB, s *mcp.Server, k identity.Key, lines ...string) []reply {
	t.Helper()
	return replies(t, pipe(t, s, k, lines...))
}

// result is that of a tool call.
type result struct {
	Content []struct {
		Type, Text string
	}
	Structured json.RawMessage `json:"structuredContent"`
	IsError    bool
}

// refusal is what a refused call says.
type refusal struct {
	Error   string
	Message string
	Hint    string
	Retry   int64 `json:"retry_after_ms"`
}

func (r reply) result(t testing.TB) result {
	t.Helper()
	var res result
	if r.Error != nil || json.Unmarshal(r.Result, &res) != nil {
		t.Fatalf("not a result: %s", r.raw)
	}
	if len(res.Content) != 1 || res.Content[0].Type != "text" {
		t.Fatalf("content = %+v, want one text block", res.Content)
	}
	return res
}

// refusal returns what a refused call says, after a check of its shape.
func (r reply) refusal(t testing.TB) refusal {
	t.Helper()
	res := r.result(t)
	if !res.IsError || res.Structured != nil {
		t.Fatalf("isError = %v, structuredContent = %s, want an error without it", res.IsError, res.Structured)
	}
	return decode[refusal](t, res.Content[0].Text)
}

// value decodes the structured content of a served call, after a check of its
// shape.
func value[T any](t testing.TB, r reply) T {
	t.Helper()
	res := r.result(t)
	if res.IsError {
		t.Fatalf("refused: %s", res.Content[0].Text)
	}
	if !bytes.Equal(canonical(t, res.Structured), canonical(t, []byte(res.Content[0].Text))) {
		t.Errorf("structured content and text differ:\n%s\n%s", res.Structured, res.Content[0].Text)
	}
	return decode[T](t, string(res.Structured))
}

func canonical(t testing.TB, b []byte) []byte {
	t.Helper()
	v := decode[any](t, string(b))
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("decoding %q: %v", text, err)
	}
	return v
}

// request returns a request line.
func request(id any, method, params string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%v,"method":%q,"params":%s}`, id, method, params)
}

// call returns a tools/call line of the legacy era.
func call(id any, tool, arguments string) string {
	return request(id, "tools/call", fmt.Sprintf(`{"name":%q,"arguments":%s}`, tool, arguments))
}

// client is one connection that is asked line by line.
type client struct {
	t    testing.TB
	in   *io.PipeWriter
	out  *bufio.Reader
	done chan error
}

// dial connects to s; the connection ends with the test.
func dial(t testing.TB, s *mcp.Server, k identity.Key) *client {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	c := &client{t: t, in: inW, out: bufio.NewReaderSize(outR, 1<<20), done: make(chan error, 1)}
	go func() {
		c.done <- s.ServeStdio(context.Background(), k, inR, outW)
		outW.Close()
	}()
	t.Cleanup(func() {
		inW.Close()
		outR.CloseWithError(errors.New("the test is over"))
		<-c.done
		close(c.done)
	})
	return c
}

func (c *client) send(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) next() reply {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("reading a reply: %v", err)
	}
	return replies(c.t, line)[0]
}

func (c *client) ask(line string) reply {
	c.t.Helper()
	c.send(line)
	return c.next()
}
