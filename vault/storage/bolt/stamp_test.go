package bolt_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// TestStampSeesEveryChange: what another process commits, stores, erases or
// appends makes another state; what is only read does not.
func TestStampSeesEveryChange(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	other, err := bolt.Open(dir, patient())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx, id := t.Context(), identity.ID{1}
	changes := []func() error{
		func() error { _, err := other.Commit(ctx, id, 0, storage.Batch{Meta: []byte("m")}); return err },
		func() error { _, err := other.Commit(ctx, id, 1, storage.Batch{}); return err },
		func() error { return other.PutCell(ctx, id, storage.Cell{1}) },
		func() error { return other.EraseCell(ctx, id) },
		func() error { _, err := other.Append(ctx, []byte(`{"a":1}`)); return err },
	}
	for i, change := range changes {
		since, err := s.Stamp(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.Get(ctx, id); err != nil {
			t.Fatal(err)
		}
		ran := false
		f := func() error { ran = true; return nil }
		if err := s.Unchanged(ctx, since, f); err != nil || !ran { // control
			t.Errorf("before change %d: %v, ran %v", i, err, ran)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		ran = false
		if err := s.Unchanged(ctx, since, f); !errors.Is(err, storage.ErrConflict) || ran {
			t.Errorf("after change %d: %v, ran %v; want ErrConflict", i, err, ran)
		}
	}
}

// TestStampOfDamagedFiles: what does not open has a state that stays.
func TestStampOfDamagedFiles(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vault.db", "vault.cells"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<15), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "audit.jsonl")); err != nil {
		t.Fatal(err)
	}
	s, err := bolt.Open(dir, patient())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	since, err := s.Stamp(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unchanged(t.Context(), since, func() error { return nil }); err != nil {
		t.Error(err)
	}
}
