// Package vault holds the rules of solekey: who may read, write and close
// what.
//
// A [Keeper] is the owner's half. It creates identities, fills their vaults,
// rotates, revokes and shreds, and has no method that returns a secret value.
// A [Vault] is one agent's half. The only way to one is [Keeper.Unlock] with
// a key of that identity, and nothing a Vault does can reach another
// identity.
//
// Every attempt that presents a key of an existing slot leaves one audit line
// that is durable before the reply; without the line there is no secret.
// Nothing is cached between calls: each reads the identity afresh, so that
// what one process revokes ends at once in every other.
//
// The package opens no file, starts no goroutine and speaks no protocol. All
// methods are safe for concurrent use. [Refuse] says what an error means.
package vault

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/solekey/solekey/identity"
)

// ErrMalformedLabel reports a text that is not a label.
var ErrMalformedLabel = errors.New("a label is 1 to 128 of A-Z, a-z, 0-9 and . _ / -, not starting with -")

// Label names an entry of one vault.
type Label string

// ParseLabel returns s as a Label, or a bad_request refusal that wraps
// [ErrMalformedLabel].
func ParseLabel(s string) (Label, error) {
	if !labelText(s) || s == "" || s[0] == '-' {
		return "", &Refusal{Word: BadRequest, Message: "Not a label: " + ErrMalformedLabel.Error()[len("a label is "):] + ".", Hint: "list_labels shows the labels of this key.", cause: ErrMalformedLabel}
	}
	return Label(s), nil
}

// labelText reports whether s consists of label characters and is not too
// long; the empty text is fine, as a prefix.
func labelText(s string) bool {
	if len(s) > 128 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '/' && c != '-' {
			return false
		}
	}
	return true
}

// EntryKind says what an entry holds. It is sealed with the value.
type EntryKind uint8

// The kinds of entries. The field `value` is the primary one: the secret, the
// password, the seed.
const (
	KindSecret EntryKind = iota + 1
	KindLogin
	KindTOTP
)

var kindWords = [...]string{KindSecret: "secret", KindLogin: "login", KindTOTP: "totp"}

// String returns the word for the kind.
func (k EntryKind) String() string { return wordOf(kindWords[:], uint8(k)) }

// ParseKind reads the word that [EntryKind.String] writes.
func ParseKind(s string) (EntryKind, error) {
	if i := indexOf(kindWords[:], s); i > 0 {
		return EntryKind(i), nil
	}
	return 0, fmt.Errorf("unknown kind %q: secret, login or totp", s)
}

// Exposure says how far a value may go: to whoever reads it, only into a
// request or program that solekey fills in, or nowhere. It is sealed with the
// value.
type Exposure uint8

// The exposures, from the loosest to the strictest.
const (
	ExposeReveal Exposure = iota + 1
	ExposeUse
	ExposeNever
)

var exposureWords = [...]string{ExposeReveal: "reveal", ExposeUse: "use", ExposeNever: "never"}

// String returns the word for the exposure.
func (e Exposure) String() string { return wordOf(exposureWords[:], uint8(e)) }

func wordOf(words []string, i uint8) string {
	if i == 0 || int(i) >= len(words) {
		return fmt.Sprintf("unknown(%d)", i)
	}
	return words[i]
}

func indexOf(words []string, s string) int {
	for i, w := range words {
		if i > 0 && w == s {
			return i
		}
	}
	return -1
}

// Field is one named value of an entry that is about to be sealed. Names are
// [a-z0-9_]{1,32}.
type Field struct {
	Name  string
	Value []byte
	Never bool // this field never leaves, whatever the exposure of the entry
}

// String returns the name of the field; the value is [redacted].
func (f Field) String() string { return f.Name + "=" + redacted }

// Format writes what String returns, for every verb.
func (f Field) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(f.String())) }

// LogValue returns what String returns.
func (f Field) LogValue() slog.Value { return slog.StringValue(f.String()) }

// MarshalText returns what String returns; it serves JSON as well.
func (f Field) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// NewEntry is an entry to be stored. The owner's half can write it and never
// read it back.
type NewEntry struct {
	Label     Label
	Kind      EntryKind // zero: KindSecret
	Exposure  Exposure  // zero: the default of the store; a totp entry is always ExposeNever
	Fields    []Field   // at least the field `value`
	Hosts     []string  // where a request may take it
	Placement string    // where in a request it may stand, e.g. `header:Authorization: Bearer`
	Tags      []string  // label alphabet
	Expires   time.Time // zero: never
}

// Stored says what a put did.
type Stored struct {
	Label   Label
	Version uint32
	Skipped bool // the label exists and replace was false; nothing was written
}

// LabelInfo describes an entry without its value.
type LabelInfo struct {
	Label     Label
	Kind      EntryKind
	Exposure  Exposure // the stricter of the sealed one and the owner's cap
	HasTOTP   bool
	Version   uint32
	Fields    []string
	Hosts     []string
	Placement string
	Tags      []string
	Created   time.Time
	Updated   time.Time
	Expires   time.Time // zero: never
	Unread    bool      // put by the owner and not yet read by an agent
}

// Info describes an identity to its owner.
type Info struct {
	ID       identity.ID
	Name     string // empty once shredded
	Status   identity.Status
	Created  time.Time
	Changed  time.Time
	Recovery bool // the recovery key can open it
	Slots    []SlotInfo
	Damaged  bool // header or cell cannot be read; everything but ID is zero

	// Heir is the identity that is to take over every value of this one,
	// whose key leaked; zero if none is. See [Keeper.Replace].
	Heir identity.ID
	// Heirs only: Replaces is the identity whose values this one took over.
	// Pending says that it has not done so yet, so that its name is not its
	// own and its key admits nobody.
	Replaces identity.ID
	Pending  bool
}

// Live returns how many key slots still admit their key at now.
func (i Info) Live(now time.Time) int {
	n := 0
	for _, s := range i.Slots {
		if !s.Closed && (s.Grant.Expires.IsZero() || now.Before(s.Grant.Expires)) {
			n++
		}
	}
	return n
}

// SlotInfo describes one key of an identity.
type SlotInfo struct {
	ID      identity.SlotID
	Name    string
	Closed  bool
	Created time.Time
	Grant   identity.Grant
}

// NewIdentity is an identity to be created, with its first key.
type NewIdentity struct {
	Name       string
	Grant      identity.Grant // zero Scopes: identity.DefaultScopes
	NoRecovery bool           // the recovery key of the store cannot open it
}

// Rotation says how a key is replaced.
type Rotation struct {
	Grace time.Duration   // how long the proof key goes on; 0: it is closed in the same commit
	Grant *identity.Grant // of the new key; nil: that of the proof key
}

// Source says where a call comes from, for its audit line.
type Source struct {
	Via  string // stdio, http, sse or cli
	Addr string // remote address without port; empty if local
}
