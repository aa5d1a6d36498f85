package vault_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// The attacks of someone who can write every file of a store, the log with
// its chain and its mark included. Without something from elsewhere they show
// nowhere; with a checkpoint each one does.

// site is a store on disk that is opened for each use, so that its files can
// be exchanged between two.
type site struct {
	dir  string
	root vault.Root
	id   identity.ID
	key  identity.Key
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: filepath.Join(t.TempDir(), "data")}
	k, root := onDisk(t, s.dir)
	s.root = root
	var err error
	if s.key, err = k.Create(t.Context(), vault.NewIdentity{Name: "ci"}); err != nil {
		t.Fatal(err)
	}
	s.id = s.key.Identity()
	if _, err := k.Put(t.Context(), s.id, secret("a", "1")); err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

// open opens the site with a log that goes on in a new file at maxLog bytes.
func (s *site) open(t *testing.T, maxLog int64) *vault.Keeper {
	t.Helper()
	b, err := bolt.Open(s.dir, bolt.Options{MaxLog: maxLog})
	if err != nil {
		t.Fatal(err)
	}
	return vault.Open(b, sourceOf(s.root), vault.Options{})
}

// reads has the agent read n times.
func (s *site) reads(t *testing.T, n int, maxLog int64) {
	t.Helper()
	k := s.open(t, maxLog)
	defer k.Close()
	v := unlock(t, k, s.key)
	for range n {
		get(t, v, "a")
	}
}

func (s *site) checkpoint(t *testing.T) []byte {
	t.Helper()
	k := s.open(t, 0)
	defer k.Close()
	note, rep, err := k.Checkpoint(t.Context(), vault.Outside{From: audit.AnyFirst})
	if err != nil || note == nil {
		t.Fatalf("Checkpoint = %v, %v", rep.Problems, err)
	}
	return note
}

