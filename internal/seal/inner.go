package seal

import (
	"crypto/rand"
	"crypto/sha256"

	"github.com/solekey/solekey/identity"
)

// Inner is the inner lock of one identity: its secret, from which the vault
// key and the key pair of its mailbox derive. Only a key of the identity or the
// recovery key leads to it. Make one per call and wipe it. It is safe for
// concurrent use until wiped, and prints as [redacted].
type Inner struct {
	redacted
	_ [0]func()

	store, id identity.ID
	isk       [sizeKey]byte
	pkHash    [32]byte
}

// Bind is what a value is bound to, beside its key: one place, one version,
// one kind, exposure and label.
type Bind struct {
	Store, ID      identity.ID
	Version        uint32
	Kind, Exposure uint8
	Label          string // at most 255 bytes
}

func (b *Bind) aad() ([]byte, error) {
	if len(b.Label) > MaxLabel {
		return nil, ErrRefused
	}
	v := b.Version
	return bound(aadInner, b.Store[:], b.ID[:],
		[]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v), b.Kind, b.Exposure, byte(len(b.Label))},
		[]byte(b.Label)), nil
}

// NewInner makes the inner lock of a new identity.
func NewInner(store, id identity.ID) *Inner {
	in := &Inner{store: store, id: id}
	rand.Read(in.isk[:]) // never fails, see crypto/rand
	in.pkHash = sha256.Sum256(in.PublicKey())
	return in
}

// PublicKey derives the public key of the mailbox.
func (in *Inner) PublicKey() []byte {
	seed := in.kemSeed()
	defer clear(seed[:])
	return keyPair(&seed).PublicKey().Bytes()
}

func (in *Inner) kemSeed() [32]byte { return expand(&in.isk, labelKEM, in.id[:]) }

func (in *Inner) vaultKey() [32]byte { return expand(&in.isk, labelVK, in.id[:]) }

// Wipe clears the secret.
func (in *Inner) Wipe() { clear(in.isk[:]) }

// wrapAAD binds a wrapped secret to its holder, a key slot or the recovery key,
// and to the public key beside it: a swapped public key makes every wrapped
// secret refuse.
func wrapAAD(store, id identity.ID, holder []byte, pkHash [32]byte) []byte {
	return bound(aadISK, store[:], id[:], holder, pkHash[:])
}

// Wrap seals the secret to a key of the agent, for its key slot.
func (in *Inner) Wrap(k identity.Key) ([]byte, error) {
	if k.Kind() != identity.Agent || k.Identity() != in.id {
		return nil, ErrRefused
	}
	slot, lock := k.Slot(), k.InnerLock()
	defer clear(lock[:])
	return cseal(&lock, labelISK, wrapAAD(in.store, in.id, slot[:], in.pkHash), in.isk[:]), nil
}

// Unwrap opens what [Inner.Wrap] made for this key. pk is the public key of the
// header; it is refused if it is not the one of the secret.
func Unwrap(store, id identity.ID, k identity.Key, pk, wrapped []byte) (*Inner, error) {
	if k.Kind() != identity.Agent || k.Identity() != id || len(wrapped) != sizeWrapped {
		return nil, ErrRefused
	}
	slot, lock := k.Slot(), k.InnerLock()
	defer clear(lock[:])
	in := &Inner{store: store, id: id, pkHash: sha256.Sum256(pk)}
	isk, err := copen(&lock, labelISK, wrapAAD(store, id, slot[:], in.pkHash), wrapped)
	return in.with(isk, err)
}

// with takes the opened secret in.
func (in *Inner) with(isk []byte, err error) (*Inner, error) {
	if err != nil {
		return nil, err
	}
	copy(in.isk[:], isk)
	clear(isk)
	return in, nil
}

// WrapRecovery seals the secret to the recovery public key of the store whose
// fingerprint this is.
func (in *Inner) WrapRecovery(recoveryPK []byte, fingerprint identity.ID) ([]byte, error) {
	aad := wrapAAD(in.store, in.id, fingerprint[:], in.pkHash)
	return hseal(recoveryPK, bound(infoRecovery, in.store[:], in.id[:]), aad, in.isk[:])
}

// UnwrapRecovery opens what [Inner.WrapRecovery] made, with the recovery key.
func UnwrapRecovery(store, id identity.ID, k identity.Key, pk, wrapped []byte) (*Inner, error) {
	if k.Kind() != identity.Recovery || len(wrapped) != sizeRecovery {
		return nil, ErrRefused
	}
	fingerprint, seed := k.Identity(), k.RecoverySeed(store)
	defer clear(seed[:])
	in := &Inner{store: store, id: id, pkHash: sha256.Sum256(pk)}
	aad := wrapAAD(store, id, fingerprint[:], in.pkHash)
	isk, err := hopen(&seed, bound(infoRecovery, store[:], id[:]), aad, wrapped)
	return in.with(isk, err)
}

// Seal seals a payload under the vault key, form 1. The order of the fields is
// free.
func (in *Inner) Seal(b Bind, payload []Field) ([]byte, error) {
	if b.Store != in.store || b.ID != in.id {
		return nil, ErrRefused
	}
	aad, err := b.aad()
	if err != nil {
		return nil, err
	}
	pt, err := encodePayload(payload)
	if err != nil {
		return nil, err
	}
	defer clear(pt)
	vk := in.vaultKey()
	defer clear(vk[:])
	return cseal(&vk, labelValue, aad, pt), nil
}

// SealMailbox seals a payload to the public key of an identity, form 2. The
// order of the fields is free. Nothing proves who sealed it: the outer lock
// around it does.
func SealMailbox(pk []byte, b Bind, payload []Field) ([]byte, error) {
	aad, err := b.aad()
	if err != nil {
		return nil, err
	}
	pt, err := encodePayload(payload)
	if err != nil {
		return nil, err
	}
	defer clear(pt)
	return hseal(pk, bound(infoMailbox, b.Store[:], b.ID[:]), aad, pt)
}

// Open opens what [Inner.Seal], form 1, or [SealMailbox], form 2, made for the
// same Bind. Clear the values after use.
func (in *Inner) Open(b Bind, form uint8, inner []byte) ([]Field, error) {
	if b.Store != in.store || b.ID != in.id {
		return nil, ErrRefused
	}
	aad, err := b.aad()
	if err != nil {
		return nil, err
	}
	pt, err := in.open(form, aad, inner)
	if err != nil {
		return nil, err
	}
	fields, err := decodePayload(pt)
	if err != nil {
		clear(pt)
	}
	return fields, err
}

func (in *Inner) open(form uint8, aad, inner []byte) ([]byte, error) {
	switch form {
	case FormValue:
		vk := in.vaultKey()
		defer clear(vk[:])
		return copen(&vk, labelValue, aad, inner)
	case FormMailbox:
		seed := in.kemSeed()
		defer clear(seed[:])
		return hopen(&seed, bound(infoMailbox, in.store[:], in.id[:]), aad, inner)
	}
	return nil, ErrRefused
}
