package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

// How an identity is replaced whose key leaked. The steps, each durable before
// the next:
//
//  1. The old identity is revoked and named replaced, with the ID of its heir.
//     Every key of it hears revoked from here on. The slot of the proof keeps
//     its wrap, so that a run which is cut off leaves a proof.
//  2. The heir is made: same name, new key, pending, which admits nobody.
//  3. Every value is opened and sealed again for the heir.
//  4. The new key is handed over.
//  5. The heir becomes active.
//  6. The receipt of the old identity is kept; then it is shredded.
//  7. The heir forgets whose heir it is.
//
// A run that was cut off before 5 is begun again with another heir, the
// pending one is shredded: its key is perhaps nowhere. From 4 on the new key
// is a proof too, since it left only after every value was there. From 5 on the
// rest needs no proof, and up to 7 it is all that another run does. Nothing writes to the old identity after 1, as its name
// finds no place to put to, so what was copied is what there is.

// Replacement says how an identity is replaced.
type Replacement struct {
	Reason string // for the receipt; never in the log
	// Hand takes the key of the heir, once every value is durable there and
	// before anything of the old vault is destroyed. Its error stops the
	// replacement, which can be repeated.
	Hand func(identity.Key) error
	// Keep stores the receipt of the old identity before it is shredded. Its
	// error stops the replacement too; every old key is closed by then.
	Keep func(Receipt) error
}

// Replaced says what a replacement did.
type Replaced struct {
	Old, ID identity.ID     // replaced, and in its place
	Slot    identity.SlotID // of the new key
	Labels  int             // that the heir has
	Receipt Receipt
	Resumed bool // the key was handed over by an earlier run; no other was made
}

var (
	errReplaced = refuse(Conflict, "A rotation after a leak is not finished here.", "solekey identity rotate NAME --leaked")
	errRival    = refuse(Conflict, "Another command replaces this identity at the same time.", "Repeat the command.")
	errActive   = errors.New("the heir is active")
	errSettled  = errors.New("the heir is pending no more")
)

// Values of last_op beside those of owed lines. last_slot then is an identity.
const (
	opReplaced = 16 // by the heir that last_slot names
	opHeir     = 17 // of the identity that last_slot names
)

// replaced reports that step 1 was made, and 6 was not.
func (w *view) replaced() bool {
	return w.head.LastOp == opReplaced && w.head.State == seal.StateRevoked
}

func (w *view) heir() identity.ID {
	if !w.replaced() {
		return identity.ID{}
	}
	return identity.ID(w.head.LastSlot)
}

func (w *view) replaces() identity.ID {
	if w.head.LastOp != opHeir {
		return identity.ID{}
	}
	return identity.ID(w.head.LastSlot)
}

// pending reports an heir between step 2 and step 5.
func (w *view) pending() bool {
	return w.head.LastOp == opHeir && w.head.State == seal.StateRevoked && w.opens()
}

// opens reports whether some slot can still be unwrapped.
func (w *view) opens() bool {
	return slices.ContainsFunc(w.head.Slots, func(s seal.Slot) bool { return s.State == seal.SlotLive })
}

// Replace answers a leaked key: a new identity of the same name takes over
// every value of id, and id is shredded. proof is a key of id that is or was
// live when the replacement began, the leaked one too, or the recovery key;
// the latter also replaces a revoked identity.
//
// From its first commit on every key of id hears revoked. Cut off at any
// point it has lost no value and revived no key, and the next Replace of the
// same identity, of either ID, finishes it; the key that Hand took last
// counts.
func (k *Keeper) Replace(ctx context.Context, id identity.ID, proof identity.Key, r Replacement) (Replaced, error) {
	old, heir, err := k.succession(ctx, id, proof)
	if err != nil {
		return Replaced{}, err
	}
	out := Replaced{Old: old, ID: heir, Resumed: !heir.IsZero()}
	if heir.IsZero() {
		if out, err = k.succeed(ctx, old, proof, r); err != nil {
			return out, err
		}
	}
	return k.conclude(ctx, out, r)
}

// succession finds out how far the replacement of id is: the old identity,
// and its heir if that has every value and its key is handed over.
func (k *Keeper) succession(ctx context.Context, id identity.ID, proof identity.Key) (old, heir identity.ID, err error) {
	all, err := k.Identities(ctx)
	if err != nil {
		return old, heir, err
	}
	byID := make(map[identity.ID]Info, len(all))
	for _, i := range all {
		byID[i.ID] = i
	}
	old = id
	from := byID[byID[id].Replaces]
	switch {
	case !from.Heir.IsZero():
		old = from.ID
	case from.Status == identity.Shredded && byID[id].Status == identity.Active:
		return from.ID, id, nil
	}
	for _, i := range all {
		if i.Replaces != old || byID[old].Heir.IsZero() {
			continue
		}
		if i.Status == identity.Active {
			return old, i.ID, nil
		}
		if i.Pending && !proof.IsZero() && proof.Kind() == identity.Agent && proof.Identity() == i.ID {
			return old, i.ID, k.activate(ctx, old, i.ID, &proof)
		}
	}
	return old, identity.ID{}, nil
}

