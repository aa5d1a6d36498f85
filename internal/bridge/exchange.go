package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	maxAnswer   = 4 << 20          // bytes of an answer, a whole event stream included
	maxNesting  = 64               // of an answer
	callTime    = 75 * time.Second // for a tools/call
	requestTime = 15 * time.Second // for any other request
	maxWords    = 300              // bytes of a sentence that the endpoint wrote
	maxWait     = time.Hour
)

// client is the endpoint's side: one request out, one answer back.
type client struct {
	endpoint  Endpoint
	transport *http.Transport
	key       func() (string, *Refusal)
	log       *slog.Logger
	agent     string

	mu      sync.Mutex
	bearer  string // empty: not read yet
	version string // negotiated by initialize
	trouble string // what was logged last; empty: the endpoint answers
}

func newClient(o Options) *client {
	c := &client{endpoint: o.Endpoint, transport: o.Endpoint.transport(), key: o.Key, log: o.Log, agent: "solekey"}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if o.Version != "" && visible(o.Version) {
		c.agent += "/" + o.Version
	}
	return c
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// exchange sends a request and returns its answer as a line, under the id of
// the request. What [reply.message] lets through before the answer goes to
// note.
func (c *client) exchange(ctx context.Context, m message, line []byte, note func([]byte)) ([]byte, *Refusal) {
	limit := requestTime
	if m.Method == methodCall {
		limit = callTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, why := c.ask(ctx, m, line, note)
	if why == nil && m.Method == methodInitialize {
		c.negotiated(answer)
	}
	c.tell(ctx, why)
	return answer, why
}

// ask sends a request; a second time if the key turns out to be replaced.
func (c *client) ask(ctx context.Context, m message, line []byte, note func([]byte)) ([]byte, *Refusal) {
	bearer, why := c.current()
	if why != nil {
		return nil, why
	}
	response, why := c.post(ctx, m, line, bearer)
	if why != nil {
		return nil, why
	}
	if response.StatusCode == http.StatusUnauthorized {
		if next, ok := c.renew(bearer); ok {
			_ = response.Body.Close()
			if response, why = c.post(ctx, m, line, next); why != nil {
				return nil, why
			}
			bearer = next
		}
	}
	defer response.Body.Close() // of a stream that goes on, without waiting for its end
	r := &reply{client: c, request: m, bearer: bearer, status: response.StatusCode, header: response.Header, note: note}
	r.body = &io.LimitedReader{R: response.Body, N: maxAnswer + 1}
	return r.read(ctx)
}

// post sends a line. It does not follow redirects: it is the transport that
// is asked, not a client.
func (c *client) post(ctx context.Context, m message, line []byte, bearer string) (*http.Response, *Refusal) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint.url, bytes.NewReader(line))
	if err != nil {
		return nil, c.endpoint.unreachable(ctx, err)
	}
	c.mu.Lock()
	negotiated := c.version
	c.mu.Unlock()
	m.describe(r.Header, negotiated)
	r.Header.Set("Authorization", "Bearer "+bearer)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	r.Header.Set("User-Agent", c.agent)
	if repeatable(m) {
		r.Header["Idempotency-Key"] = nil // for net/http alone; nothing is sent
	}
	response, err := c.transport.RoundTrip(r)
	if err != nil {
		return nil, c.endpoint.unreachable(ctx, err)
	}
	return response, nil
}

// repeatable reports that a request may be sent again if the connection broke
// before any byte of an answer.
func repeatable(m message) bool {
	if m.Method != methodCall {
		return true
	}
	switch m.meta().name {
	case "get_secret", "get_totp_code", "list_labels":
		return true
	}
	return false
}

// current returns the bearer, which is read by the first request that gets
// one.
func (c *client) current() (string, *Refusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bearer != "" {
		return c.bearer, nil
	}
	return c.read()
}

// read asks for the bearer anew. The caller holds mu.
func (c *client) read() (string, *Refusal) {
	bearer, why := c.key()
	if why != nil {
		return "", why
	}
	if bearer == "" || !visible(bearer) || strings.Contains(bearer, " ") {
		return "", &Refusal{Word: "unauthorized", Message: "The key of this machine is not a bearer token.", Hint: "Tell the owner to store the key again."}
	}
	c.bearer = bearer
	return bearer, nil
}

