package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
)

func (h *house) backup(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := h.Backup(t.Context(), &out, vault.BackupOptions{}); err != nil {
		t.Fatalf("Backup: %v", err)
	}
	return out.Bytes()
}

// ledger is the log as it stands, as a file.
func (h *house) ledger() *bytes.Reader {
	var out bytes.Buffer
	for _, l := range h.mem.lines {
		out.Write(append(slices.Clone(l), '\n'))
	}
	return bytes.NewReader(out.Bytes())
}

func openArchive(t testing.TB, file []byte, recovery identity.Key) *vault.Archive {
	t.Helper()
	a, err := vault.OpenArchive(t.Context(), bytes.NewReader(file))
	if err != nil {
		t.Fatalf("OpenArchive: %v", err)
	}
	if err := a.OpenWithRecoveryKey(recovery); err != nil {
		t.Fatalf("OpenWithRecoveryKey: %v", err)
	}
	return a
}

func rootOf(t testing.TB, a *vault.Archive) vault.Root {
	t.Helper()
	root, err := a.Root(vault.Root{})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// restore restores a backup into a fresh engine on another machine.
func (h *house) restore(t testing.TB, file []byte, ledger *bytes.Reader) (*house, *vault.Plan) {
	t.Helper()
	a := openArchive(t, file, h.birth.Recovery)
	p := plan(t, a, ledger, h.clock)
	to := &house{mem: newMemory(), root: rootOf(t, a), birth: h.birth, clock: h.clock}
	if err := p.Restore(t.Context(), to.mem, vault.RestoreOptions{Now: to.now}); err != nil {
		t.Fatalf("Restore: %v", err)
	}
	to.Keeper = to.keeper(to.mem)
	return to, p
}

func plan(t testing.TB, a *vault.Archive, ledger *bytes.Reader, now time.Time) *vault.Plan {
	t.Helper()
	var p *vault.Plan
	var err error
	if ledger == nil {
		p, err = a.Plan(t.Context(), nil, now)
	} else {
		p, err = a.Plan(t.Context(), ledger, now)
	}
	if err != nil {
		t.Fatalf("Plan: %v", err)
	}
	return p
}

func (h *house) wantVerified(t testing.TB) {
	t.Helper()
	rep, err := h.VerifyAudit(t.Context())
	if err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
}

func word(k *vault.Keeper, key identity.Key, label string) string {
	v, err := k.Unlock(context.Background(), key, stdio)
	if err == nil {
		var s vault.Secret
		if s, err = v.Get(context.Background(), vault.Label(label), ""); err == nil {
			return s.Reveal()
		}
	}
	return string(vault.Refuse(err).Word)
}

func TestRestoreBringsEverythingBack(t *testing.T) {
	h := newHouse(t)
	keys := map[string]identity.Key{}
	for i, name := range []string{"a", "b", "revoked", "shredded", "empty"} {
		keys[name] = h.create(t, name, identity.Grant{})
		if name != "empty" {
			h.put(t, keys[name].Identity(), secret("x", "CANARY-"+name), secret("y", fmt.Sprint(i)))
		}
	}
	get(t, unlock(t, h.Keeper, keys["a"]), "x") // absorbed
	for name, shred := range map[string]bool{"revoked": false, "shredded": true} {
		if _, err := h.Revoke(t.Context(), keys[name].Identity(), vault.Revocation{Shred: shred}); err != nil {
			t.Fatal(err)
		}
	}
	file := h.backup(t)
	if bytes.Contains(file, []byte("CANARY")) || bytes.Contains(file, []byte("slroot1_")) {
		t.Error("the backup shows a value or the root in clear")
	}
	to, p := h.restore(t, file, nil)
	for name, want := range map[string]string{"a": "CANARY-a", "b": "CANARY-b", "revoked": "revoked", "shredded": "revoked", "empty": "not_found"} {
		if got := word(to.Keeper, keys[name], "x"); got != want {
			t.Errorf("Get as %s = %s, want %s", name, got, want)
		}
	}
	if len(p.Identities) != 5 || p.Newer != -1 || len(p.Lost) != 0 {
		t.Errorf("plan = %+v", p)
	}
	if got, want := to.mem.lines[:len(h.mem.lines)], h.mem.lines; !slices.EqualFunc(got, want, bytes.Equal) {
		t.Error("the restored log does not begin with the lines of the old one")
	}
	to.wantVerified(t)
	// Life goes on, and so does the chain.
	to.put(t, keys["b"].Identity(), secret("z", "new"))
	if got := word(to.Keeper, keys["b"], "z"); got != "new" {
		t.Errorf("Get of a value put after the restore = %s", got)
	}
	again, _ := to.restore(t, to.backup(t), to.ledger())
	if got := word(again.Keeper, keys["b"], "z"); got != "new" {
		t.Errorf("Get after a second restore = %s", got)
	}
	again.wantVerified(t)
}

// later makes identities and returns their keys by what changeLater does to
// them.
func later(t testing.TB, h *house) map[string]identity.Key {
	t.Helper()
	keys := map[string]identity.Key{}
	for _, name := range []string{"live", "revoke", "shred", "rotate", "grace", "key-revoke"} {
		keys[name] = h.create(t, name, identity.Grant{})
		h.put(t, keys[name].Identity(), secret("x", "value"))
	}
	second, err := h.AddKey(t.Context(), keys["key-revoke"].Identity(), keys["key-revoke"], "second", identity.Grant{})
	if err != nil {
		t.Fatal(err)
	}
	keys["second"] = second
	return keys
}

func changeLater(t testing.TB, h *house, keys map[string]identity.Key) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := h.Revoke(t.Context(), keys["revoke"].Identity(), vault.Revocation{})
	check(err)
	_, err = h.Revoke(t.Context(), keys["shred"].Identity(), vault.Revocation{Shred: true})
	check(err)
	_, err = h.Rotate(t.Context(), keys["rotate"].Identity(), keys["rotate"], vault.Rotation{})
	check(err)
	_, err = h.Rotate(t.Context(), keys["grace"].Identity(), keys["grace"], vault.Rotation{Grace: time.Minute})
	check(err)
	_, err = h.Revoke(t.Context(), keys["key-revoke"].Identity(), vault.Revocation{Slots: []identity.SlotID{keys["key-revoke"].Slot()}})
	check(err)
	h.put(t, keys["live"].Identity(), secret("y", "younger than the backup"))
	keys["lost"] = h.create(t, "lost", identity.Grant{})
}

