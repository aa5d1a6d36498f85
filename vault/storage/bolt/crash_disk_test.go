package bolt_test

import (
	"bytes"
	"errors"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/vault/storage/bolt"
)

// The disk of the crash harness. A tape records every change of a file that
// the engine asks for, in the order of its asking. A disk plays a tape up to a
// cut and knows what is durable there and what is pending; draw makes one of
// the states that a power cut may leave:
//
//   - What was synced is there. Of the writes and truncations of a file since
//     its last sync any subset is, whatever their order, and independently of
//     other files.
//   - A write reaches the disk in sectors of 512 bytes, in pages of 4096, or
//     torn at any byte: old bytes behind new ones.
//   - A file that grew may have its new size without its bytes, which then
//     read as zeros.
//   - A rename is there or not until the directory was synced, each on its own.
//
// bbolt v1.5.0 writes data pages, syncs, writes a meta page, syncs, unless
// NoSync is set; it syncs a file that it has grown. Those syncs cannot be
// hooked, so the tape writes them down where that version makes them;
// TestRecorderKnowsBbolt fails for another version. That they do reach the
// kernel is what TestPowerCutLosesNothing shows.

// event is one change on a tape.
type event struct {
	kind bolt.ChangeKind
	name string // of the file, without its directory
	off  int64
	data []byte
}

type tape struct {
	mu     sync.Mutex
	events []event
	noSync bool // bbolt runs without syncs, as a control
	size   int64
}

// options returns options of a store that is recorded.
func (t *tape) options() bolt.Options { return bolt.Hooked(patient(), t.change, t.opened) }

func (t *tape) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.events)
}

// wrote reports whether something was written to the file.
func (t *tape) wrote(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.events, func(e event) bool { return e.kind == bolt.ChangeWrite && e.name == name })
}

func (t *tape) add(es ...event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, es...)
}

func (t *tape) change(kind bolt.ChangeKind, path string, off int64, data []byte) error {
	e := event{kind: kind, name: filepath.Base(path), off: off, data: bytes.Clone(data)}
	if kind == bolt.ChangeSync && strings.HasSuffix(path, bolt.NewSuffix) {
		b, err := os.ReadFile(path) // its writes are not hooked: they matter as a whole
		if err != nil {
			return err
		}
		t.add(event{kind: bolt.ChangeWrite, name: e.name, data: b})
	}
	if kind == bolt.ChangeSync && e.name == "vault.db"+bolt.NewSuffix {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		t.size = info.Size()
	}
	t.add(e)
	return nil
}

// opened takes the place of the function with which bbolt writes.
func (t *tape) opened(db *bbolt.DB) {
	db.NoSync = t.noSync
	writeAt := bboltWriteAt(db)
	real := *writeAt
	page := int64(db.Info().PageSize)
	synced := event{kind: bolt.ChangeSync, name: "vault.db"}
	*writeAt = func(b []byte, off int64) (int, error) {
		info, err := os.Stat(db.Path())
		if err != nil {
			return 0, err
		}
		if info.Size() > t.size {
			t.size = info.Size()
			t.add(event{kind: bolt.ChangeTruncate, name: "vault.db", off: t.size}, synced)
		}
		e := event{kind: bolt.ChangeWrite, name: "vault.db", off: off, data: bytes.Clone(b)}
		switch {
		case off >= 2*page || db.NoSync:
			t.add(e)
		default:
			t.add(synced, e, synced)
		}
		return real(b, off)
	}
}

// bboltWriteAt returns the field in which bbolt keeps its way to write.
func bboltWriteAt(db *bbolt.DB) *func(b []byte, off int64) (int, error) {
	f := reflect.ValueOf(db).Elem().FieldByName("ops").FieldByName("writeAt")
	if f.Type() != reflect.TypeFor[func(b []byte, off int64) (int, error)]() {
		panic("bbolt keeps writeAt elsewhere")
	}
	return (*func(b []byte, off int64) (int, error))(f.Addr().UnsafePointer())
}

// content is the bytes of a file. Behind data it is zeros up to size.
type content struct {
	data []byte
	size int64
}

func (c *content) write(b []byte, off int64) {
	end := off + int64(len(b))
	if end > int64(len(c.data)) {
		c.data = append(c.data, make([]byte, end-int64(len(c.data)))...)
	}
	copy(c.data[off:], b)
	c.size = max(c.size, end)
}

func (c *content) truncate(size int64) {
	c.data = c.data[:min(int64(len(c.data)), size)]
	c.size = size
}

func (c *content) apply(e event) {
	if e.kind == bolt.ChangeTruncate {
		c.truncate(e.off)
		return
	}
	c.write(e.data, e.off)
}

func (c *content) clone() *content { return &content{data: bytes.Clone(c.data), size: c.size} }

// inode is a file on the disk: what is durable of it and what is pending.
type inode struct {
	durable content
	pending []event
}

// disk is a tape played up to a cut.
type disk struct {
	names   map[string]*inode // durable names
	open    map[string]*inode // names as the running system sees them
	renames []string          // pending
}

