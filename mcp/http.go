package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"golang.org/x/time/rate"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault"
)

// The HTTP endpoint. /mcp is stateless: one request, one answer, no session
// id, nothing that outlives the request, so any replica answers any call. It
// does not use the library's HTTP servers, which keep running calls of
// everybody under the client's request ids, mint sessions for whoever asks,
// and read a body before they know whose it is. /sse and /message are in
// sse.go.

// HTTPOptions configure [Server.Handler].
type HTTPOptions struct {
	Hosts     []string // names the endpoint answers to, NAME or NAME:PORT
	Origins   []string // browser origins that may call, such as https://app.example.com
	Loopback  bool     // it listens on loopback only: loopback names and origins are fine
	Forwarded bool     // it is behind a proxy: the last entry of X-Forwarded-For is the client's address
	NoSSE     bool     // without /sse and /message
	Rate      int      // tool calls per second and identity; 0: DefaultRate, negative: no limit
	Observe   Observer // nil: nobody
}

// DefaultRate is how many tool calls per second an identity may make over
// HTTP, in bursts of four times as many. Requests of any kind are limited to
// five times that; a long one counts as several.
const DefaultRate = 200

// Observer is told what happens at the endpoint, for metrics and logs. Nothing
// it is told names an identity, a label or a value. Its methods are called
// concurrently and hold up the answer.
type Observer interface {
	// Request reports an answered request: to /mcp, /sse, /message or other.
	Request(path string, status int, took time.Duration)
	// Call reports a tool call: one of the tools, or other; the word of its
	// refusal, or none.
	Call(tool string, word vault.Word, took time.Duration)
	// Streams reports that event streams were opened (+1) or ended (-1).
	Streams(delta int)
}

// unobserved is nobody.
type unobserved struct{}

func (unobserved) Request(string, int, time.Duration)     {}
func (unobserved) Call(string, vault.Word, time.Duration) {}
func (unobserved) Streams(int)                            {}

// endpoint is the HTTP side of a server.
type endpoint struct {
	server  *Server
	http    HTTPOptions
	hosts   map[hostPort]bool
	limits  *limits
	streams *streams
	observe Observer
	settled chan struct{}
	faults  rate.Sometimes // what is logged of requests whose key is not proved
}

func newEndpoint(s *Server, o HTTPOptions) *endpoint {
	e := &endpoint{server: s, http: o, hosts: map[hostPort]bool{}, limits: newLimits(o.Rate), streams: newStreams(), observe: o.Observe, settled: make(chan struct{}, maxSettled), faults: rate.Sometimes{Interval: time.Second}}
	for _, name := range o.Hosts {
		e.hosts[parseHost(name)] = true
	}
	if e.observe == nil {
		e.observe = unobserved{}
	}
	return e
}

// Handler returns the endpoint: /mcp (Streamable HTTP, every revision), and
// /sse with /message (HTTP+SSE, revision 2024-11-05) unless NoSSE is set. The
// key of every request is proved anew; nothing answers without one.
//
// It expects an [http.Server] with ReadHeaderTimeout and ReadTimeout, which
// bound how long a request may take to arrive, and without WriteTimeout, which
// would end event streams; it sets a deadline of 10 s before each write.
func (s *Server) Handler() http.Handler { return s.endpoint }

// Shutdown ends the event streams and waits for them, or for ctx. Requests to
// /mcp that run are for [http.Server.Shutdown] to wait for.
func (s *Server) Shutdown(ctx context.Context) error { return s.endpoint.streams.shutdown(ctx) }

// ServeHTTP serves one request.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	out := &response{ResponseWriter: w}
	path := r.URL.Path
	switch path {
	case "/mcp", "/sse", "/message":
	default:
		path = "other"
	}
	defer func() {
		if p := recover(); p != nil {
			e.server.logPanic(p)
			if out.status == 0 {
				turnAway(out, &denial{http.StatusInternalServerError, vault.Refuse(errPanic)})
			}
		}
		e.observe.Request(path, out.status, time.Since(begun))
	}()
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// Who is turned away before a key is proved keeps no connection. Nor does
	// a chunked request: there may have been a Content-Length beside it, which
	// net/http hides, and a proxy that believed that one sees another end (RFC
	// 9112, 6.1).
	out.stays = len(r.TransferEncoding) == 0 && h.Get("Connection") == ""
	h.Set("Connection", "close")
	if d := e.route(out, r); d != nil {
		e.settle(out, r)
		turnAway(out, d)
	}
}

