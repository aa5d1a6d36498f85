package vault_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// files reads the files of the store.
func (w *ward) files() map[string][]byte {
	w.t.Helper()
	out := map[string][]byte{}
	for _, e := range must(os.ReadDir(w.dir)) {
		if e.Type().IsRegular() {
			out[e.Name()] = must(os.ReadFile(filepath.Join(w.dir, e.Name())))
		}
	}
	return out
}

// putBack writes files over those of the store.
func (w *ward) putBack(files map[string][]byte, names ...string) {
	w.t.Helper()
	w.reopen(func() {
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(w.dir, name), files[name], 0o600); err != nil {
				w.t.Fatal(err)
			}
		}
	})
}

// closeAll ends keys in every way, of the identities of these names.
func (w *ward) closeAll() {
	w.t.Helper()
	for name, shred := range map[string]bool{"revoked": false, "shredded": true} {
		if _, err := w.Revoke(w.t.Context(), w.id(name), vault.Revocation{Shred: shred}); err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := w.Rotate(w.t.Context(), w.id("rotated"), w.keys["rotated"], vault.Rotation{}); err != nil {
		w.t.Fatal(err)
	}
}

var closable = []string{"revoked", "shredded", "rotated"}

// goOn lets a store that was rolled back go on, so that the generations of its
// headers pass those of what was closed. The control: its keys live.
func (w *ward) goOn() {
	w.t.Helper()
	for _, name := range closable {
		for i := range 4 {
			w.put(name, "x", fmt.Sprint("again-", i))
		}
	}
	w.want("x", map[string]string{"revoked": "again-3", "shredded": "again-3", "rotated": "again-3"})
}

func (w *ward) wantClosed() {
	w.t.Helper()
	for _, name := range closable {
		if got := wordOf(w.Keeper, w.keys[name]); got != vault.Revoked && got != vault.Unauthorized {
			w.t.Errorf("the key of %s hears %q after the mend", name, got)
		}
	}
}

// The attack: who can write into the directory puts back all of it, from
// before keys were closed, goes on with them, and damages a line of the log, so
// that it counts as a damaged one and not as another past. The backup proves
// that they are closed.
func TestMendKeepsClosedWhatTheBackupProves(t *testing.T) {
	w := newWard(t, closable...)
	old := w.files()
	w.closeAll()
	file := w.backup()
	w.putBack(old, "vault.db", "vault.cells", "audit.jsonl", "audit.head")
	w.goOn()
	if _, _, err := w.mendErr(file, true); err == nil || !strings.Contains(err.Error(), "another past") {
		t.Errorf("a store with another past: %v", err)
	}
	log := w.logBytes()
	log[bytes.IndexByte(log, '\n')+200] ^= 1
	w.putBack(map[string][]byte{"audit.jsonl": log}, "audit.jsonl")
	to, m := w.mend(file, true)
	to.wantClosed()
	if p := m.Parts[w.id("rotated")]; p.Origin != vault.FromBackup || !strings.Contains(p.Why, "rolled back") {
		t.Errorf("part = %+v", p)
	}
	to.wantVerified()
}

// The attack: the files from before a repair come back into the repaired
// store. Its log tells of what was closed in lines before that of the repair.
func TestMendOfAStoreRolledBackBehindAMend(t *testing.T) {
	w := newWard(t, closable...)
	file := w.backup()
	old := w.files()
	w.closeAll()
	for _, name := range closable {
		w.harmHeader(name)
	}
	to, _ := w.mend(file, true)
	to.wantClosed()
	to.putBack(old, "vault.db", "vault.cells")
	to.goOn()
	again, _ := to.mend(file, true)
	again.wantClosed()
	again.wantVerified()

	// Control: what was opened anew after the repair stays open.
	key, err := again.Recover(t.Context(), again.id("revoked"), w.birth.Recovery, identity.Grant{})
	if err != nil {
		t.Fatal(err)
	}
	again.keys["recovered"] = key
	third, _ := again.mend(file, true)
	third.want("x", map[string]string{"revoked": "revoked", "recovered": "again-3"})
}

// The attack: a line that nobody signed claims the last generation there is. A
// header that was restored above it would have no lines that a later restore
// takes for lines of the store, and a revocation none that it carries out.
func TestHostileGenerationDoesNotHideARevocation(t *testing.T) {
	w := newWard(t, "a")
	file := w.backup()
	w.harmHeader("a")
	log := w.logBytes()
	lines := bytes.Split(bytes.TrimSuffix(log, []byte("\n")), []byte("\n"))
	log = fmt.Appendf(log, `{"seq":%d,"prev":"%x","v":1,"t":"2026-07-14T12:00:00.000000Z","ev":"put","id":"%s","key":"owner","via":"cli","res":"allow","gen":%d}`+"\n",
		len(lines), sha256.Sum256(lines[len(lines)-1]), w.id("a"), uint64(1)<<62)
	w.putBack(map[string][]byte{"audit.jsonl": log}, "audit.jsonl")
	to, m := w.mend(file, true)
	if p := m.Parts[w.id("a")]; p.Later < 1 || p.Later > len(lines) {
		t.Errorf("at most %d changes are lost, of %d lines", p.Later, len(lines)+1)
	}
	file = to.backup()
	if _, err := to.Revoke(t.Context(), to.id("a"), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	a := must(vault.OpenArchive(t.Context(), bytes.NewReader(file)))
	if err := a.OpenWithRecoveryKey(w.birth.Recovery); err != nil {
		t.Fatal(err)
	}
	p, err := a.Plan(t.Context(), bytes.NewReader(to.logBytes()), time.Now())
	if err != nil || p.Identities[0].Since != vault.SinceRevoked {
		t.Errorf("a restore with the log of a later revocation: %+v, %v", p.Identities[0].Since, err)
	}
}

// A log that ends early beside a mark that does too says nothing of lines that
// are missing; a header that no line leads to does. A receipt of the mended
// store must not claim to count everything then.
func TestMendedReceiptOverMissingLinesIsIncomplete(t *testing.T) {
	w := newWard(t, "a", "b")
	file := w.backup()
	old := w.files()
	get(t, unlock(t, w.Keeper, w.keys["a"]), "x") // the line that goes missing
	w.put("a", "x", "new")
	w.harmHeader("b")
	receipt := func(w *ward) vault.Receipt {
		t.Helper()
		return must(w.Revoke(t.Context(), w.id("a"), vault.Revocation{}))
	}
	whole, _ := w.mend(file, true)
	if r := receipt(whole); !r.Audit.Complete || r.Counts.Revealed != 1 {
		t.Errorf("control: the receipt of a store mended with its whole log: %+v", r.Audit)
	}
	w.putBack(old, "audit.jsonl", "audit.head")
	to, m := w.mend(file, true)
	if m.Unlogged != 1 || m.Blind {
		t.Errorf("mended = %+v", m)
	}
	if r := receipt(to); r.Audit.Complete {
		t.Errorf("the receipt counts %d labels and claims that this is all", r.Counts.Revealed)
	}
}

// A database that went back is kept where the backup is older still. What it
// lost is told: after the mend no verification finds it.
func TestMendTellsOfChangesThatARolledBackStoreLost(t *testing.T) {
	w := newWard(t, "a", "b")
	file := w.backup()
	w.put("a", "x", "one")
	old := w.files()
	w.put("a", "x", "two")
	w.put("a", "x", "three")
	w.put("b", "x", "new")
	if m, _ := w.tryMend(file, true); m.Better() || m.Parts[w.id("a")].Later != 0 { // control
		t.Errorf("a sound store: %+v", m)
	}
	w.putBack(old, "vault.db")
	w.put("b", "x", "later")
	to, m := w.mend(file, true)
	to.want("x", map[string]string{"a": "one", "b": "later"})
	if p := m.Parts[w.id("a")]; p.Origin != vault.FromStore || p.Later != 2 || !strings.Contains(p.Why, "rolled back") {
		t.Errorf("part = %+v", p)
	}
	to.wantVerified()
}

// split is a store whose log goes on in many files, and the oldest of them,
// which were moved away.
type split struct {
	*ward
	aside map[string][]byte
}

const splitAt = 4 << 10

func newSplit(t *testing.T) *split {
	return &split{ward: newWardWith(t, bolt.Options{MaxLog: splitAt}, "filler", "broken", "revoked", "late"), aside: map[string][]byte{}}
}

// reopen is that of the ward, with short files of the log.
func (s *split) reopen(between func()) {
	s.t.Helper()
	s.ward.reopen(between)
	if err := s.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.b = must(bolt.Open(s.dir, bolt.Options{MaxLog: splitAt}))
	s.Keeper = vault.Open(s.b, sourceOf(s.root), vault.Options{})
}

// fill writes lines until the log has so many files more.
func (s *split) fill(files int) {
	s.t.Helper()
	for want := len(must(bolt.LogFiles(s.dir))) + files; len(must(bolt.LogFiles(s.dir))) < want; {
		s.put("filler", "x", "filled")
	}
}

// move moves files of the log away but for the last so many.
func (s *split) move(keep int) {
	s.t.Helper()
	s.reopen(func() {
		files := must(bolt.LogFiles(s.dir))
		for _, p := range files[:len(files)-keep] {
			s.aside[p] = must(os.ReadFile(p))
			if err := os.Remove(p); err != nil {
				s.t.Fatal(err)
			}
		}
	})
}

// allLines is the log as it is there.
func (s *split) allLines() (out []byte) {
	for _, p := range must(bolt.LogFiles(s.dir)) {
		out = append(out, must(os.ReadFile(p))...)
	}
	return out
}

// TestMendOfALogInFiles mends stores whose oldest files of the log were moved
// away, before or after the backup, or so many that lines are in neither.
// Whatever was revoked stays so, also after the mended store goes on and is
// mended again, and of what is left out the mend tells.
func TestMendOfALogInFiles(t *testing.T) {
	for what, c := range map[string]struct {
		before, after   int  // files that are kept at the backup, and after it; 0: all
		back            bool // those moved away were put back
		headless, apart bool
	}{
		"none moved":             {},
		"moved after":            {after: 3},
		"moved before":           {before: 2, headless: true},
		"before, and after":      {before: 2, after: 3, headless: true},
		"before, and put back":   {before: 2, back: true},
		"moved, with a gap":      {after: 1, apart: true},
		"before, and with a gap": {before: 2, after: 1, headless: true, apart: true},
	} {
		t.Run(what, func(t *testing.T) {
			s := newSplit(t)
			s.fill(2)
			if c.before > 0 {
				s.move(c.before)
			}
			file := s.backup()
			if c.apart {
				s.fill(2)
			}
			before := must(s.Revoke(t.Context(), s.id("revoked"), vault.Revocation{}))
			if !c.apart {
				s.fill(1)
			}
			if c.after > 0 {
				s.move(c.after)
			}
			if c.back {
				s.reopen(func() {
					for p, b := range s.aside {
						if err := os.WriteFile(p, b, 0o600); err != nil {
							t.Fatal(err)
						}
					}
				})
			}
			if m, _ := s.tryMend(file, true); !m.Sound() || m.Better() {
				t.Errorf("a store that is whole is to be mended: %+v", m)
			}
			log := s.allLines()
			s.harmHeader("broken")
			s.harmHeader("revoked")
			to, m := s.mend(file, true)
			to.want("x", map[string]string{"filler": "filled", "broken": "old-broken", "revoked": "revoked", "late": "old-late"})
			to.wantVerified()
			if m.Headless != c.headless || m.Blind != c.apart || m.Left > 0 != c.apart {
				t.Errorf("headless %v, blind %v, %d left; want %v, %v", m.Headless, m.Blind, m.Left, c.headless, c.apart)
			}
			if taken := bytes.Contains(to.logBytes(), log); taken != !(c.headless || c.apart) {
				t.Errorf("the log is taken over: %v", taken)
			}
			if err := to.Recount(t.Context(), before); errors.Is(err, vault.ErrReplaced) != (c.headless || c.apart) || errors.Is(err, vault.ErrMiscounted) {
				t.Errorf("Recount of a receipt from before = %v", err)
			}
			before.Audit.Head = strings.Repeat("0", 64) // control: of a log that is taken over, another line is a finding
			if err := to.Recount(t.Context(), before); !c.headless && !c.apart && !errors.Is(err, vault.ErrMiscounted) {
				t.Errorf("Recount of a receipt over another line = %v", err)
			}
			receipt := must(to.Revoke(t.Context(), to.id("late"), vault.Revocation{}))
			if lossy := c.headless || c.apart; receipt.Audit.Complete == lossy {
				t.Errorf("a receipt after it claims %v", receipt.Audit)
			}
			if err := to.Recount(t.Context(), receipt); err != nil {
				t.Errorf("Recount = %v", err)
			}
			to.harmHeader("late")
			again, _ := to.mend(file, true)
			again.want("x", map[string]string{"filler": "filled", "broken": "old-broken", "revoked": "revoked", "late": "revoked"})
			again.wantVerified()
		})
	}
}
