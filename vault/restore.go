package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
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

// RestoreOptions adjust a restore. The zero value is right.
type RestoreOptions struct {
	Now      func() time.Time      // nil: time.Now
	Progress func(done, total int) // called after each identity; nil: nothing
}

// Restore carries out the plan in b, a fresh engine that holds nothing. The
// store record is written last: until then nobody can open the store, and
// after an error or a crash the engine is to be made anew and the restore
// repeated. The root of [Archive.Root] must rest at its source before.
//
// The log of the restored store begins with every line of the newest log that
// is at hand, byte for byte; a signed line of the restore continues its
// chain, then one line per identity.
func (p *Plan) Restore(ctx context.Context, b storage.Backend, o RestoreOptions) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := mustBeFresh(ctx, b); err != nil {
		return err
	}
	r := &restore{p: p, b: b, o: o}
	if err := r.replay(ctx); err != nil {
		return err
	}
	if err := r.announce(ctx); err != nil {
		return err
	}
	if err := r.identities(ctx); err != nil {
		return err
	}
	rev, err := b.Commit(ctx, identity.ID{}, 0, storage.Batch{Meta: p.archive.head.record})
	if err != nil {
		return fmt.Errorf("writing store record: %w", err)
	}
	if _, err := b.Commit(ctx, identity.ID{}, rev, storage.Batch{}); err != nil && !errors.Is(err, storage.ErrConflict) {
		return fmt.Errorf("settling: %w", err)
	}
	return nil
}

var errNotFresh = refuse(Exists, "There is a store already; a restore makes a new one.", "Restore into an empty directory: --into DIR.")

func mustBeFresh(ctx context.Context, b storage.Backend) error {
	res, err := b.Get(ctx, identity.ID{})
	if err != nil {
		return fmt.Errorf("looking for a store record: %w", err)
	}
	some, err := b.Identities(ctx, identity.ID{}, 1)
	if err != nil {
		return fmt.Errorf("looking for identities: %w", err)
	}
	head, err := b.Head(ctx)
	if err != nil {
		return fmt.Errorf("looking for a log: %w", err)
	}
	if res.Rev != 0 || len(some) > 0 || head.Lines > 0 {
		return errNotFresh
	}
	return nil
}

// restore is one restore on its way.
type restore struct {
	p *Plan
	b storage.Backend
	o RestoreOptions

	lines  uint64 // written
	prev   [32]byte
	bodies [][]byte
	size   int

	at   int // of p.Identities: the next one
	rev  storage.Rev
	ops  []storage.Op
	full int // bytes of ops
}

// headless reports a log without its beginning, which was moved away. It
// cannot be written anew, as the journal numbers from 0.
func (p *Plan) headless() bool { return p.log.from > 0 && p.archive.log.from > 0 }

// leftOut is the number, from 1, of the first line of the newest log that is
// not taken over; 0: all are.
func (p *Plan) leftOut() uint64 {
	if p.headless() {
		return min(p.log.from, p.archive.log.from) + 1
	}
	return uint64(p.log.broken)
}

// replay writes the newest log that there is. The journal numbers and chains
// the lines as they were, so they come out the same; from a line on that did
// not continue its log, nothing is taken over, and nothing of a log without
// its beginning. A ledger that begins later continues the log of the backup.
func (r *restore) replay(ctx context.Context) error {
	want := r.p.log.end()
	if out := r.p.leftOut(); out > 0 {
		want = out - 1
	}
	if r.p.headless() {
		want = 0
	} else if err := r.replayAll(ctx); err != nil {
		return err
	}
	if r.lines != want || r.p.leftOut() == 0 && r.prev != r.p.log.prev {
		return errOtherLedger // it is not the file that was read before
	}
	if r.lines > 0 {
		return nil
	}
	rec := genesis(r.p.archive.store, nil, r.o.Now())
	rec.Note = r.p.archive.born
	return r.record(ctx, rec)
}

func (r *restore) replayAll(ctx context.Context) error {
	line := func(line []byte) error { return r.line(ctx, line) }
	skip := uint64(0)
	if r.p.ledger == nil || r.p.log.from > 0 {
		if err := r.p.archive.walk(ctx, skbVisitor{line: line}); err != nil {
			return err
		}
		skip = r.p.archive.log.end() - r.p.log.from
	}
	if r.p.ledger != nil {
		err := eachLine(ctx, r.p.ledger, func(l []byte) error {
			if skip > 0 {
				skip--
				return nil
			}
			return line(l)
		})
		if err != nil {
			return err
		}
	}
	return r.flush(ctx)
}

