package bolt_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// The tests of this file need a block device: an ext4 file system in a file,
// mounted over a loop device, which takes root. They are skipped without.

// device is an ext4 file system in a file.
type device struct {
	t     *testing.T
	image string
	node  string
	dir   string
}

func newDevice(t *testing.T, mib int) *device {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: mounting a file system needs root")
	}
	l := &device{t: t, image: filepath.Join(t.TempDir(), "image"), dir: t.TempDir()}
	write(t, l.image, nil)
	if err := os.Truncate(l.image, int64(mib)<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", l.image).CombinedOutput(); err != nil {
		t.Skipf("skipped: making an ext4 file system: %v %s", err, out)
	}
	out, err := exec.Command("losetup", "-f", "--show", l.image).Output()
	if err != nil {
		t.Skipf("skipped: attaching a loop device: %v", err)
	}
	l.node = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		_ = unix.Unmount(l.dir, unix.MNT_DETACH)
		_ = exec.Command("losetup", "-d", l.node).Run()
	})
	if err := unix.Mount(l.node, l.dir, "ext4", 0, ""); err != nil {
		t.Skipf("skipped: mounting ext4: %v", err)
	}
	return l
}

func (l *device) unmount() {
	l.t.Helper()
	if err := unix.Unmount(l.dir, 0); err != nil {
		l.t.Fatal(err)
	}
}

func (l *device) mount() {
	l.t.Helper()
	if err := unix.Mount(l.node, l.dir, "ext4", 0, ""); err != nil {
		l.t.Fatal(err)
	}
}

// sync writes the file system out.
func (l *device) sync() {
	l.t.Helper()
	d, err := os.Open(l.dir)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		l.t.Fatal(err)
	}
}

// raw returns every byte of the device.
func (l *device) raw() []byte {
	l.t.Helper()
	return read(l.t, l.node)
}

func found(raw []byte, secrets [][]byte) (n int) {
	for _, s := range secrets {
		if bytes.Contains(raw, s) {
			n++
		}
	}
	return n
}

