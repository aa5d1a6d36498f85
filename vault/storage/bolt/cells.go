package bolt

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// cells is vault.cells in use. It remembers at which row an identity lies,
// which never changes, and no cell: each call reads its row from the file.
// Copy B is read only where copy A has not been compared with it since the
// file last changed in another process.
//
// Every change writes header A and copy A, syncs, then header B and copy B,
// and syncs again, so that at any moment one header and one copy are whole.
type cells struct {
	path    string
	hooks   *hooks
	log     *slog.Logger
	foreign atomic.Bool // another process may have changed the file

	mu     sync.RWMutex
	f      *file
	head   *cellsHeader
	rawA   []byte // copy A of the header, as last read or written
	rows   map[identity.ID]*cellRow
	next   uint32 // the first row never used, as far as the extents go
	known  uint32 // rows below it are in rows, or lost
	lost   int    // rows of which both copies are invalid
	epoch  uint64 // counts the times that copies must be compared anew
	closed bool
}

// cellRow is where a cell lies.
type cellRow struct {
	n       uint32
	checked atomic.Uint64 // epoch in which both copies were found equal
}

func errLostCell(n uint32) error {
	return fmt.Errorf("both copies of row %d of %s are invalid: %w", n, cellsName, storage.ErrDamaged)
}

// Cell implements [storage.Cells].
func (s *Store) Cell(ctx context.Context, id identity.ID) (storage.Cell, error) {
	var c storage.Cell
	err := s.withCells(ctx, func() (err error) { c, err = s.cells.get(id); return err })
	if err != nil {
		return storage.Cell{}, fmt.Errorf("reading cell: %w", err)
	}
	return c, nil
}

// PutCell implements [storage.Cells].
func (s *Store) PutCell(ctx context.Context, id identity.ID, c storage.Cell) error {
	if id.IsZero() {
		return fmt.Errorf("storing cell of no identity: %w", storage.ErrInvalid)
	}
	if err := s.withCells(ctx, func() error { return s.cells.put(id, c) }); err != nil {
		return fmt.Errorf("storing cell: %w", s.cellError(err))
	}
	return nil
}

// EraseCell implements [storage.Cells]. It also works while the mark of a disk
// error stops everything else: shredding is the way out on a failing disk.
func (s *Store) EraseCell(ctx context.Context, id identity.ID) error {
	if err := s.eraseCell(ctx, id); err != nil {
		return fmt.Errorf("erasing cell: %w", s.cellError(err))
	}
	return nil
}

func (s *Store) eraseCell(ctx context.Context, id identity.ID) error {
	if err := s.enterFailed(ctx); err != nil {
		return err
	}
	defer s.leave()
	g := s.watch.enter()
	defer s.watch.leave(g)
	return s.cells.erase(id)
}

// Erasure implements [storage.Cells].
func (s *Store) Erasure() storage.Class { return s.class }

func (s *Store) withCells(ctx context.Context, f func() error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	g := s.watch.enter()
	defer s.watch.leave(g)
	return f()
}

// cellError gives a failed write its sentinel. After an EIO it stops the
// engine, as for the other files.
func (s *Store) cellError(err error) error {
	if isIO(err) {
		s.diskError(err)
		return fmt.Errorf("%w: %w", err, storage.ErrUnknown)
	}
	return err
}