func (s *site) verify(t *testing.T, o vault.Outside) audit.Report {
	t.Helper()
	k := s.open(t, 0)
	defer k.Close()
	rep, err := k.VerifyAuditAgainst(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func (s *site) lines(t *testing.T) [][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

// rewrite makes lines the log: numbered and chained anew, with a mark.
func (s *site) rewrite(t *testing.T, lines [][]byte) {
	t.Helper()
	var log []byte
	var sum [32]byte
	for i, l := range lines {
		at := bytes.Index(l, []byte(`"v":1`))
		l = fmt.Appendf(nil, `{"seq":%d,"prev":"%s",%s`, i, hex.EncodeToString(sum[:]), l[at:])
		sum = sha256.Sum256(l)
		log = append(append(log, l...), '\n')
	}
	mark := make([]byte, 512)
	copy(mark, "SOLEHEAD\x01")
	binary.BigEndian.PutUint64(mark[16:], 1_000_000)
	binary.BigEndian.PutUint64(mark[24:], uint64(len(lines)))
	binary.BigEndian.PutUint64(mark[32:], uint64(len(log)))
	copy(mark[40:], sum[:])
	own := sha256.Sum256(mark[:480])
	copy(mark[480:], own[:])
	for name, b := range map[string][]byte{"audit.jsonl": log, "audit.head": append(mark, mark...)} {
		if err := os.WriteFile(filepath.Join(s.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// copyOf returns the files of the site; put makes them its files again.
func (s *site) copyOf(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func (s *site) put(t *testing.T, from string) {
	t.Helper()
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func TestCheckpointBindsWhoCanWriteEveryFile(t *testing.T) {
	for name, attack := range map[string]func(s *site, old string){
		"the log cut before the checkpoint": func(s *site, _ string) {
			ls := s.lines(t)
			s.rewrite(t, ls[:len(ls)-3])
		},
		"the log cut and written on": func(s *site, _ string) {
			ls := s.lines(t)
			s.rewrite(t, ls[:len(ls)-3])
			s.reads(t, 10, 0)
		},
		"the log rewritten without one reading": func(s *site, _ string) {
			ls := s.lines(t)
			s.rewrite(t, slices.Delete(ls, len(ls)-2, len(ls)-1))
			s.reads(t, 5, 0)
		},
		"one field of one line rewritten": func(s *site, _ string) {
			ls := s.lines(t)
			ls[len(ls)-2] = bytes.Replace(ls[len(ls)-2], []byte(`"via":"stdio"`), []byte(`"via":"http"`), 1)
			s.rewrite(t, ls)
		},
		"the data directory replaced by an older copy": func(s *site, old string) { s.put(t, old) },
		"an older copy written on": func(s *site, old string) {
			s.put(t, old)
			s.reads(t, 30, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.reads(t, 3, 0)
			old := s.copyOf(t)
			s.reads(t, 3, 0)
			note := s.checkpoint(t)
			if rep := s.verify(t, vault.Outside{Checkpoints: note}); !rep.OK() {
				t.Fatalf("control: what nobody changed gives %v", rep.Problems)
			}
			attack(s, old)
			if rep := s.verify(t, vault.Outside{}); !rep.OK() {
				t.Errorf("control: without the checkpoint %v is found; the attack is too weak", rep.Problems)
			}
			rep := s.verify(t, vault.Outside{Checkpoints: note})
			if rep.OK() {
				t.Error("the checkpoint does not show it")
			}
			t.Log(rep.Problems)
		})
	}
}

func TestCheckpointHoldsForALogThatWentOn(t *testing.T) {
	s := newSite(t)
	var file []byte
	for range 4 {
		s.reads(t, 8, 2000)
		file = append(file, s.checkpoint(t)...)
	}
	if rep := s.verify(t, vault.Outside{Checkpoints: file}); !rep.OK() {
		t.Errorf("four checkpoints of one log give %v", rep.Problems)
	}
}

// mustBe changes one part of a note.
func mustBe(t *testing.T, note []byte, old, new string) []byte {
	t.Helper()
	out := bytes.Replace(note, []byte(old), []byte(new), 1)
	if bytes.Equal(out, note) {
		t.Fatalf("%q is not in %q", old, note)
	}
	return out
}

func TestCheckpointThatIsNotOursIsRefused(t *testing.T) {
	s, other := newSite(t), newSite(t)
	s.reads(t, 3, 0)
	note := s.checkpoint(t)
	fields := strings.Split(string(note), "\n")
	stranger := resigned(t, other, fields)
	for name, bad := range map[string][]byte{
		"of another store":              other.checkpoint(t),
		"signed by another store":       stranger,
		"with another number":           mustBe(t, note, "\n"+fields[1]+"\n", "\n1\n"),
		"with another hash":             mustBe(t, note, fields[2], base64.StdEncoding.EncodeToString(make([]byte, 32))),
		"with another time":             mustBe(t, note, fields[3], "2031-01-01T00:00:00Z"),
		"with one more line":            mustBe(t, note, "\n\n", "\nmore\n\n"),
		"without its signature":         note[:bytes.Index(note, []byte("\n\n"))+1],
		"with a signature of zeros":     []byte(strings.Join(fields[:5], "\n") + "\n— " + strings.Fields(fields[5])[1] + " " + base64.StdEncoding.EncodeToString(make([]byte, 68)) + "\n"),
		"without its last line feed":    bytes.TrimSuffix(note, []byte("\n")),
		"with carriage returns":         bytes.ReplaceAll(note, []byte("\n"), []byte("\r\n")),
		"that is empty":                 {},
		"behind a good one that is cut": append(slices.Clone(note), note[:40]...),
	} {
		if rep := s.verify(t, vault.Outside{Checkpoints: bad}); rep.OK() {
			t.Errorf("a checkpoint %s is taken", name)
		}
	}
	if rep := s.verify(t, vault.Outside{Checkpoints: note}); !rep.OK() {
		t.Errorf("control: %v", rep.Problems)
	}
}

// resigned is the note of fields with the signature that another store made of
// its own.
func resigned(t *testing.T, other *site, fields []string) []byte {
	t.Helper()
	theirs := strings.Split(string(other.checkpoint(t)), "\n")
	return []byte(strings.Join(fields[:5], "\n") + "\n" + strings.Fields(fields[5])[0] + " " + strings.Fields(fields[5])[1] + " " + strings.Fields(theirs[5])[2] + "\n")
}

func TestBrokenLogIsNotSigned(t *testing.T) {
	s := newSite(t)
	s.reads(t, 3, 0)
	log := filepath.Join(s.dir, "audit.jsonl")
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, bytes.Replace(b, []byte(`"allow"`), []byte(`"deny"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	k := s.open(t, 0)
	defer k.Close()
	if note, rep, err := k.Checkpoint(t.Context(), vault.Outside{}); note != nil || rep.OK() || err != nil {
		t.Errorf("Checkpoint of a broken log = %q, %v, %v", note, rep.Problems, err)
	}
}

// moveAway removes the oldest n files of the log and returns the number of the
// first line that is left.
func (s *site) moveAway(t *testing.T, n int) uint64 {
	t.Helper()
	var firsts []uint64
	all, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		var first uint64
		if _, err := fmt.Sscanf(e.Name(), "audit-%d.jsonl", &first); err == nil {
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	if len(firsts) <= n {
		t.Fatalf("%d earlier files, want more than %d", len(firsts), n)
	}
	for _, first := range firsts[:n] {
		if err := os.Remove(filepath.Join(s.dir, fmt.Sprintf("audit-%d.jsonl", first))); err != nil {
			t.Fatal(err)
		}
	}
	return firsts[n]
}

func TestMovedAwayFilesAreNamedAndTheRestIsVerified(t *testing.T) {
	s := newSite(t)
	s.reads(t, 10, 1500)
	early := s.checkpoint(t)
	s.reads(t, 30, 1500)
	late := s.checkpoint(t)
	whole := s.verify(t, vault.Outside{})
	if !whole.OK() || whole.First != 0 {
		t.Fatalf("control: the whole log gives %v", whole.Problems)
	}
	first := s.moveAway(t, 6)
	if rep := s.verify(t, vault.Outside{}); rep.OK() || rep.First != first {
		t.Errorf("a beginning that is gone is no finding; first line %d, want %d", rep.First, first)
	}
	rep := s.verify(t, vault.Outside{From: first})
	if !rep.OK() || rep.Head != whole.Head || rep.First != first || rep.Lines != whole.Lines-int(first) || len(rep.Notes) == 0 {
		t.Errorf("the rest gives %+v", rep)
	}
	if rep := s.verify(t, vault.Outside{From: first, Checkpoints: append(slices.Clone(early), late...)}); !rep.OK() {
		t.Errorf("with a late checkpoint: %v", rep.Problems)
	}
	if rep := s.verify(t, vault.Outside{From: first, Checkpoints: early}); rep.OK() {
		t.Error("a checkpoint of a line that is not here is said to fit")
	}
	more := s.moveAway(t, 1)
	if rep := s.verify(t, vault.Outside{From: first}); rep.OK() || more <= first {
		t.Error("one more missing file is no finding")
	}
	if rep := s.verify(t, vault.Outside{From: audit.AnyFirst}); !rep.OK() {
		t.Errorf("AnyFirst: %v", rep.Problems)
	}
}

func TestBeginningOfAFileThatWasCutIsFound(t *testing.T) {
	s := newSite(t)
	s.reads(t, 20, 1500)
	s.moveAway(t, 2)
	all, err := filepath.Glob(filepath.Join(s.dir, "audit-*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(s.dir, "audit.jsonl")
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(b, []byte("\n"))
	if rep := s.verify(t, vault.Outside{From: audit.AnyFirst}); !rep.OK() {
		t.Fatalf("control: %v", rep.Problems)
	}
	if err := os.WriteFile(log, rest, 0o600); err != nil {
		t.Fatal(err)
	}
	if rep := s.verify(t, vault.Outside{From: audit.AnyFirst}); rep.OK() {
		t.Error("a file without its first line passes for one whose predecessors were moved away")
	}
}

func TestReceiptAndUseCountAcrossFiles(t *testing.T) {
	s := newSite(t)
	s.reads(t, 25, 1500)
	k := s.open(t, 1500)
	defer k.Close()
	u, err := k.Usage(t.Context(), s.id)
	if err != nil || u.Labels["a"].Reads != 25 {
		t.Errorf("Usage = %d readings, %v, want 25", u.Labels["a"].Reads, err)
	}
	before, err := k.Usages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.moveAway(t, 2)
	all, err := k.Usages(t.Context())
	if err != nil || all[s.id].Last != func() vault.Used { l := before[s.id].Last; l.Reads = all[s.id].Last.Reads; return l }() {
		t.Errorf("Usages = %+v, %v, want the last use of %+v", all[s.id].Last, err, before[s.id].Last)
	}
	second, err := k.Create(t.Context(), vault.NewIdentity{Name: "late"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := k.Revoke(t.Context(), s.id, vault.Revocation{})
	if err != nil || r.Audit.Complete || r.Audit.From == 0 {
		t.Errorf("a receipt of an identity older than the log = %+v, %v", r.Audit, err)
	}
	if r, err = k.Revoke(t.Context(), second.Identity(), vault.Revocation{}); err != nil || !r.Audit.Complete || r.Audit.From == 0 {
		t.Errorf("a receipt of an identity younger than the log = %+v, %v", r.Audit, err)
	}
}

func TestVerifySaysWhichChangesWereNotApplied(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.mem.commitHook = func() error { return storage.ErrUnavailable }
	if _, err := h.Put(t.Context(), key.Identity(), secret("a", "1")); err == nil {
		t.Fatal("the cut did not happen")
	}
	h.mem.commitHook = nil
	rep, err := h.VerifyAudit(t.Context())
	if err != nil || !rep.OK() || len(rep.Notes) != 1 || rep.Notes[0].Line != 3 || !strings.Contains(rep.Notes[0].Text, "not applied") {
		t.Errorf("VerifyAudit = %+v, %v, want a note on line 3", rep, err)
	}
	h.put(t, key.Identity(), secret("a", "2"))
	if rep, err = h.VerifyAudit(t.Context()); err != nil || !rep.OK() || len(rep.Notes) != 1 {
		t.Errorf("VerifyAudit = %+v, %v, want one note", rep, err)
	}
}
