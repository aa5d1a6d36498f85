package audit_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

// signer is a store that signs checkpoints.
func signer() (st *seal.Store, fingerprint identity.ID) {
	st = seal.NewRoot().Store()
	return st, st.Fingerprint(nil)
}

func checkpointOf(st *seal.Store, seq uint64) (audit.Checkpoint, []byte) {
	c := audit.Checkpoint{Store: st.Fingerprint(nil), Seq: seq, Hash: audit.Sum{1, 2, 3}, Time: at}
	return c, st.SignNote(c.Signer(), c.Text())
}

func TestCheckpointsRoundTrip(t *testing.T) {
	st, fp := signer()
	var want []audit.Checkpoint
	var file []byte
	for _, seq := range []uint64{0, 8122, 1<<64 - 1} {
		c, note := checkpointOf(st, seq)
		want, file = append(want, c), append(file, note...)
	}
	got, err := audit.ParseCheckpoints(file, fp, st.AuditPublic())
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("ParseCheckpoints = %v (-want +got):\n%s", err, d)
	}
}

func TestNoByteOfACheckpointCanBeChanged(t *testing.T) {
	st, fp := signer()
	_, note := checkpointOf(st, 8122)
	refused := func(what string, i int, b []byte) {
		if _, err := audit.ParseCheckpoint(b, fp, st.AuditPublic()); err == nil {
			t.Errorf("%s at byte %d is taken", what, i)
		}
	}
	for i := range note {
		for bit := range 8 {
			b := slices.Clone(note)
			b[i] ^= 1 << bit
			refused("a flipped bit", i, b)
		}
		refused("a cut", i, note[:i])
		refused("a lost byte", i, slices.Delete(slices.Clone(note), i, i+1))
		refused("a line feed more", i, slices.Insert(slices.Clone(note), i, '\n'))
	}
	refused("a byte more", len(note), append(slices.Clone(note), '\n'))
	if _, err := audit.ParseCheckpoint(note, fp, st.AuditPublic()); err != nil {
		t.Errorf("control: %v", err)
	}
}

// A store may sign other notes, and a checkpoint in another writing.
func TestSignedTextThatIsNoCheckpointIsRefused(t *testing.T) {
	st, fp := signer()
	c, _ := checkpointOf(st, 7)
	for _, pair := range [][2]string{{"\n7\n", "\n07\n"}, {"\n7\n", "\n+7\n"}, {"\n7\n", "\n18446744073709551616\n"}, {"Z\n", "+00:00\n"}, {"Z\n", ".5Z\n"}, {"Z\n", "Z\n\n"}, {"/audit", "/other"}, {"AQID", "AQI"}} {
		text := bytes.Replace([]byte(c.Text()), []byte(pair[0]), []byte(pair[1]), 1)
		if string(text) == c.Text() {
			t.Fatalf("%q is not in the text", pair[0])
		}
		if _, err := audit.ParseCheckpoint(st.SignNote(c.Signer(), string(text)), fp, st.AuditPublic()); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// FuzzCheckpoints: what is accepted is what the store signs, byte by byte.
func FuzzCheckpoints(f *testing.F) {
	st, fp := signer()
	_, one := checkpointOf(st, 8122)
	_, two := checkpointOf(st, 9000)
	f.Add(one)
	f.Add(slices.Concat(one, two))
	f.Add(bytes.ReplaceAll(one, []byte("\n"), []byte("\r\n")))
	f.Add([]byte("\n— "))
	f.Fuzz(func(t *testing.T, b []byte) {
		cs, err := audit.ParseCheckpoints(b, fp, st.AuditPublic())
		if err != nil {
			return
		}
		var again []byte
		for _, c := range cs {
			again = append(again, st.SignNote(c.Signer(), c.Text())...)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("checkpoints are accepted that are written otherwise: %q", b)
		}
	})
}
