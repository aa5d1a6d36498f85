package seal_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
)

func refused(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, seal.ErrRefused) {
		t.Errorf("%s: %v, want %v", what, err, seal.ErrRefused)
	}
}

func same(t *testing.T, what string, got, want any, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestRoundTrip(t *testing.T) {
	k := newKit(t)
	h, err := k.store.OpenHeader(k.id, k.z, must(k.store.SealHeader(k.id, k.z, k.header)))
	same(t, "OpenHeader", h, k.header, err)

	closed := *k.header
	closed.State, closed.Flags, closed.Recovery = seal.StateRevoked, seal.FlagShredPending|seal.FlagAuditOwed|seal.FlagNoRecovery, nil
	closed.Slots = []seal.Slot{{ID: identity.SlotID{1}, State: seal.SlotClosed, Kind: 1, Expires: 5}}
	h, err = k.store.OpenHeader(k.id, k.z, must(k.store.SealHeader(k.id, k.z, &closed)))
	same(t, "OpenHeader of a revoked identity", h, &closed, err)

	for _, r := range []seal.StoreRecord{
		{Gen: 1, Created: 9, DefaultExposure: 1, WriteVersion: 1, Rotating: true, SourceHint: 4, Shard: 7, RecoveryPK: k.recoveryPK},
		{Gen: 2, DefaultExposure: 3, WriteVersion: 1},
	} {
		b := must(k.store.SealStoreRecord(r))
		got, err := k.store.OpenStoreRecord(b)
		same(t, "OpenStoreRecord", got, r, err)
		id, err := seal.PeekStoreID(b)
		same(t, "PeekStoreID", id, k.store.ID(), err)
	}

	tomb := seal.Tombstone{Shredded: 8, Slots: make([]seal.DeadSlot, seal.MaxSlots)}
	got, err := k.store.OpenTombstone(k.id, must(k.store.SealTombstone(k.id, tomb)))
	same(t, "OpenTombstone", got, tomb, err)

	e := k.record(must(k.inner.Seal(k.bind, value)), seal.FormValue)
	e.Writer, e.Expires = k.key.Slot(), 77
	opened, err := k.outer.OpenEntry(seal.EntryKey(k.tag), must(k.outer.SealEntry(seal.EntryKey(k.tag), e)))
	same(t, "OpenEntry", opened, e, err)

	state := seal.EntryState{LastFrom: 1 << 40, Uses: 3}
	gotState, err := k.outer.OpenState(seal.StateKey(k.tag), must(k.outer.SealState(seal.StateKey(k.tag), state)))
	same(t, "OpenState", gotState, state, err)
}

func TestValueOpensInBothForms(t *testing.T) {
	k := newKit(t)
	fields := []seal.Field{
		{Name: "value", Value: []byte("hunter2")},
		{Name: "backup_codes", Class: seal.ClassNever, Value: bytes.Repeat([]byte("x"), 300)},
		{Name: "empty"},
	}
	want := []seal.Field{fields[1], fields[2], fields[0]}
	got, err := k.inner.Open(k.bind, seal.FormValue, must(k.inner.Seal(k.bind, fields)))
	same(t, "form 1", got, want, err)
	got, err = k.inner.Open(k.bind, seal.FormMailbox, must(seal.SealMailbox(k.pk, k.bind, fields)))
	same(t, "form 2", got, want, err)
	if fields[0].Name != "value" {
		t.Error("Seal sorted the fields of its caller")
	}

	unwrapped, err := seal.Unwrap(k.store.ID(), k.id, k.key, k.pk, k.header.Slots[0].Wrapped)
	if err != nil {
		t.Fatal(err)
	}
	got, err = unwrapped.Open(k.bind, seal.FormMailbox, must(seal.SealMailbox(unwrapped.PublicKey(), k.bind, fields)))
	same(t, "form 2 by an unwrapped lock", got, want, err)
}

// TestOnlyOwnKeysUnwrap: no other key, identity, store or public key leads to
// the secret. TestValueOpensInBothForms is the control.
func TestOnlyOwnKeysUnwrap(t *testing.T) {
	k := newKit(t)
	store, wrapped := k.store.ID(), k.header.Slots[0].Wrapped
	other := seal.NewInner(store, k.id)
	unwrap := func(store, id identity.ID, key identity.Key, pk, wrapped []byte) error {
		_, err := seal.Unwrap(store, id, key, pk, wrapped)
		return err
	}
	refused(t, "another key of the identity", unwrap(store, k.id, identity.NewKey(identity.Agent, k.id), k.pk, wrapped))
	refused(t, "a swapped public key", unwrap(store, k.id, k.key, other.PublicKey(), wrapped))
	refused(t, "a cut public key", unwrap(store, k.id, k.key, k.pk[1:], wrapped))
	refused(t, "another store", unwrap(identity.NewID(), k.id, k.key, k.pk, wrapped))
	refused(t, "another identity", unwrap(store, identity.NewID(), k.key, k.pk, wrapped))
	refused(t, "the recovery key", unwrap(store, k.id, k.recovery, k.pk, wrapped))
	refused(t, "the zero key", unwrap(store, k.id, identity.Key{}, k.pk, wrapped))
	refused(t, "an emptied slot", unwrap(store, k.id, k.key, k.pk, nil))

	_, err := k.inner.Wrap(identity.NewKey(identity.Agent, identity.NewID()))
	refused(t, "Wrap to a key of another identity", err)
	_, err = k.inner.Wrap(identity.NewKey(identity.Recovery, k.id))
	refused(t, "Wrap to a recovery key", err)
}

func TestOnlyRecoveryKeyUnwrapsRecovery(t *testing.T) {
	k := newKit(t)
	store, wrapped := k.store.ID(), k.header.Recovery
	open := func(id identity.ID, key identity.Key, pk []byte) error {
		_, err := seal.UnwrapRecovery(store, id, key, pk, wrapped)
		return err
	}
	if err := open(k.id, k.recovery, k.pk); err != nil {
		t.Fatalf("control: %v", err)
	}
	foreign := identity.NewKey(identity.Recovery, k.recovery.Identity())
	refused(t, "another recovery key", open(k.id, foreign, k.pk))
	refused(t, "the agent's key", open(k.id, k.key, k.pk))
	refused(t, "the zero key", open(k.id, identity.Key{}, k.pk))
	refused(t, "a swapped public key", open(k.id, k.recovery, seal.NewInner(store, k.id).PublicKey()))
	refused(t, "another identity", open(identity.NewID(), k.recovery, k.pk))
	_, err := k.inner.WrapRecovery(make([]byte, 12), k.recovery.Identity())
	refused(t, "WrapRecovery to no public key", err)
}

// TestErasedCellKillsRecords: with another cell secret, neither the newest
// root secret nor the key of the agent opens anything.
func TestErasedCellKillsRecords(t *testing.T) {
	s := newStored(t)
	if _, err := s.read(s.entry); err != nil {
		t.Fatalf("control: %v", err)
	}
	s.z = run(0x71)
	_, err := s.read(s.entry)
	refused(t, "read after the cell is erased", err)
}

func TestObjectsCannotBeSwapped(t *testing.T) {
	k := newKit(t)
	header := must(k.store.SealHeader(k.id, k.z, k.header))
	tomb := must(k.store.SealTombstone(k.id, seal.Tombstone{}))
	record := must(k.store.SealStoreRecord(seal.StoreRecord{DefaultExposure: 1, WriteVersion: 1}))
	entryKey, stateKey := seal.EntryKey(k.tag), seal.StateKey(k.tag)
	entry := must(k.outer.SealEntry(entryKey, k.record(nil, seal.FormNone)))
	state := must(k.outer.SealState(stateKey, seal.EntryState{}))
	other := seal.NewRoot().Store()

	_, err := k.store.OpenTombstone(k.id, header)
	refused(t, "header as tombstone", err)
	_, err = k.store.OpenHeader(k.id, k.z, tomb)
	refused(t, "tombstone as header", err)
	_, err = k.store.OpenHeader(identity.NewID(), k.z, header)
	refused(t, "header of another identity", err)
	_, err = other.OpenHeader(k.id, k.z, header)
	refused(t, "header of another store", err)
	_, err = other.OpenStoreRecord(record)
	refused(t, "record of another store", err)
	_, err = k.outer.OpenEntry(entryKey, state)
	refused(t, "state as entry", err)
	_, err = k.outer.OpenState(stateKey, entry)
	refused(t, "entry as state", err)
	_, err = k.outer.OpenEntry(stateKey, entry)
	refused(t, "entry under a state's key", err)
	_, err = k.outer.OpenEntry(seal.EntryKey(k.store.Tag(k.id, "other")), entry)
	refused(t, "entry of another label", err)
	_, err = k.outer.SealEntry("", k.record(nil, seal.FormNone))
	refused(t, "SealEntry without a key", err)
	_, err = k.outer.SealState(entryKey, seal.EntryState{})
	refused(t, "SealState under an entry's key", err)

	inner := must(k.inner.Seal(k.bind, value))
	mailbox := must(seal.SealMailbox(k.pk, k.bind, value))
	_, err = k.inner.Open(k.bind, seal.FormMailbox, inner)
	refused(t, "value as mailbox", err)
	_, err = k.inner.Open(k.bind, seal.FormValue, mailbox)
	refused(t, "mailbox as value", err)
	_, err = k.inner.Open(k.bind, seal.FormNone, inner)
	refused(t, "removed label as value", err)
	elsewhere := k.bind
	elsewhere.ID = identity.NewID()
	_, err = k.inner.Seal(elsewhere, value)
	refused(t, "Seal for another identity", err)
}

func TestInvalidIsNotSealed(t *testing.T) {
	k := newKit(t)
	for name, change := range map[string]func(*seal.Header){
		"gen 0":            func(h *seal.Header) { h.Gen = 0 },
		"state 0":          func(h *seal.Header) { h.State = 0 },
		"state 3":          func(h *seal.Header) { h.State = 3 },
		"flag 8":           func(h *seal.Header) { h.Flags = 8 },
		"time before 1970": func(h *seal.Header) { h.Created = -1 },
		"too many records": func(h *seal.Header) { h.Count = 2*seal.MaxLabels + 1 },
		"no public key":    func(h *seal.Header) { h.PK = nil },
		"long name":        func(h *seal.Header) { h.Name = strings.Repeat("n", 64) },
		"name not ASCII":   func(h *seal.Header) { h.Name = "é" },
		"17 slots":         func(h *seal.Header) { h.Slots = make([]seal.Slot, 17) },
		"short recovery":   func(h *seal.Header) { h.Recovery = h.Recovery[1:] },
		"slot state 0":     func(h *seal.Header) { h.Slots[0].State = 0 },
		"slot kind 2":      func(h *seal.Header) { h.Slots[0].Kind = 2 },
		"scope 15":         func(h *seal.Header) { h.Slots[0].Scopes = 1 << 15 },
		"closed with key":  func(h *seal.Header) { h.Slots[0].State = seal.SlotClosed },
		"short wrap":       func(h *seal.Header) { h.Slots[0].Wrapped = make([]byte, 123) },
		"empty glob":       func(h *seal.Header) { h.Slots[0].Globs = []string{""} },
		"33 globs":         func(h *seal.Header) { h.Slots[0].Globs = slicesOf("*", seal.MaxGlobs+1) },
		"long glob":        func(h *seal.Header) { h.Slots[0].Globs = []string{strings.Repeat("g", 256)} },
		"too big": func(h *seal.Header) {
			h.Slots = append(h.Slots, h.Slots[0], h.Slots[0])
			for i := range h.Slots {
				h.Slots[i].Globs = slicesOf(strings.Repeat("g", 200), 30)
			}
		},
	} {
		h := *k.header
		h.Slots = append([]seal.Slot{}, h.Slots...)
		change(&h)
		_, err := k.store.SealHeader(k.id, k.z, &h)
		refused(t, "header: "+name, err)
	}
	for name, change := range map[string]func(*seal.Entry){
		"no label":              func(e *seal.Entry) { e.Label = "" },
		"long label":            func(e *seal.Entry) { e.Label = strings.Repeat("l", 256) },
		"version above last":    func(e *seal.Entry) { e.Version = 2 },
		"no version":            func(e *seal.Entry) { e.Version, e.Last = 0, 0 },
		"value without version": func(e *seal.Entry) { e.Version = 0 },
		"kind 0":                func(e *seal.Entry) { e.Kind = 0 },
		"kind 4":                func(e *seal.Entry) { e.Kind = 4 },
		"exposure 0":            func(e *seal.Entry) { e.Exposure = 0 },
		"cap below exposure":    func(e *seal.Entry) { e.Exposure = 3 },
		"cap 4":                 func(e *seal.Entry) { e.Cap = 4 },
		"form 3":                func(e *seal.Entry) { e.Form = 3 },
		"removed with value":    func(e *seal.Entry) { e.Form = seal.FormNone },
		"value without bytes":   func(e *seal.Entry) { e.Inner = nil },
		"odd length":            func(e *seal.Entry) { e.Inner = append(e.Inner, 0) },
		"wrong form":            func(e *seal.Entry) { e.Form = seal.FormMailbox },
		"256 hosts":             func(e *seal.Entry) { e.Hosts = slicesOf("h", 256) },
		"empty tag":             func(e *seal.Entry) { e.Tags = []string{""} },
		"big meta":              func(e *seal.Entry) { e.Extra = make([]byte, 65_400) },
		"huge extra":            func(e *seal.Entry) { e.Extra = make([]byte, 1<<16) },
	} {
		e := k.record(must(k.inner.Seal(k.bind, value)), seal.FormValue)
		change(e)
		_, err := k.outer.SealEntry(seal.EntryKey(k.tag), e)
		refused(t, "entry: "+name, err)
	}
	big := make([]byte, seal.MaxValue)
	for name, fields := range map[string][]seal.Field{
		"no name":       {{}},
		"upper case":    {{Name: "Value"}},
		"long name":     {{Name: strings.Repeat("n", 33)}},
		"class 1":       {{Name: "a", Class: 1}},
		"twice":         {{Name: "a"}, {Name: "b"}, {Name: "a"}},
		"big value":     {{Name: "a", Value: make([]byte, seal.MaxValue+1)}},
		"big payload":   {{Name: "a", Value: big}, {Name: "b", Value: big}},
		"256 fields":    make([]seal.Field, 256),
		"NUL in a name": {{Name: "a\x00"}},
	} {
		_, err := k.inner.Seal(k.bind, fields)
		refused(t, "payload: "+name, err)
		_, err = seal.SealMailbox(k.pk, k.bind, fields)
		refused(t, "mailbox payload: "+name, err)
	}
	long := k.bind
	long.Label = strings.Repeat("l", 256)
	_, err := k.inner.Seal(long, value)
	refused(t, "Seal for a long label", err)
	_, err = seal.SealMailbox(k.pk, long, value)
	refused(t, "SealMailbox for a long label", err)
	_, err = seal.SealMailbox(k.pk[1:], k.bind, value)
	refused(t, "SealMailbox to a cut public key", err)
	_, err = k.store.SealTombstone(k.id, seal.Tombstone{Slots: make([]seal.DeadSlot, 17)})
	refused(t, "tombstone of 17 slots", err)
	_, err = k.store.SealStoreRecord(seal.StoreRecord{WriteVersion: 1})
	refused(t, "store record without exposure", err)
	_, err = k.store.SealStoreRecord(seal.StoreRecord{DefaultExposure: 1})
	refused(t, "store record without version", err)
	_, err = k.store.SealStoreRecord(seal.StoreRecord{DefaultExposure: 1, WriteVersion: 1, RecoveryPK: big[:100]})
	refused(t, "store record with a short public key", err)
	if _, err := k.store.SealStoreRecord(seal.StoreRecord{DefaultExposure: 1, WriteVersion: 2}); !errors.Is(err, seal.ErrVersion) {
		t.Errorf("store record with write version 2: %v, want %v", err, seal.ErrVersion)
	}
}

func slicesOf(s string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = s
	}
	return list
}

