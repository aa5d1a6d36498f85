package vault

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// A mend puts a store together from a damaged one and a backup of it. It only
// reads both, and writes one archive: of every identity the better of two, and
// the log as far as it goes. What a restore does with an archive then holds
// for it too: what the log says was closed is closed, and the store stands
// when its last part is written. The rules of choice:
//
//   - What opens whole in the store stays as it is, if the log tells that it
//     comes after the state in the backup; else the store was rolled back.
//   - A cell never changes. One that is lost is taken from the backup, and
//     opens the present header and records.
//   - A cell that is erased, here or there, is erased.
//   - Of everything else the backup has the newest that opens.
//   - Whatever is taken, what the log closed and the header does not know is
//     closed, also where the generations of a store that was rolled back have
//     caught up with those in the log.

// Origin says where an identity of a mended store comes from.
type Origin uint8

// The origins.
const (
	FromStore     Origin = iota // as it is at present
	FromStoreCell               // as it is at present, opened by its cell in the backup
	FromBackup                  // as of the backup
)

// Part says what a mend takes of one identity.
type Part struct {
	Origin   Origin
	Why      string // it was not kept, or is damaged still; empty if there is nothing to say
	Later    int    // at most so many changes that the log knows are lost
	CellLost bool   // neither the store nor what opened the backup has its cell
}

// Mended is a store put together by [Archive.Mend], before it is written.
type Mended struct {
	// Archive is the store as one archive, opened, and Plan what a restore of
	// it does. Its Lost are identities that are in neither.
	Archive *Archive
	Plan    *Plan
	Parts   map[identity.ID]Part
	Left    int  // lines of the log that continue nothing and are left out
	Healed  bool // lines that the log lacks were taken from the backup
	// Unlogged counts the identities to whose present header no line of the
	// log leads. The lines of the mend stand for those that are missing.
	Unlogged int
	// Headless reports that the log begins late in the backup too, and cannot be
	// written anew: no line of it is taken over.
	Headless bool
	// Blind reports that lines after the backup are missing or damaged:
	// whether something was revoked there is not known.
	Blind bool

	apart bool // the log of the store is whole: what is left out of it is no damage that a mend ends
}

// Better reports that the mended store has something that the damaged one has
// not: there is a point in writing it.
func (m *Mended) Better() bool {
	for _, i := range m.Plan.Identities {
		if i.Since != SinceNothing || m.Parts[i.ID].Origin != FromStore {
			return true
		}
	}
	return m.Healed || !m.apart && (m.Left > 0 || m.Unlogged > 0)
}

// Sound reports that every identity is taken from the store as it is, and the
// log too: there is nothing to mend.
func (m *Mended) Sound() bool {
	return !m.Better() && len(m.Plan.Lost) == 0 && !slices.ContainsFunc(m.Plan.Identities, func(i Planned) bool { return i.Damaged })
}

// Mend reads the damaged store live and the backup a, which must have been
// opened, and writes the archive of a whole store to file, an empty one that
// must stay open. root is the root material of this machine, joined with that
// of the backup: [Archive.Root]. Nothing is changed in live. A store that
// changes meanwhile may give an error that wraps [storage.ErrConflict].
//
// Shred cells stay in this process: the file by itself opens nothing.
func (a *Archive) Mend(ctx context.Context, live storage.Backend, root Root, file io.ReadWriteSeeker, now time.Time) (*Mended, error) {
	backup, err := a.Plan(ctx, nil, now)
	if err != nil {
		return nil, err
	}
	m := &mender{
		a: a, live: live, st: root.r().Store(), root: root, now: now,
		backup: make(map[identity.ID]*Planned, len(backup.Identities)), cells: make(map[identity.ID]chosenCell), parts: make(map[identity.ID]Part),
		seen: make(map[identity.ID]*lineage), owed: make(map[identity.ID][]closing), unled: make(map[identity.ID]bool),
	}
	for i := range backup.Identities {
		m.backup[backup.Identities[i].ID] = &backup.Identities[i]
	}
	buf := bufio.NewWriterSize(file, 1<<16)
	if m.out, err = newFrameWriter(buf, a.id); err != nil {
		return nil, writing(err)
	}
	for _, step := range []func(context.Context) error{m.readLog, m.follow, m.list, m.writeHead, m.writeIdentities, m.writeKeys, m.writeLog, m.writeEnd} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if err := buf.Flush(); err != nil {
		return nil, writing(err)
	}
	return m.open(ctx, file)
}

