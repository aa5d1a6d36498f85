package bolt

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/solekey/solekey/vault/storage"
)

// The journal is audit.jsonl. The first caller that waits leads: it writes its
// own lines and all that wait, syncs once and wakes the others; who came
// meanwhile makes the next group. There is no goroutine.
//
// The file is grown by what is written, never beforehand: it stays a text that
// any tool can follow. Before each group it must still be the file at its
// path, of the size that was left, else the tail is read anew. A log that is
// missing is never replaced by an empty one. At its size limit it goes on in a
// new file: journalswitch.go.

const (
	olderPrefix  = "audit-"
	olderSuffix  = ".jsonl"
	maxGroup     = 1 << 20 // bytes of bodies at which a group is closed
	maxReadLine  = 1 << 20 // a longer line is no line of ours
	noteTorn     = "torn line cut"
	noteTimeForm = "2006-01-02T15:04:05.000000Z"
)

// request is one Append on its way, or a look at the log that no group may run
// beside. It holds copies of the caller's bodies.
type request struct {
	bodies [][]byte
	size   int
	alone  bool
	first  uint64
	err    error
	done   chan bool // true: lead the next group; false: it has ended
}

func newRequest(bodies [][]byte) *request {
	r := &request{bodies: make([][]byte, len(bodies)), done: make(chan bool, 1)}
	for _, b := range bodies {
		r.size += len(b)
	}
	buf := make([]byte, 0, r.size)
	for i, b := range bodies {
		buf = append(buf, b...)
		r.bodies[i] = buf[len(buf)-len(b):]
	}
	return r
}

// journal is the log in use. mu guards the queue; the rest belongs to the
// leader.
type journal struct {
	dir     string
	hooks   *hooks
	now     func() time.Time
	log     *slog.Logger
	foreign atomic.Bool // another process may have appended

	mu      sync.Mutex
	queue   []*request // of these the first leads, unless it has been taken
	leading bool

	f     *file
	info  fs.FileInfo // of f when it was opened
	tail  tail
	mark  *markFile
	home  fs.FileInfo // of dir when mark was opened
	valid bool        // tail describes the file
	buf   []byte

	limit    int64             // size at which the log goes on in a new file
	patience int64             // size before which no other switch is tried
	reached  func(step string) // set by tests only
}

func newJournal(dir string, limit int64, hooks *hooks, log *slog.Logger) *journal {
	return &journal{dir: dir, hooks: hooks, now: time.Now, log: log, limit: limit}
}

// tail is the end of the log: what the next line continues.
type tail struct {
	size int64    // of the file up to the last line
	next uint64   // number of the next line
	prev [32]byte // hash of the last line
	torn int64    // bytes behind the last line that are none
	gap  bool     // lines that were written before are missing
	lost uint64   // how many of them, as far as that is known
}

// Append implements [storage.Journal].
func (s *Store) Append(ctx context.Context, bodies ...[]byte) (uint64, error) {
	if err := storage.CheckBodies(bodies...); err != nil {
		return 0, err
	}
	if err := s.enter(ctx); err != nil {
		return 0, fmt.Errorf("appending to the log: %w", err)
	}
	defer s.leave()
	r := newRequest(bodies)
	if err := s.append(ctx, r); err != nil {
		return 0, fmt.Errorf("appending to the log: %w", err)
	}
	return r.first, nil
}

// append brings r to its end, by leading a group or within another's.
func (s *Store) append(ctx context.Context, r *request) error {
	j := s.journal
	if lead, err := j.line(ctx, r); !lead {
		return err
	}
	group := j.take()
	g := s.watch.enter()
	err := j.write(group)
	s.watch.leave(g)
	if err != nil && isIO(err) {
		s.diskError(err)
	}
	j.finish(group, err)
	return r.err
}

// exclusively runs f on the log while no group is being written.
func (s *Store) exclusively(ctx context.Context, f func(*journal) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	return s.alone(ctx, f)
}

// alone is exclusively for a call that has entered the turn.
func (s *Store) alone(ctx context.Context, f func(*journal) error) error {
	j := s.journal
	r := &request{alone: true, done: make(chan bool, 1)}
	if lead, err := j.line(ctx, r); !lead {
		return err
	}
	g := s.watch.enter()
	defer s.watch.leave(g)
	group := j.take()
	defer j.finish(group, nil)
	if err := j.ready(); err != nil {
		return err
	}
	return f(j)
}

