package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hpke"
	"crypto/rand"
	"crypto/subtle"
)

// aead is AES-256-GCM that writes a random nonce before the ciphertext. No
// counter makes a nonce, so a restored or cloned disk repeats none.
func aead(key *[32]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("seal: AES refuses a 32-byte key")
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("seal: GCM refuses AES")
	}
	return a
}

// osealTo appends the outer lock around pt: nonce12 | ct | tag16.
func osealTo(dst []byte, key *[32]byte, aad, pt []byte) []byte {
	return aead(key).Seal(dst, nil, pt, aad)
}

// oopen opens the outer lock.
func oopen(key *[32]byte, aad, sealed []byte) ([]byte, error) {
	if len(sealed) < sizeOSEAL {
		return nil, ErrRefused
	}
	pt, err := aead(key).Open(nil, nil, sealed, aad)
	if err != nil {
		return nil, ErrRefused
	}
	return pt, nil
}

// cseal is the committing seal: salt32 | commit32 | nonce12 | ct | tag16. Each
// message has a key of its own, and the commitment, made with that key, stops
// one ciphertext from opening under two keys.
func cseal(key *[32]byte, label string, aad, pt []byte) []byte {
	out := make([]byte, 64, sizeCSEAL+len(pt))
	rand.Read(out[:32]) // never fails, see crypto/rand
	dk, commit := expand2(key, label, out[:32])
	copy(out[32:], commit[:])
	out = aead(&dk).Seal(out, nil, pt, aad)
	clear(dk[:])
	return out
}

// copen opens what cseal made.
func copen(key *[32]byte, label string, aad, sealed []byte) ([]byte, error) {
	if len(sealed) < sizeCSEAL {
		return nil, ErrRefused
	}
	dk, commit := expand2(key, label, sealed[:32])
	defer clear(dk[:])
	if subtle.ConstantTimeCompare(commit[:], sealed[32:64]) != 1 {
		return nil, ErrRefused
	}
	pt, err := aead(&dk).Open(nil, nil, sealed[64:], aad)
	if err != nil {
		return nil, ErrRefused
	}
	return pt, nil
}

// exportCommit is the HPKE exporter context of the commitment.
const exportCommit = "solekey/v1/commit"

// hseal seals to a public key: enc1120 | commit32 | ct | tag16. Nothing proves
// the sender; the outer lock around it does.
func hseal(pk, info, aad, pt []byte) ([]byte, error) {
	pub, err := hpke.MLKEM768X25519().NewPublicKey(pk)
	if err != nil {
		return nil, ErrRefused
	}
	enc, sender, err := hpke.NewSender(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), info)
	if err != nil {
		return nil, ErrRefused
	}
	commit, err := sender.Export(exportCommit, 32)
	if err != nil {
		return nil, ErrRefused
	}
	ct, err := sender.Seal(aad, pt)
	if err != nil {
		return nil, ErrRefused
	}
	return bytes.Join([][]byte{enc, commit, ct}, nil), nil
}

// hopen opens what hseal made, with the private key that seed makes.
func hopen(seed *[32]byte, info, aad, sealed []byte) ([]byte, error) {
	if len(sealed) < sizeHSEAL {
		return nil, ErrRefused
	}
	enc, commit, ct := sealed[:sizeEnc], sealed[sizeEnc:sizeEnc+32], sealed[sizeEnc+32:]
	r, err := hpke.NewRecipient(enc, keyPair(seed), hpke.HKDFSHA256(), hpke.AES256GCM(), info)
	if err != nil {
		return nil, ErrRefused
	}
	want, err := r.Export(exportCommit, 32)
	if err != nil || subtle.ConstantTimeCompare(want, commit) != 1 {
		return nil, ErrRefused
	}
	pt, err := r.Open(aad, ct)
	if err != nil {
		return nil, ErrRefused
	}
	return pt, nil
}

// keyPair makes the X-Wing key pair of a seed.
func keyPair(seed *[32]byte) hpke.PrivateKey {
	k, err := hpke.MLKEM768X25519().NewPrivateKey(seed[:])
	if err != nil {
		panic("seal: X-Wing refuses a 32-byte seed")
	}
	return k
}

// RecoveryPublicKey returns the public key of a recovery key, from its X-Wing
// seed.
func RecoveryPublicKey(seed [32]byte) []byte { return keyPair(&seed).PublicKey().Bytes() }

// Associated data and HPKE info texts, each with the NUL that ends it.
const (
	aadStore     = "solekey/v1/aad/store\x00"
	aadHeader    = "solekey/v1/aad/header\x00"
	aadTombstone = "solekey/v1/aad/tombstone\x00"
	aadRecord    = "solekey/v1/aad/record\x00"
	aadInner     = "solekey/v1/aad/inner\x00"
	aadISK       = "solekey/v1/aad/isk\x00"
	infoMailbox  = "solekey/v1/hpke/mailbox\x00"
	infoRecovery = "solekey/v1/hpke/recovery\x00"
)

// bound joins a text and the bytes a seal is bound to.
func bound(text string, parts ...[]byte) []byte {
	n := len(text)
	for _, p := range parts {
		n += len(p)
	}
	b := append(make([]byte, 0, n), text...)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