// renew reads the bearer again. It reports whether it is another one than
// old.
func (c *client) renew(old string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bearer != old {
		return c.bearer, c.bearer != "" // another request was faster
	}
	next, why := c.read()
	return next, why == nil && next != old
}

// negotiated remembers the protocol version of an answer to initialize.
func (c *client) negotiated(answer []byte) {
	var a struct {
		Result struct {
			Version string `json:"protocolVersion"`
		} `json:"result"`
	}
	if json.Unmarshal(answer, &a) != nil || a.Result.Version == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version = a.Result.Version
}

// tell logs when the endpoint stops answering, why, and when it answers
// again.
func (c *client) tell(ctx context.Context, why *Refusal) {
	if ctx.Err() != nil && why != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return // it was us who ended it
	}
	trouble := ""
	if why != nil {
		trouble = why.Message
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if trouble == c.trouble {
		return
	}
	c.trouble = trouble
	if trouble == "" {
		c.log.InfoContext(ctx, "the endpoint answers again")
		return
	}
	c.log.WarnContext(ctx, "no answer from the endpoint", slog.String("word", why.Word), slog.String("cause", trouble))
}

// reply is an HTTP response on its way to become an answer.
type reply struct {
	client  *client
	request message
	bearer  string
	status  int
	header  http.Header
	body    *io.LimitedReader
	note    func([]byte)
	noted   bool // the acknowledgement was passed on
}

// read returns the answer to the request, or why there is none.
func (r *reply) read(ctx context.Context) ([]byte, *Refusal) {
	kind, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	e := r.client.endpoint
	switch {
	case kind == "text/event-stream" && r.status == http.StatusOK:
		return r.events(ctx)
	case kind != "application/json" || r.status >= 300 && r.status < 400:
		return nil, r.refusal(nil)
	}
	body, err := io.ReadAll(r.body)
	switch {
	case err != nil:
		return nil, e.unreachable(ctx, err)
	case len(body) > maxAnswer:
		return nil, e.garbled()
	}
	if r.status != http.StatusUnauthorized {
		if line, what := r.message(body); what == isAnswer {
			return line, nil
		}
	}
	return nil, r.refusal(body)
}

// events returns the answer of an event stream.
func (r *reply) events(ctx context.Context) ([]byte, *Refusal) {
	d := newDecoder(r.body)
	for {
		data, err := d.next()
		if line, what := r.message(data); what == isAnswer {
			return line, nil
		} else if what == isNote {
			r.note(line)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, r.client.endpoint.garbled()
		case err != nil:
			return nil, r.client.endpoint.unreachable(ctx, err)
		}
	}
}

// what a message of the endpoint is.
type what uint8

const (
	isNothing what = iota // of use
	isNote
	isAnswer
)

// message reads one message of the endpoint and returns it as a line: an
// answer to the request under the request's own id, since servers may round
// large numbers, or the one notification that ours sends. A message that holds
// the bearer is of no use: what echoes requests is no endpoint.
func (r *reply) message(b []byte) ([]byte, what) {
	var m message
	if len(b) == 0 || !utf8.Valid(b) || json.Unmarshal(b, &m) != nil || m.Version != "2.0" ||
		depth(b) > maxNesting || bytes.Contains(b, []byte(r.bearer)) {
		return nil, isNothing
	}
	switch {
	case m.Method == methodAcknowledged && m.ID == nil && m.Result == nil && m.Error == nil && r.request.Method == methodListen && !r.noted:
		r.noted = true
		var line bytes.Buffer
		if json.Compact(&line, b) != nil {
			return nil, isNothing
		}
		return line.Bytes(), isNote
	case m.Method != "":
		return nil, isNothing // of what else an endpoint may send, a client here needs nothing
	case m.Error == nil && object(m.Result) && sameID(m.ID, r.request.ID):
		return success(r.request.ID, m.Result), isAnswer
	case m.Result == nil && object(m.Error) && (sameID(m.ID, r.request.ID) || r.status >= 400 && nullID(m.ID)):
		return r.failure(m.Error)
	}
	return nil, isNothing
}

