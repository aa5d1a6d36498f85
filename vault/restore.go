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
	"strconv"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

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
