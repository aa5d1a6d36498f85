// Package bridge carries MCP messages between a client that speaks stdio and
// an endpoint that speaks Streamable HTTP: one POST for each request line, and
// its answer as a line. So a client that only starts programs reaches a hosted
// vault, and no client config holds a key.
//
//   - Every request is answered under exactly the id it came with. Where the
//     endpoint does not answer, the bridge does: a tools/call gets a refusal
//     that says why and what to do; everything else, the handshake and
//     tools/list among it, is answered by [Options.Local], which is the same
//     server with no vault behind it. So the bridge comes up although the
//     endpoint is down or refuses the key, and each call says the cause:
//     clients hide what a dead server prints.
//   - The bearer goes to the endpoint and nowhere else: no redirect is
//     followed, and no error, log, or line to the client holds it, not even
//     where the endpoint sends it back. Plain HTTP is for loopback addresses.
//   - No text of a network error and no page of a proxy reaches the client.
//     Words of the endpoint do, if they are short and printable.
//   - A request that was written to a connection which turned out to be dead
//     is sent once more by net/http if repeating it does no harm. Of tool calls
//     those are the reading ones: a second get_totp_code gets the next code, or
//     a refusal that says how long to wait.
//   - Notifications of the client are not sent, because the endpoint keeps no state that
//     they could change. A cancellation ends the POST of its request, which is
//     how HTTP cancels, and that request is not answered.
//   - A line that is no message, or is too long or too deep, is answered as
//     the stdio server of package mcp does, without the endpoint. How many
//     values a message holds is for the endpoint to judge.
//
// The package knows nothing of vaults, profiles and the form of keys.
package bridge

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
	"sync"
	"time"
)

const (
	maxQueued = 1000            // requests read and not yet answered
	maxCalls  = 16              // tools/call at the endpoint
	drainTime = 5 * time.Second // for what still runs at end of input
	graceTime = 2 * time.Second // for what was cancelled after that
)

// Options configure a bridge.
type Options struct {
	Endpoint Endpoint // where requests go; must come from [ParseEndpoint]

	// Key returns the bearer. It is called before the first request, again
	// after a failure, and once more for each request that the endpoint
	// answers 401: the key may have been replaced. It must be safe for
	// concurrent use.
	Key func() (string, *Refusal)

	// Local answers a request that the endpoint did not, tools/call excepted,
	// with zero or more lines. Nil, or no line, is a JSON-RPC error.
	Local func(ctx context.Context, request []byte, why *Refusal) []byte

	Log     *slog.Logger // why the endpoint does not answer, in constant texts; nil: silent
	Version string       // of the program, for the endpoint's log
}

// Refusal is why a request got no answer from the endpoint, as a model is
// told. It holds no bearer and no text of an error of lower layers.
type Refusal struct {
	Word       string // unauthorized, revoked, expired, forbidden, bad_request, rate_limited, unavailable or audit_unavailable
	Message    string // one sentence
	Hint       string // the next step, empty if there is none
	RetryAfter time.Duration
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Message }

