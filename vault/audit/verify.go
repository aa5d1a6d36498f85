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
	First    uint64            // number of the first line that is there
	Lines    int               // how many lines there are
	Head     [sha256.Size]byte // hash of the last line
	Problems []Problem
	Notes    []Problem // what is worth saying and wrong with nothing
}

// maxProblems bounds a report; a broken log needs no longer list.
const maxProblems = 100

func (r *Report) problem(line int, format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, Problem{Line: line, Text: fmt.Sprintf(format, args...)})
	}
}

func (r *Report) note(line int, format string, args ...any) {
	if len(r.Notes) < maxProblems {
		r.Notes = append(r.Notes, Problem{Line: line, Text: fmt.Sprintf(format, args...)})
	}
}

// OK reports whether nothing was found.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Add appends a finding of the caller.
func (r *Report) Add(line int, format string, args ...any) { r.problem(line, format, args...) }

// Say appends a note of the caller.
func (r *Report) Say(line int, format string, args ...any) { r.note(line, format, args...) }

// Verify reads the whole log and follows its chain: every line numbered in
// order, each holding the hash of the one before, the first one the genesis
// line, the last one the one that the journal wrote last. It calls visit, if
// not nil, for every line that is a record, and changes nothing.
//
// The chain has no key. It shows every edited, dropped, moved and inserted
// line; who can rewrite the whole data directory can also rewrite the chain,
// which only a checkpoint that is kept elsewhere shows: [VerifyAgainst].
func Verify(ctx context.Context, j storage.Journal, visit func(line int, r Record)) (Report, error) {
	return VerifyAgainst(ctx, j, Outside{}, visit)
}

// VerifyAgainst is Verify of a log of which something is known from elsewhere.
// A log whose earlier files were moved away is verified from its first line
// on, and the report says which that is; it is a finding unless out.From
// expects it.
func VerifyAgainst(ctx context.Context, j storage.Journal, out Outside, visit func(line int, r Record)) (Report, error) {
	var rep Report
	head, err := j.Head(ctx)
	if err != nil {
		return rep, err
	}
	points := newCompared(out.Checkpoints)
	var prev [sha256.Size]byte
	var want uint64
	marked := head.Lines == 0
	for raw, err := range j.Lines(ctx) {
		if err != nil {
			return rep, err
		}
		rec, perr := Parse(raw)
		if rep.Lines == 0 && perr == nil {
			prev, want = rep.begin(rec, out.From)
			if want > 0 {
				points.line(&rep, want-1, prev)
			}
		}
		rep.Lines++
		sum := sha256.Sum256(raw)
		if perr != nil {
			rep.problem(rep.at(), "is not a record: it was damaged or edited")
			points.line(&rep, want, sum)
			prev, want = sum, want+1
			continue
		}
		rep.follow(rec, prev, want)
		points.line(&rep, rec.Seq, sum)
		prev, want = sum, rec.Seq+1
		if want == head.Lines {
			marked = true
			if prev != head.Hash {
				rep.problem(rep.at(), "is not the line that was written here")
			}
		}
		if visit != nil {
			visit(rep.at(), rec)
		}
	}
	rep.Head = prev
	points.rest(&rep)
	if head.Unknown {
		rep.problem(0, "the mark of its end is missing: whether the end was cut off is not known")
		marked = true
	}
	if !marked {
		rep.problem(0, "the log ends at line %d, but line %d was written: the end is missing", rep.at(), head.Lines)
	}
	return rep, nil
}

// at is the number of the line that was read last, counted from 1.
func (r *Report) at() int { return int(r.First) + r.Lines }

// begin looks at the first line that is there. It returns the hash and the
// number that the line must have.
func (r *Report) begin(rec Record, from uint64) (prev [sha256.Size]byte, want uint64) {
	moved := rec.Seq > 0 && rec.Event == Note && rec.Note == storage.NoteNext && unhex(prev[:], rec.Prev) && rec.Prev != ""
	if !moved {
		if from != 0 && from != AnyFirst {
			r.problem(1, "is where the log begins, but line %d was expected to be the first", from+1)
		}
		return [sha256.Size]byte{}, 0
	}
	r.First = rec.Seq
	switch {
	case from == AnyFirst || from == rec.Seq:
		r.note(0, "the lines before line %d are not here; nothing is said of them", rec.Seq+1)
	case from == 0:
		r.problem(int(rec.Seq)+1, "is the first that is here: the files before it were moved away or removed")
	default:
		r.problem(int(rec.Seq)+1, "is the first that is here, but line %d was expected to be: files were moved away or removed", from+1)
	}
	return prev, rec.Seq
}

// follow checks one record against the line before it.
func (r *Report) follow(rec Record, prev [sha256.Size]byte, want uint64) {
	switch {
	case rec.Seq != want:
		r.problem(r.at(), "has number %d where %d is due: lines are missing, moved or inserted", rec.Seq, want)
	case !continues(rec.Prev, prev):
		if r.Lines == 1 {
			r.problem(1, "is the first line but continues another: the beginning is missing")
			break
		}
		r.problem(r.at(), "does not continue line %d: one of the two was changed", r.at()-1)
	case r.at() == 1 && rec.Event != Genesis:
		r.problem(1, "is not the genesis line")
	}
	if rec.Event == Note && rec.Note == storage.NoteGap {
		r.problem(r.at(), "says that the end of the log was missing when it was written")
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
