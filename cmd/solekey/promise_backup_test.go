package main

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// envMortal tells solekey-mortal before which storage call of a restore, or
// step of a repair, it kills itself; 0 lets it live and say how many there are.
const envMortal = "SOLEKEY_TEST_DIES_AT"

// mortalMain is solekey on an engine that dies: the process is killed, as by
// kill -9, before the given storage call of a restore.
func mortalMain() {
	at, _ := strconv.Atoi(os.Getenv(envMortal))
	m := &mortal{at: int64(at)}
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, now: time.Now, conf: newConfig(os.Getenv)}
	a.engine = func(dir string) (b storage.Backend, err error) {
		m.Backend, err = createEngine(dir)
		return m, err
	}
	a.step = func(string) { m.step() }
	root := newRoot(a)
	root.SetArgs(os.Args[1:])
	code := a.fail(root.ExecuteContext(context.Background()))
	if at == 0 {
		fmt.Fprintln(os.Stderr, "calls", m.n)
	}
	os.Exit(code)
}

type mortal struct {
	storage.Backend
	at, n int64
}

func (m *mortal) step() {
	if atomic.AddInt64(&m.n, 1) == m.at {
		self, _ := os.FindProcess(os.Getpid())
		_ = self.Kill()
		select {}
	}
}

func (m *mortal) Get(ctx context.Context, id identity.ID, keys ...string) (storage.Result, error) {
	m.step()
	return m.Backend.Get(ctx, id, keys...)
}

func (m *mortal) List(ctx context.Context, id identity.ID, after string, limit int) (storage.Page, error) {
	m.step()
	return m.Backend.List(ctx, id, after, limit)
}

func (m *mortal) Identities(ctx context.Context, after identity.ID, limit int) ([]storage.Ident, error) {
	m.step()
	return m.Backend.Identities(ctx, after, limit)
}

func (m *mortal) Commit(ctx context.Context, id identity.ID, rev storage.Rev, b storage.Batch) (storage.Rev, error) {
	m.step()
	return m.Backend.Commit(ctx, id, rev, b)
}

func (m *mortal) Cell(ctx context.Context, id identity.ID) (storage.Cell, error) {
	m.step()
	return m.Backend.Cell(ctx, id)
}

func (m *mortal) PutCell(ctx context.Context, id identity.ID, c storage.Cell) error {
	m.step()
	return m.Backend.PutCell(ctx, id, c)
}

func (m *mortal) EraseCell(ctx context.Context, id identity.ID) error {
	m.step()
	return m.Backend.EraseCell(ctx, id)
}

func (m *mortal) Append(ctx context.Context, bodies ...[]byte) (uint64, error) {
	m.step()
	return m.Backend.Append(ctx, bodies...)
}

func (m *mortal) Lines(ctx context.Context) iter.Seq2[[]byte, error] {
	m.step()
	return m.Backend.Lines(ctx)
}

func (m *mortal) Head(ctx context.Context) (storage.Head, error) {
	m.step()
	return m.Backend.Head(ctx)
}

// Close counts as a step too: all is written, and the marker still stands.
func (m *mortal) Close() error {
	m.step()
	return m.Backend.Close()
}

// lostMachine is a store with a backup, what was closed after it, and the
// keys of its agents.
type lostMachine struct {
	*world
	backup, ledger, recovery string
	keys                     map[string]identity.Key
	want                     map[string]string // value or word that each key hears
}

