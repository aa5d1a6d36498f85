package seal

import (
	"bytes"
	"crypto/sha256"

	"github.com/solekey/solekey/identity"
)

// The parts below the public API, for known answers, vectors and fuzzing.

var (
	Mac        = mac
	Extract    = extract
	Expand     = expand
	Expand2    = expand2
	CSeal      = cseal
	COpen      = copen
	HSeal      = hseal
	HOpen      = hopen
	PadPayload = padPayload
	OOpen      = oopen
)

func OSeal(key *[32]byte, aad, pt []byte) []byte { return osealTo(nil, key, aad, pt) }

func (s *Store) PRK() [32]byte                                 { return s.current().prk }
func (s *Store) RecordKey() [32]byte                           { return s.current().record }
func (s *Store) HeaderKey(id identity.ID, z [32]byte) [32]byte { return s.current().headerKey(id, &z) }
func (s *Store) TombstoneKey(id identity.ID) [32]byte {
	return expand(&s.current().prk, labelTombstone, id[:])
}

func (o *Outer) Keys() (outer, set [32]byte) { return o.key, o.set }
func (o *Outer) AAD(t Type, key string) []byte {
	p8 := prefix(t, 0)
	return o.aad(key, p8[:])
}

func (in *Inner) VaultKey() [32]byte { return in.vaultKey() }
func (in *Inner) KEMSeed() [32]byte  { return in.kemSeed() }
func (in *Inner) PKHash() [32]byte   { return in.pkHash }
func (in *Inner) Secret() [32]byte   { return in.isk }

// Opener is an inner lock of known secret that opens values and wraps nothing.
func Opener(store, id identity.ID, isk [32]byte) *Inner {
	return &Inner{store: store, id: id, isk: isk}
}

// InnerOf is an inner lock of known secret.
func InnerOf(store, id identity.ID, isk [32]byte) *Inner {
	in := Opener(store, id, isk)
	in.pkHash = sha256.Sum256(in.PublicKey())
	return in
}

func (b Bind) AAD() ([]byte, error) { return b.aad() }

func WrapAAD(store, id identity.ID, holder []byte, pkHash [32]byte) []byte {
	return wrapAAD(store, id, holder, pkHash)
}

// Codecs of plaintexts. Decoders get a copy, as they may clear what they read.

func EncodeHeader(h *Header) ([]byte, error)           { return h.encode() }
func DecodeHeader(pt []byte) (*Header, error)          { return decodeHeader(bytes.Clone(pt)) }
func EncodeTombstone(t Tombstone) ([]byte, error)      { return t.encode() }
func DecodeTombstone(pt []byte) (Tombstone, error)     { return decodeTombstone(bytes.Clone(pt)) }
func EncodeEntry(e *Entry) ([]byte, error)             { return e.encode() }
func DecodeEntry(pt []byte) (*Entry, error)            { return decodeEntry(bytes.Clone(pt)) }
func EncodePayload(fields []Field) ([]byte, error)     { return encodePayload(fields) }
func DecodePayload(pt []byte) ([]Field, error)         { return decodePayload(bytes.Clone(pt)) }
func EncodeStoreRecord(r StoreRecord) ([]byte, error)  { return r.encode() }
func DecodeStoreRecord(pt []byte) (StoreRecord, error) { return decodeStoreRecord(bytes.Clone(pt)) }
func EncodeState(s EntryState) []byte                  { return s.encode() }
