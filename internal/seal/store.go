package seal

import (
	"crypto/ed25519"
	"crypto/sha256"
	"slices"

	"github.com/solekey/solekey/identity"
)

// Store seals and opens what hangs on the root secret: the store record,
// headers and tombstones. It seals under the newest epoch and opens every
// epoch of its [Root]. It never changes, is safe for concurrent use and
// prints as [redacted].
type Store struct {
	redacted
	_ [0]func()

	id     identity.ID
	signer ed25519.PrivateKey
	tagKey [sizeKey]byte
	epochs []epochKeys // ascending, never empty
}

type epochKeys struct {
	epoch  uint32
	prk    [sizeKey]byte
	record [sizeKey]byte // K_store
}

func (s *Store) current() *epochKeys { return &s.epochs[len(s.epochs)-1] }

// opener returns the keys for an object that must be of type t.
func (s *Store) opener(t Type, b []byte) (*epochKeys, error) {
	epoch, err := peekAs(t, b)
	if err != nil {
		return nil, err
	}
	for i := range s.epochs {
		if s.epochs[i].epoch == epoch {
			return &s.epochs[i], nil
		}
	}
	return nil, ErrRefused
}

// headerKey needs the root secret and the cell secret z: erasing either one
// kills the header, and with it every record.
func (e *epochKeys) headerKey(id identity.ID, z *[32]byte) [32]byte {
	prk := extract(z[:], e.prk[:])
	defer clear(prk[:])
	return expand(&prk, labelHeader, id[:])
}

// sealMeta seals a padded plaintext for the Meta of an identity and clears it.
func (s *Store) sealMeta(t Type, text string, id identity.ID, key [32]byte, pt []byte) []byte {
	p8 := prefix(t, s.current().epoch)
	out := append(make([]byte, 0, sizePrefix+sizeOSEAL+len(pt)), p8[:]...)
	out = osealTo(out, &key, bound(text, s.id[:], id[:], p8[:]), pt)
	clear(key[:])
	clear(pt)
	return out
}

// openMeta opens what sealMeta made.
func (s *Store) openMeta(text string, id identity.ID, key [32]byte, meta []byte) ([]byte, error) {
	defer clear(key[:])
	return oopen(&key, bound(text, s.id[:], id[:], meta[:sizePrefix]), meta[sizePrefix:])
}

// ID returns the ID of the store.
func (s *Store) ID() identity.ID { return s.id }

// Tag returns the 16 bytes that name a label of an identity: in storage keys
// ([EntryKey], [StateKey]) and in the audit log. It outlives root rotations.
func (s *Store) Tag(id identity.ID, label string) [16]byte {
	sum := mac(s.tagKey[:], id[:], []byte(label))
	return [16]byte(sum[:16])
}

// Fingerprint returns the fingerprint of the store with this recovery public
// key; empty for a store without one.
func (s *Store) Fingerprint(recoveryPK []byte) identity.ID {
	var hash [32]byte
	if len(recoveryPK) > 0 {
		hash = sha256.Sum256(recoveryPK)
	}
	sum := sha256.Sum256(bound(labelStoreFP, s.id[:], s.AuditPublic(), hash[:]))
	return identity.ID(sum[:16])
}

// SessionSecret returns the secret that is kept for the state of MCP requests,
// docs/SPEC.md section 5; nothing uses it yet. It changes with the root secret.
func (s *Store) SessionSecret() [32]byte { return expand(&s.current().prk, labelMCP, nil) }

// AuditPublic returns the Ed25519 public key that checks what [Store.Sign]
// signs. It outlives root rotations.
func (s *Store) AuditPublic() []byte {
	return slices.Clone([]byte(s.signer.Public().(ed25519.PublicKey)))
}

// Sign signs msg with the audit key.
func (s *Store) Sign(msg []byte) []byte { return ed25519.Sign(s.signer, msg) }
