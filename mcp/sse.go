package mcp

import (
	"bytes"
	"context"
	"crypto/rand"
	"net/http"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// HTTP+SSE, the transport of revision 2024-11-05: GET /sse is a stream of
// events, whose first one names where to POST; the answers to what is posted
// come on the stream.
//
//   - The session id opens nothing: a POST brings its own key, and a stream
//     takes it only from the key slot that opened it. An id that is invented,
//     ended or another slot's is 404.
//   - A stream is judged again every 400 ms, each by itself, and ends with its
//     key: in under a second after a revocation in any process. While the store
//     cannot be asked it goes on for about 10 s, and then ends as well: it gives
//     nothing by itself, as each call on it passes the gate.
//   - What runs for a stream ends with it.
//   - A reader who stalls is dropped after 10 s.

const (
	judgeEvery   = 400 * time.Millisecond
	judgePause   = 10 * time.Second       // without a judgement
	endTime      = 100 * time.Millisecond // to end a stream in order
	aliveEvery   = 15 * time.Second
	maxUnheard   = 64 // requests of one stream whose answers are not written yet
	sessionParam = "sessionId"
)

// streams are the open ones of an endpoint.
type streams struct {
	mu     sync.Mutex
	open   map[string]*stream
	closed bool
	work   sync.WaitGroup // handlers and what runs for them; grows under mu while not closed
}

func newStreams() *streams { return &streams{open: map[string]*stream{}} }

// stream is one open event stream.
type stream struct {
	id     string
	slot   identity.SlotID
	ctx    context.Context // ends with the stream
	cancel context.CancelFunc
	places chan struct{} // one for each request that is not answered yet
	events chan answers  // holds as many
}

// answers are what waits to be written to a stream for one request. Until it
// is written, or the stream ends, the request counts as running: what nobody
// reads is memory as well.
type answers struct {
	text    []byte
	written func()
}

// add registers a stream, or says why there is no room.
func (s *streams) add(ctx context.Context, slot identity.SlotID) (*stream, *denial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosing
	}
	if len(s.open) >= maxStreamsOfAll {
		return nil, &denial{http.StatusTooManyRequests, tooFast("The endpoint has no room for another stream.", time.Second)}
	}
	st := &stream{id: rand.Text(), slot: slot, places: make(chan struct{}, maxUnheard), events: make(chan answers, maxUnheard)}
	st.ctx, st.cancel = context.WithCancel(ctx)
	s.open[st.id] = st
	s.work.Add(1)
	return st, nil
}

func (s *streams) remove(st *stream) {
	st.cancel()
	s.mu.Lock()
	delete(s.open, st.id)
	s.mu.Unlock()
	s.work.Done()
}

// find returns the open stream of an id; nil if it is not the slot's.
func (s *streams) find(id string, slot identity.SlotID) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.open[id]; st != nil && st.slot == slot {
		return st
	}
	return nil
}

// start runs f for a stream, unless it has ended.
func (s *streams) start(st *stream, f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[st.id] != st || s.closed {
		return false
	}
	s.work.Go(f)
	return true
}

