package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/storage"
)

// Identities lists every identity, in byte order of their IDs. Shredded ones
// are included with their ID only; one that cannot be opened is marked
// Damaged and does not hide the others.
func (k *Keeper) Identities(ctx context.Context) ([]Info, error) {
	if _, err := k.open(ctx, 0); err != nil {
		return nil, err
	}
	var out []Info
	var after identity.ID
	for {
		page, err := k.backend.Identities(ctx, after, pageSize)
		if err != nil {
			return nil, fmt.Errorf("listing identities: %w", err)
		}
		for _, it := range page {
			after = it.ID
			info, err := k.describe(ctx, it)
			if err != nil {
				return nil, err
			}
			out = append(out, info)
		}
		if len(page) < pageSize {
			return out, nil
		}
	}
}

// describe opens one header of a listing.
func (k *Keeper) describe(ctx context.Context, it storage.Ident) (Info, error) {
	w, err := k.load(ctx, it.ID)
	if errors.Is(err, storage.ErrDamaged) || errors.Is(err, seal.ErrRefused) {
		return Info{ID: it.ID, Damaged: true}, nil
	}
	if err != nil {
		return Info{}, err
	}
	defer w.wipe()
	info := w.info()
	k.payOwed(ctx, w)
	return info, nil
}

func (w *view) info() Info {
	if w.head == nil {
		return Info{ID: w.id, Status: identity.Shredded, Changed: fromMillis(w.tomb.Shredded)}
	}
	h := w.head
	i := Info{ID: w.id, Name: h.Name, Status: identity.Status(h.State), Created: fromMillis(h.Created), Changed: fromMillis(h.Changed), Recovery: len(h.Recovery) > 0}
	i.Heir, i.Replaces, i.Pending = w.heir(), w.replaces(), w.pending()
	for _, s := range h.Slots {
		i.Slots = append(i.Slots, SlotInfo{ID: s.ID, Name: s.Name, Closed: s.State != seal.SlotLive, Created: fromMillis(s.Created), Grant: grantOf(&s)})
	}
	return i
}

// Find returns the identity with this name, or with this ID in hex. Among
// several of one name the active one counts; without one that whose rotation
// after a leak is not finished, as its heir was revoked meanwhile; then one that
// is no such heir. Others are refused, and are told apart by their IDs. One that
// is pending has no name yet.
func (k *Keeper) Find(ctx context.Context, name string) (Info, error) {
	all, err := k.Identities(ctx)
	if err != nil {
		return Info{}, err
	}
	var found []Info
	var names []string
	for _, i := range all {
		if i.ID.String() == name {
			return i, nil
		}
		if i.Name == "" || i.Pending {
			continue
		}
		names = append(names, i.Name)
		if i.Name == name {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 0:
		r := refuse(NotFound, fmt.Sprintf("There is no identity %s.", name), "solekey identity list")
		if near := nearest(name, names); near != "" {
			r.Message = fmt.Sprintf("There is no identity %s; did you mean %s?", name, near)
		}
		return Info{}, r
	case 1:
		return found[0], nil
	}
	for _, counts := range []func(Info) bool{
		func(i Info) bool { return i.Status == identity.Active },
		func(i Info) bool { return !i.Heir.IsZero() },
		func(i Info) bool { return i.Replaces.IsZero() },
	} {
		var of []Info
		for _, i := range found {
			if counts(i) {
				of = append(of, i)
			}
		}
		if len(of) == 1 {
			return of[0], nil
		}
		if len(of) > 1 {
			break
		}
	}
	return Info{}, refuse(BadRequest, fmt.Sprintf("%d identities are named %s.", len(found), name), fmt.Sprintf("Use an ID, such as %s.", found[0].ID))
}
