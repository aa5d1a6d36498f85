//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestSoakLeavesNothingBehind loads one server with everything that clients
// do, good and bad, while the owner stores values and rotates keys, and
// watches its memory, goroutines and descriptors: they do not grow, and what
// came with the load goes with it. Every good call is answered.
//
// SOLEKEY_SOAK_TIME says how long a soak takes, 10m if it is not set.
func TestSoakLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	s := newSoak(t)
	before := s.rest("before the load")
	s.begin()
	s.watch(soakTime(t))
	close(s.stop)
	s.work.Wait()
	s.judge(before)
	s.h.stop()
}

// soakTime is how long the load lasts.
func soakTime(t *testing.T) time.Duration {
	text := os.Getenv("SOLEKEY_SOAK_TIME")
	switch {
	case !soaking() && testing.Short():
		return 2 * time.Second
	case !soaking():
		return 4 * time.Second
	case text == "":
		return 10 * time.Minute
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// soak is the load and what it saw.
type soak struct {
	*world
	h       *hosted
	tenants []*tenant
	stop    chan struct{}
	work    sync.WaitGroup

	good, refused, aborted, sessions, puts, rotations atomic.Int64

	mu      sync.Mutex
	missed  []string
	samples []sample
}

// tenant is one identity, whose key changes.
type tenant struct {
	name, value string
	mu          sync.Mutex
	key         string
	fresh       int // the newest version of the label that is written
}

func (t *tenant) now() (key string, fresh int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.key, t.fresh
}

// sample is what a server holds at one moment.
type sample struct {
	at                           time.Duration
	anon                         int // KiB
	goroutines, threads, streams int
	fds                          int
}

func (s sample) String() string {
	return fmt.Sprintf("%6.1fs: %d KiB, %d goroutines, %d threads, %d descriptors, %d streams", s.at.Seconds(), s.anon, s.goroutines, s.threads, s.fds, s.streams)
}

func newSoak(t *testing.T) *soak {
	s := &soak{world: newWorld(t), stop: make(chan struct{})}
	for i := range 6 {
		name := fmt.Sprintf("tenant-%d", i)
		s.must("identity", "create", name)
		s.put(name, "TOKEN", "CANARY-of-"+name)
		s.put(name, "FRESH", freshValue(1))
		s.tenants = append(s.tenants, &tenant{name: name, value: "CANARY-of-" + name, key: s.keyOf(name), fresh: 1})
	}
	s.h = s.host(setting{}, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--rate", "0")
	beginSteady(t, s.h, s.tenants[0].key, "TOKEN", s.tenants[0].value).end(t) // what is made on first use is there
	return s
}

func freshValue(version int) string { return fmt.Sprintf("fresh value %d", version) }

// sample looks at the server.
func (s *soak) sample(begun time.Time) sample {
	pid := s.h.cmd.Process.Pid
	out := sample{
		at: time.Since(begun), anon: memory(s.t, pid, "RssAnon"), threads: memory(s.t, pid, "Threads"),
		goroutines: int(s.h.gauge("go_goroutines")), streams: int(s.h.gauge("solekey_open_streams")), fds: int(s.h.gauge("process_open_fds")),
	}
	return out
}

// rest waits until the server holds no more than it does at rest, and returns
// the least that was seen.
func (s *soak) rest(when string) sample {
	s.t.Helper()
	begun, least := time.Now(), sample{goroutines: math.MaxInt, fds: math.MaxInt}
	for time.Since(begun) < time.Second { // connections linger for 500 ms after their last answer
		now := s.sample(begun)
		if now.goroutines <= least.goroutines && now.fds <= least.fds {
			least = now
		}
		<-time.After(50 * time.Millisecond)
	}
	s.t.Logf("%s: %v", when, least)
	return least
}

// loop repeats something at a pace until the end.
func (s *soak) loop(n int, pace time.Duration, f func(r *mathrand.Rand)) {
	for i := range n {
		s.work.Go(func() {
			r := mathrand.New(mathrand.NewPCG(uint64(i), uint64(pace)))
			for {
				select {
				case <-s.stop:
					return
				case <-time.After(time.Duration(r.Int64N(int64(2 * pace)))):
				}
				f(r)
			}
		})
	}
}

// begin starts everybody.
func (s *soak) begin() {
	s.loop(8, 20*time.Millisecond, func(r *mathrand.Rand) { s.read(r, r.IntN(2) == 0) })
	s.loop(4, 50*time.Millisecond, s.converse)
	s.loop(3, 50*time.Millisecond, s.abort)
	s.loop(1, 300*time.Millisecond, s.stranger) // fewer than the failed keys that an address may show
	s.loop(1, 300*time.Millisecond, s.write)
	s.loop(1, 700*time.Millisecond, s.rotate)
}

func (s *soak) anyone(r *mathrand.Rand) *tenant { return s.tenants[r.IntN(len(s.tenants))] }

func (s *soak) miss(what string, r reply, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missed = append(s.missed, fmt.Sprintf("%s: %s, %v", what, r.said(), err))
}

// check counts a good answer.
func (s *soak) check(what, want string, r reply, err error) {
	if err != nil || r.text("value") != want {
		s.miss(what, r, err)
		return
	}
	s.good.Add(1)
}

// read makes some calls on a connection of its own.
func (s *soak) read(r *mathrand.Rand, modern bool) {
	t := s.anyone(r)
	key, least := t.now()
	a := newAgent(s.h, key)
	defer a.close()
	ask := a.legacy
	if modern {
		ask = a.modern
	}
	for range 1 + r.IntN(4) {
		got, err := ask(context.Background(), "TOKEN")
		s.check("a call", t.value, got, err)
	}
	got, err := ask(context.Background(), "FRESH")
	var version int
	if _, scan := fmt.Sscanf(got.text("value"), "fresh value %d", &version); err != nil || scan != nil || version < least {
		s.miss(fmt.Sprintf("the newest value, %d or later", least), got, err)
		return
	}
	s.good.Add(1)
}

// converse opens an event stream, calls some times and leaves, sometimes with
// a call on its way.
func (s *soak) converse(r *mathrand.Rand) {
	t := s.anyone(r)
	key, _ := t.now()
	a := newAgent(s.h, key)
	defer a.close()
	stream, got, err := a.open()
	if stream == nil {
		s.miss("opening a stream", got, err)
		return
	}
	s.sessions.Add(1)
	for range r.IntN(6) {
		got, err := stream.get(context.Background(), "TOKEN")
		s.check("a call on a stream", t.value, got, err)
	}
	if r.IntN(2) == 0 {
		_, _ = a.post(context.Background(), stream.place, callText(99, "get_secret", labelArg("TOKEN"), ""), nil)
		s.aborted.Add(1)
	}
	stream.close()
}

// abort begins requests and goes away.
func (s *soak) abort(r *mathrand.Rand) {
	key, _ := s.anyone(r).now()
	a := newAgent(s.h, key)
	defer a.close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.Int64N(int64(3*time.Millisecond))))
	defer cancel()
	if _, err := a.legacy(ctx, "TOKEN"); err != nil {
		s.aborted.Add(1)
	}
}

// stranger brings keys that open nothing.
func (s *soak) stranger(*mathrand.Rand) {
	b := make([]byte, 30)
	_, _ = rand.Read(b) // never fails
	a := newAgent(s.h, "slk1_"+hex.EncodeToString(b))
	defer a.close()
	if got, err := a.legacy(context.Background(), "TOKEN"); err != nil || got.word != "unauthorized" {
		s.miss("a wrong key", got, err)
		return
	}
	s.refused.Add(1)
}

// write stores a new version.
func (s *soak) write(r *mathrand.Rand) {
	t := s.anyone(r)
	_, fresh := t.now()
	if out := s.start(setting{stdin: freshValue(fresh + 1)}, "put", "FRESH", "--identity", t.name, "--stdin", "--no-hosts"); out.code != 0 {
		s.miss(out.String(), reply{}, nil)
		return
	}
	t.mu.Lock()
	t.fresh++
	t.mu.Unlock()
	s.puts.Add(1)
}

// rotate gives a tenant a new key. The old one goes on for as long as a
// client needs that read it a moment ago.
func (s *soak) rotate(r *mathrand.Rand) {
	t := s.anyone(r)
	if out := s.run("identity", "rotate", t.name, "--grace", "10s"); out.code != 0 {
		s.miss(out.String(), reply{}, nil)
		return
	}
	b, err := os.ReadFile(s.keyFile(t.name))
	if err != nil {
		s.miss("the new key", reply{}, err)
		return
	}
	t.mu.Lock()
	t.key = strings.TrimSpace(string(b))
	t.mu.Unlock()
	s.rotations.Add(1)
}

// watch samples until the load is over.
func (s *soak) watch(span time.Duration) {
	every := 250 * time.Millisecond
	if soaking() {
		every = min(5*time.Second, span/36)
	}
	for begun := time.Now(); time.Since(begun) < span; <-time.After(every) {
		s.samples = append(s.samples, s.sample(begun))
	}
}

// judge compares the end with the start.
func (s *soak) judge(before sample) {
	t := s.t
	after := s.rest("after the load")
	t.Logf("%d values, %d wrong keys, %d aborted, %d sessions, %d puts, %d rotations", s.good.Load(), s.refused.Load(), s.aborted.Load(), s.sessions.Load(), s.puts.Load(), s.rotations.Load())
	if len(s.missed) > 0 {
		slices.Sort(s.missed)
		each := slices.Compact(slices.Clone(s.missed))
		t.Errorf("%d good calls failed, in %d ways: %q", len(s.missed), len(each), each[:min(5, len(each))])
	}
	for what, n := range map[string]int64{"values": s.good.Load() / 20, "wrong keys": s.refused.Load(), "aborted": s.aborted.Load(), "sessions": s.sessions.Load(), "puts": s.puts.Load(), "rotations": s.rotations.Load()} {
		if n == 0 {
			t.Errorf("the load has too few %s to say anything", what)
		}
	}
	if err := settled(before, after); err != nil {
		t.Error(err)
	}
	for i, at := range s.samples {
		if !soaking() || i%6 == 0 {
			t.Log(at)
		}
	}
	if soaking() {
		if err := flat(s.samples); err != nil {
			t.Error(err)
		}
	}
}

// settled wants that what came with a load went with it. Some goroutines of
// the runtime and the engine stay, one descriptor each at most.
func settled(before, after sample) error {
	if after.goroutines > before.goroutines+2 || after.fds > before.fds+2 || after.streams > 0 {
		return fmt.Errorf("a load leaves something behind: %v, and before it %v", after, before)
	}
	return nil
}

// flat wants no growth from the second third of the samples to the last, and
// none beyond three tenths since the first.
func flat(all []sample) error {
	n := len(all) / 3
	if n < 3 {
		return errors.New("there are too few samples to judge growth")
	}
	middle := func(part []sample, of func(sample) int) int {
		var values []int
		for _, s := range part {
			values = append(values, of(s))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	for what, of := range map[string]func(sample) int{
		"KiB of memory": func(s sample) int { return s.anon }, "goroutines": func(s sample) int { return s.goroutines }, "descriptors": func(s sample) int { return s.fds },
	} {
		first, second, last := middle(all[n/2:n], of), middle(all[n:2*n], of), middle(all[2*n:], of)
		if room := second/10 + 8; last > second+room || last*10 > first*13+80 {
			return fmt.Errorf("%s grow: %d in the first third, %d in the second, %d in the last", what, first, second, last)
		}
	}
	return nil
}

// TestGrowthIsSeen is the control of TestSoakLeavesNothingBehind: a leak of
// memory, of goroutines and of descriptors is found, and noise is not.
func TestGrowthIsSeen(t *testing.T) {
	t.Parallel()
	make60 := func(of func(i int) sample) (out []sample) {
		for i := range 60 {
			out = append(out, of(i))
		}
		return out
	}
	for what, c := range map[string]struct {
		of    func(i int) sample
		leaks bool
	}{
		"noise":       {func(i int) sample { return sample{anon: 20_000 + 900*(i%7), goroutines: 30 + i%9, fds: 20 + i%5} }, false},
		"warm-up":     {func(i int) sample { return sample{anon: min(20_000, 9_000+1000*i), goroutines: 30, fds: 20} }, false},
		"memory":      {func(i int) sample { return sample{anon: 20_000 + 300*i, goroutines: 30, fds: 20} }, true},
		"goroutines":  {func(i int) sample { return sample{anon: 20_000, goroutines: 30 + i, fds: 20} }, true},
		"descriptors": {func(i int) sample { return sample{anon: 20_000, goroutines: 30, fds: 20 + i} }, true},
	} {
		if err := flat(make60(c.of)); (err != nil) != c.leaks {
			t.Errorf("%s: %v, want a leak %v", what, err, c.leaks)
		}
	}
	start := sample{goroutines: 12, fds: 14}
	for _, left := range []sample{{goroutines: 20, fds: 14}, {goroutines: 12, fds: 20}, {goroutines: 12, fds: 14, streams: 1}} {
		if settled(start, left) == nil {
			t.Errorf("%v after %v passes for nothing left", left, start)
		}
	}
	if err := settled(start, start); err != nil {
		t.Error(err)
	}
}
