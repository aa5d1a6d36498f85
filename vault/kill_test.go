package vault_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
)

// The harness kills a process at every point where it touches something that
// outlives it: each storage call, and each callback that stores a key, root
// material or a receipt, before it takes effect and after. What is left is
// opened by another process, compared with what must hold at that point, and
// the same command is run again to its end.

var errDead = errors.New("the process is dead")

// disk is what outlives a process.
type disk struct {
	mem      *memory
	root     vault.Root
	profile  identity.Key // the key that the profile of the identity holds
	receipts []vault.Receipt
}

func (d *disk) clone() *disk {
	c := *d
	c.mem, c.receipts = d.mem.clone(), slices.Clone(d.receipts)
	return &c
}

// life is one process, which dies at step number at; 0 never.
type life struct {
	*disk
	at    int
	after bool // the step takes effect
	lie   bool // the last commits were acknowledged, and are gone after death

	steps int
	dead  bool
	undo  []func()
}

// step runs f unless the process is dead, or dies before it.
func (l *life) step(f func() error) error {
	if l.dead {
		return errDead
	}
	l.steps++
	if l.steps != l.at {
		return f()
	}
	if l.after {
		_ = f()
	}
	l.dead = true
	if l.lie {
		for _, undo := range slices.Backward(l.undo[max(0, len(l.undo)-3):]) {
			undo()
		}
	}
	return errDead
}

var _ storage.Backend = (*life)(nil)

func (l *life) Get(ctx context.Context, id identity.ID, keys ...string) (r storage.Result, err error) {
	err = l.step(func() error { r, err = l.mem.Get(ctx, id, keys...); return err })
	return r, err
}

func (l *life) List(ctx context.Context, id identity.ID, after string, limit int) (p storage.Page, err error) {
	err = l.step(func() error { p, err = l.mem.List(ctx, id, after, limit); return err })
	return p, err
}

func (l *life) Identities(ctx context.Context, after identity.ID, limit int) (out []storage.Ident, err error) {
	err = l.step(func() error { out, err = l.mem.Identities(ctx, after, limit); return err })
	return out, err
}

func (l *life) Commit(ctx context.Context, id identity.ID, ifRev storage.Rev, b storage.Batch) (rev storage.Rev, err error) {
	err = l.step(func() error {
		before := l.mem.ids[id]
		if before != nil {
			before = &memIdentity{before.rev, slices.Clone(before.meta), maps.Clone(before.vals)}
		}
		rev, err = l.mem.Commit(ctx, id, ifRev, b)
		if err == nil {
			l.undo = append(l.undo, func() {
				if before == nil {
					delete(l.mem.ids, id)
				} else {
					l.mem.ids[id] = before
				}
			})
		}
		return err
	})
	return rev, err
}

func (l *life) Cell(ctx context.Context, id identity.ID) (c storage.Cell, err error) {
	stepErr := l.step(func() error { c, err = l.mem.Cell(ctx, id); return nil })
	return c, errors.Join(stepErr, err)
}

func (l *life) PutCell(ctx context.Context, id identity.ID, c storage.Cell) error {
	return l.step(func() error { return l.mem.PutCell(ctx, id, c) })
}

func (l *life) EraseCell(ctx context.Context, id identity.ID) error {
	return l.step(func() error { return l.mem.EraseCell(ctx, id) })
}

func (l *life) Erasure() storage.Class { return l.mem.Erasure() }

func (l *life) Append(ctx context.Context, bodies ...[]byte) (seq uint64, err error) {
	err = l.step(func() error { seq, err = l.mem.Append(ctx, bodies...); return err })
	return seq, err
}

func (l *life) Lines(ctx context.Context) iter.Seq2[[]byte, error] {
	if err := l.step(func() error { return nil }); err != nil {
		return func(yield func([]byte, error) bool) { yield(nil, err) }
	}
	return l.mem.Lines(ctx)
}

