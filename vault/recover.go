package vault

import (
	"context"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

// Recover gives an identity a new key by the recovery key of the store. It
// serves an active identity whose keys are lost, and brings a revoked one
// back; what was shredded stays so. Of a revoked identity every older key
// stays closed. Of an active one the other keys go on, since who holds them
// is not known here.
//
// It takes nothing back: what the receipt of the revocation names was given
// out all the same.
func (k *Keeper) Recover(ctx context.Context, id identity.ID, recovery identity.Key, g identity.Grant) (identity.Key, error) {
	if g.Scopes == 0 {
		g.Scopes = identity.DefaultScopes
	}
	if err := checkGrant(g); err != nil {
		return identity.Key{}, err
	}
	key := identity.NewKey(identity.Agent, id)
	w, err := k.update(ctx, id, nil, false, func(w *view, c *change) error {
		if w.replaced() || w.pending() {
			return errReplaced
		}
		inner, err := w.recover(recovery)
		if err != nil {
			return err
		}
		defer inner.Wipe()
		made, err := newSlot(inner, key, "", g, k.now())
		if err != nil {
			return err
		}
		*c = change{event: audit.Recover, slot: made.ID.String(), key: recovery.Slot().String()}
		if w.head.State == seal.StateRevoked {
			for i := range w.head.Slots {
				closeSlot(&w.head.Slots[i])
			}
		}
		w.head.State = seal.StateActive
		if w.head.LastOp == opHeir { // it is on its own from here
			w.head.LastOp, w.head.LastSlot = 0, [16]byte{}
		}
		return w.addSlot(made, k.now())
	})
	w.wipe()
	if err != nil {
		return identity.Key{}, err
	}
	return key, nil
}

var (
	errNotRecovery = refuse(Unauthorized, "This is not the recovery key of this store.", "Use the key that solekey init showed once.")
	errNoRecovery  = refuse(Forbidden, "This vault was made without recovery: nothing but its own keys opens it.", "solekey identity create NAME")
)

// recover opens the inner lock with the recovery key. Wipe what it returns.
func (w *view) recover(key identity.Key) (*seal.Inner, error) {
	if key.IsZero() || key.Kind() != identity.Recovery || len(w.st.record.RecoveryPK) == 0 || key.Identity() != w.st.Fingerprint(w.st.record.RecoveryPK) {
		return nil, errNotRecovery
	}
	if len(w.head.Recovery) == 0 {
		return nil, errNoRecovery
	}
	inner, err := seal.UnwrapRecovery(w.st.ID(), w.id, key, w.head.PK, w.head.Recovery)
	if err != nil {
		return nil, errDamaged
	}
	return inner, nil
}
