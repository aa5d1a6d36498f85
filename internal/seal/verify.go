package seal

import "crypto/ed25519"

// SizeAuditPublic is the length of the public half of the audit key.
const SizeAuditPublic = ed25519.PublicKeySize

// Signed reports whether sig is a signature over msg by the audit key whose
// public half is pub. It needs no root material.
func Signed(pub, msg, sig []byte) bool {
	return len(pub) == SizeAuditPublic && ed25519.Verify(pub, msg, sig)
}
