package bolt

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// The bytes of vault.cells, docs/SPEC.md section 7: two copies of a header,
// then extents of two blocks, each block holding the same 32 rows. Each copy
// is checked by a hash without a key, so that erasing needs no secret: who
// forges one can only destroy.

const (
	cellsMagic = "SOLECELL"
	blockSize  = 4096
	cellsStart = 2 * blockSize // after both headers
	extentSize = 2 * blockSize
	rowSize    = 128
	rowsPer    = blockSize / rowSize
	rowBody    = rowSize - sha256.Size
	headBody   = blockSize - sha256.Size
)

// The states of a row.
const (
	rowFree   = 0
	rowLive   = 1
	rowErased = 2
)

// cellsHeader is the header of vault.cells.
type cellsHeader struct {
	fileID  [16]byte
	changes uint64
	rows    uint32
	created int64 // Unix milliseconds
}

func (h *cellsHeader) encode() []byte {
	b := make([]byte, blockSize)
	copy(b, cellsMagic)
	b[8] = 1
	binary.BigEndian.PutUint16(b[10:], rowSize)
	copy(b[12:], h.fileID[:])
	binary.BigEndian.PutUint64(b[28:], h.changes)
	binary.BigEndian.PutUint32(b[36:], h.rows)
	binary.BigEndian.PutUint64(b[40:], uint64(h.created))
	sum := sha256.Sum256(b[:headBody])
	copy(b[headBody:], sum[:])
	return b
}

// decodeCellsHeader returns nil for bytes that are not a valid header.
func decodeCellsHeader(b []byte) *cellsHeader {
	if len(b) != blockSize || string(b[:8]) != cellsMagic || b[8] != 1 || b[9] != 0 || binary.BigEndian.Uint16(b[10:]) != rowSize {
		return nil
	}
	if sha256.Sum256(b[:headBody]) != [32]byte(b[headBody:]) {
		return nil
	}
	for _, c := range b[48:headBody] {
		if c != 0 {
			return nil
		}
	}
	return &cellsHeader{
		fileID:  headFileID(b),
		changes: binary.BigEndian.Uint64(b[28:]),
		rows:    binary.BigEndian.Uint32(b[36:]),
		created: int64(binary.BigEndian.Uint64(b[40:])),
	}
}

// headFileID returns the file ID in the bytes of a header, valid or not.
func headFileID(b []byte) [16]byte { return [16]byte(b[12:28]) }

// row is one copy of a cell.
type row struct {
	state uint8
	seq   uint64
	id    identity.ID
	z     storage.Cell
}

// rowSum is the check of row n.
func rowSum(fileID [16]byte, n uint32, body []byte) [32]byte {
	const label = "solekey/v1/cell\x00"
	var buf [len(label) + 16 + 4 + rowBody]byte
	b := append(buf[:0], label...)
	b = append(b, fileID[:]...)
	b = binary.BigEndian.AppendUint32(b, n)
	return sha256.Sum256(append(b, body...))
}

func (r *row) encode(fileID [16]byte, n uint32) [rowSize]byte {
	var b [rowSize]byte
	b[0], b[1] = r.state, 1
	binary.BigEndian.PutUint64(b[8:], r.seq)
	copy(b[16:], r.id[:])
	copy(b[32:], r.z[:])
	sum := rowSum(fileID, n, b[:rowBody])
	copy(b[rowBody:], sum[:])
	return b
}

// decodeRow reads one copy of row n. A row of zeros is free; ok is false for
// bytes that are no row.
func decodeRow(b []byte, fileID [16]byte, n uint32) (r row, ok bool) {
	b = b[:rowSize:rowSize]
	if [rowSize]byte(b) == [rowSize]byte{} {
		return row{}, true
	}
	if (b[0] != rowLive && b[0] != rowErased) || b[1] != 1 || [6]byte(b[2:]) != [6]byte{} || [32]byte(b[64:]) != [32]byte{} {
		return row{}, false
	}
	if rowSum(fileID, n, b[:rowBody]) != [32]byte(b[rowBody:]) {
		return row{}, false
	}
	r = row{state: b[0], seq: binary.BigEndian.Uint64(b[8:]), id: identity.ID(b[16:32]), z: storage.Cell(b[32:64])}
	return r, r.seq > 0 && !r.id.IsZero()
}

// rowID returns the identity that a copy names, whether or not it is valid.
func rowID(b []byte) identity.ID { return identity.ID(b[16:32]) }

// rowAt returns where copy A of row n lies; copy B is blockSize further on.
func rowAt(n uint32) int64 {
	return cellsStart + extentSize*int64(n/rowsPer) + rowSize*int64(n%rowsPer)
}

// merge decides what two copies of one row say together: erased in either wins,
// else the valid one with the greater seq. ok is false if neither is valid.
func merge(a, b row, aok, bok bool) (r row, ok bool) {
	switch {
	case aok && a.state == rowErased:
		return a, true
	case bok && b.state == rowErased:
		return b, true
	case aok && (!bok || a.seq >= b.seq):
		return a, true
	case bok:
		return b, true
	}
	return row{}, false
}

// createCells makes an empty vault.cells.
func createCells(hooks *hooks, path string) error {
	return hooks.replace(path, func(f *os.File) error {
		h := cellsHeader{created: time.Now().UnixMilli()}
		rand.Read(h.fileID[:]) // never fails, see crypto/rand
		head := h.encode()
		b := append(append([]byte(nil), head...), head...)
		_, err := f.Write(append(b, make([]byte, extentSize)...))
		return err
	})
}

// unusedCells reports whether path is a vault.cells without a row, or no
// vault.cells that holds anything.
func unusedCells(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	h, err := readCellsHeader(f)
	return errors.Is(err, io.EOF) || err == nil && h.rows == 0
}

// readCellsHeader reads both copies of the header and returns the one that
// counts.
func readCellsHeader(f io.ReaderAt) (*cellsHeader, error) {
	b := make([]byte, cellsStart)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("reading %s: %w: %w", cellsName, err, storage.ErrDamaged)
	}
	first, second := decodeCellsHeader(b[:blockSize]), decodeCellsHeader(b[blockSize:])
	switch {
	case first == nil && second == nil:
		return nil, fmt.Errorf("both headers of %s are invalid: %w", cellsName, storage.ErrDamaged)
	case first == nil || second != nil && second.changes > first.changes:
		return second, nil
	}
	return first, nil
}
