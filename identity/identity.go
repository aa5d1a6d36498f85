// Package identity says what an agent identity is and what one of its keys
// may do: identifiers, names, the text form of keys and the grant of a key
// slot.
//
// A [Key] that exists is well formed: [ParseKey] refuses every typo by
// checksum, before any I/O. The package does no I/O, holds no values and
// knows no store. All types are safe for concurrent use, as none changes
// after it is made.
package identity

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrMalformedID reports a text that is not an identifier.
var ErrMalformedID = errors.New("identity ID is not 32 hex digits")

// ErrMalformedName reports a text that cannot name an identity, key or
// profile.
var ErrMalformedName = errors.New("a name is 1 to 63 of a-z, 0-9 and -, not starting with -")

// ID identifies one agent identity and its vault for ever. The zero ID is no
// identity: it addresses the store's own record.
type ID [16]byte

// NewID returns a random ID.
func NewID() ID {
	var id ID
	rand.Read(id[:]) // never fails, see crypto/rand
	return id
}

// ParseID reads the 32 hex digits that [ID.String] writes.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*len(id) {
		return ID{}, ErrMalformedID
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, ErrMalformedID
	}
	return id, nil
}

// String returns the ID as 32 hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is the all-zero ID.
func (id ID) IsZero() bool { return id == ID{} }

// SlotID identifies a key slot. It is derived from the key, and opens
// nothing.
type SlotID [16]byte

// String returns the slot ID as people see it: its first 8 hex digits.
func (s SlotID) String() string { return hex.EncodeToString(s[:4]) }

// Status is the state of an identity.
type Status uint8

// The states of an identity. A revoked identity can still be opened with the
// recovery key; a shredded one is gone for ever.
const (
	Active Status = iota + 1
	Revoked
	Shredded
)

// String returns the word for the status.
func (s Status) String() string {
	switch s {
	case Active:
		return "active"
	case Revoked:
		return "revoked"
	case Shredded:
		return "shredded"
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// CheckName reports [ErrMalformedName] unless s matches
// [a-z0-9][a-z0-9-]{0,62}.
func CheckName(s string) error {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' {
		return ErrMalformedName
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return ErrMalformedName
		}
	}
	return nil
}
