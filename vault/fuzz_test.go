package vault_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
)

// FuzzFrames: the body of a frame of a backup is refused, or written as it was
// read. FuzzArchive feeds whole files; the keys of a backup are sealed, so that
// only this target reaches what is below.
func FuzzFrames(f *testing.F) {
	id, blob := bytes.Repeat([]byte{7}, 16), []byte{0, 0, 0, 1, 9}
	record := []byte{2, 1, 'k', 0, 0, 0, 1, 'v'}
	cell := append(bytes.Clone(id), append([]byte{1}, make([]byte, 32)...)...)
	keys := append([]byte{0, 0, 0, 4, 'r', 'o', 'o', 't', 0, 0, 0, 1}, cell...)
	for kind, b := range map[byte][]byte{1: append(bytes.Repeat([]byte{7}, 16+32+32), append(be64(1), blob...)...), 2: append(bytes.Clone(id), blob...), 3: record, 5: keys, 7: append(bytes.Repeat(be64(1), 3), make([]byte, 32)...)} {
		if _, ok := reencode(kind, b); !ok {
			f.Fatalf("control: a whole body of kind %d is refused", kind)
		}
		f.Add(kind, b)
		f.Add(kind, b[:len(b)-1])
		f.Add(kind, append(bytes.Clone(b), 0))
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		if again, ok := reencode(kind, b); ok && !bytes.Equal(again, b) {
			t.Errorf("kind %d: %x is read, and written as %x", kind, b, again)
		}
	})
}

func reencode(kind byte, b []byte) ([]byte, bool) {
	if kind == 5 {
		return vault.ReencodeKeys(b)
	}
	return vault.ReencodeFrame(kind, b)
}

// FuzzRestoreNote: no note announces a restore but the one that the store
// signed for its place.
func FuzzRestoreNote(f *testing.F) {
	st := seal.NewRoot().Store()
	prev := [32]byte{9}
	line := audit.Record{Event: audit.Restore, Seq: 7, Prev: hex.EncodeToString(prev[:])}
	good := vault.SignRebirth(st, line, prev)
	line.Note = good
	if again, ok := vault.ParseRebirth(st, line); !ok || !strings.HasPrefix(good, again) {
		f.Fatal("control: the note that the store signed is refused")
	}
	f.Add(good, uint64(7))
	f.Add(good, uint64(8))
	f.Add(strings.Replace(good, " 4 ", " 0 ", 1), uint64(7))
	f.Add("00 0 ==", uint64(7))
	f.Add(strings.ToUpper(good[:32])+good[32:], uint64(7))
	f.Fuzz(func(t *testing.T, note string, seq uint64) {
		line := line
		line.Note, line.Seq = note, seq
		if again, ok := vault.ParseRebirth(st, line); ok && (seq != 7 || !strings.HasPrefix(good, again)) {
			t.Errorf("%q at %d announces a restore", note, seq)
		}
	})
}

// FuzzLabel: a label is refused by one text, or is what was given.
func FuzzLabel(f *testing.F) {
	for _, s := range []string{"a", "-a", "stripe/prod", "A.b_c-d/e", strings.Repeat("x", 129), "a\x00", "ä", "a/../b", "{{secret:x}}"} {
		f.Add(s)
	}
	_, refusal := vault.ParseLabel("")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := vault.ParseLabel(s)
		if err != nil {
			if l != "" || err.Error() != refusal.Error() || vault.Refuse(err).Word != vault.BadRequest {
				t.Errorf("ParseLabel(%q) = %q, %v, want %v", s, l, err, refusal)
			}
			return
		}
		if string(l) != s || s == "" || s[0] == '-' || len(s) > 128 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("ParseLabel(%q) = %q", s, l)
		}
	})
}
