package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// What a running server shows of itself: metrics, logs of requests, and the
// private port. None of it names an identity, a label, a value or an address.

// meter counts what happens at the endpoint.
type meter struct {
	log     *slog.Logger
	version versionInfo
	started time.Time

	requests     *counters
	calls        *counters
	requestTimes *durations
	callTimes    *durations
	streams      atomic.Int64
	refused      refusals
}

var _ mcp.Observer = (*meter)(nil)

// refusals counts the answers that are logged, in sums.
type refusals struct{ unauthorized, forbidden, tooLarge, tooMany atomic.Int64 }

// of returns the counter of a status; nil if it is none of these.
func (r *refusals) of(status int) *atomic.Int64 {
	switch status {
	case http.StatusUnauthorized:
		return &r.unauthorized
	case http.StatusForbidden:
		return &r.forbidden
	case http.StatusRequestEntityTooLarge:
		return &r.tooLarge
	case http.StatusTooManyRequests:
		return &r.tooMany
	}
	return nil
}

func newMeter(log *slog.Logger, v versionInfo, now time.Time) *meter {
	// Most calls take about a millisecond, a code that is waited for up to 45
	// seconds.
	bounds := []time.Duration{
		250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
		10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
		500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute,
	}
	return &meter{
		log: log, version: v, started: now,
		requests:     newCounters("solekey_http_requests_total", "Answered requests.", "path", "status"),
		requestTimes: newDurations("solekey_http_request_duration_seconds", "Time to an answer; of /sse the life of the stream.", "path", bounds...),
		calls:        newCounters("solekey_tool_calls_total", "Tool calls, by ok or the word of their refusal.", "tool", "outcome"),
		callTimes:    newDurations("solekey_tool_call_duration_seconds", "Time of a tool call; get_totp_code waits on purpose.", "tool", bounds...),
	}
}

// Request counts an answered request.
func (m *meter) Request(path string, status int, took time.Duration) {
	m.requests.add(path, strconv.Itoa(status))
	m.requestTimes.add(path, took)
	if n := m.refused.of(status); n != nil {
		n.Add(1)
	}
	m.log.LogAttrs(context.Background(), slog.LevelDebug, "request",
		slog.String("path", path), slog.Int("status", status), slog.Float64("ms", float64(took.Microseconds())/1000))
}

// Call counts a tool call.
func (m *meter) Call(tool string, word vault.Word, took time.Duration) {
	m.calls.add(tool, cmp.Or(string(word), "ok"))
	m.callTimes.add(tool, took)
}

// Streams counts open event streams.
func (m *meter) Streams(delta int) { m.streams.Add(int64(delta)) }

// reportRefusals logs how many requests were refused, once a second if there
// were any, until ctx ends: who is refused must not be able to fill the log.
func (m *meter) reportRefusals(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.logRefusals()
		case <-ctx.Done():
			m.logRefusals()
			return
		}
	}
}

func (m *meter) logRefusals() {
	var sums []slog.Attr
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestEntityTooLarge, http.StatusTooManyRequests} {
		if n := m.refused.of(status).Swap(0); n > 0 {
			sums = append(sums, slog.Int64(strconv.Itoa(status), n))
		}
	}
	if len(sums) > 0 {
		m.log.LogAttrs(context.Background(), slog.LevelWarn, "requests refused", sums...)
	}
}

// write writes all metrics in the text format of Prometheus.
func (m *meter) write(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	var b bytes.Buffer
	m.requests.write(&b)
	m.requestTimes.write(&b)
	m.calls.write(&b)
	m.callTimes.write(&b)
	gauge(&b, "solekey_open_streams", "Event streams that are open.", float64(m.streams.Load()))
	header(&b, "solekey_build_info", "gauge", "The program that runs.")
	fmt.Fprintf(&b, "solekey_build_info{version=%q,revision=%q,goversion=%q} 1\n", m.version.Version, m.version.Revision, m.version.Go)
	writeProcess(&b, m.started)
	_, _ = w.Write(b.Bytes())
}

// privatePort answers orchestrators and scrapers, and no web page: nothing that
// has an Origin, and on loopback only what calls it by a loopback name.
func privatePort(r *readiness, m *meter, loopback bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answerWord(w, http.StatusOK, "live") })
	mux.Handle("GET /readyz", r)
	mux.HandleFunc("GET /metrics", m.write)
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Origin") != "" || loopback && !isLoopback(net.JoinHostPort(hostOnly(q.Host), "0")) {
			answerWord(w, http.StatusForbidden, "forbidden")
			return
		}
		mux.ServeHTTP(w, q)
	})
}

// hostOnly returns a Host header without its port.
func hostOnly(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

// answerWord writes a status and one word.
func answerWord(w http.ResponseWriter, status int, word string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, word+"\n")
}

const (
	probeTime  = 2 * time.Second
	probeFresh = time.Second
)

// probe reads from the store as a call does: store record, root material and
// a transaction of the engine. The identity that it asks for does not exist.
func probe(ctx context.Context, k *vault.Keeper) error {
	var nobody identity.ID
	for i := range nobody {
		nobody[i] = 0xff
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	_, err := k.Labels(ctx, nobody)
	if errors.Is(err, vault.NotFound) {
		return nil
	}
	return err
}

// readiness says whether calls can be answered.
type readiness struct {
	probe    func(context.Context) error
	now      func() time.Time
	draining atomic.Bool

	mu  sync.Mutex
	at  time.Time
	err error
}

// ServeHTTP answers 200 ready, 503 draining or 503 unavailable.
func (r *readiness) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	switch {
	case r.draining.Load():
		answerWord(w, http.StatusServiceUnavailable, "draining")
	case r.check(q.Context()) != nil:
		answerWord(w, http.StatusServiceUnavailable, "unavailable")
	default:
		answerWord(w, http.StatusOK, "ready")
	}
}

// check probes the store at most once per probeFresh.
func (r *readiness) check(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if since := now.Sub(r.at); since >= 0 && since < probeFresh {
		return r.err
	}
	err := r.probe(context.WithoutCancel(ctx)) // one caller's leaving is not another's answer
	r.at, r.err = now, err
	return err
}