func TestLargestFits(t *testing.T) {
	k := newKit(t)
	half := make([]byte, seal.MaxValue-64)
	for _, fields := range [][]seal.Field{
		{{Name: "value", Value: make([]byte, seal.MaxValue)}},
		{{Name: "a", Value: half}, {Name: "b", Value: half}},
		{},
	} {
		inner := must(k.inner.Seal(k.bind, fields))
		got, err := k.inner.Open(k.bind, seal.FormValue, inner)
		if err != nil || len(got) != len(fields) {
			t.Errorf("Open = %d fields, %v, want %d", len(got), err, len(fields))
		}
		e := k.record(inner, seal.FormValue)
		e.Extra = make([]byte, 60_000)
		if _, err := k.outer.SealEntry(seal.EntryKey(k.tag), e); err != nil {
			t.Errorf("SealEntry: %v", err)
		}
	}
}

// TestPlaintextIsCanonical: a plaintext with any bit flipped, cut anywhere or
// with a byte more is refused, or is the one encoding of another object.
func TestPlaintextIsCanonical(t *testing.T) {
	for name, c := range codecs(t) {
		again, err := c.recode(c.sample)
		if err != nil || !bytes.Equal(again, c.sample) {
			t.Errorf("%s: control: %v", name, err)
		}
		b := bytes.Clone(c.sample)
		for i := range b {
			for bit := range 8 {
				b[i] ^= 1 << bit
				c.check(t, name, b)
				b[i] ^= 1 << bit
			}
			c.check(t, name, b[:i])
		}
		c.check(t, name, append(b, 0))
	}
}

