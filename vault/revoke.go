package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// Revocation says what is closed.
type Revocation struct {
	Slots  []identity.SlotID // none: all of them, and the identity is revoked
	Shred  bool              // destroy the vault for ever; not with Slots
	Reason string            // for the receipt; never in the log
	// Keep stores the receipt. It is called once the keys are closed and,
	// with Shred, before anything is erased, because afterwards not even
	// labels can be read. Its error does not stop the shred; Revoke returns
	// it at the end.
	Keep func(Receipt) error
}

// Revoke closes keys. Once it has returned, every call that starts later with
// such a key is refused in every process; the commit is settled, so that
// damage cannot undo it. It needs no key of the identity, and goes on when
// the audit log cannot be written: the header then owes the line.
//
// With Shred it also overwrites the cell of the identity, so that no copy of
// the database opens again. The receipt names what the closed keys were
// given.
func (k *Keeper) Revoke(ctx context.Context, id identity.ID, r Revocation) (Receipt, error) {
	if r.Shred && len(r.Slots) > 0 {
		return Receipt{}, refuse(BadRequest, "A single key is revoked, not shredded.", "")
	}
	// A shred is two commits, so that a process which meets the pending shred
	// may finish it at any moment, and the receipt is there by then.
	closing := Revocation{Slots: r.Slots}
	var es []*seal.Entry
	var listed error
	w, err := k.update(ctx, id, nil, true, func(w *view, c *change) error {
		if es, listed = k.entries(ctx, w); errors.Is(listed, storage.ErrConflict) {
			return listed
		}
		return closing.apply(w, c)
	})
	if errors.Is(err, storage.ErrDamaged) && r.Shred {
		return k.shredDamaged(ctx, id, r)
	}
	defer w.wipe()
	if err != nil {
		return Receipt{}, err
	}
	if err := k.settle(ctx, w); err != nil {
		return Receipt{}, err
	}
	receipt := k.receipt(ctx, w, es, r)
	receipt.Audit.Complete = receipt.Audit.Complete && listed == nil
	receipt.sign(w.st)
	var keepErr error
	if r.Keep != nil {
		keepErr = r.Keep(receipt)
	}
	if r.Shred {
		heirs := w.replaced()
		if err := k.shred(ctx, id, nil); err != nil {
			return receipt, err
		}
		if heirs { // of a replacement that goes no further
			if _, err := k.discardHeirs(ctx, id); err != nil {
				return receipt, err
			}
		}
	}
	if keepErr != nil {
		return receipt, fmt.Errorf("keeping the receipt: %w", keepErr)
	}
	return receipt, nil
}

// apply closes slots in the header. What is closed already is left alone,
// unless its line is still owed: revoking again pays it.
func (r Revocation) apply(w *view, c *change) error {
	h := w.head
	if len(r.Slots) == 0 {
		c.event = audit.Revoke
		if r.Shred {
			c.event = audit.Shred
			h.Flags |= seal.FlagShredPending
		}
		if h.State == seal.StateRevoked && !r.Shred && h.Flags&seal.FlagAuditOwed == 0 && !w.opens() {
			return errNothing
		}
		for i := range h.Slots {
			closeSlot(&h.Slots[i])
		}
		h.State = seal.StateRevoked
		return nil
	}
	c.event = audit.KeyRevoke
	closed := 0
	for _, id := range r.Slots {
		i := slices.IndexFunc(h.Slots, func(s seal.Slot) bool { return s.ID == id })
		if i < 0 {
			return refuse(NotFound, "There is no such key.", "solekey key list NAME")
		}
		c.slot = id.String()
		if h.Slots[i].State == seal.SlotLive {
			closeSlot(&h.Slots[i])
			closed++
		}
	}
	if closed == 0 {
		return errNothing
	}
	return nil
}

// shred destroys the vault of an identity: intent in its header, settled, then
// the cell, then the tombstone. check, if not nil, judges the identity at the
// first commit.
func (k *Keeper) shred(ctx context.Context, id identity.ID, check func(*view) error) error {
	w, err := k.update(ctx, id, nil, true, func(w *view, c *change) error {
		if check != nil {
			if err := check(w); err != nil {
				return err
			}
		}
		return Revocation{Shred: true}.apply(w, c)
	})
	defer w.wipe()
	if errors.Is(err, errShredded) {
		return nil // by another process
	}
	if err != nil {
		return err
	}
	if err := k.settle(ctx, w); err != nil {
		return err
	}
	return k.finishShred(ctx, w)
}

