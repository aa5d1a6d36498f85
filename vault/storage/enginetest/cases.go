package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// commits runs steps of compare-and-set and compares revision or error.
func (e *env) commits(id identity.ID, ifRev storage.Rev, b storage.Batch, want storage.Rev, wantErr error) error {
	rev, err := e.Commit(e.ctx, id, ifRev, b)
	if rev != want || !errors.Is(err, wantErr) || (wantErr == nil) != (err == nil) {
		return fmt.Errorf("Commit at revision %d = %d, %v, want %d, %v", ifRev, rev, err, want, wantErr)
	}
	return nil
}

// sees compares what a Get returns.
func (e *env) sees(id identity.ID, want storage.Result, keys ...string) error {
	got, err := e.Get(e.ctx, id, keys...)
	if err != nil {
		return err
	}
	if len(got.Vals) == 0 {
		got.Vals = nil
	}
	if d := cmp.Diff(want, got); d != "" {
		return fmt.Errorf("Get (-want +got):\n%s", d)
	}
	return nil
}

func lifecycle(e *env) error {
	a := id(1)
	empty := []byte{}
	return errors.Join(
		e.sees(a, storage.Result{}, "x"),
		e.commits(a, 1, storage.Batch{Meta: []byte("m")}, 0, storage.ErrConflict),
		e.commits(a, 0, storage.Batch{Meta: []byte("m1"), Ops: []storage.Op{{Key: "x", Val: []byte("1")}, {Key: "e", Val: empty}}}, 1, nil),
		e.commits(a, 0, storage.Batch{Meta: []byte("m")}, 0, storage.ErrConflict),
		e.commits(a, 2, storage.Batch{Meta: []byte("m")}, 0, storage.ErrConflict),
		e.sees(a, storage.Result{Rev: 1, Meta: []byte("m1"), Vals: map[string][]byte{"x": []byte("1"), "e": empty}}, "x", "e", "absent"),
		e.commits(a, 1, storage.Batch{Ops: []storage.Op{{Key: "x"}, {Key: "never"}}}, 2, nil),
		e.commits(a, 1, put("x", "stale"), 0, storage.ErrConflict),
		e.sees(a, storage.Result{Rev: 2, Meta: []byte("m1"), Vals: map[string][]byte{"e": empty}}, "x", "e"),
		e.commits(a, 2, storage.Batch{}, 3, nil), // an empty batch is a commit
		e.commits(a, 3, storage.Batch{Meta: empty}, 4, nil),
		e.sees(a, storage.Result{Rev: 4, Meta: empty}),
		e.sees(id(2), storage.Result{}),
		e.commits(identity.ID{}, 0, storage.Batch{Meta: []byte("store")}, 1, nil),
		e.sees(identity.ID{}, storage.Result{Rev: 1, Meta: []byte("store")}),
	)
}

// oddKeys are keys that a text column would not keep.
func oddKeys() []string {
	all := []string{
		"\x00", "\x00\x00", "\x00a", "\x01", "\x01\x00", "a", "a\x00", "a\x00b", "ab", "\x80", "\xc3\x28", "\xff", "\xff\xff",
		strings.Repeat("\xff", storage.MaxKey), strings.Repeat("\x00", storage.MaxKey),
	}
	for i := range 40 {
		all = append(all, fmt.Sprintf("\x01%02d\x00\xfe", i))
	}
	slices.Sort(all)
	return all
}

func keys(e *env) error {
	all := oddKeys()
	b := storage.Batch{Meta: []byte("m")}
	for i, k := range all {
		b.Ops = append(b.Ops, storage.Op{Key: k, Val: fmt.Appendf(nil, "value %d", i)})
	}
	slices.Reverse(b.Ops)
	if err := e.commits(id(1), 0, b, 1, nil); err != nil {
		return err
	}
	for i, k := range all {
		r, err := e.Get(e.ctx, id(1), k)
		if want := fmt.Sprintf("value %d", i); err != nil || string(r.Vals[k]) != want {
			return fmt.Errorf("Get(%q) = %q, %v, want %q", k, r.Vals[k], err, want)
		}
	}
	for _, limit := range []int{1, 2, 7, len(all) - 1, len(all), len(all) + 1, storage.MaxLimit} {
		got, err := e.list(id(1), limit)
		if err != nil {
			return err
		}
		if d := cmp.Diff(all, got); d != "" {
			return fmt.Errorf("listing by %d (-want +got):\n%s", limit, d)
		}
	}
	p, err := e.List(e.ctx, id(1), "\x01", storage.MaxLimit)
	if err != nil || len(p.Items) == 0 || p.Items[0].Key != "\x01\x00" {
		return fmt.Errorf("listing after a key starts elsewhere, or %w", err)
	}
	return nil
}

