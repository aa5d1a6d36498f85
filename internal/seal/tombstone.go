package seal

import "github.com/solekey/solekey/identity"

// Tombstone is the Meta of a shredded identity. It is final: the ID never
// lives again.
type Tombstone struct {
	Shredded  int64 // Unix milliseconds
	AuditOwed bool
	Slots     []DeadSlot // so that former keys hear that they are revoked
}

// DeadSlot proves a key of a shredded identity. It opens nothing.
type DeadSlot struct {
	ID       identity.SlotID
	AuthHash [32]byte
}

func (t *Tombstone) fields(w *wire) {
	w.time(&t.Shredded)
	w.flag(&t.AuditOwed, FlagAuditOwed)
	n := w.count(len(t.Slots), MaxSlots, sizeDeadSlot)
	if !w.writing && n > 0 {
		t.Slots = make([]DeadSlot, n)
	}
	for i := range n {
		w.fixed(t.Slots[i].ID[:])
		w.fixed(t.Slots[i].AuthHash[:])
	}
}

func (t *Tombstone) encode() ([]byte, error) {
	w := framed(pad256(4 + 10 + sizeDeadSlot*len(t.Slots)))
	t.fields(w)
	return w.finish(pad256)
}

func decodeTombstone(pt []byte) (Tombstone, error) {
	body, err := unframe(pt, pad256)
	if err != nil {
		return Tombstone{}, err
	}
	var t Tombstone
	w := &wire{b: body}
	t.fields(w)
	if err := w.end(); err != nil {
		return Tombstone{}, err
	}
	return t, nil
}

// SealTombstone seals t under the newest epoch. It needs no cell secret, as
// the cell is erased by then.
func (s *Store) SealTombstone(id identity.ID, t Tombstone) ([]byte, error) {
	pt, err := t.encode()
	if err != nil {
		return nil, err
	}
	key := expand(&s.current().prk, labelTombstone, id[:])
	return s.sealMeta(TypeTombstone, aadTombstone, id, key, pt), nil
}

// OpenTombstone opens what SealTombstone made for this identity.
func (s *Store) OpenTombstone(id identity.ID, meta []byte) (Tombstone, error) {
	e, err := s.opener(TypeTombstone, meta)
	if err != nil {
		return Tombstone{}, err
	}
	key := expand(&e.prk, labelTombstone, id[:])
	pt, err := s.openMeta(aadTombstone, id, key, meta)
	if err != nil {
		return Tombstone{}, err
	}
	return decodeTombstone(pt)
}
