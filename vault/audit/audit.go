// Package audit is the record of every attempt: what a line of the log says,
// how it is written before the reply it describes, and how the log is
// verified.
//
// The log is JSON Lines. The journal of the store numbers the lines and
// chains each to the one before by SHA-256; this package makes their bodies
// and reads them back. No line holds a value, a label or a name: a label
// stands there as the tag that only the owner's tools turn back.
//
// [Append] returns after the sync. [Verify] never writes.
package audit

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/solekey/solekey/vault/storage"
)

// ErrUnwritable reports that the log could not take a line. Nothing was
// written, and nothing that the line would have described may happen, except
// that keys are closed and vaults shredded.
var ErrUnwritable = errors.New("the audit log cannot be written")

// maxLabels is how many labels one line names. It keeps a line under the
// 2 KiB of the journal; a record with more becomes several lines.
const maxLabels = 32

// Append writes the records as consecutive lines, all or none, and returns
// when they are durable. Its error wraps [ErrUnwritable], unless ctx ended
// before it began.
func Append(ctx context.Context, j storage.Journal, recs ...Record) error {
	var bodies [][]byte
	for _, r := range recs {
		bodies = appendBodies(bodies, r)
	}
	if _, err := j.Append(ctx, bodies...); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnwritable, err)
	}
	return nil
}

// appendBodies adds the lines of r to bodies.
func appendBodies(bodies [][]byte, r Record) [][]byte {
	all := r.Labels
	for len(all) > maxLabels {
		r.Labels = all[:maxLabels]
		bodies = append(bodies, r.body(nil))
		all = all[maxLabels:]
	}
	r.Labels = all
	return append(bodies, r.body(make([]byte, 0, 384)))
}

// Records yields every line of the log, oldest first. A line that is no
// record ends the sequence with an error that names its number.
func Records(ctx context.Context, j storage.Journal) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		n := 0
		for line, err := range j.Lines(ctx) {
			n++
			var r Record
			if err == nil {
				if r, err = Parse(line); err != nil {
					err = fmt.Errorf("line %d: %w", n, err)
				}
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}
