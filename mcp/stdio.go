package mcp

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// The stdio transport: one message a line. It feeds the library's message
// handler itself, because the library's own stdio server drops calls that are
// queued or running at end of input, loses an unterminated last line, reads
// lines of any length, answers `initialize` after later calls, keeps one
// session per process and sends panics to the client.
//
//   - Every request is answered under exactly the id it came with; at end of
//     input serving goes on until the last answer is out, for drainTime.
//   - `initialize` is answered before the next line is looked at; everything
//     else runs side by side.
//   - What is no message gets a JSON-RPC error with a constant text.
//   - Nothing but protocol lines is written, each in one Write.

const (
	maxLine   = 1 << 20
	maxDepth  = 32
	maxID     = 1 << 10
	maxQueued = 1000            // requests read and not yet answered
	maxCalls  = 16              // tools/call running
	drainTime = 5 * time.Second // for what still runs at end of input
	graceTime = 2 * time.Second // for what was cancelled after that
)

// ServeStdio serves the vault that k opens on in and out, until in ends or ctx
// does; what still runs then has 5 seconds to end before it is cancelled. k is
// presented for every tools/list and tools/call, also the zero key. Only
// failures of in and out are errors. A Read of in that is blocked when ctx
// ends is left behind.
func (s *Server) ServeStdio(ctx context.Context, k identity.Key, in io.Reader, out io.Writer) error {
	c := s.connect(k, out)
	work, cancel := context.WithCancel(c.within(context.WithoutCancel(ctx)))
	defer cancel()
	for range maxCalls {
		go c.serveCalls(work)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.read(work, in) }()

	var err error
	select {
	case err = <-ended:
	case err = <-c.broken:
		cancel()
	case <-ctx.Done():
	}
	c.drain(cancel)
	select {
	case late := <-c.broken:
		err = cmp.Or(err, late)
	default:
	}
	return err
}

// conn is one stdio connection.
type conn struct {
	server *Server
	caller *caller
	name   string        // of the session, unique in the server
	queue  chan struct{} // a place for each request that is read
	calls  chan call     // tools/call that wait for their turn; holds as many as queue
	stop   chan struct{} // closed when no further request is admitted
	idle   chan struct{} // closed when stop is and no request runs
	over   chan struct{} // closed when nothing may be written any more
	broken chan error    // the first failure of out

	mu      sync.Mutex
	running int
	stopped bool

	writing sync.Mutex // orders writes to out
	out     io.Writer
}

func (s *Server) connect(k identity.Key, out io.Writer) *conn {
	from := vault.Source{Via: "stdio"}
	return &conn{
		server: s,
		caller: &caller{open: func(ctx context.Context) (*vault.Vault, error) { return s.unlock(ctx, k, from) }},
		name:   "stdio-" + strconv.FormatInt(s.sessions.Add(1), 10),
		queue:  make(chan struct{}, maxQueued),
		calls:  make(chan call, maxQueued),
		stop:   make(chan struct{}),
		idle:   make(chan struct{}),
		over:   make(chan struct{}),
		broken: make(chan error, 1),
		out:    out,
	}
}

// within returns the context in which the connection's requests are handled.
func (c *conn) within(ctx context.Context) context.Context {
	return c.server.proto.WithContext(withCaller(ctx, c.caller), &session{name: c.name})
}

// read serves the lines of in until it ends or the connection stops.
func (c *conn) read(ctx context.Context, in io.Reader) error {
	r := bufio.NewReaderSize(in, 64<<10)
	for {
		line, err := nextLine(r)
		if !c.take(ctx, line) || err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading requests: %w", err)
		}
	}
}

// nextLine returns the next line of r, at most maxLine and one byte of it. At
// the end of r it returns what is left and the error.
func nextLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line) <= maxLine {
			line = append(line, part[:min(len(part), maxLine+1-len(line))]...)
		}
		if err != bufio.ErrBufferFull {
			return line, err
		}
	}
}

// take serves one line. It reports whether further lines are welcome.
func (c *conn) take(ctx context.Context, line []byte) bool {
	line, long := bytes.TrimRight(line, "\r\n"), len(line) > maxLine
	if len(bytes.TrimLeft(line, " \t")) == 0 {
		return true
	}
	if long {
		c.answer(fault(nil, mcp.INVALID_REQUEST, "The line is longer than 1 MiB."))
		return true
	}
	m, bad := parse(line)
	switch {
	case bad != nil:
		c.answer(bad)
	case m.ID == nil:
		c.notice(ctx, m, line)
	default:
		return c.request(ctx, m, line)
	}
	return true
}

