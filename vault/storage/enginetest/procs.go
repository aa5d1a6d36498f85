package enginetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// Child is what a child process does: args are those given to Harness.Proc,
// the role first and the place second. It prints one line per call that was
// acknowledged, and ends at the end of in or when its role is done.
func Child(args []string, in io.Reader, out io.Writer, open func(place string) (storage.Backend, error)) error {
	if len(args) < 2 {
		return errors.New("a child needs a role and a place")
	}
	b, err := open(args[1])
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	c := child{Backend: b, args: args[2:], in: bufio.NewScanner(in), out: out}
	switch args[0] {
	case "obey":
		return c.obey()
	case "busy":
		return c.busy()
	case "ack":
		return c.ack()
	}
	return fmt.Errorf("unknown role %q", args[0])
}

type child struct {
	storage.Backend
	args []string
	in   *bufio.Scanner
	out  io.Writer
}

// obey carries out commands, one per line.
func (c child) obey() error {
	for c.in.Scan() {
		fmt.Fprintln(c.out, c.command(context.Background(), strings.Fields(c.in.Text())))
	}
	return c.in.Err()
}

func (c child) command(ctx context.Context, words []string) string {
	switch words[0] {
	case "rev":
		r, err := c.Get(ctx, id(1))
		return fmt.Sprint(r.Rev, " ", err)
	case "commit":
		r, err := c.Get(ctx, id(1))
		if err != nil {
			return err.Error()
		}
		rev, err := c.Commit(ctx, id(1), r.Rev, storage.Batch{Meta: []byte("m")})
		return fmt.Sprint(rev, " ", err)
	case "cell":
		_, err := c.Cell(ctx, id(1))
		return fmt.Sprint(err)
	case "erase":
		return fmt.Sprint(c.EraseCell(ctx, id(1)))
	case "append":
		n, err := c.Append(ctx, []byte(`{"v":1}`))
		return fmt.Sprint(n, " ", err)
	}
	return "unknown command"
}

// busy does one kind of work for the given number of milliseconds and prints
// how often.
func (c child) busy() error {
	ms, err := strconv.Atoi(c.args[1])
	if err != nil {
		return err
	}
	ctx := context.Background()
	n := 0
	for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); n++ {
		switch c.args[0] {
		case "read":
			_, err = c.Get(ctx, id(1), "n")
		case "get":
			if _, err = c.Get(ctx, id(1), "n"); err == nil {
				_, err = c.Append(ctx, []byte(`{"ev":"get"}`))
			}
		case "write":
			if _, err = c.Append(ctx, []byte(`{"ev":"write"}`)); err == nil {
				err = tryIncrement(ctx, c)
			}
		}
		if err != nil {
			return err
		}
	}
	fmt.Fprintln(c.out, n)
	return nil
}

// ack writes keys of its own, each after a line, and prints each number once it
// is durable, until it is killed.
func (c child) ack() error {
	ctx := context.Background()
	var me identity.ID
	me, err := identity.ParseID(c.args[0])
	if err != nil {
		return err
	}
	r, err := c.Get(ctx, me)
	if err != nil {
		return err
	}
	for rev := r.Rev; ; rev++ {
		if _, err := c.Append(ctx, fmt.Appendf(nil, `{"n":%d}`, rev)); err != nil {
			return err
		}
		next, err := c.Commit(ctx, me, rev, put(fmt.Sprint(rev%64), fmt.Sprint(rev)))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(c.out, uint64(next)); err != nil {
			return err
		}
	}
}

// line reads one line from a child.
func line(r *bufio.Reader) (string, error) {
	s, err := r.ReadString('\n')
	return strings.TrimSpace(s), err
}

func crossing(e *env) error {
	p := e.h.Proc(e.t, "obey", e.place)
	defer func() { _ = p.Wait() }()
	defer func() { _ = p.In.Close() }()
	out := bufio.NewReader(p.Out)
	ask := func(cmd, want string) error {
		if _, err := fmt.Fprintln(p.In, cmd); err != nil {
			return err
		}
		got, err := line(out)
		if err != nil || !strings.Contains(got, want) {
			return fmt.Errorf("the other process says %q, %v to %q, want %q", got, err, cmd, want)
		}
		return nil
	}
	if err := errors.Join(e.commits(id(1), 0, put("k", "v"), 1, nil), e.PutCell(e.ctx, id(1), storage.Cell{1})); err != nil {
		return err
	}
	for i := range 25 {
		want := storage.Rev(2*i + 2)
		if err := errors.Join(
			ask("commit", fmt.Sprint(uint64(want), " <nil>")),
			e.sees(id(1), storage.Result{Rev: want, Meta: []byte("m")}),
			e.commits(id(1), want, storage.Batch{}, want+1, nil),
			ask("rev", fmt.Sprint(uint64(want)+1, " <nil>")),
			ask("append", fmt.Sprint(2*i, " <nil>")),
		); err != nil {
			return err
		}
		if n, err := e.Append(e.ctx, []byte(`{"v":2}`)); err != nil || n != uint64(2*i+1) {
			return fmt.Errorf("Append = %d, %w, want %d", n, err, 2*i+1)
		}
	}
	_, here := e.Cell(e.ctx, id(1))
	err := errors.Join(here, ask("cell", "<nil>"), ask("erase", "<nil>"))
	_, here = e.Cell(e.ctx, id(1))
	_, cerr := checkChain(e.ctx, e)
	return errors.Join(err, wants("Cell after another process erased it", here, storage.ErrErased), cerr)
}

