package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// pass is the one gate between a key and a value: load, judge, append,
// release. open, if not nil, opens what was granted, inside; nothing of it
// may leave before pass returns nil. A refusal walks the same path and leaves
// its line.
func (v *Vault) pass(ctx context.Context, a ask, keys []string, open func(*view, ruling, *audit.Record) (*storage.Batch, error)) (*view, ruling, error) {
	w, r, err := v.rule(ctx, a, keys...)
	if err != nil {
		return nil, ruling{}, err
	}
	rec := v.record(w, r, a)
	var absorb *storage.Batch
	if r.refusal == nil && open != nil {
		if absorb, err = open(w, r, &rec); err != nil {
			r.refusal = Refuse(err)
		}
	}
	if err := v.append(ctx, r, rec); err != nil {
		return nil, ruling{}, err
	}
	if r.refusal != nil {
		return w, r, r.refusal
	}
	return w, r, v.release(ctx, w, a, absorb)
}

// rule loads and judges. Only a key that has proved itself makes the call
// compare records with the set-hash.
func (v *Vault) rule(ctx context.Context, a ask, keys ...string) (*view, ruling, error) {
	for try := 0; ; try++ {
		w, err := v.keeper.load(ctx, v.key.Identity(), keys...)
		if err != nil {
			return nil, ruling{}, err
		}
		r := judge(w, v.key, a, v.keeper.now())
		if r.slot == nil {
			return w, r, nil
		}
		err = v.keeper.checkSet(ctx, w)
		if err == nil {
			return w, r, nil
		}
		w.wipe()
		if !errors.Is(err, storage.ErrConflict) || try == 15 {
			return nil, ruling{}, err
		}
	}
}

// release is the last step of the gate: nobody closed the key while the line
// was written. So a value leaves only if its line is older than the commit of
// a revocation, and the receipt of that one knows it. The commit that absorbs
// a value proves it by the way; one that fails is made by the next read.
func (v *Vault) release(ctx context.Context, w *view, a ask, absorb *storage.Batch) error {
	if absorb != nil {
		if _, err := v.keeper.backend.Commit(ctx, w.id, w.rev, *absorb); err == nil {
			v.keeper.committed(w, absorb.Ops)
			return nil
		}
		v.keeper.log.Debug("a value stays in the mailbox until its next read")
	}
	res, err := v.keeper.backend.Get(ctx, w.id)
	if err != nil {
		return fmt.Errorf("reading identity again: %w", err)
	}
	if res.Rev == w.rev {
		return nil
	}
	again, err := v.keeper.load(ctx, w.id)
	if err != nil {
		return err
	}
	defer again.wipe()
	a.label = ""
	if r := judge(again, v.key, a, v.keeper.now()); r.refusal != nil {
		if err := v.append(ctx, r, v.record(again, r, a)); err != nil {
			return err
		}
		return r.refusal
	}
	return nil
}

// append writes the line of an attempt. A key that proves nothing is counted
// and nobody waits for it.
func (v *Vault) append(ctx context.Context, r ruling, rec audit.Record) error {
	if r.slot == nil {
		v.keeper.strangers.count(v.from)
		return nil
	}
	if r.refusal != nil {
		rec.Denied, rec.Why = true, string(r.refusal.Word)
		rec.Was, rec.Is = audit.Hash{}, audit.Hash{}
	}
	return v.keeper.append(ctx, rec)
}

// record begins the line of an attempt.
func (v *Vault) record(w *view, r ruling, a ask) audit.Record {
	rec := audit.Record{
		Time: v.keeper.now(), Event: a.event, Identity: v.key.Identity(), Key: v.key.Slot().String(),
		Via: v.from.Via, From: v.from.Addr,
	}
	if w.head != nil {
		rec.Gen = w.head.Gen
	}
	if a.label != "" {
		ref := audit.Ref{Tag: a.tag}
		if r.entry != nil {
			ref.Version = r.entry.Version
			rec.Class = exposureOf(r.entry).String()
		}
		rec.Labels = []audit.Ref{ref}
	}
	return rec
}

// unwrap opens the inner lock of the slot with the key. Wipe what it returns.
func unwrap(w *view, slot *seal.Slot, key identity.Key) (*seal.Inner, error) {
	var in *seal.Inner
	var err error
	seal.Do(func() {
		in, err = seal.Unwrap(w.st.ID(), w.id, key, w.head.PK, slot.Wrapped)
	})
	if err != nil {
		return nil, errDamaged
	}
	return in, nil
}

// fields opens the value of an entry. Wipe what it returns.
func (w *view) fields(in *seal.Inner, e *seal.Entry) ([]seal.Field, error) {
	var fields []seal.Field
	var err error
	seal.Do(func() {
		fields, err = in.Open(w.bind(e.Label, e.Version, e.Kind, e.Exposure), e.Form, e.Inner)
	})
	if err != nil {
		return nil, errDamaged
	}
	return fields, nil
}

func wipe(fields []seal.Field) {
	for i := range fields {
		clear(fields[i].Value)
	}
}
