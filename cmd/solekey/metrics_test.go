package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPrivatePortAnswersNoWebPage: a page could reach it under a name that it
// makes lead to loopback.
func TestPrivatePortAnswersNoWebPage(t *testing.T) {
	m := newMeter(slog.New(slog.DiscardHandler), version(), time.Now())
	for _, c := range []struct {
		host, origin string
		loopback     bool
		want         int
	}{
		{"127.0.0.1:9464", "", true, 200},
		{"localhost:9464", "", true, 200},
		{"[::1]:9464", "", true, 200},
		{"evil.example:9464", "", true, 403},
		{"evil.example", "", true, 403},
		{"127.0.0.1:9464", "http://evil.example", true, 403},
		{"10.1.2.3:9464", "", false, 200}, // a kubelet
		{"10.1.2.3:9464", "http://evil.example", false, 403},
	} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Host = c.host
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := httptest.NewRecorder()
		privatePort(&readiness{}, m, c.loopback).ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("Host %s, Origin %q, loopback %v: %d, want %d", c.host, c.origin, c.loopback, w.Code, c.want)
		}
	}
}

func TestMetricsAreTextThatPrometheusReads(t *testing.T) {
	c := newCounters("calls_total", "Calls.", "tool", "outcome")
	c.add("get", "ok")
	c.add("get", "ok")
	c.add("code", "not_found")
	d := newDurations("call_seconds", "How long.", "tool", time.Millisecond, time.Second)
	d.add("get", time.Millisecond) // a bound belongs to its bucket
	d.add("get", 2*time.Millisecond)
	d.add("get", time.Minute)
	var b strings.Builder
	c.write(&b)
	d.write(&b)
	gauge(&b, "open", "Open.", 0)
	want := `# HELP calls_total Calls.
# TYPE calls_total counter
calls_total{tool="code",outcome="not_found"} 1
calls_total{tool="get",outcome="ok"} 2
# HELP call_seconds How long.
# TYPE call_seconds histogram
call_seconds_bucket{tool="get",le="0.001"} 1
call_seconds_bucket{tool="get",le="1"} 2
call_seconds_bucket{tool="get",le="+Inf"} 3
call_seconds_sum{tool="get"} 60.003
call_seconds_count{tool="get"} 3
# HELP open Open.
# TYPE open gauge
open 0
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
