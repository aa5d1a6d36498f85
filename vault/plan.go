package vault

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// Plan says what a restore of an archive does, identity by identity, before
// anything is written.
type Plan struct {
	Identities []Planned
	// Lost are identities that were made after the backup: the log knows of
	// them, and nothing can bring them back.
	Lost []identity.ID
	// Newer is how many lines the ledger has after the log of the backup;
	// negative without a ledger: what was revoked since is not known.
	Newer int
	// Known is when the last line of the newest log was written: what was
	// closed after that is not known.
	Known time.Time

	archive *Archive
	ledger  io.ReadSeeker
	log     history
	current bool // the log of the archive is the newest that there is
}

// Planned is one identity of a plan.
type Planned struct {
	ID      identity.ID
	Name    string // empty if it is shredded or does not open
	Status  identity.Status
	Live    int  // keys that are not closed
	Records int  // zero once shredded
	Damaged bool // it does not open; it is restored as it is
	// Since says what the log knows of it that the backup does not: its keys
	// were closed after the backup and are closed by the restore.
	Since  Since
	Closed []identity.SlotID // keys that the restore closes

	begins uint32 // frame
	had    uint64 // generation of the header in the archive; 0: it does not open
	meta   []byte // what is stored
	was    audit.Hash
	shut   []identity.SlotID // closed in the header in the archive
	gen    uint64
	erase  bool // its cell is stored erased
}

// Since says what happened to an identity between its backup and the restore.
type Since uint8

// What the newest log knows that the backup does not.
const (
	SinceNothing Since = iota
	SinceKeys          // some of its keys were closed
	SinceRevoked       // all of them
	SinceShredded
)

var sinceNotes = [...]string{SinceNothing: "", SinceKeys: "closed", SinceRevoked: "revoked", SinceShredded: "shredded"}

// String returns the word for it, empty for nothing.
func (s Since) String() string {
	if int(s) >= len(sinceNotes) {
		return ""
	}
	return sinceNotes[s]
}

// Plan decides what a restore does. ledger is the newest audit log of the lost
// store, nil if there is none: every key that it says was closed after the
// backup, and every identity revoked or shredded, is so in the restored store
// before its first call. The archive must have been opened. Nothing is
// written.
func (a *Archive) Plan(ctx context.Context, ledger io.ReadSeeker, now time.Time) (*Plan, error) {
	if a.cell == nil {
		return nil, refuse(Unauthorized, "The backup has not been opened.", "")
	}
	p := &Plan{archive: a, ledger: ledger, log: a.log, Newer: -1}
	if ledger != nil {
		h, err := a.ledger(ctx, ledger)
		if err != nil {
			return nil, err
		}
		p.log, p.Newer = h, int(h.end()-a.log.end())
	}
	p.Known = p.log.last
	var v *visitor
	err := a.walk(ctx, skbVisitor{
		begin: func(n uint32, id identity.ID, meta []byte) (err error) {
			v = nil
			if a.done[id] == n {
				v, err = p.open(ctx, n, id, meta)
			}
			return err
		},
		item: func(it storage.Item) error { v.add(it); return nil },
		done: func(id identity.ID) error { return p.decide(v, now) },
	})
	if err != nil {
		return nil, err
	}
	for id, f := range p.log.fates {
		if _, ok := a.done[id]; !ok && f.born {
			p.Lost = append(p.Lost, id)
		}
	}
	slices.SortFunc(p.Lost, func(x, y identity.ID) int { return bytes.Compare(x[:], y[:]) })
	return p, nil
}

// visitor is one identity of the archive, as far as it opens.
type visitor struct {
	p     Planned
	typ   seal.Type
	cell  [32]byte
	gone  bool // the cell is erased
	head  *seal.Header
	outer *seal.Outer
	sum   seal.SetHash
}

func (p *Plan) open(ctx context.Context, n uint32, id identity.ID, meta []byte) (*visitor, error) {
	a := p.archive
	v := &visitor{p: Planned{ID: id, begins: n, meta: bytes.Clone(meta), was: metaHash(meta)}}
	cell, err := a.cell(ctx, id)
	switch {
	case err == nil:
		v.cell = cell
	case errors.Is(err, storage.ErrErased):
		v.cell, v.gone = cell, true // a mend may still know what it was, for the tombstone
	case !errors.Is(err, storage.ErrNoCell) && !errors.Is(err, storage.ErrDamaged):
		return nil, fmt.Errorf("reading cell: %w", err)
	}
	if v.typ, _, err = seal.Peek(meta); err != nil || v.typ != seal.TypeHeader {
		return v, nil
	}
	if v.head, err = a.store.OpenHeader(id, v.cell, meta); err == nil {
		v.outer, v.p.had = a.store.Outer(id, v.head), v.head.Gen
	}
	return v, nil
}

