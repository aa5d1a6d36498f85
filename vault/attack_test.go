package vault_test

import (
	"bytes"
	"context"
	"crypto/sha256"
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

// The attacks of someone who can write the files of a store and has no key
// and no root secret. Each was possible once, or is one step from what was.

func wantProblem(t *testing.T, k *vault.Keeper, what string) {
	t.Helper()
	rep, err := k.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if rep.OK() {
		t.Errorf("VerifyAudit does not find %s", what)
	}
}

// The copy of the database from before a revocation is put back, so that the
// closed key opens again. The log tells of a revocation that the store does
// not know.
func TestRolledBackRevocationIsFound(t *testing.T) {
	for _, shred := range []bool{false, true} {
		t.Run(fmt.Sprintf("shred=%v", shred), func(t *testing.T) {
			h := newHouse(t)
			key := h.create(t, "ci", identity.Grant{})
			h.put(t, key.Identity(), secret("a", "1"))
			old := h.mem.clone()
			if _, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{Shred: shred}); err != nil {
				t.Fatal(err)
			}
			h.mem.ids, h.mem.cells, h.mem.dead = old.ids, old.cells, old.dead
			next := h.keeper(h.mem)
			wantProblem(t, next, "a revocation that was rolled back")
			h.put(t, key.Identity(), secret("b", "2"))
			h.put(t, key.Identity(), secret("c", "3"))
			wantProblem(t, h.keeper(h.mem), "it after two more changes")
		})
	}
}

// The database is rolled back by one change after an agent has seen it.
func TestRolledBackReadIsFound(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("a", "1"))
	get(t, unlock(t, h.Keeper, key), "a")
	old := h.mem.clone().ids[id]
	h.put(t, id, secret("a", "2"))
	_, _ = unlock(t, h.Keeper, key).Get(t.Context(), "nothing", "") // a refusal saw it, too
	h.mem.ids[id] = old
	wantProblem(t, h.keeper(h.mem), "a change that was rolled back")
	h.put(t, id, secret("a", "3"))
	wantProblem(t, h.keeper(h.mem), "it after another change in its place")
}

// A change whose commit was cut off by a crash is no roll-back.
func TestCutOffChangeIsNoFalseAlarm(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.mem.commitHook = func() error { return storage.ErrUnavailable }
	if _, err := h.Put(t.Context(), key.Identity(), secret("a", "1")); err == nil {
		t.Fatal("the cut did not happen")
	}
	h.mem.commitHook = nil
	h.put(t, key.Identity(), secret("a", "2"))
	get(t, unlock(t, h.Keeper, key), "a")
	rep, err := h.VerifyAudit(t.Context())
	if err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
}

// An older record is put back underneath a process that has compared this
// identity with its set-hash before.
func TestReplayUnderARunningProcessIsFound(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("a", "old"), secret("b", "1"))
	server := h.keeper(h.mem)
	v := unlock(t, server, key)
	get(t, v, "a")
	old := h.mem.clone().ids[id].vals
	h.put(t, id, secret("a", "new"))
	if got := get(t, v, "a"); got != "new" {
		t.Fatalf("control: Get = %q", got)
	}
	for k, stored := range old {
		if !bytes.Equal(h.mem.ids[id].vals[k], stored) {
			h.mem.ids[id].vals[k] = stored
		}
	}
	s, err := v.Get(t.Context(), "a", "")
	wantWord(t, "Get of a replayed record", err, vault.Unavailable)
	if s.Reveal() != "" {
		t.Error("a replayed value was served")
	}
	if _, err := h.Revoke(t.Context(), id, vault.Revocation{}); err != nil {
		t.Errorf("damaged records stand in the way of Revoke: %v", err)
	}
	_, err = server.Unlock(t.Context(), key, stdio)
	wantWord(t, "Unlock after Revoke", err, vault.Revoked)
}