// succeed makes steps 1 to 5.
func (k *Keeper) succeed(ctx context.Context, old identity.ID, proof identity.Key, r Replacement) (Replaced, error) {
	key := identity.NewKey(identity.Agent, identity.NewID())
	out := Replaced{Old: old, ID: key.Identity(), Slot: key.Slot()}
	w, inner, grant, err := k.markReplaced(ctx, old, proof, out.ID)
	defer w.wipe()
	if err != nil {
		return out, err
	}
	defer inner.Wipe()
	if err := k.settle(ctx, w); err != nil {
		return out, err
	}
	active, err := k.discardHeirs(ctx, old)
	if err != nil {
		return out, err
	}
	if !active.IsZero() { // another run was faster
		return Replaced{Old: old, ID: active, Resumed: true}, nil
	}
	to, err := k.makeHeir(ctx, w, key, grant)
	if err != nil {
		return out, err
	}
	defer to.Wipe()
	if err := k.carryOver(ctx, w, inner, out.ID, to); err != nil {
		return out, err
	}
	if _, err := k.complete(ctx, old, out.ID); err != nil {
		return out, err
	}
	if r.Hand != nil {
		if err := r.Hand(key); err != nil {
			return out, fmt.Errorf("handing over the key: %w", err)
		}
	}
	return out, k.activate(ctx, old, out.ID, nil)
}

// markReplaced makes step 1. It returns the old identity, its inner lock
// opened, and what the new key may do.
func (k *Keeper) markReplaced(ctx context.Context, old identity.ID, proof identity.Key, heir identity.ID) (*view, *seal.Inner, identity.Grant, error) {
	var inner *seal.Inner
	var grant identity.Grant
	w, err := k.update(ctx, old, nil, false, func(w *view, c *change) error {
		if inner != nil {
			inner.Wipe()
		}
		in, slot, err := k.proveLeaked(w, proof)
		if err != nil {
			return err
		}
		inner, grant = in, k.grantOfHeir(w, slot)
		*c = change{event: audit.Rotate, key: proof.Slot().String(), note: noteLeaked + heir.String()}
		for i := range w.head.Slots {
			if s := &w.head.Slots[i]; s != slot {
				closeSlot(s)
			}
		}
		w.head.State, w.head.LastOp, w.head.LastSlot = seal.StateRevoked, opReplaced, heir
		return nil
	})
	if err != nil && inner != nil {
		inner.Wipe()
	}
	return w, inner, grant, err
}

// proveLeaked opens the inner lock with the recovery key, or with a key that
// is live, or was so when the replacement began. The slot is nil for the
// recovery key.
func (k *Keeper) proveLeaked(w *view, proof identity.Key) (*seal.Inner, *seal.Slot, error) {
	if !proof.IsZero() && proof.Kind() == identity.Recovery {
		inner, err := w.recover(proof)
		return inner, nil, err
	}
	if !w.replaced() || proof.IsZero() || proof.Identity() != w.id {
		return k.prove(w, proof)
	}
	slot := findSlot(w.head, proof)
	if slot == nil {
		return nil, nil, errNoProof
	}
	if slot.State != seal.SlotLive || len(slot.Wrapped) == 0 {
		return nil, nil, errRevoked
	}
	inner, err := unwrap(w, slot, proof)
	return inner, slot, err
}

// grantOfHeir is what the key of the heir may do: what the proof may, with the
// recovery key what the key may that ends last, as a rotation with grace gives
// the older one an end that nobody meant for its heir. An end that has passed
// is none.
func (k *Keeper) grantOfHeir(w *view, slot *seal.Slot) identity.Grant {
	if slot == nil {
		slot = lastToEnd(w.head.Slots)
	}
	if slot == nil {
		return identity.Grant{Scopes: identity.DefaultScopes}
	}
	g := grantOf(slot)
	if !k.now().Before(g.Expires) {
		g.Expires = time.Time{}
	}
	return g
}

// lastToEnd returns the slot that ends last of those that are live, or of all
// if none is; nil if there are none.
func lastToEnd(slots []seal.Slot) (last *seal.Slot) {
	later := func(s *seal.Slot) bool {
		switch live := s.State == seal.SlotLive; {
		case last == nil || live != (last.State == seal.SlotLive):
			return last == nil || live
		case last.Expires == 0:
			return false
		}
		return s.Expires == 0 || s.Expires > last.Expires
	}
	for i := range slots {
		if later(&slots[i]) {
			last = &slots[i]
		}
	}
	return last
}

// discardHeirs shreds the pending heirs of earlier runs. It returns the heir
// that turned out to be active, if one did.
func (k *Keeper) discardHeirs(ctx context.Context, old identity.ID) (active identity.ID, err error) {
	all, err := k.Identities(ctx)
	if err != nil {
		return active, err
	}
	for _, i := range all {
		if i.Replaces != old || i.Status == identity.Revoked && !i.Pending {
			continue
		}
		err := k.discard(ctx, i.ID)
		if errors.Is(err, errActive) {
			return i.ID, nil
		}
		if err != nil && !errors.Is(err, errSettled) {
			return active, err
		}
	}
	return active, nil
}

