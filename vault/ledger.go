package vault

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// history is what the lines of a log say that a restore needs.
type history struct {
	from   uint64   // number of the first line: earlier files may have been moved away
	before [32]byte // hash of the line before that
	lines  uint64   // how many there are
	prev   [32]byte // hash of the last line
	broken int      // number, from 1, of the first line that does not follow
	first  string   // note of line 0
	last   time.Time
	fates  map[identity.ID]*fate
}

// fate is what a log says of one identity.
type fate struct {
	gen     uint64    // highest that a line knows
	born    bool      // its creation is in the log
	lines   int       // that tell of it
	closing []closing // of its keys
}

type closing struct {
	event audit.Event
	gen   uint64 // that the change made; 0: not known, as the header was damaged
	slot  string
	is    audit.Hash // of the header that the change made
}

// add takes the next line.
func (h *history) add(line []byte) {
	r, err := parseLine(line)
	if h.lines == 0 && err == nil {
		h.begin(r)
	}
	if h.broken == 0 && (err != nil || !continues(line, h.end(), h.prev)) {
		h.broken = int(h.end()) + 1
	}
	if h.lines == 0 && err == nil && r.Event == audit.Genesis {
		h.first = r.Note
	}
	h.prev = sha256.Sum256(line)
	h.lines++
	if err == nil {
		h.last = r.Time
		h.note(r)
	}
}

// parseLine reads a line that a store may have written.
func parseLine(line []byte) (audit.Record, error) {
	r, err := audit.Parse(line)
	if r.Gen > maxGen {
		err = audit.ErrMalformed
	}
	return r, err
}

// maxGen is above every generation that a store can reach. A line that claims
// more is none of ours, and would leave no generation for the restored header.
const maxGen = 1 << 62

// sparedGens is how far below that a restored header stays: the lines of its
// own later changes must be lines that a store may have written.
const sparedGens = 1 << 32

// continues reports whether line is number n of a log, after a line with hash
// prev, and one that a journal takes: one line that it does not take would
// keep the whole store from being restored.
func continues(line []byte, n uint64, prev [32]byte) bool {
	rest, ok := bytes.CutPrefix(line, linePrefix(n, prev))
	return ok && storage.CheckBodies(append([]byte{'{'}, rest...)) == nil
}

// begin takes the first line of a log whose earlier files were moved away for
// what it is.
func (h *history) begin(r audit.Record) {
	prev, err := hex.DecodeString(r.Prev)
	if r.Seq == 0 || r.Event != audit.Note || r.Note != storage.NoteNext || err != nil || len(prev) != len(h.prev) {
		return
	}
	h.from, h.before = r.Seq, [32]byte(prev)
	h.prev = h.before
}

// end is the number of the line that comes next.
func (h *history) end() uint64 { return h.from + h.lines }

// linePrefix is what line n begins with, after a line with hash prev.
func linePrefix(n uint64, prev [32]byte) []byte {
	return fmt.Appendf(nil, `{"seq":%d,"prev":"%s",`, n, hex.EncodeToString(prev[:]))
}

func (h *history) note(r audit.Record) {
	if r.Event == audit.Restore && r.Identity.IsZero() {
		for _, f := range h.fates { // what that restore lost is lost, and was said
			f.born = false
		}
	}
	if r.Identity.IsZero() || r.Denied {
		return
	}
	f := h.fate(r.Identity)
	f.lines++
	f.gen = max(f.gen, min(r.Gen, maxGen-sparedGens))
	f.born = f.born || r.Event == audit.Create
	if closesKeys(r.Event) {
		f.closing = append(f.closing, closing{event: r.Event, gen: r.Gen, slot: r.Slot, is: r.Is})
	}
}

// fate returns what the log says of an identity, to be added to.
func (h *history) fate(id identity.ID) *fate {
	f := h.fates[id]
	if f == nil {
		if h.fates == nil {
			h.fates = make(map[identity.ID]*fate)
		}
		f = new(fate)
		h.fates[id] = f
	}
	return f
}

// ledger reads the newest log of the lost store and proves that it continues
// the log of the backup. It may begin anywhere up to the line after that.
func (a *Archive) ledger(ctx context.Context, r io.ReadSeeker) (history, error) {
	h := history{fates: make(map[identity.ID]*fate, len(a.log.fates))}
	for id, f := range a.log.fates { // of lines that the ledger may not have
		h.fates[id] = &fate{gen: f.gen, born: f.born, lines: f.lines, closing: slices.Clone(f.closing)}
	}
	end := a.log.end()
	met := a.end.lines == 0
	err := eachLine(ctx, r, func(line []byte) error {
		h.add(line)
		if h.lines == 1 && h.from > 0 && h.from == end && h.before == a.end.head {
			met = true
		}
		if h.end() == end {
			met = h.prev == a.end.head
			if !met {
				return errOtherLedger
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return h, err
	case h.lines > 0 && h.from == 0 && h.first != a.born:
		return h, errOtherLedger
	case !met && h.from > end:
		return h, refuse(BadRequest, fmt.Sprintf("The ledger begins at line %d, but the log of the backup ends at line %d: files between are missing.", h.from+1, end), "solekey restore FILE --ledger DIR     (with all files of the log in DIR)")
	case !met && h.from == end:
		return h, errOtherLedger
	case !met:
		return h, refuse(BadRequest, fmt.Sprintf("The ledger ends at line %d, before the log of the backup, which has %d: it is older.", h.end(), end), "")
	case h.broken != a.log.broken && (h.from == 0 || h.broken > 0):
		return h, refuse(BadRequest, fmt.Sprintf("The ledger does not verify: line %d does not continue the one before.", h.broken), "")
	}
	h.broken = a.log.broken
	return h, nil
}

var errOtherLedger = refuse(BadRequest, "The ledger does not continue the log of this backup: it is of another store, or was changed.", "")

// eachLine shows every whole line of a log file.
func eachLine(ctx context.Context, r io.ReadSeeker, visit func([]byte) error) error {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading the ledger: %w", err)
	}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 1<<16), maxFrame)
	in.Split(wholeLines)
	for in.Scan() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := visit(in.Bytes()); err != nil {
			return err
		}
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("reading the ledger: %w", err)
	}
	return nil
}

// wholeLines drops what follows the last LF: it was never acknowledged.
func wholeLines(data []byte, _ bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	return 0, nil, nil
}