func sharing(e *env) error {
	ms := 1500
	if Soak() {
		ms = 10_000
	}
	counts := make(map[string][]int)
	var mu sync.Mutex
	err := together(12, func(i int) error {
		kind := []string{"read", "get", "write"}[i%3]
		p := e.h.Proc(e.t, "busy", e.place, kind, fmt.Sprint(ms))
		text, err := line(bufio.NewReader(p.Out))
		if werr := p.Wait(); werr != nil || err != nil {
			return fmt.Errorf("a %s process: %w", kind, errors.Join(err, werr))
		}
		n, err := strconv.Atoi(text)
		mu.Lock()
		counts[kind] = append(counts[kind], n)
		mu.Unlock()
		return err
	})
	if err != nil {
		return err
	}
	sum := func(kind string) (n int) {
		for _, c := range counts[kind] {
			n += c
		}
		return n
	}
	for kind, c := range counts {
		least, most := slices.Min(c), slices.Max(c)
		e.t.Logf("%d ms, 12 processes: %s %d in all, slowest %d, fastest %d", ms, kind, sum(kind), least, most)
		if least == 0 || Soak() && most > 3*least {
			return fmt.Errorf("%s: the slowest process did %d, the fastest %d", kind, least, most)
		}
	}
	lines, err := checkChain(e.ctx, e)
	if err != nil {
		return err
	}
	if want := sum("get") + sum("write"); len(lines) != want {
		return fmt.Errorf("the log has %d lines, want %d", len(lines), want)
	}
	return counted(e.ctx, e, uint64(sum("write")))
}

// victim is a process that will be killed, and what it acknowledged.
type victim struct {
	*Process
	id    identity.ID
	acked chan uint64
}

func (e *env) victim(one identity.ID) *victim {
	v := &victim{Process: e.h.Proc(e.t, "ack", e.place, one.String()), id: one, acked: make(chan uint64, 1)}
	go func() {
		var last uint64
		for s := bufio.NewScanner(v.Out); s.Scan(); {
			if n, err := strconv.ParseUint(s.Text(), 10, 64); err == nil {
				last = n
			}
		}
		v.acked <- last
	}()
	return v
}

// end kills the process and returns the last revision it acknowledged.
func (v *victim) end() uint64 {
	_ = v.Kill()
	last := <-v.acked
	_ = v.Wait()
	return last
}

func killing(e *env) error {
	limit := 2 * time.Second
	if Soak() {
		limit = 30 * time.Second
	}
	var all []*victim
	for i := range 4 {
		all = append(all, e.victim(id(byte(40+i))))
	}
	defer func() {
		for _, v := range all {
			v.end()
		}
	}()
	acked := make(map[identity.ID]uint64)
	kills, worst := 0, time.Duration(0)
	for end := time.Now().Add(limit); time.Now().Before(end); kills++ {
		time.Sleep(time.Duration(20+rand.IntN(40)) * time.Millisecond)
		i := rand.IntN(len(all))
		last := all[i].end()
		start := time.Now()
		r, err := e.Get(e.ctx, all[i].id)
		worst = max(worst, time.Since(start))
		if err != nil {
			return err
		}
		acked[all[i].id] = max(acked[all[i].id], last)
		if uint64(r.Rev) < acked[all[i].id] {
			return fmt.Errorf("revision %d was acknowledged, %d is there", acked[all[i].id], r.Rev)
		}
		all[i] = e.victim(all[i].id)
	}
	for _, v := range all {
		acked[v.id] = max(acked[v.id], v.end())
	}
	all = nil
	if _, err := e.Append(e.ctx, []byte(`{"ev":"end"}`)); err != nil { // moves the head behind what a kill left unmarked
		return err
	}
	lines, err := checkChain(e.ctx, e)
	if err != nil {
		return err
	}
	var sum uint64
	for one, least := range acked {
		r, err := e.Get(e.ctx, one)
		if err != nil || uint64(r.Rev) < least {
			return fmt.Errorf("revision %d was acknowledged, %d is there, %w", least, r.Rev, err)
		}
		sum += least
	}
	e.t.Logf("%d kills, %d commits acknowledged, 0 lost, %d lines, next turn after a kill at most %v", kills, sum, len(lines), worst)
	return nil
}
