package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// change gathers what one commit does to an identity.
type change struct {
	event  audit.Event
	key    string // who acts: a slot, or audit.Owner
	slot   string
	via    Source
	labels []audit.Ref
	class  string
	note   string
	n      int
	ops    []storage.Op
}

// maxSeals is how many records one outer key may seal under random nonces.
const maxSeals = 1 << 31

var errWornOut = refuse(Unavailable, "This vault has been written too often for its key.", "Create a new identity and store the values there.")

// put replaces the stored bytes of a record, or deletes it with nil, and keeps
// set-hash and counters of the header true. The old bytes must have been
// loaded.
func (c *change) put(w *view, key string, stored []byte) {
	h := w.head
	if old, ok := w.vals[key]; ok {
		h.Set = h.Set.Sub(w.outer.Elem(key, old))
		h.Count--
	}
	if stored != nil {
		h.Set = h.Set.Add(w.outer.Elem(key, stored))
		h.Count++
		h.Seals++
	}
	c.ops = append(c.ops, storage.Op{Key: key, Val: stored})
}

func (c *change) putEntry(w *view, key string, e *seal.Entry) error {
	stored, err := w.outer.SealEntry(key, e)
	if err != nil {
		return err
	}
	c.put(w, key, stored)
	return nil
}

func (c *change) putState(w *view, key string, s seal.EntryState) error {
	stored, err := w.outer.SealState(key, s)
	if err != nil {
		return err
	}
	c.put(w, key, stored)
	return nil
}

// seal closes a change: the header of w, whose fields the caller has set, is
// sealed at its next generation, and rec gets the hashes that tie its line to
// this commit.
func (k *Keeper) seal(w *view, c *change, rec *audit.Record) (storage.Batch, error) {
	h := w.head
	if h.Seals >= maxSeals {
		return storage.Batch{}, errWornOut
	}
	now := k.now()
	h.Gen++
	if c.event != audit.RootRotate { // which says nothing about the identity
		h.Changed = millis(now)
	}
	for i := range h.Slots {
		s := &h.Slots[i]
		if s.Expires != 0 && now.UnixMilli() >= s.Expires {
			s.Wrapped = nil
		}
	}
	meta, err := w.st.SealHeader(w.id, w.cell, h)
	if err != nil {
		return storage.Batch{}, fmt.Errorf("sealing header: %w", err)
	}
	rec.Gen, rec.Was, rec.Is = h.Gen, w.hash(), metaHash(meta)
	return storage.Batch{Meta: meta, Ops: c.ops}, nil
}

// record is the line of a change by the owner.
func (c *change) record(id identity.ID, now time.Time) audit.Record {
	key := c.key
	if key == "" {
		key = audit.Owner
	}
	via := c.via
	if via.Via == "" {
		via.Via = "cli"
	}
	return audit.Record{
		Time: now, Event: c.event, Identity: id, Key: key, Slot: c.slot, Class: c.class,
		Via: via.Via, From: via.Addr, Labels: c.labels, N: c.n, Note: c.note,
	}
}

// errNothing tells update that fn changed nothing and nothing is to be done.
var errNothing = errors.New("nothing to change")

// update is the owner's way to change an identity: load, let fn set header and
// records, seal, write the line, commit; all again on a conflict. The line is
// durable before the commit. With owe, a log that cannot be written does not
// stop the change: the header owes the line.
func (k *Keeper) update(ctx context.Context, id identity.ID, keys []string, owe bool, fn func(*view, *change) error) (*view, error) {
	for try := 0; ; try++ {
		w, err := k.attempt(ctx, id, keys, owe, fn)
		switch {
		case errors.Is(err, storage.ErrConflict) && try < 15:
			w.wipe()
			continue
		case errors.Is(err, errNothing):
			return w, nil
		}
		return w, err
	}
}