func TestLargeVaultsAreComparedToo(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	var es []vault.NewEntry
	for i := range 1200 {
		es = append(es, secret(fmt.Sprintf("l%04d", i), "v"))
	}
	if _, err := h.Import(t.Context(), id, es, false); err != nil {
		t.Fatal(err)
	}
	for k := range h.mem.ids[id].vals {
		delete(h.mem.ids[id].vals, k)
		break
	}
	next := h.keeper(h.mem)
	_, err := next.Unlock(t.Context(), key, stdio)
	wantWord(t, "Unlock", err, vault.Unavailable)
	wantProblem(t, next, "a removed record")
	_, err = next.Unlock(t.Context(), identity.NewKey(identity.Agent, id), stdio)
	wantWord(t, "a stranger at a damaged identity", err, vault.Unauthorized)
}

// Lines are cut out of the log so that a receipt says a value was never read.
func TestReceiptOverACutLogIsNotComplete(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	get(t, unlock(t, h.Keeper, key), "a")
	h.put(t, key.Identity(), secret("b", "1"))
	h.mem.lines = slices.DeleteFunc(h.mem.lines, func(l []byte) bool { return bytes.Contains(l, []byte(`"ev":"get"`)) })
	r, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Audit.Complete {
		t.Error("the receipt claims a complete log")
	}
}

func TestFloodOfStrangersStopsNobody(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	v := unlock(t, h.Keeper, key)
	for i := range 1000 {
		_, err := h.Unlock(t.Context(), identity.NewKey(identity.Agent, key.Identity()), vault.Source{Via: "http", Addr: fmt.Sprint("198.51.100.", i)})
		wantWord(t, "a stranger", err, vault.Unauthorized)
	}
	h.clock = h.clock.Add(time.Minute)
	get(t, v, "a")
	counted := 0
	for _, r := range h.records(t) {
		if r.Event == "auth" {
			counted += r.N
		}
	}
	if counted != 1000 {
		t.Errorf("%d strangers counted, want 1000", counted)
	}
}

// The disk is full for an hour, agents go on calling, and strangers come from
// a new address each time, as who has an IPv6 network can. Lines about them
// that could not be written came back beside those of the meantime, until they
// were more than one write of the log takes: from then on no line of anybody
// could be written, and nothing was given out until the process was restarted.
// What strangers add to a write stays bounded, and is counted whole.
func TestFloodOfStrangersWhileTheLogIsFull(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	v := unlock(t, h.Keeper, key)
	h.mem.appendErr = errors.New("no space left")
	const rounds, each = 50, 40
	round := 0
	h.mem.appendHook = func() { // while a line waits for the disk, more come
		for i := range each {
			_, err := h.Unlock(t.Context(), identity.NewKey(identity.Agent, key.Identity()), vault.Source{Via: "http", Addr: fmt.Sprintf("2001:db8:%x:%x::1", round, i)})
			wantWord(t, "a stranger", err, vault.Unauthorized)
		}
	}
	for ; round < rounds; round++ {
		h.clock = h.clock.Add(time.Minute)
		_, err := v.Get(t.Context(), "a", "")
		wantWord(t, "Get", err, vault.AuditUnavailable)
	}
	h.mem.appendHook = nil
	h.mem.appendErr = nil
	h.clock = h.clock.Add(time.Minute)
	get(t, v, "a")
	lines, counted := 0, 0
	for _, r := range h.records(t) {
		if r.Event == "auth" {
			lines++
			counted += r.N
		}
	}
	if counted != rounds*each || lines > 33 {
		t.Errorf("%d strangers in %d lines, want %d in at most 33", counted, lines, rounds*each)
	}
}

// An erased row is forged in the cell file. Without the line of a shred
// nothing may be deleted.
func TestForgedErasureDeletesNothing(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("a", "1"))
	cell := h.mem.cells[id]
	h.mem.dead[id] = true
	next := h.keeper(h.mem)
	infos, err := next.Identities(t.Context())
	if err != nil || !infos[0].Damaged {
		t.Errorf("Identities = %+v, %v; want it damaged", infos, err)
	}
	delete(h.mem.dead, id)
	h.mem.cells[id] = cell
	if got := get(t, unlock(t, h.keeper(h.mem), key), "a"); got != "1" {
		t.Errorf("after the cell is back: %q", got)
	}
}

