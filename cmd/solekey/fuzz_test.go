package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
)

// FuzzProfile: the file of a profile is refused without a word of it, or leads
// to one place and is read alike once it is written again.
func FuzzProfile(f *testing.F) {
	const id = `"id":"000102030405060708090a0b0c0d0e0f"`
	for _, s := range []string{
		`{"store":"/data/solekey","identity":"ci",` + id + `}`, `{"url":"https://vault.example.com/mcp",` + id + `}`, `{"url":"http://127.0.0.1:1",` + id + `}`,
		`{"store":"relative",` + id + `}`, `{"store":"/x","url":"https://x",` + id + `}`, `{"ID":"000102030405060708090A0B0C0D0E0F","store":"/x"}`, `{` + id + `,` + id + `}`,
		"", "null", "[]", `{"id":"CANARY-in-a-profile"}`, `{"store":"/x",` + id + `} {}`, "\xef\xbb\xbf{}",
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	a := &app{now: time.Now, conf: newConfig(func(name string) string {
		return map[string]string{"XDG_CONFIG_HOME": dir, "LOCALAPPDATA": dir, "HOME": dir}[name]
	})}
	path, err := a.conf.configPath(profileDir, "ci"+profileExt)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err != nil {
		f.Fatal(err)
	}
	read := func(t *testing.T, b []byte) (profile, error) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return a.anyProfile("ci")
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := read(t, b)
		if err != nil {
			if said := explain(err); len(b) > 8 && strings.Contains(said.message+strings.Join(said.try, ""), string(b)) {
				t.Errorf("the refusal of %q repeats it: %v", b, said.message)
			}
			return
		}
		if _, err := identity.ParseID(p.ID); err != nil || p.remote() == filepath.IsAbs(p.Store) {
			t.Fatalf("%q is the profile %+v", b, p)
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := read(t, again); err != nil || q != p {
			t.Errorf("%q is read as %+v, and that as %+v, %v", b, p, q, err)
		}
	})
}

// FuzzMoment: what flags take for a time is refused by one text without the
// argument, which may be a key that went astray, or lies where it should.
func FuzzMoment(f *testing.F) {
	for _, s := range []string{"30m", "24h", "90d", "36501d", "-1h", "0s", "2030-01-01", "2030-01-01T00:00:00Z", "2030-01-01T00:00:00+23:59", "9999-12-31", "slk1_CANARY", "1e9h", "106751d", "2562047h47m16s"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	bad := func(err error) string { return explain(err).message }
	_, end := parseEnd("--expires", "?", now)
	_, day := parseMoment("--from", "?", false)
	_, span := parseDuration("?")
	f.Fuzz(func(t *testing.T, s string) {
		at, err := parseEnd("--expires", s, now)
		if err != nil && bad(err) != bad(end) && bad(err) != "--expires lies in the past" || err == nil && s != "" && !at.After(now) {
			t.Errorf("parseEnd(%q) = %v, %v", s, at, err)
		}
		from, err := parseMoment("--from", s, false)
		to, err2 := parseMoment("--from", s, true)
		if err != nil && bad(err) != bad(day) || (err == nil) != (err2 == nil) || err == nil && s != "" && !to.After(from) {
			t.Errorf("parseMoment(%q) = %v to %v, %v", s, from, to, err)
		}
		if d, err := parseDuration(s); err != nil && bad(err) != bad(span) || d < 0 {
			t.Errorf("parseDuration(%q) = %v, %v", s, d, err)
		}
	})
}

// FuzzKeyIntake: a key that a file or a descriptor holds is refused by one of
// a few texts, so without any part of it, or is the text.
func FuzzKeyIntake(f *testing.F) {
	pub := [19]byte{0: 1, 3: 1}
	good := identity.EncodeText("slk1_", pub, [32]byte{31: 1})
	typo, other := []byte(good), pub
	typo[40]++
	other[0] = 2
	known := map[string]bool{}
	for _, s := range []string{
		good[:79], "slk1_" + strings.Repeat("-", 75), "slk1_" + strings.Repeat("z", 75), string(typo), identity.EncodeText("slk1_", other, [32]byte{}), identity.EncodeText("slk1_", [19]byte{0: 1}, [32]byte{}),
		"", "Bearer " + good, strings.ToUpper(good), "\ufeff" + good, "slroot1_" + good[5:], "sla1_" + good[5:], "sle1_" + good[5:], "{\"key\":\"" + good + "\"}", good + good,
	} {
		_, err := parseIntake(s, "--api-key-file")
		if err == nil {
			f.Fatalf("control: %q is a key", s)
		}
		known[explain(err).Error()] = true
		f.Add(s)
	}
	if _, err := parseIntake(good, "--api-key-file"); err != nil || len(known) < 8 {
		f.Fatalf("control: a key is refused: %v; %d texts of refusal", err, len(known))
	}
	f.Add(good)
	f.Add(" " + good + "\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		in, err := parseIntake(text, "--api-key-file")
		if err != nil && !known[explain(err).Error()] {
			t.Errorf("the refusal of %q is %v", text, err)
		}
		if err == nil && in.key.Reveal() != strings.Trim(text, " \t\r\n") {
			t.Errorf("%q is read as another key", text)
		}
	})
}
