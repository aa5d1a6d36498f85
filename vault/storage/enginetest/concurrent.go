package enginetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/vault/storage"
)

// together runs n goroutines and joins their errors.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// increment adds one to the counter in key "n".
func increment(ctx context.Context, s storage.Store) error {
	_, err := storage.Update(ctx, s, id(1), []string{"n"}, func(r storage.Result) (storage.Batch, error) {
		var n uint64
		if v := r.Vals["n"]; v != nil {
			n = binary.BigEndian.Uint64(v)
		}
		return storage.Batch{Ops: []storage.Op{{Key: "n", Val: binary.BigEndian.AppendUint64(nil, n+1)}}}, nil
	})
	return err
}

// counted compares counter and revision.
func counted(ctx context.Context, s storage.Store, want uint64) error {
	r, err := s.Get(ctx, id(1), "n")
	if err != nil {
		return err
	}
	if len(r.Vals["n"]) != 8 {
		return errors.New("there is no counter")
	}
	if n := binary.BigEndian.Uint64(r.Vals["n"]); n != want || uint64(r.Rev) != want {
		return fmt.Errorf("counter is %d at revision %d, want %d", n, r.Rev, want)
	}
	return nil
}

// tryIncrement increments until it is done, whatever the contention.
func tryIncrement(ctx context.Context, s storage.Store) error {
	for {
		if err := increment(ctx, s); !errors.Is(err, storage.ErrConflict) {
			return err
		}
	}
}