// line queues r. It returns when r has ended, or when its caller must lead.
func (j *journal) line(ctx context.Context, r *request) (lead bool, err error) {
	if j.enqueue(r) {
		return true, nil
	}
	return j.wait(ctx, r)
}

// enqueue adds r to the queue and reports whether its caller leads.
func (j *journal) enqueue(r *request) (lead bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue = append(j.queue, r)
	if j.leading {
		return false
	}
	j.leading = true
	return true
}

// wait waits until r has ended, or until its caller must lead.
func (j *journal) wait(ctx context.Context, r *request) (lead bool, err error) {
	timer := time.NewTimer(tellAfter)
	defer timer.Stop()
	select {
	case lead = <-r.done:
		return lead, r.err
	case <-ctx.Done():
		if j.withdraw(r) {
			return false, ctx.Err()
		}
	case <-timer.C:
		if j.withdraw(r) {
			return false, errLate(storage.ErrUnavailable)
		}
		timer.Reset(0) // it may have ended, or have been asked to lead
	}
	select {
	case lead = <-r.done:
		return lead, r.err
	case <-timer.C:
	}
	select {
	case lead = <-r.done:
		return lead, r.err
	default:
		return false, errLate(storage.ErrUnknown)
	}
}

// withdraw takes r out of the queue, unless a leader has taken it or it was
// asked to lead.
func (j *journal) withdraw(r *request) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.Index(j.queue, r)
	if i < 0 || len(r.done) > 0 {
		return false
	}
	j.queue = slices.Delete(j.queue, i, i+1)
	return true
}

// take returns the group of the leader, which stands first in the queue: its
// request and what waits behind it.
func (j *journal) take() []*request {
	j.mu.Lock()
	defer j.mu.Unlock()
	n, size := 1, j.queue[0].size
	for n < len(j.queue) && !j.queue[0].alone && !j.queue[n].alone && size+j.queue[n].size <= maxGroup {
		size += j.queue[n].size
		n++
	}
	group := slices.Clone(j.queue[:n])
	j.queue = slices.Delete(j.queue, 0, n)
	return group
}

// finish wakes the group and names the next leader.
func (j *journal) finish(group []*request, err error) {
	for i, r := range group {
		if err != nil {
			r.first, r.err = 0, err
		}
		if i > 0 {
			r.done <- false
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.leading = len(j.queue) > 0; j.leading {
		j.queue[0].done <- true
	}
}

// write appends the lines of the group and syncs them.
func (j *journal) write(group []*request) error {
	if err := j.ready(); err != nil {
		return err
	}
	if err := j.switchFile(); err != nil {
		return err
	}
	t := j.tail
	b := j.notes(j.buf[:0], &t)
	for _, r := range group {
		r.first = t.next
		for _, body := range r.bodies {
			b = t.line(b, body)
		}
	}
	j.buf = b
	if err := j.put(b); err != nil {
		j.valid = false
		return faultError("writing "+auditName, err)
	}
	t.size += int64(len(b))
	t.torn, t.gap, t.lost = 0, false, 0
	j.tail = t
	if err := j.mark.store(&t); err != nil {
		j.log.Warn("the mark of the log is behind", slog.Any("error", err))
	}
	return nil
}

// put writes b behind the last line and syncs it, or leaves the file as it was.
func (j *journal) put(b []byte) error {
	if j.tail.torn > 0 {
		if err := j.f.Truncate(j.tail.size); err != nil {
			return err
		}
	}
	_, err := j.f.WriteAt(b, j.tail.size)
	if err == nil {
		err = j.f.datasync()
	}
	if err == nil {
		return nil
	}
	if terr := j.f.Truncate(j.tail.size); terr != nil {
		return errors.Join(err, terr)
	}
	return err
}

// notes writes the lines that say what was found at the end of the log.
func (j *journal) notes(b []byte, t *tail) []byte {
	stamp := j.now().UTC().Format(noteTimeForm)
	if t.gap {
		b = t.line(b, noteBody(stamp, t.lost, storage.NoteGap))
	}
	if t.torn > 0 {
		b = t.line(b, noteBody(stamp, uint64(t.torn), noteTorn))
	}
	return b
}

func noteBody(stamp string, n uint64, note string) []byte {
	count := ""
	if n > 0 {
		count = `,"n":` + strconv.FormatUint(n, 10)
	}
	return []byte(`{"v":1,"t":"` + stamp + `","ev":"note","res":"allow"` + count + `,"note":"` + note + `"}`)
}

// line appends the line for body, with its LF, and moves t behind it but for
// size.
func (t *tail) line(b, body []byte) []byte {
	start := len(b)
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, t.next, 10)
	b = append(b, `,"prev":"`...)
	b = hex.AppendEncode(b, t.prev[:])
	b = append(b, `",`...)
	b = append(b, body[1:]...)
	t.prev = sha256.Sum256(b[start:])
	t.next++
	return append(b, '\n')
}

// parseSeq reads the number and the chain hash that begin a line.
func parseSeq(line []byte) (seq uint64, prev [32]byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok {
		return 0, prev, false
	}
	digits, rest, ok := bytes.Cut(rest, []byte(`,"prev":"`))
	if !ok || len(rest) < 2*len(prev)+2 || len(digits) > 20 {
		return 0, prev, false
	}
	seq, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil || rest[2*len(prev)] != '"' || rest[2*len(prev)+1] != ',' {
		return 0, prev, false
	}
	_, err = hex.Decode(prev[:], rest[:2*len(prev)])
	return seq, prev, err == nil
}

// Lines implements [storage.Journal]. The turn is held while the files are
// opened, not while they are read: what lies before the end of the log never
// changes.
func (s *Store) Lines(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		parts, err := s.openLog(ctx)
		defer func() {
			for _, p := range parts {
				_ = p.f.Close()
			}
		}()
		if err != nil {
			yield(nil, fmt.Errorf("reading the log: %w", err))
			return
		}
		for _, p := range parts {
			if !p.lines(ctx, yield) {
				return
			}
		}
	}
}