func TestDamagedEpochCanBeShredded(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.mem.ids[id].meta[7] ^= 4
	next := h.keeper(h.mem)
	_, err := next.Unlock(context.Background(), key, stdio)
	wantWord(t, "Unlock", err, vault.Unavailable)
	if _, err := next.Revoke(t.Context(), id, vault.Revocation{Shred: true}); err != nil {
		t.Errorf("Revoke with shred = %v", err)
	}
	if !h.mem.dead[id] {
		t.Error("the cell is alive")
	}
}

// A record is removed underneath a running process that only lists.
func TestListOfARunningProcessIsCompared(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	id := key.Identity()
	h.put(t, id, secret("a", "1"), secret("b", "2"))
	v := unlock(t, h.Keeper, key)
	if ls, err := v.Labels(t.Context(), ""); err != nil || len(ls) != 2 {
		t.Fatalf("control: Labels = %v, %v", ls, err)
	}
	for k := range h.mem.ids[id].vals {
		delete(h.mem.ids[id].vals, k)
		break
	}
	_, err := v.Labels(t.Context(), "")
	wantWord(t, "Labels without a record", err, vault.Unavailable)
	r, err := h.Revoke(t.Context(), id, vault.Revocation{})
	if err != nil || r.Audit.Complete || r.Counts.Labels != 1 {
		t.Errorf("Revoke = %+v, %v; want an incomplete receipt over what is left", r.Counts, err)
	}
}

// The lines that made an identity are cut, those that read it are not, and
// the identity is gone.
func TestLogOfALostIdentityIsVerified(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	v := unlock(t, h.Keeper, key)
	for range 2 {
		_, _ = v.Labels(t.Context(), "")
	}
	h.mem.lines = slices.DeleteFunc(h.mem.lines, func(l []byte) bool { return bytes.Contains(l, []byte(`"ev":"create"`)) })
	delete(h.mem.ids, key.Identity())
	wantProblem(t, h.keeper(h.mem), "an identity that is gone")
}

func TestFieldsThatNameSeedsNeverLeave(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), vault.NewEntry{Label: "a", Kind: vault.KindLogin, Fields: []vault.Field{{Name: "value", Value: []byte("pw")}, {Name: "seed", Value: []byte("CANARY")}}})
	s, err := unlock(t, h.Keeper, key).Get(t.Context(), "a", "seed")
	wantWord(t, "Get of a seed field", err, vault.NotFound)
	if s.Reveal() != "" {
		t.Error("the seed left")
	}
}

// The attack: whoever can write one line into the log, chained as it should
// be, keeps every later backup from being restored, or leaves the restored
// header no generation. Such a line is where the log is broken; the store comes
// back, and verification says so.
func TestHostileLineStopsNoRestore(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "a", identity.Grant{})
	h.put(t, key.Identity(), secret("x", "value"))
	begin := `"v":1,"t":"2026-11-23T14:05:32.000000Z","ev":"get","res":"allow","id":"` + key.Identity().String() + `","key":"00000000"`
	for name, body := range map[string]string{
		"a long line":           begin + `,"note":"` + strings.Repeat("x", storage.MaxBody) + `"}`,
		"a blank in it":         " " + begin + "}",
		"a second end":          begin + "}}",
		"the last generation":   begin + `,"gen":18446744073709551615}`,
		"the one before":        begin + `,"gen":18446744073709551614}`,
		"control: nothing odd ": begin + `,"gen":2}`,
	} {
		t.Run(name, func(t *testing.T) {
			kept := h.mem.lines
			defer func() { h.mem.lines = kept }()
			prev := sha256.Sum256(kept[len(kept)-1])
			line := fmt.Appendf(nil, `{"seq":%d,"prev":"%x",%s`, len(kept), prev, body)
			h.mem.lines = append(slices.Clone(kept), line)
			to, _ := h.restore(t, h.backup(t), nil)
			if got := word(to.Keeper, key, "x"); got != "value" {
				t.Errorf("the restored key hears %q", got)
			}
			if _, err := to.Put(t.Context(), key.Identity(), secret("y", "z")); err != nil {
				t.Errorf("Put: %v", err)
			}
			rep, err := to.VerifyAudit(t.Context())
			if odd := !strings.HasPrefix(name, "control"); err != nil || odd == rep.OK() {
				t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
			}
		})
	}
}
