package main

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/catalog"
	"github.com/solekey/solekey/internal/dotenv"
	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault"
)

// The plan of an import: what is done with each assignment, decided from the
// files and the flags alone. It opens no file and no vault. What it says about
// a variable never holds the value, its length or a hash of it.

// importRules are what the flags say about variables.
type importRules struct {
	all, literal, noHosts bool
	only, skip            []identity.Glob
	kinds                 map[string]vault.EntryKind
	prefix                string
}

// variable is one assignment and what becomes of it. It prints without its
// value.
type variable struct {
	source int // index of its file
	line   int
	name   string
	label  vault.Label // empty if the name makes none
	kind   vault.EntryKind
	secret bool // a secret by its looks, taken or not
	take   bool
	told   bool // --kind names it
	twin   bool // another file gives the same label the same value, and that one is taken
	dead   bool // not the value that a program gets: overridden, empty or a reference
	hosts  []string
	place  string
	notes  []string
	warn   bool // one of the notes is a warning
	value  string
}

// Format writes the name and never the value.
func (v variable) Format(f fmt.State, _ rune) { fmt.Fprint(f, v.name) }

// planImport decides on every assignment of every file. It fails if a flag
// names a variable that no file sets, or if two files disagree on a label.
func planImport(rules importRules, sources []source) ([]variable, error) {
	var plan []variable
	for i, src := range sources {
		entries := src.file.Entries()
		siblings := make(map[string]string, len(entries))
		for _, e := range entries {
			if e.Overridden == 0 {
				siblings[e.Name] = e.Value
			}
		}
		for _, e := range entries {
			v := rules.judge(e, siblings)
			v.source = i
			plan = append(plan, v)
		}
	}
	if err := rules.unused(plan); err != nil {
		return nil, err
	}
	return plan, pairUp(plan, sources)
}

// unused finds a --kind or --only that is about nothing: most likely a typing
// error, and the variable would silently get another treatment.
func (r importRules) unused(plan []variable) error {
	for name := range r.kinds {
		if !slices.ContainsFunc(plan, func(v variable) bool { return v.name == name }) {
			return failf(exitUsage, "--kind names a variable that is not set here")
		}
	}
	for _, g := range r.only {
		if !slices.ContainsFunc(plan, func(v variable) bool { return v.matches(g) }) {
			return failf(exitUsage, "--only %s matches no variable", g)
		}
	}
	return nil
}

// pairUp looks for labels that two files set. Equal values are stored once;
// different ones are refused, since one of the two would be lost.
func pairUp(plan []variable, sources []source) error {
	first := make(map[vault.Label]int, len(plan))
	for i := range plan {
		v := &plan[i]
		if !v.take {
			continue
		}
		j, again := first[v.label]
		if !again {
			first[v.label] = i
			continue
		}
		at := fmt.Sprintf("%s:%d", sources[plan[j].source].name, plan[j].line)
		if plan[j].value != v.value || plan[j].kind != v.kind {
			return failf(exitUsage, "%s:%d and %s set %s to different values; nothing was stored", sources[v.source].name, v.line, at, v.label).
				hint("solekey import " + sources[v.source].name + " --prefix NAME/")
		}
		v.take, v.twin = false, true
		v.notes = []string{"as in " + at}
	}
	return nil
}

// matches reports whether a glob of --only or --skip is about v.
func (v *variable) matches(g identity.Glob) bool {
	return g.Match(v.name) || v.label != "" && g.Match(string(v.label))
}

func (v *variable) matchesAny(gs []identity.Glob) bool { return slices.ContainsFunc(gs, v.matches) }

