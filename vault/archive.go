package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/storage"
)

// Archive is a backup file that was read to its end: whole, in order, and
// signed by the store that it names. Whether that store is the owner's is
// proven by [Archive.OpenWithRecoveryKey] or [Archive.OpenWithRoot], one of
// which a restore needs.
type Archive struct {
	r    io.ReadSeeker
	head skbHead
	end  skbEnd
	id   [16]byte
	size int64
	last chain // of the whole file

	done map[identity.ID]uint32 // the frame at which the whole identity begins
	keys []sealedKeys
	log  history
	born string // note that line 0 must have

	root  Root
	store *seal.Store
	cell  func(context.Context, identity.ID) (storage.Cell, error)
}

type sealedKeys struct {
	before chain
	body   []byte
}

// ArchiveInfo describes a backup.
type ArchiveInfo struct {
	ID          string
	Store       identity.ID
	Fingerprint identity.ID // of the store, as its recovery key names it
	Created     time.Time
	Identities  int
	Records     int
	Lines       int // of the audit log
	Head        [32]byte
	LogBroken   int // first line, from 1, at which the chain of the log was broken already; 0: whole
	LogFirst    int // first line of the log, from 1: earlier files of it may have been moved away
	Bytes       int64
	Sealed      bool // root and cells are in it, sealed to the recovery key
}

// Info describes the backup.
func (a *Archive) Info() ArchiveInfo {
	return ArchiveInfo{
		ID: hex.EncodeToString(a.id[:]), Store: a.head.store, Fingerprint: a.head.fingerprint(), Created: fromMillis(int64(a.head.created)),
		Identities: int(a.end.identities), Records: int(a.end.records), Lines: int(a.end.lines), Head: a.end.head, LogBroken: a.log.broken, LogFirst: int(a.log.from) + 1,
		Bytes: a.size, Sealed: a.head.sealed(),
	}
}

// refused words a fault of a backup file.
func refused(f Fault) *Refusal {
	return &Refusal{Word: BadRequest, Message: "This backup is refused: " + f.Error() + ".", cause: f}
}

// OpenArchive reads a backup to its end and checks all that can be checked
// without a key. An error about the file wraps a [Fault]. r is kept: it must
// stay open, and what is read from it later is proven again.
func OpenArchive(ctx context.Context, r io.ReadSeeker) (*Archive, error) {
	a := &Archive{r: r, done: make(map[identity.ID]uint32)}
	var records, count uint64
	var begins uint32
	err := a.walk(ctx, skbVisitor{
		head: func(h skbHead) error {
			a.head = h
			a.born = genesisNote(h.store, h.auditPublic[:], h.recoveryHash)
			return nil
		},
		begin: func(n uint32, _ identity.ID, _ []byte) error { begins, count = n, 0; return nil },
		item:  func(storage.Item) error { count++; return nil },
		done: func(id identity.ID) error {
			a.done[id] = begins
			records += count
			return nil
		},
		keys: func(before chain, body []byte) error {
			if len(a.keys) > len(a.done)/cellsPerFrame { // they are kept in memory, and nothing is proven yet
				return refused(FaultForged)
			}
			a.keys = append(a.keys, sealedKeys{before, bytes.Clone(body)})
			return nil
		},
		line: func(line []byte) error { a.log.add(line); return nil },
	})
	if err != nil {
		return nil, err
	}
	e := a.end
	if e.identities != uint64(len(a.done)) || e.records != records || e.lines != a.log.lines || e.head != a.log.prev || (len(a.keys) > 0) != a.head.sealed() {
		return nil, refused(FaultForged) // signed, but not by a program that keeps its own books
	}
	return a, nil
}

// skbVisitor gets the parts of a backup in their order; nil functions are
// passed over. What it is shown is valid during the call.
type skbVisitor struct {
	head  func(skbHead) error
	begin func(frame uint32, id identity.ID, meta []byte) error
	item  func(storage.Item) error
	done  func(identity.ID) error
	keys  func(before chain, body []byte) error
	line  func([]byte) error
}

