package vault_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
)

// house is a store with one keeper.
type house struct {
	*vault.Keeper
	mem   *memory
	root  vault.Root
	birth vault.Birth
	clock time.Time
}

var stdio = vault.Source{Via: "stdio"}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{mem: newMemory(), root: vault.NewRoot(), clock: time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC)}
	var err error
	if h.birth, err = vault.Init(t.Context(), h.mem, h.root, vault.InitOptions{Now: h.now}); err != nil {
		t.Fatal(err)
	}
	h.Keeper = h.keeper(h.mem)
	return h
}

func (h *house) now() time.Time { return h.clock }

// keeper is another process on the same store.
func (h *house) keeper(m *memory) *vault.Keeper {
	return vault.Open(m, h.rootSource, vault.Options{Now: h.now})
}

func (h *house) rootSource(context.Context, identity.ID) (vault.Root, error) { return h.root, nil }

func (h *house) create(t testing.TB, name string, g identity.Grant) identity.Key {
	t.Helper()
	key, err := h.Create(t.Context(), vault.NewIdentity{Name: name, Grant: g})
	if err != nil {
		t.Fatalf("Create(%q): %v", name, err)
	}
	return key
}

func secret(label, value string) vault.NewEntry {
	return vault.NewEntry{Label: vault.Label(label), Fields: []vault.Field{{Name: "value", Value: []byte(value)}}}
}

func (h *house) put(t testing.TB, id identity.ID, es ...vault.NewEntry) {
	t.Helper()
	for _, e := range es {
		if _, err := h.Put(t.Context(), id, e); err != nil {
			t.Fatalf("Put(%q): %v", e.Label, err)
		}
	}
}

func unlock(t testing.TB, k *vault.Keeper, key identity.Key) *vault.Vault {
	t.Helper()
	v, err := k.Unlock(t.Context(), key, stdio)
	if err != nil {
		t.Fatalf("Unlock: %v", err)
	}
	return v
}

func get(t testing.TB, v *vault.Vault, label string) string {
	t.Helper()
	s, err := v.Get(t.Context(), vault.Label(label), "")
	if err != nil {
		t.Fatalf("Get(%q): %v", label, err)
	}
	return s.Reveal()
}

func wantWord(t testing.TB, what string, err error, want vault.Word) {
	t.Helper()
	if err == nil || vault.Refuse(err).Word != want {
		t.Errorf("%s = %v, want %s", what, err, want)
	}
}

func (h *house) records(t testing.TB) []audit.Record {
	t.Helper()
	var out []audit.Record
	for r, err := range audit.Records(t.Context(), h.mem) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func TestOwnerPutsAgentGets(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("stripe/prod", "hunter2"))
	v := unlock(t, h.Keeper, key)
	for i := range 2 { // from the mailbox, then absorbed
		if got := get(t, v, "stripe/prod"); got != "hunter2" {
			t.Errorf("read %d: Get = %q, want hunter2", i, got)
		}
		infos, err := h.Labels(t.Context(), key.Identity())
		if err != nil || len(infos) != 1 || infos[0].Unread {
			t.Errorf("read %d: Labels = %+v, %v; want one absorbed entry", i, infos, err)
		}
	}
	h.put(t, key.Identity(), secret("stripe/prod", "newer"))
	s, err := v.Get(t.Context(), "stripe/prod", "value")
	if err != nil || s.Version != 2 || s.Reveal() != "newer" {
		t.Errorf("Get = v%d, %v; want v2", s.Version, err)
	}
	rep, err := h.VerifyAudit(t.Context())
	if err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
}