// judge decides on one assignment.
func (r importRules) judge(e dotenv.Entry, siblings map[string]string) variable {
	v := variable{line: e.Line, name: e.Name, value: e.Value, kind: vault.KindSecret, notes: slices.Clone(e.Notes)}
	if l, err := vault.ParseLabel(r.prefix + e.Name); err == nil {
		v.label = l
	}
	hint := catalog.Guess(e.Name, e.Value, siblings)
	v.secret = hint.Kind != catalog.None
	if hint.Kind == catalog.TOTP {
		v.kind = vault.KindTOTP
	}
	k, told := r.kinds[e.Name]
	v.told = told
	if told {
		v.kind = k
	}
	uri := catalog.IsSeedURI(e.Value)
	if uri && v.kind == vault.KindLogin {
		v.notes = append([]string{"a seed is no login; --kind " + brief(v.name) + "=secret takes it as text"}, v.notes...)
		return v
	}
	if why := r.refuse(&v, e, hint, told); why != "" {
		v.notes = append([]string{why}, v.notes...)
		return v
	}
	v.take, v.secret, v.warn = true, true, hint.Warn
	v.notes = append(v.notes, hint.Notes...)
	if uri && v.kind == vault.KindSecret {
		v.warn, v.notes = true, append(v.notes, seedAsText)
	}
	if !r.noHosts && v.kind == vault.KindSecret {
		v.hosts, v.place = hint.Hosts, hint.Placement
	}
	if v.kind == vault.KindTOTP {
		v.enrol()
	}
	return v
}

// refuse returns why an assignment is skipped, or "".
func (r importRules) refuse(v *variable, e dotenv.Entry, hint catalog.Hint, told bool) string {
	if e.Overridden > 0 {
		v.dead = true
		return fmt.Sprintf("overridden at line %d", e.Overridden)
	}
	chosen := v.matchesAny(r.only)
	switch {
	case len(r.only) > 0 && !chosen:
		return "not in --only"
	case v.matchesAny(r.skip):
		return "in --skip"
	case v.value == "" || hint.Reason == catalog.ReasonReference:
		v.dead = true
		return hint.Reason
	case hint.Action == catalog.Skip && !told && !(r.all || chosen) || isFinal(hint.Reason) && !told:
		v.notes = append(v.notes, hint.Notes...)
		return hint.Reason
	case v.label == "":
		return "with the prefix, longer than a label may be"
	case r.literal:
		return ""
	case e.Command:
		return "command, not run"
	case len(e.Refers) > 0:
		return refersTo(e.Refers[0])
	}
	return ""
}

// isFinal reports whether neither --all nor --only overrides a reason to
// skip: what it is about is no value that a program could use.
func isFinal(reason string) bool {
	switch reason {
	case "", catalog.ReasonConfig, catalog.ReasonPublic:
		return false
	}
	return true
}

func refersTo(r dotenv.Ref) string {
	if r.Line == 0 {
		return "refers to " + brief(r.Name)
	}
	return fmt.Sprintf("refers to %s (line %d)", brief(r.Name), r.Line)
}

// enrol checks a seed as the vault will, and says whose codes it makes. What
// is no seed is skipped: as a secret it could be read.
func (v *variable) enrol() {
	seed, err := totp.Parse(v.value)
	if err != nil {
		why := strings.TrimPrefix(err.Error(), totp.ErrMalformedSeed.Error()+": ")
		v.take, v.notes = false, []string{"no usable seed: " + why + "; --kind " + brief(v.name) + "=secret takes it as text"}
		return
	}
	defer seed.Wipe()
	v.notes = append([]string{oneLine(seedWords(seed))}, v.notes...)
}

// becomeSeed keeps a label that holds a seed from becoming a secret that can
// be read: its next value is a seed, or is not taken.
func (v *variable) becomeSeed() {
	v.kind, v.hosts, v.place, v.notes = vault.KindTOTP, nil, "", nil
	v.enrol()
}

// oneLine makes foreign text fit for a table cell: no control or invisible
// character reaches the terminal, and it is not long.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return brief(s)
}

// brief cuts text that no label could be.
func brief(s string) string {
	const most = vaultLabelMax
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-3]) + "..."
}

// vaultLabelMax is how long a label may be.
const vaultLabelMax = 128
