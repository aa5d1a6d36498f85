package bolt_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
	"github.com/solekey/solekey/vault/storage/enginetest"
)

// small makes a log go on in a new file every few lines.
const small = 1000

// logFiles returns the names of the files of the log in dir, the oldest first.
func logFiles(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	at := make(map[string]uint64)
	for _, e := range all {
		if strings.HasPrefix(e.Name(), "audit") && strings.HasSuffix(e.Name(), ".jsonl") {
			seq, _, _ := bolt.ParseSeq(read(t, filepath.Join(dir, e.Name())))
			at[e.Name()] = seq
		}
	}
	return slices.SortedFunc(maps.Keys(at), func(a, b string) int { return int(at[a]) - int(at[b]) })
}

func TestLogGoesOnInANewFile(t *testing.T) {
	s, dir := create(t, bolt.Options{MaxLog: small})
	app(t, s, 100)
	names := logFiles(t, dir)
	if len(names) < 10 || names[len(names)-1] != "audit.jsonl" {
		t.Fatalf("the log lies in %q, want many files", names)
	}
	for i, name := range names {
		b := read(t, filepath.Join(dir, name))
		first, _, _ := bytes.Cut(b, []byte("\n"))
		seq, _, ok := bolt.ParseSeq(first)
		if want := fmt.Sprintf("audit-%d.jsonl", seq); !ok || i < len(names)-1 && name != want {
			t.Errorf("%s begins with line %d", name, seq)
		}
		if says := bytes.Contains(first, []byte(storage.NoteNext)); says != (i > 0) {
			t.Errorf("%s begins with %q", name, first)
		}
	}
	got := lines(t, s)
	if want := 100 + len(names) - 1; len(got) != want {
		t.Errorf("%d lines in %d files, want %d", len(got), len(names), want)
	}
	h, err := s.Head(t.Context())
	if err != nil || h.Lines != uint64(len(got)) || h.Hash != sha256.Sum256([]byte(got[len(got)-1])) {
		t.Errorf("Head = %d, %v, want %d", h.Lines, err, len(got))
	}
	if d := s.Describe(); d.Sizes[names[0]] == 0 {
		t.Errorf("the earlier files are not described: %v", d.Sizes)
	}
}

func TestLogBelowItsLimitStaysOneFile(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	app(t, s, 100)
	if names := logFiles(t, dir); len(names) != 1 {
		t.Errorf("the log lies in %q", names)
	}
}

func TestHandlesFollowASwitch(t *testing.T) {
	a, dir := create(t, bolt.Options{MaxLog: small})
	b, err := bolt.Open(dir, bolt.Options{}) // never switches by itself
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for range 50 {
		app(t, a, 1)
		app(t, b, 1)
	}
	if got, want := lines(t, b), 100+len(logFiles(t, dir))-1; len(got) != want {
		t.Errorf("%d lines, want %d", len(got), want)
	}
	noGap(t, b)
}

// noGap checks that the log says nowhere that lines are missing.
func noGap(t *testing.T, s *bolt.Store) {
	t.Helper()
	for _, l := range lines(t, s) {
		if strings.Contains(l, storage.NoteGap) {
			t.Fatalf("the log says %q", l)
		}
	}
}

func TestEarlierFilesMayBeMovedAway(t *testing.T) {
	s, dir := create(t, bolt.Options{MaxLog: small})
	app(t, s, 40)
	names := logFiles(t, dir)
	all := lines(t, s)
	for _, name := range names[:len(names)-1] { // the newest of them may be the one that the mark is in
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	first, err := s.Append(t.Context(), []byte(body))
	if err != nil || int(first) < len(all) {
		t.Fatalf("Append = %d, %v, want at least %d", first, err, len(all))
	}
	for l, err := range s.Lines(t.Context()) {
		if err != nil || bytes.Contains(l, []byte(storage.NoteGap)) {
			t.Fatalf("the log says %q, %v", l, err)
		}
	}
}

func TestSwitchThatCannotBeMadeKeepsNoLineBack(t *testing.T) {
	for name, hinder := range map[string]func(t *testing.T, dir string){
		"the name is taken": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "audit-0.jsonl"), []byte("kept\n")) },
		"a later name is taken": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "audit-7.jsonl"), []byte("kept\n"))
		},
		"the new file cannot be made": func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Join(dir, "audit.jsonl.new", "full"), 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := create(t, bolt.Options{MaxLog: small})
			app(t, s, 5)
			hinder(t, dir)
			app(t, s, 30)
			b := read(t, filepath.Join(dir, "audit.jsonl"))
			if n := bytes.Count(b, []byte("\n")); n != 35 {
				t.Errorf("audit.jsonl has %d lines, want 35", n)
			}
		})
	}
}

// switchState is a data directory as a crash may leave it.
type switchState struct {
	name  string
	files map[string][]byte
}

func snapshot(t *testing.T, dir, name string) switchState {
	t.Helper()
	st := switchState{name: name, files: make(map[string][]byte)}
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Type().IsRegular() {
			st.files[e.Name()] = read(t, filepath.Join(dir, e.Name()))
		}
	}
	return st
}

