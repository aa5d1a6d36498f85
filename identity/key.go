package identity

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Kind says what a key opens.
type Kind uint8

// The kinds of keys. An agent key opens one vault; a recovery key is kept
// offline and opens every vault of one store that has a recovery slot.
const (
	Agent Kind = iota + 1
	Recovery
)

// String returns the word for the kind.
func (k Kind) String() string {
	switch k {
	case Agent:
		return "agent"
	case Recovery:
		return "recovery"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// prefix returns how the text of a key of this kind begins.
func (k Kind) prefix() string {
	switch k {
	case Agent:
		return "slk1_"
	case Recovery:
		return "slr1_"
	}
	panic("identity: unknown kind of key")
}

// HKDF labels, docs/SPEC.md section 5.
const (
	labelKey      = "solekey/v1/api-key"
	labelRecovery = "solekey/v1/recovery"
)

const redacted = "[redacted]"

// Key is one API key or recovery key. It prints as [redacted] in every verb
// and encoding; [Key.Reveal] is the only way to its text. Keys are not
// comparable: compare slot IDs, or hashes of [Key.Auth] in constant time.
//
// The zero Key is no key. It has no kind, no identity and an empty text, and
// asking it for key material panics, so that nothing is ever sealed under
// zeros.
type Key struct {
	_ [0]func()
	// A closure, because a printer that meets a Key in somebody's unexported
	// field cannot call its methods and walks its fields instead. Package fmt
	// follows even a pointer there, for a verb like %s; no printer looks into
	// a closure.
	parts func() *parts // nil in the zero Key
}

type parts struct {
	kind   Kind
	pub    [19]byte // version, shard u16, ID
	secret [32]byte
	slot   SlotID
	auth   [32]byte
	lock   [32]byte
}

// NewKey makes a key of the given kind for id in shard 0, with a random
// secret. It panics if the kind is unknown or id is zero.
func NewKey(k Kind, id ID) Key {
	return newKey(k, id, newSecret())
}

// NewRecoveryKey makes the recovery key of a store. The fingerprint that the
// key names depends on its own secret: the function gets the X-Wing seed, see
// [Key.RecoverySeed], and returns it.
func NewRecoveryKey(store ID, fingerprint func(seed [32]byte) ID) Key {
	secret := newSecret()
	return newKey(Recovery, fingerprint(recoverySeed(&secret, store)), secret)
}

func newSecret() (secret [32]byte) {
	rand.Read(secret[:]) // never fails, see crypto/rand
	return secret
}

func newKey(k Kind, id ID, secret [32]byte) Key {
	if id.IsZero() {
		panic("identity: a key for the zero ID")
	}
	pub := [19]byte{0: pubVersion}
	copy(pub[3:], id[:])
	return split(k, k.prefix(), pub, secret)
}

var (
	errNoKey      = fmt.Errorf("%w: prefix: a key begins with slk1_ or slr1_", ErrMalformedKey)
	errAdmin      = fmt.Errorf("%w: prefix: sla1_ (admin key) is reserved and opens nothing", ErrMalformedKey)
	errEnrolment  = fmt.Errorf("%w: prefix: sle1_ (enrolment code) is reserved and opens nothing", ErrMalformedKey)
	errRootText   = fmt.Errorf("%w: prefix: slroot1_ is root text, not a key", ErrMalformedKey)
	errNoIdentity = fmt.Errorf("%w: it names no identity", ErrMalformedKey)
)

// ParseKey reads the text of a key; blanks and newlines around it are
// dropped. It reports [ErrMalformedKey], wrapped with what is wrong and no
// part of the text, before it derives anything.
func ParseKey(text string) (Key, error) {
	text = strings.Trim(text, " \t\r\n")
	kind, err := kindOf(text)
	if err != nil {
		return Key{}, err
	}
	prefix := kind.prefix()
	pub, secret, err := DecodeText(prefix, text)
	if err != nil {
		return Key{}, err
	}
	if ID(pub[3:]).IsZero() {
		return Key{}, errNoIdentity
	}
	return split(kind, prefix, pub, secret), nil
}

func kindOf(text string) (Kind, error) {
	switch {
	case strings.HasPrefix(text, "slk1_"):
		return Agent, nil
	case strings.HasPrefix(text, "slr1_"):
		return Recovery, nil
	case strings.HasPrefix(text, "sla1_"):
		return 0, errAdmin
	case strings.HasPrefix(text, "sle1_"):
		return 0, errEnrolment
	case strings.HasPrefix(text, "slroot1_"):
		return 0, errRootText
	}
	return 0, errNoKey
}

// split derives slot ID, auth and lock. Prefix and pub are bound, so the same
// secret under another kind, shard or identity is another key.
func split(kind Kind, prefix string, pub [19]byte, secret [32]byte) Key {
	var okm [16 + 32 + 32]byte
	defer clear(okm[:])
	derive(okm[:], &secret, labelKey, prefix, pub[:])
	p := &parts{kind: kind, pub: pub, secret: secret}
	copy(p.slot[:], okm[:])
	copy(p.auth[:], okm[16:])
	copy(p.lock[:], okm[48:])
	return Key{parts: func() *parts { return p }}
}

func recoverySeed(secret *[32]byte, store ID) (seed [32]byte) {
	derive(seed[:], secret, labelRecovery, "", store[:])
	return seed
}

// Kind returns the kind of the key, 0 for the zero Key.
func (k Key) Kind() Kind {
	if k.parts == nil {
		return 0
	}
	return k.parts().kind
}

// IsZero reports whether k is the zero Key.
func (k Key) IsZero() bool { return k.parts == nil }

// Identity returns the ID that the key names: the identity of an agent key,
// the store fingerprint of a recovery key, the zero ID for the zero Key.
func (k Key) Identity() ID {
	if k.parts == nil {
		return ID{}
	}
	return ID(k.parts().pub[3:])
}

// Shard returns the shard that the key names; 0 in one-store set-ups.
func (k Key) Shard() uint16 {
	if k.parts == nil {
		return 0
	}
	return binary.BigEndian.Uint16(k.parts().pub[1:])
}

// Slot returns the ID of the key's slot. It opens nothing and may be shown.
func (k Key) Slot() SlotID {
	if k.parts == nil {
		return SlotID{}
	}
	return k.parts().slot
}

// Auth returns what proves the key. A store keeps its hash only.
func (k Key) Auth() [32]byte { return k.must().auth }

// InnerLock returns what opens the inner lock of the vault.
func (k Key) InnerLock() [32]byte { return k.must().lock }

// RecoverySeed returns the X-Wing seed that a recovery key gives for a store.
// Of a key that is no recovery key of that store it returns a seed that opens
// nothing.
func (k Key) RecoverySeed(store ID) [32]byte { return recoverySeed(&k.must().secret, store) }

// Reveal returns the text of the key, empty for the zero Key.
func (k Key) Reveal() string {
	if k.parts == nil {
		return ""
	}
	p := k.parts()
	return EncodeText(p.kind.prefix(), p.pub, p.secret)
}

func (k Key) must() *parts {
	if k.parts == nil {
		panic("identity: key material of the zero Key")
	}
	return k.parts()
}

// String returns [redacted].
func (Key) String() string { return redacted }

// GoString returns [redacted].
func (Key) GoString() string { return redacted }

// Format writes [redacted] for every verb.
func (Key) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue returns [redacted].
func (Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON returns [redacted] as a JSON string.
func (Key) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText returns [redacted].
func (Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// HoldsKey reports whether s holds a whole text of a key or of root text,
// whatever its checksum.
func HoldsKey(s string) bool {
	for rest := s; ; {
		i := strings.Index(rest, "1_")
		if i < 0 {
			return false
		}
		if text := rest[i+len("1_"):]; LooksLikeKey(rest[:i+len("1_")]) && len(text) >= bodyChars && isBody(text[:bodyChars]) {
			return true
		}
		rest = rest[i+len("1_"):]
	}
}

func isBody(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// LooksLikeKey reports whether s holds the beginning of a key or of root text
// anywhere. It is the guard of command lines: it would rather refuse a
// harmless argument than let a key into a shell history.
func LooksLikeKey(s string) bool {
	for rest := s; ; {
		i := strings.Index(rest, "sl")
		if i < 0 {
			return false
		}
		rest = rest[i+len("sl"):]
		if strings.HasPrefix(rest, "root1_") ||
			len(rest) > 0 && strings.IndexByte("akre", rest[0]) >= 0 && strings.HasPrefix(rest[1:], "1_") {
			return true
		}
	}
}
