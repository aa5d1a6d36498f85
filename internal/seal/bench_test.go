package seal_test

import (
	"testing"

	"github.com/solekey/solekey/internal/seal"
)

// stored is one identity with one entry as it lies in the store.
type stored struct {
	*kit
	meta, entry, mailbox []byte
	entryKey             string
}

func newStored(tb testing.TB) *stored {
	k := newKit(tb)
	s := &stored{kit: k, entryKey: seal.EntryKey(k.tag)}
	s.meta = must(k.store.SealHeader(k.id, k.z, k.header))
	fields := []seal.Field{{Name: "value", Value: make([]byte, 40)}}
	s.entry = must(k.outer.SealEntry(s.entryKey, k.record(must(k.inner.Seal(k.bind, fields)), seal.FormValue)))
	s.mailbox = must(k.outer.SealEntry(s.entryKey, k.record(must(seal.SealMailbox(k.pk, k.bind, fields)), seal.FormMailbox)))
	return s
}

// read is a whole read: from a parsed key and the bytes in the store to the
// value.
func (s *stored) read(entry []byte) ([]seal.Field, error) {
	tag := s.store.Tag(s.id, label)
	h, err := s.store.OpenHeader(s.id, s.z, s.meta)
	if err != nil {
		return nil, err
	}
	o := s.store.Outer(s.id, h)
	defer o.Wipe()
	clear(h.OK[:])
	e, err := o.OpenEntry(seal.EntryKey(tag), entry)
	if err != nil {
		return nil, err
	}
	if !seal.Equal(seal.AuthHash(s.key.Auth()), h.Slots[0].AuthHash) {
		return nil, seal.ErrRefused
	}
	in, err := seal.Unwrap(s.store.ID(), s.id, s.key, h.PK, h.Slots[0].Wrapped)
	if err != nil {
		return nil, err
	}
	defer in.Wipe()
	b := seal.Bind{Store: s.store.ID(), ID: s.id, Version: e.Version, Kind: e.Kind, Exposure: e.Exposure, Label: e.Label}
	return in.Open(b, e.Form, e.Inner)
}

func benchmarkRead(b *testing.B, s *stored, entry []byte) {
	b.ReportAllocs()
	for b.Loop() {
		fields, err := s.read(entry)
		if err != nil {
			b.Fatal(err)
		}
		clear(fields[0].Value)
	}
}

func BenchmarkColdRead(b *testing.B) {
	s := newStored(b)
	benchmarkRead(b, s, s.entry)
}

// BenchmarkColdReadDo has the whole read inside Do: its price in a build with
// GOEXPERIMENT=runtimesecret.
func BenchmarkColdReadDo(b *testing.B) {
	s := newStored(b)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		seal.Do(func() { _, err = s.read(s.entry) })
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMailboxOpen(b *testing.B) {
	s := newStored(b)
	benchmarkRead(b, s, s.mailbox)
}

func BenchmarkSealMailbox(b *testing.B) {
	k := newKit(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := seal.SealMailbox(k.pk, k.bind, value); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHeader(b *testing.B) {
	s := newStored(b)
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.store.OpenHeader(s.id, s.z, s.meta); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.store.SealHeader(s.id, s.z, s.header); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkValue(b *testing.B) {
	s := newStored(b)
	inner := must(s.inner.Seal(s.bind, value))
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.inner.Open(s.bind, seal.FormValue, inner); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.inner.Seal(s.bind, value); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRootStore(b *testing.B) {
	root := newKit(b).root
	b.ReportAllocs()
	for b.Loop() {
		root.Store()
	}
}

func BenchmarkTag(b *testing.B) {
	k := newKit(b)
	b.ReportAllocs()
	for b.Loop() {
		k.store.Tag(k.id, label)
	}
}

func BenchmarkSetElem(b *testing.B) {
	s := newStored(b)
	b.ReportAllocs()
	for b.Loop() {
		s.outer.Elem(s.entryKey, s.entry)
	}
}
