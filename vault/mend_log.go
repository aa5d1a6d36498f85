package vault

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// The log of a mended store: how far that of the damaged one goes, what of it
// continues the log of the backup, and which header came from which.

// readLog looks at the log of the store. One that is whole, and is another
// than that of the backup, says that the two have different pasts.
func (m *mender) readLog(ctx context.Context) error {
	end := m.a.log.end()
	for line, err := range m.live.Lines(ctx) {
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			m.unread = true // what is there of it counts
			break
		}
		m.log.add(line)
		switch {
		case m.log.lines == 1 && m.log.from > 0 && m.log.from == end:
			m.met = m.log.before == m.a.end.head
		case m.log.end() == end:
			m.met = m.log.prev == m.a.end.head
		}
	}
	switch {
	case m.log.broken == 0 && m.log.from == 0 && m.log.first != "" && m.log.first != m.a.born:
		return ErrOtherPast
	case !m.whole():
	case m.log.from <= end && m.log.end() >= end && !m.met && m.a.end.lines > 0:
		return ErrOtherPast
	}
	return nil
}

// whole reports a log without a fault. One that was cut to nothing and went on
// begins with line 0 and without the birth of the store.
func (m *mender) whole() bool {
	return m.log.lines > 0 && m.log.broken == 0 && !m.unread && (m.log.from > 0 || m.log.first == m.a.born)
}

// covers reports a log that is whole and has every line of the backup's, also
// files that had been moved away when that was made.
func (m *mender) covers() bool { return m.whole() && m.met && m.log.from <= m.a.log.from }

// begins is the number of the first line of the mended store's log.
func (m *mender) begins() uint64 {
	if m.covers() {
		return m.log.from
	}
	return m.a.log.from
}

// apart reports a log that is whole, and cannot be put behind that of the
// backup: files between are missing, or a restore began it anew.
func (m *mender) apart() bool { return m.whole() && len(m.left) > 0 }

// ErrOtherPast reports a backup whose log and that of the store have no common
// line of development.
var ErrOtherPast = refuse(BadRequest, "The log of this store does not continue the log of the backup: the backup is of another store, or of another past of this one.", "Take a backup that was made of this store as it is.")

// splice shows the lines of the log that the mended store begins with. A log
// that is whole and has all that the backup's has is the log. Else it is that
// of the backup, then the lines of the store that continue it: a damaged line
// that the backup has is healed by it, files that were moved away since come
// from it, and from a later damage or gap on the lines are left out.
func (m *mender) splice(ctx context.Context, visit func(line []byte) error) error {
	n, prev := m.log.from, m.log.before
	var old []uint64 // of the lines of the backup, the beginning of their hashes
	next := func(line []byte) error {
		n, prev = n+1, sha256.Sum256(line)
		return visit(line)
	}
	if !m.covers() {
		n, prev = m.a.log.from, m.a.log.before
		err := m.a.walk(ctx, skbVisitor{line: func(line []byte) error {
			if err := next(line); err != nil {
				return err
			}
			if m.whole() && n == m.log.end() && prev != m.log.prev {
				return ErrOtherPast
			}
			old = append(old, binary.BigEndian.Uint64(prev[:]))
			return nil
		}})
		if err != nil {
			return err
		}
	}
	m.left = nil
	for line, err := range m.live.Lines(ctx) {
		if err != nil {
			return ctx.Err() // what is there of it counts
		}
		r, err := parseLine(line)
		at := r.Seq - m.a.log.from
		switch {
		case err == nil && continues(line, n, prev):
			m.left = nil // what stands before it is in the backup
			if err := next(line); err != nil {
				return err
			}
		case err == nil && at < uint64(len(old)) && old[at] == beginning(line):
		default:
			m.left = append(m.left, r)
		}
	}
	return nil
}

func beginning(line []byte) uint64 {
	sum := sha256.Sum256(line)
	return binary.BigEndian.Uint64(sum[:])
}

// follow notes which header came from which.
func (m *mender) follow(ctx context.Context) error {
	n := 0
	return m.splice(ctx, func(line []byte) error {
		n++
		r, err := parseLine(line)
		if err != nil {
			return nil
		}
		if r.Event == audit.Note && r.Note == storage.NoteGap && r.Seq >= m.a.log.end() {
			m.gap = true
		}
		if _, ok := parseRebirth(m.st, r); ok {
			clear(m.seen)
		}
		follow(m.seen, n, r, false)
		return nil
	})
}

func (m *mender) writeLog(ctx context.Context) error {
	w := logWriter{m: m}
	if err := m.splice(ctx, w.add); err != nil {
		return err
	}
	return w.flush()
}

// logWriter writes frames of lines.
type logWriter struct {
	m    *mender
	body []byte
}

func (w *logWriter) add(line []byte) error {
	if len(line) >= maxFrame {
		return fmt.Errorf("reading the log: a line is too long: %w", storage.ErrDamaged)
	}
	if len(w.body) > 0 && len(w.body)+len(line) >= logFrame {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.body = append(append(w.body, line...), '\n')
	w.m.end.lines++
	w.m.end.head = sha256.Sum256(line)
	return nil
}

func (w *logWriter) flush() error {
	if len(w.body) == 0 {
		return nil
	}
	body := slices.Clone(w.body)
	w.body = w.body[:0]
	return w.m.frame(frameLog, body)
}