// message is the outside of a JSON-RPC message.
type message struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  mcp.MCPMethod   `json:"method"`
	Result  json.RawMessage `json:"result"`
	Error   json.RawMessage `json:"error"`
}

// parse reads the outside of a line, or returns the answer for one that is no
// message.
func parse(line []byte) (message, *answer) {
	var m message
	err := json.Unmarshal(line, &m)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) || !utf8.Valid(line) {
		return m, fault(nil, mcp.PARSE_ERROR, "Parse error")
	}
	if bytes.TrimLeft(line, " \t")[0] == '[' {
		return m, fault(nil, mcp.INVALID_REQUEST, "Batches are not supported.")
	}
	if m.ID != nil && !usableID(m.ID) {
		return m, fault(nil, mcp.INVALID_REQUEST, "The id must be a string or a number.")
	}
	answers := m.Result != nil || m.Error != nil
	switch {
	case err != nil || m.Version != mcp.JSONRPC_VERSION || m.Method == "" && !answers || m.Method != "" && answers:
		return m, fault(m.ID, mcp.INVALID_REQUEST, "Invalid request")
	case depth(line) > maxDepth:
		return m, fault(m.ID, mcp.INVALID_REQUEST, "The request is nested too deeply.")
	}
	if answers {
		m.ID = nil // an answer to a request that was never sent
	}
	return m, nil
}

func usableID(id json.RawMessage) bool {
	return len(id) <= maxID && (id[0] == '"' || id[0] == '-' || '0' <= id[0] && id[0] <= '9')
}

// depth returns how deep objects and arrays are nested in valid JSON.
func depth(b []byte) int {
	deepest, open, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
			if c == '\\' {
				i++
			}
		case c == '{' || c == '[':
			open++
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return deepest
}

// notice serves a message that wants no answer. Only a cancellation means
// anything; it reaches the requests of this connection and no others.
func (c *conn) notice(ctx context.Context, m message, line []byte) {
	if m.Method == mcp.MethodNotificationCancelled {
		c.handle(ctx, m, line)
	}
}

// request serves a message that wants an answer. It reports whether the
// connection still admits any.
func (c *conn) request(ctx context.Context, m message, line []byte) bool {
	select {
	case c.queue <- struct{}{}:
	case <-c.stop:
		return false
	}
	if !c.begin() {
		return false
	}
	switch m.Method {
	case mcp.MethodInitialize:
		c.respond(ctx, m, line)
	case mcp.MethodToolsCall:
		c.calls <- call{m, line}
	default:
		go c.respond(ctx, m, line)
	}
	return true
}

// call is a tools/call that waits for its turn.
type call struct {
	message
	line []byte
}

// serveCalls handles one call after the other. The calls have goroutines that
// stay, as a new one would grow its stack for each.
func (c *conn) serveCalls(ctx context.Context) {
	for {
		select {
		case next := <-c.calls:
			c.respond(ctx, next.message, next.line)
		case <-c.over:
			return
		}
	}
}

// begin counts one more running request, unless the connection has stopped.
func (c *conn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return false
	}
	c.running++
	return true
}

func (c *conn) end() {
	<-c.queue
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if c.stopped && c.running == 0 {
		close(c.idle)
	}
}

// drain stops admitting requests and waits for those that run. What is left
// after drainTime is cancelled; what ignores that is left behind, mute.
func (c *conn) drain(cancel context.CancelFunc) {
	c.mu.Lock()
	c.stopped = true
	close(c.stop)
	if c.running == 0 {
		close(c.idle)
	}
	c.mu.Unlock()
	defer close(c.over)
	for _, patience := range []time.Duration{drainTime, graceTime} {
		t := time.NewTimer(patience)
		select {
		case <-c.idle:
			t.Stop()
			return
		case <-t.C:
			cancel()
		}
	}
}

// respond handles one request and writes its answer.
func (c *conn) respond(ctx context.Context, m message, line []byte) {
	defer c.end()
	if m.Method == mcp.MethodSubscriptionsListen {
		c.listen(ctx, m, line)
		return
	}
	c.answer(c.reply(m, c.handle(ctx, m, line)))
}

