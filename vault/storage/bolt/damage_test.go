package bolt_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
	"github.com/solekey/solekey/vault/storage/enginetest"
)

// foreign writes a bbolt file of another program.
func foreign(t *testing.T, path string, o *bbolt.Options) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, o)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("theirs"))
		if err != nil {
			return err
		}
		return b.Put([]byte("key"), []byte("value"))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestForeignFileIsRefusedAndUntouched(t *testing.T) {
	for name, fill := range map[string]func(path string){
		"empty":           func(p string) { write(t, p, nil) },
		"text":            func(p string) { write(t, p, bytes.Repeat([]byte("hello\n"), 10_000)) },
		"zeros":           func(p string) { write(t, p, make([]byte, 1<<16)) },
		"short":           func(p string) { write(t, p, []byte("x")) },
		"another program": func(p string) { foreign(t, p, nil) },
		"another program without a free list": func(p string) {
			foreign(t, p, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistArrayType})
		},
		"another program with other pages": func(p string) { foreign(t, p, &bbolt.Options{PageSize: 16 << 10}) },
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := create(t, bolt.Options{})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "vault.db")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			fill(path)
			before := sha256.Sum256(read(t, path))
			s, err := bolt.Open(dir, bolt.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			id := identity.ID{1}
			_, err = s.Get(t.Context(), id)
			_, cerr := s.Commit(t.Context(), id, 0, storage.Batch{Meta: []byte("m")})
			if !errors.Is(err, storage.ErrDamaged) || !errors.Is(cerr, storage.ErrDamaged) {
				t.Errorf("Get = %v, Commit = %v, want %v", err, cerr, storage.ErrDamaged)
			}
			t.Log(err)
			if err := s.PutCell(t.Context(), id, storage.Cell{1}); err != nil {
				t.Errorf("PutCell = %v", err)
			}
			if err := s.EraseCell(t.Context(), id); err != nil {
				t.Errorf("EraseCell = %v", err)
			}
			if sha256.Sum256(read(t, path)) != before {
				t.Error("the file was changed")
			}
		})
	}
}

