package bolt_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

const body = `{"v":1,"ev":"get"}`

func app(t *testing.T, s *bolt.Store, n int) {
	t.Helper()
	for range n {
		if _, err := s.Append(t.Context(), []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
}

// lines returns the log, after following its chain.
func lines(t *testing.T, s *bolt.Store) []string {
	t.Helper()
	var all []string
	var prev [32]byte
	for line, err := range s.Lines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(`{"seq":%d,"prev":"%s",`, len(all), hex.EncodeToString(prev[:]))
		if !strings.HasPrefix(string(line), want) {
			t.Fatalf("line %d is %.90q, want %.90q", len(all), line, want)
		}
		prev = sha256.Sum256(line)
		all = append(all, string(line))
	}
	return all
}

// logged makes a store with n lines, closes it, lets change the log, and opens
// it again.
func logged(t *testing.T, n int, change func(dir string, log []byte)) *bolt.Store {
	t.Helper()
	s, dir := create(t, bolt.Options{})
	app(t, s, n)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	change(dir, read(t, filepath.Join(dir, "audit.jsonl")))
	s, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestTornTailIsCutAndNoted(t *testing.T) {
	for name, torn := range map[string]string{
		"half a line":                  `{"seq":3,"prev":"00`,
		"zeros":                        strings.Repeat("\x00", 5000),
		"a line, a hole and a line":    "{\"seq\":3\x00\x00\x00,\"x\":1}\n{\"seq\":4}\n",
		"most of a long line":          `{"seq":3,"prev":"` + strings.Repeat("0", 2000),
		"longer than any line of ours": strings.Repeat("x", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			s := logged(t, 3, func(dir string, log []byte) {
				write(t, filepath.Join(dir, "audit.jsonl"), append(log, torn...))
			})
			if got := lines(t, s); len(got) != 3 {
				t.Fatalf("%d lines are read, want 3", len(got))
			}
			first, err := s.Append(t.Context(), []byte(body))
			if err != nil || first != 4 {
				t.Fatalf("Append = %d, %v, want 4", first, err)
			}
			got := lines(t, s)
			if len(got) != 5 || !strings.Contains(got[3], fmt.Sprintf(`"ev":"note","res":"allow","n":%d,"note":"torn line cut"`, len(torn))) {
				t.Errorf("the log goes on with %q", got[3:])
			}
			app(t, s, 1)
			if got := lines(t, s); len(got) != 6 {
				t.Errorf("%d lines, want 6", len(got))
			}
		})
	}
}

func TestLinesBehindTheMarkAreKept(t *testing.T) {
	var old []byte
	s := logged(t, 3, func(dir string, log []byte) {
		end := bytes.IndexByte(log, '\n') + 1
		old = bolt.NewMark(1, storage.Head{Lines: 1, Hash: sha256.Sum256(log[:end-1])}, int64(end))
		write(t, filepath.Join(dir, "audit.head"), old)
	})
	if h, err := s.Head(t.Context()); err != nil || h.Lines != 1 {
		t.Errorf("Head = %d, %v, want 1", h.Lines, err)
	}
	if first, err := s.Append(t.Context(), []byte(body)); err != nil || first != 3 {
		t.Errorf("Append = %d, %v, want 3", first, err)
	}
	if got := lines(t, s); len(got) != 4 || strings.Contains(strings.Join(got, ""), "note") {
		t.Errorf("the log is %q", got)
	}
}

// TestLostMarkIsNoted: without a mark nobody can tell whether the log was cut,
// so Head says so and the log does, once. The control is a sound mark.
func TestLostMarkIsNoted(t *testing.T) {
	flip := func(path string, at ...int) {
		b := read(t, path)
		for _, i := range at {
			b[i] ^= 1
		}
		write(t, path, b)
	}
	for name, c := range map[string]struct {
		change  func(path string)
		unknown bool
	}{
		"sound":       {func(string) {}, false},
		"one damaged": {func(path string) { flip(path, 20) }, false},
		"two damaged": {func(path string) { flip(path, 20, bolt.CopySize+20) }, true},
		"missing":     {func(path string) { _ = os.Remove(path) }, true},
		"empty":       {func(path string) { write(t, path, nil) }, true},
		"missing, and the log is cut": {func(path string) {
			_ = os.Remove(path)
			write(t, filepath.Join(filepath.Dir(path), "audit.jsonl"), nil)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := logged(t, 3, func(dir string, _ []byte) { c.change(filepath.Join(dir, "audit.head")) })
			before := uint64(len(lines(t, s)))
			for range 2 { // looking mends nothing
				h, err := s.Head(t.Context())
				if err != nil || h.Unknown != c.unknown || c.unknown != (h.Lines == 0) {
					t.Errorf("Head = %+v, %v, want unknown %v", h, err, c.unknown)
				}
			}
			want := before
			if c.unknown {
				want++
			}
			if first, err := s.Append(t.Context(), []byte(body)); err != nil || first != want {
				t.Errorf("Append = %d, %v, want %d", first, err, want)
			}
			app(t, s, 1)
			all := lines(t, s)
			if noted := strings.Count(strings.Join(all, ""), storage.NoteGap); noted != int(want-before) || noted == 1 && !strings.Contains(all[before], storage.NoteGap) {
				t.Errorf("%d notes in %q, want %d", noted, all, want-before)
			}
			other, err := bolt.Open(s.Describe().Dir, bolt.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = other.Close() }()
			if h, err := other.Head(t.Context()); err != nil || h.Unknown || h.Lines != uint64(len(all)) {
				t.Errorf("Head afterwards = %+v, %v, want %d lines", h, err, len(all))
			}
		})
	}
}

func TestNewStoreHasAMark(t *testing.T) {
	s, _ := create(t, bolt.Options{})
	if h, err := s.Head(t.Context()); err != nil || h != (storage.Head{}) {
		t.Errorf("Head of a new store = %+v, %v", h, err)
	}
}

// TestTornMarkLeavesTheOneBefore tears the write of each of four marks at
// every byte. What is left is that mark or the one before, and the log goes on
// without a note.
func TestTornMarkLeavesTheOneBefore(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	path := filepath.Join(dir, "audit.head")
	states := [][]byte{read(t, path)}
	for range 4 {
		app(t, s, 1)
		states = append(states, read(t, path))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < len(states); n++ {
		changed := 0
		for half := range 2 {
			at := half * bolt.CopySize
			if !bytes.Equal(states[n-1][at:at+bolt.CopySize], states[n][at:at+bolt.CopySize]) {
				changed++
			}
		}
		if changed != 1 {
			t.Fatalf("mark %d changes %d copies, want 1", n, changed)
		}
		for cut := 0; cut <= bolt.CopySize; cut += 5 {
			torn := bytes.Clone(states[n-1])
			for at := 0; at < len(torn); at += bolt.CopySize {
				copy(torn[at:at+cut], states[n][at:])
			}
			write(t, path, torn)
			s, err := bolt.Open(dir, bolt.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if h, err := s.Head(t.Context()); err != nil || h.Unknown || h.Lines != uint64(n-1) && h.Lines != uint64(n) {
				t.Fatalf("mark %d torn at %d: Head = %+v, %v", n, cut, h, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestTornMarkIsHealed: the next crash may tear the other copy.
func TestTornMarkIsHealed(t *testing.T) {
	for _, torn := range []int{0, bolt.CopySize} {
		s, dir := create(t, bolt.Options{})
		app(t, s, 5)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "audit.head")
		head := read(t, path)
		head[torn+70] ^= 1
		write(t, path, head)
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Head(t.Context()); err != nil {
			t.Fatal(err)
		}
		head = read(t, path)
		for at := 0; at < len(head); at += bolt.CopySize {
			if bolt.ReencodeMark(head[at:at+bolt.CopySize]) == nil {
				t.Errorf("copy at %d torn: copy at %d is invalid after the mark was read", torn, at)
			}
		}
		app(t, s, 1)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestShorterLogAfterAGapIsNotedOnce: after a cut the mark goes back to fewer
// lines than it had, which the next process must not take for another cut.
func TestShorterLogAfterAGapIsNotedOnce(t *testing.T) {
	s := logged(t, 50, func(dir string, log []byte) {
		write(t, filepath.Join(dir, "audit.jsonl"), log[:bytes.IndexByte(log, '\n')+1])
	})
	app(t, s, 1)
	other, err := bolt.Open(s.Describe().Dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	app(t, other, 1)
	app(t, s, 1)
	if all := strings.Join(lines(t, s), ""); strings.Count(all, storage.NoteGap) != 1 {
		t.Errorf("the log is %s, want one note", all)
	}
}

// TestReadersBesideWritersSeeAPrefix follows the log while two stores append to
// it. Every Head taken before is within the lines; the control is that a Head
// taken after is ahead of them at least once.
func TestReadersBesideWritersSeeAPrefix(t *testing.T) {
	s, dir := create(t, patient())
	reader, err := bolt.Open(dir, patient())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.Append(ctx, []byte(body), []byte(body)); err != nil && ctx.Err() == nil {
					t.Errorf("Append = %v", err)
					return
				}
			}
		})
	}
	ahead := 0
	for round := 0; round < 30 || ahead == 0; round++ {
		if round == 10_000 {
			t.Fatal("no Head was ahead of the lines read before: this test shows nothing")
		}
		for _, one := range []*bolt.Store{reader, s} {
			h, err := one.Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			all := lines(t, one) // follows the chain
			if h.Unknown || h.Lines > uint64(len(all)) {
				t.Fatalf("Head = %+v, then %d lines", h, len(all))
			}
			if h.Lines > 0 && sha256.Sum256([]byte(all[h.Lines-1])) != h.Hash {
				t.Fatalf("line %d is not the one of Head", h.Lines-1)
			}
			if after, err := one.Head(t.Context()); err == nil && after.Lines > uint64(len(all)) {
				ahead++
			}
		}
	}
}

func TestCutOrChangedEndLeavesANote(t *testing.T) {
	cutLast := func(log []byte) []byte {
		return log[:bytes.LastIndexByte(log[:len(log)-1], '\n')+1]
	}
	for name, c := range map[string]struct {
		change func(log []byte) []byte
		lost   string
	}{
		"one line cut":   {cutLast, `"n":1,`},
		"two lines cut":  {func(log []byte) []byte { return cutLast(cutLast(log)) }, `"n":2,`},
		"all lines cut":  {func([]byte) []byte { return nil }, `"n":3,`},
		"last edited":    {func(log []byte) []byte { return bytes.Replace(log, []byte("get\"}\n"), []byte("put\"}\n"), -1) }, ""},
		"garbage behind": {func(log []byte) []byte { return append(log, "hello\nworld\n"...) }, ""},
		"cut and forged": {func(log []byte) []byte {
			return append(cutLast(log), "{\"seq\":2,\"prev\":\""+strings.Repeat("0", 64)+"\",\"v\":1,\"ev\":\"forged forged\"}\n"...)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := logged(t, 3, func(dir string, log []byte) { write(t, filepath.Join(dir, "audit.jsonl"), c.change(log)) })
			if h, err := s.Head(t.Context()); err != nil || h.Lines != 3 {
				t.Errorf("Head = %d, %v, want the old mark", h.Lines, err)
			}
			app(t, s, 1)
			var all []string
			for line, err := range s.Lines(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, string(line))
			}
			note := all[len(all)-2]
			if !strings.Contains(note, storage.NoteGap) || !strings.Contains(note, c.lost) {
				t.Errorf("before the new line stands %q", note)
			}
			app(t, s, 1)
			if h, err := s.Head(t.Context()); err != nil || h.Lines < uint64(len(all)) {
				t.Errorf("Head = %d, %v, want at least %d", h.Lines, err, len(all))
			}
		})
	}
}

// TestLogThatCannotBeWrittenIsADefiniteError breaks the log of a running store
// in every way it can be met, and mends it.
func TestLogThatCannotBeWrittenIsADefiniteError(t *testing.T) {
	for name, c := range map[string]struct{ damage, mend func(path string) error }{
		"read-only": {
			func(p string) error { return os.Chmod(p, 0o400) },
			func(p string) error { return os.Chmod(p, 0o600) },
		},
		"removed": {
			func(p string) error { return os.Rename(p, p+".away") },
			func(p string) error { return os.Rename(p+".away", p) },
		},
		"a directory": {
			func(p string) error { return errors.Join(os.Rename(p, p+".away"), os.Mkdir(p, 0o700)) },
			func(p string) error { return errors.Join(os.Remove(p), os.Rename(p+".away", p)) },
		},
		"a symlink": {
			func(p string) error { return errors.Join(os.Rename(p, p+".away"), os.Symlink(p+".away", p)) },
			func(p string) error { return errors.Join(os.Remove(p), os.Rename(p+".away", p)) },
		},
		"a second name": {
			func(p string) error { return os.Link(p, p+".away") },
			func(p string) error { return os.Remove(p + ".away") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := create(t, bolt.Options{})
			path := filepath.Join(dir, "audit.jsonl")
			app(t, s, 2)
			if err := c.damage(path); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				_, err := s.Append(t.Context(), []byte(body))
				if !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, storage.ErrUnknown) {
					t.Fatalf("Append = %v, want %v", err, storage.ErrUnavailable)
				}
			}
			if _, err := s.Head(t.Context()); err == nil {
				t.Error("Head says nothing of the fault")
			}
			if _, err := s.Commit(t.Context(), [16]byte{1}, 0, storage.Batch{Meta: []byte("m")}); err != nil {
				t.Errorf("Commit = %v while the log is away", err)
			}
			other, err := bolt.Open(dir, bolt.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := other.Append(t.Context(), []byte(body)); !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("Append of a store opened later = %v, want %v", err, storage.ErrUnavailable)
			}
			if err := errors.Join(other.Close(), c.mend(path)); err != nil {
				t.Fatal(err)
			}
			app(t, s, 2)
			if got := lines(t, s); len(got) != 4 {
				t.Errorf("%d lines after the fault, want 4", len(got))
			}
		})
	}
}

func TestMissingLogIsNeverBegunAnew(t *testing.T) {
	s := logged(t, 3, func(dir string, _ []byte) {
		if err := errors.Join(os.Remove(filepath.Join(dir, "audit.jsonl")), os.Remove(filepath.Join(dir, "audit.head"))); err != nil {
			t.Fatal(err)
		}
	})
	_, err := s.Append(t.Context(), []byte(body))
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("Append = %v, want that the log is missing", err)
	}
	for _, err := range s.Lines(t.Context()) {
		if err == nil || !strings.Contains(err.Error(), "missing") {
			t.Errorf("Lines = %v, want that the log is missing", err)
		}
	}
	if _, err := os.Stat(filepath.Join(s.Describe().Dir, "audit.jsonl")); err == nil {
		t.Error("the log was begun anew")
	}
}

func TestOlderFilesComeFirst(t *testing.T) {
	s := logged(t, 6, func(dir string, log []byte) {
		at := []int{0}
		for i, c := range log {
			if c == '\n' {
				at = append(at, i+1)
			}
		}
		write(t, filepath.Join(dir, "audit-0.jsonl"), log[:at[2]])
		write(t, filepath.Join(dir, "audit-2.jsonl"), log[at[2]:])
		write(t, filepath.Join(dir, "audit-x.jsonl"), []byte("not one of ours\n"))
		write(t, filepath.Join(dir, "audit.jsonl"), nil)
		last := log[at[5] : len(log)-1]
		write(t, filepath.Join(dir, "audit.head"), bolt.NewMark(9, storage.Head{Lines: 6, Hash: sha256.Sum256(last)}, 0))
	})
	if first, err := s.Append(t.Context(), []byte(body)); err != nil || first != 6 {
		t.Fatalf("Append = %d, %v, want 6", first, err)
	}
	if got := lines(t, s); len(got) != 7 {
		t.Errorf("%d lines, want 7", len(got))
	}
}

func TestCancelledAppendAddsNothing(t *testing.T) {
	s, _ := create(t, bolt.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Append(ctx, []byte(body)); !errors.Is(err, context.Canceled) {
		t.Errorf("Append = %v, want %v", err, context.Canceled)
	}
	if got := lines(t, s); len(got) != 0 {
		t.Errorf("the log is %q", got)
	}
}

func FuzzMark(f *testing.F) {
	f.Add(bolt.NewMark(3, storage.Head{Lines: 7, Hash: [32]byte{1}}, 1234))
	f.Fuzz(func(t *testing.T, b []byte) {
		reencodes(t, "a mark", b, bolt.ReencodeMark)
	})
}

func FuzzLogTail(f *testing.F) {
	f.Add([]byte("{\"seq\":1,\"prev\":\"" + strings.Repeat("ab", 32) + "\",\"v\":1}\n"))
	f.Add([]byte("\x00\x00\n\n\n"))
	f.Add([]byte("hello\n{\"seq\":18446744073709551615,\"prev\":\""))
	s, dir := create(f, bolt.Options{})
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		write(t, filepath.Join(dir, "audit.jsonl"), log)
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		first, err := s.Append(t.Context(), []byte(body))
		if err != nil {
			t.Fatalf("Append = %v", err)
		}
		var last []byte
		for line, err := range s.Lines(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			last = line
		}
		if seq, _, ok := bolt.ParseSeq(last); !ok || seq != first || !bytes.HasSuffix(last, []byte(body[1:])) {
			t.Fatalf("the log ends with %q, want line %d", last, first)
		}
	})
}