func TestOnlyItsOwnKeyOpensAVault(t *testing.T) {
	h := newHouse(t)
	const n = 6
	keys := make([]identity.Key, n)
	for i := range keys {
		keys[i] = h.create(t, fmt.Sprintf("agent-%d", i), identity.Grant{})
		h.put(t, keys[i].Identity(), secret(fmt.Sprintf("own-%d", i), fmt.Sprintf("value-of-%d", i)), secret("shared", fmt.Sprintf("shared-of-%d", i)))
	}
	for i, key := range keys {
		v := unlock(t, h.Keeper, key)
		for j := range keys {
			s, err := v.Get(t.Context(), vault.Label(fmt.Sprintf("own-%d", j)), "")
			if i == j && (err != nil || s.Reveal() != fmt.Sprintf("value-of-%d", i)) {
				t.Errorf("own read of %d = %v", i, err)
			}
			if i != j {
				wantWord(t, fmt.Sprintf("%d reading %d", i, j), err, vault.NotFound)
			}
		}
		if got, want := get(t, v, "shared"), fmt.Sprintf("shared-of-%d", i); got != want {
			t.Errorf("shared label = %q, want %q", got, want)
		}
		labels, err := v.Labels(t.Context(), "")
		if err != nil || len(labels) != 2 {
			t.Errorf("Labels = %v, %v; want 2", labels, err)
		}
	}
}

func TestAbsentForeignAndOutOfGlobLabelsLookAlike(t *testing.T) {
	h := newHouse(t)
	a := h.create(t, "a", identity.Grant{Globs: []identity.Glob{"deploy/*"}, Scopes: identity.DefaultScopes})
	b := h.create(t, "b", identity.Grant{})
	h.put(t, a.Identity(), secret("deploy/token", "x"), secret("private/token", "y"))
	h.put(t, b.Identity(), secret("foreign/token", "z"))
	v := unlock(t, h.Keeper, a)
	ask := func(l string) string {
		_, err := v.Get(t.Context(), vault.Label(l), "")
		r := vault.Refuse(err)
		return strings.ReplaceAll(fmt.Sprintf("%s|%s|%s|%v", r.Word, r.Message, r.Hint, r.RetryAfter), l, "LABEL")
	}
	absent := ask("absents/token")
	for _, l := range []string{"private/token", "foreign/token"} {
		if got := ask(l); got != absent {
			t.Errorf("refusal of %s = %q, want %q", l, got, absent)
		}
	}
	if !strings.HasPrefix(absent, "not_found|") {
		t.Errorf("refusal = %q, want not_found", absent)
	}
	if _, err := v.Get(t.Context(), "deploy/token", ""); err != nil {
		t.Errorf("control: a label inside the globs = %v", err)
	}
}

func TestStrangerAndUnknownIdentityLookAlike(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	before := len(h.mem.lines)
	wrong := identity.NewKey(identity.Agent, key.Identity())
	unknown := identity.NewKey(identity.Agent, identity.NewID())
	_, err1 := h.Unlock(t.Context(), wrong, stdio)
	_, err2 := h.Unlock(t.Context(), unknown, stdio)
	wantWord(t, "a wrong key", err1, vault.Unauthorized)
	if err1.Error() != err2.Error() {
		t.Errorf("wrong key %q, unknown identity %q", err1, err2)
	}
	if got := len(h.mem.lines) - before; got != 0 {
		t.Errorf("%d lines were waited for", got)
	}
	h.clock = h.clock.Add(2 * time.Second)
	get := unlock(t, h.Keeper, key)
	_, _ = get.Labels(t.Context(), "")
	recs := h.records(t)
	last := recs[len(recs)-1]
	if last.Event != audit.Auth || last.N != 2 || !last.Denied {
		t.Errorf("counted line = %+v, want 2 refused", last)
	}
}

func TestRevokeEndsTheNextCallInEveryProcess(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	other := h.keeper(h.mem)
	v := unlock(t, other, key)
	get(t, v, "a")
	if _, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	_, err := v.Get(t.Context(), "a", "")
	wantWord(t, "Get after revoke", err, vault.Revoked)
	_, err = other.Unlock(t.Context(), key, stdio)
	wantWord(t, "Unlock after revoke", err, vault.Revoked)
	wantWord(t, "Live after revoke", v.Live(t.Context()), vault.Revoked)
	_, err = v.Labels(t.Context(), "")
	wantWord(t, "Labels after revoke", err, vault.Revoked)
}