// get returns the cell of id.
func (c *cells) get(id identity.ID) (storage.Cell, error) {
	if r, err := c.fast(id); err == nil {
		return r.cell()
	} else if !errors.Is(err, errSlow) {
		return storage.Cell{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(); err != nil {
		return storage.Cell{}, err
	}
	r, err := c.find(id)
	if err != nil {
		return storage.Cell{}, err
	}
	return r.cell()
}

func (r *row) cell() (storage.Cell, error) {
	if r.state == rowErased {
		return storage.Cell{}, storage.ErrErased
	}
	return r.z, nil
}

// errSlow sends a call to the path that compares copies.
var errSlow = errors.New("row needs a full look")

// fast reads copy A of a row whose copies were found equal.
func (c *cells) fast(id identity.ID) (row, error) {
	if c.foreign.Load() {
		return row{}, errSlow
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	at := c.rows[id]
	if c.f == nil || at == nil || at.checked.Load() != c.epoch {
		return row{}, errSlow
	}
	var b [rowSize]byte
	if _, err := c.f.ReadAt(b[:], rowAt(at.n)); err != nil {
		return row{}, errSlow
	}
	r, ok := decodeRow(b[:], c.head.fileID, at.n)
	if !ok || r.id != id {
		return row{}, errSlow
	}
	return r, nil
}

// find compares both copies of the row of id and heals what differs. It needs
// mu and a refreshed file.
func (c *cells) find(id identity.ID) (row, error) {
	at := c.rows[id]
	if at == nil {
		if c.lost > 0 {
			return row{}, fmt.Errorf("%d rows of %s are invalid in both copies: %w", c.lost, cellsName, storage.ErrDamaged)
		}
		return row{}, storage.ErrNoCell
	}
	a, b, err := c.copies(at.n)
	if err != nil {
		return row{}, err
	}
	ra, aok := decodeRow(a[:], c.head.fileID, at.n)
	rb, bok := decodeRow(b[:], c.head.fileID, at.n)
	r, ok := merge(ra, rb, aok && ra.id == id, bok && rb.id == id)
	if !ok {
		return row{}, errLostCell(at.n)
	}
	if err := c.heal(at.n, r, a, b); err != nil {
		c.log.Warn("healing a row of vault.cells", slog.Any("error", err))
		return r, nil
	}
	at.checked.Store(c.epoch)
	return r, nil
}

// copies reads both copies of row n.
func (c *cells) copies(n uint32) (a, b [rowSize]byte, err error) {
	if _, err = c.f.ReadAt(a[:], rowAt(n)); err == nil {
		_, err = c.f.ReadAt(b[:], rowAt(n)+blockSize)
	}
	if err != nil {
		err = fmt.Errorf("reading %s: %w: %w", cellsName, err, storage.ErrDamaged)
	}
	return a, b, err
}

// heal makes both copies of row n say r.
func (c *cells) heal(n uint32, r row, a, b [rowSize]byte) error {
	want := r.encode(c.head.fileID, n)
	if a != want {
		if err := c.write(rowAt(n), want[:]); err != nil {
			return err
		}
	}
	if b != want {
		return c.write(rowAt(n)+blockSize, want[:])
	}
	return nil
}

// write writes and syncs.
func (c *cells) write(off int64, b []byte) error {
	if _, err := c.f.WriteAt(b, off); err != nil {
		return err
	}
	return c.f.datasync()
}

// put gives id a row.
func (c *cells) put(id identity.ID, z storage.Cell) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(); err != nil {
		return err
	}
	if c.rows[id] != nil {
		r, err := c.find(id)
		switch {
		case err != nil:
			return err
		case r.state == rowErased:
			return storage.ErrErased
		}
		return fmt.Errorf("the identity has a cell: %w", storage.ErrConflict)
	}
	n := c.next
	if err := c.extend(n); err != nil {
		return faultError("extending "+cellsName, err)
	}
	if err := c.change(n, row{state: rowLive, seq: 1, id: id, z: z}); err != nil {
		return err
	}
	at := &cellRow{n: n}
	at.checked.Store(c.epoch)
	c.rows[id] = at
	c.next, c.known = n+1, n+1
	return nil
}

// extend makes sure that row n lies in an extent that is written out, so that
// later writes land in place.
func (c *cells) extend(n uint32) error {
	start := rowAt(n - n%rowsPer)
	info, err := c.f.Stat()
	if err != nil || info.Size() >= start+extentSize {
		return err
	}
	if _, err := c.f.WriteAt(make([]byte, extentSize), start); err != nil {
		_ = c.f.Truncate(start)
		return err
	}
	return c.f.Sync()
}

// change writes row n in both copies. An error after the first sync leaves the
// row as it will be; before, it is put back.
func (c *cells) change(n uint32, r row) error {
	head := *c.head
	head.changes++
	head.rows = max(head.rows, n+1)
	hb, rb := head.encode(), r.encode(head.fileID, n)
	old, _, err := c.copies(n)
	if err != nil {
		return err
	}
	if err := c.pair(0, hb, rowAt(n), rb[:]); err != nil {
		_, e1 := c.f.WriteAt(c.rawA, 0)
		_, e2 := c.f.WriteAt(old[:], rowAt(n))
		c.distrust()
		if e1 != nil || e2 != nil || isIO(err) {
			return fmt.Errorf("writing %s: %w: %w", cellsName, err, storage.ErrUnknown)
		}
		return faultError("writing "+cellsName, err)
	}
	c.head, c.rawA = &head, hb
	if err := c.pair(blockSize, hb, rowAt(n)+blockSize, rb[:]); err != nil {
		c.distrust() // the next look heals copy B
		return fmt.Errorf("writing %s: %w: %w", cellsName, err, storage.ErrUnknown)
	}
	return nil
}

// distrust makes the next call read the file anew.
func (c *cells) distrust() {
	c.rawA = nil
	c.foreign.Store(true)
}

// pair writes one copy of the header and of a row, and syncs.
func (c *cells) pair(at int64, head []byte, rowAt int64, row []byte) error {
	if _, err := c.f.WriteAt(head, at); err != nil {
		return err
	}
	return c.write(rowAt, row)
}

// erase overwrites the cell of id in both copies.
func (c *cells) erase(id identity.ID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(); err != nil {
		if c.f != nil && errors.Is(err, storage.ErrDamaged) {
			return c.eraseBlind(id, err)
		}
		return err
	}
	at := c.rows[id]
	if at == nil {
		_, err := c.find(id)
		return err
	}
	r, err := c.find(id)
	switch {
	case err == nil && r.state == rowErased:
		return c.confirmErased(at)
	case err != nil && !errors.Is(err, storage.ErrDamaged):
		return err
	}
	gone := row{state: rowErased, seq: r.seq + 1, id: id}
	rand.Read(gone.z[:]) // never fails, see crypto/rand
	if err := c.change(at.n, gone); err != nil {
		if isIO(err) || errors.Is(err, storage.ErrDamaged) {
			// One copy or a header fails; the other copy is not spared.
			return fmt.Errorf("%w: %w", errors.Join(err, c.eraseBlind(id, nil)), storage.ErrUnknown)
		}
		return err
	}
	at.checked.Store(c.epoch)
	return nil
}

// eraseBlind overwrites every row that names id in a file whose headers are
// lost, and leaves the headers as they are. Without such a row it returns why
// the file cannot be read, as the row may have been one of the unreadable.
func (c *cells) eraseBlind(id identity.ID, why error) error {
	rows, err := c.named(id)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return why
	}
	for n := range rows {
		gone := row{state: rowErased, seq: 1, id: id}
		rand.Read(gone.z[:]) // never fails, see crypto/rand
		b := gone.encode(c.lastFileID(n, &gone), n)
		_, errA := c.f.WriteAt(b[:], rowAt(n))
		_, errB := c.f.WriteAt(b[:], rowAt(n)+blockSize)
		if err := errors.Join(errA, errB); err != nil {
			return fmt.Errorf("writing %s: %w: %w", cellsName, err, storage.ErrUnknown)
		}
	}
	if err := c.f.datasync(); err != nil {
		return fmt.Errorf("syncing %s: %w: %w", cellsName, err, storage.ErrUnknown)
	}
	return nil
}

// named finds the rows that name id in either copy, by the size of the file
// alone.
func (c *cells) named(id identity.ID) (map[uint32]bool, error) {
	if id.IsZero() {
		return nil, nil
	}
	info, err := c.f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w: %w", cellsName, err, storage.ErrDamaged)
	}
	rows := make(map[uint32]bool)
	buf := make([]byte, blockSize)
	for block := uint32(0); cellsStart+blockSize*int64(block) < info.Size(); block++ {
		n, err := c.f.ReadAt(buf, cellsStart+blockSize*int64(block))
		if err != nil && !errors.Is(err, io.EOF) {
			continue // what cannot be read cannot be found
		}
		for i := range uint32(n / rowSize) {
			if rowID(buf[rowSize*i:]) == id {
				rows[block/2*rowsPer+i] = true
			}
		}
	}
	return rows, nil
}

