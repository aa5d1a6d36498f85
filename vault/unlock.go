package vault

import (
	"context"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/audit"
)

// Vault is what one key may do with the vault of its identity. It holds the
// parsed key and nothing that the key unwraps: each call reads the identity
// afresh, judges, unwraps, uses and wipes, so a Vault needs no Close and
// outlives no revocation.
type Vault struct {
	keeper *Keeper
	key    identity.Key
	from   Source
	name   string
	grant  identity.Grant
}

// Unlock returns the vault that key opens. It refuses with unauthorized a key
// that matches no slot, whether its identity exists or not, and with revoked
// or expired a key that proves itself to a closed or expired slot; that
// attempt leaves an audit line.
func (k *Keeper) Unlock(ctx context.Context, key identity.Key, from Source) (*Vault, error) {
	v := &Vault{keeper: k, key: key, from: from}
	if key.IsZero() || key.Kind() != identity.Agent || key.Shard() != 0 {
		k.strangers.count(from)
		return nil, errUnauthorized
	}
	a := ask{event: audit.Auth}
	w, r, err := v.rule(ctx, a)
	if err != nil {
		return nil, err
	}
	defer w.wipe()
	if r.refusal != nil {
		if err := v.append(ctx, r, v.record(w, r, a)); err != nil {
			return nil, err
		}
		return nil, r.refusal
	}
	v.name, v.grant = w.head.Name, grantOf(r.slot)
	return v, nil
}

// Identity returns the identity whose vault this is.
func (v *Vault) Identity() identity.ID { return v.key.Identity() }

// Slot returns the slot of the key.
func (v *Vault) Slot() identity.SlotID { return v.key.Slot() }

// Name returns the name of the identity.
func (v *Vault) Name() string { return v.name }

// Grant returns what the key was allowed when it was unlocked. It is for
// presentation: every method judges again.
func (v *Vault) Grant() identity.Grant { return v.grant }

// Live judges the key again, without an audit line, for streams that are
// open.
func (v *Vault) Live(ctx context.Context) error {
	w, r, err := v.rule(ctx, ask{})
	if err != nil {
		return err
	}
	defer w.wipe()
	if r.refusal != nil {
		return r.refusal
	}
	return nil
}

// Deny records an attempt that was refused before it reached a method, such
// as malformed arguments, and returns the refusal to show: r, or what stands
// in the way of recording it.
func (v *Vault) Deny(ctx context.Context, event audit.Event, r *Refusal) error {
	w, err := v.keeper.load(ctx, v.key.Identity())
	if err != nil {
		return err
	}
	defer w.wipe()
	a := ask{event: event}
	ruled := judge(w, v.key, a, v.keeper.now())
	if ruled.refusal == nil {
		ruled.refusal = r
	}
	if err := v.append(ctx, ruled, v.record(w, ruled, a)); err != nil {
		return err
	}
	return ruled.refusal
}

func (w *view) wipe() {
	if w != nil && w.outer != nil {
		w.outer.Wipe()
	}
}
