package identity

import (
	"crypto/sha256"
	"encoding/binary"
)

// derive fills okm by HKDF-SHA-256 (RFC 5869) with the label as salt and
// label, zero byte, prefix and pub as info. It is written out because every
// request proves a key: crypto/hkdf takes more than twice the time, and
// allocates key state that nobody clears.
func derive(okm []byte, secret *[32]byte, label, prefix string, pub []byte) {
	prk := mac([]byte(label), secret[:])
	defer clear(prk[:])
	var block [32]byte
	defer clear(block[:])
	before := block[:0]
	for i := byte(1); len(okm) > 0; i++ {
		block = mac(prk[:], before, []byte(label), []byte{0}, []byte(prefix), pub, []byte{i})
		before = block[:]
		okm = okm[copy(okm, before):]
	}
}

const hmacBlock = 64

// mac is HMAC-SHA-256 over the joined parts, for keys of at most 64 bytes, in
// one buffer on the stack that it clears.
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
	sum = sha256.Sum256(append(b[:hmacBlock], inner[:]...))
	clear(b)
	clear(room[:])
	return sum
}

func xorBlock(b []byte, x uint64) {
	for i := 0; i < hmacBlock; i += 8 {
		binary.NativeEndian.PutUint64(b[i:], binary.NativeEndian.Uint64(b[i:])^x)
	}
}
