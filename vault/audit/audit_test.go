package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// journal is a log in memory.
type journal struct {
	lines [][]byte
	head  *storage.Head // nil: that of the lines
	err   error
}

func (j *journal) Append(_ context.Context, bodies ...[]byte) (uint64, error) {
	if err := errors.Join(j.err, storage.CheckBodies(bodies...)); err != nil {
		return 0, err
	}
	first := uint64(len(j.lines))
	for _, b := range bodies {
		var prev [32]byte
		if n := len(j.lines); n > 0 {
			prev = sha256.Sum256(j.lines[n-1])
		}
		j.lines = append(j.lines, fmt.Appendf(nil, `{"seq":%d,"prev":"%s",%s`, len(j.lines), hex.EncodeToString(prev[:]), b[1:]))
	}
	return first, nil
}

func (j *journal) Lines(context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, l := range j.lines {
			if !yield(l, nil) {
				return
			}
		}
	}
}

func (j *journal) Head(context.Context) (storage.Head, error) {
	if j.head != nil {
		return *j.head, nil
	}
	h := storage.Head{Lines: uint64(len(j.lines))}
	if n := len(j.lines); n > 0 {
		h.Hash = sha256.Sum256(j.lines[n-1])
	}
	return h, nil
}

var at = time.Date(2026, 11, 23, 14, 5, 32, 0, time.UTC)

func record(i int) audit.Record {
	id := identity.ID{byte(i), 1}
	return audit.Record{Time: at.Add(time.Duration(i) * time.Second), Event: audit.Get, Identity: id, Key: "06cde5e6", Class: "reveal", Via: "stdio", Labels: []audit.Ref{{Tag: audit.Tag{byte(i)}, Version: 3}}, Gen: uint64(i + 1)}
}

func logOf(t testing.TB, n int) *journal {
	t.Helper()
	j := &journal{}
	recs := []audit.Record{{Time: at, Event: audit.Genesis, Key: audit.Owner, Via: "cli", Note: "a b c"}}
	for i := 1; i < n; i++ {
		recs = append(recs, record(i))
	}
	for _, r := range recs {
		if err := audit.Append(t.Context(), j, r); err != nil {
			t.Fatal(err)
		}
	}
	head, _ := j.Head(t.Context())
	j.head = &head
	return j
}