func (l *life) Head(ctx context.Context) (h storage.Head, err error) {
	err = l.step(func() error { h, err = l.mem.Head(ctx); return err })
	return h, err
}

func (l *life) Close() error { return nil }

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// keeper opens the store in this process.
func (l *life) keeper() *vault.Keeper {
	source := func(context.Context, identity.ID) (vault.Root, error) { return l.root, nil }
	return vault.Open(l, source, vault.Options{Now: func() time.Time { return noon }})
}

// The callbacks of a command: what it stores outside the store.
func (l *life) keepRoot(r vault.Root) error {
	return l.step(func() error { l.root = r; return nil })
}

func (l *life) keepKey(k identity.Key) error {
	return l.step(func() error { l.profile = k; return nil })
}

func (l *life) keepReceipt(r vault.Receipt) error {
	return l.step(func() error { l.receipts = append(l.receipts, r); return nil })
}

// scene is what is there before a command, and the command.
type scene struct {
	disk     *disk
	id       identity.ID
	recovery identity.Key
	old      []identity.Key // keys that admit their holders
	closed   []identity.Key // keys that are revoked already
	values   map[string]string
	bystand  identity.Key // of another identity

	run func(*life, *vault.Keeper) error
	// held judges what a kill left, done what a run that came to its end left;
	// both return what is wrong.
	held, done func(*life, *vault.Keeper) []string
}

// killEverywhere kills the command of a scene at every point, judges, runs
// it again and judges again. It returns how many points there are, and what
// was wrong at which.
func killEverywhere(s *scene) (points int, wrong []string) { return s.kill(1, false) }

// control is killEverywhere where something must be found; one in three
// points does.
func control(s *scene, lie bool) (wrong []string) {
	_, wrong = s.kill(3, lie)
	return wrong
}

func (s *scene) kill(step int, lie bool) (points int, wrong []string) {
	for at := 1; ; at += step {
		for _, after := range []bool{false, true} {
			d := s.disk.clone()
			l := &life{disk: d, at: at, after: after, lie: lie}
			err := s.run(l, l.keeper())
			if !l.dead {
				if err != nil {
					wrong = append(wrong, "a run that is not killed: "+err.Error())
				}
				return points, wrong
			}
			points++
			for _, w := range s.judge(d) {
				wrong = append(wrong, fmt.Sprintf("killed at %d, after %v: %s", at, after, w))
			}
		}
	}
}

// judge looks at what a kill left, then finishes the command.
func (s *scene) judge(d *disk) (wrong []string) {
	seen := &life{disk: d.clone()} // looking may finish a shred, so it looks at a copy
	wrong = append(wrong, s.held(seen, seen.keeper())...)
	l := &life{disk: d}
	if err := s.run(l, l.keeper()); err != nil {
		return append(wrong, "run again: "+err.Error())
	}
	k := l.keeper()
	wrong = append(wrong, s.done(l, k)...)
	if rep, err := k.VerifyAudit(context.Background()); err != nil || !rep.OK() {
		wrong = append(wrong, fmt.Sprintf("audit: %v, %v", rep.Problems, err))
	}
	if err := s.reads(k, s.bystand, map[string]string{"other": "untouched"}); err != "" {
		wrong = append(wrong, "the other identity: "+err)
	}
	return wrong
}

// reads says what a key reads other than values, empty if nothing.
func (s *scene) reads(k *vault.Keeper, key identity.Key, values map[string]string) string {
	ctx := context.Background()
	v, err := k.Unlock(ctx, key, stdio)
	if err != nil {
		return "its key: " + err.Error()
	}
	labels, err := v.Labels(ctx, "")
	if err != nil {
		return err.Error()
	}
	got := 0
	for _, l := range labels {
		if l.Kind == vault.KindTOTP {
			continue
		}
		sec, err := v.Get(ctx, l.Label, "")
		if err != nil || sec.Reveal() != values[string(l.Label)] {
			return fmt.Sprintf("%s is not what was put: %v", l.Label, err)
		}
		got++
	}
	if got != len(values) {
		return fmt.Sprintf("%d values of %d", got, len(values))
	}
	return ""
}