func (k *Keeper) attempt(ctx context.Context, id identity.ID, keys []string, owe bool, fn func(*view, *change) error) (*view, error) {
	w, err := k.load(ctx, id, keys...)
	if err != nil {
		return nil, err
	}
	if err := w.exists(); err != nil {
		return nil, err
	}
	if !owe { // damaged records never stand in the way of closing a key
		if err := k.checkSet(ctx, w); err != nil {
			return w, err
		}
	}
	var c change
	if err := fn(w, &c); err != nil {
		return w, err
	}
	recs := owed(w, k.now())
	w.head.Flags &^= seal.FlagAuditOwed
	unpaid := *w.head
	rec := c.record(id, k.now())
	b, err := k.seal(w, &c, &rec)
	if err != nil {
		return w, err
	}
	if len(recs) > 0 {
		recs[0].Gen = rec.Gen - 1
	}
	if err := k.append(ctx, append(recs, rec)...); err != nil {
		if !owe || ctx.Err() != nil {
			return w, err
		}
		*w.head = unpaid
		w.head.Flags |= seal.FlagAuditOwed
		w.head.LastOp = owedOps[c.event]
		if b, err = k.seal(w, &c, &rec); err != nil {
			return w, err
		}
	}
	rev, err := k.backend.Commit(ctx, id, w.rev, b)
	if err != nil {
		return w, err
	}
	w.rev, w.meta = rev, b.Meta
	k.committed(w, b.Ops)
	return w, nil
}

// Events whose line may be owed, as the header remembers them.
var owedOps = map[audit.Event]uint8{audit.Revoke: 1, audit.KeyRevoke: 2, audit.Shred: 3}

const noteOwed = "owed"

// owed returns the line that an earlier change of w could not write.
func owed(w *view, now time.Time) []audit.Record {
	if !w.owes() {
		return nil
	}
	rec := audit.Record{Time: now, Event: audit.Note, Identity: w.id, Key: audit.Owner, Via: "cli", Note: noteOwed}
	if w.tomb != nil {
		rec.Event = audit.Shred
		return []audit.Record{rec}
	}
	for ev, op := range owedOps {
		if op == w.head.LastOp {
			rec.Event = ev
		}
	}
	return []audit.Record{rec}
}

// owes reports that a line of w could not be written.
func (w *view) owes() bool {
	return w.head != nil && w.head.Flags&seal.FlagAuditOwed != 0 || w.tomb != nil && w.tomb.AuditOwed
}

// payOwed writes the line that w owes, as soon as the log takes lines again:
// only that line tells a restore of an older backup what was closed. Listings
// and backups try it; verification does not, as that only reads. It reports
// whether it wrote; w is of no use then.
func (k *Keeper) payOwed(ctx context.Context, w *view) bool {
	if !w.owes() {
		return false
	}
	c := change{event: audit.Note, note: "what was owed is written"}
	rec := c.record(w.id, k.now())
	b, recs, err := k.sealAgain(w, &c, &rec)
	if err != nil || k.append(ctx, append(recs, rec)...) != nil {
		return false // as long as the log takes no line
	}
	if w.rev, err = k.backend.Commit(ctx, w.id, w.rev, b); err != nil {
		return true
	}
	_ = k.settle(ctx, w) // what was closed was settled when it was
	return true
}

// settle makes one more tiny commit, so that a fall-back of the engine to the
// state before its last commit cannot undo the one before.
func (k *Keeper) settle(ctx context.Context, w *view) error {
	rev, err := k.backend.Commit(ctx, w.id, w.rev, storage.Batch{})
	if err != nil {
		if errors.Is(err, storage.ErrConflict) {
			return nil // another commit followed: that settles as well
		}
		return fmt.Errorf("settling: %w", err)
	}
	w.rev = rev
	return nil
}

// exists refuses a view that is no identity to its owner.
func (w *view) exists() error {
	if w.rev == 0 {
		return errNoIdentity
	}
	if w.head == nil || w.tomb != nil {
		return errShredded
	}
	return nil
}

var (
	errNoIdentity = refuse(NotFound, "There is no such identity.", "solekey identity list")
	errShredded   = refuse(Revoked, "This identity has been shredded; nothing of its vault is left.", "solekey identity create NAME")
)

// sealExtra returns the JSON part of an entry's meta.
func sealExtra(x extra) ([]byte, error) {
	if x == (extra{}) {
		return nil, nil
	}
	return json.Marshal(x)
}
