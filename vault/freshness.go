package vault

import (
	"context"
	"fmt"
	"sync"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/storage"
)

// freshness remembers, for identities that this process has compared with
// their set-hash, the element of every record. So a record that is replayed,
// removed or injected underneath a running process is found at its next read,
// and the whole comparison is made again only after another process has
// changed the identity.
type freshness struct {
	mu    sync.Mutex
	known map[identity.ID]*known
	total int // elements in known
}

// known is an identity at one set-hash. It is replaced, never changed.
type known struct {
	set   seal.SetHash
	elems map[string]seal.SetHash
}

// maxElements bounds what a process remembers: about 100 bytes each.
const maxElements = 1 << 17

func (f *freshness) get(id identity.ID) *known {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known[id]
}

func (f *freshness) put(id identity.ID, n *known) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.known[id]; old != nil {
		f.total -= len(old.elems)
	}
	if f.known == nil || f.total+len(n.elems) > maxElements {
		f.known, f.total = make(map[identity.ID]*known), 0
	}
	f.known[id] = n
	f.total += len(n.elems)
}

// checkSet compares what was loaded with the set-hash of the header. A
// mismatch quarantines the identity: records were rolled back, removed,
// injected or edited below. An identity that changed since it was loaded gives
// [storage.ErrConflict]: load it again.
func (k *Keeper) checkSet(ctx context.Context, w *view) error {
	if w.rev == 0 || w.head == nil || w.tomb != nil {
		return nil
	}
	n := k.fresh.get(w.id)
	if n == nil || n.set != w.head.Set {
		elems, same, err := k.setMatches(ctx, w, nil)
		if err != nil {
			return err
		}
		if !same {
			return storage.ErrConflict
		}
		n = &known{set: w.head.Set, elems: elems}
		k.fresh.put(w.id, n)
	}
	for _, key := range w.asked {
		stored, ok := w.vals[key]
		elem, want := n.elems[key]
		if ok != want || ok && w.outer.Elem(key, stored) != elem {
			return errDamaged
		}
	}
	return nil
}

// setMatches lists every record, shows it to visit if there is one, and sums
// it up. It reports false without an
// error if the identity changed under the listing.
func (k *Keeper) setMatches(ctx context.Context, w *view, visit func(storage.Item)) (map[string]seal.SetHash, bool, error) {
	var sum seal.SetHash
	elems := make(map[string]seal.SetHash, w.head.Count)
	after := ""
	for {
		page, err := k.backend.List(ctx, w.id, after, pageSize)
		if err != nil {
			return nil, false, fmt.Errorf("listing records: %w", err)
		}
		if page.Rev != w.rev {
			return nil, false, nil
		}
		for _, it := range page.Items {
			elem := w.outer.Elem(it.Key, it.Val)
			elems[it.Key] = elem
			sum = sum.Add(elem)
			after = it.Key
			if visit != nil {
				visit(it)
			}
		}
		if !page.More {
			break
		}
	}
	if sum != w.head.Set || len(elems) != int(w.head.Count) {
		return nil, false, errDamaged
	}
	return elems, true, nil
}

// committed carries what is remembered over a commit of this process, so that
// the next call need not list.
func (k *Keeper) committed(w *view, ops []storage.Op) {
	n := k.fresh.get(w.id)
	if n == nil || len(ops) > len(n.elems)/2+8 {
		return
	}
	next := &known{set: w.head.Set, elems: make(map[string]seal.SetHash, len(n.elems)+len(ops))}
	var sum seal.SetHash
	for key, elem := range n.elems {
		next.elems[key] = elem
	}
	for _, op := range ops {
		if op.Val == nil {
			delete(next.elems, op.Key)
			continue
		}
		next.elems[op.Key] = w.outer.Elem(op.Key, op.Val)
	}
	for _, elem := range next.elems {
		sum = sum.Add(elem)
	}
	if sum == next.set {
		k.fresh.put(w.id, next)
	}
}