const (
	littleBody = 16 << 10
	littleWait = time.Second
	maxSettled = 64 // requests that are waited for; strangers take no more memory
)

// settle takes the rest of a denied HTTP/2 request, if that is little. An
// answer before the end of its request is followed by a reset of the stream
// (RFC 9113, 8.1), on which some clients (curl before 8) drop the answer that
// they have not read yet, and with it why the key opened nothing.
func (e *endpoint) settle(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 2 || r.ContentLength == 0 || r.ContentLength > littleBody {
		return
	}
	select {
	case e.settled <- struct{}{}:
		defer func() { <-e.settled }()
	default:
		return
	}
	if http.NewResponseController(w).SetReadDeadline(time.Now().Add(littleWait)) == nil {
		_, _ = io.CopyN(io.Discard, r.Body, littleBody) // what does not come is not needed
	}
}

// route serves a request, or says why not.
func (e *endpoint) route(w *response, r *http.Request) *denial {
	if d := e.host(r); d != nil {
		return d
	}
	if d := e.origin(r); d != nil {
		return d
	}
	switch path := r.URL.Path; {
	case path == "/mcp":
		return e.guarded(w, r, http.MethodPost, "http", e.post)
	case path == "/sse" && !e.http.NoSSE:
		return e.guarded(w, r, http.MethodGet, "sse", e.stream)
	case path == "/message" && !e.http.NoSSE:
		return e.guarded(w, r, http.MethodPost, "sse", e.message)
	case misplaced(r):
		return errLeaked
	case path == "/register": // the end of the OAuth discovery of some clients, which print it
		send(w, http.StatusNotFound, "text/plain; charset=utf-8", []byte(keyHint+"\n"))
		return nil
	case strings.HasPrefix(path, "/.well-known/"):
		return errDeadEnd
	}
	return errNowhere
}

// guarded passes a request on, once its key is proved.
func (e *endpoint) guarded(w *response, r *http.Request, method, via string, next func(http.ResponseWriter, *http.Request, *caller) *denial) *denial {
	if misplaced(r) {
		return errLeaked
	}
	if r.Method != method {
		w.Header().Set("Allow", method)
		return errMethod
	}
	c, d := e.prove(r, via)
	if d != nil {
		return d
	}
	if w.stays {
		w.Header().Del("Connection")
	}
	return next(w, r, c)
}