// A call whose line is older than the revocation may be answered; one whose
// line is younger may not, because the receipt does not know it.
func TestRevokeBetweenLineAndReleaseReleasesNothing(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	v := unlock(t, h.Keeper, key)
	get(t, v, "a")
	other := h.keeper(h.mem)
	var once bool
	h.mem.afterLine = func() {
		if once {
			return
		}
		once = true
		if _, err := other.Revoke(t.Context(), key.Identity(), vault.Revocation{}); err != nil {
			t.Error(err)
		}
	}
	s, err := v.Get(t.Context(), "a", "")
	wantWord(t, "Get raced by revoke", err, vault.Revoked)
	if s.Reveal() != "" {
		t.Error("a value left after revoke had returned")
	}
}

func TestRevokeOneKeyLeavesTheOther(t *testing.T) {
	h := newHouse(t)
	first := h.create(t, "ci", identity.Grant{})
	id := first.Identity()
	h.put(t, id, secret("a", "1"))
	second, err := h.AddKey(t.Context(), id, first, "spare", identity.Grant{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Revoke(t.Context(), id, vault.Revocation{Slots: []identity.SlotID{first.Slot()}}); err != nil {
		t.Fatal(err)
	}
	_, err = h.Unlock(t.Context(), first, stdio)
	wantWord(t, "the revoked key", err, vault.Revoked)
	if got := get(t, unlock(t, h.Keeper, second), "a"); got != "1" {
		t.Errorf("the other key reads %q", got)
	}
}

func TestRotateWithGrace(t *testing.T) {
	h := newHouse(t)
	old := h.create(t, "ci", identity.Grant{Scopes: identity.Scopes(identity.Read)})
	id := old.Identity()
	h.put(t, id, secret("a", "1"))
	fresh, err := h.Rotate(t.Context(), id, old, vault.Rotation{Grace: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []identity.Key{old, fresh} {
		if got := get(t, unlock(t, h.Keeper, k), "a"); got != "1" {
			t.Errorf("during the grace: %q", got)
		}
	}
	h.clock = h.clock.Add(10 * time.Minute)
	_, err = h.Unlock(t.Context(), old, stdio)
	wantWord(t, "the old key after the grace", err, vault.Expired)
	v := unlock(t, h.Keeper, fresh)
	if v.Grant().Scopes != identity.Scopes(identity.Read) {
		t.Errorf("grant of the new key = %v, want that of the old", v.Grant())
	}
	_, err = h.Rotate(t.Context(), id, old, vault.Rotation{})
	wantWord(t, "Rotate with an expired proof", err, vault.Expired)
	_, err = h.Rotate(t.Context(), id, identity.NewKey(identity.Agent, id), vault.Rotation{})
	wantWord(t, "Rotate with a wrong proof", err, vault.Unauthorized)
	_, err = h.Rotate(t.Context(), id, h.birth.Recovery, vault.Rotation{})
	wantWord(t, "Rotate with the recovery key", err, vault.BadRequest)
}

func TestScopesExpiryAndExposureAreJudged(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{Scopes: identity.Scopes(identity.List), Expires: h.clock.Add(time.Hour)})
	id := key.Identity()
	use := secret("use", "x")
	use.Exposure = vault.ExposeUse
	soon := secret("soon", "x")
	soon.Expires = h.clock.Add(time.Minute)
	h.put(t, id, secret("a", "1"), use, soon)
	v := unlock(t, h.Keeper, key)
	_, err := v.Get(t.Context(), "a", "")
	wantWord(t, "Get without scope read", err, vault.Forbidden)
	_, err = v.Code(t.Context(), "a", 0)
	wantWord(t, "Code without scope code", err, vault.Forbidden)
	full, err := h.AddKey(t.Context(), id, key, "", identity.Grant{})
	if err != nil {
		t.Fatal(err)
	}
	w := unlock(t, h.Keeper, full)
	_, err = w.Get(t.Context(), "use", "")
	wantWord(t, "Get of exposure use", err, vault.Forbidden)
	get(t, w, "soon")
	h.clock = h.clock.Add(time.Minute)
	_, err = w.Get(t.Context(), "soon", "")
	wantWord(t, "Get of an expired entry", err, vault.Expired)
	h.clock = h.clock.Add(time.Hour)
	_, err = v.Labels(t.Context(), "")
	wantWord(t, "Labels with an expired key", err, vault.Expired)
}

func TestNoLineNoSecret(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("a", "1"))
	v := unlock(t, h.Keeper, key)
	get(t, v, "a") // control: with a log it is given out
	h.mem.appendErr = errors.New("no space left")
	s, err := v.Get(t.Context(), "a", "")
	wantWord(t, "Get", err, vault.AuditUnavailable)
	if s.Reveal() != "" {
		t.Error("a value left without a line")
	}
	_, err = v.Labels(t.Context(), "")
	wantWord(t, "Labels", err, vault.AuditUnavailable)
	_, err = h.Put(t.Context(), id, secret("b", "2"))
	wantWord(t, "Put", err, vault.AuditUnavailable)
	_, err = h.Create(t.Context(), vault.NewIdentity{Name: "x"})
	wantWord(t, "Create", err, vault.AuditUnavailable)

	if _, err := h.Revoke(t.Context(), id, vault.Revocation{}); err != nil {
		t.Fatalf("Revoke without a log = %v", err)
	}
	h.mem.appendErr = nil
	_, err = h.Unlock(t.Context(), key, stdio)
	wantWord(t, "Unlock", err, vault.Revoked)
	rep, err := h.VerifyAudit(t.Context())
	if err != nil || !rep.OK() {
		t.Errorf("VerifyAudit of an owed line = %v, %v", rep.Problems, err)
	}
	if _, err := h.Revoke(t.Context(), id, vault.Revocation{}); err != nil {
		t.Fatalf("Revoke again = %v", err)
	}
	paid := 0
	for _, r := range h.records(t) {
		if r.Note == "owed" {
			paid++
		}
	}
	if rep, err := h.VerifyAudit(t.Context()); err != nil || !rep.OK() || paid != 1 {
		t.Errorf("after revoking again: %d owed lines, %v, %v; want 1", paid, rep.Problems, err)
	}
}

func TestShredClosesOldCopies(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("a", "1"))
	get(t, unlock(t, h.Keeper, key), "a")
	old := h.mem.clone()

	copied := h.keeper(old)
	if got := get(t, unlock(t, copied, key), "a"); got != "1" {
		t.Fatalf("control: an old copy with its cells reads %q", got)
	}
	kept := 0
	receipt, err := h.Revoke(t.Context(), id, vault.Revocation{Shred: true, Reason: "test", Keep: func(vault.Receipt) error { kept++; return nil }})
	if err != nil || kept != 1 {
		t.Fatalf("Revoke = %v, kept %d", err, kept)
	}
	if receipt.Counts.Revealed != 1 || receipt.Revealed[0].Label != "a" || !receipt.Audit.Complete {
		t.Errorf("receipt = %+v", receipt)
	}
	_, err = h.Unlock(t.Context(), key, stdio)
	wantWord(t, "Unlock after shred", err, vault.Revoked)

	stolen := old.clone() // the old database beside today's cells
	stolen.cells, stolen.dead = h.mem.cells, h.mem.dead
	if _, err = h.keeper(stolen).Unlock(t.Context(), key, stdio); err == nil {
		t.Error("an old database with the erased cell opens")
	}
	infos, err := h.Identities(t.Context())
	if err != nil || len(infos) != 1 || infos[0].Status != identity.Shredded {
		t.Errorf("Identities = %+v, %v", infos, err)
	}
	if _, err := h.Create(t.Context(), vault.NewIdentity{Name: "ci"}); err != nil {
		t.Errorf("the name of a shredded identity is free: %v", err)
	}
	rep, err := h.VerifyAudit(t.Context())
	if err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
}

func TestShredCutOffIsFinishedByTheNextOpener(t *testing.T) {
	for _, cut := range []string{"erase", "tombstone"} {
		t.Run(cut, func(t *testing.T) {
			h := newHouse(t)
			key := h.create(t, "ci", identity.Grant{})
			h.put(t, key.Identity(), secret("a", "1"))
			stop := errors.New("power cut")
			if cut == "erase" {
				h.mem.eraseHook = func() error { return stop }
			} else {
				n := 0
				h.mem.commitHook = func() error {
					if n++; n > 4 { // keys closed, settled, shred pending, settled
						return stop
					}
					return nil
				}
			}
			if _, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{Shred: true}); !errors.Is(err, stop) {
				t.Fatalf("Revoke = %v, want the cut", err)
			}
			h.mem.eraseHook, h.mem.commitHook = nil, nil
			next := h.keeper(h.mem)
			if _, err := next.Unlock(t.Context(), key, stdio); err == nil {
				t.Error("the key opens after a shred that was cut off")
			}
			infos, err := next.Identities(t.Context())
			if err != nil || infos[0].Status != identity.Shredded {
				t.Errorf("Identities = %+v, %v; want it shredded", infos, err)
			}
			if !h.mem.dead[key.Identity()] {
				t.Error("the cell is not erased")
			}
		})
	}
}