func (s *streams) shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for _, st := range s.open {
		st.cancel()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stream serves /sse.
func (e *endpoint) stream(w http.ResponseWriter, r *http.Request, c *caller) *denial {
	v, err := c.open(r.Context())
	if err != nil {
		return &denial{http.StatusServiceUnavailable, vault.Refuse(err)}
	}
	if !e.limits.stream(c.quota) {
		return &denial{http.StatusTooManyRequests, tooFast("This identity has as many streams open as it may.", time.Second)}
	}
	defer e.limits.endStream(c.quota)
	st, d := e.streams.add(r.Context(), v.Slot())
	if d != nil {
		return d
	}
	defer e.streams.remove(st)
	e.observe.Streams(+1)
	defer e.observe.Streams(-1)

	ctl := http.NewResponseController(w)
	var judging sync.WaitGroup
	judging.Go(func() {
		e.server.calmly(func() { judge(st, v) })
		// A write that waits for its reader is freed; one that does not has
		// the time to end the stream in order. tell looks at the end of the
		// stream after it sets a deadline of its own.
		_ = ctl.SetWriteDeadline(time.Now().Add(endTime))
	})
	defer judging.Wait()
	defer st.cancel()
	tell(st, w, ctl)
	return nil
}

// judge ends a stream whose key is at its end. It returns when the stream has
// ended.
func judge(st *stream, v *vault.Vault) {
	defer st.cancel()
	tick := time.NewTicker(judgeEvery)
	defer tick.Stop()
	for good := time.Now(); ; {
		select {
		case <-st.ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(st.ctx, unlockTime)
		err := v.Live(ctx)
		cancel()
		switch word := vault.Refuse(err).Word; {
		case err == nil:
			good = time.Now()
		case word == vault.Revoked || word == vault.Expired || word == vault.Unauthorized, time.Since(good) > judgePause:
			return
		}
	}
}

// tell writes the events of a stream until it ends.
func tell(st *stream, w http.ResponseWriter, ctl *http.ResponseController) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	nothing := func() {}
	next := answers{[]byte("event: endpoint\ndata: /message?" + sessionParam + "=" + st.id + "\n\n"), nothing}
	for {
		if patience(w) != nil || st.ctx.Err() != nil {
			return
		}
		if _, err := w.Write(next.text); err != nil || ctl.Flush() != nil {
			return
		}
		next.written()
		select {
		case <-st.ctx.Done():
			return
		case next = <-st.events:
			<-st.places
		case <-alive.C:
			next = answers{[]byte(":\n\n"), nothing}
		}
	}
}

// event appends one event that carries a message.
func event(to, message []byte) []byte {
	to = append(to, "event: message\ndata: "...)
	to = append(to, bytes.TrimSuffix(message, []byte{'\n'})...)
	return append(to, "\n\n"...)
}

// message serves /message.
func (e *endpoint) message(w http.ResponseWriter, r *http.Request, c *caller) *denial {
	v, err := c.open(r.Context())
	if err != nil {
		return &denial{http.StatusServiceUnavailable, vault.Refuse(err)}
	}
	st := e.streams.find(r.URL.Query().Get(sessionParam), v.Slot())
	if st == nil {
		return errNoStream
	}
	end, d := e.limits.begin(c.quota)
	if d != nil {
		return d
	}
	handed := false // to the goroutine that answers
	defer func() {
		if !handed {
			end()
		}
	}()
	text, m, bad, d := e.receive(w, r, c)
	switch {
	case d != nil:
		return d
	case bad != nil:
		e.server.write(w, http.StatusBadRequest, bad)
		return nil
	case m.ID == nil:
		e.notice(st, c, m, text)
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	select {
	case st.places <- struct{}{}:
	default:
		return &denial{http.StatusTooManyRequests, tooFast("Too many requests of this session wait for their answer.", time.Second)}
	}
	handed = e.streams.start(st, func() {
		e.server.calmly(func() { e.answer(st, c, m, text, end) })
	})
	if !handed {
		<-st.places
		return errNoStream
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// notice serves a message that wants no answer. Only a cancellation means
// anything; it reaches the requests of its own stream.
func (e *endpoint) notice(st *stream, c *caller, m message, text []byte) {
	if m.Method == mcp.MethodNotificationCancelled {
		e.server.handle(e.server.proto.WithContext(withCaller(st.ctx, c), &session{name: st.id}), m, text)
	}
}

// answer answers a request on its stream, and calls end when that is written
// or the stream has ended.
func (e *endpoint) answer(st *stream, c *caller, m message, text []byte, end func()) {
	defer func() { // a panic above writes nothing
		if end != nil {
			end()
		}
	}()
	before, a := e.server.exchange(withCaller(st.ctx, c), st.id, m, text)
	var events []byte
	for _, note := range before {
		events = event(events, e.server.encodeNote(note))
	}
	events = event(events, e.server.encode(a))
	written := sync.OnceFunc(end)
	end = nil
	stop := context.AfterFunc(st.ctx, written)
	st.events <- answers{events, func() { stop(); written() }} // never waits: its place was kept
}
