package seal

import "github.com/solekey/solekey/identity"

// StoreRecord is the Meta of the all-zero ID: what holds for the whole store.
type StoreRecord struct {
	Gen             uint64
	Created         int64 // Unix milliseconds
	DefaultExposure uint8 // 1 to 3
	Rotating        bool  // a root rotation is under way
	WriteVersion    uint8 // format version to write; 1
	SourceHint      uint8 // in clear: where the root text was first stored
	Shard           uint16
	RecoveryPK      []byte // 1,216 bytes; nil for a store without recovery key
}

const (
	sizeStoreClear   = sizePrefix + 16 + 2 + 1 + 1
	sizeStorePlain   = 8 + 8 + 1 + 1 + 1 + 52 + 2 + 1
	flagRotating     = 1
	strictest        = 3 // the highest exposure, kind, of an entry
	reservedInRecord = 52
)

func (r *StoreRecord) clearFields(w *wire, id *identity.ID) {
	w.fixed(id[:])
	w.u16(&r.Shard)
	w.u8(&r.SourceHint)
	w.zeros(1)
}

func (r *StoreRecord) fields(w *wire) {
	w.u64(&r.Gen)
	w.time(&r.Created)
	w.u8(&r.DefaultExposure)
	w.check(r.DefaultExposure >= 1 && r.DefaultExposure <= strictest)
	w.flag(&r.Rotating, flagRotating)
	w.u8(&r.WriteVersion)
	if w.err == nil && r.WriteVersion > formatVersion {
		w.err = ErrVersion
	}
	w.check(r.WriteVersion >= 1)
	w.zeros(reservedInRecord)
	w.blob16(&r.RecoveryPK)
	w.check(len(r.RecoveryPK) == 0 || len(r.RecoveryPK) == sizePublicKey)
	w.zeros(1) // the number of admin slots, reserved
}

func (r *StoreRecord) encode() ([]byte, error) {
	w := framed(pad512(4 + sizeStorePlain + len(r.RecoveryPK)))
	r.fields(w)
	return w.finish(pad512)
}

func decodeStoreRecord(pt []byte) (StoreRecord, error) {
	body, err := unframe(pt, pad512)
	if err != nil {
		return StoreRecord{}, err
	}
	var r StoreRecord
	w := &wire{b: body}
	r.fields(w)
	if err := w.end(); err != nil {
		return StoreRecord{}, err
	}
	return r, nil
}

// SealStoreRecord seals r under the newest epoch. It refuses a record that
// OpenStoreRecord would refuse.
func (s *Store) SealStoreRecord(r StoreRecord) ([]byte, error) {
	pt, err := r.encode()
	if err != nil {
		return nil, err
	}
	e := s.current()
	p8 := prefix(TypeStore, e.epoch)
	c := &wire{b: append(make([]byte, 0, sizeStoreClear+sizeOSEAL+len(pt)), p8[:]...), writing: true}
	id := s.id
	r.clearFields(c, &id)
	return osealTo(c.b, &e.record, bound(aadStore, c.b), pt), nil
}

// OpenStoreRecord opens what SealStoreRecord made for this store.
func (s *Store) OpenStoreRecord(b []byte) (StoreRecord, error) {
	e, err := s.opener(TypeStore, b)
	if err != nil {
		return StoreRecord{}, err
	}
	if len(b) < sizeStoreClear {
		return StoreRecord{}, ErrRefused
	}
	var open StoreRecord
	var id identity.ID
	c := &wire{b: b[sizePrefix:sizeStoreClear]}
	open.clearFields(c, &id)
	if c.end() != nil || id != s.id {
		return StoreRecord{}, ErrRefused
	}
	pt, err := oopen(&e.record, bound(aadStore, b[:sizeStoreClear]), b[sizeStoreClear:])
	if err != nil {
		return StoreRecord{}, err
	}
	r, err := decodeStoreRecord(pt)
	if err != nil {
		return StoreRecord{}, err
	}
	r.Shard, r.SourceHint = open.Shard, open.SourceHint
	return r, nil
}

// PeekStoreID reads the ID of the store from the clear part of a store record,
// to find its root material. The open authenticates it, not PeekStoreID.
func PeekStoreID(storeRecord []byte) (identity.ID, error) {
	if _, err := peekAs(TypeStore, storeRecord); err != nil {
		return identity.ID{}, err
	}
	if len(storeRecord) < sizeStoreClear {
		return identity.ID{}, ErrRefused
	}
	return identity.ID(storeRecord[sizePrefix : sizePrefix+16]), nil
}
