package bolt

import (
	"context"
	"time"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/vault/storage"
)

// Datasync is the sync that the engine uses.
var Datasync = datasync

// Row is a decoded copy of a cell.
type Row = row

// EncodeRow, DecodeRow and DecodeCellsHeader are the codec of vault.cells.
func EncodeRow(r Row, fileID [16]byte, n uint32) [128]byte { return r.encode(fileID, n) }

func DecodeRow(b []byte, fileID [16]byte, n uint32) (Row, bool) { return decodeRow(b, fileID, n) }

func NewRow(state uint8, seq uint64, id [16]byte, z [32]byte) Row {
	return row{state: state, seq: seq, id: id, z: z}
}

// RowSum is the check of row n.
var RowSum = rowSum

// ReencodeCellsHeader returns the header of b written anew, or nil.
func ReencodeCellsHeader(b []byte) []byte {
	h := decodeCellsHeader(b)
	if h == nil {
		return nil
	}
	return h.encode()
}

// ReencodeMark returns the copy of a mark in b written anew, or nil.
func ReencodeMark(b []byte) []byte {
	m, ok := decodeMark(b)
	if !ok {
		return nil
	}
	return m.encode()
}

// ParseSeq reads the head of a line.
var ParseSeq = parseSeq

// Fields of vault.cells.
const (
	CellsStart = cellsStart
	BlockSize  = blockSize
	RowSize    = rowSize
)

// NewMark returns one copy of a mark.
func NewMark(serial uint64, h storage.Head, end int64) []byte {
	return (&mark{serial: serial, lines: h.Lines, hash: h.Hash, end: end}).encode()
}

// CopySize is the length of one copy of a mark.
const CopySize = copySize

// DiskError does what the engine does when the medium fails.
func (s *Store) DiskError(err error) { s.diskError(err) }

// Enter and Leave hold the turn.
func (s *Store) Enter(ctx context.Context) error { return s.enter(ctx) }

// Leave ends what Enter began.
func (s *Store) Leave() { s.leave() }

// Watch is the table of running calls.
type Watch struct{ w watch }

// Enter, Leave and Stalled are those of the table.
func (w *Watch) Enter() uint32                       { return w.w.enter() }
func (w *Watch) Leave(g uint32)                      { w.w.leave(g) }
func (w *Watch) Stalled(now time.Time) time.Duration { return w.w.stalled(now) }

// OnSwitch has f called after each step of a switch to a new log file.
func (s *Store) OnSwitch(f func(step string)) { s.journal.reached = f }

// SetMaxLog changes Options.MaxLog of a store at rest.
func (s *Store) SetMaxLog(n int64) { s.journal.limit = n }

// The kinds of changes that a harness is told of.
const (
	ChangeWrite    = changeWrite
	ChangeTruncate = changeTruncate
	ChangeSync     = changeSync
	ChangeRename   = changeRename
	ChangeSyncDir  = changeSyncDir
)

// NewSuffix ends the name of a file that is to replace another.
const NewSuffix = newSuffix

// ChangeKind is the kind of a change.
type ChangeKind = changeKind

// Hooked returns o with hooks: change is told of every change of a file before
// it is made, opened of every open of vault.db.
func Hooked(o Options, tell func(kind ChangeKind, path string, off int64, data []byte) error, opened func(*bbolt.DB)) Options {
	o.hooks = hooks{change: func(c change) error { return tell(c.kind, c.path, c.off, c.data) }, opened: opened}
	return o
}