// with returns st with one file changed; nil removes it.
func (st switchState) with(what, file string, b []byte) switchState {
	out := switchState{name: st.name + ", " + what, files: maps.Clone(st.files)}
	if out.files[file] = b; b == nil {
		delete(out.files, file)
	}
	return out
}

// sound opens st and says what is wrong: an acknowledged line that is missing
// or doubled, a broken chain, a gap that is none, a log that takes no line.
func (st switchState) sound(t *testing.T, acked int) error {
	dir := t.TempDir()
	for name, b := range st.files {
		write(t, filepath.Join(dir, name), b)
	}
	s, err := bolt.Open(dir, bolt.Options{MaxLog: small})
	if err != nil {
		return err
	}
	defer s.Close()
	for range 12 { // far enough for another switch
		if _, err := s.Append(t.Context(), []byte(`{"after":1}`)); err != nil {
			return err
		}
	}
	_, bodies, err := account(t.Context(), s)
	if err != nil {
		return err
	}
	if bodies["get"] != acked || bodies["after"] != 12 {
		return fmt.Errorf("%d and %d lines, want %d and 12", bodies["get"], bodies["after"], acked)
	}
	return nil
}

// account follows the chain of a log, and counts its lines by kind and by the
// text that their writer gave them.
func account(ctx context.Context, j storage.Journal) (texts, kinds map[string]int, err error) {
	texts, kinds = make(map[string]int), make(map[string]int)
	var prev [32]byte
	var n uint64
	for line, err := range j.Lines(ctx) {
		if err != nil {
			return nil, nil, err
		}
		seq, p, ok := bolt.ParseSeq(line)
		if !ok || seq != n || p != prev {
			return nil, nil, fmt.Errorf("line %d is %.100q and does not continue", n, line)
		}
		prev, n = sha256.Sum256(line), n+1
		var b struct {
			Ev, Note, Text string
			After          int
		}
		if err := json.Unmarshal(line, &b); err != nil {
			return nil, nil, err
		}
		if b.Note == storage.NoteGap {
			return nil, nil, errors.New("the log says that its end was missing")
		}
		texts[b.Text]++
		kinds[b.Ev]++
		kinds["after"] += b.After
	}
	return texts, kinds, nil
}

func TestCrashAtEveryStepOfASwitchLosesNothing(t *testing.T) {
	s, dir := create(t, bolt.Options{})
	app(t, s, 9)
	before := snapshot(t, dir, "before")
	var states []switchState
	s.SetMaxLog(small / 2)
	s.OnSwitch(func(step string) { states = append(states, snapshot(t, dir, step)) })
	app(t, s, 1)
	if len(states) != 4 {
		t.Fatalf("a switch has %d steps, want 4", len(states))
	}
	var all []switchState
	for _, st := range append([]switchState{before}, states...) {
		all = append(all, st)
		mark := st.files["audit.head"]
		for i := range 2 { // the copy that was written last is torn, or the other one, which nobody writes
			torn := slices.Clone(mark)
			clear(torn[i*bolt.CopySize+100 : (i+1)*bolt.CopySize])
			if i == 0 || st.name == "before" {
				all = append(all, st.with(fmt.Sprintf("copy %d of the mark torn", i), "audit.head", torn))
			}
		}
		if next := st.files["audit.jsonl.new"]; st.name == "new" {
			for _, n := range []int{0, 1, 8, 60, 90, len(next) - 1} {
				all = append(all, st.with(fmt.Sprintf("%d bytes of the new file", n), "audit.jsonl.new", next[:n]))
			}
			all = append(all, st.with("zeros in the new file", "audit.jsonl.new", make([]byte, len(next))),
				st.with("no new file", "audit.jsonl.new", nil))
		}
	}
	for _, st := range all {
		if err := st.sound(t, 9); err != nil {
			t.Errorf("after %s: %v", st.name, err)
		}
	}
	t.Logf("%d states", len(all))
	renamed := states[2]
	for name, bad := range map[string]switchState{
		"no new file was made before the rename":        renamed.with("", "audit.jsonl.new", nil),
		"the new file was not synced before the rename": renamed.with("", "audit.jsonl.new", renamed.files["audit.jsonl.new"][:50]),
		"the new file continues another log":            renamed.with("", "audit.jsonl.new", bytes.Replace(renamed.files["audit.jsonl.new"], []byte(`"prev":"`), []byte(`"prev":"00`), 1)),
		"the renames were turned round":                 states[3].with("", "audit-0.jsonl", nil),
		"the file was cut meanwhile":                    before.with("", "audit.jsonl", before.files["audit.jsonl"][:500]),
	} {
		if bad.sound(t, 9) == nil {
			t.Errorf("control: that %s is not found", name)
		}
	}
}

// appendChild appends lines until it is killed and prints the text of each one
// that was acknowledged.
func appendChild(dir, name string, out io.Writer) error {
	s, err := bolt.Open(dir, bolt.Options{TurnTimeout: 30 * time.Second, MaxLog: 4 * small})
	if err != nil {
		return err
	}
	defer s.Close()
	for i := 0; ; i++ {
		text := fmt.Sprintf("%s-%d", name, i)
		if _, err := s.Append(context.Background(), fmt.Appendf(nil, `{"ev":"get","text":"%s"}`, text)); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, text); err != nil {
			return err
		}
	}
}