// word is how a key is received: "" admits it.
func wordOf(k *vault.Keeper, key identity.Key) vault.Word {
	_, err := k.Unlock(context.Background(), key, stdio)
	if err == nil {
		return ""
	}
	return vault.Refuse(err).Word
}

// newScene is a store with an identity of two keys, whose vault holds values
// of every form, and a bystander. The first key has read one value.
func newScene(t *testing.T) *scene {
	t.Helper()
	h := newHouse(t)
	h.clock = noon
	first := h.create(t, "ci", identity.Grant{})
	s := &scene{id: first.Identity(), recovery: h.birth.Recovery, values: map[string]string{}}
	closed, err := h.AddKey(t.Context(), s.id, first, "", identity.Grant{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Revoke(t.Context(), s.id, vault.Revocation{Slots: []identity.SlotID{closed.Slot()}}); err != nil {
		t.Fatal(err)
	}
	second, err := h.AddKey(t.Context(), s.id, first, "", identity.Grant{})
	if err != nil {
		t.Fatal(err)
	}
	s.old, s.closed = []identity.Key{first, second}, []identity.Key{closed}
	for i := range 3 {
		label, value := fmt.Sprintf("app/%d", i), fmt.Sprintf("value-%d", i)
		h.put(t, s.id, secret(label, "older"), secret(label, value))
		s.values[label] = value
	}
	big := strings.Repeat("CANARY-", 1000)
	h.put(t, s.id, secret("big", big), secret("gone", "x"), vault.NewEntry{Label: "otp", Kind: vault.KindTOTP, Fields: []vault.Field{{Name: "value", Value: []byte("JBSWY3DPEHPK3PXP")}}})
	s.values["big"] = big
	if _, err := h.Remove(t.Context(), s.id, "gone"); err != nil {
		t.Fatal(err)
	}
	v := unlock(t, h.Keeper, first)
	get(t, v, "app/0")
	if _, err := v.Code(t.Context(), "otp", 0); err != nil {
		t.Fatal(err)
	}
	s.bystand = h.create(t, "other", identity.Grant{})
	h.put(t, s.bystand.Identity(), secret("other", "untouched"))
	s.disk = &disk{mem: h.mem, root: h.root, profile: first}
	return s
}

// named returns the identities of a name that are not shredded.
func named(k *vault.Keeper, name string) (out []vault.Info, err error) {
	all, err := k.Identities(context.Background())
	for _, i := range all {
		if i.Damaged || i.Name == name {
			out = append(out, i)
		}
	}
	return out, err
}

// closedTogether says what is wrong with the old keys at a point: all admit,
// or all hear revoked, and closed ones never admit.
func (s *scene) closedTogether(k *vault.Keeper) (wrong []string) {
	words := map[vault.Word]int{}
	for _, key := range s.old {
		words[wordOf(k, key)]++
	}
	if len(words) != 1 || words[""]+words[vault.Revoked] != len(s.old) {
		wrong = append(wrong, fmt.Sprintf("old keys hear %v", words))
	}
	return append(wrong, s.stayClosed(k, s.closed)...)
}

func (s *scene) stayClosed(k *vault.Keeper, keys []identity.Key) (wrong []string) {
	for _, key := range keys {
		if w := wordOf(k, key); w != vault.Revoked {
			wrong = append(wrong, fmt.Sprintf("a closed key hears %q", w))
		}
	}
	return wrong
}

// receiptOf says what is wrong with the receipts that were kept.
func receiptOf(receipts []vault.Receipt) (wrong []string) {
	if len(receipts) == 0 {
		return []string{"no receipt"}
	}
	for _, r := range receipts {
		if len(r.Revealed) != 1 || r.Revealed[0].Label != "app/0" || len(r.Codes) != 1 || !r.Audit.Complete {
			wrong = append(wrong, fmt.Sprintf("receipt names %v and %v, complete %v", r.Revealed, r.Codes, r.Audit.Complete))
		}
	}
	return wrong
}

// leaked is `identity rotate ci --leaked` with the key that proofs gives.
func (s *scene) leaked(proof func(*life) identity.Key) {
	s.run = func(l *life, k *vault.Keeper) error {
		i, err := k.Find(context.Background(), "ci")
		if err != nil || i.ID != s.id && i.Replaces.IsZero() { // killed after the last step
			return err
		}
		_, err = k.Replace(context.Background(), i.ID, proof(l), vault.Replacement{Hand: l.keepKey, Keep: l.keepReceipt})
		return err
	}
	s.held = func(l *life, k *vault.Keeper) []string {
		wrong := s.closedTogether(k)
		all, err := k.Identities(context.Background())
		if err != nil {
			return append(wrong, err.Error())
		}
		for _, i := range all {
			if i.ID == s.id && i.Status == identity.Shredded {
				wrong = append(wrong, s.tookOver(l, k)...)
			}
		}
		return wrong
	}
	s.done = func(l *life, k *vault.Keeper) []string {
		wrong := append(s.tookOver(l, k), s.stayClosed(k, append(slices.Clone(s.old), s.closed...))...)
		if is, err := named(k, "ci"); err != nil || len(is) != 1 || is[0].ID != l.profile.Identity() {
			wrong = append(wrong, fmt.Sprintf("identities of the name: %d, %v", len(is), err))
		}
		return wrong
	}
}

// tookOver says what the identity of the profile lacks.
func (s *scene) tookOver(l *life, k *vault.Keeper) []string {
	var wrong []string
	if l.profile.Identity() == s.id {
		wrong = append(wrong, "the profile has the old key")
	}
	if err := s.reads(k, l.profile, s.values); err != "" {
		return append(wrong, "the heir: "+err)
	}
	labels, err := k.Labels(context.Background(), l.profile.Identity())
	if err != nil || len(labels) != len(s.values)+1 || labels[0].Version != 2 {
		wrong = append(wrong, fmt.Sprintf("labels = %d, %v", len(labels), err))
	}
	v, err := k.Unlock(context.Background(), l.profile, stdio)
	if err != nil {
		return append(wrong, err.Error())
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if _, err := v.Code(ctx, "otp", 0); err == nil {
		wrong = append(wrong, "a code is given out twice")
	}
	return append(wrong, receiptOf(l.receipts)...)
}

func report(t *testing.T, what string, points int, wrong []string) {
	t.Helper()
	t.Logf("%s: %d points", what, points)
	for i, w := range wrong {
		if i == 8 {
			t.Errorf("%s: and %d more", what, len(wrong)-i)
			break
		}
		t.Errorf("%s: %s", what, w)
	}
	if points < 10 {
		t.Errorf("%s: %d points; the harness sees nothing", what, points)
	}
}

func TestReplaceKilledAnywhereLosesNothing(t *testing.T) {
	s := newScene(t)
	few := 4 // one in so many points, with proofs that differ little from the first
	if os.Getenv("SOLEKEY_SOAK") == "1" {
		few = 1
	}
	for _, c := range []struct {
		what  string
		step  int
		proof func(*life) identity.Key
	}{
		{"the profile's key", 1, func(l *life) identity.Key { return l.profile }},
		{"the recovery key", 1, func(*life) identity.Key { return s.recovery }},
		{"the leaked key", few, func(*life) identity.Key { return s.old[0] }},
		{"the other key", few, func(*life) identity.Key { return s.old[1] }},
	} {
		s.leaked(c.proof)
		points, wrong := s.kill(c.step, false)
		report(t, c.what, points, wrong)
	}
}

// TestReplaceKilledTwice kills the second run as well.
func TestReplaceKilledTwice(t *testing.T) {
	s := newScene(t)
	s.leaked(func(l *life) identity.Key { return l.profile })
	step := 9
	if os.Getenv("SOLEKEY_SOAK") == "1" {
		step = 1
	}
	pairs := 0
	for first := 1; ; first += step {
		l := &life{disk: s.disk.clone(), at: first, after: first%2 == 0}
		if _ = s.run(l, l.keeper()); !l.dead {
			break
		}
		again := *s
		again.disk = l.disk
		for second := 1; ; second += step {
			m := &life{disk: l.disk.clone(), at: second, after: second%3 == 0}
			if _ = again.run(m, m.keeper()); !m.dead {
				break
			}
			pairs++
			for _, w := range again.judge(m.disk) {
				t.Errorf("killed at %d, then at %d: %s", first, second, w)
			}
		}
	}
	t.Logf("%d pairs", pairs)
	if pairs < 50 {
		t.Errorf("%d pairs; the harness sees nothing", pairs)
	}
}

// TestHarnessSeesLostValues shreds before the copy is durable, in two ways:
// a command in the wrong order, and a disk that lies about its commits.
func TestHarnessSeesLostValues(t *testing.T) {
	s := newScene(t)
	s.leaked(func(l *life) identity.Key { return l.profile })
	s.run = func(l *life, k *vault.Keeper) error {
		ctx := context.Background()
		if l.profile.Identity() != s.id { // run again after the key was kept
			return nil
		}
		v, err := k.Unlock(ctx, s.old[0], stdio)
		if err != nil {
			return err
		}
		var es []vault.NewEntry
		for _, label := range slices.Sorted(maps.Keys(s.values)) {
			sec, err := v.Get(ctx, vault.Label(label), "")
			if err != nil {
				return err
			}
			es = append(es, secret(label, sec.Reveal()))
		}
		if _, err := k.Revoke(ctx, s.id, vault.Revocation{Shred: true, Keep: l.keepReceipt}); err != nil {
			return err
		}
		key, err := k.Create(ctx, vault.NewIdentity{Name: "ci"})
		if err != nil {
			return err
		}
		if _, err := k.Import(ctx, key.Identity(), es, true); err != nil {
			return err
		}
		return l.keepKey(key)
	}
	wrong := control(s, false)
	lost := slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, "run again: This key has been revoked") })
	if !lost {
		t.Errorf("a command that shreds first passes: %v", wrong)
	}

	s.leaked(func(l *life) identity.Key { return l.profile })
	if wrong = control(s, true); len(wrong) == 0 {
		t.Error("a disk that lies about its commits passes")
	}
}