// mender is one mend on its way.
type mender struct {
	a    *Archive
	live storage.Backend
	st   *seal.Store
	root Root
	rec  seal.StoreRecord
	now  time.Time
	out  *frameWriter
	pace pace

	backup map[identity.ID]*Planned
	ids    []identity.ID // of either, ascending
	cells  map[identity.ID]chosenCell
	parts  map[identity.ID]Part
	end    skbEnd

	log    history              // of the store, as it is there
	met    bool                 // it has the last line of the backup in its place
	unread bool                 // it could not be read to its end
	left   []audit.Record       // lines that continue nothing; zero for what is no line
	gap    bool                 // lines after the backup tell that others are missing
	lost   []identity.ID        // cannot be read, and are not in the backup
	unled  map[identity.ID]bool // no line leads to their header

	seen map[identity.ID]*lineage
	owed map[identity.ID][]closing // that the header taken does not know of
}

// chosenCell is the cell of an identity in the mended store.
type chosenCell struct {
	z   storage.Cell
	err error
}

func (m *mender) frame(kind frameKind, body []byte) error {
	if err := m.out.frame(kind, body); err != nil {
		return writing(err)
	}
	return nil
}

// list names every identity that the store, its log or the backup knows. The
// listing of a damaged database may end early; the log knows the rest.
func (m *mender) list(ctx context.Context) error {
	known := make(map[identity.ID]bool)
	for id := range m.backup {
		known[id] = true
	}
	for _, h := range []*history{&m.log, &m.a.log} {
		for id := range h.fates {
			known[id] = true
		}
	}
	var after identity.ID
	for {
		page, err := m.live.Identities(ctx, after, backupIdents)
		if err != nil && !errors.Is(err, storage.ErrDamaged) {
			return fmt.Errorf("listing identities: %w", err)
		}
		for _, it := range page {
			known[it.ID] = true
			after = it.ID
		}
		if len(page) < backupIdents {
			break
		}
	}
	for id := range known {
		m.ids = append(m.ids, id)
	}
	slices.SortFunc(m.ids, compareIDs)
	return nil
}

var errRotatedSince = refuse(Unavailable, "The root key at hand does not open this store: it was rotated after the backup.", "Put the root key of this store back, then repeat the command.")

// writeHead takes the store record of the store, or if it does not open that
// of the backup.
func (m *mender) writeHead(ctx context.Context) error {
	head := m.a.head
	head.created = uint64(m.now.UnixMilli())
	res, err := m.live.Get(ctx, identity.ID{})
	if err != nil && !errors.Is(err, storage.ErrDamaged) {
		return fmt.Errorf("reading store record: %w", err)
	}
	if err == nil && res.Rev > 0 {
		if id, err := seal.PeekStoreID(res.Meta); err == nil && id != head.store {
			return refused(FaultForeign)
		}
		if _, epoch, err := seal.Peek(res.Meta); err == nil && epoch > m.root.r().Epoch() && epoch-m.root.r().Epoch() < maxRotations {
			return errRotatedSince
		}
		if m.rec, err = m.st.OpenStoreRecord(res.Meta); err == nil && sha256.Sum256(m.rec.RecoveryPK) == head.recoveryHash || err == nil && !head.sealed() {
			head.record = res.Meta
			return m.frame(frameHead, head.encode())
		}
	}
	if m.rec, err = m.st.OpenStoreRecord(head.record); err != nil {
		return fmt.Errorf("opening the store record of the backup: %w", err)
	}
	return m.frame(frameHead, head.encode())
}

// maxRotations is how far ahead an epoch may be to be believed rather than
// damage to the prefix, which is in clear.
const maxRotations = 1 << 10

// writeIdentities goes through both in the order of their IDs.
func (m *mender) writeIdentities(ctx context.Context) error {
	next := 0
	var rest *records // of the identity that is taken from the backup
	err := m.a.walk(ctx, skbVisitor{
		begin: func(n uint32, id identity.ID, meta []byte) error {
			rest = nil
			if m.a.done[id] != n {
				return nil
			}
			for ; m.ids[next] != id; next++ {
				if _, err := m.take(ctx, m.ids[next]); err != nil {
					return err
				}
			}
			next++
			taken, err := m.take(ctx, id)
			if err != nil || taken {
				return err
			}
			rest = &records{m: m}
			return m.frame(frameIdentity, encodeIdentity(id, meta))
		},
		item: func(it storage.Item) error {
			if rest == nil {
				return nil
			}
			return rest.add(it)
		},
		done: func(identity.ID) error {
			if rest == nil {
				return nil
			}
			return rest.done()
		},
	})
	if err != nil {
		return err
	}
	for ; next < len(m.ids); next++ {
		if _, err := m.take(ctx, m.ids[next]); err != nil {
			return err
		}
	}
	return nil
}