func (k *Keeper) discard(ctx context.Context, heir identity.ID) error {
	return k.shred(ctx, heir, func(w *view) error {
		if w.head.State == seal.StateActive {
			return errActive
		}
		if !w.pending() {
			return errSettled
		}
		return nil
	})
}

// makeHeir makes step 2, unless another run names another heir meanwhile.
func (k *Keeper) makeHeir(ctx context.Context, old *view, key identity.Key, g identity.Grant) (*seal.Inner, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	to := seal.NewInner(st.ID(), key.Identity())
	n := NewIdentity{Name: old.head.Name, Grant: g, NoRecovery: len(old.head.Recovery) == 0}
	h, err := k.newHeader(st, n, key, to)
	if err == nil {
		h.State, h.LastOp, h.LastSlot = seal.StateRevoked, opHeir, old.id
		err = k.plant(ctx, st, key, h)
	}
	if err == nil {
		err = k.stillHeir(ctx, old.id, key.Identity())
	}
	if err != nil {
		to.Wipe()
		return nil, err
	}
	return to, nil
}

// stillHeir reports errRival if old names another heir.
func (k *Keeper) stillHeir(ctx context.Context, old, heir identity.ID) error {
	w, err := k.load(ctx, old)
	if err != nil {
		return err
	}
	defer w.wipe()
	if err := w.exists(); err != nil {
		return err
	}
	if w.heir() == heir {
		return nil
	}
	if err := k.discard(ctx, heir); err != nil {
		return err
	}
	return errRival
}

// activate makes step 5. With a proof, a key of the heir, it sees first that
// every value is there.
func (k *Keeper) activate(ctx context.Context, old, heir identity.ID, proof *identity.Key) error {
	if proof != nil {
		if _, err := k.complete(ctx, old, heir); err != nil {
			return err
		}
	}
	w, err := k.update(ctx, heir, nil, false, func(w *view, c *change) error {
		if !w.pending() {
			return errRival
		}
		if proof != nil && findSlot(w.head, *proof) == nil {
			return errNoProof
		}
		*c = change{event: audit.Recover, slot: w.head.Slots[0].ID.String(), note: "took over from " + old.String()}
		w.head.State = seal.StateActive
		return nil
	})
	w.wipe()
	return err
}

// conclude makes steps 6 and 7.
func (k *Keeper) conclude(ctx context.Context, out Replaced, r Replacement) (Replaced, error) {
	heir, err := k.load(ctx, out.ID)
	if err != nil {
		return out, err
	}
	defer heir.wipe()
	if err := heir.exists(); err != nil {
		return out, err
	}
	out.Slot = heir.head.Slots[0].ID
	labels, err := k.Labels(ctx, out.ID)
	if err != nil {
		return out, err
	}
	out.Labels = len(labels)
	if out.Receipt, err = k.keepReplaced(ctx, out, r); err != nil {
		return out, err
	}
	err = k.shred(ctx, out.Old, func(w *view) error {
		if !w.replaced() {
			return errRival
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	w, err := k.update(ctx, out.ID, nil, false, func(w *view, c *change) error {
		if w.replaces() != out.Old {
			return errNothing
		}
		*c = change{event: audit.Note, note: "the identity that it replaces is shredded"}
		w.head.LastOp, w.head.LastSlot = 0, [16]byte{}
		return nil
	})
	w.wipe()
	return out, err
}

// keepReplaced makes the receipt of the old identity and has it kept. Once
// that is shredded there is none to make: it was kept before.
func (k *Keeper) keepReplaced(ctx context.Context, out Replaced, r Replacement) (Receipt, error) {
	w, es, err := k.listing(ctx, out.Old, nil)
	if err != nil {
		return Receipt{}, err
	}
	defer w.wipe()
	if w.head == nil {
		return Receipt{}, nil
	}
	rec := k.receipt(ctx, w, es, Revocation{Shred: true, Reason: r.Reason})
	rec.Heir = out.ID.String()
	rec.EffectiveAt = k.replacedAt(ctx, w)
	rec.sign(w.st)
	if r.Keep != nil {
		if err := r.Keep(rec); err != nil {
			return rec, fmt.Errorf("keeping the receipt: %w", err)
		}
	}
	return rec, nil
}

// replacedAt is when the keys of a replaced identity were closed: the time of
// the first line that says so, or of its last change if that is gone.
func (k *Keeper) replacedAt(ctx context.Context, w *view) time.Time {
	for r, err := range audit.Records(ctx, k.backend) {
		if err != nil {
			break // the receipt says that the log is not whole
		}
		if r.Identity == w.id && r.Event == audit.Rotate && !r.Denied && strings.HasPrefix(r.Note, noteLeaked) {
			return r.Time.Truncate(time.Millisecond)
		}
	}
	return fromMillis(w.head.Changed)
}

const noteLeaked = "leaked; heir "
