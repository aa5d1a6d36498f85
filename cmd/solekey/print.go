package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// stdout carries rows, JSON, a requested value or MCP frames, and nothing
// else. stderr carries talk: hints, warnings and errors.

// Exit codes that no word of package vault stands for.
const (
	exitInternal    = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitExists      = 5
	exitUnavailable = 6
	exitInterrupted = 130
)

// failure is an error of the command line itself. It holds no value.
type failure struct {
	exit    int
	word    string // for --json; empty: what the exit code stands for
	message string
	try     []string // commands that help
}

// Error returns the message.
func (f *failure) Error() string { return f.message }

func failf(exit int, format string, args ...any) *failure {
	return &failure{exit: exit, message: fmt.Sprintf(format, args...)}
}

// hint adds commands that help, in the order in which to try them.
func (f *failure) hint(commands ...string) *failure {
	f.try = append(f.try, commands...)
	return f
}

var (
	errInterrupted  = &failure{exit: exitInterrupted, word: "interrupted", message: "interrupted"}
	errNotConfirmed = &failure{exit: exitExists, word: "not_confirmed", message: "not confirmed; nothing was changed"}
)

// reported is an error whose text was printed already, as part of an output.
type reported struct{ exit int }

func (reported) Error() string { return "reported" }

// fail prints err, if any, and returns the exit code it stands for.
func (a *app) fail(err error) int {
	if err == nil {
		return 0
	}
	if r, ok := errors.AsType[reported](err); ok {
		return r.exit
	}
	f := explain(err)
	if a.conf.asJSON {
		a.printErrorJSON(f, err)
		return f.exit
	}
	fmt.Fprintln(a.stderr, "solekey: "+f.message)
	for _, t := range f.try {
		fmt.Fprintln(a.stderr, "  "+a.paint(a.stderr, "2", "try: ")+t)
	}
	return f.exit
}

func (a *app) printErrorJSON(f *failure, err error) {
	out := struct {
		Error      string `json:"error"`
		Message    string `json:"message"`
		Hint       string `json:"hint,omitempty"`
		RetryAfter int64  `json:"retry_after_ms,omitempty"`
	}{Error: f.word, Message: f.message, Hint: strings.Join(f.try, "\n")}
	if out.Error == "" {
		out.Error = wordOf(f.exit)
	}
	if r, ok := errors.AsType[*vault.Refusal](err); ok {
		out.RetryAfter = r.RetryAfter.Milliseconds()
	}
	_ = a.jsonTo(a.stderr, out) // stderr is the last place to complain to
}

func wordOf(exit int) string {
	switch exit {
	case exitUsage:
		return string(vault.BadRequest)
	case exitNotFound:
		return string(vault.NotFound)
	case exitRefused:
		return string(vault.Forbidden)
	case exitExists:
		return string(vault.Exists)
	case exitUnavailable:
		return string(vault.Unavailable)
	}
	return string(vault.Internal)
}

// explain turns any error into what a person is told. Refusals of the agent's
// half are worded for agents, so the next step is chosen here, by word; those
// of the owner's half name it themselves.
func explain(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	r := vault.Refuse(err)
	f := &failure{exit: r.Word.Exit(), word: string(r.Word), message: sentence(r.Message)}
	switch r.Word {
	case vault.NotFound:
		f.message += didYouMean(r.Hint)
	case vault.Unauthorized:
		f.hint("solekey profile list", "solekey identity create NAME")
	case vault.Revoked, vault.Expired:
		if r.Word == vault.Revoked || strings.HasPrefix(r.Message, "This key") {
			f.hint("solekey identity create NAME")
		}
	case vault.Unavailable:
		f.message += because(r.Cause())
		if t := holder(r.Cause()); t.pid != "" {
			f.message = "the store is busy: held by pid " + t.pid + " since " + t.since
			f.hint("ps -p " + t.pid + "     (end it if it hangs, then repeat the command)")
		}
		f.hint("solekey doctor")
	case vault.AuditUnavailable:
		f.message += because(r.Cause())
		f.hint("solekey doctor")
	case vault.Conflict:
		f.message += "; repeat the command"
	case vault.Internal:
		f.message += because(err)
	}
	if strings.HasPrefix(r.Hint, "solekey ") && !slices.Contains(f.try, r.Hint) { // a refusal of the owner's half
		f.hint(r.Hint)
	}
	return f
}

// because adds a cause that a person can act on: what the system said about a
// file. Other causes stay inside, as they may quote anything.
func because(err error) string {
	if err == nil {
		return ""
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return ": " + p.Error()
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return ": " + l.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return ": it took too long"
	}
	return ""
}