func TestDirectoryOrSymlinkAsDatabaseIsRefused(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vault.db")
	for name, fill := range map[string]func() error{
		"a directory": func() error { return os.Mkdir(path, 0o700) },
		"a symlink":   func() error { return os.Symlink(path+".away", path) },
	} {
		if err := errors.Join(os.Rename(path, path+".away"), fill()); err != nil {
			t.Fatal(err)
		}
		if _, err := bolt.Open(dir, bolt.Options{}); !errors.Is(err, storage.ErrUnsupported) {
			t.Errorf("Open with %s = %v, want %v", name, err, storage.ErrUnsupported)
		}
		if err := errors.Join(os.Remove(path), os.Rename(path+".away", path)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenAndCreateSayWhatIsThere(t *testing.T) {
	if _, err := bolt.Open(t.TempDir(), bolt.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of nothing = %v, want %v", err, fs.ErrNotExist)
	}
	s, dir := create(t, bolt.Options{})
	if _, err := bolt.Create(dir, bolt.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a store = %v, want %v", err, fs.ErrExist)
	}
	if err := s.PutCell(t.Context(), identity.ID{1}, storage.Cell{1}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), os.Remove(filepath.Join(dir, "vault.db"))); err != nil {
		t.Fatal(err)
	}
	if _, err := bolt.Create(dir, bolt.Options{}); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("Create over lost cells = %v, want %v", err, storage.ErrDamaged)
	}
}

func TestCreateFinishesWhatACrashLeft(t *testing.T) {
	for _, left := range []string{"vault.cells", "audit.jsonl", "audit.head", "vault.db.new", "vault.cells.new", "lock", "reserve"} {
		s, dir := create(t, bolt.Options{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if e.Name() != left {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}
		if left != "vault.cells" && filepath.Ext(left) == ".new" {
			write(t, filepath.Join(dir, left), []byte("half"))
		}
		s, err = bolt.Create(dir, bolt.Options{})
		if err != nil {
			t.Errorf("Create with %s left = %v", left, err)
			continue
		}
		app(t, s, 1)
		_ = s.Close()
	}
}

func TestModesAreClosedToOthers(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	if _, err := s.Commit(t.Context(), identity.ID{1}, 0, storage.Batch{Meta: []byte("m")}); err != nil {
		t.Fatal(err)
	}
	app(t, s, 1)
	if err := errors.Join(s.PutCell(t.Context(), identity.ID{1}, storage.Cell{1}), s.Close()); err != nil {
		t.Fatal(err)
	}
	names := []string{"vault.db", "vault.cells", "audit.jsonl", "audit.head", "lock"}
	for _, name := range names {
		if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	app(t, s, 1)
	if _, err := s.Cell(t.Context(), identity.ID{1}); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, "reserve", "") {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
		}
	}
	if d := s.Describe(); len(d.Warnings) == 0 || d.Erasure != s.Erasure() {
		t.Errorf("Describe() = %+v, want a warning", d)
	}
}

// loaded returns the bytes of a vault.db with some identities, and what they
// hold.
func loaded(t *testing.T) (file []byte, want map[identity.ID]storage.Result) {
	t.Helper()
	s, dir := create(t, bolt.Options{})
	want = make(map[identity.ID]storage.Result)
	for i := range byte(12) {
		id := identity.ID{i + 1, 9}
		b := storage.Batch{Meta: bytes.Repeat([]byte{i}, 3000)}
		vals := make(map[string][]byte)
		for k := range 8 {
			key, val := fmt.Sprint("key", k), bytes.Repeat([]byte{i, byte(k)}, 300)
			b.Ops = append(b.Ops, storage.Op{Key: key, Val: val})
			vals[key] = val
		}
		rev, err := s.Commit(t.Context(), id, 0, b)
		if err != nil {
			t.Fatal(err)
		}
		want[id] = storage.Result{Rev: rev, Meta: b.Meta, Vals: vals}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return read(t, filepath.Join(dir, "vault.db")), want
}

// visit opens a store over file and makes every kind of call. It returns how
// many identities could not be read.
func visit(t *testing.T, dir string, file []byte, ids []identity.ID) (failed int) {
	t.Helper()
	write(t, filepath.Join(dir, "vault.db"), file)
	s, err := bolt.Open(dir, bolt.Options{TurnTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, id := range ids {
		r, err := s.Get(ctx, id, "key1", "key7")
		if err != nil || r.Rev == 0 {
			failed++
		}
		_, _ = s.List(ctx, id, "", 5)
	}
	_, _ = s.Identities(ctx, identity.ID{}, 5)
	if ctx.Err() != nil {
		t.Fatal("a call hung")
	}
	return failed
}

func TestTruncatedDatabaseNeverPanics(t *testing.T) {
	file, want := loaded(t)
	_, dir := create(t, bolt.Options{})
	var ids []identity.ID
	for id := range want {
		ids = append(ids, id)
	}
	step := 4001
	if enginetest.Soak() {
		step = 61
	}
	for n := 0; n < len(file); n += step {
		visit(t, dir, file[:n], ids[:3])
	}
}

func TestDamagedPagesNeverPanic(t *testing.T) {
	file, want := loaded(t)
	_, dir := create(t, bolt.Options{})
	var ids []identity.ID
	for id := range want {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b identity.ID) int { return bytes.Compare(a[:], b[:]) })
	failed := 0
	step, few := 4, 4
	if enginetest.Soak() {
		step, few = 1, len(ids)
	}
	for page := 0; page < len(file)/4096; page += step {
		for _, how := range []func(b []byte){
			func(b []byte) { clear(b) },
			func(b []byte) { copy(b, bytes.Repeat([]byte{0xff}, len(b))) },
			func(b []byte) { b[10] ^= 0x40 }, // how many elements
			func(b []byte) { b[20] ^= 0x80 }, // where the first one lies
			func(b []byte) { b[31] ^= 0x10 },
		} {
			bad := bytes.Clone(file)
			how(bad[page*4096 : (page+1)*4096])
			failed += visit(t, dir, bad, ids[:few])
		}
	}
	if failed == 0 {
		t.Error("no damage was met, so this test shows nothing")
	}
}

// TestDamagedIdentityLeavesTheOthers damages one identity's page. Its own calls
// fail, also writes; every other identity is read and written as before.
func TestDamagedIdentityLeavesTheOthers(t *testing.T) {
	file, want := loaded(t)
	_, dir := create(t, bolt.Options{})
	victim := identity.ID{5, 9}
	at := bytes.Index(file, want[victim].Vals["key3"])
	for _, how := range []func(page []byte){
		func(page []byte) { page[10] ^= 0x40 },
		func(page []byte) { copy(page[16:64], bytes.Repeat([]byte{0xff}, 48)) },
	} {
		bad := bytes.Clone(file)
		page := at / 4096 * 4096
		how(bad[page : page+4096])
		write(t, filepath.Join(dir, "vault.db"), bad)
		s, err := bolt.Open(dir, bolt.Options{OnFail: func(err error) { t.Errorf("the engine failed: %v", err) }})
		if err != nil {
			t.Fatal(err)
		}
		failed := 0
		for id, r := range want {
			_, err := s.Commit(t.Context(), id, r.Rev, storage.Batch{Ops: []storage.Op{{Key: "key3", Val: []byte("new")}}})
			if errors.Is(err, storage.ErrDamaged) && !errors.Is(err, storage.ErrUnknown) {
				failed++
			} else if err != nil {
				t.Errorf("Commit of %v = %v", id, err)
			}
		}
		if failed != 1 {
			t.Errorf("%d identities fail, want 1", failed)
		}
		_ = s.Close()
	}
}

func TestTruncateWhileOpenIsAnError(t *testing.T) {
	for _, how := range []string{"cut", "zeroed", "cut to one page"} {
		s, dir := create(t, bolt.Options{})
		id := identity.ID{1}
		if _, err := s.Commit(t.Context(), id, 0, storage.Batch{Meta: []byte("m")}); err != nil {
			t.Fatal(err)
		}
		var cut atomic.Bool
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for after := 0; after < 50; {
					late := cut.Load()
					_, err := s.Get(t.Context(), id)
					if late {
						after++
					}
					if late && !errors.Is(err, storage.ErrDamaged) {
						t.Errorf("%s: Get = %v, want %v", how, err, storage.ErrDamaged)
						return
					}
				}
			})
		}
		path := filepath.Join(dir, "vault.db")
		size := len(read(t, path))
		if err := os.Truncate(path, map[string]int64{"cut to one page": 4096}[how]); err != nil {
			t.Fatal(err)
		}
		if how == "zeroed" {
			if err := os.Truncate(path, int64(size)); err != nil {
				t.Fatal(err)
			}
		}
		cut.Store(true)
		wg.Wait()
		if _, err := s.Commit(t.Context(), id, 1, storage.Batch{Meta: []byte("n")}); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%s: Commit = %v, want %v", how, err, storage.ErrDamaged)
		}
	}
}

