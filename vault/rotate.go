package vault

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

// Rotate gives an identity a new key in place of proof, a live key of it. The
// key of proof goes on for the grace, or ends in the same commit. The vault
// stays as it is: rotation is no answer to a leak, [Keeper.Replace] is.
func (k *Keeper) Rotate(ctx context.Context, id identity.ID, proof identity.Key, r Rotation) (identity.Key, error) {
	return k.addKey(ctx, id, proof, "", r.Grant, func(w *view, c *change, old *seal.Slot) {
		c.event = audit.Rotate
		c.slot = old.ID.String()
		if r.Grace <= 0 {
			closeSlot(old)
			return
		}
		end := millis(k.now().Add(r.Grace))
		if old.Expires == 0 || end < old.Expires {
			old.Expires = end
		}
	})
}

// AddKey gives an identity one more key. proof is a live key of it: only who
// can open the vault can let another key open it. [Keeper.Recover] does it
// with the recovery key.
func (k *Keeper) AddKey(ctx context.Context, id identity.ID, proof identity.Key, name string, g identity.Grant) (identity.Key, error) {
	if name != "" {
		if err := identity.CheckName(name); err != nil {
			return identity.Key{}, &Refusal{Word: BadRequest, Message: "Not a name: " + err.Error() + ".", cause: err}
		}
	}
	if g.Scopes == 0 {
		g.Scopes = identity.DefaultScopes
	}
	return k.addKey(ctx, id, proof, name, &g, func(*view, *change, *seal.Slot) {})
}

func (k *Keeper) addKey(ctx context.Context, id identity.ID, proof identity.Key, name string, g *identity.Grant, old func(*view, *change, *seal.Slot)) (identity.Key, error) {
	if g != nil {
		if err := checkGrant(*g); err != nil {
			return identity.Key{}, err
		}
	}
	key := identity.NewKey(identity.Agent, id)
	w, err := k.update(ctx, id, nil, false, func(w *view, c *change) error {
		inner, slot, err := k.prove(w, proof)
		if err != nil {
			return err
		}
		defer inner.Wipe()
		grant := grantOf(slot)
		if g != nil {
			grant = *g
		}
		made, err := newSlot(inner, key, name, grant, k.now())
		if err != nil {
			return err
		}
		*c = change{event: audit.KeyAdd, slot: made.ID.String(), key: proof.Slot().String()}
		old(w, c, slot)
		if c.event == audit.Rotate {
			c.note = "new " + made.ID.String()
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
	errNoProof  = refuse(Unauthorized, "This key does not open that identity, so it cannot give it another key.", "Use a live key of the identity.")
	errRecovery = refuse(BadRequest, "A recovery key takes the place of no key.", "solekey identity recover NAME")
)

// prove opens the inner lock with a live key of the identity. Wipe what it
// returns.
func (k *Keeper) prove(w *view, proof identity.Key) (*seal.Inner, *seal.Slot, error) {
	if !proof.IsZero() && proof.Kind() == identity.Recovery {
		return nil, nil, errRecovery
	}
	if proof.IsZero() || proof.Identity() != w.id {
		return nil, nil, errNoProof
	}
	r := judge(w, proof, ask{}, k.now())
	if r.refusal != nil && r.refusal.Word == Unauthorized {
		return nil, nil, errNoProof
	}
	if r.refusal != nil {
		return nil, nil, r.refusal
	}
	inner, err := unwrap(w, r.slot, proof)
	return inner, r.slot, err
}

// addSlot adds a slot. When room is needed the oldest one goes that opens
// nothing any more: a closed one, else one whose key has expired.
func (w *view) addSlot(s seal.Slot, now time.Time) error {
	h := w.head
	if len(h.Slots) >= seal.MaxSlots {
		i := slices.IndexFunc(h.Slots, func(s seal.Slot) bool { return s.State == seal.SlotClosed })
		if i < 0 {
			i = slices.IndexFunc(h.Slots, func(s seal.Slot) bool { return s.Expires != 0 && s.Expires <= millis(now) })
		}
		if i < 0 {
			return refuse(BadRequest, fmt.Sprintf("An identity has at most %d keys.", seal.MaxSlots), "Revoke one: solekey key list NAME, then solekey key revoke NAME KEY.")
		}
		h.Slots = slices.Delete(h.Slots, i, i+1)
	}
	h.Slots = append(h.Slots, s)
	return nil
}

// closeSlot ends a key. Who holds it proves itself still, and hears revoked.
func closeSlot(s *seal.Slot) {
	s.State = seal.SlotClosed
	clear(s.Wrapped)
	s.Wrapped = nil
}
