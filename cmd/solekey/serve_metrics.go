package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// What a running server shows of itself: metrics, logs of requests, and the
// private port. None of it names an identity, a label, a value or an address.

// meter counts what happens at the endpoint.
type meter struct {
	set     *metrics.Set
	log     *slog.Logger
	streams atomic.Int64
	refused refusals
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

func newMeter(log *slog.Logger, v versionInfo) *meter {
	m := &meter{set: metrics.NewSet(), log: log}
	m.set.NewGauge("solekey_open_streams", func() float64 { return float64(m.streams.Load()) })
	m.set.NewGauge(fmt.Sprintf(`solekey_build_info{version=%q,revision=%q,goversion=%q}`, v.Version, v.Revision, v.Go), func() float64 { return 1 })
	return m
}

// buckets are the upper bounds of durations in seconds: a call takes less
// than a millisecond, a code that is waited for up to a minute.
func buckets() []float64 {
	return []float64{0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
}

// Request counts an answered request.
func (m *meter) Request(path string, status int, took time.Duration) {
	code := strconv.Itoa(status)
	m.set.GetOrCreateCounter(`solekey_http_requests_total{path="` + path + `",status="` + code + `"}`).Inc()
	m.set.GetOrCreatePrometheusHistogramExt(`solekey_http_request_duration_seconds{path="`+path+`"}`, buckets()).Update(took.Seconds())
	if n := m.refused.of(status); n != nil {
		n.Add(1)
	}
	m.log.LogAttrs(context.Background(), slog.LevelDebug, "request",
		slog.String("path", path), slog.Int("status", status), slog.Float64("ms", float64(took.Microseconds())/1000))
}

// Call counts a tool call.
func (m *meter) Call(tool string, word vault.Word, took time.Duration) {
	outcome := string(word)
	if outcome == "" {
		outcome = "ok"
	}
	m.set.GetOrCreateCounter(`solekey_tool_calls_total{tool="` + tool + `",outcome="` + outcome + `"}`).Inc()
	m.set.GetOrCreatePrometheusHistogramExt(`solekey_tool_call_duration_seconds{tool="`+tool+`"}`, buckets()).Update(took.Seconds())
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
	m.set.WritePrometheus(w)
	metrics.WriteProcessMetrics(w)
}

// privatePort answers orchestrators and scrapers.
func privatePort(r *readiness, m *meter) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answerWord(w, http.StatusOK, "live") })
	mux.Handle("GET /readyz", r)
	mux.HandleFunc("GET /metrics", m.write)
	return mux
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