func newDisk(base state) *disk {
	d := &disk{names: make(map[string]*inode), open: make(map[string]*inode)}
	for name, c := range base {
		d.names[name] = &inode{durable: *c.clone()}
	}
	maps.Copy(d.open, d.names)
	return d
}

func (d *disk) inode(name string) *inode {
	if d.open[name] == nil {
		d.open[name] = &inode{}
	}
	return d.open[name]
}

func (d *disk) play(e event) {
	switch e.kind {
	case bolt.ChangeWrite, bolt.ChangeTruncate:
		i := d.inode(e.name)
		i.pending = append(i.pending, e)
	case bolt.ChangeSync:
		i := d.inode(e.name)
		for _, p := range i.pending {
			i.durable.apply(p)
		}
		i.pending = nil
	case bolt.ChangeRename:
		d.open[e.name] = d.inode(e.name + bolt.NewSuffix)
		delete(d.open, e.name+bolt.NewSuffix)
		d.renames = append(d.renames, e.name)
	case bolt.ChangeSyncDir:
		for _, name := range d.renames {
			d.names[name] = d.open[name]
		}
		d.renames = nil
	}
}

// state is what a cut leaves, by name.
type state map[string]*content

// hash tells states apart.
func (s state) hash(seed maphash.Seed) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, name := range slices.Sorted(maps.Keys(s)) {
		_, _ = h.WriteString(name)
		_, _ = h.Write(s[name].data)
		maphash.WriteComparable(&h, s[name].size)
	}
	return h.Sum64()
}

// The ways to leave what is pending.
const (
	drawNone    = iota // nothing of it is there
	drawAll            // all of it
	drawDropOne        // all but one
	drawKeepOne        // one
	drawSubset         // any subset
	drawSectors        // any sectors of any of it
	drawPages          // any pages of any of it
	drawTorn           // any subset, one write of it torn at a byte
	drawTornEnd        // what came first, and the last write torn at a byte
	drawWays
)

// draw makes one state that a cut may leave.
func (d *disk) draw(r *rand.Rand) state {
	way := r.IntN(drawWays)
	out := make(state)
	names := maps.Clone(d.names)
	for _, name := range d.renames {
		if way == drawAll || way != drawNone && r.IntN(2) == 0 {
			names[name] = d.open[name]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		i := names[name]
		c := i.durable.clone()
		if len(i.pending) > 0 {
			if r.IntN(4) == 0 { // files go their own ways
				i.draw(r, c, r.IntN(drawWays))
			} else {
				i.draw(r, c, way)
			}
		}
		out[name] = c
	}
	return out
}

func (i *inode) draw(r *rand.Rand, c *content, way int) {
	one := r.IntN(len(i.pending))
	for n, e := range i.pending {
		switch way {
		case drawNone:
		case drawAll:
			c.apply(e)
		case drawDropOne:
			if n != one {
				c.apply(e)
			}
		case drawKeepOne:
			if n == one {
				c.apply(e)
			}
		case drawSubset:
			if r.IntN(2) == 0 {
				c.apply(e)
			}
		case drawSectors:
			c.applyParts(r, e, 512)
		case drawPages:
			c.applyParts(r, e, 4096)
		case drawTorn:
			if n == one {
				c.tear(r, e)
			} else if r.IntN(2) == 0 {
				c.apply(e)
			}
		case drawTornEnd:
			if n == len(i.pending)-1 {
				c.tear(r, e)
			} else {
				c.apply(e)
			}
		}
	}
	if r.IntN(4) == 0 { // the size came through, the bytes did not
		for _, e := range i.pending {
			if e.kind == bolt.ChangeWrite {
				c.size = max(c.size, e.off+int64(len(e.data)))
			}
		}
	}
}

// applyParts applies any of the aligned parts of a write.
func (c *content) applyParts(r *rand.Rand, e event, part int64) {
	if e.kind == bolt.ChangeTruncate {
		if r.IntN(2) == 0 {
			c.apply(e)
		}
		return
	}
	end := e.off + int64(len(e.data))
	for at := e.off; at < end; {
		next := min((at/part+1)*part, end)
		if r.IntN(2) == 0 {
			c.write(e.data[at-e.off:next-e.off], at)
		}
		at = next
	}
}

// tear applies the beginning of a write.
func (c *content) tear(r *rand.Rand, e event) {
	if e.kind == bolt.ChangeTruncate {
		return
	}
	n := r.IntN(len(e.data) + 1)
	if r.IntN(2) == 0 {
		n = min(n, r.IntN(160)) // where the fields of metas, headers and rows are
	}
	if n > 0 {
		c.write(e.data[:n], e.off)
	}
}

// restore makes dir hold the state and nothing else. Files are written over,
// which is quicker than making them.
func (s state) restore(dir string) error {
	all, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range all {
		if s[e.Name()] != nil || e.Name() == "reserve" { // the reserve holds nothing
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for name, c := range s {
		if err := c.restore(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (c *content) restore(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(c.data, 0)
	return errors.Join(err, f.Truncate(int64(len(c.data))), f.Truncate(c.size), f.Close())
}
