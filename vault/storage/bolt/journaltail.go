package bolt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/solekey/solekey/vault/storage"
)

// How the end of the log is found. audit.head holds the mark: how many lines
// were acknowledged, the hash of the last one and where it ends. It is written
// in place after each sync and never synced itself, so after a power cut it is
// behind the lines, never ahead of them; lines that chain on from it are fine.
// A log that ends before its mark, or reads otherwise there, was changed from
// outside, and the next line says so.
//
// The mark has two copies of one sector each, written in turn, so a torn write
// leaves the one before. The valid copy with the greater serial counts. A file
// without a valid copy was made by no crash: the next line says that, too.

const (
	headName  = "audit.head"
	headMagic = "SOLEHEAD"
	copySize  = 512 // magic 8 | ver u8 | 7 zeros | serial u64 | lines u64 | end u64 | hash 32 | zeros | SHA-256 of all before
	copyBody  = copySize - sha256.Size
	copies    = 2

	tailWindow = 4 << 10 // holds a whole line, whatever stands before it
	tornWindow = 2 << 20 // more than one group can leave behind
	maxStrange = 1 << 10 // lines from outside that are looked through
)

// mark is the mark of a log.
type mark struct {
	serial uint64 // counts the marks that were written
	lines  uint64
	hash   [32]byte
	end    int64 // where the last marked line ends
}

func (m *mark) encode() []byte {
	b := make([]byte, copySize)
	copy(b, headMagic)
	b[8] = 1
	binary.BigEndian.PutUint64(b[16:], m.serial)
	binary.BigEndian.PutUint64(b[24:], m.lines)
	binary.BigEndian.PutUint64(b[32:], uint64(m.end))
	copy(b[40:], m.hash[:])
	sum := sha256.Sum256(b[:copyBody])
	copy(b[copyBody:], sum[:])
	return b
}

// decodeMark returns ok false for bytes that are no mark.
func decodeMark(b []byte) (m mark, ok bool) {
	if len(b) != copySize || string(b[:8]) != headMagic || binary.BigEndian.Uint64(b[8:]) != 1<<56 {
		return mark{}, false
	}
	if sha256.Sum256(b[:copyBody]) != [32]byte(b[copyBody:]) {
		return mark{}, false
	}
	m = mark{
		serial: binary.BigEndian.Uint64(b[16:]),
		lines:  binary.BigEndian.Uint64(b[24:]),
		end:    int64(binary.BigEndian.Uint64(b[32:])),
		hash:   [32]byte(b[40:72]),
	}
	for _, c := range b[72:copyBody] {
		if c != 0 {
			return mark{}, false
		}
	}
	return m, m.end >= 0
}

// markFile is audit.head in use.
type markFile struct {
	f       *file
	mark          // the newest one this process knows
	known   bool  // there is one
	unknown bool  // the file holds no valid copy
	at      int64 // which copy of the file is the newest
	log     *slog.Logger
}

// createJournal makes an empty log and its mark.
func createJournal(hooks *hooks, dir string) error {
	err := hooks.replace(filepath.Join(dir, headName), func(f *os.File) error {
		one := (&mark{serial: 1}).encode()
		_, err := f.Write(append(one, one...))
		return err
	})
	if err != nil {
		return err
	}
	return hooks.replace(filepath.Join(dir, auditName), func(*os.File) error { return nil })
}

// openMark opens audit.head. If it is missing, an empty one takes its place.
func openMark(dir string, hooks *hooks, log *slog.Logger) (*markFile, error) {
	path := filepath.Join(dir, headName)
	f, err := hooks.open(path, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = hooks.open(path, os.O_CREATE|os.O_EXCL)
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w: %w", headName, err, storage.ErrUnavailable)
	}
	return &markFile{f: f, log: log}, nil
}