func increments(e *env) error {
	err := together(8, func(int) error {
		for range 25 {
			if err := tryIncrement(e.ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, counted(e.ctx, e, 200))
}

func handles(e *env) error {
	const stores, callers, each = 5, 4, 10
	open := make([]storage.Backend, stores)
	for i := range open {
		b, err := e.h.Reopen(e.place)
		if err != nil {
			return err
		}
		defer func() { _ = b.Close() }()
		open[i] = b
	}
	err := together(stores*callers, func(i int) error {
		for range each {
			if err := tryIncrement(e.ctx, open[i%stores]); err != nil {
				return err
			}
			if _, err := open[i%stores].Append(e.ctx, []byte(`{"v":1}`)); err != nil {
				return err
			}
		}
		return nil
	})
	lines, cerr := checkChain(e.ctx, e)
	if cerr == nil && len(lines) != stores*callers*each {
		cerr = fmt.Errorf("the log has %d lines, want %d", len(lines), stores*callers*each)
	}
	return errors.Join(err, cerr, counted(e.ctx, e, stores*callers*each))
}

// during runs writer until it ends while readers run reader again and again.
func during(readers int, writer, reader func() error) error {
	var over atomic.Bool
	return together(readers+1, func(i int) error {
		if i == 0 {
			defer over.Store(true)
			return writer()
		}
		for !over.Load() {
			if err := reader(); err != nil {
				return err
			}
			runtime.Gosched() // a reader that spins would keep the writer off the processor
		}
		return nil
	})
}

func snapshot(e *env) error {
	if err := e.commits(id(1), 0, put("a", "0", "b", "0"), 1, nil); err != nil {
		return err
	}
	rev := storage.Rev(1)
	return during(4, func() error {
		for i := range 300 {
			v := fmt.Sprint(i)
			next, err := e.Commit(e.ctx, id(1), rev, put("a", v, "b", v))
			if err != nil {
				return err
			}
			rev = next
		}
		return nil
	}, func() error {
		r, err := e.Get(e.ctx, id(1), "a", "b")
		if err == nil && string(r.Vals["a"]) != string(r.Vals["b"]) {
			return errors.New("two keys that change together were seen apart")
		}
		return err
	})
}

func pages(e *env) error {
	batch := func(v string) (b storage.Batch) {
		for i := range 9 {
			b.Ops = append(b.Ops, storage.Op{Key: fmt.Sprint(i), Val: []byte(v)})
		}
		return b
	}
	if err := e.commits(id(1), 0, batch("0"), 1, nil); err != nil {
		return err
	}
	whole := 0
	err := during(1, func() error {
		for i := range 200 {
			if _, err := e.Commit(e.ctx, id(1), storage.Rev(i+1), batch(fmt.Sprint(i))); err != nil {
				return err
			}
		}
		return nil
	}, func() error {
		same, err := e.listing()
		if same {
			whole++
		}
		return err
	})
	if same, lerr := e.listing(); lerr != nil || !same {
		err = errors.Join(err, fmt.Errorf("a quiet listing is not of one revision, or %w", lerr))
	}
	return err
}

// listing lists by pages and reports whether all were of one revision; then
// all values must agree.
func (e *env) listing() (same bool, err error) {
	var first storage.Page
	var vals []string
	same = true
	for after := ""; ; {
		p, err := e.List(e.ctx, id(1), after, 4)
		if err != nil {
			return false, err
		}
		if after == "" {
			first = p
		}
		same = same && p.Rev == first.Rev
		for _, it := range p.Items {
			vals, after = append(vals, string(it.Val)), it.Key
		}
		if !p.More {
			break
		}
	}
	for _, v := range vals {
		if same && v != vals[0] {
			return same, errors.New("pages of one revision disagree")
		}
	}
	if len(vals) != 9 {
		return same, fmt.Errorf("a listing of %d items, want 9", len(vals))
	}
	return same, nil
}

func journal(e *env) error {
	var seen [8 * 50]atomic.Uint64 // first line of each group, plus one
	err := together(8, func(w int) error {
		for i := range 50 {
			var bodies [][]byte
			for part := range 1 + i%3 {
				bodies = append(bodies, fmt.Appendf(nil, `{"group":%d,"part":%d}`, w*50+i, part))
			}
			first, err := e.Append(e.ctx, bodies...)
			if err != nil {
				return err
			}
			seen[w*50+i].Store(first + 1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	lines, err := checkChain(e.ctx, e)
	if err != nil {
		return err
	}
	for g := range seen {
		for part := range 1 + g%50%3 {
			n := int(seen[g].Load()) - 1 + part
			if n >= len(lines) || fmt.Sprint(lines[n]["group"]) != fmt.Sprint(g) || fmt.Sprint(lines[n]["part"]) != fmt.Sprint(part) {
				return fmt.Errorf("line %d is not part %d of group %d", n, part, g)
			}
		}
	}
	return nil
}

func revoke(e *env) error {
	var acked atomic.Uint64
	rev, err := e.Commit(e.ctx, id(1), 0, storage.Batch{Meta: []byte("1")})
	if err != nil {
		return err
	}
	acked.Store(uint64(rev))
	return during(4, func() error {
		for range 300 {
			next, err := e.Commit(e.ctx, id(1), rev, storage.Batch{Meta: fmt.Append(nil, uint64(rev)+1)})
			if err != nil {
				return err
			}
			rev = next
			acked.Store(uint64(rev))
		}
		return nil
	}, func() error {
		least := acked.Load()
		r, err := e.Get(e.ctx, id(1))
		if err != nil {
			return err
		}
		if uint64(r.Rev) < least || string(r.Meta) != fmt.Sprint(uint64(r.Rev)) {
			return fmt.Errorf("revision %d was acknowledged before a Get that saw %d", least, r.Rev)
		}
		return nil
	})
}

func poison(e *env) error {
	bad := []storage.Batch{
		put(strings.Repeat("k", 1<<20), "v"),
		put("", "v"),
		put("a", "1", "a", "2"),
		{Ops: []storage.Op{{Key: "v", Val: make([]byte, storage.MaxValue+1)}}},
		put("a\x00\xff", "\x00\xc3\x28"), // odd, but allowed: loses the compare-and-set
	}
	var over atomic.Bool
	errs := make(chan error, 1)
	go func() {
		defer close(errs)
		for i := 0; !over.Load(); i++ {
			if _, err := e.Commit(e.ctx, id(9), 99, bad[i%len(bad)]); err == nil {
				errs <- errors.New("a bad call was applied")
				return
			}
		}
	}()
	err := together(8, func(w int) error {
		for i := range 60 {
			if _, err := e.Commit(e.ctx, id(byte(20+w)), storage.Rev(i), put("k", fmt.Sprint(i))); err != nil {
				return fmt.Errorf("a good call failed beside a bad one: %w", err)
			}
		}
		return nil
	})
	over.Store(true)
	return errors.Join(err, <-errs)
}

func cancels(e *env) error {
	gone, cancel := context.WithCancel(e.ctx)
	cancel()
	if _, err := e.Commit(gone, id(1), 0, put("k", "v")); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("a cancelled Commit gives %v", err)
	}
	if err := e.sees(id(1), storage.Result{}); err != nil {
		return fmt.Errorf("a cancelled Commit was applied: %w", err)
	}
	before := runtime.NumGoroutine()
	err := together(8, func(w int) error {
		one := id(byte(30 + w))
		var rev storage.Rev
		for range 60 {
			ctx, cancel := context.WithTimeout(e.ctx, time.Duration(rand.IntN(600))*time.Microsecond)
			next, err := e.Commit(ctx, one, rev, put("k", "v"))
			cancel()
			r, gerr := e.Get(e.ctx, one)
			switch {
			case gerr != nil:
				return gerr
			case err == nil && (next != rev+1 || r.Rev != next):
				return fmt.Errorf("revision %d was acknowledged, %d is there", next, r.Rev)
			case errors.Is(err, storage.ErrUnknown):
			case err != nil && r.Rev != rev:
				return fmt.Errorf("a Commit that gave %w was applied", err)
			}
			rev = r.Rev
		}
		return nil
	})
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+4; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
		}
	}
	return nil
}

// state is the model of one identity.
type state struct {
	rev  storage.Rev
	meta string
	vals map[string]string
}

func model(e *env) error {
	steps := 1500
	if Soak() {
		steps = 100_000
	}
	seed := [32]byte{1}
	r := rand.New(rand.NewChaCha8(seed))
	want := make([]state, 6)
	b := e.Backend
	for step := range steps {
		n := r.IntN(len(want))
		var err error
		switch op := r.IntN(100); {
		case op < 50:
			err = modelCommit(e.ctx, b, r, byte(n+1), &want[n])
		case op < 80:
			err = modelGet(e.ctx, b, byte(n+1), &want[n])
		case op < 99 || step%10 != 0:
			err = modelList(e.ctx, b, r, byte(n+1), &want[n])
		default:
			if err = b.Close(); err == nil {
				b, err = e.h.Reopen(e.place)
			}
		}
		if err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	return b.Close()
}

func modelCommit(ctx context.Context, b storage.Store, r *rand.Rand, n byte, w *state) error {
	var batch storage.Batch
	next := state{rev: w.rev + 1, meta: w.meta, vals: make(map[string]string)}
	for k, v := range w.vals {
		next.vals[k] = v
	}
	if r.IntN(3) == 0 {
		next.meta = fmt.Sprint("meta", r.Uint32())
		batch.Meta = []byte(next.meta)
	}
	for range r.IntN(5) {
		k := fmt.Sprintf("%c%d", byte(r.IntN(3))*0x7f, r.IntN(20))
		if _, given := find(batch.Ops, k); given {
			continue
		}
		if r.IntN(3) == 0 {
			batch.Ops = append(batch.Ops, storage.Op{Key: k})
			delete(next.vals, k)
			continue
		}
		v := strings.Repeat("v", r.IntN(1<<r.IntN(14)))
		batch.Ops = append(batch.Ops, storage.Op{Key: k, Val: []byte(v)})
		next.vals[k] = v
	}
	ifRev, wantErr := w.rev, error(nil)
	if r.IntN(5) == 0 {
		ifRev, wantErr = w.rev+1+storage.Rev(r.IntN(3)), storage.ErrConflict
	}
	rev, err := b.Commit(ctx, id(n), ifRev, batch)
	if wantErr != nil {
		return wants("a stale Commit", err, wantErr)
	}
	if err != nil || rev != next.rev {
		return fmt.Errorf("Commit = %d, %v, want %d", rev, err, next.rev)
	}
	*w = next
	return nil
}

func find(ops []storage.Op, key string) (storage.Op, bool) {
	for _, op := range ops {
		if op.Key == key {
			return op, true
		}
	}
	return storage.Op{}, false
}

func modelGet(ctx context.Context, b storage.Store, n byte, w *state) error {
	keys := append(sortedKeys(w.vals), "absent")
	r, err := b.Get(ctx, id(n), keys...)
	if err != nil {
		return err
	}
	got := state{rev: r.Rev, meta: string(r.Meta), vals: make(map[string]string)}
	for k, v := range r.Vals {
		got.vals[k] = string(v)
	}
	return same(w, &got)
}

func modelList(ctx context.Context, b storage.Store, r *rand.Rand, n byte, w *state) error {
	got := state{rev: w.rev, meta: w.meta, vals: make(map[string]string)}
	limit := 1 + r.IntN(70)
	for after := ""; ; {
		p, err := b.List(ctx, id(n), after, limit)
		if err != nil {
			return err
		}
		got.rev = p.Rev
		for _, it := range p.Items {
			if it.Key <= after {
				return errors.New("listing goes back")
			}
			got.vals[it.Key], after = string(it.Val), it.Key
		}
		if !p.More {
			return same(w, &got)
		}
	}
}

func same(want, got *state) error {
	if want.vals == nil {
		want.vals = make(map[string]string)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(state{})); d != "" {
		return fmt.Errorf("the store differs from the model (-want +got):\n%s", d)
	}
	return nil
}
