// Package storage is the seam between the rules of a vault and the engine
// that keeps its bytes: types, contract, limits and the one retry loop.
//
// Storage sees ciphertext and opaque keys only; it parses no record and knows
// no rule. One identity is the unit of atomicity: no transaction crosses
// identities, and none is interactive. Everything above the seam is written
// once, in package vault; an engine implements [Backend] and proves it with
// package enginetest.
//
// # Contract
//
// Every engine keeps these rules, in one process and in many.
//
//  1. Atomic. A Commit applies Meta and every Op, or nothing. Success raises
//     Rev by 1 and returns it.
//  2. Compare-and-set. A Commit applies only if the current Rev equals ifRev;
//     ifRev 0 creates, with Rev 1. Otherwise it returns [ErrConflict], found
//     before the first write.
//  3. Durable. When Commit, Append, PutCell or EraseCell returns nil, it
//     survives kill -9 and power loss.
//  4. Linearizable. Get, List, Identities, Cell and Lines see every change
//     that returned before they were called, from any process or replica.
//  5. Snapshot. A Result and a Page each come from one point in time; pages
//     are stitched by Rev.
//  6. Order. List and Identities go in byte order, strictly after the given
//     position, with at most limit items. Fewer than limit means the end for
//     Identities; a Page says so itself in More, since it also ends at
//     [MaxPage] bytes. Identities omits the all-zero ID.
//  7. Never removed. An identity is not deleted; a shredded one keeps a small
//     Meta and its Rev goes on, so that a stale compare-and-set never
//     re-creates it. A cell is never reused.
//  8. Empty batch. A [Batch] without Meta and Ops is a commit of its own: it
//     raises Rev and is written.
//  9. Definite errors. An error that wraps [ErrUnknown] means "may have been
//     applied": re-read Rev, then retry; the compare-and-set makes that safe.
//     Every other error means "not applied".
//  10. Cancellation. Before the commit starts: not applied, the context's
//     error. Once it has started, Commit waits for the outcome, at most 5 s,
//     then returns [ErrUnknown].
//  11. No poisoning. Callers that are grouped into one transaction do not fail
//     each other. Limits are checked before grouping; if the group fails,
//     each call is retried alone once and gets its own error.
//  12. Ownership. Results belong to the caller; arguments are not kept after
//     return.
//  13. Concurrency. All methods are safe for any number of goroutines. Close
//     waits for running calls; later ones return [ErrClosed].
//  14. Silence. No error, log line or panic text contains a byte of a key,
//     value, Meta or cell.
package storage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"

	"github.com/solekey/solekey/identity"
)

// The sentinels of the seam. Test with [errors.Is]; every one but ErrUnknown
// means that nothing was applied.
var (
	// ErrConflict reports that the identity's Rev differs from ifRev.
	ErrConflict = errors.New("revision differs")
	// ErrInvalid reports an argument that no engine accepts: an empty or
	// repeated key, a limit out of range, a malformed journal body.
	ErrInvalid = errors.New("invalid storage argument")
	// ErrTooLarge reports an argument above a limit of this package.
	ErrTooLarge = errors.New("storage argument too large")
	// ErrUnavailable reports that the store cannot be reached at the moment:
	// no turn in time, a database that does not answer, a log that cannot be
	// written. Nothing was applied; a later call may succeed.
	ErrUnavailable = errors.New("storage unavailable")
	// ErrUnknown reports that the outcome is unknown: the change may have been
	// applied.
	ErrUnknown = errors.New("storage outcome unknown")
	// ErrFull reports a full disk or a store at its greatest size. Reads,
	// deletes and EraseCell still work.
	ErrFull = errors.New("storage full")
	// ErrDamaged reports that an identity, or the whole store, fails a
	// structure check.
	ErrDamaged = errors.New("storage damaged")
	// ErrNoCell reports an identity that never had a cell.
	ErrNoCell = errors.New("no cell")
	// ErrErased reports a cell that has been erased.
	ErrErased = errors.New("cell is erased")
	// ErrClosed reports a call on a closed store.
	ErrClosed = errors.New("storage closed")
	// ErrUnsupported reports a place where a store cannot be kept, such as a
	// network file system.
	ErrUnsupported = errors.New("unsupported storage location")
)

// Rev is the revision of one identity. 0 means that it does not exist.
type Rev uint64

// Cell is the shred key of one identity: without it nothing of the identity
// can be opened. It prints as [redacted].
type Cell [32]byte

const redacted = "[redacted]"

// Format writes [redacted] for every verb.
func (Cell) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String returns [redacted].
func (Cell) String() string { return redacted }

// GoString returns [redacted].
func (Cell) GoString() string { return redacted }

// LogValue returns [redacted].
func (Cell) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns [redacted].
func (Cell) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "[redacted]".
func (Cell) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Class says what erasing a cell achieves at the place where the store lies.
type Class uint8

// The erasure classes. InPlace overwrites the bytes on the medium, BestEffort
// overwrites them where the file system may keep older copies, Delayed
// destroys a wrapping key later.
const (
	InPlace Class = iota + 1
	BestEffort
	Delayed
)