// load reads the mark. One that is older than the mark this process knows does
// not count: the file went back, or a write to it failed. A store that was
// repaired has a file of its own, whose serial says nothing, and more lines.
func (m *markFile) load() {
	b := make([]byte, copies*copySize)
	n, _ := m.f.ReadAt(b, 0)
	clear(b[n:])
	var newest mark
	m.unknown = true
	valid := 0
	for i := range int64(copies) {
		c, ok := decodeMark(b[i*copySize : (i+1)*copySize])
		if !ok {
			continue
		}
		valid++
		if m.unknown || c.serial > newest.serial {
			newest, m.at, m.unknown = c, i, false
		}
	}
	if m.unknown || m.known && newest.serial < m.serial && newest.lines <= m.lines {
		return
	}
	m.mark, m.known = newest, true
	if valid < copies {
		m.heal()
	}
}

// heal makes both copies say the mark. A crash tore one of them, and the next
// crash could tear the other before a mark is durable again.
func (m *markFile) heal() {
	_, err := m.f.WriteAt(m.encode(), (m.at+1)%copies*copySize)
	if err == nil {
		err = m.f.datasync()
	}
	if err != nil {
		m.log.Warn("healing audit.head", slog.Any("error", err))
	}
}

// store writes the mark for the end of the log over the older copy. A mark
// that cannot be written is behind, which is allowed.
func (m *markFile) store(t *tail) error {
	m.mark = mark{serial: m.serial + 1, lines: t.next, hash: t.prev, end: t.size}
	m.known = true
	at := (m.at + 1) % copies
	if _, err := m.f.WriteAt(m.encode(), at*copySize); err != nil {
		return fmt.Errorf("writing %s: %w", headName, err)
	}
	m.at, m.unknown = at, false
	return nil
}

// head returns the mark as callers see it.
func (m *markFile) head() storage.Head {
	return storage.Head{Lines: m.lines, Hash: m.hash, Unknown: m.unknown}
}

func (m *markFile) close() error {
	if m == nil || m.f == nil {
		return nil
	}
	return m.f.Close()
}

// ready makes sure that the open file is the log and that tail is its end.
// Each group calls it, so it costs one look at the path.
func (j *journal) ready() error {
	path := filepath.Join(j.dir, auditName)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) && j.resumeSwitch() == nil {
		info, err = os.Lstat(path)
	}
	if err != nil {
		j.valid = false
		return journalOpenError(err)
	}
	if err := checkInfo(info); err != nil {
		j.valid = false
		return fmt.Errorf("%s %w: %w", auditName, err, storage.ErrUnavailable)
	}
	same := j.f != nil && os.SameFile(j.info, info)
	if same && j.valid && !j.foreign.Load() && info.Size() == j.tail.size+j.tail.torn {
		return nil
	}
	if err := j.open(path, same); err != nil {
		j.valid = false
		return err
	}
	return nil
}

// open opens what is not open and finds the end of the log.
func (j *journal) open(path string, same bool) error {
	if !same {
		if j.f != nil {
			_ = j.f.Close()
			j.f = nil
		}
		f, err := j.hooks.open(path, 0)
		if err != nil {
			return journalOpenError(err)
		}
		j.f, j.patience = f, 0
	}
	info, err := j.f.Stat()
	if err != nil {
		return journalOpenError(err)
	}
	j.info = info
	if err := j.openMark(); err != nil {
		return err
	}
	j.mark.load()
	if j.tail, err = findTail(j.f, info.Size(), j.mark, olderEnd(j.dir)); err != nil {
		return fmt.Errorf("reading the end of %s: %w: %w", auditName, err, storage.ErrUnavailable)
	}
	j.valid = true
	j.foreign.Store(false)
	return nil
}

// openMark makes sure that the open mark is the file at its path. What is known
// of the one before holds for the one that took its place, unless the whole
// directory is another one: a repaired store took its name.
func (j *journal) openMark() error {
	if j.mark != nil {
		a, err := j.mark.f.Stat()
		b, err2 := os.Lstat(filepath.Join(j.dir, headName))
		if err == nil && err2 == nil && os.SameFile(a, b) {
			return nil
		}
	}
	m, err := openMark(j.dir, j.hooks, j.log)
	if err != nil {
		return err
	}
	home, err := os.Stat(j.dir)
	if err != nil {
		return errors.Join(faultError("opening the directory of "+headName, err), m.close())
	}
	if j.mark != nil {
		if os.SameFile(home, j.home) {
			m.mark, m.known = j.mark.mark, j.mark.known
		}
		_ = j.mark.close()
	}
	j.mark, j.home = m, home
	return nil
}

