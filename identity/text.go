package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"
)

// The text form of everything a person may have to type or paste, docs/SPEC.md
// section 3:
//
//	PREFIX | base62(pub19) 26 | base62(secret32) 43 | base62(CRC-32) 6
//
// Rules of this file:
//   - A text that decodes is the only text of its bytes, so encoding it again
//     gives it back.
//   - The checksum is compared first: a typo costs one CRC, no arithmetic on
//     big numbers and no key derivation.
//   - Characters are turned into digits and back without table lookups or
//     branches that depend on them. The division in encode62 may take
//     operand-dependent time on old processors; it runs when a key is made or
//     revealed, never when one is checked.
const (
	pubChars    = 26
	secretChars = 43
	sumChars    = 6
	bodyChars   = pubChars + secretChars + sumChars

	pubVersion = 1 // first byte of pub19
)

// ErrMalformedKey reports a text that is not a key. What wraps it says whether
// prefix, length, alphabet or checksum is wrong, and holds no part of the text.
var ErrMalformedKey = errors.New("malformed key")

// The refusals of the codec. They are made once, so that refusing a typo
// allocates nothing.
var (
	errLength   = fmt.Errorf("%w: length: characters are missing or too many", ErrMalformedKey)
	errAlphabet = fmt.Errorf("%w: alphabet: only 0-9, A-Z and a-z may follow the prefix", ErrMalformedKey)
	errChecksum = fmt.Errorf("%w: checksum: a character is mistyped or missing", ErrMalformedKey)
	errRange    = fmt.Errorf("%w: number too large: no such key was ever made", ErrMalformedKey)
	errVersion  = fmt.Errorf("%w: layout version is not 1", ErrMalformedKey)
	errPrefix   = fmt.Errorf("%w: prefix: it does not begin as expected", ErrMalformedKey)
)

// EncodeText returns the text form of a public part and a secret under a
// prefix. The result is a secret.
func EncodeText(prefix string, pub [19]byte, secret [32]byte) string {
	out := make([]byte, len(prefix)+bodyChars)
	defer clear(out)
	sumAt := len(out) - sumChars
	body := out[copy(out, prefix):sumAt]

	p, s := pubLimbs(&pub), secretLimbs(&secret)
	encode62(body[:pubChars], p[:])
	encode62(body[pubChars:], s[:])
	encode62(out[sumAt:], []uint64{uint64(crc32.ChecksumIEEE(out[:sumAt]))})
	return string(out)
}

// DecodeText undoes [EncodeText]. It takes the exact text, without blanks
// around it, and reports [ErrMalformedKey] for everything else.
func DecodeText(prefix, text string) (pub [19]byte, secret [32]byte, err error) {
	if !strings.HasPrefix(text, prefix) {
		return pub, secret, errPrefix
	}
	body := text[len(prefix):]
	if len(body) != bodyChars {
		return pub, secret, errLength
	}
	if !allDigits62(body) {
		return pub, secret, errAlphabet
	}
	var sum [1]uint64
	decode62(body[bodyChars-sumChars:], sum[:])
	if sum[0] != uint64(crc32.ChecksumIEEE([]byte(text[:len(text)-sumChars]))) {
		return pub, secret, errChecksum
	}

	var p [3]uint64
	var s [4]uint64
	over := decode62(body[:pubChars], p[:]) | p[2]>>24
	over |= decode62(body[pubChars:pubChars+secretChars], s[:])
	if over != 0 {
		return pub, secret, errRange
	}
	pub = pubBytes(&p)
	if pub[0] != pubVersion {
		return [19]byte{}, secret, errVersion
	}
	return pub, secretBytes(&s), nil
}

// Limbs are 64-bit digits of a big number, the lowest first.

func pubLimbs(b *[19]byte) [3]uint64 {
	var wide [24]byte
	copy(wide[5:], b[:])
	return [3]uint64{
		binary.BigEndian.Uint64(wide[16:]),
		binary.BigEndian.Uint64(wide[8:]),
		binary.BigEndian.Uint64(wide[0:]),
	}
}

func pubBytes(n *[3]uint64) (b [19]byte) {
	var wide [24]byte
	for i, v := range n {
		binary.BigEndian.PutUint64(wide[16-8*i:], v)
	}
	copy(b[:], wide[5:])
	return b
}

func secretLimbs(b *[32]byte) (n [4]uint64) {
	for i := range n {
		n[i] = binary.BigEndian.Uint64(b[24-8*i:])
	}
	return n
}

func secretBytes(n *[4]uint64) (b [32]byte) {
	for i, v := range n {
		binary.BigEndian.PutUint64(b[24-8*i:], v)
	}
	return b
}

// Ten characters of base62 fit one limb.
const (
	chunkChars = 10
	chunkRange = 839299365868340224 // 62^10
)

// decode62 adds the number that text writes to n, which is zero, and returns
// nonzero if it does not fit. The characters are valid.
func decode62(text string, n []uint64) (over uint64) {
	for len(text) > 0 {
		take := (len(text)-1)%chunkChars + 1
		var carry uint64
		for i := range take {
			carry = carry*62 + uint64(digit62(text[i]))
		}
		text = text[take:]
		for i, v := range n {
			hi, lo := bits.Mul64(v, chunkRange)
			lo, c := bits.Add64(lo, carry, 0)
			n[i], carry = lo, hi+c
		}
		over |= carry
	}
	return over
}

// encode62 writes n into all of dst and leaves n zero. The number fits.
func encode62(dst []byte, n []uint64) {
	for end := len(dst); end > 0; {
		var rem uint64
		for i := len(n) - 1; i >= 0; i-- {
			n[i], rem = bits.Div64(rem, n[i], chunkRange)
		}
		for range min(chunkChars, end) {
			end--
			dst[end] = char62(int32(rem % 62))
			rem /= 62
		}
	}
}

// allDigits62 reports whether each character of s, at least 8 of them, is in
// the alphabet. It looks at 8 characters at a time, the last ones twice.
func allDigits62(s string) bool {
	var bad uint64
	for i := 0; i < len(s); i += 8 {
		at := min(i, len(s)-8)
		bad |= notDigits62(binary.LittleEndian.Uint64([]byte(s[at : at+8])))
	}
	return bad == 0
}

// notDigits62 sets the high bit of each byte of x that is not in the alphabet.
func notDigits62(x uint64) uint64 {
	const (
		ones = 0x0101010101010101
		high = 0x80 * ones
	)
	y := x &^ high // so that no sum below carries into the next byte
	number := (y + (0x80-'0')*ones) &^ (y + (0x7f-'9')*ones)
	upper := (y + (0x80-'A')*ones) &^ (y + (0x7f-'Z')*ones)
	lower := (y + (0x80-'a')*ones) &^ (y + (0x7f-'z')*ones)
	return (x | ^(number | upper | lower)) & high
}

// digit62 returns the value of a character of the alphabet. Each mask is -1
// for one range of characters and 0 outside it.
func digit62(c byte) int32 {
	x := int32(c)
	number := (x - '9' - 1) >> 31
	lower := ('a' - 1 - x) >> 31
	upper := ^(number | lower)
	return number&(x-'0') | upper&(x-'A'+10) | lower&(x-'a'+36)
}

// char62 returns the character for a digit of 0 to 61.
func char62(d int32) byte {
	return byte('0' + d + (9-d)>>31&('A'-'9'-1) + (35-d)>>31&('a'-'Z'-1))
}
