package vault_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// The attack: who holds the root key signs another receipt, in which what must
// be rotated needs no rotation. The count from the log finds each.
func TestResignedReceiptIsFound(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"), secret("b", "2"), secret("c", "3"))
	second, err := h.Rotate(t.Context(), key.Identity(), key, vault.Rotation{}) // an earlier line that closes a key
	if err != nil {
		t.Fatal(err)
	}
	early := h.mem.lines[len(h.mem.lines)-1]
	earlyAt := uint64(len(h.mem.lines) - 1)
	get(t, unlock(t, h.Keeper, second), "a")
	get(t, unlock(t, h.Keeper, second), "b")
	r, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{})
	if err != nil || len(r.Revealed) != 2 {
		t.Fatalf("Revoke = %+v, %v", r, err)
	}
	if err := h.Recount(t.Context(), r); err != nil {
		t.Fatalf("control: Recount = %v", err)
	}
	for name, edit := range map[string]func(*vault.Receipt){
		"a value that is called a code": func(r *vault.Receipt) {
			r.Codes, r.Revealed = r.Revealed[:1:1], r.Revealed[1:]
			r.Counts.Codes, r.Counts.Revealed = 1, 1
		},
		"one label twice in place of another": func(r *vault.Receipt) {
			r.Revealed = []vault.ReceiptLabel{r.Revealed[0], r.Revealed[0]}
		},
		"labels that nobody counted": func(r *vault.Receipt) { r.Counts.Untouched++ },
		"an end before the readings": func(r *vault.Receipt) {
			r.Revealed, r.Counts.Revealed, r.Counts.Untouched = nil, 0, 3
			r.Audit.To, r.Audit.Head = earlyAt, fmt.Sprintf("%x", sha256.Sum256(early))
		},
	} {
		bad := r
		edit(&bad)
		if err := h.Recount(t.Context(), bad); !errors.Is(err, vault.ErrMiscounted) {
			t.Errorf("%s: Recount = %v", name, err)
		}
	}
}

// A receipt whose lines were moved away accuses nobody: it cannot be counted
// again until the files are back.
func TestReceiptOverMovedAwayFilesIsNotWrong(t *testing.T) {
	s := newSite(t)
	s.reads(t, 25, 1500)
	k := s.open(t, 1500)
	defer k.Close()
	r, err := k.Revoke(t.Context(), s.id, vault.Revocation{})
	if err != nil || k.Recount(t.Context(), r) != nil {
		t.Fatalf("control: %v, Recount = %v", err, k.Recount(t.Context(), r))
	}
	away := t.TempDir()
	files, err := filepath.Glob(filepath.Join(s.dir, "audit-*.jsonl"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%d earlier files, %v", len(files), err)
	}
	move := func(from, to string) {
		t.Helper()
		for _, f := range files {
			if err := os.Rename(filepath.Join(from, filepath.Base(f)), filepath.Join(to, filepath.Base(f))); err != nil {
				t.Fatal(err)
			}
		}
	}
	move(s.dir, away)
	if err := k.Recount(t.Context(), r); !errors.Is(err, vault.ErrUncountable) || errors.Is(err, vault.ErrMiscounted) {
		t.Errorf("Recount without the first files = %v", err)
	}
	move(away, s.dir)
	if err := k.Recount(t.Context(), r); err != nil {
		t.Errorf("Recount with them back = %v", err)
	}
}

// What was read between the backup and the loss is in no line of a store that
// was restored without a ledger: its receipts must not call such a value
// untouched by a complete log.
func TestReceiptAfterALossyRestoreIsNotComplete(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", "1"))
	file := h.backup(t)
	get(t, unlock(t, h.Keeper, key), "a") // in the ledger only

	without, _ := h.restore(t, file, nil)
	with, _ := h.restore(t, file, h.ledger())
	twice, _ := without.restore(t, without.backup(t), without.ledger())
	for name, c := range map[string]struct {
		h                  *house
		complete, revealed bool
	}{"with the ledger": {with, true, true}, "without": {without, false, false}, "restored again": {twice, false, false}} {
		late := c.h.create(t, "late", identity.Grant{})
		r, err := c.h.Revoke(t.Context(), key.Identity(), vault.Revocation{})
		if err != nil || r.Audit.Complete != c.complete || (len(r.Revealed) == 1) != c.revealed {
			t.Errorf("%s: complete %v, %d revealed, %v", name, r.Audit.Complete, len(r.Revealed), err)
		}
		if err := c.h.Recount(t.Context(), r); err != nil {
			t.Errorf("%s: Recount = %v", name, err)
		}
		if r, err = c.h.Revoke(t.Context(), late.Identity(), vault.Revocation{}); err != nil || !r.Audit.Complete {
			t.Errorf("%s: the receipt of a younger identity is not complete: %v", name, err)
		}
	}
}
