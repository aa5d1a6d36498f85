package vault

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// BackupOptions adjust a backup. The zero value is right.
type BackupOptions struct {
	Progress func(done, total int) // called after each identity; nil: nothing
}

// BackupReport says what a backup holds.
type BackupReport struct {
	ID         string // of the backup, as its line in the log names it
	Identities int    // shredded ones included
	Records    int
	Lines      int // of the audit log
	Bytes      int64
	Damaged    int  // identities that do not open; they are in it as they are
	Unreadable int  // identities that the engine cannot read; they are not in it
	Sealed     bool // root and shred cells are in it, sealed to the recovery key
}

// Backup writes a backup of the whole store to w: every identity as it is
// sealed, the audit log, and, sealed to the recovery key of the store, root
// text and shred cells. It reads identity by identity, page by page, and
// rests between, so that calls beside it wait for one page at most; nothing
// is held while w is written. An identity that changes meanwhile is read
// again. The log is read last, so it tells of every change that the backup
// holds.
//
// The cells are read after all else, and one that is erased by then does not
// travel: after a shred has returned, no backup that was still running holds
// what opens the identity.
func (k *Keeper) Backup(ctx context.Context, w io.Writer, o BackupOptions) (BackupReport, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return BackupReport{}, err
	}
	var id [16]byte
	rand.Read(id[:]) // never fails, see crypto/rand
	rec := audit.Record{Time: k.now(), Event: audit.Backup, Key: audit.Owner, Via: "cli", Note: hex.EncodeToString(id[:])}
	if err := k.append(ctx, rec); err != nil {
		return BackupReport{}, err
	}
	buf := bufio.NewWriterSize(w, 1<<16)
	out, err := newFrameWriter(buf, id)
	if err != nil {
		return BackupReport{}, writing(err)
	}
	b := &backup{k: k, st: st, out: out, progress: o.Progress, root: st.root}
	if err := b.run(ctx); err != nil {
		return BackupReport{}, err
	}
	if err := buf.Flush(); err != nil {
		return BackupReport{}, writing(err)
	}
	return BackupReport{
		ID: rec.Note, Identities: int(b.end.identities), Unreadable: b.unreadable, Records: int(b.end.records), Lines: int(b.end.lines),
		Bytes: out.written, Damaged: b.damaged, Sealed: b.head.sealed(),
	}, nil
}

func writing(err error) error { return fmt.Errorf("writing the backup: %w", err) }

// backup is one backup on its way.
type backup struct {
	k        *Keeper
	st       *store
	out      *frameWriter
	progress func(done, total int)
	pace     pace

	head skbHead
	end  skbEnd
	ids  []identity.ID
	root seal.Root // every epoch that was met: the root secret may be rotated meanwhile

	damaged, unreadable int
}

func (b *backup) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{b.writeHead, b.writeIdentities, b.writeKeys, b.writeLog} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := b.frame(frameEnd, b.end.encode()); err != nil {
		return err
	}
	return b.frame(frameSignature, b.st.Sign(b.out.chain.signed()))
}

func (b *backup) frame(kind frameKind, body []byte) error {
	if err := b.out.frame(kind, body); err != nil {
		return writing(err)
	}
	return nil
}

func (b *backup) writeHead(ctx context.Context) error {
	res, err := b.k.backend.Get(ctx, identity.ID{})
	if err != nil {
		return fmt.Errorf("reading store record: %w", err)
	}
	b.head = skbHead{store: b.st.ID(), auditPublic: [32]byte(b.st.AuditPublic()), created: uint64(b.k.now().UnixMilli()), record: res.Meta}
	if pk := b.st.record.RecoveryPK; len(pk) > 0 {
		b.head.recoveryHash = sha256.Sum256(pk)
	}
	return b.frame(frameHead, b.head.encode())
}

// Pages are small, so that no call of an agent waits for a long one.
const (
	backupIdents = 32      // identities in a page
	backupItems  = 32      // records in the first page
	backupPage   = 1 << 19 // bytes that the next pages aim at
	backupTries  = 64      // for an identity that changes under the reading
)