func TestShredKilledAnywhere(t *testing.T) {
	s := newScene(t)
	s.shredding(nil)
	points, wrong := killEverywhere(s)
	report(t, "shred", points, wrong)

	s.shredding(func(l *life) error { return l.EraseCell(context.Background(), s.id) })
	if wrong = control(s, false); len(wrong) == 0 {
		t.Error("control: a shred that erases before the keys are closed passes")
	}
}

// shredding is `identity revoke ci --shred`, after first.
func (s *scene) shredding(first func(*life) error) {
	s.run = func(l *life, k *vault.Keeper) error {
		if first != nil {
			if err := first(l); err != nil {
				return err
			}
		}
		if is, err := named(k, "ci"); err != nil || len(is) == 0 {
			return err
		}
		_, err := k.Revoke(context.Background(), s.id, vault.Revocation{Shred: true, Keep: l.keepReceipt})
		return err
	}
	s.held = func(_ *life, k *vault.Keeper) []string { return s.closedTogether(k) }
	s.done = func(l *life, k *vault.Keeper) []string {
		wrong := append(s.stayClosed(k, append(slices.Clone(s.old), s.closed...)), receiptOf(l.receipts)...)
		if is, err := named(k, "ci"); err != nil || len(is) != 0 {
			wrong = append(wrong, fmt.Sprintf("identities of the name: %d, %v", len(is), err))
		}
		if len(l.mem.ids[s.id].vals) != 0 || !l.mem.dead[s.id] {
			wrong = append(wrong, "records or the cell are left")
		}
		return wrong
	}
}