// list returns every key, page by page.
func (e *env) list(id identity.ID, limit int) ([]string, error) {
	var all []string
	for after := ""; ; {
		p, err := e.List(e.ctx, id, after, limit)
		if err != nil {
			return nil, err
		}
		for _, it := range p.Items {
			all = append(all, it.Key)
		}
		if len(p.Items) > limit || p.More && len(p.Items) == 0 {
			return nil, fmt.Errorf("a page of %d items, more %v, at limit %d", len(p.Items), p.More, limit)
		}
		if !p.More {
			return all, nil
		}
		after = all[len(all)-1]
	}
}

func identities(e *env) error {
	want := []identity.ID{id(0), id(1), id(2), id(127), id(128), id(255)}
	for _, one := range []int{3, 0, 5, 1, 4, 2} {
		if err := e.commits(want[one], 0, storage.Batch{Meta: []byte{byte(one)}}, 1, nil); err != nil {
			return err
		}
	}
	if err := e.commits(identity.ID{}, 0, storage.Batch{Meta: []byte("store")}, 1, nil); err != nil {
		return err
	}
	for limit := 1; limit <= len(want)+1; limit++ {
		var got []identity.ID
		for after := (identity.ID{}); ; after = got[len(got)-1] {
			page, err := e.Identities(e.ctx, after, limit)
			if err != nil {
				return err
			}
			for _, one := range page {
				if one.Rev != 1 || len(one.Meta) != 1 || want[one.Meta[0]] != one.ID {
					return fmt.Errorf("identity %v comes with revision %d and another Meta", one.ID, one.Rev)
				}
				got = append(got, one.ID)
			}
			if len(page) < limit {
				break
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			return fmt.Errorf("Identities by %d (-want +got):\n%s", limit, d)
		}
	}
	return nil
}

func limits(e *env) error {
	val := bytes.Repeat([]byte{1}, storage.MaxValue)
	long := strings.Repeat("k", storage.MaxKey)
	puts := func(n int) (b storage.Batch) {
		for i := range n {
			b.Ops = append(b.Ops, storage.Op{Key: fmt.Sprint(i), Val: []byte{}})
		}
		return b
	}
	deletes := puts(storage.MaxOps + 1)
	for i := range deletes.Ops {
		deletes.Ops[i].Val = nil
	}
	big := storage.Batch{}
	for i := range storage.MaxBatch / storage.MaxValue {
		big.Ops = append(big.Ops, storage.Op{Key: fmt.Sprintf("%02d", i), Val: val[:storage.MaxValue-2]})
	}
	for _, c := range []struct {
		name string
		b    storage.Batch
		want error
	}{
		{"a key of 64 bytes", put(long, "v"), nil},
		{"a key of 65 bytes", put(long+"k", "v"), storage.ErrTooLarge},
		{"a key of 1 MB", put(strings.Repeat("k", 1<<20), "v"), storage.ErrTooLarge},
		{"an empty key", put("", "v"), storage.ErrInvalid},
		{"a key given twice", put("a", "1", "b", "2", "a", "3"), storage.ErrInvalid},
		{"the greatest value", storage.Batch{Ops: []storage.Op{{Key: "v", Val: val}}}, nil},
		{"a greater value", storage.Batch{Ops: []storage.Op{{Key: "v", Val: append(slices.Clip(val), 1)}}}, storage.ErrTooLarge},
		{"the greatest Meta", storage.Batch{Meta: val[:storage.MaxMeta]}, nil},
		{"a greater Meta", storage.Batch{Meta: val[:storage.MaxMeta+1]}, storage.ErrTooLarge},
		{"the most values", puts(storage.MaxPuts), nil},
		{"one value more", puts(storage.MaxPuts + 1), storage.ErrTooLarge},
		{"the most deletes", storage.Batch{Ops: deletes.Ops[:storage.MaxOps]}, nil},
		{"one delete more", deletes, storage.ErrTooLarge},
		{"the greatest batch", big, nil},
		{"a greater batch", storage.Batch{Meta: []byte{1}, Ops: big.Ops}, storage.ErrTooLarge},
	} {
		before, err := e.Get(e.ctx, id(1))
		if err != nil {
			return err
		}
		want := before.Rev + 1
		if c.want != nil {
			want = 0
		}
		if err := e.commits(id(1), before.Rev, c.b, want, c.want); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		after, err := e.Get(e.ctx, id(1))
		if err != nil || c.want != nil && after.Rev != before.Rev {
			return fmt.Errorf("%s reached the store, or %w", c.name, err)
		}
	}
	return errors.Join(e.readLimits(), e.bodyLimits())
}

func (e *env) readLimits() error {
	many := make([]string, storage.MaxKeys+1)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	get := func(keys ...string) error { _, err := e.Get(e.ctx, id(1), keys...); return err }
	list := func(after string, limit int) error { _, err := e.List(e.ctx, id(1), after, limit); return err }
	all := func(limit int) error { _, err := e.Identities(e.ctx, identity.ID{}, limit); return err }
	long := strings.Repeat("k", storage.MaxKey)
	return errors.Join(
		wants("Get of 256 keys", get(many[:storage.MaxKeys]...), nil),
		wants("Get of 257 keys", get(many...), storage.ErrTooLarge),
		wants("Get of a long key", get(long+"k"), storage.ErrTooLarge),
		wants("Get of an empty key", get(""), storage.ErrInvalid),
		wants("Get of one key twice", get("a", "b", "a"), storage.ErrInvalid),
		wants("List of 0", list("", 0), storage.ErrInvalid),
		wants("List of 1000 after a long key", list(long, storage.MaxLimit), nil),
		wants("List of 1001", list("", storage.MaxLimit+1), storage.ErrTooLarge),
		wants("List after a longer key", list(long+"k", 1), storage.ErrTooLarge),
		wants("Identities of 0", all(0), storage.ErrInvalid),
		wants("Identities of 1000", all(storage.MaxLimit), nil),
		wants("Identities of 1001", all(storage.MaxLimit+1), storage.ErrTooLarge),
	)
}

func (e *env) bodyLimits() error {
	body := []byte(`{"note":"` + strings.Repeat("x", storage.MaxBody-11) + `"}`)
	many := slices.Repeat([][]byte{[]byte(`{"v":1}`)}, storage.MaxBodies+1)
	app := func(bodies ...[]byte) error { _, err := e.Append(e.ctx, bodies...); return err }
	err := errors.Join(
		wants("the greatest body", app(body), nil),
		wants("a greater body", app(append([]byte(`{"x":1,`), body[1:]...)), storage.ErrTooLarge),
		wants("256 bodies", app(many[:storage.MaxBodies]...), nil),
		wants("257 bodies", app(many...), storage.ErrTooLarge),
		wants("no body", app(), storage.ErrInvalid),
		wants("a good and an empty body", app([]byte(`{"v":1}`), nil), storage.ErrInvalid),
		wants("an object without members", app([]byte(`{}`)), storage.ErrInvalid),
		wants("a body with a line feed", app([]byte("{\"v\":\n1}")), storage.ErrInvalid),
		wants("a body with a NUL", app([]byte("{\"v\":\"\x00\"}")), storage.ErrInvalid),
	)
	bodies, cerr := checkChain(e.ctx, e)
	if cerr == nil && len(bodies) != 1+storage.MaxBodies {
		cerr = fmt.Errorf("the log has %d lines, want %d", len(bodies), 1+storage.MaxBodies)
	}
	return errors.Join(err, cerr)
}

func wants(what string, err, want error) error {
	if !errors.Is(err, want) || (err == nil) != (want == nil) {
		return fmt.Errorf("%s: %v, want %v", what, err, want)
	}
	return nil
}

func cells(e *env) error {
	z := storage.Cell(bytes.Repeat([]byte{7}, 32))
	get := func(b storage.Backend, n byte) error {
		c, err := b.Cell(e.ctx, id(n))
		if err == nil && c != z {
			return errors.New("another cell came back")
		}
		return err
	}
	err := errors.Join(
		wants("Cell of nobody", get(e, 1), storage.ErrNoCell),
		wants("EraseCell of nobody", e.EraseCell(e.ctx, id(1)), storage.ErrNoCell),
		wants("PutCell", e.PutCell(e.ctx, id(1), z), nil),
		wants("Cell", get(e, 1), nil),
		wants("PutCell again", e.PutCell(e.ctx, id(1), storage.Cell{}), storage.ErrConflict),
		wants("Cell after a refused PutCell", get(e, 1), nil),
		wants("PutCell of the zero ID", e.PutCell(e.ctx, identity.ID{}, z), storage.ErrInvalid),
	)
	for n := byte(2); n < 80; n++ {
		err = errors.Join(err, wants("PutCell", e.PutCell(e.ctx, id(n), z), nil))
	}
	err = errors.Join(err,
		wants("EraseCell", e.EraseCell(e.ctx, id(1)), nil),
		wants("Cell after EraseCell", get(e, 1), storage.ErrErased),
		wants("EraseCell again", e.EraseCell(e.ctx, id(1)), nil),
		wants("PutCell after EraseCell", e.PutCell(e.ctx, id(1), z), storage.ErrErased),
	)
	again, rerr := e.h.Reopen(e.place)
	if rerr != nil {
		return rerr
	}
	err = errors.Join(err, wants("Cell after EraseCell, elsewhere", get(again, 1), storage.ErrErased))
	for n := byte(2); n < 80; n++ {
		err = errors.Join(err, wants("Cell elsewhere", get(again, n), nil))
	}
	if c := e.Erasure(); c < storage.InPlace || c > storage.Delayed {
		err = errors.Join(err, fmt.Errorf("Erasure() = %v", c))
	}
	return errors.Join(err, again.Close())
}

func ownership(e *env) error {
	meta, val := []byte("meta"), []byte("value")
	if err := e.commits(id(1), 0, storage.Batch{Meta: meta, Ops: []storage.Op{{Key: "k", Val: val}}}, 1, nil); err != nil {
		return err
	}
	clear(meta)
	clear(val)
	want := storage.Result{Rev: 1, Meta: []byte("meta"), Vals: map[string][]byte{"k": []byte("value")}}
	if err := e.sees(id(1), want, "k"); err != nil {
		return fmt.Errorf("after the arguments changed: %w", err)
	}
	r, err := e.Get(e.ctx, id(1), "k")
	if err != nil {
		return err
	}
	clear(r.Meta)
	clear(r.Vals["k"])
	p, err := e.List(e.ctx, id(1), "", 10)
	if err != nil || len(p.Items) != 1 {
		return fmt.Errorf("listing gives %d items, %w", len(p.Items), err)
	}
	clear(p.Items[0].Val)
	return e.sees(id(1), want, "k")
}

func closing(e *env) error {
	if err := e.commits(id(1), 0, storage.Batch{Meta: []byte("m")}, 1, nil); err != nil {
		return err
	}
	busy := make(chan error)
	for range 4 {
		go func() {
			for {
				if _, err := e.Append(e.ctx, []byte(`{"v":1}`)); err != nil {
					busy <- err
					return
				}
			}
		}()
	}
	err := errors.Join(e.Close(), e.Close())
	for range 4 {
		err = errors.Join(err, wants("a call during Close", <-busy, storage.ErrClosed))
	}
	get := func() error { _, err := e.Get(e.ctx, id(1)); return err }
	commit := func() error { _, err := e.Commit(e.ctx, id(1), 1, storage.Batch{}); return err }
	cell := func() error { _, err := e.Cell(e.ctx, id(1)); return err }
	lines := func() error {
		for _, err := range e.Lines(context.Background()) {
			return err
		}
		return nil
	}
	for name, f := range map[string]func() error{"Get": get, "Commit": commit, "Cell": cell, "Lines": lines} {
		err = errors.Join(err, wants(name+" after Close", f(), storage.ErrClosed))
	}
	return err
}

// sortedKeys returns the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
