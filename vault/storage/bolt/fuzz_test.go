package bolt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// smallDatabase is the directory of a store with a few identities, and its
// vault.db up to the last page in use.
func smallDatabase(f *testing.F) (dir string, db []byte, page int) {
	f.Helper()
	s, dir := create(f, bolt.Options{})
	for n := range 3 {
		id := identity.ID{byte(n + 1)}
		ops := []storage.Op{{Key: "\x01k", Val: bytes.Repeat([]byte{byte(n)}, 300)}}
		if _, err := s.Commit(f.Context(), id, 0, storage.Batch{Meta: []byte("meta"), Ops: ops}); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(dir, "vault.db")
	page = os.Getpagesize()
	err := func() error {
		b, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			return err
		}
		return errors.Join(b.View(func(tx *bbolt.Tx) error {
			db = read(f, path)[:tx.Size()]
			return nil
		}), b.Close())
	}()
	if err != nil {
		f.Fatal(err)
	}
	return dir, db, page
}

// remeta makes the checks of both root records right.
func remeta(db []byte, page int) {
	for _, at := range []int{16, page + 16} {
		sum := fnv.New64a()
		_, _ = sum.Write(db[at : at+56])
		binary.NativeEndian.PutUint64(db[at+56:], sum.Sum64())
	}
}

// FuzzDatabase changes bytes of vault.db as somebody does who makes its checks
// right afterwards. Each 4 bytes of the input say where and to what. What comes
// of it is an answer or an error of ours: bbolt, which believes its file, takes
// no process with it.
func FuzzDatabase(f *testing.F) {
	dir, db, page := smallDatabase(f)
	change := func(at int, v byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(at))[1:], v) }
	f.Add([]byte{})
	for _, at := range []int{24, 27, page + 27, 32, 40, 48, 56, 64, page + 32, page + 48, page + 56, 2 * page, 2*page + 8, 3*page + 10, 4*page + 10, 4*page + 16, 4*page + 20, 5*page + 12, 6*page + 24} {
		f.Add(change(at, 0xff))
		f.Add(append(change(at, 2), change(at+1, 0x10)...))
	}
	path := filepath.Join(dir, "vault.db")
	quick := bolt.Hooked(bolt.Options{}, func(bolt.ChangeKind, string, int64, []byte) error { return nil }, func(db *bbolt.DB) {
		db.NoSync, db.NoGrowSync, db.AllocSize = true, true, 4*page // no power cut happens here
	})
	f.Fuzz(func(t *testing.T, changes []byte) {
		bad := bytes.Clone(db)
		for i := 0; i+4 <= len(changes) && i < 64; i += 4 {
			at := int(changes[i])<<16 | int(changes[i+1])<<8 | int(changes[i+2])
			bad[at%len(bad)] = changes[i+3]
		}
		remeta(bad, page)
		write(t, path, bad)
		write(t, filepath.Join(dir, "lock"), nil) // what an earlier input left there
		s, err := bolt.Open(dir, quick)
		if err != nil {
			t.Fatalf("Open = %v, which reads no byte of it", err)
		}
		defer func() { _ = s.Close() }()
		known := func(call string, err error) {
			t.Helper()
			for _, want := range []error{nil, storage.ErrDamaged, storage.ErrUnavailable, storage.ErrConflict, storage.ErrUnknown, storage.ErrFull, storage.ErrUnsupported} {
				if errors.Is(err, want) {
					return
				}
			}
			t.Errorf("%s of a changed vault.db = %v", call, err)
		}
		ids, err := s.Identities(t.Context(), identity.ID{}, 10)
		known("Identities", err)
		for _, i := range ids[:min(len(ids), 4)] {
			_, err = s.Get(t.Context(), i.ID, "\x01k")
			known("Get", err)
			_, err = s.List(t.Context(), i.ID, "", 10)
			known("List", err)
		}
		r, err := s.Get(t.Context(), identity.ID{2}, "\x01k")
		known("Get", err)
		if err == nil {
			_, err = s.Commit(t.Context(), identity.ID{2}, r.Rev, storage.Batch{Meta: []byte("more")})
			known("Commit", err)
		}
	})
}

// TestLockFileMayHoldAnything: whatever stands in the lock file, the store
// answers or says that it does not, and it answers once its owner has cleared
// the marks.
func TestLockFileMayHoldAnything(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	id := identity.ID{1}
	if _, err := s.Commit(t.Context(), id, 0, storage.Batch{Meta: []byte("meta")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good := read(t, filepath.Join(dir, "lock"))
	cases := [][]byte{good, nil, []byte("short"), bytes.Repeat([]byte{0xff}, 40), make([]byte, 1<<16)}
	for at := 16; at < 24; at++ { // process and marks
		for bit := range 8 {
			c := bytes.Clone(good)
			c[at] ^= 1 << bit
			cases = append(cases, c)
		}
	}
	closed := 0
	for _, lock := range cases {
		write(t, filepath.Join(dir, "lock"), lock)
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Get(t.Context(), id)
		switch {
		case errors.Is(err, storage.ErrUnavailable):
			closed++
		case err != nil || string(r.Meta) != "meta":
			t.Errorf("Get with the lock %x = %q, %v", lock, r.Meta, err)
		}
		if err := errors.Join(s.ClearFailed(), s.Close()); err != nil {
			t.Fatalf("ClearFailed with the lock %x = %v", lock, err)
		}
		if s, err = bolt.Open(dir, bolt.Options{}); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Get(t.Context(), id); err != nil || string(r.Meta) != "meta" {
			t.Errorf("Get once the lock %x was cleared = %q, %v", lock, r.Meta, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if closed == 0 {
		t.Error("control: no mark closes the store")
	}
}
