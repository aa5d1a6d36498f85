package seal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/solekey/solekey/internal/seal"
)

// fuzz runs one decoder: a plaintext is refused, or encodes to itself. The
// same input is then a change to an object that was sealed, which must be
// refused: 4 bytes say where, the rest is XORed in.
func fuzz(f *testing.F, name string, sealed []byte, open func([]byte) error) {
	c := codecs(f)[name]
	f.Add(c.sample)
	f.Add([]byte{0, 0, 0, 9, 1})
	f.Add([]byte{0, 0, 4, 0, 0, 0, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		c.check(t, name, b)
		changed, ok := change(sealed, b)
		if !ok {
			return
		}
		if err := open(changed); !errors.Is(err, seal.ErrRefused) && !errors.Is(err, seal.ErrVersion) {
			t.Errorf("open of a changed %s: %v, want %v", name, err, seal.ErrRefused)
		}
	})
}

func change(sealed, by []byte) ([]byte, bool) {
	if len(by) < 5 {
		return nil, false
	}
	at := binary.BigEndian.Uint32(by) % uint32(len(sealed))
	changed := bytes.Clone(sealed)
	for i := range min(len(by)-4, len(changed)-int(at)) {
		changed[int(at)+i] ^= by[4+i]
	}
	return changed, !bytes.Equal(changed, sealed)
}

func FuzzHeader(f *testing.F) {
	s := newStored(f)
	fuzz(f, "header", s.meta, func(b []byte) error {
		_, err := s.store.OpenHeader(s.id, s.z, b)
		return err
	})
}

func FuzzEntry(f *testing.F) {
	s := newStored(f)
	fuzz(f, "entry", s.entry, func(b []byte) error {
		_, err := s.outer.OpenEntry(s.entryKey, b)
		return err
	})
}

func FuzzPayload(f *testing.F) {
	k := newKit(f)
	fuzz(f, "payload", must(k.inner.Seal(k.bind, value)), func(b []byte) error {
		_, err := k.inner.Open(k.bind, seal.FormValue, b)
		return err
	})
}

func FuzzStoreRecord(f *testing.F) {
	k := newKit(f)
	sealed := must(k.store.SealStoreRecord(seal.StoreRecord{DefaultExposure: 1, WriteVersion: 1}))
	fuzz(f, "store record", sealed, func(b []byte) error {
		_, err := k.store.OpenStoreRecord(b)
		return err
	})
}

func FuzzTombstone(f *testing.F) {
	k := newKit(f)
	sealed := must(k.store.SealTombstone(k.id, seal.Tombstone{Shredded: 1}))
	fuzz(f, "tombstone", sealed, func(b []byte) error {
		_, err := k.store.OpenTombstone(k.id, b)
		return err
	})
}

// FuzzState seals any bytes as the state of an entry: they are refused, or
// written as they were read.
func FuzzState(f *testing.F) {
	k := newKit(f)
	key, _ := k.outer.Keys()
	name := seal.StateKey(k.tag)
	aad := k.outer.AAD(seal.TypeState, name)
	sealed := must(k.outer.SealState(name, seal.EntryState{LastFrom: 1 << 40, Uses: 3}))
	p8 := sealed[:8]
	plain := must(seal.OOpen(&key, aad, sealed[8:]))
	f.Add(plain)
	f.Add(plain[:15])
	f.Add(append(bytes.Clone(plain), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := k.outer.OpenState(name, append(bytes.Clone(p8), seal.OSeal(&key, aad, b)...))
		if err != nil {
			if !errors.Is(err, seal.ErrRefused) || len(b) == len(plain) {
				t.Errorf("OpenState of %x: %v", b, err)
			}
			return
		}
		again := must(k.outer.SealState(name, s))
		if got := must(seal.OOpen(&key, aad, again[8:])); !bytes.Equal(got, b) {
			t.Errorf("%x is read, and written as %x", b, got)
		}
	})
}

// FuzzForged gives bytes that nobody sealed to everything that opens: each is
// refused, whatever the prefix says.
func FuzzForged(f *testing.F) {
	s, k := newStored(f), newKit(f)
	f.Add(s.meta[:64])
	f.Add(s.entry[:64])
	for _, p8 := range [][]byte{{1, 1, 1, 0, 0, 0, 0, 1}, {1, 1, 2, 0, 0, 0, 0, 1}, {1, 1, 3, 0, 0, 0, 0, 1}, {1, 1, 4, 0, 0, 0, 0, 0}, {1, 1, 6, 0, 0, 0, 0, 0}, {2, 1, 2, 0, 0, 0, 0, 1}} {
		f.Add(append(p8, make([]byte, 200)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.Equal(b, s.meta) || bytes.Equal(b, s.entry) {
			return
		}
		_, header := s.store.OpenHeader(s.id, s.z, b)
		_, entry := s.outer.OpenEntry(s.entryKey, b)
		_, state := s.outer.OpenState(seal.StateKey(k.tag), b)
		_, record := k.store.OpenStoreRecord(b)
		_, tombstone := k.store.OpenTombstone(k.id, b)
		_, read := k.inner.Open(k.bind, seal.FormValue, b)
		_, mailbox := k.inner.Open(k.bind, seal.FormMailbox, b)
		for what, err := range map[string]error{"header": header, "entry": entry, "state": state, "store record": record, "tombstone": tombstone, "value": read, "mailbox": mailbox} {
			if !errors.Is(err, seal.ErrRefused) && !errors.Is(err, seal.ErrVersion) {
				t.Errorf("%x opens as %s: %v", b, what, err)
			}
		}
		typ, epoch, err := seal.Peek(b)
		if err == nil && (typ <= seal.TypeTombstone) != (epoch != 0) {
			t.Errorf("Peek(%x) = %v, %d", b, typ, epoch)
		}
	})
}

// FuzzRootText: a text is refused, or is the same root once written and read
// again.
func FuzzRootText(f *testing.F) {
	f.Add(rootText(1))
	f.Add(rootText(2, 1, 7))
	f.Add("# nothing\n\n0 slroot1_\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := seal.ParseRoot(text)
		if err != nil {
			if !errors.Is(err, seal.ErrRefused) {
				t.Errorf("ParseRoot: %v, want %v", err, seal.ErrRefused)
			}
			return
		}
		again, err := seal.ParseRoot(r.Reveal())
		if err != nil || again.Reveal() != r.Reveal() {
			t.Errorf("the root does not survive writing and reading: %v", err)
		}
		if !r.Has(r.Epoch()) || r.Store().ID() != r.StoreID() {
			t.Error("the root contradicts itself")
		}
	})
}
