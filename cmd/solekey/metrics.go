package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Metrics in the text format of Prometheus, version 0.0.4: what `serve` needs
// of it, counters and histograms with labels of fixed words, and a process's
// own figures. The libraries for it run code in every process that links
// them, also in `solekey mcp`, whose start is counted in milliseconds.

// counters is a counter for each pair of label values.
type counters struct {
	name, about string
	labels      [2]string

	mu sync.RWMutex
	of map[[2]string]*atomic.Uint64
}

func newCounters(name, about, label1, label2 string) *counters {
	return &counters{name: name, about: about, labels: [2]string{label1, label2}, of: map[[2]string]*atomic.Uint64{}}
}

// add counts one. The values must be of a small set.
func (c *counters) add(value1, value2 string) {
	at := [2]string{value1, value2}
	c.mu.RLock()
	n := c.of[at]
	c.mu.RUnlock()
	if n == nil {
		c.mu.Lock()
		if n = c.of[at]; n == nil {
			n = new(atomic.Uint64)
			c.of[at] = n
		}
		c.mu.Unlock()
	}
	n.Add(1)
}

func (c *counters) write(w io.Writer) {
	header(w, c.name, "counter", c.about)
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, at := range slices.SortedFunc(maps.Keys(c.of), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		fmt.Fprintf(w, "%s{%s=%q,%s=%q} %d\n", c.name, c.labels[0], at[0], c.labels[1], at[1], c.of[at].Load())
	}
}

// durations is a histogram of durations for each value of a label.
type durations struct {
	name, about, label string
	bounds             []time.Duration // upper ones, ascending

	mu sync.RWMutex
	of map[string]*histogram
}

// histogram counts durations up to each bound; the last count is of those
// above all.
type histogram struct {
	counts []atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

func newDurations(name, about, label string, bounds ...time.Duration) *durations {
	return &durations{name: name, about: about, label: label, bounds: bounds, of: map[string]*histogram{}}
}

// add counts one duration. The values must be of a small set.
func (d *durations) add(value string, took time.Duration) {
	d.mu.RLock()
	h := d.of[value]
	d.mu.RUnlock()
	if h == nil {
		d.mu.Lock()
		if h = d.of[value]; h == nil {
			h = &histogram{counts: make([]atomic.Uint64, len(d.bounds)+1)}
			d.of[value] = h
		}
		d.mu.Unlock()
	}
	at, _ := slices.BinarySearch(d.bounds, took)
	h.counts[at].Add(1)
	h.sum.Add(int64(took))
}

func (d *durations) write(w io.Writer) {
	header(w, d.name, "histogram", d.about)
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, value := range slices.Sorted(maps.Keys(d.of)) {
		h, sum, total := d.of[value], d.of[value].sum.Load(), uint64(0)
		for i := range h.counts {
			bound := "+Inf"
			if i < len(d.bounds) {
				bound = decimal(d.bounds[i].Seconds())
			}
			total += h.counts[i].Load()
			fmt.Fprintf(w, "%s_bucket{%s=%q,le=%q} %d\n", d.name, d.label, value, bound, total)
		}
		fmt.Fprintf(w, "%s_sum{%s=%q} %s\n", d.name, d.label, value, decimal(time.Duration(sum).Seconds()))
		fmt.Fprintf(w, "%s_count{%s=%q} %d\n", d.name, d.label, value, total)
	}
}

func header(w io.Writer, name, kind, about string) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, about, name, kind)
}

func gauge(w io.Writer, name, about string, value float64) {
	header(w, name, "gauge", about)
	fmt.Fprintf(w, "%s %s\n", name, decimal(value))
}

func decimal(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

// ticksPerSecond is USER_HZ, in which Linux counts processor time for
// programs on every architecture that Go runs on.
const ticksPerSecond = 100

// writeProcess writes what this process uses. Outside Linux it leaves out
// what only /proc tells.
func writeProcess(w io.Writer, started time.Time) {
	gauge(w, "process_start_time_seconds", "When the process started, in Unix seconds.", float64(started.UnixMilli())/1000)
	if stat, err := os.ReadFile("/proc/self/stat"); err == nil {
		// What follows the name in parentheses, which may hold anything,
		// begins with field 3.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) > 21 {
			user, _ := strconv.ParseFloat(f[11], 64)
			system, _ := strconv.ParseFloat(f[12], 64)
			pages, _ := strconv.ParseFloat(f[21], 64)
			header(w, "process_cpu_seconds_total", "counter", "Processor time used.")
			fmt.Fprintf(w, "process_cpu_seconds_total %s\n", decimal((user+system)/ticksPerSecond))
			gauge(w, "process_resident_memory_bytes", "Memory resident.", pages*float64(os.Getpagesize()))
		}
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		gauge(w, "process_open_fds", "Descriptors open.", float64(len(fds)-1)) // but the one that reads them
	}
	own := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(own)
	gauge(w, "go_goroutines", "Goroutines that exist.", float64(own[0].Value.Uint64()))
	gauge(w, "go_memstats_heap_alloc_bytes", "Heap bytes in use, and not yet swept.", float64(own[1].Value.Uint64()))
	gauge(w, "go_memstats_sys_bytes", "Bytes mapped by the runtime.", float64(own[2].Value.Uint64()))
	header(w, "go_gc_cycles_total", "counter", "Completed garbage collections.")
	fmt.Fprintf(w, "go_gc_cycles_total %d\n", own[3].Value.Uint64())
}
