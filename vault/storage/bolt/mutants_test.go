package bolt_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
	"github.com/solekey/solekey/vault/storage/enginetest"
)

// The damage harness changes one file of a store in one of nine ways, in child
// processes, opens it as a user would, and asks every key for everything:
//
//   - No child dies and none hangs.
//   - No value is given out that was not stored under that label.
//   - What is missing, older than it was, or open again is told by doctor:
//     Store.Check and Keeper.Health are what it shows.
//   - Whoever hears that a vault is unavailable finds the reason there, too.
//   - Damage to bytes of one identity leaves the others as they were; damage
//     to the log or its mark leaves every value as it was.
//
// SOLEKEY_DAMAGE=N sets how many mutants are made per file and way, 10000 by
// night. SOLEKEY_DAMAGE_SEED=N makes other ones.

const damageMutants = 8

// mutators are the ways to damage a file. Each returns the range that it
// touched, from -1 where that is not one place.
var mutators = []struct {
	name string
	do   func(r *rand.Rand, f *content, older *content) (from, to int)
}{
	{"bit", func(r *rand.Rand, f, _ *content) (int, int) { return flip(r, f, r.IntN(len(f.data))) }},
	{"header bit", func(r *rand.Rand, f, _ *content) (int, int) {
		return flip(r, f, blockStart(r, f)+r.IntN(min(24, len(f.data))))
	}},
	{"meta", func(r *rand.Rand, f, _ *content) (int, int) {
		for _, at := range [][]int{{0}, {4096}, {0, 4096}}[r.IntN(3)] {
			if b := f.data[min(at, len(f.data)):min(at+512, len(f.data))]; r.IntN(2) == 0 {
				clear(b)
			} else {
				fill(r, b)
			}
		}
		return -1, -1
	}},
	{"zeroed page", func(r *rand.Rand, f, _ *content) (int, int) {
		at := blockStart(r, f)
		b := f.data[at:min(at+4096, len(f.data))]
		clear(b)
		return at, at + len(b)
	}},
	{"sector", func(r *rand.Rand, f, _ *content) (int, int) {
		at := r.IntN(len(f.data)) / 512 * 512
		b := f.data[at:min(at+512, len(f.data))]
		fill(r, b)
		return at, at + len(b)
	}},
	{"truncation", func(r *rand.Rand, f, _ *content) (int, int) {
		n := r.IntN(len(f.data))
		if r.IntN(2) == 0 {
			n = n / 4096 * 4096
		}
		f.truncate(int64(n))
		return -1, -1
	}},
	{"swapped pages", func(r *rand.Rand, f, _ *content) (int, int) {
		unit := 4096
		if len(f.data) < 4*unit {
			unit = max(1, len(f.data)/4)
		}
		n := len(f.data) / unit
		a, b := r.IntN(n)*unit, r.IntN(n)*unit
		one := bytes.Clone(f.data[a : a+unit])
		copy(f.data[a:a+unit], f.data[b:b+unit])
		copy(f.data[b:], one)
		return -1, -1
	}},
	{"appended", func(r *rand.Rand, f, _ *content) (int, int) {
		b := make([]byte, 1+r.IntN(10_000))
		fill(r, b)
		f.write(b, f.size)
		return -1, -1
	}},
	{"older file", func(_ *rand.Rand, f, older *content) (int, int) {
		*f = *older.clone()
		return -1, -1
	}},
}

func flip(r *rand.Rand, f *content, at int) (int, int) {
	f.data[at] ^= 1 << r.IntN(8)
	return at, at + 1
}