func TestLedgerKeepsTheRevokedDead(t *testing.T) {
	h := newHouse(t)
	keys := later(t, h)
	file := h.backup(t)
	changeLater(t, h, keys)

	// Without the ledger they live: the plan must say that it does not know.
	old, p := h.restore(t, file, nil)
	revived := 0
	for _, name := range []string{"revoke", "shred", "rotate", "grace", "key-revoke"} {
		if word(old.Keeper, keys[name], "x") == "value" {
			revived++
		}
	}
	if revived != 5 || p.Newer != -1 {
		t.Errorf("control: %d of 5 closed keys open without a ledger, Newer = %d", revived, p.Newer)
	}

	to, p := h.restore(t, file, h.ledger())
	for name, want := range map[string]string{"live": "value", "revoke": "revoked", "shred": "revoked", "rotate": "revoked", "grace": "revoked", "key-revoke": "revoked", "second": "value", "lost": "unauthorized"} {
		if got := word(to.Keeper, keys[name], "x"); got != want {
			t.Errorf("Get with the key of %s = %s, want %s", name, got, want)
		}
	}
	if p.Newer < 7 || !slices.Equal(p.Lost, []identity.ID{keys["lost"].Identity()}) {
		t.Errorf("Newer = %d, Lost = %v", p.Newer, p.Lost)
	}
	since := map[string]vault.Since{}
	for _, i := range p.Identities {
		since[i.Name] = i.Since
	}
	for name, want := range map[string]vault.Since{"live": 0, "revoke": vault.SinceRevoked, "shred": vault.SinceShredded, "rotate": vault.SinceKeys, "grace": vault.SinceKeys, "key-revoke": vault.SinceKeys} {
		if since[name] != want {
			t.Errorf("plan of %s = %v, want %v", name, since[name], want)
		}
	}
	if _, err := to.mem.Cell(t.Context(), keys["shred"].Identity()); !errors.Is(err, storage.ErrErased) {
		t.Errorf("the cell of a shredded identity = %v, want ErrErased", err)
	}
	to.wantVerified(t)
	if got := to.mem.lines[:len(h.mem.lines)]; !slices.EqualFunc(got, h.mem.lines, bytes.Equal) {
		t.Error("the restored log does not begin with the ledger")
	}
}

func TestLedgerOfAnotherPastIsRefused(t *testing.T) {
	h := newHouse(t)
	keys := later(t, h)
	early := h.ledger()
	file := h.backup(t)
	changeLater(t, h, keys)
	a := openArchive(t, file, h.birth.Recovery)
	whole, _ := bytesOf(h.ledger())
	cases := map[string][]byte{
		"older than the backup": must(bytesOf(early)),
		"edited":                bytes.Replace(whole, []byte(`"ev":"revoke"`), []byte(`"ev":"create"`), 1),
		"a line dropped":        dropLine(whole, bytes.Count(whole, []byte{'\n'})-2),
		"of another store":      must(bytesOf(newHouse(t).ledger())),
		"empty":                 {},
	}
	for name, l := range cases {
		_, err := a.Plan(t.Context(), bytes.NewReader(l), h.clock)
		wantWord(t, "a ledger "+name, err, vault.BadRequest)
	}
	if _, err := a.Plan(t.Context(), bytes.NewReader(append(slices.Clone(whole), "torn"...)), h.clock); err != nil {
		t.Errorf("control: a ledger with a torn end = %v", err)
	}
}

