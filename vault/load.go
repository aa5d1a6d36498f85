package vault

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// view is one identity as it was at one point in time: header, keys for its
// records, and the sealed records that were asked for. It lives for one call.
type view struct {
	id    identity.ID
	rev   storage.Rev // 0: no such identity, the header is the decoy's
	meta  []byte
	cell  [32]byte
	head  *seal.Header    // nil: shredded
	tomb  *seal.Tombstone // of a shredded identity
	outer *seal.Outer
	asked []string // keys of the records in vals, those that are absent too
	vals  map[string][]byte
	st    *store
}

// errDamaged reports an identity that cannot be opened as it was sealed. It
// is quarantined: every key that names it hears unavailable, and the others
// are served.
var errDamaged = fmt.Errorf("identity does not open: %w", storage.ErrDamaged)

// load reads the identity with the given keys. An ID that does not exist
// gives a view of the decoy with Rev 0. What was loaded counts only after
// [Keeper.checkSet], which waits until a key has proved itself: a stranger
// learns nothing from its cost or its outcome.
func (k *Keeper) load(ctx context.Context, id identity.ID, keys ...string) (*view, error) {
	for try := 1; ; try++ {
		v, err := k.loadOnce(ctx, id, keys...)
		if !errors.Is(err, errEpochGone) || try == epochTries {
			return v, err
		}
	}
}

func (k *Keeper) loadOnce(ctx context.Context, id identity.ID, keys ...string) (*view, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	cell, cellErr := k.backend.Cell(ctx, id)
	res, err := k.backend.Get(ctx, id, keys...)
	if err != nil {
		return nil, fmt.Errorf("reading identity: %w", err)
	}
	v := &view{id: id, rev: res.Rev, meta: res.Meta, cell: cell, asked: keys, vals: res.Vals, st: st}
	switch {
	case res.Rev == 0:
		return k.loadDecoy(v)
	case errors.Is(cellErr, storage.ErrErased):
		return k.loadErased(ctx, v)
	case cellErr != nil && !errors.Is(cellErr, storage.ErrNoCell):
		return nil, fmt.Errorf("reading cell: %w", cellErr)
	case cellErr != nil:
		return nil, errDamaged
	}
	return k.loadHeader(ctx, v)
}

func (k *Keeper) loadDecoy(v *view) (*view, error) {
	d := v.st.decoy
	head, err := v.st.OpenHeader(d.id, d.cell, d.meta)
	if err != nil {
		return nil, err
	}
	v.head = head
	v.outer = v.st.Outer(d.id, head)
	return v, nil
}

func (k *Keeper) loadHeader(ctx context.Context, v *view) (*view, error) {
	typ, epoch, err := seal.Peek(v.meta)
	if err != nil {
		return nil, errDamaged
	}
	if !v.st.root.Has(epoch) {
		if v.st, err = k.openEpoch(ctx, epoch); err != nil {
			return nil, err
		}
	}
	if typ == seal.TypeTombstone {
		return v, k.afterTombstone(ctx, v)
	}
	if v.head, err = v.st.OpenHeader(v.id, v.cell, v.meta); err != nil {
		return nil, errDamaged
	}
	v.outer = v.st.Outer(v.id, v.head)
	if v.head.Flags&seal.FlagShredPending != 0 {
		// A shred that was cut off. Its commit closed every slot; what is
		// missing is the erasure, which intent in the header orders.
		return v, k.finishShred(ctx, v)
	}
	return v, nil
}

// loadErased reads an identity whose cell is erased: a tombstone, or a shred
// that was cut off before it. The erasure alone is no intent, since whoever
// can write the cell file can forge one; without the line of a shred nothing
// is deleted.
func (k *Keeper) loadErased(ctx context.Context, v *view) (*view, error) {
	typ, epoch, err := seal.Peek(v.meta)
	if err != nil {
		return nil, errDamaged
	}
	if typ == seal.TypeHeader {
		announced, err := k.shredAnnounced(ctx, v.id)
		if err != nil {
			return nil, err
		}
		if !announced {
			return nil, errDamaged
		}
		return v, k.bury(ctx, v)
	}
	if !v.st.root.Has(epoch) {
		if v.st, err = k.openEpoch(ctx, epoch); err != nil {
			return nil, err
		}
	}
	return v, v.openTombstone()
}

