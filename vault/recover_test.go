package vault_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

func TestRecoverBringsARevokedIdentityBack(t *testing.T) {
	h := newHouse(t)
	old := h.create(t, "ci", identity.Grant{})
	id := old.Identity()
	h.put(t, id, secret("a", "1"))
	get(t, unlock(t, h.Keeper, old), "a")
	r, err := h.Revoke(t.Context(), id, vault.Revocation{})
	if err != nil || !r.Recoverable {
		t.Fatalf("Revoke = recoverable %v, %v", r.Recoverable, err)
	}
	_, err = h.AddKey(t.Context(), id, h.birth.Recovery, "", identity.Grant{})
	wantWord(t, "AddKey with the recovery key", err, vault.BadRequest)
	key, err := h.Recover(t.Context(), id, h.birth.Recovery, identity.Grant{Globs: []identity.Glob{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, unlock(t, h.Keeper, key), "a"); got != "1" {
		t.Errorf("Get = %q", got)
	}
	_, err = h.Unlock(t.Context(), old, stdio)
	wantWord(t, "the older key", err, vault.Revoked)
	last := h.records(t)
	found := false
	for _, r := range last {
		found = found || r.Event == audit.Recover && r.Slot == key.Slot().String() && r.Key == h.birth.Recovery.Slot().String()
	}
	if !found {
		t.Error("no line tells of the recovery")
	}
	again, err := h.Revoke(t.Context(), id, vault.Revocation{})
	if err != nil || len(again.Revealed) != 1 || again.Revealed[0].Times != 2 {
		t.Errorf("the next receipt names %+v, %v; want both reads", again.Revealed, err)
	}
}

func TestRecoverRefuses(t *testing.T) {
	h, other := newHouse(t), newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	own, err := h.Create(t.Context(), vault.NewIdentity{Name: "own", NoRecovery: true})
	if err != nil {
		t.Fatal(err)
	}
	gone := h.create(t, "gone", identity.Grant{})
	if _, err := h.Revoke(t.Context(), gone.Identity(), vault.Revocation{Shred: true}); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		id   identity.ID
		with identity.Key
		want vault.Word
	}{
		"another store's key":   {key.Identity(), other.birth.Recovery, vault.Unauthorized},
		"an agent key":          {key.Identity(), key, vault.Unauthorized},
		"no key":                {key.Identity(), identity.Key{}, vault.Unauthorized},
		"no recovery":           {own.Identity(), h.birth.Recovery, vault.Forbidden},
		"a shredded identity":   {gone.Identity(), h.birth.Recovery, vault.Revoked},
		"an identity not there": {identity.NewID(), h.birth.Recovery, vault.NotFound},
	} {
		_, err := h.Recover(t.Context(), c.id, c.with, identity.Grant{})
		wantWord(t, what, err, c.want)
	}
}

// replace runs Replace to its end.
func (h *house) replace(t *testing.T, id identity.ID, proof identity.Key) (identity.Key, vault.Replaced) {
	t.Helper()
	var key identity.Key
	out, err := h.Replace(t.Context(), id, proof, vault.Replacement{Reason: "leaked", Hand: func(k identity.Key) error { key = k; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return key, out
}

// An heir made with the recovery key must not end with the grace of a key that
// was rotated shortly before.
func TestHeirOfTheRecoveryKeyDoesNotEndWithAGrace(t *testing.T) {
	for name, revoked := range map[string]bool{"active": false, "revoked": true} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			old := h.create(t, "ci", identity.Grant{Globs: []identity.Glob{"a*"}})
			h.put(t, old.Identity(), secret("a", "1"))
			if _, err := h.Rotate(t.Context(), old.Identity(), old, vault.Rotation{Grace: 10 * time.Minute}); err != nil {
				t.Fatal(err)
			}
			if revoked {
				if _, err := h.Revoke(t.Context(), old.Identity(), vault.Revocation{}); err != nil {
					t.Fatal(err)
				}
			}
			key, _ := h.replace(t, old.Identity(), h.birth.Recovery)
			h.clock = h.clock.Add(time.Hour)
			v := unlock(t, h.Keeper, key)
			if got := get(t, v, "a"); got != "1" || !v.Grant().Expires.IsZero() || len(v.Grant().Globs) != 1 {
				t.Errorf("Get = %q with the grant %v, want the value, the globs and no end", got, v.Grant())
			}
		})
	}
}

func TestReplaceMovesEveryValueAndItsPast(t *testing.T) {
	h := newHouse(t)
	old := h.create(t, "ci", identity.Grant{Scopes: identity.Scopes(identity.Read | identity.List), Globs: []identity.Glob{"*"}})
	id := old.Identity()
	never := vault.NewEntry{Label: "login", Kind: vault.KindLogin, Tags: []string{"x"}, Hosts: []string{"example.com"}, Fields: []vault.Field{{Name: "value", Value: []byte("pw")}, {Name: "private_key", Value: []byte("pem")}}}
	h.put(t, id, secret("a", "1"), secret("a", "2"), never, secret("gone", "3"))
	if _, err := h.Remove(t.Context(), id, "gone"); err != nil {
		t.Fatal(err)
	}
	get(t, unlock(t, h.Keeper, old), "a")
	before, err := h.Labels(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	key, out := h.replace(t, id, old)
	if out.Receipt.Heir != key.Identity().String() || out.Receipt.Action != "shred" || out.Labels != 2 || len(out.Receipt.Revealed) != 1 {
		t.Errorf("Replace = %+v", out)
	}
	after, err := h.Labels(t.Context(), key.Identity())
	if err != nil || len(after) != len(before) {
		t.Fatalf("Labels = %d, %v; want %d", len(after), err, len(before))
	}
	for i := range after {
		if a, b := after[i], before[i]; a.Label != b.Label || a.Version != b.Version || a.Created != b.Created || a.Unread != b.Unread || strings.Join(a.Hosts, "") != strings.Join(b.Hosts, "") {
			t.Errorf("%+v became %+v", b, a)
		}
	}
	v := unlock(t, h.Keeper, key)
	if got := get(t, v, "a"); got != "2" {
		t.Errorf("Get = %q", got)
	}
	_, err = v.Get(t.Context(), "login", "private_key")
	wantWord(t, "a field that never leaves", err, vault.NotFound)
	if g := v.Grant(); g.Scopes != identity.Scopes(identity.Read|identity.List) || len(g.Globs) != 1 {
		t.Errorf("grant of the new key = %v, want that of the proof", g)
	}
	h.put(t, key.Identity(), secret("gone", "4"))
	s, err := v.Get(t.Context(), "gone", "")
	if err != nil || s.Version != 2 {
		t.Errorf("a removed label that is put again has version %d, %v; want 2", s.Version, err)
	}
	info, err := h.Find(t.Context(), "ci")
	if err != nil || info.ID != key.Identity() || !info.Replaces.IsZero() || info.Pending {
		t.Errorf("Find = %+v, %v", info, err)
	}
	if rep, err := h.VerifyAudit(t.Context()); err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
}

func TestReplaceWithAWrongProofChangesNothing(t *testing.T) {
	h := newHouse(t)
	key, other := h.create(t, "ci", identity.Grant{}), h.create(t, "other", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	commits := h.mem.commits
	for what, proof := range map[string]identity.Key{
		"another identity's key": other, "an unknown key": identity.NewKey(identity.Agent, key.Identity()), "no key": {},
		"another store's recovery key": newHouse(t).birth.Recovery,
	} {
		_, err := h.Replace(t.Context(), key.Identity(), proof, vault.Replacement{})
		wantWord(t, what, err, vault.Unauthorized)
	}
	if h.mem.commits != commits {
		t.Errorf("%d commits, want none", h.mem.commits-commits)
	}
	get(t, unlock(t, h.Keeper, key), "a")
}

// TestNothingIsPutWhereItWouldBeLost stops a replacement before the new key
// is handed over: neither the old identity nor its heir takes a value then,
// and no key of either admits anybody.
func TestNothingIsPutWhereItWouldBeLost(t *testing.T) {
	h := newHouse(t)
	old := h.create(t, "ci", identity.Grant{})
	h.put(t, old.Identity(), secret("a", "1"))
	full := errors.New("no room for the key")
	var lost identity.Key
	_, err := h.Replace(t.Context(), old.Identity(), old, vault.Replacement{Hand: func(k identity.Key) error { lost = k; return full }})
	if !errors.Is(err, full) {
		t.Fatalf("Replace = %v", err)
	}
	info, err := h.Find(t.Context(), "ci")
	if err != nil || info.ID != old.Identity() || info.Heir != lost.Identity() {
		t.Fatalf("Find = %+v, %v; want the old identity", info, err)
	}
	for _, key := range []identity.Key{old, lost} {
		_, err := h.Put(t.Context(), key.Identity(), secret("b", "2"))
		wantWord(t, "Put", err, vault.Conflict)
		_, err = h.Remove(t.Context(), key.Identity(), "a")
		wantWord(t, "Remove", err, vault.Conflict)
		_, err = h.Recover(t.Context(), key.Identity(), h.birth.Recovery, identity.Grant{})
		wantWord(t, "Recover", err, vault.Conflict)
		_, err = h.Unlock(t.Context(), key, stdio)
		wantWord(t, "Unlock", err, vault.Revoked)
	}
	key, _ := h.replace(t, old.Identity(), old)
	if got := get(t, unlock(t, h.Keeper, key), "a"); got != "1" {
		t.Errorf("Get = %q", got)
	}
	_, err = h.Unlock(t.Context(), lost, stdio)
	wantWord(t, "the key that was lost", err, vault.Revoked)
}

func TestReplacementGivenUpLeavesNothing(t *testing.T) {
	h := newHouse(t)
	old := h.create(t, "ci", identity.Grant{})
	_, err := h.Replace(t.Context(), old.Identity(), old, vault.Replacement{Hand: func(identity.Key) error { return errors.New("no") }})
	if err == nil {
		t.Fatal("Replace = nil")
	}
	if _, err := h.Revoke(t.Context(), old.Identity(), vault.Revocation{Shred: true}); err != nil {
		t.Fatal(err)
	}
	all, err := h.Identities(t.Context())
	for _, i := range all {
		if err != nil || i.Status != identity.Shredded {
			t.Errorf("%+v is left, %v", i, err)
		}
	}
	h.create(t, "ci", identity.Grant{})
}

func TestRivalReplacementsLoseNothing(t *testing.T) {
	h := newHouse(t)
	old := h.create(t, "ci", identity.Grant{})
	h.put(t, old.Identity(), secret("a", "1"))
	var winner identity.Key
	_, err := h.Replace(t.Context(), old.Identity(), old, vault.Replacement{Hand: func(identity.Key) error {
		winner, _ = h.replace(t, old.Identity(), old) // another process, which comes to its end
		return nil
	}})
	if err == nil {
		t.Error("both replacements won")
	}
	if got := get(t, unlock(t, h.Keeper, winner), "a"); got != "1" {
		t.Errorf("Get = %q", got)
	}
	if is, err := named(h.Keeper, "ci"); err != nil || len(is) != 1 {
		t.Errorf("%d identities of the name, %v", len(is), err)
	}
}

func TestReplaceCarriesALargeVault(t *testing.T) {
	h := newHouse(t)
	old := h.create(t, "ci", identity.Grant{})
	var es []vault.NewEntry
	for i := range 60 {
		es = append(es, secret("big/"+strings.Repeat("i", i+1), strings.Repeat("x", vault.MaxValue)))
	}
	if _, err := h.Import(t.Context(), old.Identity(), es, false); err != nil {
		t.Fatal(err)
	}
	before := h.mem.commits
	key, out := h.replace(t, old.Identity(), old)
	if out.Labels != len(es) || h.mem.commits-before < 8 {
		t.Errorf("%d labels in %d commits", out.Labels, h.mem.commits-before)
	}
	get(t, unlock(t, h.Keeper, key), string(es[59].Label))
}

// rotateRoot rotates the root secret of h.
func (h *house) rotateRoot(t *testing.T, k *vault.Keeper) vault.RootRotation {
	t.Helper()
	out, err := k.RotateRoot(t.Context(), func(r vault.Root) error { h.root = r; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRotateRootWhileAgentsAreServed(t *testing.T) {
	h := newHouse(t)
	key, gone := h.create(t, "ci", identity.Grant{}), h.create(t, "gone", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	if _, err := h.Revoke(t.Context(), gone.Identity(), vault.Revocation{Shred: true}); err != nil {
		t.Fatal(err)
	}
	before, server := h.root, h.keeper(h.mem)
	v := unlock(t, server, key)
	for epoch := uint32(2); epoch < 5; epoch++ {
		if out := h.rotateRoot(t, h.keeper(h.mem)); out.Epoch != epoch || out.Resealed != 2 || out.Resumed {
			t.Errorf("RotateRoot = %+v", out)
		}
		if got := get(t, v, "a"); got != "1" {
			t.Errorf("Get = %q", got)
		}
		_, err := server.Unlock(t.Context(), gone, stdio)
		wantWord(t, "the key of a shredded identity", err, vault.Revoked)
		h.put(t, key.Identity(), secret("b", "2"))
		get(t, v, "b")
	}
	if _, err := h.Recover(t.Context(), key.Identity(), h.birth.Recovery, identity.Grant{}); err != nil {
		t.Errorf("Recover after rotations = %v", err)
	}
	if rep, err := h.VerifyAudit(t.Context()); err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
	h.root = before
	if _, err := h.keeper(h.mem).Unlock(t.Context(), key, stdio); err == nil {
		t.Error("the first root secret still opens the store")
	}
}

// A shred of what was revoked long ago says since when its keys are closed,
// also if the header was sealed again in between.
func TestRootRotationChangesNoIdentity(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	first, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{})
	if err != nil {
		t.Fatal(err)
	}
	h.clock = h.clock.Add(time.Hour)
	h.rotateRoot(t, h.Keeper)
	second, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{Shred: true})
	if err != nil || !second.EffectiveAt.Equal(first.EffectiveAt) {
		t.Errorf("the receipt of the shred is effective at %v, %v; want %v", second.EffectiveAt, err, first.EffectiveAt)
	}
}

// TestCreateBesideARootRotation lets a process that knows the older root
// secret alone make an identity, whose commit comes at every point of a
// rotation, the end too, when the older secret is gone.
func TestCreateBesideARootRotation(t *testing.T) {
	for at := 1; ; at++ {
		h := newHouse(t)
		h.create(t, "other", identity.Grant{})
		slow := h.keeper(h.mem)
		if _, err := slow.Identities(t.Context()); err != nil { // it knows the root secret
			t.Fatal(err)
		}
		var key identity.Key
		var createErr error
		n, began := 0, false
		h.mem.commitHook = func() error {
			if n++; n != at || began {
				return nil
			}
			began = true
			key, createErr = slow.Create(context.Background(), vault.NewIdentity{Name: "late"})
			return nil
		}
		rotating := h.keeper(h.mem)
		out, err := rotating.RotateRoot(t.Context(), func(r vault.Root) error { h.root = r; return nil })
		h.mem.commitHook = nil
		if err != nil {
			t.Fatalf("commit %d: RotateRoot = %+v, %v", at, out, err)
		}
		if !began {
			if at < 5 {
				t.Errorf("%d commits; the test sees nothing", at-1)
			}
			break
		}
		if createErr != nil {
			t.Errorf("commit %d: Create = %v", at, createErr)
			continue
		}
		if _, err := h.keeper(h.mem).Unlock(t.Context(), key, stdio); err != nil {
			t.Errorf("commit %d: the new identity: %v", at, err)
		}
	}
}

// TestCreateOvertakenByARotation commits under a root secret whose rotation
// has already come to its end: the hardest case of the race.
func TestCreateOvertakenByARotation(t *testing.T) {
	h := newHouse(t)
	slow := h.keeper(h.mem)
	if _, err := slow.Identities(t.Context()); err != nil {
		t.Fatal(err)
	}
	rotated := false
	h.mem.commitHook = func() error {
		if rotated {
			return nil
		}
		rotated = true
		h.rotateRoot(t, h.keeper(h.mem))
		return nil
	}
	key, err := slow.Create(t.Context(), vault.NewIdentity{Name: "late"})
	h.mem.commitHook = nil
	if err != nil || !rotated {
		t.Fatalf("Create = %v", err)
	}
	h.put(t, key.Identity(), secret("a", "1"))
	if got := get(t, unlock(t, h.keeper(h.mem), key), "a"); got != "1" {
		t.Errorf("Get = %q", got)
	}
	if rep, err := h.VerifyAudit(t.Context()); err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
}

// TestRotateRootKeepsTheOlderSecretForWhatDoesNotOpen damages one cell: that
// identity may come back from a copy of vault.cells, so the secret stays.
func TestRotateRootKeepsTheOlderSecretForWhatDoesNotOpen(t *testing.T) {
	h := newHouse(t)
	key, hurt := h.create(t, "ci", identity.Grant{}), h.create(t, "hurt", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	good := h.mem.cells[hurt.Identity()]
	h.mem.cells[hurt.Identity()] = storage.Cell{1}
	keep := func(r vault.Root) error { h.root = r; return nil }
	out, err := h.RotateRoot(t.Context(), keep)
	wantWord(t, "RotateRoot", err, vault.Unavailable)
	if len(out.Left) != 1 || out.Left[0] != hurt.Identity() || strings.Count(h.root.Reveal(), "\n") != 3 {
		t.Errorf("RotateRoot = %+v, %d lines of root text", out, strings.Count(h.root.Reveal(), "\n"))
	}
	if got := get(t, unlock(t, h.keeper(h.mem), key), "a"); got != "1" {
		t.Errorf("Get = %q", got)
	}
	checks, err := h.keeper(h.mem).Health(t.Context())
	found := false
	for _, c := range checks {
		found = found || !c.OK && c.Try == "solekey root rotate"
	}
	if err != nil || !found {
		t.Errorf("Health says nothing of the rotation: %+v, %v", checks, err)
	}
	h.mem.cells[hurt.Identity()] = good
	if out, err := h.RotateRoot(t.Context(), keep); err != nil || !out.Resumed || out.Epoch != 2 {
		t.Errorf("RotateRoot = %+v, %v", out, err)
	}
	unlock(t, h.keeper(h.mem), hurt)
}

func TestRotateRootStopsWhenTheSourceDoesNotKeep(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	commits := h.mem.commits
	_, err := h.RotateRoot(t.Context(), func(vault.Root) error { return nil }) // it forgets
	wantWord(t, "RotateRoot", err, vault.Unavailable)
	if h.mem.commits != commits {
		t.Errorf("%d commits under a root secret that rests nowhere", h.mem.commits-commits)
	}
	unlock(t, h.Keeper, key)
}

func TestReceiptIsVerifiedOffline(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"), secret("b", "2"))
	get(t, unlock(t, h.Keeper, key), "a")
	r, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{Shred: true, Reason: "a <b> & \u2028"})
	if err != nil {
		t.Fatal(err)
	}
	pub, err := h.AuditPublic(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text := indented(t, r)
	back, err := vault.ParseReceipt(text)
	if err != nil || back.Verify(pub) != nil || h.Recount(t.Context(), back) != nil {
		t.Fatalf("ParseReceipt = %v; Verify = %v; Recount = %v", err, back.Verify(pub), h.Recount(t.Context(), back))
	}
	passed := 0
	for i := range text {
		for _, bit := range []byte{1, 0x20, 0x80} {
			bad := append([]byte(nil), text...)
			bad[i] ^= bit
			if r, err := vault.ParseReceipt(bad); err == nil && r.Verify(pub) == nil && string(indented(t, r)) != string(text) {
				passed++
			}
		}
	}
	if passed > 0 {
		t.Errorf("%d changes pass", passed)
	}
	other, err := newHouse(t).AuditPublic(t.Context())
	if err != nil || !errors.Is(back.Verify(other), vault.ErrForged) {
		t.Errorf("Verify with another key = %v", back.Verify(other))
	}
	back.Revealed[0].Times++
	if err := h.Recount(t.Context(), back); !errors.Is(err, vault.ErrMiscounted) {
		t.Errorf("Recount of a wrong count = %v", err)
	}
	back.Revealed = nil
	if err := h.Recount(t.Context(), back); !errors.Is(err, vault.ErrMiscounted) {
		t.Errorf("Recount without a label = %v", err)
	}
}

func indented(t *testing.T, r vault.Receipt) []byte {
	t.Helper()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// FuzzParseReceipt checks that what is read as a receipt is written the same.
func FuzzParseReceipt(f *testing.F) {
	f.Add([]byte(`{"receipt":"solekey/v1","id":"x"}`))
	f.Add([]byte(`{"receipt":"solekey/v1","id":"2026-11-24-ci","store":"9c41e0b2","identity":{"id":"5b"},"keys":["7f3a91c2"],"action":"shred","effective_at":"2026-11-24T12:00:00Z","erasure":"in_place","counts":{"labels":1,"revealed":0,"codes":0,"untouched":1,"denied":0},"revealed":[],"codes":[],"audit":{"from":0,"to":1,"head":"00","complete":true}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := vault.ParseReceipt(b)
		if err != nil {
			return
		}
		again, err := vault.ParseReceipt(indented(t, r))
		if err != nil || string(indented(t, again)) != string(indented(t, r)) {
			t.Errorf("a receipt is not written as it was read: %v", err)
		}
		if r.Verify(make([]byte, 32)) == nil {
			t.Error("a receipt nobody signed verifies")
		}
	})
}

// TestForgedTombstoneErasesNothing puts what looks like a tombstone in the
// place of a header: the cell of the identity must outlive it.
func TestForgedTombstoneErasesNothing(t *testing.T) {
	h := newHouse(t)
	key, gone := h.create(t, "ci", identity.Grant{}), h.create(t, "gone", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	if _, err := h.Revoke(t.Context(), gone.Identity(), vault.Revocation{Shred: true}); err != nil {
		t.Fatal(err)
	}
	at := h.mem.ids[key.Identity()]
	header := at.meta
	retyped := append([]byte(nil), header...)
	retyped[2] = 3
	for what, forged := range map[string][]byte{"another's tombstone": h.mem.ids[gone.Identity()].meta, "a header of that type": retyped} {
		at.meta = forged
		_, err := h.keeper(h.mem).Unlock(t.Context(), key, stdio)
		wantWord(t, what, err, vault.Unavailable)
	}
	at.meta = header
	if got := get(t, unlock(t, h.keeper(h.mem), key), "a"); got != "1" {
		t.Errorf("Get = %q", got)
	}
}

// A replacement that is cut off once the heir is active, and the heir revoked
// by another command: the name leads to what is to be finished, and finishing
// it loses nothing.
func TestRevokedHeirKeepsItsNameUsable(t *testing.T) {
	h := newHouse(t)
	old := h.create(t, "ci", identity.Grant{})
	h.put(t, old.Identity(), secret("a", "1"))
	stop := errors.New("cut off")
	_, err := h.Replace(t.Context(), old.Identity(), old, vault.Replacement{Hand: func(identity.Key) error { return nil }, Keep: func(vault.Receipt) error { return stop }})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	heir, err := h.Find(t.Context(), "ci")
	if err != nil || heir.Replaces != old.Identity() || heir.Status != identity.Active {
		t.Fatalf("Find = %+v, %v, want the heir", heir, err)
	}
	if _, err := h.Revoke(t.Context(), heir.ID, vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	for name, proof := range map[string]identity.Key{"the leaked key": old, "the recovery key": h.birth.Recovery} {
		t.Run(name, func(t *testing.T) {
			c := &house{mem: h.mem.clone(), root: h.root, birth: h.birth, clock: h.clock}
			c.Keeper = c.keeper(c.mem)
			i, err := c.Find(t.Context(), "ci")
			if err != nil || i.ID != old.Identity() {
				t.Fatalf("Find = %v, %v, want the replaced identity", i.ID, err)
			}
			var key identity.Key
			if _, err := c.Replace(t.Context(), i.ID, proof, vault.Replacement{Hand: func(k identity.Key) error { key = k; return nil }}); err != nil {
				t.Fatal(err)
			}
			if i, err = c.Find(t.Context(), "ci"); err != nil || i.ID != key.Identity() {
				t.Errorf("Find = %v, %v, want the new heir", i.ID, err)
			}
			if got := word(c.Keeper, key, "a"); got != "1" {
				t.Errorf("the new key hears %q", got)
			}
			if _, err := c.Revoke(t.Context(), key.Identity(), vault.Revocation{}); err != nil {
				t.Fatal(err)
			}
			if i, err = c.Find(t.Context(), "ci"); err != nil || i.ID != key.Identity() {
				t.Errorf("Find = %v, %v, want the new heir, which is revoked too", i.ID, err)
			}
			c.wantVerified(t)
		})
	}
}
