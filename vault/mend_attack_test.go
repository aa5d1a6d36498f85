package vault_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
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