func newLostMachine(t *testing.T) *lostMachine {
	w := newBareWorld(t)
	m := &lostMachine{world: w, keys: map[string]identity.Key{}, want: map[string]string{}}
	at := func(name string) string { return filepath.Join(w.root, name) }
	m.backup, m.ledger, m.recovery = at("one.skb"), at("ledger.jsonl"), at("recovery.txt")
	w.must("init", "--root", "file", "--recovery-file", m.recovery)
	for _, name := range []string{"live", "full", "closed", "revoked", "shredded"} {
		w.must("identity", "create", name)
		w.put(name, "TOKEN", "of-"+name)
		text, err := os.ReadFile(w.keyFile(name))
		if err != nil {
			t.Fatal(err)
		}
		if m.keys[name], err = identity.ParseKey(string(text)); err != nil {
			t.Fatal(err)
		}
		m.want[name] = "revoked"
	}
	m.want["live"], m.want["full"] = "of-live", "of-full"
	for i := range 5 {
		w.put("full", fmt.Sprintf("L%d", i), strings.Repeat("x", 60_000))
	}
	w.must("get", "TOKEN", "--profile", "live")
	w.must("backup", m.backup)
	w.must("identity", "revoke", "revoked", "--yes")
	w.must("identity", "revoke", "shredded", "--shred", "--confirm", "shredded")
	w.must("key", "revoke", "closed", keyID(t, w, "closed"), "--yes")
	log, err := os.ReadFile(filepath.Join(w.store, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.ledger, log, 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

// survey asks a directory for every value. It counts the keys that lost
// theirs, and those that got one although they were closed.
func (m *lostMachine) survey(dir string) (stands bool, lost, revived int) {
	m.t.Helper()
	b, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		return false, len(m.want) - 3, 0
	}
	k := vault.Open(b, rootFrom(keyring.Open(m.conf, keyring.Options{NoOS: true})), vault.Options{})
	defer k.Close()
	id, err := vault.StoreIn(context.Background(), b)
	stands = err == nil && !id.IsZero()
	for name, key := range m.keys {
		heard := hears(k, key)
		switch want := m.want[name]; {
		case want == "revoked" && heard == "of-"+name:
			revived++
		case want != "revoked" && heard != want:
			lost++
		}
	}
	return stands, lost, revived
}

func hears(k *vault.Keeper, key identity.Key) string {
	v, err := k.Unlock(context.Background(), key, vault.Source{Via: "cli"})
	if err == nil {
		var s vault.Secret
		if s, err = v.Get(context.Background(), "TOKEN", ""); err == nil {
			return s.Reveal()
		}
	}
	return string(vault.Refuse(err).Word)
}

// TestRestoreKilledAtEveryStorageCall kills a restore before each of its
// storage calls, then goes on: the directory is no store or a complete one,
// and after running restore again no value is lost and no closed key opens
// anything.
func TestRestoreKilledAtEveryStorageCall(t *testing.T) {
	t.Parallel()
	m := newLostMachine(t)
	dying, err := exec.LookPath("solekey-mortal")
	if err != nil {
		t.Fatal(err)
	}
	d := *m.world
	d.bin = dying
	args := func(dir string) []string {
		return []string{"restore", m.backup, "--into", dir, "--recovery-key-file", m.recovery, "--ledger", m.ledger}
	}
	first := d.start(setting{env: []string{envMortal + "=0"}}, args(filepath.Join(m.root, "count"))...)
	calls := 0
	if _, err := fmt.Sscanf(first.stderr[strings.Index(first.stderr, "calls "):], "calls %d", &calls); err != nil || calls < 20 {
		t.Fatalf("%d storage calls: %v", calls, first)
	}
	unusable, whole := 0, 0
	for at := 1; at <= calls; at++ {
		dir := filepath.Join(m.root, fmt.Sprintf("at-%d", at))
		out := d.start(setting{env: []string{fmt.Sprintf("%s=%d", envMortal, at)}}, args(dir)...)
		if out.code == 0 {
			t.Fatalf("call %d of %d killed nothing", at, calls)
		}
		stands, lost, revived := m.survey(dir)
		if revived > 0 || stands && lost > 0 {
			t.Errorf("killed at call %d: stands %v, %d lost, %d revived", at, stands, lost, revived)
		}
		if stands {
			whole++
		} else {
			unusable++
			if lost != 2 { // control: the survey sees values that are not there
				t.Errorf("killed at call %d: no store, and %d of 2 values are missing", at, lost)
			}
			if soaking() || at%8 == 1 {
				if out := m.run("--home", dir, "identity", "list"); out.code != exitUnavailable || !strings.Contains(out.stderr, "interrupted") {
					t.Errorf("killed at call %d: identity list = %v", at, out)
				}
			}
		}
		if soaking() { // killed again on the second run
			d.start(setting{env: []string{fmt.Sprintf("%s=%d", envMortal, 1+at*7%calls)}}, args(dir)...)
		}
		m.must(args(dir)...)
		stands, lost, revived = m.survey(dir)
		if !stands || lost > 0 || revived > 0 {
			t.Errorf("killed at call %d and repeated: stands %v, %d lost, %d revived", at, stands, lost, revived)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d storage calls: %d left no store, %d a whole one", calls, unusable, whole)
	if unusable == 0 || whole == 0 {
		t.Errorf("%d and %d: one kind of point was never met", unusable, whole)
	}

	// Control: without the ledger the same survey sees keys that live again.
	blind := filepath.Join(m.root, "blind")
	m.must("restore", m.backup, "--into", blind, "--recovery-key-file", m.recovery, "--yes")
	if _, lost, revived := m.survey(blind); revived != 3 || lost != 0 {
		t.Errorf("control: %d of 3 closed keys live without a ledger, %d lost", revived, lost)
	}
}

// fill makes identities in a store, with two values each. It seals them by
// itself, because each create looks through the names of all others.
func (w *world) fill(n int) {
	w.t.Helper()
	b, err := bolt.Open(w.store, bolt.Options{TurnTimeout: time.Minute})
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Close()
	id, err := vault.StoreIn(context.Background(), b)
	if err != nil {
		w.t.Fatal(err)
	}
	text, _, err := keyring.Open(w.conf, keyring.Options{NoOS: true}).Get(keyring.Root, id.String())
	if err != nil {
		w.t.Fatal(err)
	}
	root, err := seal.ParseRoot(text)
	if err != nil {
		w.t.Fatal(err)
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if err := fillOne(b, root.Store(), i); err != nil {
					w.t.Errorf("making identity %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
}

func fillOne(b storage.Backend, st *seal.Store, i int64) error {
	id := identity.NewID()
	key := identity.NewKey(identity.Agent, id)
	in := seal.NewInner(st.ID(), id)
	wrapped, err := in.Wrap(key)
	if err != nil {
		return err
	}
	h := &seal.Header{Gen: 1, State: seal.StateActive, Flags: seal.FlagNoRecovery, Created: i, Changed: i, OK: key.Auth(), PK: in.PublicKey(), Name: fmt.Sprintf("fill-%d", i)}
	h.Slots = []seal.Slot{{ID: key.Slot(), AuthHash: seal.AuthHash(key.Auth()), State: seal.SlotLive, Kind: 1, Scopes: 3, Created: i, Wrapped: wrapped}}
	outer := st.Outer(id, h)
	batch := storage.Batch{}
	for _, label := range []string{"a", "b"} {
		bind := seal.Bind{Store: st.ID(), ID: id, Version: 1, Kind: 1, Exposure: 1, Label: label}
		e := &seal.Entry{Version: 1, Last: 1, Kind: 1, Exposure: 1, Cap: 1, Form: seal.FormValue, Created: i, Updated: i, Label: label, Fields: []string{"value"}}
		if e.Inner, err = in.Seal(bind, []seal.Field{{Name: "value", Value: []byte("a value of usual length, forty bytes")}}); err != nil {
			return err
		}
		at := seal.EntryKey(st.Tag(id, label))
		val, err := outer.SealEntry(at, e)
		if err != nil {
			return err
		}
		h.Set, h.Count, h.Seals = h.Set.Add(outer.Elem(at, val)), h.Count+1, h.Seals+1
		batch.Ops = append(batch.Ops, storage.Op{Key: at, Val: val})
	}
	cell := key.InnerLock()
	if batch.Meta, err = st.SealHeader(id, cell, h); err != nil {
		return err
	}
	if err := b.PutCell(context.Background(), id, cell); err != nil {
		return err
	}
	_, err = b.Commit(context.Background(), id, 0, batch)
	return err
}

// TestBackupDoesNotStallService reads a secret over stdio, in a process of its
// own, while another one backs up the store: every read is answered, and a
// soak wants the backup to add less than 10 ms to it, at each of four
// quantiles.
func TestBackupDoesNotStallService(t *testing.T) {
	w := newBareWorld(t)
	w.must("init", "--root", "file", "--recovery-file", filepath.Join(w.root, "recovery.txt"))
	w.must("identity", "create", "agent")
	w.put("agent", "TOKEN", "of-agent")
	const own = 1
	filled := rounds(20, 60, 10_000)
	w.fill(filled)
	s := w.serve("--profile", "agent")
	s.get("TOKEN").wants(t, "a read", "of-agent", "")

	alone := s.measure(t, func(n int) bool { return n < rounds(20, 100, 20_000) })
	file := filepath.Join(w.root, "one.skb")
	done := make(chan outcome, 1)
	go func() { done <- w.run("backup", file, "--json") }()
	var out outcome
	over := false
	beside := s.measure(t, func(int) bool {
		select {
		case out = <-done:
			over = true
		default:
		}
		return !over
	})
	var rep backupResult
	if err := json.Unmarshal([]byte(out.stdout), &rep); out.code != 0 || err != nil || rep.Identities != filled+own || rep.Records != 2*filled+1 {
		t.Fatalf("backup: %v, %v", out, err)
	}
	t.Logf("alone   %v", alone)
	t.Logf("beside  %v", beside)
	w.must("restore", file, "--verify", "--recovery-key-file", filepath.Join(w.root, "recovery.txt"))
	if !soaking() {
		return
	}
	// What counts is what the backup adds. A machine with other work to do
	// shows that instead.
	const limit = 10 * time.Millisecond
	for _, q := range []float64{0.5, 0.99, 0.999, 1} {
		if beside.at(q) > alone.at(q)+limit {
			t.Errorf("the backup adds %v to a read at quantile %v, want %v at most", beside.at(q)-alone.at(q), q, limit)
		}
	}
}

// times are durations, sorted.
type times []time.Duration

func (d times) at(q float64) time.Duration {
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

func (d times) String() string {
	return fmt.Sprintf("n %d  p50 %v  p99 %v  p99.9 %v  max %v", len(d), d.at(0.5), d.at(0.99), d.at(0.999), d.at(1))
}

// measure reads a secret again and again while more says so.
func (s *server) measure(t *testing.T, more func(n int) bool) times {
	t.Helper()
	var out times
	for more(len(out)) {
		began := time.Now()
		a := s.get("TOKEN")
		out = append(out, time.Since(began))
		if a.text("value") != "of-agent" {
			t.Fatalf("a read gets %v", a)
		}
	}
	slices.Sort(out)
	return out
}