func (r *restore) line(ctx context.Context, line []byte) error {
	if b := r.p.log.broken; b > 0 && r.lines+1 >= uint64(b) {
		return nil
	}
	prefix := linePrefix(r.lines, r.prev)
	if !bytes.HasPrefix(line, prefix) {
		return errOtherLedger
	}
	body := append([]byte{'{'}, line[len(prefix):]...)
	if len(r.bodies) == storage.MaxBodies || r.size+len(body) > maxFrame/2 {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	r.bodies = append(r.bodies, body)
	r.size += len(body)
	r.lines++
	r.prev = sha256.Sum256(line)
	return nil
}

func (r *restore) flush(ctx context.Context) error {
	if len(r.bodies) == 0 {
		return nil
	}
	first, err := r.b.Append(ctx, r.bodies...)
	if err != nil {
		return fmt.Errorf("%w: %w", audit.ErrUnwritable, err)
	}
	if first+uint64(len(r.bodies)) != r.lines {
		return errNotFresh // somebody else writes here
	}
	r.bodies, r.size = r.bodies[:0], 0
	return nil
}

// record writes one line of the restore itself. Its number and the hash of
// the line before are those that the journal gives it.
func (r *restore) record(ctx context.Context, rec audit.Record) error {
	if err := audit.Append(ctx, r.b, rec); err != nil {
		return err
	}
	r.lines++
	return nil
}

// announce writes the line of the restore. It is signed, with its place in the
// chain, because it tells verification that what the lines before it say of
// the store holds no longer.
func (r *restore) announce(ctx context.Context) error {
	head, err := r.b.Head(ctx)
	if err != nil {
		return fmt.Errorf("reading the head of the log: %w", err)
	}
	if head.Lines != r.lines {
		return errNotFresh
	}
	a := r.p.archive
	note := rebirth{backup: a.id, broken: r.p.leftOut()}
	sig := a.store.Sign(note.signed(a.head.store, head.Lines, head.Hash))
	rec := audit.Record{Time: r.o.Now(), Event: audit.Restore, Key: audit.Owner, Via: "cli", From: fromBackup, N: len(r.p.Identities), Note: note.text(sig)}
	if r.p.ledger != nil || r.p.current {
		rec.From = fromLedger
	}
	return r.record(ctx, rec)
}

// Where the log of a restored store came from.
const (
	fromBackup = "backup" // what was written after it is lost
	fromLedger = "ledger"
)

// rebirth is the note of the line of a restore.
type rebirth struct {
	backup [16]byte
	broken uint64 // line, from 1, from which the older log was not taken over; 0: none. Beyond its own place: the log had no beginning
}

const labelRebirth = "solekey/v1/restore\x00"

func (n rebirth) signed(store identity.ID, seq uint64, prev [32]byte) []byte {
	b := append([]byte(labelRebirth), store[:]...)
	b = append(b, n.backup[:]...)
	b = binary.BigEndian.AppendUint64(b, seq)
	b = append(b, prev[:]...)
	return binary.BigEndian.AppendUint64(b, n.broken)
}

func (n rebirth) text(sig []byte) string {
	return fmt.Sprintf("%x %d %s", n.backup, n.broken, base64.StdEncoding.EncodeToString(sig))
}

// parseRebirth reads the note of a restore's line, and proves that the store
// wrote it there.
func parseRebirth(st *seal.Store, r audit.Record) (n rebirth, ok bool) {
	words := strings.Fields(r.Note)
	if r.Event != audit.Restore || r.Denied || !r.Identity.IsZero() || len(words) != 3 {
		return n, false
	}
	id, err1 := hex.DecodeString(words[0])
	broken, err2 := strconv.ParseUint(words[1], 10, 32)
	sig, err3 := base64.StdEncoding.DecodeString(words[2])
	prev, err4 := hex.DecodeString(r.Prev)
	if errors.Join(err1, err2, err3, err4) != nil || len(id) != len(n.backup) || len(prev) != sha256.Size {
		return n, false
	}
	n = rebirth{backup: [16]byte(id), broken: broken}
	return n, seal.Signed(st.AuditPublic(), n.signed(st.ID(), r.Seq, [32]byte(prev)), sig)
}

// identities writes every identity of the plan.
func (r *restore) identities(ctx context.Context) error {
	var cur *Planned
	err := r.p.archive.walk(ctx, skbVisitor{
		begin: func(n uint32, id identity.ID, _ []byte) error {
			if cur = nil; r.at < len(r.p.Identities) && r.p.Identities[r.at].begins == n {
				cur = &r.p.Identities[r.at]
				return r.begin(ctx, cur)
			}
			return nil
		},
		item: func(it storage.Item) error { return r.item(ctx, cur, it) },
		done: func(identity.ID) error {
			if cur == nil {
				return nil
			}
			r.at++
			if err := r.commit(ctx, cur); err != nil {
				return err
			}
			if r.o.Progress != nil {
				r.o.Progress(r.at, len(r.p.Identities))
			}
			return nil
		},
	})
	if err == nil && r.at != len(r.p.Identities) {
		err = refused(FaultChanged)
	}
	return err
}

// begin writes line and cell of an identity. The cell of a shredded one is
// stored and erased: it can never get another.
func (r *restore) begin(ctx context.Context, p *Planned) error {
	r.rev, r.ops, r.full = 0, nil, 0
	rec := audit.Record{Time: r.o.Now(), Event: audit.Restore, Identity: p.ID, Key: audit.Owner, Via: "cli", Gen: p.gen, Was: p.was, Is: metaHash(p.meta), Note: p.note()}
	if err := r.record(ctx, rec); err != nil {
		return err
	}
	cell, err := r.p.archive.cell(ctx, p.ID)
	switch {
	case p.erase:
		cell = random32()
	case errors.Is(err, storage.ErrErased):
		return errShredded // since the plan was made, on this machine
	case errors.Is(err, storage.ErrNoCell), errors.Is(err, storage.ErrDamaged):
		return nil
	case err != nil:
		return fmt.Errorf("reading cell: %w", err)
	}
	if err := r.b.PutCell(ctx, p.ID, cell); err != nil {
		return fmt.Errorf("writing cell: %w", err)
	}
	if !p.erase {
		return nil
	}
	if err := r.b.EraseCell(ctx, p.ID); err != nil {
		return fmt.Errorf("erasing cell: %w", err)
	}
	return nil
}

// noteShredded marks the line of an identity that is restored as a tombstone.
const noteShredded = "shredded"

func (p *Planned) note() string {
	if p.Status == identity.Shredded {
		return noteShredded
	}
	return p.Since.String()
}

// Records are committed in parts: nobody sees them before the store record is
// there.
const (
	restoreOps  = 1024
	restorePart = 2 << 20
)

func (r *restore) item(ctx context.Context, p *Planned, it storage.Item) error {
	if p == nil || p.Status == identity.Shredded {
		return nil
	}
	if len(r.ops) == restoreOps || r.full+len(it.Val) > restorePart {
		if err := r.commit(ctx, p); err != nil {
			return err
		}
	}
	r.ops = append(r.ops, storage.Op{Key: it.Key, Val: append([]byte{}, it.Val...)})
	r.full += len(it.Key) + len(it.Val)
	return nil
}

func (r *restore) commit(ctx context.Context, p *Planned) (err error) {
	if r.rev > 0 && len(r.ops) == 0 {
		return nil
	}
	b := storage.Batch{Ops: r.ops}
	if r.rev == 0 {
		b.Meta = p.meta
	}
	if r.rev, err = r.b.Commit(ctx, p.ID, r.rev, b); err != nil {
		return fmt.Errorf("writing identity: %w", err)
	}
	r.ops, r.full = nil, 0
	return nil
}

// StoreIn returns the ID of the store in b, the zero ID if b holds none: no
// store at all, or a restore that was cut off.
func StoreIn(ctx context.Context, b storage.Store) (identity.ID, error) {
	res, err := b.Get(ctx, identity.ID{})
	if err != nil {
		return identity.ID{}, fmt.Errorf("reading store record: %w", err)
	}
	if res.Rev == 0 {
		return identity.ID{}, nil
	}
	id, err := seal.PeekStoreID(res.Meta)
	if err != nil {
		return identity.ID{}, fmt.Errorf("reading store record: %w", err)
	}
	return id, nil
}