func (b *backup) writeIdentities(ctx context.Context) error {
	total, err := b.count(ctx)
	if err != nil {
		return err
	}
	var after identity.ID
	seen := 0
	for {
		page, err := b.k.backend.Identities(ctx, after, backupIdents)
		if err != nil {
			return fmt.Errorf("listing identities: %w", err)
		}
		for _, it := range page {
			after = it.ID
			if err := b.writeIdentity(ctx, it.ID); err != nil {
				return err
			}
			if seen++; b.progress != nil {
				b.progress(seen, max(total, seen))
			}
		}
		if len(page) < backupIdents {
			b.end.identities = uint64(len(b.ids))
			return nil
		}
	}
}

// count counts the identities, to tell how far the backup is.
func (b *backup) count(ctx context.Context) (n int, err error) {
	if b.progress == nil {
		return 0, nil
	}
	var after identity.ID
	for {
		page, err := b.k.backend.Identities(ctx, after, backupIdents)
		if err != nil {
			return 0, fmt.Errorf("listing identities: %w", err)
		}
		n += len(page)
		if len(page) < backupIdents {
			return n, nil
		}
		after = page[len(page)-1].ID
		if err := b.pace.spend(ctx, costIdentity); err != nil {
			return 0, err
		}
	}
}

// writeIdentity writes one identity at one revision. What was written of a
// revision that is gone is void: the identity begins anew in the file.
func (b *backup) writeIdentity(ctx context.Context, id identity.ID) error {
	for range backupTries {
		n, err := b.tryIdentity(ctx, id)
		if stop := b.pace.spend(ctx, costIdentity); stop != nil {
			return stop
		}
		switch {
		case errors.Is(err, storage.ErrDamaged): // what was written of it is void
			b.unreadable++
			return nil
		case !errors.Is(err, storage.ErrConflict):
			b.ids = append(b.ids, id)
			b.end.records += n
			return err
		}
	}
	return fmt.Errorf("reading an identity that does not rest: %w", storage.ErrConflict)
}

func (b *backup) tryIdentity(ctx context.Context, id identity.ID) (records uint64, err error) {
	w, err := b.k.load(ctx, id)
	defer w.wipe()
	if err != nil && !errors.Is(err, storage.ErrDamaged) {
		return 0, err
	}
	shut := err != nil
	if err == nil {
		if b.root, err = b.root.With(w.st.root); err != nil {
			return 0, fmt.Errorf("joining root material: %w", err)
		}
	}
	if !shut && b.k.payOwed(ctx, w) {
		return 0, storage.ErrConflict // it is another revision now
	}
	// What load saw may be what it made of it, as a shred that it finished.
	res, err := b.k.backend.Get(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("reading identity: %w", err)
	}
	open := !shut && w.head != nil
	if !shut && res.Rev != w.rev {
		return 0, storage.ErrConflict
	}
	if err := b.frame(frameIdentity, encodeIdentity(id, res.Meta)); err != nil {
		return 0, err
	}
	var sum seal.SetHash
	records, err = b.writeRecords(ctx, id, res.Rev, func(it storage.Item) {
		if open {
			sum = sum.Add(w.outer.Elem(it.Key, it.Val))
		}
	})
	if err != nil {
		return 0, err
	}
	if shut || open && (sum != w.head.Set || records != uint64(w.head.Count)) {
		b.damaged++
	}
	return records, b.frame(frameDone, encodeCount(records))
}

func (b *backup) writeRecords(ctx context.Context, id identity.ID, rev storage.Rev, visit func(storage.Item)) (n uint64, err error) {
	var body []byte
	after, limit := "", backupItems
	for {
		page, err := b.k.backend.List(ctx, id, after, limit)
		if err != nil {
			return n, fmt.Errorf("listing records: %w", err)
		}
		if page.Rev != rev {
			return n, storage.ErrConflict
		}
		size := 0
		for _, it := range page.Items {
			visit(it)
			if len(body)+len(it.Key)+len(it.Val)+5 > maxFrame {
				if err := b.frame(frameRecords, body); err != nil {
					return n, err
				}
				body = body[:0]
			}
			body = appendRecord(body, it)
			size += len(it.Val)
			after = it.Key
			n++
		}
		if !page.More {
			break
		}
		limit = min(max(backupPage/(size/len(page.Items)+1), 1), pageSize)
		if err := b.pace.spend(ctx, costIdentity+size/costBytes); err != nil {
			return n, err
		}
	}
	if len(body) == 0 {
		return n, nil
	}
	return n, b.frame(frameRecords, body)
}