// post serves /mcp.
func (e *endpoint) post(w http.ResponseWriter, r *http.Request, c *caller) *denial {
	end, d := e.limits.begin(c.quota)
	if d != nil {
		return d
	}
	defer end()
	text, m, bad, d := e.receive(w, r, c)
	switch {
	case d != nil:
		return d
	case bad != nil:
		e.server.write(w, http.StatusBadRequest, bad)
		return nil
	case m.ID == nil: // a notification, or an answer to what was never asked
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	modern, bad := era(r.Header, m)
	if bad != nil {
		e.server.write(w, http.StatusBadRequest, bad)
		return nil
	}
	// The name is this request's alone: no other one can cancel it.
	name := "http-" + strconv.FormatInt(e.server.sessions.Add(1), 10)
	before, a := e.server.exchange(withCaller(r.Context(), c), name, m, text)
	if len(before) > 0 {
		e.server.writeEvents(w, before, a)
		return nil
	}
	status := http.StatusOK
	if modern && a.Error != nil {
		status = statusOf(a.Error.Code)
	}
	e.server.write(w, status, a)
	return nil
}

// receive reads the message of a request. One that is no message comes back
// as the answer to it.
func (e *endpoint) receive(w http.ResponseWriter, r *http.Request, c *caller) (text []byte, m message, bad *answer, _ *denial) {
	if !isJSON(r.Header.Get("Content-Type")) {
		return nil, m, nil, deny(http.StatusUnsupportedMediaType, vault.BadRequest, "A request is application/json.", "")
	}
	text, d := body(w, r)
	if d != nil {
		return nil, m, nil, d
	}
	if d := c.quota.weigh(text, e.server.now()); d != nil {
		return nil, m, nil, d
	}
	if identity.HoldsKey(string(text)) {
		return nil, m, nil, errKeyText
	}
	m, bad = parse(text)
	return text, m, bad, nil
}

// isJSON reports a Content-Type of JSON, whatever its parameters.
func isJSON(kind string) bool {
	if kind == "application/json" {
		return true
	}
	kind, _, err := mime.ParseMediaType(kind)
	return err == nil && kind == "application/json"
}

// era tells whether a request is of revision 2026-07-28 or later, and refuses
// one whose headers and body disagree about it (Streamable HTTP, "Protocol
// Version Header" and "Request Headers").
func era(h http.Header, m message) (modern bool, bad *answer) {
	var params struct {
		Meta struct {
			Version string `json:"io.modelcontextprotocol/protocolVersion"`
		} `json:"_meta"`
	}
	_ = json.Unmarshal(m.Params, &params) // what is unreadable has no version
	for _, name := range []string{mcp.HeaderProtocolVersion, mcp.HeaderMethod, mcp.HeaderName} {
		if len(h.Values(name)) > 1 { // what is in front may have read the other one
			return true, fault(m.ID, mcp.HEADER_MISMATCH, "The header "+name+" is given twice.")
		}
	}
	said, meant := h.Get(mcp.HeaderProtocolVersion), params.Meta.Version
	if !mcp.IsModernProtocol(said) && !mcp.IsModernProtocol(meant) {
		if said != "" && m.Method != mcp.MethodInitialize && !mcp.IsValidProtocolVersion(said) {
			return false, fault(m.ID, mcp.INVALID_REQUEST, "Unsupported protocol version")
		}
		return false, nil
	}
	switch {
	case h.Get(mcp.HeaderLastEventID) != "":
		return true, fault(m.ID, mcp.HEADER_MISMATCH, "Last-Event-ID: streams cannot be resumed.")
	case said == "":
		return true, fault(m.ID, mcp.HEADER_MISMATCH, "The header MCP-Protocol-Version is missing.")
	case meant == "":
		return true, fault(m.ID, mcp.INVALID_PARAMS, "missing or invalid _meta field "+mcp.MetaKeyProtocolVersion)
	case said != meant:
		return true, fault(m.ID, mcp.HEADER_MISMATCH, "The header MCP-Protocol-Version does not match the body.")
	}
	if err := mcp.ValidateStandardHeaders(h.Get, meant, m.Method, m.Params); err != nil && mcp.IsValidProtocolVersion(meant) {
		return true, fault(m.ID, mcp.HEADER_MISMATCH, "The headers Mcp-Method and Mcp-Name do not match the body.")
	}
	return true, nil
}

// statusOf maps the errors of revision 2026-07-28 to HTTP.
func statusOf(code int) int {
	switch code {
	case mcp.METHOD_NOT_FOUND:
		return http.StatusNotFound
	case mcp.INTERNAL_ERROR:
		return http.StatusOK
	}
	return http.StatusBadRequest
}

// write writes one answer.
func (s *Server) write(w http.ResponseWriter, status int, a *answer) {
	send(w, status, "application/json", s.encode(a))
}

// encode returns an answer as JSON; one that cannot be written becomes an
// error.
func (s *Server) encode(a *answer) []byte {
	text, err := marshal(a)
	if err != nil {
		s.log.Error("writing an answer failed", slog.String("cause", chain(err)))
		text, _ = json.Marshal(fault(a.ID, mcp.INTERNAL_ERROR, "internal error"))
	}
	return text
}

// marshal writes v as JSON. What that leaves in memory, a value of a vault
// perhaps, is erased as [seal.Do] says.
func marshal(v any) (text []byte, err error) {
	seal.Do(func() { text, err = json.Marshal(v) })
	return text, err
}

func (s *Server) encodeNote(n mcp.JSONRPCNotification) []byte {
	text, err := json.Marshal(n)
	if err != nil {
		s.log.Error("writing a notification failed", slog.String("cause", chain(err)))
		text = []byte("{}")
	}
	return text
}

// writeEvents writes notifications and the answer after them as an event
// stream, which ends with it.
func (s *Server) writeEvents(w http.ResponseWriter, before []mcp.JSONRPCNotification, a *answer) {
	var text []byte
	for _, note := range before {
		text = event(text, s.encodeNote(note))
	}
	w.Header().Set("X-Accel-Buffering", "no")
	send(w, http.StatusOK, "text/event-stream", event(text, s.encode(a)))
}

const writeTime = 10 * time.Second

// send writes a whole answer. A client that does not take it is cut off.
func send(w http.ResponseWriter, status int, kind string, text []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(text)))
	_ = patience(w)
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that went away has nobody to tell
}

// patience bounds the next write.
func patience(w http.ResponseWriter) error {
	err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	if errors.Is(err, http.ErrNotSupported) {
		return nil // not a network connection
	}
	return err
}

// response remembers the status of an answer.
type response struct {
	http.ResponseWriter
	status int
	stays  bool // the connection may, once a key is proved
}

// WriteHeader implements [http.ResponseWriter].
func (w *response) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for [http.ResponseController].
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
