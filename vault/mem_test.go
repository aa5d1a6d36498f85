package vault_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// memory is an engine without durability, for tests of the rules above the
// seam. Hooks let a test fail or delay one call. The real engine is tested
// where it lives, and end to end through the binary.
type memory struct {
	mu    sync.Mutex
	ids   map[identity.ID]*memIdentity
	cells map[identity.ID]storage.Cell
	dead  map[identity.ID]bool
	lines [][]byte

	appendErr  error        // what Append returns, if not nil
	appendHook func()       // runs before a line is written, or is not
	afterLine  func()       // runs after a line is written, without the lock
	commitHook func() error // runs before a commit, without the lock
	eraseHook  func() error // runs before an erasure, without the lock
	commits    int
}

type memIdentity struct {
	rev  storage.Rev
	meta []byte
	vals map[string][]byte
}

var _ storage.Backend = (*memory)(nil)

func newMemory() *memory {
	return &memory{ids: map[identity.ID]*memIdentity{}, cells: map[identity.ID]storage.Cell{}, dead: map[identity.ID]bool{}}
}

// clone is a copy of everything that a thief of the files would get.
func (m *memory) clone() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := newMemory()
	for id, i := range m.ids {
		c.ids[id] = &memIdentity{i.rev, slices.Clone(i.meta), maps.Clone(i.vals)}
	}
	maps.Copy(c.cells, m.cells)
	maps.Copy(c.dead, m.dead)
	c.lines = slices.Clone(m.lines)
	return c
}

func (m *memory) Get(ctx context.Context, id identity.ID, keys ...string) (storage.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(ctx.Err(), storage.CheckRead(keys...)); err != nil {
		return storage.Result{}, err
	}
	i := m.ids[id]
	if i == nil {
		return storage.Result{}, nil
	}
	res := storage.Result{Rev: i.rev, Meta: slices.Clone(i.meta), Vals: map[string][]byte{}}
	for _, k := range keys {
		if v, ok := i.vals[k]; ok {
			res.Vals[k] = slices.Clone(v)
		}
	}
	return res, nil
}

func (m *memory) List(_ context.Context, id identity.ID, after string, limit int) (storage.Page, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.ids[id]
	if i == nil {
		return storage.Page{}, nil
	}
	p := storage.Page{Rev: i.rev}
	for _, k := range slices.Sorted(maps.Keys(i.vals)) {
		if k <= after {
			continue
		}
		if len(p.Items) == limit {
			p.More = true
			break
		}
		p.Items = append(p.Items, storage.Item{Key: k, Val: slices.Clone(i.vals[k])})
	}
	return p, nil
}

func (m *memory) Identities(_ context.Context, after identity.ID, limit int) ([]storage.Ident, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []storage.Ident
	for id, i := range m.ids {
		if string(id[:]) > string(after[:]) {
			out = append(out, storage.Ident{ID: id, Rev: i.rev, Meta: slices.Clone(i.meta)})
		}
	}
	slices.SortFunc(out, func(a, b storage.Ident) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return out[:min(limit, len(out))], nil
}

func (m *memory) Commit(ctx context.Context, id identity.ID, ifRev storage.Rev, b storage.Batch) (storage.Rev, error) {
	if m.commitHook != nil {
		if err := m.commitHook(); err != nil {
			return 0, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(ctx.Err(), storage.CheckBatch(b)); err != nil {
		return 0, err
	}
	i := m.ids[id]
	if i == nil {
		i = &memIdentity{vals: map[string][]byte{}}
	}
	if i.rev != ifRev {
		return 0, storage.ErrConflict
	}
	m.ids[id] = i
	i.rev++
	m.commits++
	if b.Meta != nil {
		i.meta = slices.Clone(b.Meta)
	}
	for _, op := range b.Ops {
		if op.Val == nil {
			delete(i.vals, op.Key)
		} else {
			i.vals[op.Key] = slices.Clone(op.Val)
		}
	}
	return i.rev, nil
}

func (m *memory) Close() error { return nil }

func (m *memory) Cell(_ context.Context, id identity.ID) (storage.Cell, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead[id] {
		return storage.Cell{}, storage.ErrErased
	}
	c, ok := m.cells[id]
	if !ok {
		return storage.Cell{}, storage.ErrNoCell
	}
	return c, nil
}

func (m *memory) PutCell(_ context.Context, id identity.ID, c storage.Cell) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cells[id] = c
	return nil
}

func (m *memory) EraseCell(_ context.Context, id identity.ID) error {
	if m.eraseHook != nil {
		if err := m.eraseHook(); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.cells, id)
	m.dead[id] = true
	return nil
}

func (m *memory) Erasure() storage.Class { return storage.InPlace }

func (m *memory) Append(ctx context.Context, bodies ...[]byte) (uint64, error) {
	if m.appendHook != nil {
		m.appendHook()
	}
	if err := errors.Join(ctx.Err(), m.appendErr, storage.CheckBodies(bodies...)); err != nil {
		return 0, err
	}
	m.mu.Lock()
	first := uint64(len(m.lines))
	for _, b := range bodies {
		var prev [32]byte
		if n := len(m.lines); n > 0 {
			prev = sha256.Sum256(m.lines[n-1])
		}
		m.lines = append(m.lines, fmt.Appendf(nil, `{"seq":%d,"prev":"%s",%s`, len(m.lines), hex.EncodeToString(prev[:]), b[1:]))
	}
	m.mu.Unlock()
	if m.afterLine != nil {
		m.afterLine()
	}
	return first, nil
}

func (m *memory) Lines(context.Context) iter.Seq2[[]byte, error] {
	m.mu.Lock()
	lines := slices.Clone(m.lines)
	m.mu.Unlock()
	return func(yield func([]byte, error) bool) {
		for _, l := range lines {
			if !yield(slices.Clone(l), nil) {
				return
			}
		}
	}
}

func (m *memory) Head(context.Context) (storage.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := storage.Head{Lines: uint64(len(m.lines))}
	if len(m.lines) > 0 {
		h.Hash = sha256.Sum256(m.lines[len(m.lines)-1])
	}
	return h, nil
}