// TestShreddedCellIsNowhereOnTheDevice searches the raw device. The control is
// what a database does: of values that bbolt deleted, copies are left.
func TestShreddedCellIsNowhereOnTheDevice(t *testing.T) {
	l := newDevice(t, 32)
	s, err := bolt.Create(filepath.Join(l.dir, "store"), patient())
	if err != nil {
		t.Fatal(err)
	}
	if s.Erasure() != storage.InPlace {
		t.Errorf("Erasure on ext4 = %v, want %v", s.Erasure(), storage.InPlace)
	}
	const n = 64
	var ids []identity.ID
	var cells [][]byte
	for range n {
		var z storage.Cell
		rand.Read(z[:])
		ids, cells = append(ids, identity.NewID()), append(cells, bytes.Clone(z[:]))
		if err := s.PutCell(t.Context(), ids[len(ids)-1], z); err != nil {
			t.Fatal(err)
		}
	}
	l.sync()
	if got := found(l.raw(), cells); got != n {
		t.Fatalf("%d of %d live cells are on the device, so this test shows nothing", got, n)
	}
	for _, id := range ids {
		if err := s.EraseCell(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	deleted := l.deleted(n)
	l.unmount()
	raw := l.raw()
	if got := found(raw, cells); got != 0 {
		t.Errorf("%d of %d erased cells are on the device", got, n)
	}
	left := found(raw, deleted)
	if left == 0 {
		t.Errorf("nothing is left of what bbolt deleted, so this test shows nothing")
	}
	t.Logf("of %d erased cells 0 are on the device; of %d values that bbolt deleted %d are", n, n, left)
}

// deleted stores and deletes n values in a plain bbolt database.
func (l *device) deleted(n int) (values [][]byte) {
	l.t.Helper()
	db, err := bbolt.Open(filepath.Join(l.dir, "plain.db"), 0o600, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	change := func(f func(b *bbolt.Bucket) error) {
		err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			return f(b)
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
	change(func(b *bbolt.Bucket) (err error) {
		for i := range n {
			v := make([]byte, 32)
			rand.Read(v)
			values = append(values, v)
			err = errors.Join(err, b.Put([]byte(strconv.Itoa(i)), v))
		}
		return err
	})
	change(func(b *bbolt.Bucket) (err error) {
		for i := range n {
			err = errors.Join(err, b.Delete([]byte(strconv.Itoa(i))))
		}
		return err
	})
	if err := db.Close(); err != nil {
		l.t.Fatal(err)
	}
	return values
}

const (
	ioctlShutdown   = 0x8004587d // FS_IOC_SHUTDOWN
	shutdownNoFlush = 2          // not even the journal is written
)

// cut takes the power away: what the file system has not written stays
// unwritten, and every later write fails.
func (l *device) cut() error {
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return unix.IoctlSetPointerInt(int(d.Fd()), ioctlShutdown, shutdownNoFlush)
}

// TestPowerCutLosesNothing cuts off a writer on a real file system, mounts it
// again and compares what is there with what the writer had acknowledged.
// SOLEKEY_POWER=N sets how many cuts, 40 in CI and 10000 by night. The control
// is a bbolt without syncs.
func TestPowerCutLosesNothing(t *testing.T) {
	cuts := 3
	if testing.Short() {
		cuts = 1
	}
	cuts = number(t, "SOLEKEY_POWER", cuts)
	l := newDevice(t, 64)
	lost, acked := l.cuts(cuts, "sync")
	t.Logf("%d cuts, %d acknowledged changes, %d cuts lost some", cuts, acked, lost)
	if lost > 0 {
		t.Errorf("%d of %d cuts lost acknowledged changes", lost, cuts)
	}
	control := newDevice(t, 64)
	lost, _ = control.cuts(3, "nosync")
	t.Logf("without syncs %d of 3 cuts lost some", lost)
	if lost == 0 {
		t.Error("without syncs nothing is lost, so this test shows nothing")
	}
}

// cuts runs a writer and cuts it off, n times.
func (l *device) cuts(n int, how string) (lost, acked int) {
	l.t.Helper()
	dir := filepath.Join(l.dir, "store")
	s, err := bolt.Create(dir, patient())
	if err != nil {
		l.t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.sync()
	for range n {
		last := l.oneCut(dir, how)
		acked = max(acked, last)
		if err := survived(l.t.Context(), dir, how, last); err != nil {
			lost++
			if how == "sync" {
				l.t.Errorf("%d acknowledged: %v", last, err)
			} else {
				l.unmount() // what is left is no store any more
				if out, err := exec.Command("mkfs.ext4", "-q", "-F", l.node).CombinedOutput(); err != nil {
					l.t.Fatalf("%v %s", err, out)
				}
				l.mount()
				s, err := bolt.Create(dir, patient())
				if err != nil {
					l.t.Fatal(err)
				}
				_ = s.Close()
				l.sync()
			}
		}
	}
	return lost, acked
}

// oneCut returns the last change that was acknowledged.
func (l *device) oneCut(dir, how string) (last int) {
	l.t.Helper()
	var b [1]byte
	rand.Read(b[:])
	p := start(l.t, "power", dir, how)
	sc := bufio.NewScanner(p.Out)
	for n := 0; n < 3+int(b[0])/4 && sc.Scan(); n++ {
		last, _ = strconv.Atoi(sc.Text())
	}
	if err := l.cut(); err != nil {
		_ = p.Kill()
		_ = p.Wait()
		l.t.Skipf("skipped: this kernel cannot shut down a file system: %v", err)
	}
	_ = p.Kill()
	for sc.Scan() { // what was acknowledged before it heard of the cut
		if n, err := strconv.Atoi(sc.Text()); err == nil {
			last = n
		}
	}
	_ = p.Wait()
	l.unmount()
	l.mount()
	return last
}

// powerChild commits, appends, stores and erases, and prints the number of
// each round once all of it is acknowledged.
func powerChild(dir, how string, out io.Writer) error {
	o := patient()
	if how == "nosync" {
		o = bolt.Hooked(o, func(bolt.ChangeKind, string, int64, []byte) error { return nil }, func(db *bbolt.DB) { db.NoSync = true })
	}
	s, err := bolt.Open(dir, o)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	ctx := context.Background()
	res, err := s.Get(ctx, identity.ID{1}, "n")
	if err != nil {
		return err
	}
	rev := res.Rev
	for n := roundOf(res) + 1; ; n++ {
		if err := powerRound(ctx, s, how, n); err != nil {
			return err
		}
		val := bytes.Repeat(binary.BigEndian.AppendUint64(nil, uint64(n)), 100)
		if rev, err = s.Commit(ctx, identity.ID{1}, rev, storage.Batch{Ops: []storage.Op{{Key: "n", Val: val}}}); err != nil {
			return err
		}
		fmt.Fprintln(out, n)
	}
}

func roundOf(r storage.Result) int {
	if v := r.Vals["n"]; len(v) >= 8 {
		return int(binary.BigEndian.Uint64(v))
	}
	return 0
}

// powerRound is what comes before the commit of round n.
func powerRound(ctx context.Context, s *bolt.Store, how string, n int) error {
	if how == "nosync" { // nothing else that could make bbolt's writes durable
		return nil
	}
	if _, err := s.Append(ctx, fmt.Appendf(nil, `{"n":%d}`, n)); err != nil {
		return err
	}
	id := powerID(n)
	if err := s.PutCell(ctx, id, storage.Cell{1}); err != nil && !errors.Is(err, storage.ErrConflict) {
		return err
	}
	if n%2 == 0 {
		return s.EraseCell(ctx, id)
	}
	return nil
}

func powerID(n int) (id identity.ID) {
	binary.BigEndian.PutUint64(id[:], uint64(n)+1000)
	return id
}

// survived compares a store with the last round that was acknowledged.
func survived(ctx context.Context, dir, how string, last int) error {
	s, err := bolt.Open(dir, patient())
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if err := s.Check(ctx); err != nil {
		return err
	}
	res, err := s.Get(ctx, identity.ID{1}, "n")
	if err != nil {
		return err
	}
	if got := roundOf(res); got < last {
		return fmt.Errorf("vault.db is at round %d, %d was acknowledged", got, last)
	}
	if how == "nosync" {
		return nil
	}
	want := []byte(fmt.Sprintf(`"n":%d}`, last))
	written := last == 0
	for line, err := range s.Lines(ctx) {
		if err != nil {
			return err
		}
		written = written || bytes.HasSuffix(line, want)
	}
	if !written {
		return fmt.Errorf("the line of round %d is lost", last)
	}
	for n := max(1, last-5); n <= last; n++ {
		_, err := s.Cell(ctx, powerID(n))
		if n%2 == 0 && !errors.Is(err, storage.ErrErased) || n%2 == 1 && err != nil {
			return fmt.Errorf("the cell of round %d: %w", n, err)
		}
	}
	return nil
}
