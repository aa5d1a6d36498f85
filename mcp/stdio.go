package mcp

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
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
	work, cancel := context.WithCancel(withCaller(context.WithoutCancel(ctx), c.caller))
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

// notice serves a message that wants no answer. Only a cancellation means
// anything; it reaches the requests of this connection and no others.
func (c *conn) notice(ctx context.Context, m message, line []byte) {
	if m.Method == mcp.MethodNotificationCancelled {
		c.server.handle(c.server.proto.WithContext(ctx, &session{name: c.name}), m, line)
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
	before, a := c.server.exchange(ctx, c.name, m, line)
	for _, note := range before {
		_ = c.send(note)
	}
	c.answer(a)
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
	var line []byte
	var err error
	seal.Do(func() {
		line, err = json.Marshal(v)
		line = append(line, '\n')
	})
	if err != nil {
		return err
	}
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