func TestRecoverKilledAnywhereRevivesNoKey(t *testing.T) {
	for _, revoked := range []bool{false, true} {
		s := newScene(t)
		live := s.old
		if revoked {
			l := &life{disk: s.disk}
			if _, err := l.keeper().Revoke(t.Context(), s.id, vault.Revocation{}); err != nil {
				t.Fatal(err)
			}
			s.closed, live = append(s.closed, s.old...), nil
		}
		s.recovering(live)
		points, wrong := killEverywhere(s)
		report(t, fmt.Sprintf("recover, revoked %v", revoked), points, wrong)
		if wrong = control(s, true); len(wrong) == 0 {
			t.Error("control: a disk that lies about its commits passes")
		}
	}
}

// recovering is `identity recover ci`; the keys in live go on.
func (s *scene) recovering(live []identity.Key) {
	s.run = func(l *life, k *vault.Keeper) error {
		if l.profile.Slot() != s.old[0].Slot() { // kept by an earlier run
			return nil
		}
		key, err := k.Recover(context.Background(), s.id, s.recovery, identity.Grant{})
		if err != nil {
			return err
		}
		return l.keepKey(key)
	}
	s.held = func(_ *life, k *vault.Keeper) []string { return s.stayClosed(k, s.closed) }
	s.done = func(l *life, k *vault.Keeper) []string {
		wrong := s.stayClosed(k, s.closed)
		for _, key := range append(slices.Clone(live), l.profile) {
			if err := s.reads(k, key, s.values); err != "" {
				wrong = append(wrong, err)
			}
		}
		return wrong
	}
}