// openEpoch loads root material again. An epoch that it still lacks, reading
// after reading, is damage to the clear prefix.
func (k *Keeper) openEpoch(ctx context.Context, epoch uint32) (*store, error) {
	st, err := k.open(ctx, epoch)
	if errors.Is(err, seal.ErrRefused) {
		return nil, errEpochGone
	}
	return st, err
}

// afterTombstone opens a tombstone beside a cell that lives, which a shred
// leaves that was cut off in between, and erases the cell. What does not open
// is no tombstone, and erases nothing.
func (k *Keeper) afterTombstone(ctx context.Context, w *view) error {
	if err := w.openTombstone(); err != nil {
		return err
	}
	if err := k.erase(ctx, w.id); err != nil {
		k.log.Warn("the cell of a shredded identity could not be erased")
	}
	return nil
}

func (w *view) openTombstone() error {
	tomb, err := w.st.OpenTombstone(w.id, w.meta)
	if err != nil {
		return errDamaged
	}
	w.head, w.tomb = nil, &tomb
	return nil
}

// shredAnnounced looks for the line of a shred.
func (k *Keeper) shredAnnounced(ctx context.Context, id identity.ID) (bool, error) {
	for r, err := range audit.Records(ctx, k.backend) {
		if err != nil {
			return false, fmt.Errorf("looking for the line of a shred: %w", err)
		}
		if r.Identity == id && r.Event == audit.Shred {
			return true, nil
		}
	}
	return false, nil
}

// entries opens every entry of the identity, removed ones included, in one
// consistent listing that is compared with the set-hash. With an error of
// damage it returns those that open.
func (k *Keeper) entries(ctx context.Context, w *view) ([]*seal.Entry, error) {
	var out []*seal.Entry
	damaged := false
	elems, same, err := k.setMatches(ctx, w, func(it storage.Item) {
		if it.Key[0] != entryType {
			return
		}
		e, err := w.outer.OpenEntry(it.Key, it.Val)
		if err != nil {
			damaged = true
			return
		}
		out = append(out, e)
	})
	switch {
	case err != nil:
		return out, err
	case !same:
		return nil, storage.ErrConflict
	case damaged:
		return out, errDamaged
	}
	k.fresh.put(w.id, &known{set: w.head.Set, elems: elems})
	return out, nil
}

// listing loads the identity with all its entries, again if it changed
// meanwhile. Without proof, if there is one, no entry is read.
func (k *Keeper) listing(ctx context.Context, id identity.ID, proof func(*view) bool) (*view, []*seal.Entry, error) {
	for try := 0; ; try++ {
		w, err := k.load(ctx, id)
		if err != nil || w.rev == 0 || w.head == nil || proof != nil && !proof(w) {
			return w, nil, err
		}
		es, err := k.entries(ctx, w)
		if err == nil || !errors.Is(err, storage.ErrConflict) || try == 15 {
			return w, es, err
		}
		w.wipe()
	}
}

const (
	pageSize  = 256
	entryType = 0x01
)

func (w *view) tag(l Label) audit.Tag { return w.st.Tag(w.id, string(l)) }

// entry opens the entry of l, whose tag this is; nil if there is none. The
// record must have been asked for in load.
func (w *view) entry(l Label, tag audit.Tag) (*seal.Entry, error) {
	key := seal.EntryKey(tag)
	b, ok := w.vals[key]
	if !ok {
		return nil, nil
	}
	e, err := w.outer.OpenEntry(key, b)
	if err != nil || e.Label != string(l) {
		return nil, errDamaged
	}
	return e, nil
}

func (w *view) hash() audit.Hash { return metaHash(w.meta) }

func metaHash(meta []byte) audit.Hash {
	sum := sha256.Sum256(meta)
	return audit.Hash(sum[:16])
}

// bind is what a value of this identity is sealed to.
func (w *view) bind(l string, version uint32, kind, exposure uint8) seal.Bind {
	return seal.Bind{Store: w.st.ID(), ID: w.id, Version: version, Kind: kind, Exposure: exposure, Label: l}
}

func random32() [32]byte {
	var b [32]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return b
}

// Times are stored in milliseconds; 0 is no time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