func fill(r *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

// blockStart returns where a page begins; in a file of less than a page, 0.
func blockStart(r *rand.Rand, f *content) int {
	return r.IntN((len(f.data)+4095)/4096) * 4096
}

var storeFiles = []string{"vault.db", "vault.cells", "audit.jsonl", "audit.head"}

// specimen is a store with everything that is known of it, as it goes to a
// child. Older is the same store before its last changes.
type specimen struct {
	Root   string
	Agents []specimenAgent
	Files  map[string][]byte
	Older  map[string][]byte
	Pages  map[int]int // page of vault.db that holds records of one agent only
	Reader string      // who reads it: the vault, or a wrong oracle
}

type specimenAgent struct {
	ID     identity.ID
	Key    string
	Live   bool                // the key opens
	Values map[string][]string // by label, the newest first
}

// breed makes a specimen.
func breed(tb testing.TB) *specimen {
	tb.Helper()
	dir := filepath.Join(memoryDir(tb), "store")
	s, err := bolt.Create(dir, patient())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	sess := &session{root: vault.NewRoot()}
	if _, err := vault.Init(tb.Context(), s, sess.root, vault.InitOptions{Now: fixedNow}); err != nil {
		tb.Fatal(err)
	}
	b := &breeder{tb: tb, k: sess.keeper(s), s: specimen{Root: sess.root.Reveal(), Reader: "vault"}}
	for i := range 4 {
		b.create(fmt.Sprint("agent-", i))
		for n := range 6 {
			b.put(i, fmt.Sprint("label-", n), fmt.Sprintf("CANARY-%d-%d-%s", i, n, strings.Repeat("x", 200*n)))
		}
	}
	b.s.Older = files(tb, dir)
	b.put(0, "label-1", "CANARY-newer")
	b.put(1, "more", "CANARY-more")
	if _, err := b.k.Revoke(tb.Context(), b.s.Agents[2].ID, vault.Revocation{}); err != nil {
		tb.Fatal(err)
	}
	b.s.Agents[2].Live = false
	b.create("last")
	b.put(4, "label-0", "CANARY-last"+strings.Repeat("y", 1500))
	b.store(4, "label-1", "CANARY-unread") // the last commit, which a lost root record takes along
	b.pages(s, dir)
	b.s.Files = files(tb, dir)
	return &b.s
}

type breeder struct {
	tb testing.TB
	k  *vault.Keeper
	s  specimen
}

func (b *breeder) create(name string) {
	key, err := b.k.Create(b.tb.Context(), vault.NewIdentity{Name: name})
	if err != nil {
		b.tb.Fatal(err)
	}
	b.s.Agents = append(b.s.Agents, specimenAgent{ID: key.Identity(), Key: key.Reveal(), Live: true, Values: map[string][]string{}})
}

// put stores a value and reads it, so that a later read writes no vault.db.
func (b *breeder) put(i int, label, value string) {
	b.tb.Helper()
	b.store(i, label, value)
	if _, _, err := b.s.read(b.tb.Context(), b.k, i); err != nil {
		b.tb.Fatal(err)
	}
}

// store stores a value that nobody has read.
func (b *breeder) store(i int, label, value string) {
	b.tb.Helper()
	a := &b.s.Agents[i]
	if _, err := b.k.Put(b.tb.Context(), a.ID, entry(label, value)); err != nil {
		b.tb.Fatal(err)
	}
	a.Values[label] = append([]string{value}, a.Values[label]...)
}

// pages finds the pages of vault.db in which bytes of one agent lie.
func (b *breeder) pages(s *bolt.Store, dir string) {
	db := read(b.tb, filepath.Join(dir, "vault.db"))
	owners := make(map[int]map[int]bool)
	for i, a := range b.s.Agents {
		res, err := s.Get(b.tb.Context(), a.ID)
		if err != nil {
			b.tb.Fatal(err)
		}
		page, err := s.List(b.tb.Context(), a.ID, "", 1000)
		if err != nil {
			b.tb.Fatal(err)
		}
		stored := [][]byte{res.Meta}
		for _, it := range page.Items {
			stored = append(stored, it.Val)
		}
		for _, v := range stored {
			for at, n := bytes.Index(db, v), 0; n <= len(v); n += 512 {
				p := (at + min(n, len(v)-1)) / 4096
				if owners[p] == nil {
					owners[p] = make(map[int]bool)
				}
				owners[p][i] = true
			}
		}
	}
	b.s.Pages = make(map[int]int)
	for p, who := range owners {
		for i := range who {
			if len(who) == 1 {
				b.s.Pages[p] = i
			}
		}
	}
}

// files returns the files of a store, without the zeros behind the last page
// of vault.db that was ever written.
func files(tb testing.TB, dir string) map[string][]byte {
	tb.Helper()
	out := make(map[string][]byte)
	for _, name := range storeFiles {
		out[name] = read(tb, filepath.Join(dir, name))
	}
	return out
}

// asContent splits the zeros off the end of a file.
func asContent(b []byte) *content {
	n := (len(bytes.TrimRight(b, "\x00")) + 4095) / 4096 * 4096
	return &content{data: bytes.Clone(b[:min(n, len(b))]), size: int64(len(b))}
}

// verdict is what became of one mutant.
type verdict struct {
	N      int
	File   string
	Way    string
	Wrong  []string // values that were never stored there
	Silent []string // losses that doctor does not tell
	Others []string // undamaged and not served
	Told   int      // identities that were reported as not served
	Lost   int      // labels, versions and revocations that were lost
	Doctor []string // what doctor says
	Hurt   bool     // the mutant differs from the specimen
}

func (v *verdict) String() string {
	return fmt.Sprintf("mutant %d (%s, %s): wrong %q, silent %q, others %q, doctor %q", v.N, v.File, v.Way, v.Wrong, v.Silent, v.Others, v.Doctor)
}

func (v *verdict) bad() bool { return len(v.Wrong)+len(v.Silent)+len(v.Others) > 0 }

// mutate makes mutant n. It returns the agent whose bytes alone were touched,
// -1 if there is none such.
func (s *specimen) mutate(n int, seed uint64) (st state, v *verdict, only int) {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	name, way := storeFiles[n%len(storeFiles)], mutators[n/len(storeFiles)%len(mutators)]
	st = make(state)
	for f, b := range s.Files {
		st[f] = asContent(b)
	}
	from, to := way.do(r, st[name], asContent(s.Older[name]))
	v = &verdict{N: n, File: name, Way: way.name}
	v.Hurt = !bytes.Equal(bytes.TrimRight(st[name].data, "\x00"), bytes.TrimRight(s.Files[name], "\x00")) || st[name].size != int64(len(s.Files[name]))
	return st, v, s.only(name, from, to)
}

// only returns the agent that the range of a file belongs to.
func (s *specimen) only(name string, from, to int) int {
	switch {
	case from < 0:
	case name == "vault.db":
		if i, ok := s.Pages[from/4096]; ok && (to-1)/4096 == from/4096 {
			return i
		}
	case name == "vault.cells" && from >= bolt.CellsStart:
		row := (from - bolt.CellsStart) % bolt.BlockSize / bolt.RowSize
		if to-from <= 1 && row < len(s.Agents) {
			return row // cells were put in the order of the agents
		}
	}
	return -1
}

// agentVerdict is what one key was given.
type agentVerdict struct {
	served bool // everything, as it was stored
	told   bool // it heard that the vault is unavailable
	wrong  []string
	lost   []string
}

// judge compares what an agent was given with what it stored.
func (a *specimenAgent) judge(word string, values map[string]string, err error) agentVerdict {
	var v agentVerdict
	switch {
	case word != "ok" && !a.Live:
		v.served = true
		return v
	case word != "ok" && vault.Word(word) != vault.Unauthorized && vault.Word(word) != vault.Revoked:
		v.told = true
		return v
	case word != "ok":
		v.lost = append(v.lost, "a live key hears "+word)
		return v
	case !a.Live:
		v.lost = append(v.lost, "a revoked key opens")
	}
	for label, value := range values {
		all := a.Values[label]
		switch i := slices.Index(all, value); {
		case i < 0:
			v.wrong = append(v.wrong, label)
		case i > 0:
			v.lost = append(v.lost, label+" is older")
		}
	}
	if err != nil {
		v.told = true
		return v
	}
	for label := range a.Values {
		if _, ok := values[label]; !ok {
			v.lost = append(v.lost, label+" is missing")
		}
	}
	v.served = len(v.lost)+len(v.wrong) == 0
	return v
}

// read asks for everything that an agent's key opens.
func (s *specimen) read(ctx context.Context, k *vault.Keeper, i int) (word string, values map[string]string, err error) {
	key, err := identity.ParseKey(s.Agents[i].Key)
	if err != nil {
		return "", nil, err
	}
	v, err := k.Unlock(ctx, key, vault.Source{Via: "stdio"})
	if err != nil {
		return string(vault.Refuse(err).Word), nil, nil
	}
	infos, err := v.Labels(ctx, "")
	if err != nil {
		return "ok", nil, err
	}
	values = make(map[string]string)
	var errs error
	for _, info := range infos {
		got, err := v.Get(ctx, info.Label, "")
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		values[string(info.Label)] = got.Reveal()
	}
	return "ok", values, errs
}

// examine judges one mutant in dir.
func (s *specimen) examine(ctx context.Context, dir string, n int, seed uint64) (*verdict, error) {
	st, v, only := s.mutate(n, seed)
	if err := st.restore(dir); err != nil {
		return nil, err
	}
	if s.Reader == "plain" {
		return v, s.plain(ctx, dir, v)
	}
	b, err := bolt.Open(dir, patient())
	if err != nil {
		v.Doctor = append(v.Doctor, err.Error())
		return v, nil
	}
	root, err := vault.ParseRoot(s.Root)
	if err != nil {
		return nil, err
	}
	k := (&session{root: root}).keeper(b)
	defer func() { _ = k.Close() }()
	if err := b.Check(ctx); err != nil { // the owner who looks before anything is written
		v.Doctor = append(v.Doctor, err.Error())
	}
	all := make([]agentVerdict, len(s.Agents))
	for i := range s.Agents {
		word, values, err := s.read(ctx, k, i)
		all[i] = s.Agents[i].judge(word, values, err)
	}
	v.doctor(ctx, b, k)
	v.sum(all, only)
	return v, nil
}

// doctor gathers what solekey doctor shows of a store.
func (v *verdict) doctor(ctx context.Context, b *bolt.Store, k *vault.Keeper) {
	if err := b.Check(ctx); err != nil {
		v.Doctor = append(v.Doctor, err.Error())
	}
	checks, err := k.Health(ctx)
	if err != nil {
		v.Doctor = append(v.Doctor, err.Error())
	}
	for _, c := range checks {
		if !c.OK {
			v.Doctor = append(v.Doctor, c.Subject+": "+c.Detail)
		}
	}
}

func (v *verdict) sum(all []agentVerdict, only int) {
	log := strings.HasPrefix(v.File, "audit.")
	for i, a := range all {
		v.Wrong = append(v.Wrong, a.wrong...)
		v.Lost += len(a.lost)
		if a.told {
			v.Told++
		}
		if len(v.Doctor) == 0 {
			v.Silent = append(v.Silent, a.lost...)
			if a.told {
				v.Silent = append(v.Silent, fmt.Sprintf("agent %d is not served", i))
			}
		}
		if !a.served && (log || only >= 0 && i != only) {
			v.Others = append(v.Others, fmt.Sprintf("agent %d: told %v, lost %q", i, a.told, a.lost))
		}
	}
}

// plain is the deliberately wrong oracle: it takes values from the engine
// without anything that authenticates them.
func (s *specimen) plain(ctx context.Context, dir string, v *verdict) error {
	b, err := bolt.Open(dir, patient())
	if err != nil {
		return nil
	}
	defer func() { _ = b.Close() }()
	all := make([]agentVerdict, len(s.Agents))
	for i, a := range s.Agents {
		page, err := b.List(ctx, a.ID, "", 1000)
		word := "ok"
		if err != nil {
			word = string(vault.Unavailable)
		}
		values := make(map[string]string)
		for _, it := range page.Items {
			values[it.Key] = string(it.Val)
		}
		all[i] = a.judge(word, values, nil)
	}
	if err := b.Check(ctx); err != nil {
		v.Doctor = append(v.Doctor, err.Error())
	}
	v.sum(all, -1)
	return nil
}

// examineAll is what a child does: it examines each mutant that is asked for
// and answers with its verdict.
func examineAll(path, dir, seed string, in io.Reader, out io.Writer) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s specimen
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	salt, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	for sc := bufio.NewScanner(in); sc.Scan(); {
		n, err := strconv.Atoi(sc.Text())
		if err != nil {
			return err
		}
		v, err := s.examine(context.Background(), dir, n, salt)
		if err != nil {
			return err
		}
		line, err := json.Marshal(v)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s\n", line)
	}
	return nil
}

