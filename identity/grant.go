package identity

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	// ErrExpired reports a key past its end.
	ErrExpired = errors.New("key has expired")
	// ErrForbidden reports a key without the scope that the call needs.
	ErrForbidden = errors.New("key lacks the scope for this")
	// ErrUnknownScope reports a word that names no scope.
	ErrUnknownScope = errors.New("unknown scope: choose from list, read, code, use, write")
	// ErrMalformedGlob reports a text that is not a label glob.
	ErrMalformedGlob = errors.New("a label glob is 1 to 128 of A-Z, a-z, 0-9, . _ / - * ?, not starting with -")
)

// Scope is one thing that a key may do.
type Scope uint16

// The scopes. They are independent: reading does not imply listing.
const (
	List  Scope = 1 << iota // list labels
	Read                    // read values of exposure reveal
	Code                    // obtain one-time codes
	Use                     // have values filled in without seeing them
	Write                   // put, generate and remove
)

// Scopes is a set of scopes. The zero set allows nothing.
type Scopes uint16

// DefaultScopes is what a key gets unless told otherwise: everything but
// writing.
const DefaultScopes = Scopes(List | Read | Code | Use)

// scopeWords names the scopes in the order of their bits.
var scopeWords = [...]string{"list", "read", "code", "use", "write"}

// ParseScopes returns the set of the scopes that the words name. An unknown
// word, or none at all, is [ErrUnknownScope].
func ParseScopes(words []string) (Scopes, error) {
	var set Scopes
	for _, word := range words {
		s, err := parseScope(word)
		if err != nil {
			return 0, err
		}
		set |= Scopes(s)
	}
	if set == 0 {
		return 0, ErrUnknownScope
	}
	return set, nil
}

func parseScope(word string) (Scope, error) {
	for i, w := range scopeWords {
		if w == word {
			return 1 << i, nil
		}
	}
	return 0, ErrUnknownScope
}

// String returns the word for the scope.
func (s Scope) String() string {
	for i, w := range scopeWords {
		if s == 1<<i {
			return w
		}
	}
	return fmt.Sprintf("scope(%d)", uint16(s))
}

// Has reports whether the set holds s. No set holds the zero Scope.
func (set Scopes) Has(s Scope) bool { return s != 0 && set&Scopes(s) == Scopes(s) }

// Words returns the words of the set in the order list, read, code, use,
// write. Bits that name no scope have no word.
func (set Scopes) Words() []string {
	var words []string
	for i, w := range scopeWords {
		if set.Has(1 << i) {
			words = append(words, w)
		}
	}
	return words
}

// String returns the words of the set joined by commas.
func (set Scopes) String() string { return strings.Join(set.Words(), ",") }

const maxGlob = 128

// Glob is a pattern over labels that covers the whole label, case-sensitive:
//
//   - any run of characters, also none, also across /
//     ?      exactly one character, also /
//     other  itself
//
// There are no classes, braces or escapes, as no label holds * or ?. So
// deploy/* covers deploy/a and deploy/a/b but not deploy, and * covers every
// label.
type Glob string

// ParseGlob checks that s is a glob: 1 to 128 characters of the label
// alphabet, * and ?, not starting with -. It reports [ErrMalformedGlob].
func ParseGlob(s string) (Glob, error) {
	if len(s) == 0 || len(s) > maxGlob || s[0] == '-' {
		return "", ErrMalformedGlob
	}
	for _, c := range []byte(s) {
		if !globChar(c) {
			return "", ErrMalformedGlob
		}
	}
	return Glob(s), nil
}

func globChar(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.IndexByte("._/-*?", c) >= 0
}

// Match reports whether the glob covers the whole label. It goes back to the
// last * only, as an earlier one can take nothing that the last one cannot:
// at most len(g) steps for each character of the label, whatever the glob.
func (g Glob) Match(label string) bool {
	var gi, li int
	star, mark := -1, 0 // the last * and the label position it has eaten up to
	for li < len(label) {
		switch {
		case gi < len(g) && g[gi] == '*':
			star, mark = gi, li
			gi++
		case gi < len(g) && (g[gi] == '?' || g[gi] == label[li]):
			gi++
			li++
		case star >= 0:
			mark++
			gi, li = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(string(g[gi:]), "*") == ""
}

// Grant is what one key slot allows: which calls, on which labels, until
// when. The zero Grant allows nothing.
type Grant struct {
	Scopes  Scopes
	Globs   []Glob    // none: every label
	Expires time.Time // the first moment it no longer holds; zero: never
}

// Check reports [ErrExpired] if the grant has ended at now, else
// [ErrForbidden] if it lacks s.
func (g Grant) Check(now time.Time, s Scope) error {
	if !g.Expires.IsZero() && !now.Before(g.Expires) {
		return ErrExpired
	}
	if !g.Scopes.Has(s) {
		return ErrForbidden
	}
	return nil
}

// Covers reports whether the grant's globs cover the label.
func (g Grant) Covers(label string) bool {
	for _, glob := range g.Globs {
		if glob.Match(label) {
			return true
		}
	}
	return len(g.Globs) == 0
}