// codec decodes a plaintext and encodes the result.
type codec struct {
	sample []byte
	recode func([]byte) ([]byte, error)
}

func (c codec) check(t *testing.T, name string, b []byte) {
	t.Helper()
	again, err := c.recode(b)
	if err != nil {
		if !errors.Is(err, seal.ErrRefused) && !errors.Is(err, seal.ErrVersion) {
			t.Errorf("%s: %v, want %v", name, err, seal.ErrRefused)
		}
		return
	}
	if !bytes.Equal(again, b) {
		t.Errorf("%s: %x decodes, and encodes to %x", name, b, again)
	}
}

func recoder[T any](decode func([]byte) (T, error), encode func(T) ([]byte, error)) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) {
		v, err := decode(b)
		if err != nil {
			return nil, err
		}
		return encode(v)
	}
}

func codecs(t testing.TB) map[string]codec {
	k := newKit(t)
	rec := seal.StoreRecord{Gen: 1, DefaultExposure: 1, WriteVersion: 1, RecoveryPK: k.recoveryPK}
	tomb := seal.Tombstone{Shredded: 1, Slots: make([]seal.DeadSlot, 3)}
	return map[string]codec{
		"header":       {must(seal.EncodeHeader(k.header)), recoder(seal.DecodeHeader, seal.EncodeHeader)},
		"store record": {must(seal.EncodeStoreRecord(rec)), recoder(seal.DecodeStoreRecord, seal.EncodeStoreRecord)},
		"tombstone":    {must(seal.EncodeTombstone(tomb)), recoder(seal.DecodeTombstone, seal.EncodeTombstone)},
		"entry":        {must(seal.EncodeEntry(k.record(make([]byte, 92+64), seal.FormValue))), recoder(seal.DecodeEntry, seal.EncodeEntry)},
		"payload":      {must(seal.EncodePayload(value)), recoder(seal.DecodePayload, seal.EncodePayload)},
	}
}