// sentence makes a refusal's message fit behind `solekey: `.
func sentence(s string) string {
	s = strings.TrimSuffix(s, ".")
	first, _, more := strings.Cut(s, " ")
	if !more || first == "" || strings.Trim(first[1:], "abcdefghijklmnopqrstuvwxyz") != "" {
		return s // a label, or an abbreviation
	}
	return strings.ToLower(first) + s[len(first):]
}

// didYouMean keeps the suggestion of a hint and drops its tool names.
func didYouMean(hint string) string {
	first, _, ok := strings.Cut(hint, "?")
	if !ok || !strings.HasPrefix(first, "Did you mean ") {
		return ""
	}
	return "; did you mean " + strings.TrimPrefix(first, "Did you mean ") + "?"
}

// row prints one result line: what it is about, what happened, the rest.
// Nothing is printed with --quiet or --json.
func (a *app) row(what, happened, rest string) {
	if a.conf.quiet || a.conf.asJSON {
		return
	}
	if happened == "" {
		fmt.Fprintf(a.stdout, "%-8s  %s\n", what, rest)
		return
	}
	fmt.Fprintf(a.stdout, "%-8s  %-9s  %s\n", what, happened, rest)
}

// say prints talk: a hint or the next step.
func (a *app) say(format string, args ...any) {
	if a.conf.quiet || a.conf.asJSON {
		return
	}
	fmt.Fprintf(a.stderr, format+"\n", args...)
}

// warn prints what a person should know although the command goes on.
func (a *app) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if a.conf.asJSON {
		_ = a.jsonTo(a.stderr, struct {
			Warning string `json:"warning"`
		}{text})
		return
	}
	fmt.Fprintln(a.stderr, a.paint(a.stderr, "33", "warning: ")+text)
}

// writeJSON prints the one object of a --json run.
func (a *app) writeJSON(v any) error { return a.jsonTo(a.stdout, v) }

func (a *app) jsonTo(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints rows with two spaces between columns. The header appears on a
// terminal only; columns whose header starts with `>` are set to the right.
func (a *app) table(header []string, rows [][]string) {
	right := make([]bool, len(header))
	names := make([]string, len(header))
	for i, h := range header {
		names[i] = strings.TrimPrefix(h, ">")
		right[i] = names[i] != h
	}
	if isTerminal(a.stdout) && len(rows) > 0 {
		rows = append([][]string{names}, rows...)
	}
	width := make([]int, len(header))
	for _, r := range rows {
		for i, cell := range r {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, r := range rows {
		fmt.Fprintln(a.stdout, strings.TrimRight(line(r, width, right), " "))
	}
}

func line(cells []string, width []int, right []bool) string {
	var b strings.Builder
	for i, cell := range cells {
		if i > 0 {
			b.WriteString("  ")
		}
		pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
		if right[i] {
			b.WriteString(pad + cell)
		} else {
			b.WriteString(cell + pad)
		}
	}
	return b.String()
}

// paint colours s with an SGR code where w is a terminal that wants colour.
func (a *app) paint(w io.Writer, sgr, s string) string {
	on := a.conf.color == "always" || (a.conf.color == "auto" && !a.conf.noColor && isTerminal(w))
	if !on {
		return s
	}
	return "\x1b[" + sgr + "m" + s + "\x1b[0m"
}

func isTerminal(s any) bool {
	f, ok := s.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// stamp writes a time as people and JSON see it; the zero time as a dash.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// day writes the date of a time; the zero time as a dash.
func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateOnly)
}

// at is a time in JSON, absent if zero.
func at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// dash stands for an empty cell.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// count writes a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if stem, ok := strings.CutSuffix(noun, "ty"); ok {
		return fmt.Sprintf("%d %sties", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func globWords(gs []identity.Glob) []string {
	var out []string
	for _, g := range gs {
		out = append(out, string(g))
	}
	return out
}

// shellPath is a path as it is pasted into a shell: that of macOS has a space.
func shellPath(path string) string {
	odd := func(c rune) bool {
		return !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("/._-+,:@%=", c) && c != filepath.Separator
	}
	switch {
	case path != "" && !strings.ContainsFunc(path, odd):
		return path
	case runtime.GOOS == "windows":
		return `"` + path + `"`
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// tilde shortens the home directory in a path that people read.
func tilde(path string) string {
	home, err := os.UserHomeDir()
	if err != nil || home == "" || home == "/" {
		return path
	}
	if rest, ok := strings.CutPrefix(path, home+string(os.PathSeparator)); ok {
		return "~" + string(os.PathSeparator) + rest
	}
	return path
}
