package seal

// Forms of the inner bytes of an entry.
const (
	FormNone    = 0 // a removed label
	FormValue   = 1 // under the vault key, see [Inner.Seal]
	FormMailbox = 2 // sealed to the public key, see [SealMailbox]
)

// Entry is what the outer lock tells about one label: everything but the
// value, which is Inner.
type Entry struct {
	Version  uint32 // of the value; 0 only with FormNone
	Last     uint32 // highest version ever used; never restarts
	Kind     uint8  // 1 to 3, sealed with the value
	Exposure uint8  // 1 to 3, sealed with the value
	Cap      uint8  // the owner's tightening, at least Exposure
	Form     uint8
	Created  int64 // Unix milliseconds, as all times here
	Updated  int64
	Expires  int64    // 0: never
	Writer   [16]byte // slot ID; zero: the owner
	Label    string
	Hosts    []string
	Fields   []string // names of the payload's fields
	Tags     []string
	Extra    []byte // JSON
	Inner    []byte
}

const (
	metaUnit     = 128
	sizeEntryMin = 4 + 4 + 4 + 24 + 16 + 2
)

func (e *Entry) fields(w *wire) {
	w.u32(&e.Version)
	w.u32(&e.Last)
	w.check(e.Last > 0 && e.Version <= e.Last)
	w.u8(&e.Kind)
	w.u8(&e.Exposure)
	w.u8(&e.Cap)
	w.check(e.Kind >= 1 && e.Kind <= strictest)
	w.check(e.Exposure >= 1 && e.Exposure <= e.Cap && e.Cap <= strictest)
	w.u8(&e.Form)
	w.time(&e.Created)
	w.time(&e.Updated)
	w.time(&e.Expires)
	w.fixed(e.Writer[:])
	e.meta(w)
	w.rest(&e.Inner)
	w.check(e.innerFits())
}

// innerFits reports whether the inner bytes have a length that the form can
// have, and whether a value has a version.
func (e *Entry) innerFits() bool {
	n := len(e.Inner)
	switch e.Form {
	case FormNone:
		return n == 0
	case FormValue:
		n -= sizeCSEAL
	case FormMailbox:
		n -= sizeHSEAL
	default:
		return false
	}
	return e.Version > 0 && n > 0 && padPayload(n) == n
}

// meta is a blob16 of its own, zero-padded to a multiple of 128.
func (e *Entry) meta(w *wire) {
	if !w.writing {
		var b []byte
		w.blob16(&b)
		in := &wire{b: b, err: w.err}
		e.metaFields(in)
		w.check(in.err == nil && len(in.b) < metaUnit && len(b)%metaUnit == 0 && allZero(in.b))
		return
	}
	start := len(w.b)
	w.zeros(2)
	e.metaFields(w)
	used := len(w.b) - start - 2
	padded := (used + metaUnit - 1) &^ (metaUnit - 1)
	w.check(padded <= maxMeta)
	if w.err == nil {
		w.zeros(padded - used)
		w.b[start], w.b[start+1] = byte(padded>>8), byte(padded)
	}
}

func (e *Entry) metaFields(w *wire) {
	w.str8(&e.Label, 1, MaxLabel)
	w.strs(&e.Hosts, maxStr8)
	w.strs(&e.Fields, maxStr8)
	w.strs(&e.Tags, maxStr8)
	w.blob16(&e.Extra)
}

func (e *Entry) encode() ([]byte, error) {
	w := &wire{b: make([]byte, 0, sizeEntryMin+4*metaUnit+len(e.Extra)+len(e.Inner)), writing: true}
	e.fields(w)
	if err := w.end(); err != nil {
		return nil, err
	}
	return w.b, nil
}

func decodeEntry(pt []byte) (*Entry, error) {
	e := new(Entry)
	w := &wire{b: pt}
	e.fields(w)
	if err := w.end(); err != nil {
		return nil, err
	}
	return e, nil
}

// SealEntry seals e for its storage key, see [EntryKey]. It refuses an entry
// that OpenEntry would refuse.
func (o *Outer) SealEntry(key string, e *Entry) ([]byte, error) {
	if !isKey(key, keyEntry) {
		return nil, ErrRefused
	}
	pt, err := e.encode()
	if err != nil {
		return nil, err
	}
	return o.seal(TypeEntry, key, pt), nil
}

// OpenEntry opens what SealEntry made for this storage key.
func (o *Outer) OpenEntry(key string, b []byte) (*Entry, error) {
	if !isKey(key, keyEntry) {
		return nil, ErrRefused
	}
	pt, err := o.open(TypeEntry, key, b)
	if err != nil {
		return nil, err
	}
	return decodeEntry(pt)
}

// EntryState is what reads change: the last time step of which a code was
// given out, and how often the entry was used.
type EntryState struct{ LastFrom, Uses uint64 }

func (s *EntryState) fields(w *wire) {
	w.u64(&s.LastFrom)
	w.u64(&s.Uses)
}

func (s *EntryState) encode() []byte {
	w := &wire{b: make([]byte, 0, 16), writing: true}
	s.fields(w)
	return w.b
}

// SealState seals s for its storage key, see [StateKey].
func (o *Outer) SealState(key string, s EntryState) ([]byte, error) {
	if !isKey(key, keyState) {
		return nil, ErrRefused
	}
	return o.seal(TypeState, key, s.encode()), nil
}

// OpenState opens what SealState made for this storage key.
func (o *Outer) OpenState(key string, b []byte) (EntryState, error) {
	if !isKey(key, keyState) {
		return EntryState{}, ErrRefused
	}
	pt, err := o.open(TypeState, key, b)
	if err != nil {
		return EntryState{}, err
	}
	var s EntryState
	w := &wire{b: pt}
	s.fields(w)
	if err := w.end(); err != nil {
		return EntryState{}, err
	}
	return s, nil
}