func TestRotateRootKilledAnywhere(t *testing.T) {
	s := newScene(t)
	l := &life{disk: s.disk}
	gone, err := l.keeper().Create(t.Context(), vault.NewIdentity{Name: "gone"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.keeper().Revoke(t.Context(), gone.Identity(), vault.Revocation{Shred: true}); err != nil {
		t.Fatal(err)
	}
	s.closed = append(s.closed, gone)
	s.rotatingRoot(func(l *life, r vault.Root) error { return l.keepRoot(r) })
	points, wrong := killEverywhere(s)
	report(t, "root rotation", points, wrong)

	s.rotatingRoot(func(l *life, r vault.Root) error { return l.keepRoot(newestOnly(t, r)) })
	if wrong = control(s, false); len(wrong) == 0 {
		t.Error("control: a rotation that drops the older root secret first passes")
	}
}

func newestOnly(t *testing.T, r vault.Root) vault.Root {
	lines := strings.Split(strings.TrimSpace(r.Reveal()), "\n")
	out, err := vault.ParseRoot(lines[0] + "\n" + lines[len(lines)-1])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// rotatingRoot is `root rotate`.
func (s *scene) rotatingRoot(keep func(*life, vault.Root) error) {
	s.run = func(l *life, k *vault.Keeper) error {
		_, err := k.RotateRoot(context.Background(), func(r vault.Root) error { return keep(l, r) })
		return err
	}
	s.held = func(_ *life, k *vault.Keeper) []string {
		wrong := s.stayClosed(k, s.closed)
		for _, key := range s.old {
			if err := s.reads(k, key, s.values); err != "" {
				wrong = append(wrong, err)
			}
		}
		return wrong
	}
	s.done = func(l *life, k *vault.Keeper) []string {
		wrong := s.held(l, k)
		if n := strings.Count(l.root.Reveal(), "\n"); n != 2 {
			wrong = append(wrong, fmt.Sprintf("root text has %d lines", n))
		}
		return wrong
	}
}