// Serve carries the lines of in to the endpoint and its answers to out, until
// in ends or ctx does; what still runs then has 5 seconds to end before it is
// cancelled. Only failures of in and out are errors. A Read of in that is
// blocked when ctx ends is left behind.
func Serve(ctx context.Context, o Options, in io.Reader, out io.Writer) error {
	c := connect(o, out)
	defer c.client.close()
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errEnding)
	ended := make(chan error, 1)
	go func() { ended <- c.read(work, in) }()

	var err error
	select {
	case err = <-ended:
	case err = <-c.broken:
		cancel(errEnding)
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

// The causes that end a request early.
var (
	errCancelled = errors.New("the client cancelled the request")
	errEnding    = errors.New("the bridge ends")
)

// conn is the client's side: lines in, lines out.
type conn struct {
	client *client
	local  func(context.Context, []byte, *Refusal) []byte
	queue  chan struct{} // a place for each request that is read
	calls  chan struct{} // a place for each tools/call at the endpoint
	stop   chan struct{} // closed when no further request is admitted
	idle   chan struct{} // closed when stop is and no request runs
	over   chan struct{} // closed when nothing may be written any more
	broken chan error    // the first failure of out

	mu      sync.Mutex
	running int
	stopped bool
	cancels map[string]*canceller // of running requests, by id

	writing sync.Mutex // orders writes to out
	out     io.Writer
}

// canceller ends one running request.
type canceller struct{ cancel context.CancelCauseFunc }

func connect(o Options, out io.Writer) *conn {
	return &conn{
		client:  newClient(o),
		local:   o.Local,
		queue:   make(chan struct{}, maxQueued),
		calls:   make(chan struct{}, maxCalls),
		stop:    make(chan struct{}),
		idle:    make(chan struct{}),
		over:    make(chan struct{}),
		broken:  make(chan error, 1),
		cancels: map[string]*canceller{},
		out:     out,
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

// take serves one line. It reports whether further lines are welcome.
func (c *conn) take(ctx context.Context, line []byte) bool {
	line, long := bytes.TrimRight(line, "\r\n"), len(line) > maxLine
	if len(bytes.TrimLeft(line, " \t")) == 0 {
		return true
	}
	if long {
		c.send(fault(nil, invalidRequest, "The line is longer than 1 MiB."))
		return true
	}
	m, bad := parse(line)
	switch {
	case bad != nil:
		c.send(bad)
	case m.ID == nil:
		c.notice(m)
	default:
		return c.request(ctx, m, line)
	}
	return true
}

// notice serves a message that wants no answer. Only a cancellation means
// anything.
func (c *conn) notice(m message) {
	if m.Method != methodCancelled {
		return
	}
	var p struct {
		ID json.RawMessage `json:"requestId"`
	}
	if json.Unmarshal(m.Params, &p) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.cancels[string(p.ID)]; r != nil {
		r.cancel(errCancelled)
	}
}

// request serves a message that wants an answer. It reports whether the
// connection still admits any. `initialize` is answered before the next line
// is looked at; everything else runs side by side.
func (c *conn) request(ctx context.Context, m message, line []byte) bool {
	select {
	case c.queue <- struct{}{}:
	case <-c.stop:
		return false
	}
	ctx, own, ok := c.begin(ctx, m)
	if !ok {
		return false
	}
	if m.Method == methodInitialize {
		c.respond(ctx, own, m, line)
		return true
	}
	go c.respond(ctx, own, m, line)
	return true
}

// begin counts one more running request, unless the connection has stopped.
func (c *conn) begin(ctx context.Context, m message) (context.Context, *canceller, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return nil, nil, false
	}
	c.running++
	ctx, cancel := context.WithCancelCause(ctx)
	own := &canceller{cancel}
	if m.Method != methodInitialize {
		c.cancels[string(m.ID)] = own
	}
	return ctx, own, true
}

func (c *conn) end(m message, own *canceller) {
	own.cancel(nil)
	<-c.queue
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancels[string(m.ID)] == own {
		delete(c.cancels, string(m.ID))
	}
	c.running--
	if c.stopped && c.running == 0 {
		close(c.idle)
	}
}

// drain stops admitting requests and waits for those that run. What is left
// after drainTime is cancelled; what ignores that is left behind, mute.
func (c *conn) drain(cancel context.CancelCauseFunc) {
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
			cancel(errEnding)
		}
	}
}

// respond handles one request and writes its answer.
func (c *conn) respond(ctx context.Context, own *canceller, m message, line []byte) {
	defer c.end(m, own)
	answer, why := c.exchange(ctx, m, line)
	switch {
	case why == nil:
		c.send(answer)
	case errors.Is(context.Cause(ctx), errCancelled): // the client wants none
	case m.Method == methodCall:
		c.send(refused(m, why))
	default:
		c.substitute(ctx, m, line, why)
	}
}

// exchange asks the endpoint, of tool calls not too many at once.
func (c *conn) exchange(ctx context.Context, m message, line []byte) ([]byte, *Refusal) {
	if m.Method == methodCall {
		select {
		case c.calls <- struct{}{}:
			defer func() { <-c.calls }()
		case <-ctx.Done():
			return nil, c.client.endpoint.ended()
		}
	}
	return c.client.exchange(ctx, m, line, c.send)
}

// substitute answers in place of the endpoint.
func (c *conn) substitute(ctx context.Context, m message, line []byte, why *Refusal) {
	var answer []byte
	if c.local != nil {
		answer = c.local(ctx, line, why)
	}
	if len(answer) == 0 {
		c.send(fault(m.ID, internalError, why.Message))
		return
	}
	for l := range bytes.Lines(answer) {
		if m.Method == methodInitialize {
			c.client.negotiated(l)
		}
		c.send(bytes.TrimRight(l, "\n"))
	}
}

// send writes one line. A failure of out ends the connection. Some readers end
// lines at U+2028 and U+2029 too, which in JSON stand in strings only.
func (c *conn) send(line []byte) {
	line = bytes.ReplaceAll(line, []byte("\u2028"), []byte(`\u2028`))
	line = append(bytes.ReplaceAll(line, []byte("\u2029"), []byte(`\u2029`)), '\n')
	c.writing.Lock()
	defer c.writing.Unlock()
	select {
	case <-c.over:
		return
	default:
	}
	if _, err := c.out.Write(line); err != nil {
		select {
		case c.broken <- fmt.Errorf("writing answers: %w", err):
		default:
		}
	}
}