func TestReceiptNamesExactlyWhatWasRevealed(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("OPENAI_API_KEY", "1"), secret("rotated", "1"), secret("removed", "1"), secret("untouched", "1"),
		vault.NewEntry{Label: "github", Kind: vault.KindTOTP, Fields: []vault.Field{{Name: "value", Value: []byte("JBSWY3DPEHPK3PXP")}}})
	v := unlock(t, h.Keeper, key)
	get(t, v, "OPENAI_API_KEY")
	get(t, v, "OPENAI_API_KEY")
	get(t, v, "rotated")
	get(t, v, "removed")
	h.put(t, id, secret("rotated", "2"))
	if _, err := h.Remove(t.Context(), id, "removed"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Code(t.Context(), "github", 0); err != nil {
		t.Fatal(err)
	}
	_, _ = v.Get(t.Context(), "github", "") // refused
	_, _ = v.Get(t.Context(), "nothing", "")
	r, err := h.Revoke(t.Context(), id, vault.Revocation{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range r.Revealed {
		got = append(got, fmt.Sprintf("%s v%d x%d current=%v", l.Label, l.Version, l.Times, l.Current))
	}
	want := "OPENAI_API_KEY v1 x2 current=true, removed v1 x1 current=false, rotated v1 x1 current=false"
	if strings.Join(got, ", ") != want {
		t.Errorf("revealed = %s\nwant %s", strings.Join(got, ", "), want)
	}
	wantCounts := vault.ReceiptCounts{Labels: 5, Revealed: 3, Codes: 1, Untouched: 1, Denied: 2}
	if r.Counts != wantCounts || !r.Audit.Complete {
		t.Errorf("counts = %+v, want %+v; audit %+v", r.Counts, wantCounts, r.Audit)
	}
}

func TestRemovedLabelKeepsItsVersionCounter(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("a", "1"), secret("a", "2"))
	if _, err := h.Remove(t.Context(), id, "a"); err != nil {
		t.Fatal(err)
	}
	_, err := unlock(t, h.Keeper, key).Get(t.Context(), "a", "")
	wantWord(t, "Get of a removed label", err, vault.NotFound)
	_, err = h.Remove(t.Context(), id, "a")
	wantWord(t, "Remove again", err, vault.NotFound)
	s, err := h.Put(t.Context(), id, secret("a", "3"))
	if err != nil || s.Version != 3 {
		t.Errorf("Put = v%d, %v; want v3", s.Version, err)
	}
}

func TestImportIsAllOrNothing(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("kept", "old"))
	bad := vault.NewEntry{Label: "seed", Kind: vault.KindTOTP, Fields: []vault.Field{{Name: "value", Value: []byte("not a seed!")}}}
	if _, err := h.Import(t.Context(), id, []vault.NewEntry{secret("a", "1"), bad}, false); err == nil {
		t.Fatal("a bad seed was imported")
	} else if strings.Contains(err.Error(), "not a seed!") {
		t.Errorf("the error quotes the value: %v", err)
	}
	infos, _ := h.Labels(t.Context(), id)
	if len(infos) != 1 {
		t.Errorf("after a refused import: %d labels, want 1", len(infos))
	}
	commits := h.mem.commits
	var es []vault.NewEntry
	for i := range 300 {
		es = append(es, secret(fmt.Sprintf("label-%03d", i), "v"))
	}
	out, err := h.Import(t.Context(), id, append(es, secret("kept", "new")), false)
	if err != nil || len(out) != 301 || !out[300].Skipped {
		t.Fatalf("Import = %d, %v", len(out), err)
	}
	if h.mem.commits != commits+1 {
		t.Errorf("%d commits, want 1", h.mem.commits-commits)
	}
	if got := get(t, unlock(t, h.Keeper, key), "kept"); got != "old" {
		t.Errorf("a skipped label reads %q", got)
	}
	rep, err := h.VerifyAudit(t.Context())
	if err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
}