// TestSettledCommitSurvivesTheNewestMeta destroys the root record that a
// commit wrote last. What was settled by an empty commit still stands; what
// was not is the control.
func TestSettledCommitSurvivesTheNewestMeta(t *testing.T) {
	for _, settled := range []bool{true, false} {
		s, dir := create(t, bolt.Options{})
		id := identity.ID{1}
		steps := []storage.Batch{{Meta: []byte("open")}, {Meta: []byte("revoked")}}
		if settled {
			steps = append(steps, storage.Batch{})
		}
		for i, b := range steps {
			if _, err := s.Commit(t.Context(), id, storage.Rev(i), b); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "vault.db")
		file := read(t, path)
		newest := 0
		if bytes.Compare(reversed(file[16+48:16+56]), reversed(file[4096+16+48:4096+16+56])) < 0 {
			newest = 4096
		}
		clear(file[newest : newest+4096])
		write(t, path, file)
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(r.Meta) == "revoked"; got != settled {
			t.Errorf("settled %v: Meta is %q after the newest root record was destroyed", settled, r.Meta)
		}
		_ = s.Close()
	}
}

func reversed(b []byte) []byte {
	out := slices.Clone(b)
	slices.Reverse(out)
	return out
}

func TestFullStoreStillRevokes(t *testing.T) {
	s, _ := create(t, bolt.Options{MaxSize: 8 << 20})
	id := identity.ID{1}
	val := make([]byte, 200<<10)
	var rev storage.Rev
	var err error
	for n := 0; err == nil; n++ {
		var next storage.Rev
		next, err = s.Commit(t.Context(), id, rev, storage.Batch{Meta: []byte("open"), Ops: []storage.Op{{Key: fmt.Sprint(n), Val: val}}})
		if err == nil {
			rev = next
		}
	}
	if !errors.Is(err, storage.ErrFull) || errors.Is(err, storage.ErrUnknown) {
		t.Fatalf("Commit = %v, want %v", err, storage.ErrFull)
	}
	r, err := s.Get(t.Context(), id, "0", "1")
	if err != nil || r.Rev != rev || len(r.Vals) != 2 {
		t.Fatalf("Get = revision %d, %d values, %v, want revision %d", r.Rev, len(r.Vals), err, rev)
	}
	for range 50 {
		next, err := s.Commit(t.Context(), id, rev, storage.Batch{Meta: make([]byte, 4<<10)})
		if err != nil {
			t.Fatalf("a commit without values on a full store = %v", err)
		}
		rev = next
	}
	if next, err := s.Commit(t.Context(), id, rev, storage.Batch{Ops: []storage.Op{{Key: "0"}, {Key: "1"}, {Key: "2"}}}); err != nil {
		t.Fatalf("deleting on a full store = %v", err)
	} else if _, err := s.Commit(t.Context(), id, next, storage.Batch{Ops: []storage.Op{{Key: "again", Val: val}}}); err != nil {
		t.Errorf("Commit after deletes = %v", err)
	}
}