// records writes the records of one identity.
type records struct {
	m    *mender
	body []byte
	n    uint64
}

func (r *records) add(it storage.Item) error {
	if len(r.body)+len(it.Key)+len(it.Val)+5 > maxFrame {
		if err := r.flush(); err != nil {
			return err
		}
	}
	r.body = appendRecord(r.body, it)
	r.n++
	return nil
}

func (r *records) flush() error {
	if len(r.body) == 0 {
		return nil
	}
	defer func() { r.body = r.body[:0] }()
	return r.m.frame(frameRecords, r.body)
}

func (r *records) done() error {
	if err := r.flush(); err != nil {
		return err
	}
	r.m.end.identities++
	r.m.end.records += r.n
	return r.m.frame(frameDone, encodeCount(r.n))
}

// writeKeys keeps the form of an archive. Nothing is in the frame, so that the
// file, should it outlive this process, opens nothing.
func (m *mender) writeKeys(context.Context) error {
	if !m.a.head.sealed() {
		return nil
	}
	sealed, err := seal.SealBackup(m.rec.RecoveryPK, m.st.ID(), m.out.chain, encodeKeys("", nil))
	if err != nil {
		return fmt.Errorf("sealing to the recovery key: %w", err)
	}
	return m.frame(frameKeys, sealed)
}

func (m *mender) writeEnd(context.Context) error {
	if err := m.frame(frameEnd, m.end.encode()); err != nil {
		return err
	}
	return m.frame(frameSignature, m.st.Sign(m.out.chain.signed()))
}

// open reads the archive back and plans its restore.
func (m *mender) open(ctx context.Context, file io.ReadWriteSeeker) (*Mended, error) {
	ar, err := OpenArchive(ctx, file)
	if err != nil {
		return nil, err
	}
	err = ar.opened(m.root, func(_ context.Context, id identity.ID) (storage.Cell, error) {
		c, ok := m.cells[id]
		if !ok {
			return storage.Cell{}, storage.ErrNoCell
		}
		return c.z, c.err
	})
	if err != nil {
		return nil, err
	}
	for _, r := range m.left { // a line that continues nothing may still close a key
		if closesKeys(r.Event) {
			ar.log.note(r)
		}
	}
	for id, late := range m.owed {
		f := ar.log.fate(id)
		f.closing = append(f.closing, late...)
	}
	out := &Mended{Archive: ar, Parts: m.parts, Unlogged: len(m.unled), Left: len(m.left), Healed: len(m.left) == 0 && !m.whole(), apart: m.apart()}
	if n := ar.log.broken; n > 0 { // so it was in the backup
		out.Left += int(ar.log.end()) - n + 1
	}
	mark, err := m.live.Head(ctx)
	out.Blind = m.gap || err != nil || mark.Unknown || mark.Lines > ar.log.end() || mark.Lines < m.a.log.end() || len(m.left) > 0
	if out.Plan, err = ar.Plan(ctx, nil, m.now); err != nil {
		return nil, err
	}
	out.Headless = out.Plan.headless()
	out.Plan.current = !out.Blind && out.Unlogged == 0
	out.Plan.Lost = m.reallyLost(out.Plan.Lost, ar.log.fates)
	for _, p := range out.Plan.Identities {
		part := m.parts[p.ID]
		if f := ar.log.fates[p.ID]; f != nil && (part.Origin == FromBackup || m.unled[p.ID]) && p.had > 0 && f.gen > p.had {
			part.Later = min(int(f.gen-p.had), f.lines)
			if part.Origin == FromStore {
				part.Why = whyOlder
			}
			m.parts[p.ID] = part
		}
	}
	return out, nil
}

// reallyLost leaves out identities of which nothing but the creation is known:
// it was announced, and may never have been carried out.
func (m *mender) reallyLost(born []identity.ID, fates map[identity.ID]*fate) []identity.ID {
	lost := m.lost
	for _, id := range born {
		if fates[id].lines > 1 && !slices.Contains(lost, id) {
			lost = append(lost, id)
		}
	}
	slices.SortFunc(lost, compareIDs)
	return lost
}

func compareIDs(x, y identity.ID) int { return bytes.Compare(x[:], y[:]) }
