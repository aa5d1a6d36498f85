package bolt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// The crash harness records a life of a store through the rules of package
// vault: create, import, put, read, absorb, rotate, revoke, shred. Then it cuts
// the power at every point of the record, makes states that the disk may be in
// (see crash_disk_test.go), opens each as a user would and compares all of it
// with what had been acknowledged:
//
//   - Every identity, key, label and value is as after the last acknowledged
//     step, or, as a whole, as after the step that was cut off.
//   - What was revoked or shredded stays so. The cell of what was shredded is
//     nowhere in vault.cells, and an older vault.db beside it opens nothing.
//   - The log begins with every acknowledged line, verifies, and explains
//     every identity as it is.
//   - The store goes on: it takes a value, gives it back, and reads the same
//     when it is opened once more.
//   - The same holds if the power is cut again while the store recovers.
//
// SOLEKEY_CRASH=N sets how many states, 12000 in CI and 1000000 by night.
// SOLEKEY_CRASH_SEED=N draws other ones.

const crashStates = 400

func number(tb testing.TB, name string, def int) int {
	tb.Helper()
	text := os.Getenv(name)
	if text == "" {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		tb.Fatalf("%s = %q, want a number", name, text)
	}
	return n
}

// agent is one identity of the workload and the keys it ever had.
type agent struct {
	id   identity.ID
	keys []identity.Key
}

// status is what is known of one agent at one time.
type status struct {
	word   string // absent, active, revoked, shredded
	keys   []string
	values map[string]string
}

func (s status) text(i int, a *agent) string {
	if s.word == "" {
		s.word = "absent"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "agent %d %s\n", i, s.word)
	for n := range a.keys {
		word := "unauthorized"
		if n < len(s.keys) {
			word = s.keys[n]
		}
		fmt.Fprintf(&b, "  key %d %s\n", n, word)
		if word != "ok" {
			continue
		}
		for _, l := range slices.Sorted(maps.Keys(s.values)) {
			fmt.Fprintf(&b, "    %s = %.20s %d\n", l, s.values[l], len(s.values[l]))
		}
	}
	return b.String()
}

// world is every agent at one time.
type world []status

func (w world) clone() world {
	out := slices.Clone(w)
	for i := range out {
		out[i].keys = slices.Clone(out[i].keys)
		out[i].values = maps.Clone(out[i].values)
	}
	return out
}

// stage says how far a store has come.
type stage int

const (
	stageNothing stage = iota
	stageEngine
	stageVault
)

// ack is a point of the record at which everything before was acknowledged.
type ack struct {
	at     int
	name   string // of the step that had ended
	stage  stage
	closes bool // the step closes keys
	world  world
	within world          // what a user may also find while the step is cut off
	texts  []string       // what a user may find
	half   []string       // likewise within the step
	log    []byte         // the log as it was acknowledged
	lines  int            // lines that were due
	dead   []storage.Cell // cells that were erased
	old    []byte         // vault.db before the last shredding
}

// session is a record with its acknowledgements.
type session struct {
	base   state
	events []event
	acks   []ack
	agents []*agent
	root   vault.Root
}

// recorder makes a session.
type recorder struct {
	session
	tb    testing.TB
	tape  *tape
	dir   string
	store *bolt.Store
	keep  *vault.Keeper
	after func() // runs behind each acknowledgement
	lines int
	world world
	dead  []storage.Cell
	old   []byte
	stage stage
}

func fixedNow() time.Time { return time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC) }

func (s *session) keeper(b storage.Backend) *vault.Keeper {
	return vault.Open(b, func(context.Context, identity.ID) (vault.Root, error) { return s.root, nil }, vault.Options{Now: fixedNow})
}

