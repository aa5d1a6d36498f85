package mcp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// Strict decoding of tool arguments: an object or nothing, every name known
// and given once, every type and bound as in the schema. A refusal names the
// argument and never its value. The protocol library would read a string or a
// list as no arguments at all.

// errArguments marks a refusal of arguments, which no method of the vault has
// seen and recorded.
type errArguments struct{ error }

func (e errArguments) Unwrap() error { return e.error }

// arguments are those of one call. Each read takes its argument away; the
// first refusal sticks and done returns it.
type arguments struct {
	given map[string]json.RawMessage
	known []string
	err   error
}

// newArguments splits a JSON object, or the absence of one, into arguments.
func newArguments(raw json.RawMessage) *arguments {
	a := &arguments{}
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return a
	}
	if raw[0] != '{' {
		a.refuse("Arguments must be a JSON object.")
		return a
	}
	switch err := json.Unmarshal(raw, &a.given); {
	case err != nil:
		a.refuse("Arguments must be a JSON object.")
	case len(a.given) < members(raw):
		a.refuse("An argument is given twice.")
	}
	return a
}

// members returns how many members a JSON object writes, those of one name
// each for itself.
func members(object []byte) (n int) {
	open, quoted := 0, false
	for i := 0; i < len(object); i++ {
		switch c := object[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
			if c == '\\' {
				i++
			}
		case c == '{' || c == '[':
			open++
		case c == '}' || c == ']':
			open--
		case c == ':' && open == 1:
			n++
		}
	}
	return n
}

func (a *arguments) refuse(format string, v ...any) {
	if a.err == nil {
		a.err = &vault.Refusal{Word: vault.BadRequest, Message: fmt.Sprintf(format, v...)}
	}
}

// take removes an argument and returns it; nil if it is absent or null.
func (a *arguments) take(name string) json.RawMessage {
	a.known = append(a.known, name)
	raw := a.given[name]
	delete(a.given, name)
	if string(raw) == "null" {
		return nil
	}
	return raw
}

// text reads a text of lo to hi characters; "" if it is absent.
func (a *arguments) text(name string, lo, hi int) string {
	raw := a.take(name)
	if raw == nil {
		return ""
	}
	var s string
	if json.Unmarshal(raw, &s) != nil || utf8.RuneCountInString(s) < lo || utf8.RuneCountInString(s) > hi {
		a.refuse("Argument %s must be a string of %d to %d characters.", name, lo, hi)
		return ""
	}
	return s
}

// label reads the required label. Other vaults call it name, so that is read
// where label is absent.
func (a *arguments) label() vault.Label {
	name := "label"
	if _, ok := a.given[name]; !ok {
		if _, ok := a.given["name"]; ok {
			name = "name"
		}
	}
	s := a.text(name, 1, 128)
	a.known[len(a.known)-1] = "label"
	if a.err != nil {
		return ""
	}
	if s == "" {
		a.refuse("Argument label is required.")
		return ""
	}
	if identity.HoldsKey(s) { // however it was escaped on its way
		a.refuse("Argument label is a key. It is in logs and transcripts by now: treat it as leaked, and tell the owner to rotate it.")
		return ""
	}
	l, err := vault.ParseLabel(s)
	if err != nil {
		a.err = err
	}
	return l
}

// prefix reads the start of a label; "" if it is absent.
func (a *arguments) prefix() string {
	s := a.text("prefix", 0, 128)
	if s == "" || a.err != nil {
		return ""
	}
	if _, err := vault.ParseLabel(s); err != nil {
		a.refuse("Argument prefix must be the start of a label.")
	}
	return s
}

// whole reads an integer from lo to hi, or def if it is absent. As in JSON
// Schema, 10.0 is an integer.
func (a *arguments) whole(name string, lo, hi, def int) int {
	raw := a.take(name)
	if raw == nil {
		return def
	}
	var n float64
	if json.Unmarshal(raw, &n) != nil || n != math.Trunc(n) || n < float64(lo) || n > float64(hi) {
		a.refuse("Argument %s must be an integer from %d to %d.", name, lo, hi)
		return def
	}
	return int(n)
}

// done returns the first refusal, or one for arguments nobody took.
func (a *arguments) done() error {
	if a.err != nil {
		return a.err
	}
	if len(a.given) == 0 {
		return nil
	}
	slices.Sort(a.known)
	return &vault.Refusal{Word: vault.BadRequest, Message: "There is an argument this tool does not have.", Hint: "It takes: " + strings.Join(a.known, ", ") + "."}
}
