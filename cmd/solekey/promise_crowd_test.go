package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestCrowdLosesNothing puts many processes on one data directory: four
// servers of two identities under load, one process that writes and one that
// changes and revokes keys. No call fails, no acknowledged write is lost, a
// server that is killed stops nobody else, and the log is whole at the end.
func TestCrowdLosesNothing(t *testing.T) {
	c := newCrowd(t)
	before := filepath.Join(c.root, "before")
	copyTree(t, c.store, before)

	var work sync.WaitGroup
	for _, name := range []string{"alice", "alice", "bob", "bob"} {
		work.Go(func() { c.read(name) })
	}
	work.Go(c.write)
	work.Go(c.rekey)
	span := time.Duration(rounds(2, 5, 30)) * time.Second
	go func() {
		time.Sleep(span) // how long the load lasts; nothing hopes for it
		close(c.stop)
	}()
	work.Wait()

	if lost := c.lost(c.store); len(lost) > 0 {
		t.Errorf("%d of %d acknowledged writes are lost: %v", len(lost), len(c.acks), lost[:min(10, len(lost))])
	}
	if out := c.run("audit", "verify"); out.code != 0 {
		t.Errorf("audit verify: %v", out)
	}
	c.judge()

	// Control: in the directory as it was before the load, the same search
	// misses every write.
	if lost := c.lost(before); len(lost) != len(c.acks) || len(lost) == 0 {
		t.Errorf("an old copy of the store lacks %d of %d writes, want all", len(lost), len(c.acks))
	}
}

// crowd is the processes of the test and what they were told.
type crowd struct {
	*world
	stop chan struct{}

	kills, rekeys, gone, calls atomic.Int64

	mu    sync.Mutex
	acks  []ack
	times []time.Duration
}

// ack is a write that was acknowledged.
type ack struct {
	identity, label, value string
	version                int
}

// counted is the label whose n-th version has the value counterValue(n).
const counted = "counter"

func counterValue(n int) string { return fmt.Sprintf("the value of version %d", n) }

func newCrowd(t *testing.T) *crowd {
	c := &crowd{world: newWorld(t), stop: make(chan struct{})}
	for _, name := range []string{"alice", "bob", "carol"} {
		c.must("identity", "create", name)
		c.put(name, "own", "the value of "+name)
	}
	return c
}

func (c *crowd) stopped() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// read loads one server. The first of alice's is killed halfway and started
// anew.
func (c *crowd) read(name string) {
	s, err := c.tryServe(setting{}, "--profile", name)
	if err != nil {
		c.t.Error(err)
		return
	}
	seen, last := 0, time.Now()
	for i := 0; !c.stopped(); i++ {
		if i == 100 && name == "alice" && c.kills.CompareAndSwap(0, 1) {
			if s = c.replace(s); s == nil {
				return
			}
		}
		begun := time.Now()
		var err error
		switch i % 4 {
		case 0:
			err = c.wantOwn(s, name)
		case 1:
			err = c.wantList(s)
		default:
			if name == "alice" {
				seen, err = c.wantCounter(s, seen)
			} else {
				err = c.wantOwn(s, name)
			}
		}
		if err != nil {
			c.t.Errorf("a call of %s after %v: %v", name, time.Since(last), err)
			return
		}
		last = time.Now()
		c.calls.Add(1)
		c.mu.Lock()
		c.times = append(c.times, last.Sub(begun))
		c.mu.Unlock()
	}
	if code := s.close(); code != 0 {
		c.t.Errorf("a server of %s ended with %d", name, code)
	}
}

// replace kills a server with a call on its way and starts another.
func (c *crowd) replace(s *server) *server {
	wait, err := s.send("tools/call", map[string]any{"name": "get_secret", "arguments": map[string]any{"label": "own"}})
	if err != nil {
		c.t.Error(err)
		return nil
	}
	s.kill()
	_, _ = wait() // it may have been faster
	if _, err := s.call("get_secret", map[string]any{"label": "own"}); errors.Is(err, errGone) {
		c.gone.Add(1)
	}
	next, err := c.tryServe(setting{}, s.args[1:]...)
	if err != nil {
		c.t.Error(err)
		return nil
	}
	return next
}

func (c *crowd) wantOwn(s *server, name string) error {
	a, err := s.call("get_secret", map[string]any{"label": "own"})
	if err == nil && a.text("value") != "the value of "+name {
		err = fmt.Errorf("get_secret own = %v", a)
	}
	return err
}

func (c *crowd) wantList(s *server) error {
	a, err := s.call("list_labels", map[string]any{"prefix": "ow"})
	if err == nil && a.fields["count"] != 1.0 {
		err = fmt.Errorf("list_labels = %v", a)
	}
	return err
}

