package vault

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// What is wrong with an identity of the store, for people.
const (
	whyMissing  = "it is missing in the database"
	whyUnread   = "it cannot be read"
	whyHeader   = "its header does not open"
	whyCell     = "its shred key is lost"
	whyRecords  = "its records are not those that were written"
	whyOlder    = "the store was rolled back"
	whyErased   = "its shred key is erased"
	whyTombBad  = "its tombstone does not open"
	whyNoBackup = "; the backup does not have it"
	whyNoBetter = "; so it is in the backup"
)

// take writes an identity as it is in the store, if that is the better one or
// the only one. It reports false when the backup's is to be written, which
// voids what was.
func (m *mender) take(ctx context.Context, id identity.ID) (taken bool, err error) {
	f, err := m.look(ctx, id)
	if err != nil {
		return false, err
	}
	b := m.backup[id]
	part := Part{Origin: FromStore, Why: f.why, CellLost: f.why == whyCell}
	if f.fromBackup {
		part.Origin = FromStoreCell
	}
	switch {
	case f.why == whyErased: // for ever, whatever the backup has
	case f.why == "" && b != nil && !b.Damaged && f.head != nil && m.overtaken(id, &f, b):
		part = Part{Origin: FromBackup, Why: whyOlder}
	case f.why == "":
		if f.fromBackup {
			part.Why = whyCell
		}
	case b != nil && (!b.Damaged || !f.read):
		part.Origin = FromBackup
	case b != nil:
		part.Why += whyNoBetter
	default:
		part.Why += whyNoBackup
	}
	switch {
	case part.Origin == FromBackup:
		m.parts[id] = part
		m.owes(id, b.was)
		m.cellOfBackup(ctx, id)
		return false, nil
	case f.read:
		m.parts[id] = part
		m.owes(id, f.is)
		if f.why == "" && !m.led(id, &f) {
			m.unled[id] = true
		}
		return true, f.records.done()
	case f.why != whyMissing:
		m.lost = append(m.lost, id)
	}
	return true, nil
}

// overtaken reports whether what the store has does not come after what the
// backup has. What is shredded stays so, and a key that is closed never opens
// again: a store in which it does was rolled back, whatever its log and its
// generations say. The generations tell where the log does not.
func (m *mender) overtaken(id identity.ID, f *found, b *Planned) bool {
	if b.Status == identity.Shredded {
		return true
	}
	for _, s := range f.head.Slots {
		if s.State == seal.SlotLive && slices.Contains(b.shut, s.ID) {
			return true
		}
	}
	if l := m.seen[id]; l != nil {
		here, ok := l.byHash[f.is]
		there, ok2 := l.byHash[b.was]
		if ok && ok2 {
			_, applied := l.apart(here, true)
			return !applied[there]
		}
	}
	return b.had > f.head.Gen
}

// led reports whether the log leads to the header of an identity, as a
// verification would. A log that is broken in the backup cannot tell.
func (m *mender) led(id identity.ID, f *found) bool {
	l, partial := m.seen[id], m.begins() > 0
	switch {
	case m.a.log.broken > 0:
		return true
	case f.head == nil: // a tombstone
		return partial || l != nil && l.shred
	case f.head.Flags&seal.FlagAuditOwed != 0:
		return true
	case l == nil:
		return partial
	}
	at, ok := l.byHash[f.is]
	if !ok {
		return partial && l.unmoved(f.is)
	}
	problem, _ := l.apart(at, partial)
	return problem == ""
}

// owes finds what the log closed and a header does not know of, whatever its
// generation is. A header that the log does not know is left to the
// generations.
func (m *mender) owes(id identity.ID, header audit.Hash) {
	l := m.seen[id]
	if l == nil {
		return
	}
	at, ok := l.byHash[header]
	if !ok {
		return
	}
	_, applied := l.apart(at, true)
	var all []closing
	for _, h := range []*history{&m.log, &m.a.log} {
		if f := h.fates[id]; f != nil {
			all = append(all, f.closing...)
		}
	}
	// Of a header from before an earlier restore, that restore and what lines
	// before it close is owed as well.
	older := l.changes[0].event == audit.Restore && !applied[0]
	for _, c := range all {
		i, ok := l.byHash[c.is]
		if !ok && !older || ok && (applied[i] || l.closedLater(l.changes[i], applied)) {
			continue
		}
		c.gen = math.MaxUint64
		m.owed[id] = append(m.owed[id], c)
	}
}

