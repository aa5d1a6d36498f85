package seal

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
)

// Derivation labels, each with the NUL that ends it. Labels hold no other NUL
// and every context has a fixed length, so no two inputs coincide.
const (
	labelStore      = "solekey/v1/store\x00"
	labelRecord     = "solekey/v1/store-record\x00"
	labelTombstone  = "solekey/v1/tombstone\x00"
	labelMCP        = "solekey/v1/mcp\x00"
	labelHeader     = "solekey/v1/header\x00"
	labelIdentity   = "solekey/v1/identity\x00"
	labelVK         = "solekey/v1/vk\x00"
	labelKEM        = "solekey/v1/kem\x00"
	labelISK        = "solekey/v1/isk\x00"
	labelValue      = "solekey/v1/rec\x00"
	labelAuditSign  = "solekey/v1/audit-sign\x00"
	labelAuditLabel = "solekey/v1/audit-label\x00"
	labelSet        = "solekey/v1/set\x00"
	labelStoreFP    = "solekey/v1/store-fp\x00"
)

const hmacBlock = 64

// mac is HMAC-SHA-256 over the joined parts, for keys of at most 64 bytes. It
// works in one stack buffer that it clears: on inputs this short that is faster
// than crypto/hmac, allocates nothing and leaves no hash state behind.
func mac(key []byte, parts ...[]byte) (sum [32]byte) {
	var room [hmacBlock + 128]byte
	b := room[:hmacBlock]
	copy(b, key)
	xorBlock(b, 0x3636363636363636)
	for _, p := range parts {
		b = append(b, p...)
	}
	inner := sha256.Sum256(b)
	xorBlock(b, 0x3636363636363636^0x5c5c5c5c5c5c5c5c)
	b = append(b[:hmacBlock], inner[:]...)
	sum = sha256.Sum256(b)
	clear(b)
	clear(room[:])
	return sum
}

func xorBlock(b []byte, x uint64) {
	for i := 0; i < hmacBlock; i += 8 {
		binary.NativeEndian.PutUint64(b[i:], binary.NativeEndian.Uint64(b[i:])^x)
	}
}

// extract is HKDF-Extract.
func extract(secret, salt []byte) [32]byte { return mac(salt, secret) }

// expand is HKDF-Expand to 32 bytes.
func expand(prk *[32]byte, label string, ctx []byte) [32]byte {
	return mac(prk[:], []byte(label), ctx, []byte{1})
}

// expand2 is HKDF-Expand to 64 bytes, in halves.
func expand2(prk *[32]byte, label string, ctx []byte) (a, b [32]byte) {
	a = expand(prk, label, ctx)
	b = mac(prk[:], a[:], []byte(label), ctx, []byte{2})
	return a, b
}

// AuthHash is what a key slot keeps of a key's auth bytes.
func AuthHash(auth [32]byte) [32]byte { return sha256.Sum256(auth[:]) }

// Equal compares in constant time.
func Equal(a, b [32]byte) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }
