package seal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
)

func TestRootTextRoundTrips(t *testing.T) {
	for _, r := range []seal.Root{seal.NewRoot(), must(seal.ParseRoot(rootText(1))), must(seal.ParseRoot(rootText(3, 2)))} {
		again, err := seal.ParseRoot(r.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if again.Reveal() != r.Reveal() || again.StoreID() != r.StoreID() || again.Epoch() != r.Epoch() {
			t.Error("ParseRoot(Reveal()) is another root")
		}
	}
	a, b := seal.NewRoot(), seal.NewRoot()
	if a.StoreID() == b.StoreID() || a.Store().SessionSecret() == b.Store().SessionSecret() {
		t.Error("two new roots are alike")
	}
	var zero seal.Root
	if zero.Epoch() != 0 || zero.Has(0) || zero.Reveal() != "" || !zero.StoreID().IsZero() {
		t.Error("the zero Root is not empty")
	}
	defer func() {
		if recover() == nil {
			t.Error("Store of the zero Root returns")
		}
	}()
	zero.Store()
}

func TestMalformedRootTextIsRefused(t *testing.T) {
	good := rootText(1)
	lines := strings.SplitAfter(good, "\n")
	audit, first := lines[1], lines[2]
	foreign := strings.SplitAfter(seal.NewRoot().Reveal(), "\n")[1]
	for name, text := range map[string]string{
		"empty":          "",
		"no audit seed":  first,
		"only the audit": audit,
		"twice":          audit + first + first,
		"two stores":     audit + foreign,
		"leading zero":   audit + "0" + first,
		"sign":           audit + "+" + first,
		"too large":      audit + strings.Replace(first, "1 ", "4294967296 ", 1),
		"no epoch":       audit + first[2:],
		"typo":           audit + strings.Replace(first, "slroot1_0", "slroot1_1", 1),
		"an API key":     audit + "1 " + agentText + "\n",
		"trailing words": audit + strings.TrimSuffix(first, "\n") + " x\n",
	} {
		_, err := seal.ParseRoot(text)
		refused(t, name, err)
		if err != nil && strings.Contains(err.Error(), "slroot1_") {
			t.Errorf("%s: the error shows the text", name)
		}
	}
	_, err := seal.ParseRoot(audit + "\n\r\n# note\n" + "x\n")
	if err == nil || !strings.Contains(err.Error(), "line 5") {
		t.Errorf("error %v does not name line 5", err)
	}
	if _, err := seal.ParseRoot("  " + strings.ReplaceAll(first+audit, "\n", "\r\n")); err != nil {
		t.Errorf("blanks, other order, CRLF: %v", err)
	}
}

// TestRootRotation: the newer root opens both epochs and seals under its own;
// the older one says that it lacks an epoch. Tags and signatures stay.
func TestRootRotation(t *testing.T) {
	k := newKit(t)
	both := must(seal.ParseRoot(rootText(1, 2)))
	newer, store := both.Store(), k.store
	if both.Epoch() != 2 || !both.Has(1) || !both.Has(2) || both.Has(0) || both.Has(3) {
		t.Error("epochs of the newer root are not 1 and 2")
	}
	old := must(store.SealHeader(k.id, k.z, k.header))
	h, err := newer.OpenHeader(k.id, k.z, old)
	if err != nil {
		t.Fatalf("opening a header of the older epoch: %v", err)
	}
	resealed := must(newer.SealHeader(k.id, k.z, h))
	if _, epoch, _ := seal.Peek(resealed); epoch != 2 {
		t.Errorf("resealed under epoch %d, want 2", epoch)
	}
	_, err = store.OpenHeader(k.id, k.z, resealed)
	refused(t, "opening a header of an epoch not known", err)
	alone := must(seal.ParseRoot(rootText(2))).Store()
	if _, err := alone.OpenHeader(k.id, k.z, resealed); err != nil {
		t.Errorf("opening with the newer secret alone: %v", err)
	}
	_, err = alone.OpenHeader(k.id, k.z, old)
	refused(t, "opening an older header without its secret", err)
	if newer.Tag(k.id, label) != k.tag || !bytes.Equal(newer.AuditPublic(), store.AuditPublic()) {
		t.Error("tag or audit key changed")
	}
	if newer.SessionSecret() == store.SessionSecret() {
		t.Error("session secret did not change")
	}
}

func TestSecretsPrintRedacted(t *testing.T) {
	k := newKit(t)
	for _, v := range []any{k.root, k.store, k.outer, k.inner, k.header, *k.header, value[0]} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if got := fmt.Sprintf(verb, v); got != "[redacted]" {
				t.Errorf("%s of %T = %s", verb, v, got)
			}
		}
		if got, err := json.Marshal(v); err != nil || string(got) != `"[redacted]"` {
			t.Errorf("JSON of %T = %s, %v", v, got, err)
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		if strings.Count(log.String(), "[redacted]") != 2 {
			t.Errorf("log of %T = %s", v, log.String())
		}
	}
	holder := struct{ root seal.Root }{k.root}
	if got := fmt.Sprintf("%v %+v %#v", holder, holder, holder); strings.Contains(got, "80 81 82") || strings.Contains(got, "0x50, 0x51") {
		t.Error("a root in an unexported field prints its bytes")
	}
}