// lastFileID returns the file ID under which a copy of row n is valid, and
// gives gone the number after it. If there is none it is the one that the
// first header still holds.
func (c *cells) lastFileID(n uint32, gone *row) (fileID [16]byte) {
	head, a := make([]byte, cellsStart), make([]byte, blockSize+rowSize)
	_, _ = c.f.ReadAt(head, 0)     // zeros where it cannot be read
	_, _ = c.f.ReadAt(a, rowAt(n)) // likewise
	for _, h := range [][]byte{head, head[blockSize:]} {
		for _, b := range [][]byte{a, a[blockSize:]} {
			if r, ok := decodeRow(b, headFileID(h), n); ok && r.state != rowFree {
				gone.seq = r.seq + 1
				return headFileID(h)
			}
		}
	}
	return headFileID(head)
}

// confirmErased makes an erasure durable that a crashed process may have left
// in one copy or unsynced.
func (c *cells) confirmErased(at *cellRow) error {
	if at.checked.Load() != c.epoch {
		return fmt.Errorf("healing row %d of %s: %w", at.n, cellsName, storage.ErrUnavailable)
	}
	if err := c.f.datasync(); err != nil {
		return faultError("syncing "+cellsName, err)
	}
	return nil
}

// refresh opens the file if need be, and after another process had the turn
// looks whether the file changed. It needs mu.
func (c *cells) refresh() error {
	if c.f != nil && !c.foreign.Load() {
		return nil
	}
	if c.closed {
		return storage.ErrClosed
	}
	if err := c.reopen(); err != nil {
		return err
	}
	raw := make([]byte, blockSize)
	if _, err := c.f.ReadAt(raw, 0); err == nil && c.head != nil && bytes.Equal(raw, c.rawA) {
		c.foreign.Store(false)
		return nil
	}
	head, err := readCellsHeader(c.f)
	if err != nil {
		return err
	}
	if err := c.healHeader(head); err != nil {
		c.log.Warn("healing the header of vault.cells", slog.Any("error", err))
	}
	c.head, c.rawA = head, head.encode()
	c.epoch++
	if err := c.scan(); err != nil {
		return err
	}
	c.foreign.Store(false)
	return nil
}

