package seal_test

import (
	"bytes"
	"testing"

	"github.com/solekey/solekey/internal/seal"
)

// FuzzOpenNote: a note that opens is the one that SignNote writes.
func FuzzOpenNote(f *testing.F) {
	st := seal.NewRoot().Store()
	good := st.SignNote("solekey/x", "one\ntwo\n")
	f.Add(good)
	f.Add(st.SignNote("solekey/x", "\n\n— solekey/x \n"))
	f.Add(bytes.Replace(good, []byte("solekey/x "), []byte("solekey/x  "), 1))
	f.Add([]byte("\n\n— solekey/x "))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := seal.OpenNote(b, "solekey/x", st.AuditPublic())
		if err == nil && !bytes.Equal(st.SignNote("solekey/x", text), b) {
			t.Errorf("a note opens that is written otherwise: %q", b)
		}
	})
}

func TestNoteOpensUnderItsNameAndKeyOnly(t *testing.T) {
	st, other := seal.NewRoot().Store(), seal.NewRoot().Store()
	note := st.SignNote("solekey/x", "text\n")
	if text, err := seal.OpenNote(note, "solekey/x", st.AuditPublic()); err != nil || text != "text\n" {
		t.Errorf("OpenNote = %q, %v", text, err)
	}
	for what, open := range map[string]func() (string, error){
		"another name": func() (string, error) { return seal.OpenNote(note, "solekey/y", st.AuditPublic()) },
		"another key":  func() (string, error) { return seal.OpenNote(note, "solekey/x", other.AuditPublic()) },
		"no key":       func() (string, error) { return seal.OpenNote(note, "solekey/x", nil) },
		"another's note": func() (string, error) {
			return seal.OpenNote(other.SignNote("solekey/x", "text\n"), "solekey/x", st.AuditPublic())
		},
	} {
		if text, err := open(); err == nil || text != "" {
			t.Errorf("under %s OpenNote = %q, %v", what, text, err)
		}
	}
}

// TestNoteKnownAnswer is the checkpoint of docs/SPEC.md section 12: of line 0
// of the store of the other known answers, at the time of that line.
func TestNoteKnownAnswer(t *testing.T) {
	k := newKit(t)
	name := "solekey/" + k.store.Fingerprint(k.recoveryPK).String()
	text := name + "/audit\n0\nlV6LKjRp2KKA0pny1tJGw4kOlFqlzpbaaaeXepzwH2A=\n2026-11-23T14:05:32Z\n"
	want := text + "\n— " + name + " SsZFTeuo6L6wAgfnmCr71Cn3xk90dbPwQ/LzPnhNgcvpPsaP2FsVnGxk7htaved0H5MdvXu6oE+zym2ADca8xpg6cQs=\n"
	if got := string(k.store.SignNote(name, text)); got != want {
		t.Errorf("SignNote = %q, want %q", got, want)
	}
}
