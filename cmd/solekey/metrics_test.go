package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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