// wantCounter reads the label that is written all the time: its value belongs
// to its version, which never goes back.
func (c *crowd) wantCounter(s *server, seen int) (int, error) {
	c.mu.Lock()
	least := seen
	for _, a := range slices.Backward(c.acks) {
		if a.label == counted {
			least = max(least, a.version)
			break
		}
	}
	c.mu.Unlock()
	a, err := s.call("get_secret", map[string]any{"label": counted})
	if err != nil || (least == 0 && a.word == "not_found") {
		return seen, err
	}
	version, _ := a.fields["version"].(float64)
	if a.text("value") != counterValue(int(version)) || int(version) < least {
		return seen, fmt.Errorf("get_secret counter = %v, want version %d or later with its value", a, least)
	}
	return int(version), nil
}

// write puts new labels and new versions of one label, one process after the
// other.
func (c *crowd) write() {
	version := 0
	for i := 0; !c.stopped(); i++ {
		a := ack{identity: "alice", label: fmt.Sprintf("fresh/%d", i), value: fmt.Sprintf("the value of put %d", i)}
		switch i % 3 {
		case 1:
			a.identity = "bob"
		case 2:
			version++
			a.label, a.value = counted, counterValue(version)
		}
		out := c.start(setting{stdin: a.value}, "put", a.label, "--identity", a.identity, "--stdin", "--json")
		var told struct{ Stored []struct{ Version int } }
		if out.code != 0 || json.Unmarshal([]byte(out.stdout), &told) != nil || len(told.Stored) != 1 {
			c.t.Errorf("put: %v", out)
			return
		}
		a.version = told.Stored[0].Version
		if a.label == counted && a.version != version {
			c.t.Errorf("put counter gave version %d, want %d", a.version, version)
		}
		c.mu.Lock()
		c.acks = append(c.acks, a)
		c.mu.Unlock()
	}
}

// rekey gives carol one key after the other, and ends identities.
func (c *crowd) rekey() {
	for i := 0; !c.stopped(); i++ {
		old := filepath.Join(c.root, "old.key")
		b, err := os.ReadFile(c.keyFile("carol"))
		if err == nil {
			err = os.WriteFile(old, b, 0o600)
		}
		if err != nil {
			c.t.Error(err)
			return
		}
		guest := fmt.Sprintf("guest-%d", i)
		for _, step := range []struct {
			code int
			args string
		}{
			{0, "identity rotate carol --grace 0"},
			{4, "get own --api-key-file " + old},
			{0, "get own --profile carol"},
			{0, "identity create " + guest},
			{0, "identity revoke " + guest + " --yes"},
			{4, "get own --profile " + guest},
		} {
			if out := c.run(strings.Fields(step.args)...); out.code != step.code {
				c.t.Errorf("solekey %s: %v, want %d", step.args, out, step.code)
				return
			}
		}
		c.rekeys.Add(1)
	}
}

// lost returns the acknowledged writes that a store does not have.
func (c *crowd) lost(store string) []ack {
	servers := map[string]*server{}
	for _, name := range []string{"alice", "bob"} {
		servers[name] = c.serve("--profile", name, "--home", store)
		defer servers[name].close()
	}
	newest := map[string]int{}
	for _, a := range c.acks {
		newest[a.identity+" "+a.label] = a.version
	}
	var out []ack
	for _, want := range c.acks {
		if newest[want.identity+" "+want.label] != want.version {
			want.version, want.value = newest[want.identity+" "+want.label], counterValue(newest[want.identity+" "+want.label])
		}
		got := servers[want.identity].get(want.label)
		if got.text("value") != want.value || got.fields["version"] != float64(want.version) {
			out = append(out, want)
		}
	}
	return out
}

// judge looks at how much happened, and how long a call took.
func (c *crowd) judge() {
	if c.calls.Load() < 100 || len(c.acks) < 10 || c.rekeys.Load() < 2 || c.gone.Load() != 1 {
		c.t.Errorf("%d calls, %d writes, %d new keys, %d dead servers: the crowd was asleep", c.calls.Load(), len(c.acks), c.rekeys.Load(), c.gone.Load())
		return
	}
	slices.Sort(c.times)
	at := func(share float64) time.Duration { return c.times[int(share*float64(len(c.times)-1))] }
	c.t.Logf("%d calls, %d writes, %d rounds of keys; a call takes p50 %v, p95 %v, p99 %v, at most %v",
		len(c.times), len(c.acks), c.rekeys.Load(), at(0.5), at(0.95), at(0.99), at(1))
	limit := time.Second
	if soaking() {
		limit = 50 * time.Millisecond
	}
	if at(0.95) >= limit {
		c.t.Errorf("p95 of a call is %v, want less than %v", at(0.95), limit)
	}
}

// copyTree copies regular files and directories.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	for name, mode := range walkModes(t, from) {
		if err := os.Chmod(filepath.Join(to, name), mode); err != nil {
			t.Fatal(err)
		}
	}
}

// walkModes returns the permissions of what is below a directory, itself
// included.
func walkModes(t *testing.T, dir string) map[string]os.FileMode {
	t.Helper()
	out := map[string]os.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		out[name] = info.Mode().Perm()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// seeded returns a generator whose seed a failing test names.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}