// acked notes that the step has been acknowledged.
func (r *recorder) acked(name string, closes bool) {
	log, err := os.ReadFile(filepath.Join(r.dir, "audit.jsonl"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.tb.Fatal(err)
	}
	r.acks = append(r.acks, ack{
		at: r.tape.len(), name: name, stage: r.stage, closes: closes, world: r.world.clone(),
		log: log, lines: r.lines, dead: slices.Clone(r.dead), old: r.old,
	})
	if r.after != nil {
		r.after()
	}
}

// step does one thing that leaves one line at least.
func (r *recorder) step(name string, closes bool, do func(ctx context.Context) error) {
	r.tb.Helper()
	if err := do(r.tb.Context()); err != nil {
		r.tb.Fatalf("%s: %v", name, err)
	}
	r.lines++
	r.acked(name, closes)
}

// flaws switch off what a harness must miss.
type flaws struct {
	noSync bool
	wrap   func(*bolt.Store) (b storage.Backend, after func())
}

// record makes the session of a whole life.
func record(tb testing.TB, f flaws) *session {
	tb.Helper()
	r := &recorder{tb: tb, tape: &tape{noSync: f.noSync}, dir: filepath.Join(memoryDir(tb), "recorded")}
	r.root = vault.NewRoot()
	r.acked("nothing", false)
	var err error
	if r.store, err = bolt.Create(r.dir, r.tape.options()); err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = r.store.Close() }()
	r.stage = stageEngine
	r.acked("the files", false)
	var b storage.Backend = r.store
	if f.wrap != nil {
		b, r.after = f.wrap(r.store)
	}
	r.keep = r.keeper(b)
	r.stage = stageVault
	r.step("init", false, func(ctx context.Context) error {
		_, err := vault.Init(ctx, b, r.root, vault.InitOptions{Now: fixedNow})
		return err
	})
	r.life()
	return r.finish()
}

// finish turns what is known into what a user may find.
func (r *recorder) finish() *session {
	r.events = r.tape.events
	for i := range r.acks {
		a := &r.acks[i]
		if len(a.texts) == 0 {
			a.texts = []string{r.expect(a.world)}
			if a.within != nil {
				a.half = []string{r.expect(a.within)}
			}
		}
	}
	return &r.session
}

func (s *session) expect(w world) string {
	var b strings.Builder
	for i, a := range s.agents {
		var st status
		if i < len(w) {
			st = w[i]
		}
		b.WriteString(st.text(i, a))
	}
	return b.String()
}

// life is what the store goes through.
func (r *recorder) life() {
	big := strings.Repeat("CANARY-big", 700)
	a, b := r.create("a"), r.create("b")
	r.imports(a, map[string]string{"db": "CANARY-db-1", "api": "CANARY-api-1", "mail": big})
	r.put(b, "db", "CANARY-b-1")
	r.get(a, 0, "db")
	r.get(a, 0, "db")
	r.get(a, 0, "mail")
	r.put(a, "db", "CANARY-db-2")
	r.rotate(a, 0)
	r.get(a, 1, "db")
	r.denied(a, 0, "db")
	r.addKey(b, 0)
	r.revokeKey(b, 0)
	r.get(b, 1, "db")
	r.remove(a, "mail")
	c := r.create("c")
	r.imports(c, map[string]string{"x": "CANARY-x", "y": "CANARY-y"})
	r.get(c, 0, "x")
	r.shred(c)
	r.put(a, "new", "CANARY-new-1")
	r.revoke(b)
	r.denied(b, 1, "db")
	r.get(a, 1, "new")
	r.shred(b)
	d := r.create("d")
	r.put(d, "z", "CANARY-z")
	r.get(d, 0, "z")
	r.put(a, "api", "CANARY-api-2")
	r.get(a, 1, "api")
}

func (r *recorder) create(name string) int {
	i := len(r.agents)
	r.step("create "+name, false, func(ctx context.Context) error {
		key, err := r.keep.Create(ctx, vault.NewIdentity{Name: name})
		r.agents = append(r.agents, &agent{id: key.Identity(), keys: []identity.Key{key}})
		r.world = append(r.world, status{word: "active", keys: []string{"ok"}, values: map[string]string{}})
		return err
	})
	return i
}