func journalOpenError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errLogMissing
	}
	return faultError("opening "+auditName, err)
}

// errLogMissing reports a log that was removed. A new one would hide that.
var errLogMissing = fmt.Errorf("the log %s is missing; put it back, from a backup if need be: %w", auditName, storage.ErrUnavailable)

// findTail finds the end of a log of the given size.
func findTail(f io.ReaderAt, size int64, m *markFile, older func() ([]byte, error)) (tail, error) {
	here := m.known && m.end <= size && holds(f, m)
	if here && m.end == size {
		return tail{size: size, next: m.lines, prev: m.hash, gap: m.unknown}, nil
	}
	from := max(0, size-tornWindow)
	if here {
		from = max(from, m.end)
	}
	sound := here || m.known && continues(f, m)
	end, err := cleanEnd(f, from, size)
	if err != nil {
		return tail{}, err
	}
	t, err := endOfLines(f, end, older)
	if err != nil {
		return tail{}, err
	}
	t.torn = size - t.size
	if m.unknown || !sound {
		t.gap = true
	}
	if m.known && !sound && t.next < m.lines {
		t.lost = m.lines - t.next
	}
	return t, nil
}

// holds reports whether the line that ends at the mark is the marked one.
func holds(f io.ReaderAt, m *markFile) bool {
	if m.end == 0 {
		return true
	}
	line, end, err := lastLine(f, m.end)
	return err == nil && end == m.end && sha256.Sum256(line) == m.hash
}

// continues reports whether f begins right behind the marked line, which is
// the last one of the file before.
func continues(f io.ReaderAt, m *markFile) bool {
	seq, prev, ok := firstLine(f)
	return ok && seq > 0 && seq == m.lines && prev == m.hash
}

// cleanEnd returns where the bytes of f from from to size stop to be text: at
// the first NUL, which a crash leaves where a write never arrived, else at
// size.
func cleanEnd(f io.ReaderAt, from, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for at := from; at < size; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if i := bytes.IndexByte(buf[:n], 0); i >= 0 {
			return at + int64(i), nil
		}
		if at += int64(n); err != nil && n == 0 {
			return 0, err
		}
	}
	return size, nil
}

// endOfLines describes the last line that ends at or before end. Lines that
// are none of ours were put there from outside: they count as lines, so that
// the chain covers them, and as a gap.
func endOfLines(f io.ReaderAt, end int64, older func() ([]byte, error)) (tail, error) {
	line, at, err := lastLine(f, end)
	if err != nil {
		return tail{}, err
	}
	t := tail{size: at}
	if at == 0 {
		if line, err = older(); err != nil || line == nil {
			return t, err
		}
	}
	t.prev = sha256.Sum256(line)
	for {
		seq, _, ok := parseSeq(line)
		if ok {
			t.next += seq + 1
			return t, nil
		}
		t.gap = true
		t.next++
		if at -= int64(len(line)) + 1; at <= 0 || t.next > maxStrange {
			return t, nil
		}
		if line, at, err = lastLine(f, at); err != nil {
			return tail{}, err
		}
	}
}

// lastLine returns the last line of f that ends at or before end, without its
// LF, and where it ends. There is none if at is 0.
func lastLine(f io.ReaderAt, end int64) (line []byte, at int64, err error) {
	for window := int64(tailWindow); ; window *= 4 {
		start := max(0, end-window)
		buf := make([]byte, end-start)
		if _, err := f.ReadAt(buf, start); err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		last := bytes.LastIndexByte(buf, '\n')
		before := -1
		if last > 0 {
			before = bytes.LastIndexByte(buf[:last], '\n')
		}
		switch {
		case last >= 0 && (before >= 0 || start == 0):
			return buf[before+1 : last], start + int64(last) + 1, nil
		case start == 0:
			return nil, 0, nil
		case window > tornWindow:
			return nil, 0, fmt.Errorf("no line within %d bytes: %w", window, storage.ErrDamaged)
		}
	}
}
