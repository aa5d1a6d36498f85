package seal

import (
	"crypto/ed25519"
	"crypto/sha256"
	"slices"

	"github.com/solekey/solekey/identity"
)

const infoBackup = "solekey/v1/hpke/backup\x00"

// SealBackup seals a part of a backup to the recovery key of the store. It is
// bound to the store and to before, the hash of all that precedes the part.
// Nothing proves who sealed it: the signature of the backup does.
func SealBackup(recoveryPK []byte, store identity.ID, before [32]byte, pt []byte) ([]byte, error) {
	return hseal(recoveryPK, bound(infoBackup, store[:]), before[:], pt)
}

// OpenBackup opens what SealBackup made, with the recovery key.
func OpenBackup(k identity.Key, store identity.ID, before [32]byte, sealed []byte) ([]byte, error) {
	if k.Kind() != identity.Recovery {
		return nil, ErrRefused
	}
	seed := k.RecoverySeed(store)
	defer clear(seed[:])
	return hopen(&seed, bound(infoBackup, store[:]), before[:], sealed)
}

// Signed reports whether sig is what [Store.Sign] of the store with this
// audit public key makes of msg.
func Signed(auditPublic, msg, sig []byte) bool {
	return len(auditPublic) == ed25519.PublicKeySize && ed25519.Verify(auditPublic, msg, sig)
}

// FingerprintOf is [Store.Fingerprint] for who holds the public parts only.
// recoveryHash is the SHA-256 of the recovery public key, zeros for a store
// without one.
func FingerprintOf(store identity.ID, auditPublic []byte, recoveryHash [32]byte) identity.ID {
	sum := sha256.Sum256(bound(labelStoreFP, store[:], auditPublic, recoveryHash[:]))
	return identity.ID(sum[:16])
}

// With returns root material that holds the epochs of both. Material of
// another store, or another secret for an epoch that both have, is refused.
func (r Root) With(o Root) (Root, error) {
	if r.parts == nil || o.parts == nil || r.parts.store != o.parts.store || r.parts.shard != o.parts.shard || !Equal(r.parts.audit, o.parts.audit) {
		return Root{}, ErrRefused
	}
	p := *r.parts
	p.epochs = slices.Clone(p.epochs)
	for _, s := range o.parts.epochs {
		i := slices.IndexFunc(p.epochs, func(have rootSecret) bool { return have.epoch == s.epoch })
		switch {
		case i < 0:
			p.epochs = append(p.epochs, s)
		case !Equal(p.epochs[i].secret, s.secret):
			return Root{}, ErrRefused
		}
	}
	if len(p.epochs) > maxEpochs {
		return Root{}, ErrRefused
	}
	slices.SortFunc(p.epochs, func(a, b rootSecret) int { return int(int64(a.epoch) - int64(b.epoch)) })
	return Root{parts: &p}, nil
}
