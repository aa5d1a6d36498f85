//go:build linux

package bolt_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// TestFileSizeLimitIsADefiniteErrorAndPasses gives a child process a limit on
// the size of files, asks it for every kind of call, and lifts the limit.
func TestFileSizeLimitIsADefiniteErrorAndPasses(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	one, two := identity.ID{1}, identity.ID{2}
	long := fmt.Appendf(nil, `{"v":1,"note":"%01500d"}`, 0) // so that the log is larger than vault.cells
	if _, err := s.Append(t.Context(), slices.Repeat([][]byte{long}, 40)...); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), one, 0, storage.Batch{Meta: []byte("m")}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.PutCell(t.Context(), one, storage.Cell{1}), s.PutCell(t.Context(), two, storage.Cell{2}), s.Close()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "limit", dir, fmt.Sprint(info.Size()+200))
	all, err := io.ReadAll(bufio.NewReader(p.Out))
	if werr := p.Wait(); err != nil || werr != nil {
		t.Fatalf("the child says %q, %v, %v", all, err, werr)
	}
	const want = "append 1: <nil>\nappend 2: full\nappend 3: full\ncommit: full\nget: <nil>\nerase: <nil>\nafter: append <nil>, commit <nil>\n"
	if string(all) != want {
		t.Errorf("the child says\n%swant\n%s", all, want)
	}
	if s, err = bolt.Open(dir, bolt.Options{}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if got := lines(t, s); len(got) != 42 {
		t.Errorf("%d lines, want 42", len(got))
	}
}

// limited is the child of the test above.
func limited(dir string, size uint64, out io.Writer) error {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	s, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: old.Max}); err != nil {
		return err
	}
	word := func(err error) string {
		if errors.Is(err, storage.ErrFull) && !errors.Is(err, storage.ErrUnknown) {
			return "full"
		}
		return fmt.Sprint(err)
	}
	ctx, id := context.Background(), identity.ID{1}
	for i := range 3 {
		_, err := s.Append(ctx, []byte(body))
		fmt.Fprintf(out, "append %d: %s\n", i+1, word(err))
	}
	big := storage.Batch{Ops: []storage.Op{{Key: "k", Val: make([]byte, 200<<10)}}}
	_, err = s.Commit(ctx, id, 1, big)
	fmt.Fprintf(out, "commit: %s\n", word(err))
	_, err = s.Get(ctx, id)
	fmt.Fprintf(out, "get: %v\nerase: %v\n", err, s.EraseCell(ctx, id))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	_, err = s.Append(ctx, []byte(body))
	_, cerr := s.Commit(ctx, id, 1, big)
	fmt.Fprintf(out, "after: append %v, commit %v\n", err, cerr)
	return nil
}

