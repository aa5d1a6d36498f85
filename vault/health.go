package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// Check is one finding of [Keeper.Health].
type Check struct {
	OK      bool
	Subject string // store, audit, or identity NAME
	Detail  string
	Try     string // a command that helps; empty if there is none
}

// TryRepair is the command that helps against most damage, if there is a
// backup.
const TryRepair = "solekey doctor --repair BACKUP"

// Health checks everything that can be checked without a key of an identity:
// root material and store record, every header and cell, every set-hash, the
// outer lock of every entry, and the audit log. It goes on past what is
// broken. The error is for a store that cannot be reached at all.
func (k *Keeper) Health(ctx context.Context) ([]Check, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	out := []Check{{OK: true, Subject: "root", Detail: "opens the store record"}}
	if st.record.Rotating || st.root.Oldest() != st.root.Epoch() {
		out[0] = Check{Subject: "root", Detail: "opens the store record; a rotation of the root key is not finished", Try: "solekey root rotate"}
	}
	ids, err := k.healthIdentities(ctx)
	out = append(out, ids...)
	if err != nil {
		return out, err
	}
	return append(out, k.healthAudit(ctx)...), nil
}

func (k *Keeper) healthIdentities(ctx context.Context) ([]Check, error) {
	var out []Check
	var after identity.ID
	n, labels := 0, 0
	for {
		page, err := k.backend.Identities(ctx, after, pageSize)
		if err != nil {
			return out, fmt.Errorf("listing identities: %w", err)
		}
		for _, it := range page {
			after = it.ID
			found, c := k.healthOne(ctx, it.ID)
			n, labels = n+1, labels+found
			if c != nil {
				out = append(out, *c)
			}
		}
		if len(page) < pageSize {
			break
		}
	}
	return append(out, Check{OK: len(out) == 0, Subject: "vaults", Detail: fmt.Sprintf("%d identities, %d labels opened to the outer lock", n, labels)}), nil
}

func (k *Keeper) healthOne(ctx context.Context, id identity.ID) (labels int, c *Check) {
	broken := func(what string) *Check {
		return &Check{Subject: "identity " + id.String(), Detail: what + "; it is not served, the others are", Try: TryRepair}
	}
	w, es, err := k.listing(ctx, id, nil)
	if err != nil {
		if errors.Is(err, storage.ErrDamaged) {
			return 0, broken("does not open as it was sealed")
		}
		return 0, broken(Refuse(err).Message)
	}
	defer w.wipe()
	if w.head == nil {
		return 0, nil
	}
	if w.replaced() || !w.replaces().IsZero() {
		c = &Check{Subject: "identity " + w.head.Name, Detail: "its key leaked, and its rotation is not finished", Try: "solekey identity rotate " + w.head.Name + " --leaked"}
	}
	if _, _, err := k.setMatches(ctx, w, nil); err != nil {
		return 0, broken("has records that were removed, added or rolled back")
	}
	for _, e := range es {
		if e.Form != formNone {
			labels++
		}
	}
	return labels, c
}

func (k *Keeper) healthAudit(ctx context.Context) []Check {
	rep, err := k.VerifyAuditAgainst(ctx, Outside{From: audit.AnyFirst})
	if err != nil {
		return []Check{{Subject: "audit", Detail: Refuse(err).Message, Try: TryRepair + "     (or put audit.jsonl back from a copy)"}}
	}
	var out []Check
	for _, p := range rep.Problems {
		try := TryRepair + "     (solekey audit verify shows all of it)"
		if strings.Contains(p.Text, storage.NoteGap) || strings.Contains(p.Text, "the mark of its end") {
			try = "solekey audit verify --checkpoint FILE     (nothing brings it back; a checkpoint that was kept tells what was cut)"
		}
		out = append(out, Check{Subject: "audit", Detail: p.String(), Try: try})
	}
	if err := k.writable(ctx); err != nil {
		out = append(out, Check{Subject: "audit", Detail: "the log cannot be written, so no secret is given out", Try: "free space on the disk, or make audit.jsonl writable for its owner"})
	}
	if len(out) == 0 {
		detail := fmt.Sprintf("%d records, no gap", rep.Lines)
		if rep.First > 0 {
			detail += fmt.Sprintf(", from line %d on: the files before it are not here", rep.First+1)
		}
		out = append(out, Check{OK: true, Subject: "audit", Detail: detail})
	}
	return out
}

// writable proves that the log takes a line, by writing one.
func (k *Keeper) writable(ctx context.Context) error {
	return k.append(ctx, audit.Record{Time: k.now(), Event: audit.Note, Key: audit.Owner, Via: "cli", Note: "doctor"})
}
