package bolt_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

func TestWatchTellsAHangingCallFromManyShortOnes(t *testing.T) {
	var w bolt.Watch
	now := time.Unix(1000, 0)
	tick := func() time.Duration { now = now.Add(5 * time.Millisecond); return w.Stalled(now) }
	for range 1000 { // calls overlap, none hangs
		a := w.Enter()
		tick()
		b := w.Enter()
		w.Leave(a)
		if age := tick(); age > 20*time.Millisecond {
			t.Fatalf("short calls look %v old", age)
		}
		w.Leave(b)
	}
	hung := w.Enter()
	for range 1200 {
		g := w.Enter()
		tick()
		w.Leave(g)
	}
	if age := tick(); age < 5*time.Second || age > 7*time.Second {
		t.Errorf("a call that hangs for 6 s looks %v old", age)
	}
	w.Leave(hung)
	tick()
	if age := tick(); age > 20*time.Millisecond {
		t.Errorf("after it ended the oldest call looks %v old", age)
	}
}

func TestDiskErrorStopsEveryHandleUntilCleared(t *testing.T) {
	told := make(chan error, 4)
	s, dir := create(t, bolt.Options{OnFail: func(err error) { told <- err }})
	id := identity.ID{1}
	if _, err := s.Commit(t.Context(), id, 0, storage.Batch{Meta: []byte("m")}); err != nil {
		t.Fatal(err)
	}
	cells := []identity.ID{{2}, {3}}
	for _, c := range cells {
		if err := s.PutCell(t.Context(), c, storage.Cell{1}); err != nil {
			t.Fatal(err)
		}
	}
	if why, err := s.Failed(t.Context()); why != "" || err != nil {
		t.Errorf("Failed of a sound store = %q, %v", why, err)
	}
	if err := s.Enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.DiskError(syscall.EIO)
	s.Leave()
	if err := <-told; !errors.Is(err, syscall.EIO) {
		t.Errorf("OnFail gets %v", err)
	}
	other, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	for name, b := range map[string]*bolt.Store{"this": s, "another": other} {
		if why, err := b.Failed(t.Context()); !strings.Contains(why, "disk error") || err != nil {
			t.Errorf("Failed of %s handle = %q, %v", name, why, err)
		}
		if err := b.EraseCell(t.Context(), cells[0]); err != nil {
			t.Errorf("EraseCell of %s handle = %v", name, err)
		}
		if _, err := b.Cell(t.Context(), cells[1]); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("Cell of %s handle = %v, want %v", name, err, storage.ErrUnavailable)
		}
		cells[0], cells[1] = cells[1], cells[0]
		_, gerr := b.Get(t.Context(), id)
		_, aerr := b.Append(t.Context(), []byte(body))
		for _, err := range []error{gerr, aerr} {
			if !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("%s handle gives %v, want %v", name, err, storage.ErrUnavailable)
			}
		}
	}
	if err := other.ClearFailed(); err != nil {
		t.Fatal(err)
	}
	if why, err := s.Failed(t.Context()); why != "" || err != nil {
		t.Errorf("Failed after ClearFailed = %q, %v", why, err)
	}
	if _, err := other.Cell(t.Context(), cells[0]); !errors.Is(err, storage.ErrErased) {
		t.Errorf("Cell after ClearFailed = %v, want %v", err, storage.ErrErased)
	}
	for name, b := range map[string]*bolt.Store{"another": other, "this": s} {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			_, err := b.Get(t.Context(), id)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s handle gives %v after ClearFailed", name, err)
				break
			}
		}
	}
}

// TestLateTurnNamesTheHolder: whoever waits in vain learns which process to
// look at, from every method.
func TestLateTurnNamesTheHolder(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	if err := s.Enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.Leave()
	late, err := bolt.Open(dir, bolt.Options{TurnTimeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Close() }()
	id, ctx := identity.ID{1}, t.Context()
	for name, call := range map[string]func() error{
		"Get":        func() error { _, err := late.Get(ctx, id); return err },
		"List":       func() error { _, err := late.List(ctx, id, "", 1); return err },
		"Identities": func() error { _, err := late.Identities(ctx, id, 1); return err },
		"Commit":     func() error { _, err := late.Commit(ctx, id, 0, storage.Batch{}); return err },
		"Cell":       func() error { _, err := late.Cell(ctx, id); return err },
		"PutCell":    func() error { return late.PutCell(ctx, id, storage.Cell{1}) },
		"EraseCell":  func() error { return late.EraseCell(ctx, id) },
		"Append":     func() error { _, err := late.Append(ctx, []byte(body)); return err },
		"Head":       func() error { _, err := late.Head(ctx); return err },
		"Lines": func() error {
			for _, err := range late.Lines(ctx) {
				return err
			}
			return nil
		},
		"Check":       func() error { return late.Check(ctx) },
		"ClearFailed": late.ClearFailed,
	} {
		err := call()
		want := fmt.Sprintf("held by process %d since 20", os.Getpid())
		if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s = %v, want %v and %q", name, err, storage.ErrUnavailable, want)
		}
	}
	if why, err := late.Failed(ctx); why != "" || err != nil {
		t.Errorf("Failed beside a holder = %q, %v, want no wait", why, err)
	}
}