// logPart is one file of the log, up to the end of its last line.
type logPart struct {
	f    *os.File
	size int64
}

func (s *Store) openLog(ctx context.Context) (parts []logPart, err error) {
	err = s.exclusively(ctx, func(j *journal) error {
		parts, err = j.parts()
		return err
	})
	return parts, err
}

// parts opens every file of the log, the oldest first.
func (j *journal) parts() ([]logPart, error) {
	older, err := olderLogs(j.dir)
	if err != nil {
		return nil, err
	}
	var parts []logPart
	for _, o := range append(older, olderLog{path: filepath.Join(j.dir, auditName)}) {
		f, err := os.OpenFile(o.path, os.O_RDONLY|openFlags, 0)
		if err != nil {
			return parts, journalOpenError(err)
		}
		info, err := f.Stat()
		if err != nil {
			return append(parts, logPart{f: f}), err
		}
		parts = append(parts, logPart{f: f, size: info.Size()})
	}
	parts[len(parts)-1].size = j.tail.size
	return parts, nil
}

// lines yields the lines of p. It returns false when the sequence has ended.
func (p logPart) lines(ctx context.Context, yield func([]byte, error) bool) bool {
	r := bufio.NewReaderSize(io.NewSectionReader(p.f, 0, p.size), 64<<10)
	for {
		if err := ctx.Err(); err != nil {
			yield(nil, fmt.Errorf("reading the log: %w", err))
			return false
		}
		line, err := readLine(r)
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			yield(nil, fmt.Errorf("reading the log: %w", err))
			return false
		}
		if !yield(line, nil) {
			return false
		}
	}
}

// readLine returns the next line without its LF. What follows the last LF is
// no line.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if line = append(line, part...); len(line) > maxReadLine {
			return nil, fmt.Errorf("a line is longer than %d bytes: %w", maxReadLine, storage.ErrDamaged)
		}
		if err == nil {
			return line[:len(line)-1], nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// Head implements [storage.Journal].
func (s *Store) Head(ctx context.Context) (storage.Head, error) {
	var h storage.Head
	err := s.exclusively(ctx, func(j *journal) error { h = j.mark.head(); return nil })
	if err != nil {
		return storage.Head{}, fmt.Errorf("reading the head of the log: %w", err)
	}
	return h, nil
}

// close closes the files. It is called when no call runs.
func (j *journal) close() error {
	var err error
	if j.f != nil {
		err = j.f.Close()
	}
	j.f, j.valid = nil, false
	return errors.Join(err, j.mark.close())
}