func TestTwoCreatesMakeOneStore(t *testing.T) {
	for range 5 {
		dir := t.TempDir()
		a, b := start(t, "create", dir), start(t, "create", dir)
		errA, errB := a.Wait(), b.Wait()
		if (errA == nil) == (errB == nil) {
			t.Fatalf("two creators end with %v and %v", errA, errB)
		}
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		app(t, s, 1)
		if err := errors.Join(s.Check(t.Context()), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckFindsDamage(t *testing.T) {
	file, want := loaded(t)
	s, dir := create(t, bolt.Options{})
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check of a sound store = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	found := 0
	for page := 4; page < len(file)/4096; page += 3 {
		bad := bytes.Clone(file)
		clear(bad[page*4096 : page*4096+16])
		write(t, filepath.Join(dir, "vault.db"), bad)
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context()); errors.Is(err, storage.ErrDamaged) {
			found++
		}
		_ = s.Close()
	}
	if found < len(want)/3 {
		t.Errorf("Check found %d damaged pages, want at least %d", found, len(want)/3)
	}
}

// TestCheckBelievesNoLength lets a branch page claim a key that is longer than
// the file, where bbolt's own check faults, and takes a page off the free
// list, which leaves it to nobody.
func TestCheckBelievesNoLength(t *testing.T) {
	file, _ := loaded(t)
	newest := 0
	if bytes.Compare(reversed(file[16+48:16+56]), reversed(file[4096+16+48:4096+16+56])) < 0 {
		newest = 4096
	}
	list := int(binary.NativeEndian.Uint64(file[newest+16+32:])) * 4096
	branches := 0
	check := func(what string, damage func(b []byte)) {
		t.Helper()
		s, dir := create(t, bolt.Options{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(file)
		damage(bad)
		write(t, filepath.Join(dir, "vault.db"), bad)
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		if err := s.Check(t.Context()); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%s: Check = %v, want %v", what, err, storage.ErrDamaged)
		}
	}
	check("a page taken off the free list", func(b []byte) { b[list+10]-- })
	check("a free page that is in use", func(b []byte) { copy(b[list+16:], file[newest+16+16:newest+16+24]) })
	for page := 4096 * 4; page < len(file); page += 4096 {
		if binary.NativeEndian.Uint16(file[page+8:]) != 1 || branches == 3 {
			continue
		}
		branches++
		check("a long key in a branch page", func(b []byte) { binary.NativeEndian.PutUint32(b[page+16+4:], 0x7fffffff) })
	}
	if branches == 0 {
		t.Error("there is no branch page, so this test shows less than it says")
	}
}

// TestCheckTellsALostRootRecord: bbolt goes on with the other one, which may
// be a commit behind. The next commit writes it again.
func TestCheckTellsALostRootRecord(t *testing.T) {
	for _, page := range []int{0, 4096} {
		s, dir := create(t, bolt.Options{})
		if _, err := s.Commit(t.Context(), identity.ID{1}, 0, storage.Batch{Meta: []byte("m")}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "vault.db")
		file := read(t, path)
		file[page+16+40] ^= 1
		write(t, path, file)
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context()); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("page %d: Check = %v, want %v", page, err, storage.ErrDamaged)
		}
		for n := range storage.Rev(2) {
			if _, err := s.Commit(t.Context(), identity.ID{2}, n, storage.Batch{Meta: []byte("m")}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(s.Check(t.Context()), s.Close()); err != nil {
			t.Errorf("page %d: Check after commits = %v", page, err)
		}
	}
}

// TestLyingLengthCostsOneIdentity changes what a commit meets beside its own
// entries: the length of a neighbour, for which bbolt would ask for 1.6 GB while
// it writes. The commit is refused before that, nothing is written, the store
// is not marked, and the others go on.
func TestLyingLengthCostsOneIdentity(t *testing.T) {
	file, want := loaded(t)
	bad := bytes.Clone(file)
	of, neighbour := identity.ID{1, 9}, bytes.Repeat([]byte{0, 6}, 300)
	for p := range slices.Chunk(bad, 4096) {
		if binary.NativeEndian.Uint16(p[8:]) != 2 || !bytes.Contains(p, neighbour) {
			continue
		}
		for i := range int(binary.NativeEndian.Uint16(p[10:])) {
			if at := 16 + 16*i; bytes.HasSuffix(p[at:][:binary.NativeEndian.Uint32(p[at+4:])+binary.NativeEndian.Uint32(p[at+8:])], []byte("key6")) {
				p[at+15] = 0x60
			}
		}
	}
	if bytes.Equal(bad, file) {
		t.Fatal("the entry was not found")
	}
	s, dir := openBad(t, bad)
	change := func(id identity.ID) error {
		_, err := s.Commit(t.Context(), id, want[id].Rev, storage.Batch{Ops: []storage.Op{{Key: "key7", Val: []byte("more")}}})
		return err
	}
	wantRefused(t, s, dir, bad, change(of))
	if err := change(identity.ID{2, 9}); err != nil {
		t.Errorf("Commit of another identity = %v", err)
	}
}

// TestFreeListThatLiesLeavesAReadableStore: bbolt would write to the page that
// the list names, far beyond the file.
func TestFreeListThatLiesLeavesAReadableStore(t *testing.T) {
	file, want := loaded(t)
	bad := bytes.Clone(file)
	for p := range slices.Chunk(bad, 4096) {
		if binary.NativeEndian.Uint16(p[8:]) == 0x10 && binary.NativeEndian.Uint16(p[10:]) > 0 {
			p[16+7] = 0x60
		}
	}
	s, dir := openBad(t, bad)
	for id, w := range want {
		_, err := s.Commit(t.Context(), id, w.Rev, storage.Batch{Meta: []byte("more")})
		wantRefused(t, s, dir, bad, err)
		if r, err := s.Get(t.Context(), id); err != nil || r.Rev != w.Rev {
			t.Errorf("Get = revision %d, %v, want %d", r.Rev, err, w.Rev)
		}
	}
}

func openBad(t *testing.T, file []byte) (s *bolt.Store, dir string) {
	t.Helper()
	_, dir = create(t, bolt.Options{})
	write(t, filepath.Join(dir, "vault.db"), file)
	s, err := bolt.Open(dir, bolt.Options{OnFail: func(err error) { t.Errorf("the store gave up: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, dir
}

// wantRefused wants err of a commit that was refused before it wrote.
func wantRefused(t *testing.T, s *bolt.Store, dir string, file []byte, err error) {
	t.Helper()
	if !errors.Is(err, storage.ErrDamaged) || errors.Is(err, storage.ErrUnknown) {
		t.Errorf("Commit = %v, want %v before anything was written", err, storage.ErrDamaged)
	}
	if why, err := s.Failed(t.Context()); why != "" || err != nil {
		t.Errorf("Failed = %q, %v, want no mark", why, err)
	}
	if got := read(t, filepath.Join(dir, "vault.db")); !bytes.Equal(got, file) {
		t.Error("the refused commit wrote")
	}
}