// add counts a record, of the revision that counts.
func (v *visitor) add(it storage.Item) {
	if v == nil {
		return
	}
	v.p.Records++
	if v.outer != nil {
		v.sum = v.sum.Add(v.outer.Elem(it.Key, it.Val))
	}
}

// decide says what becomes of an identity.
func (p *Plan) decide(v *visitor, now time.Time) error {
	if v == nil {
		return nil
	}
	f := p.log.fates[v.p.ID]
	if f == nil {
		f = new(fate)
	}
	var err error
	switch {
	case v.typ == seal.TypeTombstone && !p.opens(v) && v.shredded(f):
		err = p.bury(v, now)
	case v.typ == seal.TypeTombstone:
		v.p.erase, v.p.Status, v.p.Records = true, identity.Shredded, 0
		v.p.Damaged = !p.opens(v)
	case v.shredded(f):
		err = p.bury(v, now)
	case v.head == nil || v.gone:
		v.p.Damaged, v.p.erase = true, v.gone
	default:
		v.p.Damaged = v.sum != v.head.Set || v.p.Records != int(v.head.Count)
		err = p.close(v, f, now)
	}
	if v.outer != nil {
		v.outer.Wipe()
	}
	clear(v.cell[:])
	p.Identities = append(p.Identities, v.p)
	return err
}

// opens reports whether a tombstone opens.
func (p *Plan) opens(v *visitor) bool {
	_, err := p.archive.store.OpenTombstone(v.p.ID, v.p.meta)
	return err == nil
}

// shredded reports whether the identity is shredded by now. An erased cell
// alone does not say so, as who can write the cell file can erase one.
func (v *visitor) shredded(f *fate) bool {
	if v.head != nil && v.head.Flags&seal.FlagShredPending != 0 {
		return true
	}
	return slices.ContainsFunc(f.closing, func(c closing) bool {
		return c.event == audit.Shred && (v.head == nil || c.gen == 0 || c.gen > v.head.Gen)
	})
}

func (p *Plan) bury(v *visitor, now time.Time) (err error) {
	tomb := seal.Tombstone{Shredded: millis(now)}
	if v.head != nil {
		v.p.Name = v.head.Name
		for _, s := range v.head.Slots {
			tomb.Slots = append(tomb.Slots, seal.DeadSlot{ID: s.ID, AuthHash: s.AuthHash})
		}
	}
	v.p.Status, v.p.Since, v.p.Records, v.p.erase = identity.Shredded, SinceShredded, 0, true
	if v.p.meta, err = p.archive.store.SealTombstone(v.p.ID, tomb); err != nil {
		return fmt.Errorf("sealing tombstone: %w", err)
	}
	return nil
}

// close carries out what the log says was closed since. The header then gets
// a generation above all that the log knows, so that no line of the past can
// be taken for one of the restored store.
func (p *Plan) close(v *visitor, f *fate, now time.Time) (err error) {
	h := v.head
	was := h.State
	for _, s := range h.Slots {
		if s.State != seal.SlotLive {
			v.p.shut = append(v.p.shut, s.ID)
		}
	}
	for _, c := range f.closing {
		if c.gen > h.Gen {
			v.closes(c)
		}
	}
	v.p.Name, v.p.gen = h.Name, h.Gen
	for _, s := range h.Slots {
		if s.State == seal.SlotLive {
			v.p.Live++
		}
	}
	switch {
	case h.State == seal.StateRevoked && was != seal.StateRevoked:
		v.p.Since = SinceRevoked
	case len(v.p.Closed) > 0:
		v.p.Since = SinceKeys
	}
	v.p.Status = identity.Status(h.State)
	if v.p.Since == SinceNothing && f.gen <= h.Gen {
		return nil
	}
	h.Gen = max(h.Gen, f.gen) + 1
	h.Changed = millis(now)
	v.p.gen = h.Gen
	if v.p.meta, err = p.archive.store.SealHeader(v.p.ID, v.cell, h); err != nil {
		return fmt.Errorf("sealing header: %w", err)
	}
	return nil
}

// closes closes the slots that a line names. A line that names none, as one
// that was owed, may mean each of them.
func (v *visitor) closes(c closing) {
	if c.event == audit.Revoke {
		v.head.State = seal.StateRevoked
	}
	for i := range v.head.Slots {
		s := &v.head.Slots[i]
		if s.State == seal.SlotLive && (c.event == audit.Revoke || c.slot == "" || strings.HasPrefix(hex.EncodeToString(s.ID[:]), c.slot)) {
			closeSlot(s)
			v.p.Closed = append(v.p.Closed, s.ID)
		}
	}
}