func TestWipeClears(t *testing.T) {
	k := newKit(t)
	k.outer.Wipe()
	if a, b := k.outer.Keys(); a != [32]byte{} || b != [32]byte{} {
		t.Error("keys of Outer survive Wipe")
	}
	k.inner.Wipe()
	if k.inner.Secret() != [32]byte{} {
		t.Error("secret of Inner survives Wipe")
	}
}

// TestArgumentsStayTheirOwners: opens and seals change no argument, and what
// they return does not change when an argument does.
func TestArgumentsStayTheirOwners(t *testing.T) {
	s := newStored(t)
	meta, entry, mailbox := bytes.Clone(s.meta), bytes.Clone(s.entry), bytes.Clone(s.mailbox)
	h := must(s.store.OpenHeader(s.id, s.z, meta))
	e := must(s.outer.OpenEntry(s.entryKey, entry))
	boxed := must(s.outer.OpenEntry(s.entryKey, mailbox))
	if !bytes.Equal(meta, s.meta) || !bytes.Equal(entry, s.entry) || !bytes.Equal(mailbox, s.mailbox) {
		t.Fatal("an open changed its argument")
	}
	inner := bytes.Clone(boxed.Inner)
	fields := must(s.inner.Open(s.bind, seal.FormMailbox, boxed.Inner))
	if !bytes.Equal(inner, boxed.Inner) {
		t.Fatal("Open changed its argument")
	}
	for _, b := range [][]byte{meta, entry, mailbox, boxed.Inner} {
		clear(b)
	}
	if !bytes.Equal(h.PK, s.pk) || e.Label != label || len(fields) != 1 {
		t.Error("a result changed with its argument")
	}
	secret := []byte("kept by the caller")
	must(s.inner.Seal(s.bind, []seal.Field{{Name: "value", Value: secret}}))
	if string(secret) != "kept by the caller" {
		t.Error("Seal changed a value")
	}
	h.PK = append(h.PK, 1)
	if !bytes.Equal(h.Slots[0].Wrapped, s.header.Slots[0].Wrapped) || h.Name != s.header.Name {
		t.Error("appending to one slice of a header reaches another")
	}
}

func TestSealsDiffer(t *testing.T) {
	s := newStored(t)
	if bytes.Equal(s.meta, must(s.store.SealHeader(s.id, s.z, s.header))) {
		t.Error("two seals of one header are alike")
	}
	if bytes.Equal(must(s.inner.Seal(s.bind, value)), must(s.inner.Seal(s.bind, value))) {
		t.Error("two seals of one value are alike")
	}
}

func TestSetHashIsASum(t *testing.T) {
	k := newKit(t)
	a, b := k.outer.Elem("a", []byte("1")), k.outer.Elem("b", []byte("1"))
	if a.Add(b) != b.Add(a) || a.Add(b).Sub(b) != a || a.Sub(a) != (seal.SetHash{}) {
		t.Error("Add and Sub are no group")
	}
	var one, all seal.SetHash
	one[31] = 1
	for i := range all {
		all[i] = 0xff
	}
	if all.Add(one) != (seal.SetHash{}) || (seal.SetHash{}).Sub(one) != all {
		t.Error("the sum does not wrap at 2^256")
	}
	if a == b || a == k.outer.Elem("a", []byte("2")) || a == k.store.Outer(identity.ID{9}, k.header).Elem("a", []byte("1")) {
		t.Error("elements of other keys, values or identities are alike")
	}
}

// TestColdReadAllocations is the gate of docs/SPEC.md section 15.
func TestColdReadAllocations(t *testing.T) {
	if sampled {
		t.Skip("the race detector allocates")
	}
	s := newStored(t)
	got := testing.AllocsPerRun(100, func() {
		if _, err := s.read(s.entry); err != nil {
			t.Fatal(err)
		}
	})
	if got > 40 {
		t.Errorf("a cold read allocates %v times, want at most 40", got)
	}
}

func TestDoRuns(t *testing.T) {
	s := newStored(t)
	var n int
	err := errors.New("not run")
	seal.Do(func() {
		var fields []seal.Field
		fields, err = s.read(s.entry)
		n = len(fields)
	})
	if err != nil || n != 1 {
		t.Errorf("read inside Do = %d fields, %v", n, err)
	}
}
