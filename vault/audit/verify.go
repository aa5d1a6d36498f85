package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/solekey/solekey/vault/storage"
)

// Problem is something that [Verify] found. Line counts from 1, 0 is the log
// as a whole.
type Problem struct {
	Line int
	Text string
}

// Report is what [Verify] found.
type Report struct {
	Lines    int
	Head     [sha256.Size]byte // hash of the last line
	Problems []Problem
}

// maxProblems bounds a report; a broken log needs no longer list.
const maxProblems = 100

func (r *Report) problem(line int, format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, Problem{Line: line, Text: fmt.Sprintf(format, args...)})
	}
}

// OK reports whether nothing was found.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Add appends a finding of the caller.
func (r *Report) Add(line int, format string, args ...any) { r.problem(line, format, args...) }

// Verify reads the whole log and follows its chain: every line numbered in
// order, each holding the hash of the one before, the first one the genesis
// line, the last one the one that the journal wrote last. It calls visit, if
// not nil, for every line that is a record, and changes nothing.
//
// The chain has no key. It shows every edited, dropped, moved and inserted
// line; who can rewrite the whole data directory can also rewrite the chain,
// which only a copy of the head that is kept elsewhere shows.
func Verify(ctx context.Context, j storage.Journal, visit func(line int, r Record)) (Report, error) {
	var rep Report
	head, err := j.Head(ctx)
	if err != nil {
		return rep, err
	}
	var prev [sha256.Size]byte
	var want uint64
	marked := head.Lines == 0
	for raw, err := range j.Lines(ctx) {
		if err != nil {
			return rep, err
		}
		rep.Lines++
		rec, err := Parse(raw)
		if err != nil {
			rep.problem(rep.Lines, "is not a record: it was damaged or edited")
			prev, want = sha256.Sum256(raw), want+1
			continue
		}
		rep.follow(rec, prev, want)
		prev, want = sha256.Sum256(raw), rec.Seq+1
		if want == head.Lines {
			marked = true
			if prev != head.Hash {
				rep.problem(rep.Lines, "is not the line that was written here")
			}
		}
		if visit != nil {
			visit(rep.Lines, rec)
		}
	}
	rep.Head = prev
	if head.Unknown {
		rep.problem(0, "the mark of its end is missing: whether the end was cut off is not known")
		marked = true
	}
	if !marked {
		rep.problem(0, "the log ends at line %d, but line %d was written: the end is missing", rep.Lines, head.Lines)
	}
	return rep, nil
}

// follow checks one record against the line before it.
func (r *Report) follow(rec Record, prev [sha256.Size]byte, want uint64) {
	switch {
	case rec.Seq != want:
		r.problem(r.Lines, "has number %d where %d is due: lines are missing, moved or inserted", rec.Seq, want)
	case !continues(rec.Prev, prev):
		if r.Lines == 1 {
			r.problem(1, "is the first line but continues another: the beginning is missing")
			break
		}
		r.problem(r.Lines, "does not continue line %d: one of the two was changed", r.Lines-1)
	case r.Lines == 1 && rec.Event != Genesis:
		r.problem(1, "is not the genesis line")
	}
	if rec.Event == Note && rec.Note == storage.NoteGap {
		r.problem(r.Lines, "says that the end of the log was missing when it was written")
	}
}

// continues reports whether text is hash in hex.
func continues(text string, hash [sha256.Size]byte) bool {
	var want [2 * sha256.Size]byte
	hex.Encode(want[:], hash[:])
	return text == string(want[:])
}

// String returns `line N TEXT`, or the text alone.
func (p Problem) String() string {
	if p.Line == 0 {
		return p.Text
	}
	return fmt.Sprintf("line %d %s", p.Line, p.Text)
}