func entry(label, value string) vault.NewEntry {
	return vault.NewEntry{Label: vault.Label(label), Fields: []vault.Field{{Name: "value", Value: []byte(value)}}}
}

func (r *recorder) imports(i int, values map[string]string) {
	r.step("import", false, func(ctx context.Context) error {
		var es []vault.NewEntry
		for _, l := range slices.Sorted(maps.Keys(values)) {
			es = append(es, entry(l, values[l]))
		}
		maps.Copy(r.world[i].values, values)
		_, err := r.keep.Import(ctx, r.agents[i].id, es, true)
		return err
	})
}

func (r *recorder) put(i int, label, value string) {
	r.step("put", false, func(ctx context.Context) error {
		r.world[i].values[label] = value
		_, err := r.keep.Put(ctx, r.agents[i].id, entry(label, value))
		return err
	})
}

func (r *recorder) get(i, key int, label string) {
	r.step("get", false, func(ctx context.Context) error {
		v, err := r.keep.Unlock(ctx, r.agents[i].keys[key], vault.Source{Via: "stdio"})
		if err != nil {
			return err
		}
		s, err := v.Get(ctx, vault.Label(label), "")
		if err == nil && s.Reveal() != r.world[i].values[label] {
			err = errors.New("another value")
		}
		return err
	})
}

func (r *recorder) denied(i, key int, label string) {
	r.step("denied", false, func(ctx context.Context) error {
		if _, err := r.keep.Unlock(ctx, r.agents[i].keys[key], vault.Source{Via: "stdio"}); err == nil {
			return errors.New("a closed key opens")
		}
		return nil
	})
}

func (r *recorder) rotate(i, key int) {
	r.step("rotate", true, func(ctx context.Context) error {
		made, err := r.keep.Rotate(ctx, r.agents[i].id, r.agents[i].keys[key], vault.Rotation{})
		r.added(i, made)
		r.world[i].keys[key] = "revoked"
		return err
	})
}

func (r *recorder) added(i int, key identity.Key) {
	r.agents[i].keys = append(r.agents[i].keys, key)
	r.world[i].keys = append(r.world[i].keys, "ok")
}

func (r *recorder) addKey(i, key int) {
	r.step("add a key", false, func(ctx context.Context) error {
		made, err := r.keep.AddKey(ctx, r.agents[i].id, r.agents[i].keys[key], "second", identity.Grant{})
		r.added(i, made)
		return err
	})
}

func (r *recorder) revokeKey(i, key int) {
	r.step("revoke a key", true, func(ctx context.Context) error {
		r.world[i].keys[key] = "revoked"
		_, err := r.keep.Revoke(ctx, r.agents[i].id, vault.Revocation{Slots: []identity.SlotID{r.agents[i].keys[key].Slot()}})
		return err
	})
}

func (r *recorder) remove(i int, label string) {
	r.step("remove", false, func(ctx context.Context) error {
		delete(r.world[i].values, label)
		_, err := r.keep.Remove(ctx, r.agents[i].id, vault.Label(label))
		return err
	})
}

func (r *recorder) close(i int, word string) {
	r.world[i].word = word
	for n := range r.world[i].keys {
		r.world[i].keys[n] = "revoked"
	}
}

func (r *recorder) revoke(i int) {
	r.step("revoke", true, func(ctx context.Context) error {
		r.close(i, "revoked")
		_, err := r.keep.Revoke(ctx, r.agents[i].id, vault.Revocation{})
		return err
	})
}