func TestGenesisLineIsThePublishedOne(t *testing.T) {
	storeID := "404142434445464748494a4b4c4d4e4f"
	pub := "7fd47c6461a1bd48ca38decc41084e419e87db88ec46d08b88e458efb5af67a1"
	rec := "2c85a7ea307ff3aa3bd7f901af536b923a3e2aeaa4e627d5a50a187fa7d021e5"
	j := &journal{}
	if err := audit.Append(t.Context(), j, audit.Record{Time: at, Event: audit.Genesis, Key: audit.Owner, Via: "cli", Note: storeID + " " + pub + " " + rec}); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(j.lines[0])
	if got, want := hex.EncodeToString(sum[:]), "955e8b2a3469d8a280d299f2d6d246c3890e945aa5ce96da69a7977a9cf01f60"; got != want {
		t.Errorf("H(line 0) = %s, want %s\n%s", got, want, j.lines[0])
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	full := audit.Record{
		Time: at.Add(123456 * time.Microsecond), Event: audit.Put, Denied: true, Why: "forbidden", Identity: identity.ID{1, 2}, Key: audit.Owner, Slot: "01020304",
		Class: "use", Dest: "api.example.com", Via: "http", From: "203.0.113.7", Labels: []audit.Ref{{Tag: audit.Tag{7}, Version: 1}, {Tag: audit.Tag{8}, Version: 1 << 31}},
		Gen: 9, Was: audit.Hash{1}, Is: audit.Hash{2}, N: 2, Note: "quote \" back\\slash\nline\u2028 <é>",
	}
	j := &journal{}
	if err := audit.Append(t.Context(), j, full, record(1)); err != nil {
		t.Fatal(err)
	}
	var got []audit.Record
	for r, err := range audit.Records(t.Context(), j) {
		if err != nil {
			t.Fatal(err)
		}
		r.Seq, r.Prev = 0, ""
		got = append(got, r)
	}
	if d := cmp.Diff([]audit.Record{full, record(1)}, got); d != "" {
		t.Errorf("records differ (-want +got):\n%s", d)
	}
}

func TestManyLabelsBecomeSeveralLines(t *testing.T) {
	r := record(1)
	r.Labels = nil
	for i := range 95 {
		r.Labels = append(r.Labels, audit.Ref{Tag: audit.Tag{byte(i)}, Version: 1<<32 - 1})
	}
	r.Note = strings.Repeat("n", 200)
	j := &journal{}
	if err := audit.Append(t.Context(), j, r); err != nil {
		t.Fatal(err)
	}
	var labels []audit.Ref
	for got := range audit.Records(t.Context(), j) {
		labels = append(labels, got.Labels...)
	}
	if len(j.lines) != 3 || !slices.Equal(labels, r.Labels) {
		t.Errorf("%d lines with %d labels, want 3 with 95", len(j.lines), len(labels))
	}
}

func TestUnwritableLogIsNamed(t *testing.T) {
	err := audit.Append(t.Context(), &journal{err: storage.ErrFull}, record(1))
	if !errors.Is(err, audit.ErrUnwritable) || !errors.Is(err, storage.ErrFull) {
		t.Errorf("Append = %v", err)
	}
}

func TestVerifyFindsEverySingleLineChange(t *testing.T) {
	const n = 40
	check := func(name string, lines [][]byte) {
		j := logOf(t, n)
		j.lines = lines
		rep, err := audit.Verify(t.Context(), j, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rep.OK() {
			t.Errorf("%s is not found", name)
		}
	}
	clean := logOf(t, n)
	rep, err := audit.Verify(t.Context(), clean, nil)
	if err != nil || !rep.OK() || rep.Lines != n {
		t.Fatalf("control: Verify of a clean log = %+v, %v", rep, err)
	}
	edit := func(i int, f func(l []byte) []byte) [][]byte {
		out := slices.Clone(clean.lines)
		out[i] = f(slices.Clone(out[i]))
		return out
	}
	for i := range n {
		for at := 0; at < len(clean.lines[i]); at += 7 {
			check(fmt.Sprintf("line %d, byte %d", i, at), edit(i, func(l []byte) []byte { l[at] ^= 1; return l }))
		}
		check(fmt.Sprintf("deny as allow in line %d", i), edit(i, func(l []byte) []byte { return bytes.Replace(l, []byte("allow"), []byte("deny"), 1) }))
		check(fmt.Sprintf("line %d dropped", i), slices.Delete(slices.Clone(clean.lines), i, i+1))
		check(fmt.Sprintf("line %d doubled", i), slices.Insert(slices.Clone(clean.lines), i, clean.lines[i]))
		if i > 0 {
			out := slices.Clone(clean.lines)
			out[i-1], out[i] = out[i], out[i-1]
			check(fmt.Sprintf("lines %d and %d swapped", i-1, i), out)
			check(fmt.Sprintf("the log cut after line %d", i-1), clean.lines[:i])
		}
	}
	check("every line dropped", nil)
}

func FuzzParse(f *testing.F) {
	for _, l := range logOf(f, 3).lines {
		f.Add(l)
	}
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := audit.Parse(b)
		if err != nil {
			if !errors.Is(err, audit.ErrMalformed) {
				t.Errorf("Parse = %v, want ErrMalformed", err)
			}
			return
		}
		if len(r.Note)+len(r.Dest) > 1000 || len(r.Labels) > 32 || r.Time.Year() > 9999 || r.Time.Year() < 0 {
			return // not writable as one line
		}
		j := &journal{}
		if audit.Append(t.Context(), j, r) != nil {
			return
		}
		again, err := audit.Parse(j.lines[0])
		again.Seq, again.Prev = r.Seq, r.Prev
		again.Time, r.Time = again.Time.Truncate(time.Microsecond), r.Time.Truncate(time.Microsecond)
		if d := cmp.Diff(r, again); err != nil || d != "" {
			t.Errorf("second Parse = %v (-first +second):\n%s", err, d)
		}
	})
}

// FuzzParseAgrees compares the quick way of Parse with the JSON decoder: what
// the quick way accepts, both read alike.
func FuzzParseAgrees(f *testing.F) {
	for _, l := range logOf(f, 3).lines {
		f.Add(l)
		for _, pair := range [][2]string{{`,"gen":2`, `,"gen":02`}, {`,"gen":2`, `,"gen":-2`}, {`"ev"`, `"EV"`}, {"}", "}}"}, {"}", "}\n"}, {":3", ":4294967296"}, {`"id":"`, `"id":"0000`}, {"get", `g\u0065t`}, {"allow", "maybe"}} {
			f.Add(bytes.Replace(l, []byte(pair[0]), []byte(pair[1]), 1))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		quick, ok := audit.ParseWritten(b)
		if !ok {
			return
		}
		slow, err := audit.ParseJSON(b)
		if d := cmp.Diff(slow, quick); err != nil || d != "" {
			t.Errorf("the decoder says %v (-decoder +quick):\n%s", err, d)
		}
	})
}

func TestWrittenLinesAreReadTheQuickWay(t *testing.T) {
	for i, l := range logOf(t, 5).lines {
		if _, ok := audit.ParseWritten(l); !ok {
			t.Errorf("line %d is left to the JSON decoder", i)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	l := logOf(b, 2).lines[1]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := audit.Parse(l); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	j := &journal{}
	r := record(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := audit.Append(b.Context(), j, r); err != nil {
			b.Fatal(err)
		}
		j.lines = j.lines[:0]
	}
}

func BenchmarkVerify(b *testing.B) {
	j := logOf(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		if rep, err := audit.Verify(b.Context(), j, nil); err != nil || !rep.OK() {
			b.Fatal(rep, err)
		}
	}
}