// healHeader makes both copies of the header say h, so that the next change
// can tear one without losing both.
func (c *cells) healHeader(h *cellsHeader) error {
	want, have := h.encode(), make([]byte, blockSize)
	for _, at := range []int64{0, blockSize} {
		if _, err := c.f.ReadAt(have, at); err != nil {
			return err
		}
		if !bytes.Equal(have, want) {
			if err := c.write(at, want); err != nil {
				return err
			}
		}
	}
	return nil
}

// reopen makes sure that the open file is the one at the path. A new file is
// read from the start.
func (c *cells) reopen() error {
	if c.f != nil {
		a, err := c.f.Stat()
		b, err2 := os.Lstat(c.path)
		if err == nil && err2 == nil && os.SameFile(a, b) {
			return nil
		}
		_ = c.f.Close()
		c.f = nil
	}
	c.head, c.rawA = nil, nil
	c.rows, c.next, c.known = make(map[identity.ID]*cellRow), 0, 0
	f, err := c.hooks.open(c.path, 0)
	if err != nil {
		return cellsOpenError(err)
	}
	c.f = f
	return nil
}

func cellsOpenError(err error) error {
	if errors.Is(err, errPlace) || isNoFile(err) {
		return fmt.Errorf("opening %s: %w: %w", cellsName, err, storage.ErrDamaged)
	}
	return fmt.Errorf("opening %s: %w: %w", cellsName, err, storage.ErrUnavailable)
}

// scan adds the rows that are not known yet. Rows that are free or torn before
// their first sync at the end of the file are the next to be used.
func (c *cells) scan() error {
	info, err := c.f.Stat()
	if err != nil {
		return err
	}
	c.next, c.lost = c.known, 0
	buf := make([]byte, extentSize)
	first := c.known - c.known%rowsPer
	for n := first; rowAt(n)+extentSize <= info.Size(); n += rowsPer {
		if _, err := c.f.ReadAt(buf, rowAt(n)); err != nil {
			return fmt.Errorf("reading %s: %w: %w", cellsName, err, storage.ErrDamaged)
		}
		for i := range uint32(rowsPer) {
			if n+i >= c.known {
				c.learn(n+i, buf[rowSize*i:rowSize*(i+1)], buf[blockSize+rowSize*i:blockSize+rowSize*(i+1)])
			}
		}
	}
	if c.lost == 0 {
		c.known = c.next
	}
	return nil
}

// learn notes which identity row n belongs to.
func (c *cells) learn(n uint32, a, b []byte) {
	if bytes.Equal(a, b) && (a[0] == rowLive || a[0] == rowErased) {
		// find checks the hash when the cell is asked for.
		if id := rowID(a); !id.IsZero() {
			c.next = n + 1
			c.adopt(id, n)
			return
		}
	}
	ra, aok := decodeRow(a, c.head.fileID, n)
	rb, bok := decodeRow(b, c.head.fileID, n)
	r, ok := merge(ra, rb, aok, bok)
	switch {
	case !ok:
		c.next = n + 1
		c.learnLost(n, a, b)
	case r.state != rowFree:
		c.next = n + 1
		c.adopt(r.id, n)
	case !bok:
		c.next = n + 1
		c.lost++ // copy B is written after copy A, so this is damage
	case n < c.head.rows:
		c.next = n + 1 // a crash left no row here: skipped, as no row is reused
	}
}

// learnLost gives an invalid row to the identity that a copy still names.
func (c *cells) learnLost(n uint32, a, b []byte) {
	for _, id := range []identity.ID{rowID(a), rowID(b)} {
		if !id.IsZero() {
			c.adopt(id, n)
			return
		}
	}
	c.lost++
}

// adopt gives id its row, the first one that names it.
func (c *cells) adopt(id identity.ID, n uint32) {
	if c.rows[id] == nil {
		c.rows[id] = &cellRow{n: n}
	}
}

func (c *cells) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.f == nil {
		return nil
	}
	err := c.f.Close()
	c.f = nil
	return err
}