// failure returns a JSON-RPC error of the endpoint.
func (r *reply) failure(e json.RawMessage) ([]byte, what) {
	var d struct {
		Code    *int    `json:"code"`
		Message *string `json:"message"`
	}
	if json.Unmarshal(e, &d) != nil || d.Code == nil || d.Message == nil {
		return nil, isNothing
	}
	return compact(struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Error   json.RawMessage `json:"error"`
	}{"2.0", r.request.ID, e}), isAnswer
}

func object(b json.RawMessage) bool { return len(b) > 0 && b[0] == '{' }

func nullID(id json.RawMessage) bool { return id == nil || string(id) == "null" }

// sameID compares what a server made of an id with the id.
func sameID(got, want json.RawMessage) bool {
	if bytes.Equal(got, want) {
		return true
	}
	var a, b any
	return json.Unmarshal(got, &a) == nil && json.Unmarshal(want, &b) == nil && a != nil && a == b
}

// refusal words a response that is no answer: by what a solekey endpoint says
// in the body, else by the status.
func (r *reply) refusal(body []byte) *Refusal {
	out := r.byStatus()
	var said struct {
		Word    string `json:"error"`
		Message string `json:"message"`
		Hint    string `json:"hint"`
		Retry   int64  `json:"retry_after_ms"`
	}
	if r.status < 400 || json.Unmarshal(body, &said) != nil || !word(said.Word) || !r.speakable(said.Message) {
		return out
	}
	out.Word, out.Message, out.Hint = said.Word, said.Message, ""
	if r.speakable(said.Hint) {
		out.Hint = said.Hint
	}
	if said.Retry > 0 && said.Retry <= maxWait.Milliseconds() {
		out.RetryAfter = time.Duration(said.Retry) * time.Millisecond
	}
	return out
}

// word reports whether s may be the reason of a refusal.
func word(s string) bool {
	switch s {
	case "unauthorized", "revoked", "expired", "forbidden", "bad_request", "rate_limited", "unavailable", "audit_unavailable":
		return true
	}
	return false
}

// speakable reports that a text of the endpoint may be shown: short, in
// printable characters, without the bearer.
func (r *reply) speakable(s string) bool {
	if s == "" || len(s) > maxWords || !utf8.ValidString(s) || strings.Contains(s, r.bearer) {
		return false
	}
	return strings.IndexFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) < 0
}

func (r *reply) byStatus() *Refusal {
	e := r.client.endpoint
	at := " (HTTP " + strconv.Itoa(r.status) + ")."
	switch s := r.status; {
	case s == http.StatusUnauthorized:
		return &Refusal{Word: "unauthorized", Message: "No valid agent key.", Hint: "Tell the owner that the key of this profile does not open the endpoint."}
	case s == http.StatusRequestEntityTooLarge:
		return &Refusal{Word: "bad_request", Message: "The request is too large for the endpoint."}
	case s == http.StatusTooManyRequests:
		return &Refusal{Word: "rate_limited", Message: e.host + " takes no further calls for now.", Hint: "Repeat this call after the wait.", RetryAfter: r.retry(time.Second)}
	case s == http.StatusForbidden:
		return e.wrong("refuses this connection"+at, "Tell the owner to check the URL of the profile, and --allow-host of the server.", 0)
	case s >= 300 && s < 400:
		return e.wrong("redirects elsewhere, which is not followed"+at, hintURL, 0)
	case s == http.StatusNotFound, s == http.StatusMethodNotAllowed:
		return e.wrong("has no MCP endpoint at this URL"+at, hintURL, 0)
	case s >= 500:
		return e.wrong("is not available"+at, hintWait, r.retry(hintLater))
	}
	return e.garbled()
}

// garbled is the refusal of what is no answer.
func (e Endpoint) garbled() *Refusal {
	return e.wrong("answered something that is no answer to this request.", hintURL, 0)
}

// retry reads Retry-After in seconds.
func (r *reply) retry(otherwise time.Duration) time.Duration {
	n, err := strconv.ParseUint(r.header.Get("Retry-After"), 10, 32)
	if err != nil || n == 0 {
		return otherwise
	}
	return min(time.Duration(n)*time.Second, maxWait)
}
