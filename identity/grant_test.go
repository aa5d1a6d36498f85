package identity_test

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/identity"
)

func TestParseScopes(t *testing.T) {
	for _, tt := range []struct{ words, want string }{
		{"list", "list"},
		{"write read", "read,write"},
		{"read read", "read"},
		{"list read code use write", "list,read,code,use,write"},
	} {
		got, err := identity.ParseScopes(strings.Fields(tt.words))
		if err != nil || got.String() != tt.want {
			t.Errorf("ParseScopes(%q) = %v, %v, want %s", tt.words, got, err, tt.want)
		}
	}
	for _, words := range [][]string{nil, {""}, {"admin"}, {"read", "READ"}, {"read,list"}, {"read "}} {
		if got, err := identity.ParseScopes(words); !errors.Is(err, identity.ErrUnknownScope) || got != 0 {
			t.Errorf("ParseScopes(%q) = %v, %v, want ErrUnknownScope", words, got, err)
		}
	}
}

func TestScopes(t *testing.T) {
	if got := identity.DefaultScopes.String(); got != "list,read,code,use" {
		t.Errorf("DefaultScopes = %s", got)
	}
	if identity.DefaultScopes.Has(identity.Write) || !identity.DefaultScopes.Has(identity.Use) {
		t.Error("DefaultScopes must hold all but write")
	}
	if identity.Scopes(0xffff).Has(0) {
		t.Error("a set holds the zero Scope")
	}
	if diff := cmp.Diff([]string{"list", "write"}, identity.Scopes(identity.List|identity.Write|1<<15).Words()); diff != "" {
		t.Errorf("Words (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("code scope(6)", identity.Code.String()+" "+identity.Scope(6).String()); diff != "" {
		t.Errorf("Scope.String (-want +got):\n%s", diff)
	}
	// The bits are on disk, docs/SPEC.md section 8.
	bits := []identity.Scope{identity.List, identity.Read, identity.Code, identity.Use, identity.Write}
	if diff := cmp.Diff([]identity.Scope{1, 2, 4, 8, 16}, bits); diff != "" {
		t.Errorf("scope bits (-want +got):\n%s", diff)
	}
}

func TestParseGlob(t *testing.T) {
	for _, s := range []string{"*", "?", "a", "deploy/*", "A-Z_0.9/??*", strings.Repeat("a", 128), "_-"} {
		if g, err := identity.ParseGlob(s); err != nil || string(g) != s {
			t.Errorf("ParseGlob(%q) = %q, %v", s, g, err)
		}
	}
	for _, s := range []string{"", "-", "-*", "a b", "[a]", "{a,b}", `a\*`, "a\n", "é", "a#b", "!a", strings.Repeat("a", 129)} {
		if g, err := identity.ParseGlob(s); !errors.Is(err, identity.ErrMalformedGlob) || g != "" {
			t.Errorf("ParseGlob(%q) = %q, %v, want ErrMalformedGlob", s, g, err)
		}
	}
}

func TestGlobMatch(t *testing.T) {
	for _, tt := range []struct {
		glob, label string
		want        bool
	}{
		{"*", "anything/at.all", true},
		{"deploy/*", "deploy/a/b", true},
		{"deploy/*", "deploy/", true},
		{"deploy/*", "deploy", false},
		{"deploy/*", "xdeploy/a", false},
		{"deploy", "deploy", true},
		{"deploy", "deployed", false},
		{"Deploy", "deploy", false},
		{"a?c", "abc", true},
		{"a?c", "a/c", true},
		{"a?c", "ac", false},
		{"*_KEY", "OPENAI_API_KEY", true},
		{"*_KEY", "OPENAI_API_KEYS", false},
		{"*a*b*", "xxaxxb", true},
		{"*a*b*", "xxbxxa", false},
		{"**", "", true},
		{"a*a", "a", false},
		{"*ab?", "ababab", false},
		{"*ab?", "abababc", true},
		{"", "", true},
		{"", "a", false},
		{"a.c", "abc", false},
	} {
		if got := identity.Glob(tt.glob).Match(tt.label); got != tt.want {
			t.Errorf("Glob(%q).Match(%q) = %v, want %v", tt.glob, tt.label, got, tt.want)
		}
	}
}

// slowMatch counts what a naive matcher does, which tries every way to share
// the label among the stars.
func slowMatch(g, label string, steps *int) bool {
	if *steps++; *steps > 1e6 {
		return false
	}
	switch {
	case g == "":
		return label == ""
	case g[0] == '*':
		return slowMatch(g[1:], label, steps) || label != "" && slowMatch(g, label[1:], steps)
	case label == "":
		return false
	}
	return (g[0] == '?' || g[0] == label[0]) && slowMatch(g[1:], label[1:], steps)
}

func TestHostileGlobDoesNotBlowUp(t *testing.T) {
	glob := strings.Repeat("*a", 63) + "*b"
	label := strings.Repeat("a", 128)
	if identity.Glob(glob).Match(label) {
		t.Error("hostile glob matches")
	}
	// Control: the naive matcher does blow up on it.
	steps := 0
	if slowMatch(glob, label, &steps); steps < 1e6 {
		t.Errorf("control: the naive matcher ended after %d steps", steps)
	}
}

func TestGrantCheck(t *testing.T) {
	end := time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC)
	never := identity.Grant{Scopes: identity.DefaultScopes}
	ends := identity.Grant{Scopes: identity.DefaultScopes, Expires: end}
	for _, tt := range []struct {
		name  string
		grant identity.Grant
		now   time.Time
		scope identity.Scope
		want  error
	}{
		{"zero grant", identity.Grant{}, end, identity.Read, identity.ErrForbidden},
		{"no end", never, end.AddDate(100, 0, 0), identity.Read, nil},
		{"scope absent", never, end, identity.Write, identity.ErrForbidden},
		{"scope zero", never, end, 0, identity.ErrForbidden},
		{"before the end", ends, end.Add(-1), identity.Code, nil},
		{"at the end", ends, end, identity.Code, identity.ErrExpired},
		{"after the end", ends, end.Add(time.Hour), identity.Code, identity.ErrExpired},
		{"expired first", ends, end, identity.Write, identity.ErrExpired},
	} {
		if err := tt.grant.Check(tt.now, tt.scope); !errors.Is(err, tt.want) {
			t.Errorf("%s: Check = %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestGrantCovers(t *testing.T) {
	all := identity.Grant{}
	some := identity.Grant{Globs: []identity.Glob{"deploy/*", "db/?"}}
	for _, tt := range []struct {
		grant identity.Grant
		label string
		want  bool
	}{
		{all, "x", true}, {some, "deploy/x", true}, {some, "db/1", true}, {some, "db/10", false}, {some, "x", false},
	} {
		if got := tt.grant.Covers(tt.label); got != tt.want {
			t.Errorf("Covers(%q) with globs %q = %v, want %v", tt.label, tt.grant.Globs, got, tt.want)
		}
	}
}

// FuzzGlob compares with package regexp, which has the same grammar under
// other signs.
func FuzzGlob(f *testing.F) {
	f.Add("deploy/*", "deploy/a")
	f.Add("*a?b*", "xaxbx")
	f.Add("**?*", "")
	f.Add("a-b", "a-b")
	f.Fuzz(func(t *testing.T, glob, label string) {
		g, err := identity.ParseGlob(glob)
		if err != nil {
			if !errors.Is(err, identity.ErrMalformedGlob) {
				t.Fatalf("ParseGlob(%q) = %v", glob, err)
			}
			return
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-") != "" {
			return // regexp counts runes
		}
		expr := regexp.QuoteMeta(glob)
		expr = strings.ReplaceAll(expr, `\*`, `.*`)
		expr = strings.ReplaceAll(expr, `\?`, `.`)
		if got, want := g.Match(label), regexp.MustCompile(`\A(?s:`+expr+`)\z`).MatchString(label); got != want {
			t.Fatalf("Glob(%q).Match(%q) = %v, want %v", glob, label, got, want)
		}
	})
}

func BenchmarkGlobMatch(b *testing.B) {
	for name, c := range map[string][2]string{
		"prefix": {"deploy/*", "deploy/production/token"},
		"worst":  {"*" + strings.Repeat("a", 63) + "b", strings.Repeat("a", 128)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				identity.Glob(c[0]).Match(c[1])
			}
		})
	}
}

// FuzzWords: scopes, IDs and names are refused by one error without their
// text, or are written as they were read.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"list,read,code,use,write", "read,read", "Read", "scope(8)", "", "000102030405060708090a0b0c0d0e0f", "0001020304050607", "ci-1", "-ci", "a.b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words := strings.Split(s, ",")
		set, err := identity.ParseScopes(words)
		again, _ := identity.ParseScopes(set.Words())
		switch {
		case err != nil && (err != identity.ErrUnknownScope || set != 0):
			t.Errorf("ParseScopes(%q) = %v, %v", words, set, err)
		case err == nil && (again != set || slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(set.Words(), w) })):
			t.Errorf("ParseScopes(%q) = %v, which is read as %v", words, set, again)
		}
		id, err := identity.ParseID(s)
		if err != nil && (err != identity.ErrMalformedID || !id.IsZero()) || err == nil && id.String() != strings.ToLower(s) {
			t.Errorf("ParseID(%q) = %v, %v", s, id, err)
		}
		if err := identity.CheckName(s); err != nil && !errors.Is(err, identity.ErrMalformedName) || err == nil && !name.MatchString(s) {
			t.Errorf("CheckName(%q) = %v", s, err)
		}
	})
}

var name = regexp.MustCompile(`\A[a-z0-9][a-z0-9-]{0,62}\z`)
