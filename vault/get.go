package vault

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// primary is the field that a read without a field name returns.
const primary = "value"

const classNever = 3

// Get releases one field of an entry; an empty field is `value`. The audit
// line of the read is durable before Get returns.
func (v *Vault) Get(ctx context.Context, l Label, field string) (Secret, error) {
	if field == "" {
		field = primary
	}
	st, err := v.keeper.open(ctx, 0)
	if err != nil {
		return Secret{}, err
	}
	a := ask{event: audit.Get, scope: identity.Read, label: l, tag: st.Tag(v.key.Identity(), string(l)), field: field}
	key := seal.EntryKey(a.tag)
	var out Secret
	w, _, err := v.pass(ctx, a, []string{key}, func(w *view, r ruling, rec *audit.Record) (*storage.Batch, error) {
		in, err := unwrap(w, r.slot, v.key)
		if err != nil {
			return nil, err
		}
		defer in.Wipe()
		fields, err := w.fields(in, r.entry)
		if err != nil {
			return nil, err
		}
		defer wipe(fields)
		seal.Do(func() { out, err = pick(r.entry, fields, l, field) })
		if err != nil {
			return nil, err
		}
		if r.entry.Form == formMailbox {
			return v.keeper.absorb(w, in, r.entry, key, fields, rec), nil
		}
		return nil, nil
	})
	w.wipe()
	if err != nil {
		if out.value != nil {
			clear(out.value())
		}
		return Secret{}, v.suggest(ctx, err, l)
	}
	return out, nil
}

// pick copies one field out of an opened entry. Fields that never leave are
// neither returned nor named: they look absent.
func pick(e *seal.Entry, fields []seal.Field, l Label, name string) (Secret, error) {
	s := Secret{Label: l, Kind: EntryKind(e.Kind), Field: name, Version: e.Version, Expires: fromMillis(e.Expires)}
	for _, f := range fields {
		if f.Class == classNever {
			continue
		}
		s.Fields = append(s.Fields, f.Name)
		if f.Name == name {
			value := slices.Clone(f.Value)
			s.value = func() []byte { return value }
		}
	}
	if !slices.Contains(s.Fields, name) {
		return Secret{}, refuse(NotFound, fmt.Sprintf("%s has no such field.", l), fmt.Sprintf("Call get_secret with label %s and no field: the answer lists its fields.", l))
	}
	return s, nil
}

// absorb turns a value in the mailbox into one under the vault key: same
// version, same label. It returns the commit to be made after the line, nil
// if the value cannot be absorbed now.
func (k *Keeper) absorb(w *view, in *seal.Inner, e *seal.Entry, key string, fields []seal.Field, rec *audit.Record) *storage.Batch {
	inner, err := in.Seal(w.bind(e.Label, e.Version, e.Kind, e.Exposure), fields)
	if err != nil {
		return nil
	}
	moved := *e
	moved.Form, moved.Inner = formSealed, inner
	c := change{event: rec.Event}
	if err := c.putEntry(w, key, &moved); err != nil {
		return nil
	}
	b, err := k.seal(w, &c, rec)
	if err != nil {
		return nil
	}
	return &b
}

// Same reports whether value is the primary field of l. The comparison takes
// place inside and is logged as a verification, not as a read.
func (v *Vault) Same(ctx context.Context, l Label, value []byte) (bool, error) {
	st, err := v.keeper.open(ctx, 0)
	if err != nil {
		return false, err
	}
	a := ask{event: audit.Verified, scope: identity.Read, label: l, tag: st.Tag(v.key.Identity(), string(l))}
	same := false
	w, _, err := v.pass(ctx, a, []string{seal.EntryKey(a.tag)}, func(w *view, r ruling, _ *audit.Record) (*storage.Batch, error) {
		in, err := unwrap(w, r.slot, v.key)
		if err != nil {
			return nil, err
		}
		defer in.Wipe()
		fields, err := w.fields(in, r.entry)
		if err != nil {
			return nil, err
		}
		defer wipe(fields)
		for _, f := range fields {
			if f.Name == primary {
				same = subtle.ConstantTimeCompare(f.Value, value) == 1
			}
		}
		return nil, nil
	})
	w.wipe()
	return same && err == nil, err
}

// maxSuggested bounds the records that a suggestion reads.
const maxSuggested = 500

// suggest adds the label that was probably meant to a not_found refusal, from
// the labels that this key may list.
func (v *Vault) suggest(ctx context.Context, err error, l Label) error {
	var r *Refusal
	if !errors.As(err, &r) || r.Word != NotFound || r.Hint != errNoLabel(l).Hint || !v.grant.Scopes.Has(identity.List) {
		return err
	}
	w, lerr := v.keeper.load(ctx, v.key.Identity())
	if lerr != nil || w.head == nil || w.head.Count > maxSuggested {
		return err
	}
	defer w.wipe()
	es, lerr := v.keeper.entries(ctx, w)
	if lerr != nil {
		return err
	}
	var seen []string
	for _, e := range es {
		if e.Form != formNone && v.grant.Covers(e.Label) {
			seen = append(seen, e.Label)
		}
	}
	better := *r
	if near := nearest(string(l), seen); near != "" {
		better.Hint = fmt.Sprintf("Did you mean %s? list_labels shows all.", near)
	}
	return &better
}