// damageFigures are what a run of the harness found.
type damageFigures struct {
	mutants, hurt, crashes, hangs, wrong, silent, others, told, lost int
	bad                                                              []string
}

func (f *damageFigures) String() string {
	return fmt.Sprintf("%d mutants, %d of them not like the store: %d crashes, %d hangs, %d wrong values, %d silent losses, %d others not served; %d vaults reported, %d losses told",
		f.mutants, f.hurt, f.crashes, f.hangs, f.wrong, f.silent, f.others, f.told, f.lost)
}

func (f *damageFigures) add(v *verdict) {
	f.mutants++
	if v.Hurt {
		f.hurt++
	}
	f.wrong += len(v.Wrong)
	f.silent += len(v.Silent)
	f.others += len(v.Others)
	f.told += v.Told
	f.lost += v.Lost
	if v.bad() {
		f.bad = append(f.bad, v.String())
	}
}

// examine sends every mutant to children, a new one after each that died.
func (s *specimen) run(t *testing.T, mutants int, seed uint64) *damageFigures {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(memoryDir(t), "specimen.json")
	write(t, path, b)
	const children = 4
	f := &damageFigures{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for c := range children {
		dir := memoryDir(t)
		wg.Go(func() {
			p := &patientChild{t: t, args: []string{"damage", path, dir, strconv.FormatUint(seed, 10)}}
			defer p.stop()
			for n := c; n < mutants; n += children {
				v, fate := p.ask(n)
				mu.Lock()
				switch fate {
				case "":
					f.add(v)
				case "hang":
					f.hangs++
					f.bad = append(f.bad, fmt.Sprintf("mutant %d hangs", n))
				default:
					f.crashes++
					f.bad = append(f.bad, fmt.Sprintf("mutant %d kills its process: %s", n, fate))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return f
}

// patientChild is a child that is started anew when it dies.
type patientChild struct {
	t    *testing.T
	args []string
	p    *enginetest.Process
	out  chan string
}

// ask returns the verdict on mutant n, or how the child ended.
func (c *patientChild) ask(n int) (v *verdict, fate string) {
	if c.p == nil {
		c.p = start(c.t, c.args...)
		c.out = make(chan string, 1)
		go func(r io.Reader, out chan<- string) {
			for sc := bufio.NewScanner(r); sc.Scan(); {
				out <- sc.Text()
			}
			close(out)
		}(c.p.Out, c.out)
	}
	fmt.Fprintln(c.p.In, n)
	limit := time.Minute // a busy machine fails no test
	if enginetest.Soak() {
		limit = 5 * time.Second
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case line, ok := <-c.out:
		if !ok {
			err := c.p.Wait()
			c.p = nil
			return nil, fmt.Sprint(err)
		}
		v = new(verdict)
		if err := json.Unmarshal([]byte(line), v); err != nil {
			return nil, err.Error()
		}
		return v, ""
	case <-timer.C:
		_ = c.p.Kill()
		_ = c.p.Wait()
		c.p = nil
		return nil, "hang"
	}
}

func (c *patientChild) stop() {
	if c.p != nil {
		_ = c.p.In.Close()
		for range c.out {
		}
		_ = c.p.Wait()
	}
}

// TestDamageIsToldAndKeptToItself is the harness.
func TestDamageIsToldAndKeptToItself(t *testing.T) {
	n := damageMutants
	if testing.Short() {
		n = 2
	}
	n = number(t, "SOLEKEY_DAMAGE", n)
	start := time.Now()
	f := breed(t).run(t, n*len(storeFiles)*len(mutators), uint64(number(t, "SOLEKEY_DAMAGE_SEED", 1)))
	t.Logf("%d files, %d ways: %v, in %v", len(storeFiles), len(mutators), f, time.Since(start).Round(time.Millisecond))
	if f.told+f.lost == 0 {
		t.Error("nothing was ever lost or reported, so this test shows nothing")
	}
	for _, bad := range f.bad[:min(5, len(f.bad))] {
		t.Error(bad)
	}
	if len(f.bad) > 5 {
		t.Errorf("and %d more", len(f.bad)-5)
	}
}

// TestDamageHarnessFindsAStoreWithoutAuthentication is its control: the same
// mutants, but values are stored as they are and taken as they come.
func TestDamageHarnessFindsAStoreWithoutAuthentication(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "store")
	b, err := bolt.Create(dir, patient())
	if err != nil {
		t.Fatal(err)
	}
	s := &specimen{Reader: "plain"}
	for i := range byte(5) {
		a := specimenAgent{ID: identity.ID{i + 1}, Live: true, Values: map[string][]string{}}
		batch := storage.Batch{Meta: []byte("m")}
		for n := range 6 {
			label, value := fmt.Sprint("label-", n), fmt.Sprintf("CANARY-%d-%d-%s", i, n, strings.Repeat("x", 200*n+300))
			a.Values[label] = []string{value}
			batch.Ops = append(batch.Ops, storage.Op{Key: label, Val: []byte(value)})
		}
		if _, err := b.Commit(t.Context(), a.ID, 0, batch); err != nil {
			t.Fatal(err)
		}
		s.Agents = append(s.Agents, a)
		app(t, b, 1)
		if i == 3 {
			s.Older = files(t, dir)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	s.Files = files(t, dir)
	f := s.run(t, 8*len(storeFiles)*len(mutators), 1)
	t.Log(f)
	if f.wrong == 0 || f.silent == 0 {
		t.Errorf("%d wrong values, %d silent losses; want some of each", f.wrong, f.silent)
	}
}

// TestOldRecordIsRefused puts the record of a label back as it was one version
// before. The vault refuses the identity; the control reads it with the same
// keys, but compares nothing with the set-hash, and takes the old value.
func TestOldRecordIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	b, err := bolt.Create(dir, patient())
	if err != nil {
		t.Fatal(err)
	}
	sess := &session{root: vault.NewRoot()}
	if _, err := vault.Init(t.Context(), b, sess.root, vault.InitOptions{Now: fixedNow}); err != nil {
		t.Fatal(err)
	}
	k := sess.keeper(b)
	defer func() { _ = k.Close() }()
	br := &breeder{tb: t, k: k, s: specimen{Root: sess.root.Reveal()}}
	br.create("a")
	br.put(0, "db", "CANARY-old")
	a := br.s.Agents[0]
	old, err := b.List(t.Context(), a.ID, "", 10)
	if err != nil || len(old.Items) != 1 {
		t.Fatalf("%d records, %v", len(old.Items), err)
	}
	br.put(0, "db", "CANARY-new")
	if got := withoutSetHash(t, b, &br.s); got != "CANARY-new" {
		t.Fatalf("the control reads %q before the attack", got)
	}
	res, err := b.Get(t.Context(), a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Commit(t.Context(), a.ID, res.Rev, storage.Batch{Ops: []storage.Op{{Key: old.Items[0].Key, Val: old.Items[0].Val}}}); err != nil {
		t.Fatal(err)
	}
	if got := withoutSetHash(t, b, &br.s); got != "CANARY-old" {
		t.Errorf("without the set-hash the value is %q, so this test shows nothing", got)
	}
	word, values, err := br.s.read(t.Context(), sess.keeper(b), 0)
	if v := a.judge(word, values, err); !v.told || len(v.wrong)+len(v.lost) > 0 {
		t.Errorf("the vault says %s, gives %d values, %v; want it to refuse", word, len(values), err)
	}
}

// withoutSetHash reads the one value of the first agent as the vault does, but
// for the set-hash.
func withoutSetHash(t *testing.T, b *bolt.Store, s *specimen) string {
	t.Helper()
	a := s.Agents[0]
	root, err := seal.ParseRoot(s.Root)
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.ParseKey(a.Key)
	if err != nil {
		t.Fatal(err)
	}
	st := root.Store()
	cell, err1 := b.Cell(t.Context(), a.ID)
	res, err2 := b.Get(t.Context(), a.ID)
	page, err3 := b.List(t.Context(), a.ID, "", 10)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	head, err := st.OpenHeader(a.ID, cell, res.Meta)
	if err != nil {
		t.Fatal(err)
	}
	e, err := st.Outer(a.ID, head).OpenEntry(page.Items[0].Key, page.Items[0].Val)
	if err != nil {
		t.Fatal(err)
	}
	in, err := seal.Unwrap(st.ID(), a.ID, key, head.PK, head.Slots[0].Wrapped)
	if err != nil {
		t.Fatal(err)
	}
	fields, err := in.Open(seal.Bind{Store: st.ID(), ID: a.ID, Version: e.Version, Kind: e.Kind, Exposure: e.Exposure, Label: e.Label}, e.Form, e.Inner)
	if err != nil {
		t.Fatal(err)
	}
	return string(fields[0].Value)
}

// TestEveryBitOfASmallStoreIsGuarded flips the bits of a store of one identity,
// one at a time: of vault.db as far as it was ever written, and of
// vault.cells. Every 97th by default, all with SOLEKEY_SOAK=1.
func TestEveryBitOfASmallStoreIsGuarded(t *testing.T) {
	step := 97
	switch {
	case enginetest.Soak():
		step = 1
	case testing.Short():
		step = 997
	}
	s := onlyOne(t)
	root, err := vault.ParseRoot(s.Root)
	if err != nil {
		t.Fatal(err)
	}
	sess := &session{root: root}
	clean := make(state)
	for name, b := range s.Files {
		clean[name] = asContent(b)
	}
	const workers = 4
	var mu sync.Mutex
	var wg sync.WaitGroup
	flips, told := 0, 0
	for w := range workers {
		dir := memoryDir(t)
		wg.Go(func() {
			for _, name := range storeFiles[:2] {
				if err := clean.restore(dir); err != nil {
					t.Error(err)
					return
				}
				for bit := w * step; bit < 8*len(clean[name].data); bit += workers * step {
					v, err := s.flipOne(t.Context(), sess, dir, name, clean, bit)
					if err != nil {
						t.Errorf("%s, bit %d: %v", name, bit, err)
						return
					}
					mu.Lock()
					flips++
					if v.told {
						told++
					}
					mu.Unlock()
					if len(v.wrong)+len(v.lost) > 0 {
						t.Errorf("%s, bit %d: wrong %q, lost %q", name, bit, v.wrong, v.lost)
					}
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d bits flipped of %d: 0 panics, 0 hangs, %d times the vault was not served and that was told, else it was served whole", flips, 8*(len(clean["vault.db"].data)+len(clean["vault.cells"].data)), told)
	if told == 0 {
		t.Error("no flip was ever noticed, so this test shows nothing")
	}
}

// onlyOne is a specimen of one identity with one value.
func onlyOne(t *testing.T) *specimen {
	t.Helper()
	dir := filepath.Join(memoryDir(t), "store")
	b, err := bolt.Create(dir, patient())
	if err != nil {
		t.Fatal(err)
	}
	sess := &session{root: vault.NewRoot()}
	if _, err := vault.Init(t.Context(), b, sess.root, vault.InitOptions{Now: fixedNow}); err != nil {
		t.Fatal(err)
	}
	br := &breeder{tb: t, k: sess.keeper(b), s: specimen{Root: sess.root.Reveal()}}
	br.create("a")
	br.put(0, "db", "CANARY-one")
	if err := br.k.Close(); err != nil {
		t.Fatal(err)
	}
	br.s.Files = files(t, dir)
	return &br.s
}

// flipOne flips a bit in place, reads, and puts all files back as they were.
func (s *specimen) flipOne(ctx context.Context, sess *session, dir, name string, clean state, bit int) (v agentVerdict, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	mutant := maps.Clone(clean)
	c := clean[name].clone()
	c.data[bit/8] ^= 1 << (bit % 8)
	mutant[name] = c
	if err := mutant.restore(dir); err != nil {
		return v, err
	}
	b, err := bolt.Open(dir, patient())
	if err != nil {
		return v, err
	}
	k := sess.keeper(b)
	word, values, err := s.read(ctx, k, 0)
	if v = s.Agents[0].judge(word, values, err); len(v.lost) > 0 {
		var told verdict
		if told.doctor(ctx, b, k); len(told.Doctor) > 0 {
			v.told, v.lost = true, nil
		}
	}
	return v, k.Close()
}
