package seal

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"github.com/solekey/solekey/identity"
)

// Outer is the outer lock of one identity: it seals entries and their state
// and computes the set-hash. Make one per call with [Store.Outer] and wipe it.
// It is safe for concurrent use until wiped, and prints as [redacted].
type Outer struct {
	redacted
	_ [0]func()

	store, id identity.ID
	key, set  [sizeKey]byte
}

// Outer derives the outer lock from the header's secret.
func (s *Store) Outer(id identity.ID, h *Header) *Outer {
	o := &Outer{store: s.id, id: id}
	o.key, o.set = expand2(&h.OK, labelIdentity, id[:])
	return o
}

// Wipe clears the keys.
func (o *Outer) Wipe() {
	clear(o.key[:])
	clear(o.set[:])
}

// A storage key is one of these bytes and a tag. 2, 4 and 5 are reserved.
const (
	keyEntry = "\x01"
	keyState = "\x03"
	sizeTag  = 16
)

// EntryKey returns the storage key of the entry whose label has this tag.
func EntryKey(tag [16]byte) string { return keyEntry + string(tag[:]) }

// StateKey returns the storage key of the state of the entry whose label has
// this tag.
func StateKey(tag [16]byte) string { return keyState + string(tag[:]) }

func isKey(key, kind string) bool { return len(key) == 1+sizeTag && key[:1] == kind }

func (o *Outer) aad(key string, p8 []byte) []byte {
	return bound(aadRecord, o.store[:], o.id[:], []byte{byte(len(key))}, []byte(key), p8)
}

// seal seals a record's plaintext and clears it.
func (o *Outer) seal(t Type, key string, pt []byte) []byte {
	p8 := prefix(t, 0)
	out := append(make([]byte, 0, sizePrefix+sizeOSEAL+len(pt)), p8[:]...)
	out = osealTo(out, &o.key, o.aad(key, p8[:]), pt)
	clear(pt)
	return out
}

func (o *Outer) open(t Type, key string, b []byte) ([]byte, error) {
	if _, err := peekAs(t, b); err != nil {
		return nil, err
	}
	return oopen(&o.key, o.aad(key, b[:sizePrefix]), b[sizePrefix:])
}

// SetHash is the sum of the elements of all records of an identity, modulo
// 2^256. Compare with ==; it is no secret.
type SetHash [32]byte

// Elem is the element of one record: its storage key and its stored bytes.
func (o *Outer) Elem(key string, stored []byte) SetHash {
	sum := sha256.Sum256(stored)
	return mac(o.set[:], []byte(labelSet), []byte{byte(len(key))}, []byte(key), sum[:])
}

// Add returns s + e.
func (s SetHash) Add(e SetHash) SetHash { return s.combine(e, bits.Add64) }

// Sub returns s - e.
func (s SetHash) Sub(e SetHash) SetHash { return s.combine(e, bits.Sub64) }

func (s SetHash) combine(e SetHash, op func(x, y, c uint64) (uint64, uint64)) (r SetHash) {
	var carry uint64
	for i := 24; i >= 0; i -= 8 {
		var word uint64
		word, carry = op(binary.BigEndian.Uint64(s[i:]), binary.BigEndian.Uint64(e[i:]), carry)
		binary.BigEndian.PutUint64(r[i:], word)
	}
	return r
}