// finishShred buries an identity whose header says shred pending, then erases
// its cell. The tombstone comes first, while the header can be read, so that
// former holders hear revoked wherever the shred is cut off; who meets a
// tombstone beside a cell erases that. A tombstone that cannot be written does
// not stand in the way of the erasure.
func (k *Keeper) finishShred(ctx context.Context, w *view) error {
	unburied := k.bury(ctx, w)
	if err := k.erase(ctx, w.id); err != nil {
		return err
	}
	return unburied
}

func (k *Keeper) erase(ctx context.Context, id identity.ID) error {
	if err := k.backend.EraseCell(ctx, id); err != nil {
		return fmt.Errorf("erasing the cell: %w", err)
	}
	return nil
}

// bury replaces header and records of an identity by a tombstone. The tombstone remembers the slots, so that former holders hear
// revoked; it remembers none if the header was unreadable by then.
func (k *Keeper) bury(ctx context.Context, w *view) error {
	tomb := seal.Tombstone{Shredded: millis(k.now())}
	if w.head != nil {
		tomb.AuditOwed = w.head.Flags&seal.FlagAuditOwed != 0
		for _, s := range w.head.Slots {
			tomb.Slots = append(tomb.Slots, seal.DeadSlot{ID: s.ID, AuthHash: s.AuthHash})
		}
	}
	again := func(st *store) ([]byte, uint64, error) {
		meta, err := st.SealTombstone(w.id, tomb)
		if err != nil {
			return nil, 0, fmt.Errorf("sealing tombstone: %w", err)
		}
		return meta, 0, nil
	}
	meta, _, err := again(w.st)
	if err != nil {
		return err
	}
	for range 16 {
		b := storage.Batch{Meta: meta}
		if b.Ops, err = k.deletions(ctx, w.id); err != nil {
			return err
		}
		res, err := k.backend.Get(ctx, w.id)
		if err != nil {
			return fmt.Errorf("reading identity: %w", err)
		}
		if typ, _, err := seal.Peek(res.Meta); err == nil && typ == seal.TypeTombstone {
			break // another process buried it
		}
		w.rev, err = k.backend.Commit(ctx, w.id, res.Rev, b)
		if errors.Is(err, storage.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("writing tombstone: %w", err)
		}
		if err := k.settle(ctx, w); err != nil {
			return err
		}
		if err := k.overtake(ctx, w.id, sealed{st: w.st, rev: w.rev, meta: meta, again: again}); err != nil {
			return err
		}
		break
	}
	w.head, w.tomb, w.meta, w.vals = nil, &tomb, meta, nil
	return nil
}

// deletions deletes every record of an identity.
func (k *Keeper) deletions(ctx context.Context, id identity.ID) ([]storage.Op, error) {
	var ops []storage.Op
	after := ""
	for {
		page, err := k.backend.List(ctx, id, after, pageSize)
		if err != nil {
			return nil, fmt.Errorf("listing records: %w", err)
		}
		for _, it := range page.Items {
			ops = append(ops, storage.Op{Key: it.Key})
			after = it.Key
		}
		if !page.More {
			return ops, nil
		}
	}
}

// shredDamaged shreds an identity whose header does not open: the erased cell
// is the intent, the tombstone follows. What its keys were given is not known
// by name any more.
func (k *Keeper) shredDamaged(ctx context.Context, id identity.ID, r Revocation) (Receipt, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return Receipt{}, err
	}
	rec := audit.Record{Time: k.now(), Event: audit.Shred, Identity: id, Key: audit.Owner, Via: "cli"}
	logErr := k.append(ctx, rec)
	if err := k.erase(ctx, id); err != nil {
		return Receipt{}, err
	}
	if err := k.bury(ctx, &view{id: id, st: st}); err != nil {
		return Receipt{}, err
	}
	receipt := Receipt{Format: receiptFormat, Store: st.ID().String()[:8], Identity: ReceiptIdentity{ID: id.String()}, Action: "shred", Reason: r.Reason, EffectiveAt: k.now().UTC(), Erasure: k.backend.Erasure().String()}
	receipt.sign(st)
	if r.Keep != nil {
		if err := r.Keep(receipt); err != nil {
			return receipt, fmt.Errorf("keeping the receipt: %w", err)
		}
	}
	if logErr != nil {
		return receipt, fmt.Errorf("the vault is shredded, but %w", logErr)
	}
	return receipt, nil
}