func TestChangedRecordsQuarantineTheirIdentityOnly(t *testing.T) {
	damage := map[string]func(*memIdentity, *memory){
		"record removed":  func(i *memIdentity, _ *memory) { clear(i.vals) },
		"record injected": func(i *memIdentity, _ *memory) { i.vals["\x01xxxxxxxxxxxxxxxx"] = []byte("x") },
		"header edited":   func(i *memIdentity, _ *memory) { i.meta[100] ^= 1 },
		"record edited": func(i *memIdentity, _ *memory) {
			for k, v := range i.vals {
				v = []byte(string(v))
				v[50] ^= 1
				i.vals[k] = v
			}
		},
	}
	for name, hit := range damage {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			a, b := h.create(t, "a", identity.Grant{}), h.create(t, "b", identity.Grant{})
			h.put(t, a.Identity(), secret("x", "1"))
			h.put(t, b.Identity(), secret("x", "2"))
			hit(h.mem.ids[a.Identity()], h.mem)
			next := h.keeper(h.mem)
			_, err := next.Unlock(t.Context(), a, stdio)
			wantWord(t, "Unlock of the damaged identity", err, vault.Unavailable)
			if got := get(t, unlock(t, next, b), "x"); got != "2" {
				t.Errorf("the other identity reads %q", got)
			}
			checks, err := next.Health(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			failed := 0
			for _, c := range checks {
				if !c.OK {
					failed++
				}
			}
			if failed == 0 {
				t.Error("Health finds nothing")
			}
		})
	}
}

func TestRolledBackIdentityIsFound(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("a", "1"))
	old := h.mem.clone().ids[id]
	h.put(t, id, secret("a", "2"))
	get(t, unlock(t, h.Keeper, key), "a")
	h.mem.ids[id] = old
	rep, err := h.keeper(h.mem).VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if rep.OK() || !strings.Contains(rep.Problems[0].String(), "rolled back") {
		t.Errorf("problems = %v, want a rollback", rep.Problems)
	}
}