// walk reads the whole file, proves the chain of its frames, their order and
// the signature, and shows the parts to v as it goes: v learns of a fault at
// the end only, from the error of walk.
func (a *Archive) walk(ctx context.Context, v skbVisitor) error {
	if _, err := a.r.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading the backup: %w", err)
	}
	f, err := newFrameReader(a.r)
	if err != nil {
		return reading(err)
	}
	w := walker{a: a, v: v}
	for w.stage != frameSignature {
		if err := ctx.Err(); err != nil {
			return err
		}
		fr, err := f.next()
		if err != nil {
			return reading(err)
		}
		ok, err := w.frame(fr)
		if err != nil {
			return err
		}
		if !ok {
			return refused(FaultChanged)
		}
	}
	if err := f.end(); err != nil {
		return reading(err)
	}
	if a.size != 0 && (a.last != f.chain || a.id != f.id) {
		return refused(FaultChanged) // it is no longer the file that was opened
	}
	a.size, a.last, a.id = f.read, f.chain, f.id
	return nil
}

// reading words an error of reading a backup.
func reading(err error) error {
	var f Fault
	if errors.As(err, &f) {
		return refused(f)
	}
	return fmt.Errorf("reading the backup: %w", err)
}

// walker knows which frame may follow.
type walker struct {
	a     *Archive
	v     skbVisitor
	stage frameKind // the last kind, but for the parts of an identity

	id    identity.ID // of the identity under way, else of the last one
	under bool
	after string
	count uint64
}

// frame takes one frame. It reports false for one that is out of place or
// malformed.
func (w *walker) frame(f frame) (ok bool, err error) {
	switch f.kind {
	case frameHead:
		return w.header(f)
	case frameIdentity:
		return w.identity(f)
	case frameRecords:
		if !w.under {
			return false, nil
		}
		w.after, ok, err = decodeRecords(f.body, w.after, func(it storage.Item) error {
			w.count++
			return call(w.v.item, it)
		})
		return ok, err
	case frameDone:
		if !w.under || len(f.body) != 8 || binary.BigEndian.Uint64(f.body) != w.count {
			return false, nil
		}
		w.under = false
		return true, call(w.v.done, w.id)
	}
	w.under = false
	if w.stage < frameHead || f.kind < w.stage || f.kind == frameEnd && w.stage == frameEnd || f.kind == frameSignature && w.stage != frameEnd {
		return false, nil
	}
	w.stage = f.kind
	switch f.kind {
	case frameKeys:
		if w.v.keys != nil {
			err = w.v.keys(f.before, f.body)
		}
		return true, err
	case frameLog:
		return w.log(f.body)
	case frameEnd:
		w.a.end, ok = decodeEnd(f.body)
		return ok, nil
	case frameSignature:
		if !seal.Signed(w.a.head.auditPublic[:], f.before.signed(), f.body) {
			return true, refused(FaultForged)
		}
		return true, nil
	}
	return false, nil
}

func call[T any](fn func(T) error, v T) error {
	if fn == nil {
		return nil
	}
	return fn(v)
}

func (w *walker) header(f frame) (bool, error) {
	h, ok := decodeHead(f.body)
	if !ok || w.stage != 0 {
		return false, nil
	}
	w.stage = frameHead
	return true, call(w.v.head, h)
}

// identity begins an identity. One that was under way is void, and may be
// the same.
func (w *walker) identity(f frame) (bool, error) {
	id, meta, ok := decodeIdentity(f.body)
	order := bytes.Compare(id[:], w.id[:])
	if !ok || w.stage != frameHead && w.stage != frameIdentity || order < 0 || order == 0 && !w.under {
		return false, nil
	}
	w.stage, w.id, w.under, w.after, w.count = frameIdentity, id, true, "", 0
	if w.v.begin == nil {
		return true, nil
	}
	return true, w.v.begin(f.n, id, meta)
}