// cellOfBackup prefers the cell that opens what the backup has. Of one that is
// erased it serves to write the tombstone.
func (m *mender) cellOfBackup(ctx context.Context, id identity.ID) {
	z, err := m.a.cell(ctx, id)
	if err != nil {
		return
	}
	c := chosenCell{z: z}
	if errors.Is(m.cells[id].err, storage.ErrErased) {
		c.err = storage.ErrErased
	}
	m.cells[id] = c
}

// found is an identity as it is in the store.
type found struct {
	why        string     // it is not whole; empty: it is
	read       bool       // header and records can be read, and are in the file
	fromBackup bool       // it is opened by the cell in the backup
	is         audit.Hash // of the header
	head       *seal.Header
	records    records
}

// look reads an identity of the store and writes it, all but its end.
func (m *mender) look(ctx context.Context, id identity.ID) (f found, err error) {
	f.records.m = m
	if err := m.pace.spend(ctx, costIdentity); err != nil {
		return f, err
	}
	cells, err := m.findCells(ctx, id)
	if err != nil {
		return f, err
	}
	res, err := m.live.Get(ctx, id)
	switch {
	case errors.Is(err, storage.ErrDamaged):
		f.why = whyUnread
		return f, nil
	case err != nil:
		return f, fmt.Errorf("reading identity: %w", err)
	case res.Rev == 0:
		f.why = whyMissing
		return f, nil
	}
	f.is = metaHash(res.Meta)
	m.judge(&f, id, res.Meta, cells)
	if err := m.frame(frameIdentity, encodeIdentity(id, res.Meta)); err != nil {
		return f, err
	}
	return f, m.lookThrough(ctx, &f, id, res.Rev)
}

// findCells chooses the cell of an identity: that of the store, else that of
// the backup. It returns those that may open the header.
func (m *mender) findCells(ctx context.Context, id identity.ID) (usable []storage.Cell, err error) {
	chosen := chosenCell{err: storage.ErrNoCell}
	for _, cell := range []func(context.Context, identity.ID) (storage.Cell, error){m.live.Cell, m.a.cell} {
		z, err := cell(ctx, id)
		switch {
		case err == nil:
			if usable = append(usable, z); chosen.err != nil {
				chosen = chosenCell{z: z}
			}
		case errors.Is(err, storage.ErrErased):
			m.cells[id] = chosenCell{err: storage.ErrErased}
			return nil, nil
		case !errors.Is(err, storage.ErrNoCell) && !errors.Is(err, storage.ErrDamaged):
			return nil, fmt.Errorf("reading cell: %w", err)
		default:
			usable = append(usable, storage.Cell{}) // keeps the places
		}
	}
	m.cells[id] = chosen
	return usable, nil
}

// judge opens the header, with either cell.
func (m *mender) judge(f *found, id identity.ID, meta []byte, cells []storage.Cell) {
	typ, _, err := seal.Peek(meta)
	switch {
	case err != nil:
		f.why = whyHeader
	case typ == seal.TypeTombstone:
		if _, err := m.st.OpenTombstone(id, meta); err != nil {
			f.why = whyTombBad
		}
	case errors.Is(m.cells[id].err, storage.ErrErased):
		f.why = whyErased
	case m.cells[id].err != nil:
		f.why = whyCell
	default:
		f.why = whyHeader
		for i, z := range cells {
			if head, err := m.st.OpenHeader(id, z, meta); err == nil {
				f.why, f.head, f.fromBackup = "", head, i > 0
				m.cells[id] = chosenCell{z: z}
				return
			}
		}
	}
}

// lookThrough writes the records, and compares them with the set-hash.
func (m *mender) lookThrough(ctx context.Context, f *found, id identity.ID, rev storage.Rev) error {
	var outer *seal.Outer
	var sum seal.SetHash
	if f.head != nil {
		outer = m.st.Outer(id, f.head)
		defer outer.Wipe()
	}
	for after := ""; ; {
		page, err := m.live.List(ctx, id, after, pageSize)
		switch {
		case errors.Is(err, storage.ErrDamaged):
			f.why = whyUnread
			return nil
		case err != nil:
			return fmt.Errorf("listing records: %w", err)
		case page.Rev != rev:
			return fmt.Errorf("reading an identity that does not rest: %w", storage.ErrConflict)
		}
		for _, it := range page.Items {
			if it.Key <= after {
				f.why = whyUnread
				return nil
			}
			if outer != nil {
				sum = sum.Add(outer.Elem(it.Key, it.Val))
			}
			if err := f.records.add(it); err != nil {
				return err
			}
			after = it.Key
		}
		if !page.More {
			break
		}
	}
	f.read = true
	if f.head != nil && (sum != f.head.Set || f.records.n != uint64(f.head.Count)) {
		f.why = whyRecords
	}
	return nil
}