// crowd lets four processes append to dir and kills one after the other. It
// returns what was acknowledged.
func crowd(t *testing.T, dir string, limit time.Duration, meanwhile func()) (acked []string, kills int) {
	t.Helper()
	type member struct {
		kill func() error
		wait func() error
		got  chan []string
	}
	launch := func(n int) member {
		p := start(t, "append", dir, fmt.Sprintf("p%d", n))
		m := member{kill: p.Kill, wait: p.Wait, got: make(chan []string, 1)}
		go func() {
			var got []string
			r := bufio.NewReader(p.Out)
			for {
				l, err := r.ReadString('\n')
				if err != nil {
					m.got <- got
					return
				}
				got = append(got, strings.TrimSpace(l))
			}
		}()
		return m
	}
	end := func(m member) {
		_ = m.kill()
		acked = append(acked, <-m.got...)
		_ = m.wait()
	}
	var all []member
	for n := range 4 {
		all = append(all, launch(n))
	}
	for until := time.Now().Add(limit); time.Now().Before(until); kills++ {
		<-time.After(time.Duration(20+rand.IntN(30)) * time.Millisecond)
		meanwhile()
		i := rand.IntN(len(all))
		end(all[i])
		all[i] = launch(4 + kills)
	}
	for _, m := range all {
		end(m)
	}
	return acked, kills
}

// whole says which acknowledged lines the log in dir lacks or has twice, or
// how its chain is broken.
func whole(t *testing.T, dir string, acked []string) error {
	s, err := bolt.Open(dir, patient())
	if err != nil {
		return err
	}
	defer s.Close()
	texts, _, err := account(t.Context(), s)
	if err != nil {
		return err
	}
	for _, text := range acked {
		if texts[text] == 0 {
			return fmt.Errorf("line %s was acknowledged and is not there", text)
		}
	}
	for text, n := range texts {
		if n > 1 && text != "" {
			return fmt.Errorf("line %s is there %d times", text, n)
		}
	}
	return nil
}

func TestKilledCrowdLosesNoLineAcrossFiles(t *testing.T) {
	limit := 1500 * time.Millisecond
	if enginetest.Soak() {
		limit = 30 * time.Second
	}
	s, dir := create(t, patient())
	acked, kills := crowd(t, dir, limit, func() { // who reads meanwhile sees one chain
		if _, _, err := account(t.Context(), s); err != nil {
			t.Error(err)
		}
	})
	if err := whole(t, dir, acked); err != nil {
		t.Fatal(err)
	}
	n := len(logFiles(t, dir))
	t.Logf("%d kills, %d lines acknowledged, %d files", kills, len(acked), n)
	if n < 3 || len(acked) < 50 {
		t.Errorf("%d lines in %d files show nothing", len(acked), n)
	}
	app(t, s, 1)
	noGap(t, s)
}

// TestCarelessRotationLosesLines is the control of the crowd: a log that is
// copied and truncated, as tools for other logs do it, is found to be broken.
func TestCarelessRotationLosesLines(t *testing.T) {
	_, dir := create(t, patient())
	path := filepath.Join(dir, "audit.jsonl")
	n := 0
	acked, _ := crowd(t, dir, 500*time.Millisecond, func() {
		n++
		write(t, filepath.Join(dir, fmt.Sprintf("audit-%d.jsonl", 1000000+n)), read(t, path))
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	})
	err := whole(t, dir, acked)
	if err == nil {
		t.Fatal("the crowd's test passes over a log that was copied and truncated")
	}
	t.Logf("found: %v", err)
}

func TestPlantedNewFileIsNotTaken(t *testing.T) {
	s, dir := create(t, bolt.Options{MaxLog: small})
	app(t, s, 30)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names := logFiles(t, dir)
	last := read(t, filepath.Join(dir, names[len(names)-2]))
	seq, _, _ := bolt.ParseSeq(lastLine(last))
	sum := sha256.Sum256(lastLine(last))
	fits := fmt.Sprintf(`{"seq":%d,"prev":"%s",%s`, seq+1, hex.EncodeToString(sum[:]), body[1:]) + "\n"
	for name, plant := range map[string]string{"that fits": fits, "that does not": strings.Replace(fits, `"prev":"`, `"prev":"0`, 1), "empty": ""} {
		if err := errors.Join(os.Remove(filepath.Join(dir, "audit.jsonl")), ignoreMissing(os.Remove(filepath.Join(dir, "audit.jsonl.new")))); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "audit.jsonl.new"), []byte(plant))
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Append(t.Context(), []byte(body))
		_, _, gap := account(t.Context(), s)
		if err == nil && gap == nil {
			t.Errorf("a new file %s takes the place of a log that was removed, and nobody says so", name)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "audit.jsonl"), nil)
	}
}

func lastLine(b []byte) []byte {
	b = bytes.TrimSuffix(b, []byte("\n"))
	return b[bytes.LastIndexByte(b, '\n')+1:]
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