func bytesOf(r *bytes.Reader) ([]byte, error) {
	b := make([]byte, r.Size())
	_, err := r.ReadAt(b, 0)
	return b, err
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func dropLine(log []byte, n int) []byte {
	lines := bytes.SplitAfter(log, []byte{'\n'})
	return bytes.Join(slices.Delete(lines, n, n+1), nil)
}

func TestRestoreWantsAFreshEngine(t *testing.T) {
	h := newHouse(t)
	h.create(t, "a", identity.Grant{})
	p := plan(t, openArchive(t, h.backup(t), h.birth.Recovery), nil, h.clock)
	before := h.mem.clone()
	wantWord(t, "restoring over a store", p.Restore(t.Context(), h.mem, vault.RestoreOptions{}), vault.Exists)
	if h.mem.commits != 0 && len(h.mem.lines) != len(before.lines) {
		t.Error("a refused restore wrote")
	}
	used := newMemory()
	if _, err := used.Append(t.Context(), []byte(`{"a":1}`)); err != nil {
		t.Fatal(err)
	}
	wantWord(t, "restoring over a log", p.Restore(t.Context(), used, vault.RestoreOptions{}), vault.Exists)
	if strings.Contains(fmt.Sprint(p), "CANARY") {
		t.Error("a plan prints a value")
	}
}

// What was closed while the log could not be written is in no line: a restore
// of an older backup with the newest log brought it back, and asked nothing.
// The owner's next listing, or backup, writes what is owed.
func TestOwedLineIsWrittenForTheLedger(t *testing.T) {
	for name, look := range map[string]func(*house, *testing.T){
		"a listing": func(h *house, t *testing.T) {
			if _, err := h.Identities(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"a backup": func(h *house, t *testing.T) { h.backup(t) },
		"a root rotation": func(h *house, t *testing.T) {
			if _, err := h.RotateRoot(t.Context(), func(r vault.Root) error { h.root = r; return nil }); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			revoked, shredded := h.create(t, "revoked", identity.Grant{}), h.create(t, "shredded", identity.Grant{})
			for _, key := range []identity.Key{revoked, shredded} {
				h.put(t, key.Identity(), secret("x", "value"))
			}
			file := h.backup(t)
			h.mem.appendErr = errors.New("no space left")
			for _, key := range []identity.Key{revoked, shredded} {
				if _, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{Shred: key.Identity() == shredded.Identity()}); err != nil {
					t.Fatal(err)
				}
			}
			h.mem.appendErr = nil
			h.wantVerified(t)
			hear := func(to *house) (out []string) {
				return []string{word(to.Keeper, revoked, "x"), word(to.Keeper, shredded, "x")}
			}
			to, _ := h.restore(t, file, h.ledger())
			if got := hear(to); !slices.Equal(got, []string{"value", "value"}) {
				t.Fatalf("control: with a log that lacks the lines the keys hear %v", got)
			}
			look(h, t)
			h.wantVerified(t)
			lines := len(h.mem.lines)
			if _, err := h.Identities(t.Context()); err != nil || len(h.mem.lines) != lines {
				t.Errorf("what is owed is written twice: %v", err)
			}
			to, _ = h.restore(t, file, h.ledger())
			if got := hear(to); !slices.Equal(got, []string{"revoked", "revoked"}) {
				t.Errorf("after a restore the keys hear %v", got)
			}
			to.wantVerified(t)
		})
	}
}

// A long backup beside two rotations of the root secret holds identities of
// three epochs: the root text in it must open them all.
func TestBackupBesideRootRotationsOpens(t *testing.T) {
	h := newHouse(t)
	var keys []identity.Key
	for i := range 6 {
		key := h.create(t, fmt.Sprint("i", i), identity.Grant{})
		h.put(t, key.Identity(), secret("x", "value"))
		keys = append(keys, key)
	}
	other := h.keeper(h.mem)
	var out bytes.Buffer
	_, err := h.Backup(t.Context(), &out, vault.BackupOptions{Progress: func(done, _ int) {
		if done == 2 || done == 4 {
			if _, err := other.RotateRoot(t.Context(), func(r vault.Root) error { h.root = r; return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	to, p := h.restore(t, out.Bytes(), nil)
	for _, i := range p.Identities {
		if i.Damaged {
			t.Errorf("identity %s of the backup does not open", i.Name)
		}
	}
	for i, key := range keys {
		if got := word(to.Keeper, key, "x"); got != "value" {
			t.Errorf("key %d hears %q", i, got)
		}
	}
}