func (w *walker) log(body []byte) (bool, error) {
	for len(body) > 0 {
		line, rest, ok := bytes.Cut(body, []byte{'\n'})
		if !ok {
			return false, nil
		}
		if err := call(w.v.line, line); err != nil {
			return true, err
		}
		body = rest
	}
	return true, nil
}

// The refusals of what is laid beside a backup.
var (
	errNoRecoveryKey = refuse(Unauthorized, "This is not a recovery key.", "Give the key that begins with slr1_ and was shown when the store was made.")
	errNoSealed      = refuse(BadRequest, "This backup is of a store without a recovery key: it opens only beside the root key and the cell file of its machine.", "")
)

// OpenWithRecoveryKey opens root and cells with the recovery key of the
// store. The key names the store by its fingerprint, so it proves the whole
// backup: one that somebody else made is refused.
func (a *Archive) OpenWithRecoveryKey(key identity.Key) error {
	switch {
	case key.Kind() != identity.Recovery:
		return errNoRecoveryKey
	case !a.head.sealed():
		return errNoSealed
	case key.Identity() != a.head.fingerprint():
		return refused(FaultForeign)
	}
	if sha256.Sum256(seal.RecoveryPublicKey(key.RecoverySeed(a.head.store))) != a.head.recoveryHash {
		return refused(FaultForged)
	}
	cells := make(map[identity.ID]skbCell)
	var text string
	for i, s := range a.keys {
		pt, err := seal.OpenBackup(key, a.head.store, s.before, s.body)
		if err != nil {
			return refused(FaultForged)
		}
		root, part, ok := decodeKeys(pt)
		clear(pt)
		if !ok || (root != "") != (i == 0) {
			return refused(FaultForged)
		}
		text += root
		for _, c := range part {
			cells[c.id] = c
		}
	}
	root, err := ParseRoot(text)
	if err != nil {
		return refused(FaultForged)
	}
	return a.opened(root, func(_ context.Context, id identity.ID) (storage.Cell, error) {
		c, ok := cells[id]
		switch {
		case !ok:
			return storage.Cell{}, storage.ErrNoCell
		case c.state == cellErased:
			return storage.Cell{}, storage.ErrErased
		}
		return c.z, nil
	})
}

// OpenWithRoot opens the backup with the root material and the cells of the
// machine that it was made on. Cells that were erased there since stay
// erased.
func (a *Archive) OpenWithRoot(root Root, cells storage.Cells) error {
	if root.IsZero() || root.StoreID() != a.head.store {
		return refused(FaultForeign)
	}
	return a.opened(root, cells.Cell)
}

// SignedBy reports whether root is that of the store which signed the backup.
func (a *Archive) SignedBy(root Root) bool {
	return !root.IsZero() && root.StoreID() == a.head.store && bytes.Equal(root.r().Store().AuditPublic(), a.head.auditPublic[:])
}

func (a *Archive) opened(root Root, cell func(context.Context, identity.ID) (storage.Cell, error)) error {
	if !a.SignedBy(root) {
		return refused(FaultForged)
	}
	st := root.r().Store()
	rec, err := st.OpenStoreRecord(a.head.record)
	if err != nil {
		return fmt.Errorf("opening the store record of the backup: %w", err)
	}
	if len(rec.RecoveryPK) > 0 != a.head.sealed() || a.head.sealed() && sha256.Sum256(rec.RecoveryPK) != a.head.recoveryHash {
		return refused(FaultForged)
	}
	a.root, a.store, a.cell = root, st, cell
	return nil
}

// Root returns the root material of the backup, joined with what this machine
// has of it already, if anything: it belongs to its source before
// [Plan.Restore] is called. The backup must have been opened.
func (a *Archive) Root(have Root) (Root, error) {
	if have.IsZero() || a.root.IsZero() {
		return a.root, nil
	}
	both, err := have.r().With(a.root.r())
	if err != nil {
		return Root{}, refused(FaultForeign)
	}
	return rootOf(both), nil
}
