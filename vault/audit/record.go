package audit

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/solekey/solekey/identity"
)

// ErrMalformed reports a line that is not a record.
var ErrMalformed = errors.New("not an audit record")

// Event says what was attempted.
type Event string

// The events of the log.
const (
	Genesis   Event = "genesis"
	Auth      Event = "auth"
	List      Event = "list"
	Get       Event = "get"
	Code      Event = "code"
	Verified  Event = "verify" // a value was compared inside, not released
	Put       Event = "put"
	Remove    Event = "remove"
	Create    Event = "create"
	KeyAdd    Event = "key-add"
	KeyRevoke Event = "key-revoke"
	Rotate    Event = "rotate"
	Revoke    Event = "revoke"
	Shred     Event = "shred"
	Recover   Event = "recover"
	Backup    Event = "backup"
	Restore   Event = "restore" // of the store, then of each of its identities
	// RootRotate is a new root secret of the store, and each header that is
	// sealed under it.
	RootRotate Event = "root-rotate"
	Note       Event = "note"
)

// Owner stands in the place of a key where the owner acted.
const Owner = "owner"

// Tag names a label in the log. Only who holds the audit seed can make one.
type Tag [16]byte

// Ref is a label at a version.
type Ref struct {
	Tag     Tag
	Version uint32
}

// Hash is a truncated SHA-256 of a sealed identity header.
type Hash [16]byte

// Record is one line of the log. Zero fields are left out.
type Record struct {
	Seq  uint64 // given by the journal
	Prev string // hex SHA-256 of the line before, given by the journal

	Time     time.Time
	Event    Event
	Denied   bool
	Why      string // the word of a refusal
	Identity identity.ID
	Key      string // first 8 hex digits of the slot ID, or [Owner]
	Slot     string // first 8 hex digits of the slot that was made, closed or given an end
	Class    string // exposure in force
	Dest     string
	Via      string
	From     string
	Labels   []Ref
	Gen      uint64 // of the header decided on; the target generation of a change
	Was, Is  Hash   // hashes of the header before and after a change
	N        int
	Note     string
}

const timeLayout = "2006-01-02T15:04:05.000000Z"

// body appends the JSON object of r without seq and prev, fields in the order
// of the specification.
func (r *Record) body(b []byte) []byte {
	b = append(b, `{"v":1,"t":"`...)
	b = r.Time.UTC().AppendFormat(b, timeLayout)
	b = append(b, '"')
	b = text(b, "ev", string(r.Event))
	if r.Denied {
		b = append(b, `,"res":"deny"`...)
	} else {
		b = append(b, `,"res":"allow"`...)
	}
	b = text(b, "why", r.Why)
	if !r.Identity.IsZero() {
		b = hexText(b, "id", r.Identity[:])
	}
	b = text(b, "key", r.Key)
	b = text(b, "slot", r.Slot)
	b = text(b, "cls", r.Class)
	b = text(b, "dst", r.Dest)
	b = text(b, "via", r.Via)
	b = text(b, "from", r.From)
	for i, ref := range r.Labels {
		if i == 0 {
			b = append(b, `,"lab":["`...)
		} else {
			b = append(b, `,"`...)
		}
		b = hex.AppendEncode(b, ref.Tag[:])
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(ref.Version), 10)
		b = append(b, '"')
	}
	if len(r.Labels) > 0 {
		b = append(b, ']')
	}
	if r.Gen > 0 {
		b = append(b, `,"gen":`...)
		b = strconv.AppendUint(b, r.Gen, 10)
	}
	if r.Was != (Hash{}) {
		b = hexText(b, "was", r.Was[:])
	}
	if r.Is != (Hash{}) {
		b = hexText(b, "mh", r.Is[:])
	}
	if r.N > 0 {
		b = append(b, `,"n":`...)
		b = strconv.AppendInt(b, int64(r.N), 10)
	}
	b = text(b, "note", r.Note)
	return append(b, '}')
}

func text(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	for _, c := range []byte(s) {
		if c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			q, _ := json.Marshal(s) // a string always marshals
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func hexText(b []byte, name string, v []byte) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':', '"')
	b = hex.AppendEncode(b, v)
	return append(b, '"')
}

// String returns the tag as 32 hex digits.
func (t Tag) String() string { return hex.EncodeToString(t[:]) }

// String returns TAG:VERSION, as it stands in a line.
func (r Ref) String() string { return fmt.Sprintf("%s:%d", r.Tag, r.Version) }
