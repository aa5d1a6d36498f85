// Package seal owns every encrypted byte of solekey: the text of the root
// secret, the store record, the identity header, entries, their state,
// tombstones, the two locks around a value and the mailbox.
//
// Two locks nest around a value. The outer lock needs the store: its root
// secret and the shred cell of the identity lead to the [Header], and a random
// key inside the header leads to [Outer], which opens entries. The inner lock
// needs a key of the agent or the recovery key: it unwraps the identity secret
// ([Inner]), which opens values. An owner who holds no key of an agent reaches
// its vault through the mailbox: [SealMailbox] seals a value to the public key
// in the header.
//
// Each open is authenticated and bound to store, identity, storage key, type
// and version; the inner lock also to label, kind and exposure. Every refusal
// is [ErrRefused], whatever the reason, and a refused open returns nothing.
// What a Seal function accepts its Open function returns unchanged, and what
// cannot be opened cannot be sealed.
//
// Formats are in docs/SPEC.md, with vectors in testdata/vectors.json. The
// package does no I/O, reads no clock and holds no policy: who may open what,
// and when, is decided by package vault. Arguments are neither kept nor
// changed, and what is returned belongs to the caller. No key is cached.
package seal

import (
	"encoding/binary"
	"errors"
)

// ErrRefused reports bytes that are not what they are claimed to be: damaged,
// swapped, made under another key or for another place, or malformed. It never
// says which.
var ErrRefused = errors.New("sealed data refused")

// ErrVersion reports a format version or cipher suite that this program does
// not know.
var ErrVersion = errors.New("unknown format version")

// Limits of the formats.
const (
	MaxValue   = 64 << 10    // bytes in one payload field
	MaxPayload = 128<<10 - 4 // bytes in an encoded payload
	MaxHeader  = 16 << 10    // bytes of header plaintext, padding included
	MaxLabels  = 4096        // labels of an identity, removed ones included
	MaxSlots   = 16          // key slots of an identity
	MaxGlobs   = 32          // label globs of a key slot
	MaxLabel   = maxStr8     // bytes in a label
	maxStr8    = 1<<8 - 1    // a str8 counts in one byte
	maxMeta    = (1<<16 - 1) &^ (metaUnit - 1)
)

// Sizes in bytes. A mailbox adds sizeHSEAL to a payload, the inner lock
// sizeCSEAL, the outer lock sizeOSEAL.
const (
	sizeKey       = 32
	sizePublicKey = 1216
	sizeEnc       = 1120
	sizePrefix    = 8
	sizeOSEAL     = 12 + 16
	sizeCSEAL     = 32 + 32 + sizeOSEAL
	sizeHSEAL     = sizeEnc + 32 + 16
	sizeWrapped   = sizeKey + sizeCSEAL
	sizeRecovery  = sizeKey + sizeHSEAL
)

// Type says what a sealed object is.
type Type uint8

// The types of sealed objects. 5, 7 and 8 are reserved.
const (
	TypeStore     Type = 1
	TypeHeader    Type = 2
	TypeTombstone Type = 3
	TypeEntry     Type = 4
	TypeState     Type = 6
)

// epochal reports whether objects of the type hang on a root secret.
func (t Type) epochal() bool { return t <= TypeTombstone }

const (
	formatVersion = 1
	suite         = 1 // HKDF-SHA-256, AES-256-GCM, HPKE with X-Wing
)

// prefix is the clear start of a sealed object.
func prefix(t Type, epoch uint32) [sizePrefix]byte {
	p := [sizePrefix]byte{formatVersion, suite, byte(t), 0}
	binary.BigEndian.PutUint32(p[4:], epoch)
	return p
}

// Peek reads the clear prefix of a sealed object: its type, and the epoch of
// the root secret it hangs on, 0 for entries and their state. The prefix is
// authenticated by the open, not by Peek.
func Peek(b []byte) (Type, uint32, error) {
	if len(b) < sizePrefix {
		return 0, 0, ErrRefused
	}
	if b[0] != formatVersion || b[1] != suite {
		return 0, 0, ErrVersion
	}
	t, epoch := Type(b[2]), binary.BigEndian.Uint32(b[4:])
	switch t {
	case TypeStore, TypeHeader, TypeTombstone, TypeEntry, TypeState:
	default:
		return 0, 0, ErrRefused
	}
	if b[3] != 0 || (epoch != 0) != t.epochal() {
		return 0, 0, ErrRefused
	}
	return t, epoch, nil
}

// peekAs is [Peek] for an object that must be of type t.
func peekAs(t Type, b []byte) (uint32, error) {
	got, epoch, err := Peek(b)
	if err != nil {
		return 0, err
	}
	if got != t {
		return 0, ErrRefused
	}
	return epoch, nil
}
