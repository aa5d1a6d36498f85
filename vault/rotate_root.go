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

// RootRotation says what a rotation of the root secret did.
type RootRotation struct {
	Epoch    uint32 // in force
	Resumed  bool   // an interrupted rotation was finished; nothing else was begun
	Resealed int    // identities, shredded ones included, by this run
	// Left are identities that do not open, so that they cannot be resealed.
	// While there are any, the older root secret stays at its source.
	Left []identity.ID
}

// RotateRoot gives the store a new root secret, while it is served: every
// header and tombstone is sealed anew, records stay as they are. keep puts
// root material to its source; the root function of every process reads it
// there. It is called with both epochs before anything is sealed under the
// new one, and with the new one alone after a full listing found nothing of
// the older. A process that meets an epoch it does not know reads root text
// again, so none has to be told.
//
// A rotation that was cut off is finished by the next RotateRoot, which then
// begins no other. The caller sees to it that one runs at a time. It needs no
// key of an identity.
func (k *Keeper) RotateRoot(ctx context.Context, keep func(Root) error) (RootRotation, error) {
	st, err := k.reopen(ctx)
	if err != nil {
		return RootRotation{}, err
	}
	out := RootRotation{Resumed: st.record.Rotating || st.root.Oldest() != st.root.Epoch()}
	if !out.Resumed {
		if st, err = k.nextRoot(ctx, st, keep); err != nil {
			return out, err
		}
	}
	out.Epoch = st.root.Epoch()
	if err := k.markRotating(ctx, st, true); err != nil {
		return out, err
	}
	for more := true; more; {
		more, err = k.resealAll(ctx, st, &out)
		if err != nil {
			return out, err
		}
	}
	if len(out.Left) > 0 {
		return out, refuse(Unavailable, fmt.Sprintf("%d identities do not open, so the older root secret stays until they are restored or shredded; all others have the new one.", len(out.Left)), "solekey doctor")
	}
	if err := k.markRotating(ctx, st, false); err != nil {
		return out, err
	}
	if err := keep(rootOf(st.root.Newest())); err != nil {
		return out, fmt.Errorf("removing the older root secret: %w", err)
	}
	_, err = k.reopen(ctx)
	return out, err
}

// reopen reads store record and root material again, whatever is known.
func (k *Keeper) reopen(ctx context.Context) (*store, error) {
	st, err := k.readStore(ctx)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.store = st
	k.mu.Unlock()
	return st, nil
}

var errRootNotKept = refuse(Unavailable, "The new root secret is not where this store's root secret is read from, so nothing was sealed under it.", "solekey doctor")

// nextRoot makes the root secret of the next epoch, puts it to its source and
// reads it back from there: only what came back is sealed under.
func (k *Keeper) nextRoot(ctx context.Context, st *store, keep func(Root) error) (*store, error) {
	next := st.root.Next()
	if err := keep(rootOf(next)); err != nil {
		return nil, fmt.Errorf("storing the new root secret: %w", err)
	}
	again, err := k.reopen(ctx)
	if err != nil {
		return nil, err
	}
	if !again.root.Same(next) {
		return nil, errRootNotKept
	}
	return again, nil
}

// markRotating writes the store record under the newest epoch, with the flag
// of a rotation set or cleared.
func (k *Keeper) markRotating(ctx context.Context, st *store, on bool) error {
	res, err := k.backend.Get(ctx, identity.ID{})
	if err != nil {
		return fmt.Errorf("reading store record: %w", err)
	}
	rec, err := st.OpenStoreRecord(res.Meta)
	if err != nil {
		return fmt.Errorf("opening store record: %w", err)
	}
	_, epoch, err := seal.Peek(res.Meta)
	if err != nil || epoch == st.root.Epoch() && rec.Rotating == on {
		return err
	}
	rec.Gen++
	rec.Rotating = on
	meta, err := st.SealStoreRecord(rec)
	if err != nil {
		return fmt.Errorf("sealing store record: %w", err)
	}
	note := fmt.Sprintf("epoch %d begins", st.root.Epoch())
	if !on {
		note = fmt.Sprintf("epoch %d in force", st.root.Epoch())
	}
	if err := k.append(ctx, audit.Record{Time: k.now(), Event: audit.RootRotate, Key: audit.Owner, Via: "cli", Note: note}); err != nil {
		return err
	}
	w := &view{}
	if w.rev, err = k.backend.Commit(ctx, w.id, res.Rev, storage.Batch{Meta: meta}); err != nil {
		return fmt.Errorf("writing store record: %w", err)
	}
	return k.settle(ctx, w)
}

// resealAll lists every identity and reseals what has an older epoch. It
// reports whether it found any that could be resealed.
func (k *Keeper) resealAll(ctx context.Context, st *store, out *RootRotation) (found bool, err error) {
	metas, err := k.metas(ctx)
	if err != nil {
		return false, err
	}
	out.Left = nil
	for _, it := range metas {
		_, epoch, err := seal.Peek(it.Meta)
		if err == nil && epoch == st.root.Epoch() {
			continue
		}
		err = k.reseal(ctx, st, it.ID)
		switch {
		case errors.Is(err, storage.ErrDamaged):
			out.Left = append(out.Left, it.ID)
		case err != nil:
			return found, err
		default:
			found = true
			out.Resealed++
		}
	}
	return found, nil
}

func (k *Keeper) reseal(ctx context.Context, st *store, id identity.ID) error {
	for try := 0; ; try++ {
		err := k.resealOnce(ctx, st, id)
		if !errors.Is(err, storage.ErrConflict) || try == 15 {
			return err
		}
	}
}

// resealOnce seals header or tombstone of an identity under the newest epoch.
// Damaged records do not stand in the way: they are not touched.
func (k *Keeper) resealOnce(ctx context.Context, st *store, id identity.ID) error {
	w, err := k.load(ctx, id)
	if err != nil {
		return err
	}
	defer w.wipe()
	if _, epoch, err := seal.Peek(w.meta); err != nil || epoch == st.root.Epoch() {
		return err
	}
	w.st = st
	c := change{event: audit.RootRotate}
	rec := c.record(id, k.now())
	b, recs, err := k.sealAgain(w, &c, &rec)
	if err != nil {
		return err
	}
	if err := k.append(ctx, append(recs, rec)...); err != nil {
		return err
	}
	if w.rev, err = k.backend.Commit(ctx, id, w.rev, b); err != nil {
		return err
	}
	return k.settle(ctx, w)
}

// sealAgain returns the commit that reseals w, and the lines that w owes.
func (k *Keeper) sealAgain(w *view, c *change, rec *audit.Record) (storage.Batch, []audit.Record, error) {
	recs := owed(w, k.now())
	if w.tomb != nil {
		w.tomb.AuditOwed = false
		meta, err := w.st.SealTombstone(w.id, *w.tomb)
		if err != nil {
			return storage.Batch{}, nil, fmt.Errorf("sealing tombstone: %w", err)
		}
		rec.Was, rec.Is = w.hash(), metaHash(meta)
		return storage.Batch{Meta: meta}, recs, nil
	}
	if len(recs) > 0 {
		recs[0].Gen = w.head.Gen
	}
	w.head.Flags &^= seal.FlagAuditOwed
	b, err := k.seal(w, c, rec)
	return b, recs, err
}
