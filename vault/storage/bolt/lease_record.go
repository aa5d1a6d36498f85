package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Failure flags in the holder record. They outlive turns and processes until
// they are cleared. The lease keeps them; open decides what they forbid.
const (
	flagIO    uint32 = 1 << 0 // a write or sync failed: a later sync that succeeds proves nothing
	flagPanic uint32 = 1 << 1 // a write panicked: the store is opened read-only
)

// flags returns the failure flags as of the latest turn. During open they are
// those the turn began with.
func (l *lease) flags() uint32 { return l.bits.Load() }

// mark sets failure flags in the holder record, durably. Later turns keep
// them, in every process.
func (l *lease) mark(flag uint32) error {
	l.bits.Or(flag)
	return l.amend(func(old uint32) uint32 { return old | flag })
}

// clear removes all failure flags.
func (l *lease) clear() error {
	return l.amend(func(uint32) uint32 { return 0 })
}

// amend changes the flags under the turn this process has, or under a short
// one of its own without open.
func (l *lease) amend(change func(uint32) uint32) error {
	l.mu.Lock()
	if t := l.turn; t != nil {
		defer l.mu.Unlock()
		return l.rewrite(t.lock, change)
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), l.o.TurnTimeout)
	defer cancel()
	q, err := l.poll(ctx, l.queue)
	if err != nil {
		return err
	}
	defer letGo(q)
	f, err := l.poll(ctx, l.path)
	if err != nil {
		return err
	}
	defer letGo(f)
	return l.rewrite(f, change)
}

// poll locks the file at path within ctx.
func (l *lease) poll(ctx context.Context, path string) (*os.File, error) {
	f, err := openLock(path)
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		got, err := flock(f, false, false)
		if got {
			return f, nil
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, l.unavailable()
		case <-ticker.C:
		}
	}
}

// rewrite changes the flags in the record of the locked file f. Any name in
// it stays, so that its owner still learns whether the turn was foreign.
func (l *lease) rewrite(f *os.File, change func(uint32) uint32) error {
	rec, err := readRecord(f)
	if err != nil {
		return fmt.Errorf("reading the holder record: %w", err)
	}
	rec.flags = change(rec.flags)
	if err := writeRecord(f, rec); err != nil {
		return fmt.Errorf("writing the holder record: %w", err)
	}
	l.bits.Store(rec.flags)
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing the holder record: %w", err)
	}
	return nil
}

// holderRecord is what the file lock says: who took the last turn, and when.
type holderRecord struct {
	instance [16]byte
	pid      uint32
	flags    uint32
	since    uint64 // Unix nanoseconds
}

const recordSize = 32

// sign returns the record of a turn of this lease that begins now.
func (l *lease) sign(flags uint32) holderRecord {
	return holderRecord{instance: l.instance, pid: uint32(os.Getpid()), flags: flags, since: uint64(time.Now().UnixNano())}
}

// readRecord reads the record; of a file that is too short, the zero one.
func readRecord(f *os.File) (holderRecord, error) {
	var b [recordSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return holderRecord{}, nil
		}
		return holderRecord{}, err
	}
	return holderRecord{
		instance: [16]byte(b[:16]),
		pid:      binary.BigEndian.Uint32(b[16:]),
		flags:    binary.BigEndian.Uint32(b[20:]),
		since:    binary.BigEndian.Uint64(b[24:]),
	}, nil
}

// writeRecord writes the record in one piece.
func writeRecord(f *os.File, r holderRecord) error {
	b := make([]byte, 0, recordSize)
	b = append(b, r.instance[:]...)
	b = binary.BigEndian.AppendUint32(b, r.pid)
	b = binary.BigEndian.AppendUint32(b, r.flags)
	b = binary.BigEndian.AppendUint64(b, r.since)
	_, err := f.WriteAt(b, 0)
	return err
}

// readHolder reads the record through a descriptor of its own, as the turn's
// may be busy.
func readHolder(path string) (holderRecord, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow|noBlock, 0)
	if err != nil {
		return holderRecord{}, err
	}
	defer f.Close()
	return readRecord(f)
}

// at reports whether the file at path is the one that fi describes.
func at(fi os.FileInfo, path string) bool {
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(fi, there)
}