// String returns the word for the class.
func (c Class) String() string {
	switch c {
	case InPlace:
		return "in_place"
	case BestEffort:
		return "best_effort"
	case Delayed:
		return "delayed"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Result is what a Get saw at one point in time. Rev 0: no such identity. Keys
// that do not exist are absent in Vals; an empty value is present and not nil.
type Result struct {
	Rev  Rev
	Meta []byte
	Vals map[string][]byte
}

// Item is one key and its value.
type Item struct {
	Key string
	Val []byte
}

// Page is one part of a listing, from one point in time. Pages of equal Rev
// form one consistent listing. More reports that keys follow the last item;
// a page that is not empty may end below the limit because of [MaxPage].
type Page struct {
	Rev   Rev
	Items []Item
	More  bool
}

// Ident is one identity of a listing.
type Ident struct {
	ID   identity.ID
	Rev  Rev
	Meta []byte
}

// Op changes one key. A nil Val deletes it, also if it does not exist; an
// empty Val that is not nil is a value.
type Op struct {
	Key string
	Val []byte
}

// Batch is what one Commit changes. A nil Meta keeps the Meta there is.
type Batch struct {
	Meta []byte
	Ops  []Op
}

// Store keeps identities: for each a revision, a Meta and keys with values.
// Keys are arbitrary bytes in a string. The all-zero ID is the store's own
// record.
type Store interface {
	// Get returns revision, Meta and the values of keys of one identity. An
	// identity that does not exist is a Result with Rev 0, not an error.
	Get(ctx context.Context, id identity.ID, keys ...string) (Result, error)
	// List returns keys and values of one identity in byte order, strictly
	// after the given key, at most limit of them.
	List(ctx context.Context, id identity.ID, after string, limit int) (Page, error)
	// Identities returns identities in byte order, strictly after the given
	// one, at most limit of them. Fewer than limit means the end. The all-zero
	// ID is omitted; as after it stands for the beginning.
	Identities(ctx context.Context, after identity.ID, limit int) ([]Ident, error)
	// Commit applies b to an identity whose revision is ifRev, and returns the
	// revision it made: ifRev + 1.
	Commit(ctx context.Context, id identity.ID, ifRev Rev, b Batch) (Rev, error)
	// Close waits for running calls and releases everything. Closing twice is
	// not an error.
	Close() error
}

// Cells keeps shred keys. What is erased here has no older copy in the store.
type Cells interface {
	// Cell returns the cell of an identity, [ErrNoCell], or [ErrErased].
	Cell(ctx context.Context, id identity.ID) (Cell, error)
	// PutCell stores a cell, once per identity for ever: a second call returns
	// [ErrConflict], or [ErrErased] after an erasure. Durable on return.
	PutCell(ctx context.Context, id identity.ID, c Cell) error
	// EraseCell overwrites the cell. It is durable on return, idempotent, and
	// works on a full or damaged store. An identity without a cell gives
	// [ErrNoCell].
	EraseCell(ctx context.Context, id identity.ID) error
	// Erasure says what EraseCell achieves here.
	Erasure() Class
}

// Journal keeps lines in order. It owns line numbers and the chain of hashes:
// it writes {"seq":N,"prev":"HEX", in place of each body's opening brace, HEX
// being the SHA-256 of the line before without its LF, zeros before line 0.
type Journal interface {
	// Append adds a line per body: all or none, consecutive, durable on
	// return. A body is a JSON object with at least one member and no raw control
	// character, so it is one line.
	Append(ctx context.Context, bodies ...[]byte) (firstSeq uint64, err error)
	// Lines yields every line without its LF, the oldest first. Each yielded
	// slice belongs to the caller. The first error ends the sequence. Lines
	// appended after the first line was yielded may be left out.
	//
	// Beside any number of writers, in any process, Lines yields whole lines
	// only and a prefix of the log: every line that Append acknowledged before
	// the first one was asked for, then perhaps later ones, with no line
	// missing between them. A Head that was returned before is therefore never
	// ahead of what Lines yields, unless the log was cut from outside.
	Lines(ctx context.Context) iter.Seq2[[]byte, error]
	// Head returns the mark of the last line that Append acknowledged. The
	// mark is kept apart from the lines and written after their sync, so after
	// a power cut it may be behind the lines, never ahead of them. A log that
	// ends before its mark, or differs from it there, was cut or changed from
	// outside: the next Append writes a line with note [NoteGap] first and
	// goes on; Head keeps returning the old mark until then. So it is with a
	// mark that is missing or invalid, which no crash leaves behind: Head
	// says Unknown. A log file that is missing takes no line at all.
	Head(ctx context.Context) (Head, error)
}

// Head is the mark of a log: how many lines were written, and the hash of the
// last one without its LF.
type Head struct {
	Lines uint64
	Hash  [32]byte
	// Unknown reports that no valid mark is there, although every log has one
	// from the start: it was removed or damaged, and the end of the log may be
	// missing unseen. Lines and Hash are then zero, or what this process
	// remembers.
	Unknown bool
}

// NoteGap is the note of the line that a journal writes when the end of the
// log it continues was cut off or changed from outside, or when its mark is
// gone, so that nobody can tell.
const NoteGap = "the end of the log was missing"

// NoteNext is the note of the line that a journal writes first when the log
// goes on in a new file. The line chains on as any other. The owner may move
// the files before it away, the oldest first; the log then begins with such a
// line.
const NoteNext = "the log goes on in this file"

// Backend is a whole engine.
type Backend interface {
	Store
	Cells
	Journal
}