// TestFullDiskStillRevokes fills a small file system. Reads, erasing and
// commits without values go on.
func TestFullDiskStillRevokes(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=12m"); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	defer func() { _ = unix.Unmount(mount, unix.MNT_DETACH) }()
	s, err := bolt.Create(filepath.Join(mount, "store"), bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	id := identity.ID{1}
	if err := s.PutCell(t.Context(), id, storage.Cell{1}); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(mount, "filler")
	write(t, filler, make([]byte, 1<<20))
	var rev storage.Rev
	for n := 0; err == nil; n++ {
		b := storage.Batch{Meta: []byte("open"), Ops: []storage.Op{{Key: fmt.Sprint(n), Val: bytes.Repeat([]byte{1}, 60<<10)}}}
		var next storage.Rev
		if next, err = s.Commit(t.Context(), id, rev, b); err == nil {
			rev = next
		}
	}
	if !errors.Is(err, storage.ErrFull) || errors.Is(err, storage.ErrUnknown) {
		t.Fatalf("Commit on a full disk = %v, want %v", err, storage.ErrFull)
	}
	for err = nil; err == nil; {
		_, err = s.Append(t.Context(), []byte(body))
	}
	if !errors.Is(err, storage.ErrFull) {
		t.Errorf("Append on a full disk = %v, want %v", err, storage.ErrFull)
	}
	n := len(lines(t, s))
	next, err := s.Commit(t.Context(), id, rev, storage.Batch{Meta: bytes.Repeat([]byte("revoked"), 1000)})
	if err != nil {
		t.Fatalf("revoking on a full disk = %v", err)
	}
	if _, err := s.Commit(t.Context(), id, next, storage.Batch{}); err != nil {
		t.Errorf("settling on a full disk = %v", err)
	}
	if r, err := s.Get(t.Context(), id); err != nil || r.Rev != next+1 || len(r.Meta) != 7000 {
		t.Errorf("Get = revision %d, %v, want %d", r.Rev, err, next+1)
	}
	reserve := filepath.Join(mount, "store", "reserve")
	for n := byte(2); ; n++ { // until a commit without values finds no free page
		if _, err := s.Commit(t.Context(), identity.ID{n}, 0, storage.Batch{Meta: make([]byte, storage.MaxMeta)}); err != nil {
			t.Fatalf("commit %d without values on a full disk = %v", n, err)
		}
		if _, err := os.Lstat(reserve); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if n == 200 {
			t.Fatal("the reserve was never needed, so this test shows nothing")
		}
	}
	if err := s.EraseCell(t.Context(), id); err != nil {
		t.Errorf("EraseCell on a full disk = %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	app(t, s, 1)
	if got := len(lines(t, s)); got != n+1 {
		t.Errorf("%d lines, want %d", got, n+1)
	}
}

// TestPanicInAWriteLeavesAReadableStore makes the free list name a page that
// is in use, which bbolt finds while it writes.
func TestPanicInAWriteLeavesAReadableStore(t *testing.T) {
	file, want := loaded(t)
	_, dir := create(t, bolt.Options{})
	meta := 0
	if binary.LittleEndian.Uint64(file[4096+16+48:]) > binary.LittleEndian.Uint64(file[16+48:]) {
		meta = 4096
	}
	root := binary.LittleEndian.Uint64(file[meta+16+16:])
	list := binary.LittleEndian.Uint64(file[meta+16+32:])
	n := int(binary.LittleEndian.Uint16(file[list*4096+10:]))
	if n == 0 {
		t.Fatal("the free list is empty")
	}
	at := 0 // where the list stays in order, as one that is not is met earlier
	for at < n-1 && binary.LittleEndian.Uint64(file[int(list)*4096+16+8*at:]) < root {
		at++
	}
	bad := bytes.Clone(file)
	binary.LittleEndian.PutUint64(bad[int(list)*4096+16+8*at:], root)
	write(t, filepath.Join(dir, "vault.db"), bad)

	var told atomic.Int32
	s, err := bolt.Open(dir, bolt.Options{OnFail: func(error) { told.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	id := identity.ID{5, 9}
	change := storage.Batch{Meta: []byte("new")}
	if _, err := s.Commit(t.Context(), id, want[id].Rev, change); !errors.Is(err, storage.ErrUnknown) {
		t.Fatalf("Commit = %v, want %v", err, storage.ErrUnknown)
	}
	if told.Load() != 1 {
		t.Errorf("OnFail was called %d times, want once", told.Load())
	}
	if _, err := s.Get(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("Get after the failure = %v, want %v", err, storage.ErrUnavailable)
	}
	_ = s.Close()

	s, err = bolt.Open(dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if r, err := s.Get(t.Context(), id); err != nil || r.Rev != want[id].Rev {
		t.Errorf("Get in another handle = revision %d, %v, want %d", r.Rev, err, want[id].Rev)
	}
	if _, err := s.Commit(t.Context(), id, want[id].Rev, change); !errors.Is(err, storage.ErrDamaged) || errors.Is(err, storage.ErrUnknown) {
		t.Errorf("Commit in another handle = %v, want %v", err, storage.ErrDamaged)
	}
	if err := errors.Join(s.ClearFailed(), s.Close()); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "vault.db"), file)
	if s, err = bolt.Open(dir, bolt.Options{}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := s.Commit(t.Context(), id, want[id].Rev, change); err != nil {
		t.Errorf("Commit after ClearFailed = %v", err)
	}
}
