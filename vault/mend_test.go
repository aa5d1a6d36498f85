package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// ward is a store on the real engine that is damaged and mended.
type ward struct {
	*vault.Keeper
	t     testing.TB
	dir   string
	root  vault.Root
	birth vault.Birth
	b     *bolt.Store // of the test itself, to do harm
	keys  map[string]identity.Key
}

func newWard(t testing.TB, names ...string) *ward {
	t.Helper()
	return newWardWith(t, bolt.Options{}, names...)
}

func newWardWith(t testing.TB, o bolt.Options, names ...string) *ward {
	t.Helper()
	w := &ward{t: t, dir: filepath.Join(t.TempDir(), "data"), root: vault.NewRoot(), keys: make(map[string]identity.Key)}
	b, err := bolt.Create(w.dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if w.birth, err = vault.Init(t.Context(), b, w.root, vault.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Keeper = vault.Open(b, sourceOf(w.root), vault.Options{})
	w.b = b
	t.Cleanup(func() { w.Close() })
	for _, name := range names {
		w.create(name)
		w.put(name, "x", "old-"+name)
	}
	return w
}

func (w *ward) create(name string) {
	w.t.Helper()
	key, err := w.Create(w.t.Context(), vault.NewIdentity{Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	w.keys[name] = key
}

func (w *ward) id(name string) identity.ID { return w.keys[name].Identity() }

func (w *ward) put(name, label, value string) {
	w.t.Helper()
	if _, err := w.Put(w.t.Context(), w.id(name), secret(label, value)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ward) backup() []byte {
	w.t.Helper()
	var out bytes.Buffer
	if _, err := w.Backup(w.t.Context(), &out, vault.BackupOptions{}); err != nil {
		w.t.Fatal(err)
	}
	return out.Bytes()
}

func (w *ward) stored(name string) storage.Result {
	w.t.Helper()
	res, err := w.b.Get(w.t.Context(), w.id(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return res
}

// overwrite commits what nobody sealed.
func (w *ward) overwrite(name string, b storage.Batch) {
	w.t.Helper()
	if _, err := w.b.Commit(w.t.Context(), w.id(name), w.stored(name).Rev, b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *ward) harmHeader(name string) {
	meta := bytes.Clone(w.stored(name).Meta)
	meta[len(meta)/2] ^= 1
	w.overwrite(name, storage.Batch{Meta: meta})
}

func (w *ward) harmRecord(name string) {
	w.t.Helper()
	page, err := w.b.List(w.t.Context(), w.id(name), "", 1)
	if err != nil {
		w.t.Fatal(err)
	}
	it := page.Items[0]
	it.Val[len(it.Val)/2] ^= 1
	w.overwrite(name, storage.Batch{Ops: []storage.Op{{Key: it.Key, Val: it.Val}}})
}

// harmFile changes every place of a file that holds what is sought.
func (w *ward) harmFile(name string, sought []byte, harm func(b []byte, at int)) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for at := 0; ; n++ {
		i := bytes.Index(b[at:], sought)
		if i < 0 {
			break
		}
		harm(b, at+i)
		at += i + len(sought)
	}
	if n == 0 {
		w.t.Fatalf("%s does not hold what is to be harmed", name)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		w.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// harmCell makes both copies of the row of an identity invalid.
func (w *ward) harmCell(name string) {
	id := w.id(name)
	w.harmFile("vault.cells", id[:], func(b []byte, at int) { b[at+20] ^= 1 })
}

// harmPage zeroes the page of vault.db on which the records of an identity
// begin.
func (w *ward) harmPage(name string) {
	w.t.Helper()
	page, err := w.b.List(w.t.Context(), w.id(name), "", 1)
	if err != nil {
		w.t.Fatal(err)
	}
	w.reopen(func() {
		w.harmFile("vault.db", page.Items[0].Val, func(b []byte, at int) { clear(b[at&^4095:][:64]) })
	})
}

// reopen closes the store, does something, and opens it again.
func (w *ward) reopen(between func()) {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
	between()
	b, err := bolt.Open(w.dir, bolt.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.b, w.Keeper = b, vault.Open(b, sourceOf(w.root), vault.Options{})
}

// mend mends the store into a new directory.
func (w *ward) mend(file []byte, recovery bool) (*ward, *vault.Mended) {
	w.t.Helper()
	m, root := w.tryMend(file, recovery)
	to := &ward{t: w.t, dir: filepath.Join(w.t.TempDir(), "mended"), root: root, keys: w.keys, birth: w.birth}
	b, err := bolt.Create(to.dir, bolt.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := m.Plan.Restore(w.t.Context(), b, vault.RestoreOptions{}); err != nil {
		w.t.Fatal(err)
	}
	to.b, to.Keeper = b, vault.Open(b, sourceOf(root), vault.Options{})
	w.t.Cleanup(func() { to.Close() })
	return to, m
}

func (w *ward) tryMend(file []byte, recovery bool) (*vault.Mended, vault.Root) {
	w.t.Helper()
	m, root, err := w.mendErr(file, recovery)
	if err != nil {
		w.t.Fatalf("Mend: %v", err)
	}
	return m, root
}

func (w *ward) mendErr(file []byte, recovery bool) (*vault.Mended, vault.Root, error) {
	w.t.Helper()
	a, err := vault.OpenArchive(w.t.Context(), bytes.NewReader(file))
	if err != nil {
		return nil, vault.Root{}, err
	}
	if recovery {
		err = a.OpenWithRecoveryKey(w.birth.Recovery)
	} else {
		err = a.OpenWithRoot(w.root, w.b)
	}
	if err != nil {
		return nil, vault.Root{}, err
	}
	root, err := a.Root(w.root)
	if err != nil {
		return nil, root, err
	}
	f, err := os.Create(filepath.Join(w.t.TempDir(), "mend"))
	if err != nil {
		return nil, root, err
	}
	w.t.Cleanup(func() { f.Close() })
	m, err := a.Mend(w.t.Context(), w.b, root, f, time.Now())
	return m, root, err
}

func (w *ward) want(label string, want map[string]string) {
	w.t.Helper()
	for name, v := range want {
		if got := word(w.Keeper, w.keys[name], label); got != v {
			w.t.Errorf("Get(%s) as %s = %s, want %s", label, name, got, v)
		}
	}
}

// wantVerified verifies the log. Identities that are damaged still are named.
func (w *ward) wantVerified(damaged ...string) {
	w.t.Helper()
	rep, err := w.VerifyAudit(w.t.Context())
	ok := err == nil && len(rep.Problems) == len(damaged)
	for i, name := range damaged {
		ok = ok && strings.Contains(rep.Problems[i].String(), w.id(name).String()+" does not open")
	}
	if !ok {
		w.t.Errorf("VerifyAudit = %v, %v; want %v", rep.Problems, err, damaged)
	}
}

func (w *ward) logBytes() []byte {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "audit.jsonl"))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// TestMendTakesTheBetterOfTwo damages vaults of a real store in every way and
// mends them: what opens is as it is at present, what does not is as of the
// backup, and nothing lives that was closed since.
func TestMendTakesTheBetterOfTwo(t *testing.T) {
	names := []string{"kept", "record", "header", "cell", "page", "revoked", "rotated", "shredded", "buried"}
	w := newWard(t, names...)
	w.put("page", "big", strings.Repeat("b", 3000))
	file := w.backup()
	for _, name := range names {
		w.put(name, "x", "new-"+name)
	}
	old := w.keys["rotated"]
	key, err := w.Rotate(t.Context(), w.id("rotated"), old, vault.Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	w.keys["rotated-new"] = key
	if _, err := w.Revoke(t.Context(), w.id("revoked"), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shredded", "buried"} {
		if _, err := w.Revoke(t.Context(), w.id(name), vault.Revocation{Shred: true}); err != nil {
			t.Fatal(err)
		}
	}
	w.create("young")
	w.put("young", "x", "new-young")
	w.create("lost")
	w.put("lost", "x", "new-lost")
	get(t, unlock(t, w.Keeper, w.keys["kept"]), "x")
	kept := w.stored("kept").Meta
	for _, name := range []string{"header", "revoked", "rotated", "buried", "lost"} {
		w.harmHeader(name)
	}
	w.harmRecord("record")
	w.harmPage("page")
	w.reopen(func() { w.harmCell("cell") })

	// Control: none of these is served before.
	w.want("x", map[string]string{"kept": "new-kept", "record": "unavailable", "header": "unavailable", "cell": "unavailable", "page": "unavailable", "revoked": "unavailable", "shredded": "revoked", "young": "new-young"})
	log := w.logBytes()
	to, m := w.mend(file, true)
	to.want("x", map[string]string{
		"kept": "new-kept", "young": "new-young", "cell": "new-cell",
		"record": "old-record", "header": "old-header", "page": "old-page",
		"revoked": "revoked", "rotated": "revoked", "rotated-new": "unauthorized", "shredded": "revoked", "buried": "revoked", "lost": "unavailable",
	})
	if !bytes.Equal(to.stored("kept").Meta, kept) {
		t.Error("the header of a vault that opens was changed")
	}
	if !bytes.HasPrefix(to.logBytes(), log) {
		t.Error("the log does not begin with the lines of the damaged store")
	}
	to.wantVerified("lost")
	if _, err := to.b.Cell(t.Context(), w.id("buried")); !errors.Is(err, storage.ErrErased) {
		t.Errorf("the cell of a shredded identity = %v, want ErrErased", err)
	}
	for name, want := range map[string]vault.Origin{"kept": vault.FromStore, "young": vault.FromStore, "cell": vault.FromStoreCell, "record": vault.FromBackup, "page": vault.FromBackup, "header": vault.FromBackup, "shredded": vault.FromStore} {
		if p := m.Parts[w.id(name)]; p.Origin != want || want == vault.FromBackup && p.Later < 1 {
			t.Errorf("part of %s = %+v, want origin %d", name, p, want)
		}
	}
	if m.Sound() || m.Blind || m.Left != 0 || m.Healed || len(m.Plan.Lost) != 0 {
		t.Errorf("mended = %+v", m)
	}
	to.put("header", "y", "life goes on")
	to.want("y", map[string]string{"header": "life goes on"})
	to.wantVerified("lost")

	// Mended again from the same backup, nothing is to be done but for what
	// nobody has.
	again, _ := to.tryMend(file, true)
	for id, p := range again.Parts {
		if p.Origin != vault.FromStore && id != w.id("lost") {
			t.Errorf("mended again: %v = %+v", id, p)
		}
	}

	// Without the recovery key root and cells of the machine open the backup;
	// a lost cell stays lost.
	beside, m := w.mend(file, false)
	beside.want("x", map[string]string{"kept": "new-kept", "record": "old-record", "header": "old-header", "cell": "unavailable", "revoked": "revoked", "buried": "unauthorized"})
	if p := m.Parts[w.id("cell")]; p.Origin != vault.FromStore || !strings.Contains(p.Why, "shred key") {
		t.Errorf("part of cell = %+v", p)
	}
}

// TestMendWithoutTheLogIsBlind: a mend that forgot the ledger would revive
// what was revoked. The control shows that the test sees it.
func TestMendWithoutTheLogIsBlind(t *testing.T) {
	w := newWard(t, "kept", "revoked")
	file := w.backup()
	w.put("kept", "x", "new")
	if _, err := w.Revoke(t.Context(), w.id("revoked"), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	w.harmHeader("revoked")
	log := w.logBytes()
	edit := func(b []byte) {
		w.reopen(func() {
			if err := os.WriteFile(filepath.Join(w.dir, "audit.jsonl"), b, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}

	// A line that was damaged before the backup is taken from it.
	harmed := bytes.Clone(log)
	harmed[bytes.IndexByte(harmed, '\n')+200] ^= 1
	edit(harmed)
	to, m := w.mend(file, true)
	if !m.Healed || m.Blind || m.Left != 0 || !bytes.HasPrefix(to.logBytes(), log) {
		t.Errorf("mended from a log with a damaged old line: healed %v, blind %v, %d left", m.Healed, m.Blind, m.Left)
	}
	to.want("x", map[string]string{"kept": "new", "revoked": "revoked"})
	to.wantVerified()

	// One after it cuts the log there; what later lines close is closed.
	lines := bytes.SplitAfter(log, []byte{'\n'})
	cut := slices.IndexFunc(lines, func(l []byte) bool { return bytes.Contains(l, []byte(`"ev":"backup"`)) }) + 1
	harmed = slices.Concat(slices.Concat(lines[:cut]...), []byte("damaged\n"), slices.Concat(lines[cut+1:]...))
	edit(harmed)
	to, m = w.mend(file, true)
	if m.Healed || !m.Blind || m.Left < 2 {
		t.Errorf("mended from a log with a damaged new line: healed %v, blind %v, %d left", m.Healed, m.Blind, m.Left)
	}
	to.want("x", map[string]string{"kept": "new", "revoked": "revoked"})
	to.wantVerified()

	// Control: without any line of the revocation the key lives again, and the
	// mend says that it cannot know.
	for what, b := range map[string][]byte{"cut": slices.Concat(lines[:cut]...), "empty": {}} {
		edit(b)
		to, m = w.mend(file, true)
		if !m.Blind || m.Sound() || m.Unlogged != 1 {
			t.Errorf("log %s: blind %v, sound %v, %d unlogged", what, m.Blind, m.Sound(), m.Unlogged)
		}
		to.want("x", map[string]string{"kept": "new", "revoked": "old-revoked"})
		to.wantVerified()
		w.put("kept", "x", "new") // the log goes on, behind a line that tells of the gap
		if m, _ := w.tryMend(file, true); !m.Blind {
			t.Errorf("log %s, and gone on: not blind", what)
		}
	}
}

// TestMendOfARolledBackStore: the backup is newer than the database.
func TestMendOfARolledBackStore(t *testing.T) {
	w := newWard(t, "a", "closed")
	path := filepath.Join(w.dir, "vault.db")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w.put("a", "x", "newer")
	w.create("b")
	w.put("b", "x", "of-b")
	file := w.backup()
	if _, err := w.Revoke(t.Context(), w.id("closed"), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	w.reopen(func() {
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	w.want("x", map[string]string{"a": "old-a", "b": "unauthorized", "closed": "old-closed"}) // control
	to, m := w.mend(file, true)
	to.want("x", map[string]string{"a": "newer", "b": "of-b", "closed": "revoked"})
	if m.Parts[w.id("a")].Origin != vault.FromBackup || m.Blind {
		t.Errorf("mended = %+v", m)
	}
	to.wantVerified()
}

// TestMendOfALostDatabaseOrCells: none of a whole file opens.
func TestMendOfALostDatabaseOrCells(t *testing.T) {
	w := newWard(t, "a", "closed")
	file := w.backup()
	w.put("a", "x", "newer")
	if _, err := w.Revoke(t.Context(), w.id("closed"), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"vault.cells": "newer", "vault.db": "old-a"} {
		path := filepath.Join(w.dir, name)
		var sound []byte
		w.reopen(func() {
			sound, _ = os.ReadFile(path)
			if err := os.WriteFile(path, bytes.Repeat([]byte("junk"), len(sound)/4), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		to, m := w.mend(file, true)
		to.want("x", map[string]string{"a": want, "closed": "revoked"})
		if m.Blind || m.Sound() {
			t.Errorf("%s lost: mended = %+v", name, m)
		}
		to.wantVerified()
		w.reopen(func() {
			if err := os.WriteFile(path, sound, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	if m, _ := w.tryMend(file, true); !m.Sound() { // control
		t.Errorf("a sound store: %+v", m)
	}
}

func TestMendRefusesAnotherPast(t *testing.T) {
	w := newWard(t, "a")
	early := w.backup()
	other := newWard(t, "a")
	if _, _, err := w.mendErr(other.backup(), false); !errors.Is(err, vault.FaultForeign) {
		t.Errorf("a backup of another store: %v", err)
	}
	if _, _, err := w.mendErr(other.backup(), true); !errors.Is(err, vault.FaultForeign) {
		t.Errorf("a backup of another store and this recovery key: %v", err)
	}
	forged := bytes.Clone(early)
	forged[len(forged)/2] ^= 1
	if _, _, err := w.mendErr(forged, true); !errors.Is(err, vault.FaultChanged) {
		t.Errorf("a changed backup: %v", err)
	}
	// A store that was restored lives on, and so does the one it came from.
	twin, _ := w.mend(early, true)
	w.put("a", "x", "here")
	twin.put("a", "x", "there")
	if _, _, err := w.mendErr(twin.backup(), true); err == nil || vault.Refuse(err).Word != vault.BadRequest || !strings.Contains(err.Error(), "another past") {
		t.Errorf("a backup of a twin: %v", err)
	}
	if _, _, err := w.mendErr(early, true); err != nil {
		t.Errorf("control: %v", err)
	}
}

// TestRunningProcessMeetsTheMendedStore: a process that has the directory open
// goes on in the one that took its name, and writes no gap into its log.
func TestRunningProcessMeetsTheMendedStore(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a directory in use is not renamed there")
	}
	t.Run("one file of the log", func(t *testing.T) { testRunningProcess(t, 0, false) })
	t.Run("many files of the log", func(t *testing.T) { testRunningProcess(t, 4<<10, false) })
	t.Run("a log without its beginning, which the mend begins anew", func(t *testing.T) { testRunningProcess(t, 4<<10, true) })
}

func testRunningProcess(t *testing.T, maxLog int64, headless bool) {
	w := newWardWith(t, bolt.Options{MaxLog: maxLog}, "kept", "broken")
	if headless {
		for range 20 {
			w.put("kept", "x", "new")
		}
		if err := os.Remove(filepath.Join(w.dir, "audit-0.jsonl")); err != nil {
			t.Fatal(err)
		}
	}
	file := w.backup()
	for range 20 { // its mark has a serial far above that of a new one
		w.put("kept", "x", "new")
	}
	w.harmHeader("broken")
	agent := reopen(t, w.dir, w.root)
	if got := word(agent, w.keys["kept"], "x"); got != "new" {
		t.Fatal(got)
	}
	since, err := w.b.Stamp(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	to, _ := w.mend(file, true)
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	swap := func() error {
		return errors.Join(os.Rename(w.dir, w.dir+".damaged"), os.Rename(to.dir, w.dir))
	}
	if err := w.b.Unchanged(t.Context(), since, swap); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(w.dir+".damaged", "audit.jsonl"))
	for name, want := range map[string]string{"kept": "new", "broken": "old-broken"} {
		if got := word(agent, w.keys[name], "x"); got != want {
			t.Errorf("Get as %s in a running process = %s, want %s", name, got, want)
		}
	}
	after, _ := os.ReadFile(filepath.Join(w.dir+".damaged", "audit.jsonl"))
	if !bytes.Equal(before, after) {
		t.Error("a process wrote into the directory that was put aside")
	}
	if log := w.logBytes(); bytes.Contains(log, []byte(storage.NoteGap)) {
		t.Error("a running process wrote a gap into the log of the mended store")
	}
	rep, err := agent.VerifyAudit(context.Background())
	if err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}

	// Control: after any change nothing is swapped.
	if since, err = w.b.Stamp(t.Context()); err != nil {
		t.Fatal(err)
	}
	word(agent, w.keys["kept"], "x")
	if err := w.b.Unchanged(t.Context(), since, swap); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("Unchanged after a read = %v, want ErrConflict", err)
	}
}

// TestMendOfRandomDamage changes pages and bits anywhere in the files. Whatever
// they hold then, a mend ends, gives nobody a value that was never stored, and
// revives no key.
func TestMendOfRandomDamage(t *testing.T) {
	w := newWard(t, "a", "b", "c", "revoked", "shredded")
	for i := range 8 {
		w.put("a", fmt.Sprintf("big-%d", i), strings.Repeat("b", 900))
	}
	file := w.backup()
	for _, name := range []string{"a", "b"} {
		w.put(name, "x", "new-"+name)
	}
	for name, shred := range map[string]bool{"revoked": false, "shredded": true} {
		if _, err := w.Revoke(t.Context(), w.id(name), vault.Revocation{Shred: shred}); err != nil {
			t.Fatal(err)
		}
	}
	files := []string{"vault.db", "vault.cells", "audit.jsonl", "audit.head"}
	sound := map[string][]byte{}
	for _, name := range files {
		sound[name] = must(os.ReadFile(filepath.Join(w.dir, name)))
	}
	rnd := rand.New(rand.NewPCG(7, 11))
	better, unknown, mutants := 0, 0, 24
	if os.Getenv("SOLEKEY_SOAK") == "1" {
		mutants = 1000
	}
	for range mutants {
		harmed := ""
		w.reopen(func() {
			for _, name := range files {
				b := bytes.Clone(sound[name])
				if used := min(len(b), 20*4096); rnd.IntN(2) == 0 {
					harmed += " " + name
					for range 1 + rnd.IntN(4) {
						at := rnd.IntN(used)
						switch rnd.IntN(3) {
						case 0:
							b[at] ^= 1 << rnd.IntN(8)
						case 1:
							clear(b[at:min(at+512, used)])
						default:
							clear(b[at&^4095 : min(at&^4095+16, used)])
						}
					}
				}
				if err := os.WriteFile(filepath.Join(w.dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
		if _, _, err := w.mendErr(file, true); errors.Is(err, storage.ErrUnsupported) { // a flipped bit made it a database of a later version
			unknown++
			continue
		}
		to, m := w.mend(file, true)
		for name, values := range map[string][]string{"a": {"old-a", "new-a"}, "b": {"old-b", "new-b"}, "c": {"old-c"}, "revoked": nil, "shredded": nil} {
			heard := word(to.Keeper, w.keys[name], "x")
			switch {
			case slices.Contains(values, heard):
				better++
			case strings.Contains(heard, "-"+name) && (!m.Blind || !strings.Contains(harmed, "audit.jsonl")):
				t.Errorf("harmed%s: %s hears %q", harmed, name, heard)
			case values != nil && heard != "unavailable":
				t.Errorf("harmed%s: %s hears %q", harmed, name, heard)
			}
		}
		if err := to.Close(); err != nil {
			t.Error(err)
		}
	}
	if want := 3 * (mutants - unknown); better != want || unknown > mutants/10 {
		t.Errorf("%d of %d values came back, of %d mutants %d are unknown; the backup has them all", better, want, mutants, unknown)
	}
}