// cellsPerFrame keeps a frame of keys under maxFrame.
const cellsPerFrame = 16384

// writeKeys seals root text and cells to the recovery key. Without one the
// backup opens only beside the root and the cell file of this machine.
func (b *backup) writeKeys(ctx context.Context) error {
	if !b.head.sealed() {
		return nil
	}
	now, err := b.k.open(ctx, 0) // a rotation may have changed the root meanwhile
	if err != nil {
		return err
	}
	both, err := b.root.With(now.root)
	if err != nil {
		return fmt.Errorf("joining root material: %w", err)
	}
	root := both.Reveal()
	ids := b.ids
	for first := true; first || len(ids) > 0; first = false {
		n := min(len(ids), cellsPerFrame)
		cells, err := b.cells(ctx, ids[:n])
		if err != nil {
			return err
		}
		if err := b.sealKeys(root, cells); err != nil {
			return err
		}
		root, ids = "", ids[n:]
	}
	return nil
}

func (b *backup) cells(ctx context.Context, ids []identity.ID) ([]skbCell, error) {
	cells := make([]skbCell, 0, len(ids))
	for _, id := range ids {
		z, err := b.k.backend.Cell(ctx, id)
		switch {
		case err == nil:
			cells = append(cells, skbCell{id: id, state: cellLive, z: z})
		case errors.Is(err, storage.ErrErased):
			cells = append(cells, skbCell{id: id, state: cellErased})
		case errors.Is(err, storage.ErrNoCell), errors.Is(err, storage.ErrDamaged):
		default:
			return nil, fmt.Errorf("reading cell: %w", err)
		}
		if err := b.pace.spend(ctx, costCell); err != nil {
			return nil, err
		}
	}
	return cells, nil
}

func (b *backup) sealKeys(root string, cells []skbCell) error {
	pt := encodeKeys(root, cells)
	defer clear(pt)
	defer clear(cells)
	sealed, err := seal.SealBackup(b.st.record.RecoveryPK, b.st.ID(), b.out.chain, pt)
	if err != nil {
		return fmt.Errorf("sealing to the recovery key: %w", err)
	}
	return b.frame(frameKeys, sealed)
}

// logFrame is how many bytes of lines a frame has, about.
const logFrame = 1 << 18

func (b *backup) writeLog(ctx context.Context) error {
	var body []byte
	for line, err := range b.k.backend.Lines(ctx) {
		if err != nil {
			return err
		}
		if len(line) >= maxFrame {
			return fmt.Errorf("reading the log: a line is too long: %w", storage.ErrDamaged)
		}
		if len(body) > 0 && len(body)+len(line) >= logFrame {
			if err := b.frame(frameLog, body); err != nil {
				return err
			}
			body = body[:0]
		}
		body = append(append(body, line...), '\n')
		b.end.lines++
		b.end.head = sha256.Sum256(line)
	}
	if len(body) == 0 {
		return nil
	}
	return b.frame(frameLog, body)
}

func encodeCount(n uint64) []byte {
	return []byte{byte(n >> 56), byte(n >> 48), byte(n >> 40), byte(n >> 32), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// pace makes a reader of the store rest after each burst of work, so that the
// turn goes to those who wait for it. It counts work and not time, as a wait
// for the turn is no work.
type pace struct{ spent int }

// What a step costs: about 25 microseconds of the turn each.
const (
	costCell     = 1
	costIdentity = 5
	costBytes    = 1 << 15 // this many bytes of records cost 1
	burst        = 64
	pause        = 8 * time.Millisecond
)

func (p *pace) spend(ctx context.Context, cost int) error {
	if p.spent += cost; p.spent < burst {
		return ctx.Err()
	}
	p.spent = 0
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
