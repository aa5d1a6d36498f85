package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// How values pass from a replaced identity to its heir.

// carryOver makes step 3: it opens every record of from and seals it for the
// identity heir, whose inner lock is to. Versions, times, forms and classes
// stay as they are, and so does the step of a seed that was given out last.
func (k *Keeper) carryOver(ctx context.Context, from *view, in *seal.Inner, heir identity.ID, to *seal.Inner) error {
	if _, same, err := k.setMatches(ctx, from, nil); err != nil || !same {
		return cmp.Or(err, error(storage.ErrConflict))
	}
	labels := make(map[string]string) // by the tag in the old identity's keys
	after := ""
	for {
		page, err := k.backend.List(ctx, from.id, after, pageSize)
		if err != nil {
			return fmt.Errorf("listing records: %w", err)
		}
		if page.Rev != from.rev {
			return storage.ErrConflict
		}
		for _, part := range portions(page.Items) {
			if err := k.carry(ctx, from, in, heir, to, part, labels); err != nil {
				return err
			}
		}
		if !page.More {
			return nil
		}
		after = page.Items[len(page.Items)-1].Key
	}
}

// maxPortion is how many bytes of records one commit carries over, unless one
// record is longer. They keep their length, so a batch stays below its limit.
const maxPortion = storage.MaxBatch / 4

// portions cuts a page into what one commit carries over.
func portions(items []storage.Item) [][]storage.Item {
	var out [][]storage.Item
	from, size := 0, 0
	for i, it := range items {
		if size > 0 && size+len(it.Val) > maxPortion {
			out = append(out, items[from:i])
			from, size = i, 0
		}
		size += len(it.Val)
	}
	if from < len(items) {
		out = append(out, items[from:])
	}
	return out
}

func (k *Keeper) carry(ctx context.Context, from *view, in *seal.Inner, heir identity.ID, to *seal.Inner, items []storage.Item, labels map[string]string) error {
	w, err := k.update(ctx, heir, nil, false, func(w *view, c *change) error {
		if !w.pending() {
			return errRival
		}
		*c = change{event: audit.Put, note: "taken over"}
		for _, it := range items {
			var err error
			if it.Key[0] == entryType {
				err = carryEntry(from, in, w, to, it, c, labels)
			} else {
				err = carryState(from, w, it, c, labels)
			}
			if err != nil {
				return err
			}
		}
		c.n = len(c.ops)
		return nil
	})
	w.wipe()
	return err
}

func carryEntry(from *view, in *seal.Inner, w *view, to *seal.Inner, it storage.Item, c *change, labels map[string]string) error {
	e, err := from.outer.OpenEntry(it.Key, it.Val)
	if err != nil || seal.EntryKey(from.tag(Label(e.Label))) != it.Key {
		return errDamaged
	}
	labels[it.Key[1:]] = e.Label
	if e.Form != formNone {
		fields, err := from.fields(in, e)
		if err != nil {
			return err
		}
		defer wipe(fields)
		b := w.bind(e.Label, e.Version, e.Kind, e.Exposure)
		seal.Do(func() {
			if e.Form == formMailbox {
				e.Inner, err = seal.SealMailbox(w.head.PK, b, fields)
			} else {
				e.Inner, err = to.Seal(b, fields)
			}
		})
		if err != nil {
			return fmt.Errorf("sealing a value: %w", err)
		}
		c.labels = append(c.labels, audit.Ref{Tag: w.tag(Label(e.Label)), Version: e.Version})
	}
	return c.putEntry(w, seal.EntryKey(w.tag(Label(e.Label))), e)
}

func carryState(from, w *view, it storage.Item, c *change, labels map[string]string) error {
	s, err := from.outer.OpenState(it.Key, it.Val)
	label, ok := labels[it.Key[1:]]
	if err != nil || !ok {
		return errDamaged
	}
	return c.putState(w, seal.StateKey(w.tag(Label(label))), s)
}

// complete compares what the two identities hold, read back from the store.
// It opens no inner lock. It returns how many labels there are.
func (k *Keeper) complete(ctx context.Context, old, heir identity.ID) (int, error) {
	want, _, err := k.holdings(ctx, old)
	if err != nil {
		return 0, err
	}
	got, labels, err := k.holdings(ctx, heir)
	if err != nil {
		return 0, err
	}
	if len(got) != len(want) {
		return 0, errDamaged
	}
	for key, h := range want {
		if got[key] != h {
			return 0, errDamaged
		}
	}
	return labels, nil
}

// holding is what the outer lock shows of a record, apart from its times.
type holding struct {
	version, last             uint32
	kind, exposure, cap, form uint8
	expires                   int64
	state                     seal.EntryState
}

// holdings lists the records of an identity by type and label.
func (k *Keeper) holdings(ctx context.Context, id identity.ID) (out map[string]holding, labels int, err error) {
	for try := 0; ; try++ {
		out, labels, err = k.holdingsOnce(ctx, id)
		if !errors.Is(err, storage.ErrConflict) || try == 15 {
			return out, labels, err
		}
	}
}

func (k *Keeper) holdingsOnce(ctx context.Context, id identity.ID) (map[string]holding, int, error) {
	w, err := k.load(ctx, id)
	if err != nil {
		return nil, 0, err
	}
	defer w.wipe()
	if err := w.exists(); err != nil {
		return nil, 0, err
	}
	out, names, labels, damaged := make(map[string]holding), make(map[string]string), 0, false
	_, same, err := k.setMatches(ctx, w, func(it storage.Item) {
		if it.Key[0] == entryType {
			e, err := w.outer.OpenEntry(it.Key, it.Val)
			if err != nil {
				damaged = true
				return
			}
			names[it.Key[1:]] = e.Label
			if e.Form != formNone {
				labels++
			}
			out["e"+e.Label] = holding{version: e.Version, last: e.Last, kind: e.Kind, exposure: e.Exposure, cap: e.Cap, form: e.Form, expires: e.Expires}
			return
		}
		s, err := w.outer.OpenState(it.Key, it.Val)
		damaged = damaged || err != nil
		out["s"+names[it.Key[1:]]] = holding{state: s}
	})
	switch {
	case err != nil:
		return nil, 0, err
	case !same:
		return nil, 0, storage.ErrConflict
	case damaged:
		return nil, 0, errDamaged
	}
	return out, labels, nil
}
