package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
)

// A checkpoint is a signed statement of the head of a log: this store, this
// line, this hash, this time. Kept where a thief of the data directory does
// not reach, it binds everybody, the owner too: a log that is shorter, or has
// another line there, is not the log that was.

// ErrCheckpoint reports bytes that are no checkpoint of the store.
var ErrCheckpoint = errors.New("not a checkpoint of this store")

// Checkpoint says what the line of number Seq was.
type Checkpoint struct {
	Store identity.ID // fingerprint of the store
	Seq   uint64
	Hash  Sum
	Time  time.Time // when it was signed, in seconds
}

// Sum is the SHA-256 of a line without its LF.
type Sum [sha256.Size]byte

const (
	originPrefix = "solekey/"
	originSuffix = "/audit"
	noteEnd      = "\n— " // begins the last line of a checkpoint
)

// Text is what is signed: origin, number, hash and time, a line each.
func (c Checkpoint) Text() string {
	return originPrefix + c.Store.String() + originSuffix + "\n" +
		strconv.FormatUint(c.Seq, 10) + "\n" +
		base64.StdEncoding.EncodeToString(c.Hash[:]) + "\n" +
		c.Time.UTC().Format(time.RFC3339) + "\n"
}

// Signer is the name under which the store signs.
func (c Checkpoint) Signer() string { return originPrefix + c.Store.String() }

// ParseCheckpoint reads a checkpoint of the store with this fingerprint and
// audit public key. It accepts no other bytes than those that were signed.
func ParseCheckpoint(note []byte, store identity.ID, public []byte) (Checkpoint, error) {
	c := Checkpoint{Store: store}
	first, _, _ := bytes.Cut(note, []byte("\n"))
	origin := originPrefix + store.String() + originSuffix
	if string(first) != origin {
		if bytes.HasPrefix(first, []byte(originPrefix)) && bytes.HasSuffix(first, []byte(originSuffix)) {
			return Checkpoint{}, fmt.Errorf("it is of another store: %w", ErrCheckpoint)
		}
		return Checkpoint{}, ErrCheckpoint
	}
	text, err := seal.OpenNote(note, c.Signer(), public)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("it was edited or forged, its signature does not fit: %w", ErrCheckpoint)
	}
	fields := strings.Split(text, "\n")
	if len(fields) != 5 {
		return Checkpoint{}, ErrCheckpoint
	}
	seq, err1 := strconv.ParseUint(fields[1], 10, 64)
	hash, err2 := base64.StdEncoding.DecodeString(fields[2])
	at, err3 := time.Parse(time.RFC3339, fields[3])
	if errors.Join(err1, err2, err3) != nil || len(hash) != len(c.Hash) {
		return Checkpoint{}, ErrCheckpoint
	}
	c.Seq, c.Hash, c.Time = seq, Sum(hash), at.UTC()
	if c.Text() != text {
		return Checkpoint{}, ErrCheckpoint
	}
	return c, nil
}

// ParseCheckpoints reads one or more checkpoints, one behind the other, as
// they are when each is added to the file of those before.
func ParseCheckpoints(notes []byte, store identity.ID, public []byte) ([]Checkpoint, error) {
	var out []Checkpoint
	for rest := notes; len(rest) > 0 || len(out) == 0; {
		end := len(rest)
		if at := bytes.Index(rest, []byte(noteEnd)); at >= 0 {
			if lf := bytes.IndexByte(rest[at+1:], '\n'); lf >= 0 {
				end = at + 1 + lf + 1
			}
		}
		c, err := ParseCheckpoint(rest[:end], store, public)
		if err != nil {
			return nil, fmt.Errorf("checkpoint %d: %w", len(out)+1, err)
		}
		out = append(out, c)
		rest = rest[end:]
	}
	return out, nil
}

// Outside is what is known of a log from elsewhere. The zero value expects a
// whole log and knows nothing else.
type Outside struct {
	From        uint64 // number of the first line that is there; [AnyFirst]: any that begins a file
	Checkpoints []Checkpoint
}

// AnyFirst accepts a log of which earlier files were moved away.
const AnyFirst = 1<<64 - 1

// compared follows checkpoints through a log.
type compared struct {
	due     map[uint64][]Checkpoint // by number of the line
	matched bool
	wrong   bool
}

func newCompared(cs []Checkpoint) compared {
	due := make(map[uint64][]Checkpoint, len(cs))
	for _, c := range cs {
		due[c.Seq] = append(due[c.Seq], c)
	}
	return compared{due: due}
}

// line compares the line of a number with the checkpoints of it.
func (p *compared) line(rep *Report, seq uint64, sum [sha256.Size]byte) {
	if len(p.due) == 0 {
		return
	}
	for _, c := range p.due[seq] {
		if c.Hash == sum {
			p.matched = true
			continue
		}
		p.wrong = true
		rep.problem(int(seq)+1, "is not the line that the checkpoint of %s names: the log was rewritten, or rolled back and written on", when(c))
	}
	delete(p.due, seq)
}

// rest reports the checkpoints of lines that are not there.
func (p *compared) rest(rep *Report) {
	end := rep.First + uint64(rep.Lines)
	for _, seq := range slices.Sorted(maps.Keys(p.due)) {
		for _, c := range p.due[seq] {
			switch {
			case seq >= end:
				rep.problem(0, "the log ends at line %d, but the checkpoint of %s names line %d: the log was rolled back", end, when(c), seq+1)
			case p.matched && !p.wrong:
				rep.note(0, "the checkpoint of %s names line %d, which is not here; a later one fits", when(c), seq+1)
			default:
				rep.problem(0, "the checkpoint of %s names line %d, which is not here: put the file that holds it back to compare them", when(c), seq+1)
			}
		}
	}
}

func when(c Checkpoint) string { return c.Time.Format(time.RFC3339) }