func (r *recorder) shred(i int) {
	r.step("shred", true, func(ctx context.Context) error {
		r.close(i, "shredded")
		cell, err := r.store.Cell(ctx, r.agents[i].id)
		if err != nil {
			return err
		}
		if r.old, err = os.ReadFile(filepath.Join(r.dir, "vault.db")); err != nil {
			return err
		}
		if _, err = r.keep.Revoke(ctx, r.agents[i].id, vault.Revocation{Shred: true}); err != nil {
			return err
		}
		r.dead = append(r.dead, cell)
		return nil
	})
	// A shred begins with a revocation of its own, and nobody who held a key
	// hears anything but revoked from there on.
	w := r.world.clone()
	w[i].word = "revoked"
	r.acks[len(r.acks)-1].within = w
}

// memoryDir returns a directory in memory if there is one: what a state costs
// is then no sync, and no state needs one.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	if dir, err := os.MkdirTemp("/dev/shm", "solekey-test-"); err == nil {
		tb.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	return tb.TempDir()
}

// figures are what a run of the harness found.
type figures struct {
	states, bad, again, cuts, events int
	violations                       []string
}

func (f *figures) String() string {
	return fmt.Sprintf("%d states of %d cuts in a record of %d changes, %d of them cut again while recovering: %d violations",
		f.states, f.cuts, f.events, f.again, len(f.violations))
}

// drawn is a state to be checked.
type drawn struct {
	n, cut int
	state  state
	rand   *rand.Rand
}

