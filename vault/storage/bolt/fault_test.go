package bolt_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// faults makes changes of one file fail while they are on.
type faults struct {
	mu   sync.Mutex
	name string
	kind bolt.ChangeKind
	err  error
	hits int
}

func (f *faults) set(name string, kind bolt.ChangeKind, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.name, f.kind, f.err = name, kind, err
}

func (f *faults) change(kind bolt.ChangeKind, path string, _ int64, _ []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || kind != f.kind || filepath.Base(path) != f.name {
		return nil
	}
	f.hits++
	return &fs.PathError{Op: "write", Path: f.name, Err: f.err}
}

// opened makes the writes of bbolt fail as well.
func (f *faults) opened(db *bbolt.DB) {
	writeAt := bboltWriteAt(db)
	real := *writeAt
	*writeAt = func(b []byte, off int64) (int, error) {
		if err := f.change(bolt.ChangeWrite, db.Path(), off, b); err != nil {
			return 0, err
		}
		return real(b, off)
	}
}

// house is a store with two identities, one value each, that have been read.
type house struct {
	*vault.Keeper
	t     *testing.T
	dir   string
	store *bolt.Store
	sess  *session
	keys  []identity.Key
	now   time.Time
	mu    sync.Mutex
}

func (h *house) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func newHouse(t *testing.T, o bolt.Options) *house {
	t.Helper()
	h := &house{t: t, dir: filepath.Join(t.TempDir(), "store"), sess: &session{root: vault.NewRoot()}, now: fixedNow()}
	var err error
	if h.store, err = bolt.Create(h.dir, o); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Init(t.Context(), h.store, h.sess.root, vault.InitOptions{Now: h.clock}); err != nil {
		t.Fatal(err)
	}
	h.Keeper = vault.Open(h.store, func(context.Context, identity.ID) (vault.Root, error) { return h.sess.root, nil }, vault.Options{Now: h.clock})
	t.Cleanup(func() { _ = h.Close() })
	for _, name := range []string{"a", "b"} {
		key, err := h.Create(t.Context(), vault.NewIdentity{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		h.keys = append(h.keys, key)
		if _, err := h.Put(t.Context(), key.Identity(), entry("db", "CANARY-"+name)); err != nil {
			t.Fatal(err)
		}
		if err := h.get(len(h.keys) - 1); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// get reads the value of one identity. A value together with an error, or
// another value, fails the test.
func (h *house) get(i int) error {
	h.t.Helper()
	v, err := h.Unlock(h.t.Context(), h.keys[i], vault.Source{Via: "stdio"})
	if err != nil {
		return err
	}
	s, err := v.Get(h.t.Context(), "db", "")
	switch {
	case err != nil && s.Reveal() != "":
		h.t.Errorf("a value came out with %v", err)
	case err == nil && s.Reveal() != "CANARY-"+string(rune('a'+i)):
		h.t.Error("another value came out")
	}
	return err
}

func (h *house) lines() int {
	h.t.Helper()
	rep, err := h.VerifyAudit(h.t.Context())
	if err != nil || !rep.OK() {
		h.t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
	return rep.Lines
}

// TestFaultsFailClosedAndPass lets each file fail in each way while it is in
// use: what must not be answered is not, keys are closed even so, and when the
// fault ends everything goes on by itself; after EIO once the owner has
// cleared the mark.
func TestFaultsFailClosedAndPass(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EROFS, syscall.EDQUOT, syscall.EIO} {
		for _, c := range []struct {
			file string
			kind bolt.ChangeKind
			word string
		}{
			{"audit.jsonl", bolt.ChangeWrite, "write"},
			{"audit.jsonl", bolt.ChangeSync, "sync"},
			{"audit.head", bolt.ChangeWrite, "write"},
			{"vault.cells", bolt.ChangeWrite, "write"},
			{"vault.cells", bolt.ChangeSync, "sync"},
			{"vault.db", bolt.ChangeWrite, "write"},
		} {
			t.Run(fmt.Sprintf("%v/%s of %s", errno, c.word, c.file), func(t *testing.T) {
				f := new(faults)
				h := newHouse(t, bolt.Hooked(patient(), f.change, f.opened))
				f.set(c.file, c.kind, errno)
				h.during(c.file, errno)
				if f.hits == 0 {
					t.Error("the fault was never met, so this test shows nothing")
				}
				f.set("", 0, nil)
				if errno == syscall.EIO {
					if err := h.store.ClearFailed(); err != nil {
						t.Fatal(err)
					}
				}
				h.afterFault()
			})
		}
	}
}

// during makes every kind of call while a fault is on.
func (h *house) during(file string, errno syscall.Errno) {
	h.t.Helper()
	for range 3 {
		err := h.get(0)
		switch {
		case file == "audit.jsonl" && err == nil:
			h.t.Error("a value came out without its line")
		case file != "audit.jsonl" && err != nil:
			h.t.Errorf("Get = %v, although it needs no change of %s", err, file)
		}
	}
	if file == "vault.cells" {
		if _, err := h.Create(h.t.Context(), vault.NewIdentity{Name: "c"}); err == nil {
			h.t.Error("an identity was made without its cell")
		}
	}
	if file == "vault.db" {
		if _, err := h.Put(h.t.Context(), h.keys[0].Identity(), entry("db", "CANARY-a")); err == nil {
			h.t.Error("a value was acknowledged that could not be written")
		}
	}
	if file == "audit.jsonl" && errno != syscall.EIO {
		if _, err := h.Revoke(h.t.Context(), h.keys[1].Identity(), vault.Revocation{}); err != nil {
			h.t.Errorf("Revoke while the log cannot be written = %v", err)
		}
	}
}

// afterFault expects everything to work.
func (h *house) afterFault() {
	h.t.Helper()
	h.eventually(func() error { return h.get(0) })
	if _, err := h.Put(h.t.Context(), h.keys[0].Identity(), entry("more", "x")); err != nil {
		h.t.Errorf("Put after the fault = %v", err)
	}
	if _, err := h.Create(h.t.Context(), vault.NewIdentity{Name: "d"}); err != nil {
		h.t.Errorf("Create after the fault = %v", err)
	}
	if _, err := h.Revoke(h.t.Context(), h.keys[1].Identity(), vault.Revocation{}); err != nil {
		h.t.Errorf("Revoke after the fault = %v", err)
	}
	if err := h.get(1); vault.Refuse(err).Word != vault.Revoked {
		h.t.Errorf("Get with a revoked key = %v", err)
	}
	if _, err := h.Revoke(h.t.Context(), h.keys[0].Identity(), vault.Revocation{Shred: true}); err != nil {
		h.t.Errorf("shredding after the fault = %v", err)
	}
	h.lines()
	if err := h.store.Check(h.t.Context()); err != nil {
		h.t.Errorf("Check after the fault = %v", err)
	}
}

// eventually repeats f for as long as only a hang takes. The pauses grow, so
// that an idle turn can end: files are looked at anew by the next.
func (h *house) eventually(f func() error) {
	h.t.Helper()
	err := f()
	pause := 5 * time.Millisecond
	for end := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(end); err = f() {
		time.Sleep(pause)
		pause = min(2*pause, time.Second)
	}
	if err != nil {
		h.t.Errorf("it does not recover: %v", err)
	}
}

// TestFileTakenAwayFailsClosedAndRecovers removes and replaces files of a store
// in use, and puts them back.
func TestFileTakenAwayFailsClosedAndRecovers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("skipped: Windows keeps an open file at its place")
	}
	for _, name := range []string{"vault.db", "vault.cells", "audit.jsonl"} {
		for _, how := range []string{"removed", "replaced by another store's"} {
			t.Run(name+" "+how, func(t *testing.T) {
				h, other := newHouse(t, patient()), newHouse(t, patient())
				if err := other.Close(); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(h.dir, name)
				if err := os.Rename(path, path+".away"); err != nil {
					t.Fatal(err)
				}
				if how != "removed" {
					write(t, path, read(t, filepath.Join(other.dir, name)))
				}
				second, err := bolt.Open(h.dir, patient()) // another process
				if err == nil {
					k := h.sess.keeper(second)
					v, err := k.Unlock(t.Context(), h.keys[0], vault.Source{Via: "stdio"})
					if err == nil && name != "audit.jsonl" {
						_, err = v.Get(t.Context(), "db", "")
					}
					if err == nil && name != "audit.jsonl" {
						t.Errorf("a value comes out without its %s", name)
					}
					if err := k.Close(); err != nil {
						t.Fatal(err)
					}
				}
				_ = h.get(0) // no other value comes out
				if err := os.Rename(path+".away", path); err != nil {
					t.Fatal(err)
				}
				h.eventually(func() error { return h.get(0) })
				if _, err := h.Put(t.Context(), h.keys[0].Identity(), entry("more", "x")); err != nil {
					t.Errorf("Put after the file is back = %v", err)
				}
				if name != "audit.jsonl" || how == "removed" {
					h.lines()
					return
				}
				rep, err := h.VerifyAudit(t.Context()) // lines went to the wrong log: that is told
				if err != nil || rep.OK() || slices.ContainsFunc(rep.Problems, func(p audit.Problem) bool { return !strings.Contains(p.Text, "the end of the log was missing") }) {
					t.Errorf("VerifyAudit = %v, %v, want a note of the missing end", rep.Problems, err)
				}
			})
		}
	}
}

// TestClockJumpsOpenNothing moves the clock by years, both ways.
func TestClockJumpsOpenNothing(t *testing.T) {
	h := newHouse(t, patient())
	at := func(d time.Duration) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.now = fixedNow().Add(d)
	}
	const year = 365 * 24 * time.Hour
	short, err := h.AddKey(t.Context(), h.keys[0].Identity(), h.keys[0], "short", identity.Grant{Expires: fixedNow().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{0, 30 * year, -30 * year, time.Minute} {
		at(d)
		if err := h.get(0); err != nil {
			t.Errorf("clock at %v: Get = %v", d, err)
		}
		_, err := h.Unlock(t.Context(), short, vault.Source{Via: "stdio"})
		if expired := d > time.Hour; expired != (vault.Refuse(err).Word == vault.Expired) {
			t.Errorf("clock at %v: a key of one hour gives %v", d, err)
		}
		if _, err := h.Put(t.Context(), h.keys[1].Identity(), entry("db", "CANARY-b")); err != nil {
			t.Errorf("clock at %v: Put = %v", d, err)
		}
	}
	at(-10 * year)
	if _, err := h.Revoke(t.Context(), h.keys[1].Identity(), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{-20 * year, 0, 20 * year} {
		at(d)
		if err := h.get(1); vault.Refuse(err).Word != vault.Revoked {
			t.Errorf("clock at %v: a revoked key gives %v", d, err)
		}
	}
	h.lines()
	if log := string(read(t, filepath.Join(h.dir, "audit.jsonl"))); strings.Contains(log, "CANARY") {
		t.Error("a value is in the log")
	}
}
