package bolt_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// BenchmarkGet reads a header of 3 KiB and an entry of 400 bytes, with the
// turn held.
func BenchmarkGet(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("identities=%d", n), func(b *testing.B) {
			s, ids := filled(b, n, 10)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r, err := s.Get(b.Context(), ids[i%len(ids)], "key 3")
				if err != nil || len(r.Vals) != 1 {
					b.Fatal(r.Rev, err)
				}
				i += 7919
			}
		})
	}
}

// BenchmarkCell reads a cell whose row is known, with the turn held.
func BenchmarkCell(b *testing.B) {
	s, _ := create(b, bolt.Options{})
	id := identity.NewID()
	if err := s.PutCell(b.Context(), id, storage.Cell{1}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Cell(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}

// filled makes a store of n identities with keys keys each.
func filled(b *testing.B, n, keys int) (*bolt.Store, []identity.ID) {
	s, _ := create(b, bolt.Options{})
	batch := storage.Batch{Meta: make([]byte, 3<<10)}
	for k := range keys {
		batch.Ops = append(batch.Ops, storage.Op{Key: fmt.Sprintf("key %d", k), Val: make([]byte, 400)})
	}
	ids := make([]identity.ID, n)
	errs := make(chan error, n)
	slots := make(chan struct{}, 128)
	for i := range ids {
		ids[i] = identity.NewID()
		slots <- struct{}{}
		go func() {
			_, err := s.Commit(b.Context(), ids[i], 0, batch)
			<-slots
			errs <- err
		}()
	}
	for range ids {
		if err := <-errs; err != nil {
			b.Fatal(err)
		}
	}
	return s, ids
}

// BenchmarkFdatasync is the limit of the two benchmarks below: one append of
// 400 bytes to a file, and its sync.
func BenchmarkFdatasync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	buf := make([]byte, 400)
	for b.Loop() {
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
		if err := bolt.Datasync(f); err != nil {
			b.Fatal(err)
		}
	}
}

// callers runs f in n goroutines, with the number of each.
func callers(b *testing.B, n int, f func(i int) error) {
	b.SetParallelism(max(1, n/runtime.GOMAXPROCS(0)))
	var next atomic.Int64
	b.ReportAllocs()
	run := func(pb interface{ Next() bool }) {
		i := int(next.Add(1))
		for pb.Next() {
			if err := f(i); err != nil {
				b.Error(err)
				return
			}
		}
	}
	if n == 1 {
		run(loop{b})
		return
	}
	b.RunParallel(func(pb *testing.PB) { run(pb) })
}

type loop struct{ *testing.B }

func (l loop) Next() bool { return l.Loop() }

// BenchmarkCommit replaces a header of 3 KiB and an entry of 400 bytes.
func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", n), func(b *testing.B) {
			s, _ := create(b, bolt.Options{})
			revs := make([]storage.Rev, n+2)
			batch := storage.Batch{Meta: make([]byte, 3<<10), Ops: []storage.Op{{Key: "k", Val: make([]byte, 400)}}}
			callers(b, n, func(i int) (err error) {
				revs[i], err = s.Commit(b.Context(), identity.ID{byte(i)}, revs[i], batch)
				return err
			})
		})
	}
}

// BenchmarkAppend appends a line of 400 bytes.
func BenchmarkAppend(b *testing.B) {
	body := fmt.Appendf(nil, `{"v":1,"note":"%0300d"}`, 1)
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", n), func(b *testing.B) {
			s, _ := create(b, bolt.Options{})
			callers(b, n, func(int) error {
				_, err := s.Append(b.Context(), body)
				return err
			})
		})
	}
}

// BenchmarkOpen opens a store, takes the turn, reads once and closes.
func BenchmarkOpen(b *testing.B) {
	s, dir := create(b, bolt.Options{})
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s, err := bolt.Open(dir, bolt.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Get(b.Context(), identity.ID{1}); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkGetSmall reads a header of 16 bytes and no key: what a Get costs
// beside its copies.
func BenchmarkGetSmall(b *testing.B) {
	s, _ := create(b, bolt.Options{})
	id := identity.ID{1}
	if _, err := s.Commit(b.Context(), id, 0, storage.Batch{Meta: make([]byte, 16)}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Get(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}
