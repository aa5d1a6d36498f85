package vault

import (
	"context"
	"fmt"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// Create makes an identity with an empty vault and its first key, which is
// returned once. A name in use by an identity that is not shredded is refused
// with exists.
func (k *Keeper) Create(ctx context.Context, n NewIdentity) (identity.Key, error) {
	if err := identity.CheckName(n.Name); err != nil {
		return identity.Key{}, &Refusal{Word: BadRequest, Message: "Not a name: " + err.Error() + ".", cause: err}
	}
	if n.Grant.Scopes == 0 {
		n.Grant.Scopes = identity.DefaultScopes
	}
	if err := checkGrant(n.Grant); err != nil {
		return identity.Key{}, err
	}
	if err := k.nameFree(ctx, n.Name); err != nil {
		return identity.Key{}, err
	}
	st, err := k.open(ctx, 0)
	if err != nil {
		return identity.Key{}, err
	}
	key := identity.NewKey(identity.Agent, identity.NewID())
	inner := seal.NewInner(st.ID(), key.Identity())
	defer inner.Wipe()
	h, err := k.newHeader(st, n, key, inner)
	if err != nil {
		return identity.Key{}, err
	}
	if err := k.plant(ctx, st, key, h); err != nil {
		return identity.Key{}, err
	}
	return key, nil
}

// plant makes the identity of key with the header h: line, cell, commit.
func (k *Keeper) plant(ctx context.Context, st *store, key identity.Key, h *seal.Header) error {
	id, cell := key.Identity(), random32()
	again := func(st *store) ([]byte, uint64, error) {
		h.Gen++
		meta, err := st.SealHeader(id, cell, h)
		if err != nil {
			return nil, 0, fmt.Errorf("sealing header: %w", err)
		}
		return meta, h.Gen, nil
	}
	meta, gen, err := again(st)
	if err != nil {
		return err
	}
	rec := audit.Record{Time: k.now(), Event: audit.Create, Identity: id, Key: audit.Owner, Slot: key.Slot().String(), Via: "cli", Gen: gen, Is: metaHash(meta)}
	if err := k.append(ctx, rec); err != nil {
		return err
	}
	if err := k.backend.PutCell(ctx, id, storage.Cell(cell)); err != nil {
		return fmt.Errorf("writing cell: %w", err)
	}
	rev, err := k.backend.Commit(ctx, id, 0, storage.Batch{Meta: meta})
	if err != nil {
		return fmt.Errorf("writing identity: %w", err)
	}
	return k.overtake(ctx, id, sealed{st: st, rev: rev, meta: meta, again: again})
}

// newHeader is the header of a new identity with key as its first key. plant
// seals it as generation 1.
func (k *Keeper) newHeader(st *store, n NewIdentity, key identity.Key, inner *seal.Inner) (*seal.Header, error) {
	slot, err := newSlot(inner, key, "", n.Grant, k.now())
	if err != nil {
		return nil, err
	}
	h := &seal.Header{State: seal.StateActive, Created: millis(k.now()), Changed: millis(k.now()), OK: random32(), PK: inner.PublicKey(), Name: n.Name, Slots: []seal.Slot{slot}}
	if n.NoRecovery || len(st.record.RecoveryPK) == 0 {
		h.Flags |= seal.FlagNoRecovery
	} else if h.Recovery, err = inner.WrapRecovery(st.record.RecoveryPK, st.Fingerprint(st.record.RecoveryPK)); err != nil {
		return nil, fmt.Errorf("sealing to the recovery key: %w", err)
	}
	return h, nil
}

// newSlot wraps the identity secret under key.
func newSlot(inner *seal.Inner, key identity.Key, name string, g identity.Grant, now time.Time) (seal.Slot, error) {
	wrapped, err := inner.Wrap(key)
	if err != nil {
		return seal.Slot{}, fmt.Errorf("wrapping: %w", err)
	}
	s := seal.Slot{ID: key.Slot(), AuthHash: seal.AuthHash(key.Auth()), State: seal.SlotLive, Kind: 1, Scopes: uint16(g.Scopes), Created: millis(now), Expires: millis(g.Expires), Name: name, Wrapped: wrapped}
	for _, glob := range g.Globs {
		s.Globs = append(s.Globs, string(glob))
	}
	return s, nil
}

func checkGrant(g identity.Grant) error {
	if len(g.Globs) > seal.MaxGlobs {
		return refuse(BadRequest, fmt.Sprintf("A key has at most %d label globs.", seal.MaxGlobs), "")
	}
	for _, glob := range g.Globs {
		if _, err := identity.ParseGlob(string(glob)); err != nil {
			return &Refusal{Word: BadRequest, Message: "Not a label glob: " + err.Error() + ".", cause: err}
		}
	}
	return nil
}

func (k *Keeper) nameFree(ctx context.Context, name string) error {
	all, err := k.Identities(ctx)
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.Name == name {
			return refuse(Exists, fmt.Sprintf("There is an identity %s already.", name), "solekey identity show "+name)
		}
	}
	return nil
}