func TestPeek(t *testing.T) {
	k := newKit(t)
	header := must(k.store.SealHeader(k.id, k.z, k.header))
	typ, epoch, err := seal.Peek(header)
	if typ != seal.TypeHeader || epoch != 1 || err != nil {
		t.Errorf("Peek = %v, %v, %v, want %v, 1, nil", typ, epoch, err, seal.TypeHeader)
	}
	for _, c := range []struct {
		b    []byte
		want error
	}{
		{nil, seal.ErrRefused},
		{[]byte{1, 1, 2, 0, 0, 0, 0}, seal.ErrRefused},
		{[]byte{2, 1, 2, 0, 0, 0, 0, 1}, seal.ErrVersion},
		{[]byte{1, 2, 2, 0, 0, 0, 0, 1}, seal.ErrVersion},
		{[]byte{1, 1, 5, 0, 0, 0, 0, 0}, seal.ErrRefused},
		{[]byte{1, 1, 2, 1, 0, 0, 0, 1}, seal.ErrRefused},
		{[]byte{1, 1, 2, 0, 0, 0, 0, 0}, seal.ErrRefused},
		{[]byte{1, 1, 4, 0, 0, 0, 0, 1}, seal.ErrRefused},
		{[]byte{1, 1, 4, 0, 0, 0, 0, 0}, nil},
	} {
		if _, _, err := seal.Peek(c.b); err != c.want {
			t.Errorf("Peek(%x) = %v, want %v", c.b, err, c.want)
		}
	}
	_, err = seal.PeekStoreID(header)
	refused(t, "PeekStoreID of a header", err)
	_, err = seal.PeekStoreID([]byte{1, 1, 1, 0, 0, 0, 0, 1})
	refused(t, "PeekStoreID of a prefix", err)
}