// listen serves subscriptions/listen, which ends at once as nothing can be
// subscribed to. The acknowledgement goes out before the result.
func (c *conn) listen(ctx context.Context, m message, line []byte) {
	own := &session{name: c.name, notes: make(chan mcp.JSONRPCNotification, 1)}
	response := c.handle(c.server.proto.WithContext(ctx, own), m, line)
	select {
	case note := <-own.notes:
		c.send(note)
	default:
	}
	c.answer(c.reply(m, response))
}

// handle passes a line to the library; nil if that panics.
func (c *conn) handle(ctx context.Context, m message, line []byte) (response mcp.JSONRPCMessage) {
	defer func() {
		if p := recover(); p != nil {
			c.server.logPanic(p)
			response = nil
		}
	}()
	if m.Method == mcp.MethodToolsList {
		c.refresh(ctx)
	}
	return c.server.proto.HandleMessage(ctx, line)
}

// refresh unlocks anew, so that a list shows what the key may do by now. If
// that fails the list shows all tools, and each call says why.
func (c *conn) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	_, _ = c.caller.unlock(ctx)
}

// answer is a JSON-RPC response as it is written.
type answer struct {
	Version string                   `json:"jsonrpc"`
	ID      json.RawMessage          `json:"id"`
	Result  any                      `json:"result,omitempty"`
	Error   *mcp.JSONRPCErrorDetails `json:"error,omitempty"`
}

func fault(id json.RawMessage, code int, text string) *answer {
	if id == nil {
		id = json.RawMessage("null")
	}
	return &answer{Version: mcp.JSONRPC_VERSION, ID: id, Error: &mcp.JSONRPCErrorDetails{Code: code, Message: text}}
}

// reply puts the library's response under the id as the client wrote it: the
// library itself rounds large numbers.
func (c *conn) reply(m message, response mcp.JSONRPCMessage) *answer {
	switch r := response.(type) {
	case mcp.JSONRPCResponse:
		return &answer{Version: mcp.JSONRPC_VERSION, ID: m.ID, Result: r.Result}
	case mcp.JSONRPCError:
		return plain(m.ID, r.Error)
	}
	return fault(m.ID, mcp.INTERNAL_ERROR, "internal error")
}

// plain returns an error of the library without what it quotes of the
// request, but for tool names and protocol versions.
func plain(id json.RawMessage, e mcp.JSONRPCErrorDetails) *answer {
	switch e.Code {
	case mcp.PARSE_ERROR, mcp.INVALID_REQUEST:
		return fault(id, mcp.INVALID_REQUEST, "Invalid request")
	case mcp.METHOD_NOT_FOUND:
		return fault(id, e.Code, "Method not found")
	case mcp.INVALID_PARAMS:
		if quotable(e.Message) {
			return fault(id, e.Code, e.Message)
		}
		return fault(id, e.Code, "Invalid params")
	case mcp.UNSUPPORTED_PROTOCOL_VERSION:
		return &answer{Version: mcp.JSONRPC_VERSION, ID: id, Error: &e}
	}
	return fault(id, mcp.INTERNAL_ERROR, "internal error")
}

// quotable reports whether an error names nothing but a well-formed tool or a
// field of _meta.
func quotable(text string) bool {
	if strings.HasPrefix(text, "missing or invalid _meta field ") {
		return true
	}
	name, ok := strings.CutPrefix(text, "tool '")
	if !ok {
		return false
	}
	name, ok = strings.CutSuffix(name, "' not found: tool not found")
	return ok && len(name) <= 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

// answer writes a response; one that cannot be written as JSON becomes an
// error.
func (c *conn) answer(a *answer) {
	if err := c.send(a); err != nil {
		c.server.log.Error("writing an answer failed", slog.String("cause", chain(err)))
		_ = c.send(fault(a.ID, mcp.INTERNAL_ERROR, "internal error"))
	}
}

// send writes v as one line. Its error is that of the encoding; a failure of
// out ends the connection.
func (c *conn) send(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	c.writing.Lock()
	defer c.writing.Unlock()
	select {
	case <-c.over:
		return nil
	default:
	}
	if _, err := c.out.Write(line); err != nil {
		select {
		case c.broken <- fmt.Errorf("writing answers: %w", err):
		default:
		}
	}
	return nil
}

// session is what the library knows of a connection. Only subscriptions/listen
// gets one that can be notified.
type session struct {
	name  string
	notes chan mcp.JSONRPCNotification
}

func (s *session) Initialize()                                         {}
func (s *session) Initialized() bool                                   { return true }
func (s *session) NotificationChannel() chan<- mcp.JSONRPCNotification { return s.notes }
func (s *session) SessionID() string                                   { return s.name }