// enumerate checks n states of the session. Violations beyond some are not
// sought: a harness that fails has failed.
func (s *session) enumerate(tb testing.TB, n int, seed uint64) *figures {
	tb.Helper()
	f := &figures{events: len(s.events)}
	var mu sync.Mutex
	jobs := make(chan drawn)
	ctx, cancel := context.WithCancel(tb.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) { // a turn that begins or ends waits a little
		c := &checker{session: s, ctx: context.WithoutCancel(ctx), dir: memoryDir(tb), ends: memoryDir(tb)}
		wg.Go(func() {
			for d := range jobs {
				wrong := c.all(d)
				mu.Lock()
				f.again += c.again
				c.again = 0
				if len(wrong) > 0 {
					f.bad++
				}
				f.violations = append(f.violations, wrong...)
				if len(f.violations) > 400 {
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	f.states, f.cuts = s.draw(ctx, n, seed, jobs)
	close(jobs)
	wg.Wait()
	return f
}

// draw sends n different states, evenly over all cuts.
func (s *session) draw(ctx context.Context, n int, seed uint64, jobs chan<- drawn) (states, cuts int) {
	seen := make(map[uint64]bool, n)
	cut := make(map[int]bool)
	hashing := maphash.MakeSeed()
	for round := uint64(0); states < n && round < 20; round++ {
		d := newDisk(s.base)
		played := 0
		offset := rand.New(rand.NewPCG(seed, round)).IntN(len(s.events) + 1)
		want := n - states
		for i := range want {
			at := (i*(len(s.events)+1) + offset) / want
			for ; played < at; played++ {
				d.play(s.events[played])
			}
			r := rand.New(rand.NewPCG(seed, round<<40|uint64(i)))
			st := d.draw(r)
			key := st.hash(hashing) ^ uint64(at)*0x9e3779b97f4a7c15
			if seen[key] {
				continue
			}
			select {
			case jobs <- drawn{n: states, cut: at, state: st, rand: r}:
			case <-ctx.Done():
				return states, len(cut)
			}
			seen[key], cut[at] = true, true
			states++
		}
	}
	return states, len(cut)
}

// checker checks states in directories of its own.
type checker struct {
	*session
	ctx       context.Context
	dir, ends string
	again     int
}

// all returns what is wrong with a state.
func (c *checker) all(d drawn) (wrong []string) {
	last, next := c.around(d.cut)
	say := func(format string, args ...any) {
		in := "nothing"
		if next != nil {
			in = next.name
		}
		wrong = append(wrong, fmt.Sprintf("state %d, cut %d, after %s, within %s: %s", d.n, d.cut, last.name, in, fmt.Sprintf(format, args...)))
	}
	defer func() {
		if r := recover(); r != nil {
			say("panic: %v", r)
		}
	}()
	if err := d.state.restore(c.dir); err != nil {
		say("restoring: %v", err)
		return wrong
	}
	if last.stage != stageVault {
		c.young(last, next, say)
		return wrong
	}
	c.whole(d, last, next, say)
	if len(wrong) == 0 && d.rand.IntN(8) == 0 {
		c.rolledBack(d, last, say)
	}
	if len(wrong) == 0 && c.base == nil && d.rand.IntN(16) == 0 {
		wrong = append(wrong, c.secondCut(d, last, next)...)
	}
	return wrong
}

// around returns the last acknowledgement before a cut, and the one that the
// cut prevented, if there was one.
func (s *session) around(cut int) (last, next *ack) {
	for i := range s.acks {
		a := &s.acks[i]
		if a.at > cut {
			return last, a
		}
		if last = a; a.at < cut {
			next = nil
		}
	}
	return last, nil
}

func (c *checker) open(say func(string, ...any)) (*bolt.Store, error) {
	o := patient()
	o.OnFail = func(err error) { say("the engine fails: %v", err) }
	return bolt.Open(c.dir, o)
}

// check is Store.Check, but for a root record that the cut tore: that is told
// until the next commit.
func (c *checker) check(s *bolt.Store) error {
	err := s.Check(c.ctx)
	if err != nil && strings.Contains(err.Error(), "one of its two root records is invalid") && !strings.Contains(err.Error(), "\n") {
		return nil
	}
	return err
}

// young checks a store that was cut off while it was made.
func (c *checker) young(last, next *ack, say func(string, ...any)) {
	s, err := c.open(say)
	if errors.Is(err, fs.ErrNotExist) && last.stage == stageNothing {
		s, err = bolt.Create(c.dir, patient())
	}
	if err != nil {
		say("Open or Create: %v", err)
		return
	}
	defer func() { _ = s.Close() }()
	if err := c.check(s); err != nil {
		say("Check: %v", err)
	}
	if next != nil && next.stage == stageVault {
		c.anew(s, say)
		return
	}
	c.init(s, say)
}

// anew does what solekey init does with a set-up that was cut off: all of it
// again, as the recovery key was never shown.
func (c *checker) anew(s *bolt.Store, say func(string, ...any)) {
	err := s.Close()
	for _, name := range []string{"vault.db", "vault.cells", "audit.jsonl"} {
		err = errors.Join(err, os.Remove(filepath.Join(c.dir, name)))
	}
	if err != nil {
		say("clearing: %v", err)
		return
	}
	if s, err = bolt.Create(c.dir, patient()); err != nil {
		say("Create: %v", err)
		return
	}
	defer func() { _ = s.Close() }()
	c.init(s, say)
}

func (c *checker) init(s *bolt.Store, say func(string, ...any)) {
	if _, err := vault.Init(c.ctx, s, c.root, vault.InitOptions{Now: fixedNow}); err != nil {
		say("Init: %v", err)
		return
	}
	if rep, err := c.keeper(s).VerifyAudit(c.ctx); err != nil || !rep.OK() {
		say("VerifyAudit: %v, %v", rep.Problems, err)
	}
}

// whole checks a store against the two acknowledgements around the cut.
func (c *checker) whole(d drawn, last, next *ack, say func(string, ...any)) {
	for _, z := range last.dead {
		if bytes.Contains(d.state["vault.cells"].data, z[:]) {
			say("an erased cell is in vault.cells")
		}
	}
	allowed := slices.Clone(last.texts)
	if next != nil {
		allowed = slices.Concat(allowed, next.texts, next.half)
	}
	closing := next != nil && next.closes
	found, ok := c.visit(last, allowed, closing, true, d.rand.IntN(4) == 0, say)
	if !ok {
		return
	}
	if d.rand.IntN(4) > 0 {
		return
	}
	if _, ok := c.visit(last, []string{found}, closing, false, false, say); !ok {
		say("that was at the second look")
	}
}

// visit opens the store, looks at all of it, and if use is set changes it. The
// log is verified at the end, with early also at the beginning.
func (c *checker) visit(last *ack, allowed []string, closing, use, early bool, say func(string, ...any)) (found string, ok bool) {
	s, err := c.open(say)
	if err != nil {
		say("Open: %v", err)
		return "", false
	}
	k := c.keeper(s)
	defer func() {
		if err := k.Close(); err != nil {
			say("Close: %v", err)
		}
	}()
	if err := c.check(s); err != nil {
		say("Check: %v", err)
		return "", false
	}
	if early {
		c.verify(k, last, closing, say)
	}
	found, live, err := c.observe(k)
	if err != nil {
		say("reading: %v", err)
		return found, false
	}
	if !slices.Contains(allowed, found) {
		say("found\n%swant\n%s", found, strings.Join(allowed, "or\n"))
		return found, false
	}
	if use && live != nil {
		if err := c.use(k, live); err != nil {
			say("the store takes nothing more: %v", err)
			return found, false
		}
		if err := s.Check(c.ctx); err != nil {
			say("Check after a commit: %v", err)
			return found, false
		}
	}
	c.verify(k, last, closing, say)
	log, err := os.ReadFile(filepath.Join(c.dir, "audit.jsonl"))
	if err != nil || !bytes.HasPrefix(log, last.log) {
		say("the log does not begin with what was acknowledged, %v", err)
		return found, false
	}
	return found, true
}

// verify follows the log. What was cut off while it closed keys is told: the
// owner has to repeat it.
func (c *checker) verify(k *vault.Keeper, last *ack, closing bool, say func(string, ...any)) {
	rep, err := k.VerifyAudit(c.ctx)
	if err != nil {
		say("VerifyAudit: %v", err)
		return
	}
	for _, p := range rep.Problems {
		if !closing || !strings.Contains(p.Text, "closes keys, but the store does not know of it") {
			say("VerifyAudit: %v", p)
		}
	}
	if rep.Lines < last.lines {
		say("%d lines in the log, %d were due", rep.Lines, last.lines)
	}
}

// observe reads everything that every key opens. live is an agent that can be
// written.
func (c *checker) observe(k *vault.Keeper) (text string, live *agent, err error) {
	infos, err := k.Identities(c.ctx)
	if err != nil {
		return "", nil, err
	}
	w := make(world, len(c.agents))
	for i, a := range c.agents {
		for _, info := range infos {
			if info.ID != a.id {
				continue
			}
			if w[i].word = info.Status.String(); info.Damaged {
				w[i].word = "damaged"
			}
		}
		if w[i].keys, w[i].values, err = c.read(k, a); err != nil {
			return "", nil, err
		}
		if w[i].word == "active" {
			live = a
		}
	}
	return c.expect(w), live, nil
}

// afterwards is the label that the harness itself puts.
const afterwards = "afterwards"

func (c *checker) read(k *vault.Keeper, a *agent) (words []string, values map[string]string, err error) {
	for _, key := range a.keys {
		v, err := k.Unlock(c.ctx, key, vault.Source{Via: "stdio"})
		if err != nil {
			words = append(words, string(vault.Refuse(err).Word))
			continue
		}
		words = append(words, "ok")
		infos, err := v.Labels(c.ctx, "")
		if err != nil {
			return nil, nil, err
		}
		values = make(map[string]string, len(infos))
		for _, info := range infos {
			if info.Label == afterwards {
				continue
			}
			s, err := v.Get(c.ctx, info.Label, "")
			if err != nil {
				return nil, nil, err
			}
			values[string(info.Label)] = s.Reveal()
		}
	}
	return words, values, nil
}

// use writes and reads a value.
func (c *checker) use(k *vault.Keeper, a *agent) error {
	want := "CANARY-" + strconv.Itoa(rand.Int())
	if _, err := k.Put(c.ctx, a.id, entry(afterwards, want)); err != nil {
		return err
	}
	for _, key := range a.keys {
		v, err := k.Unlock(c.ctx, key, vault.Source{Via: "stdio"})
		if err != nil {
			continue
		}
		s, err := v.Get(c.ctx, afterwards, "")
		if err != nil || s.Reveal() != want {
			return fmt.Errorf("reading it back: %v", err)
		}
	}
	return nil
}

// rolledBack puts an older database beside the cells: what was shredded stays
// unreadable.
func (c *checker) rolledBack(d drawn, last *ack, say func(string, ...any)) {
	if last.old == nil {
		return
	}
	st := maps.Clone(d.state)
	st["vault.db"] = &content{data: last.old, size: int64(len(last.old))}
	if err := st.restore(c.dir); err != nil {
		say("restoring: %v", err)
		return
	}
	s, err := c.open(say)
	if err != nil {
		say("Open: %v", err)
		return
	}
	k := c.keeper(s)
	defer func() { _ = k.Close() }()
	for i, st := range last.world {
		if st.word != "shredded" {
			continue
		}
		_, values, _ := c.read(k, c.agents[i])
		if len(values) > 0 {
			say("agent %d was shredded and is read with an older database", i)
		}
	}
}

// secondCut recovers the state, records that, and cuts it off again.
func (c *checker) secondCut(d drawn, last, next *ack) []string {
	r := &recorder{tape: new(tape), dir: c.ends}
	r.session = session{base: d.state, agents: c.agents, root: c.root}
	if err := d.state.restore(r.dir); err != nil {
		return []string{err.Error()}
	}
	first := *last
	first.at = 0
	if next != nil {
		first.texts = slices.Concat(last.texts, next.texts, next.half)
		first.closes = next.closes
	}
	closing := next != nil && next.closes
	r.acks = []ack{first}
	r.tape.size = d.state["vault.db"].size
	s, err := bolt.Open(r.dir, r.tape.options())
	if err != nil {
		return []string{err.Error()}
	}
	k := c.keeper(s)
	defer func() { _ = k.Close() }()
	inner := &checker{session: &r.session, ctx: c.ctx, dir: c.dir, ends: c.ends}
	text, live, err := inner.observe(k)
	if err != nil {
		return []string{err.Error()}
	}
	then := first
	then.at, then.name, then.texts, then.closes = r.tape.len(), "recovery", []string{text}, closing
	// Without a line of its own the recovery has acknowledged none, and what
	// the first cut tore off may still stand at the end.
	if r.tape.wrote("audit.jsonl") {
		if then.log, err = os.ReadFile(filepath.Join(r.dir, "audit.jsonl")); err != nil {
			return []string{err.Error()}
		}
	}
	r.acks = append(r.acks, then)
	if live != nil {
		if err := inner.use(k, live); err != nil {
			return []string{err.Error()}
		}
	}
	end := then
	end.at, end.name = r.tape.len(), "use"
	r.acks = append(r.acks, end)
	r.events = slices.Clone(r.tape.events)
	var wrong []string
	disk := newDisk(r.base)
	cut := d.rand.IntN(min(len(r.events), 24) + 1)
	for _, e := range r.events[:cut] {
		disk.play(e)
	}
	for range 2 {
		c.again++
		wrong = append(wrong, inner.all(drawn{n: d.n, cut: cut, state: disk.draw(d.rand), rand: d.rand})...)
	}
	return wrong
}

// TestRecorderKnowsBbolt: the tape writes down the syncs that this version of
// bbolt makes. Another version has to be read before this test is changed.
func TestRecorderKnowsBbolt(t *testing.T) {
	mod := string(read(t, filepath.Join("..", "..", "..", "go.mod")))
	if !strings.Contains(mod, "go.etcd.io/bbolt v1.5.0\n") {
		t.Error("bbolt is no longer v1.5.0: read where it syncs, then see crash_disk_test.go")
	}
}

func report(t *testing.T, f *figures) {
	t.Helper()
	for i, v := range f.violations {
		if i == 5 {
			t.Errorf("and %d more", len(f.violations)-i)
			break
		}
		t.Error(v)
	}
}

// lateLines is a store that answers before its line is written.
type lateLines struct {
	*bolt.Store
	late [][]byte
}

func (l *lateLines) Append(_ context.Context, bodies ...[]byte) (uint64, error) {
	for _, b := range bodies {
		l.late = append(l.late, bytes.Clone(b))
	}
	return 0, nil
}

// forgetful is a store that forgets a cell in place of overwriting it.
type forgetful struct {
	*bolt.Store
	gone map[identity.ID]bool
}

func (f *forgetful) EraseCell(_ context.Context, id identity.ID) error {
	f.gone[id] = true
	return nil
}

func (f *forgetful) Cell(ctx context.Context, id identity.ID) (storage.Cell, error) {
	if f.gone[id] {
		return storage.Cell{}, storage.ErrErased
	}
	return f.Store.Cell(ctx, id)
}

// TestCrashHarnessFindsBrokenStores are its controls: each switches off one
// thing that the promise rests on.
func TestCrashHarnessFindsBrokenStores(t *testing.T) {
	for _, c := range []struct {
		name string
		f    flaws
		bad  int    // of 100 states at least
		says string // one of the violations
	}{
		{"bbolt does not sync", flaws{noSync: true}, 35, "state"},
		{"the line comes after the answer", flaws{wrap: func(s *bolt.Store) (storage.Backend, func()) {
			l := &lateLines{Store: s}
			return l, func() {
				if _, err := s.Append(t.Context(), l.late...); err != nil && len(l.late) > 0 {
					t.Fatal(err)
				}
				l.late = nil
			}
		}}, 5, "were due"},
		{"a cell is forgotten, not overwritten", flaws{wrap: func(s *bolt.Store) (storage.Backend, func()) {
			return &forgetful{Store: s, gone: make(map[identity.ID]bool)}, func() {}
		}}, 10, "an erased cell is in vault.cells"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := record(t, c.f).enumerate(t, 100, 1)
			t.Logf("%d of %d states violate", f.bad, f.states)
			if f.bad < c.bad {
				t.Errorf("%d of %d states violate, want at least %d", f.bad, f.states, c.bad)
			}
			if !slices.ContainsFunc(f.violations, func(v string) bool { return strings.Contains(v, c.says) }) {
				t.Errorf("no violation says %q", c.says)
			}
		})
	}
}

// TestNamesAreDurableBeforeTheStoreExists: vault.db makes a store, so a cut
// must not leave it without its cells and log.
func TestNamesAreDurableBeforeTheStoreExists(t *testing.T) {
	rec := new(tape)
	s, err := bolt.Create(filepath.Join(t.TempDir(), "store"), rec.options())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	pending := make(map[string]bool)
	for _, e := range rec.events {
		switch {
		case e.kind == bolt.ChangeSyncDir:
			clear(pending)
		case e.kind == bolt.ChangeRename && e.name == "vault.db":
			if len(pending) > 0 {
				t.Errorf("vault.db is renamed while the names %v may be lost", slices.Sorted(maps.Keys(pending)))
			}
			return
		case e.kind == bolt.ChangeRename:
			pending[e.name] = true
		}
	}
	t.Error("vault.db was not renamed, so this test shows nothing")
}

// TestEveryCrashStateKeepsWhatWasAcknowledged is the harness.
func TestEveryCrashStateKeepsWhatWasAcknowledged(t *testing.T) {
	s := record(t, flaws{})
	start := time.Now()
	n := crashStates
	if testing.Short() {
		n /= 4
	}
	f := s.enumerate(t, number(t, "SOLEKEY_CRASH", n), uint64(number(t, "SOLEKEY_CRASH_SEED", 1)))
	t.Logf("%v, in %v", f, time.Since(start).Round(time.Millisecond))
	report(t, f)
}
