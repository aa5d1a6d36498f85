package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/solekey/solekey/internal/catalog"
	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault"
)

// How put reads the values of an entry: from stdin, a file or the terminal.

// readValues fills the fields of e from stdin, a file or the terminal.
func (a *app) readValues(ctx context.Context, e *vault.NewEntry, f putFlags) error {
	switch {
	case f.stdin:
		if isTerminal(a.stdin) {
			return failf(exitUsage, "stdin is a terminal; leave --stdin out for a hidden prompt")
		}
		return a.readStdin(e, f)
	case f.file != "":
		if err := a.readFile(e, f); err != nil {
			return err
		}
		if len(f.fields) == 0 {
			return a.checkValues(e, f)
		}
	}
	t, err := openTerminal()
	if err != nil {
		return needsFlag("the value is asked for hidden", "--stdin, or --file PATH")
	}
	defer t.Close()
	if err := a.askValues(ctx, t, e, f); err != nil {
		wipeFields(e.Fields)
		return err
	}
	return a.checkValues(e, f)
}

func (a *app) readStdin(e *vault.NewEntry, f putFlags) error {
	limit := (vault.MaxValue + 2) * (1 + len(f.fields))
	b, err := io.ReadAll(io.LimitReader(a.stdin, int64(limit)+1))
	if err != nil {
		return failf(exitUsage, "stdin cannot be read")
	}
	if len(f.fields) == 0 {
		e.Fields = []vault.Field{{Name: "value", Value: trimNewline(b, f.raw)}}
		return a.checkValues(e, f)
	}
	names := append([]string{"value"}, f.fields...)
	lines := bytes.SplitN(trimNewline(b, f.raw), []byte("\n"), len(names))
	if len(lines) != len(names) {
		return failf(exitUsage, "stdin has %s for %s", count(len(lines), "line"), count(len(names), "field"))
	}
	for i, name := range names {
		e.Fields = append(e.Fields, vault.Field{Name: name, Value: bytes.TrimSuffix(lines[i], []byte("\r"))})
	}
	return a.checkValues(e, f)
}

func (a *app) readFile(e *vault.NewEntry, f putFlags) error {
	file, err := os.Open(f.file)
	if err != nil {
		return failf(exitUsage, "--file: %v", err)
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, vault.MaxValue+3))
	if err != nil {
		return failf(exitUsage, "--file: %v", err)
	}
	e.Fields = append(e.Fields, vault.Field{Name: "value", Value: trimNewline(b, f.raw)})
	return nil
}

// trimNewline drops exactly one final newline.
func trimNewline(b []byte, raw bool) []byte {
	if raw {
		return b
	}
	if cut, ok := bytes.CutSuffix(b, []byte("\r\n")); ok {
		return cut
	}
	return bytes.TrimSuffix(b, []byte("\n"))
}

// askValues asks for what is missing, and for a code of a seed.
func (a *app) askValues(ctx context.Context, t *terminal, e *vault.NewEntry, f putFlags) error {
	if f.file == "" {
		what := "value for " + string(e.Label)
		switch e.Kind {
		case vault.KindTOTP:
			what = "otpauth:// URI or base32 secret for " + string(e.Label)
		case vault.KindLogin:
			what = "password for " + string(e.Label)
		}
		b, err := t.secret(ctx, what)
		if err != nil {
			return err
		}
		e.Fields = append(e.Fields, vault.Field{Name: "value", Value: b})
		becomeSeed(e, b)
	}
	if e.Kind == vault.KindTOTP {
		if err := a.enrol(ctx, t, e.Fields[0].Value); err != nil {
			return err
		}
		return t.settled()
	}
	names := f.fields
	if e.Kind == vault.KindLogin && len(names) == 0 {
		names = []string{"username", "url"}
	}
	for _, name := range names {
		b, err := askField(ctx, t, name, len(f.fields) == 0)
		if err != nil {
			return err
		}
		if len(b) > 0 || len(f.fields) > 0 {
			e.Fields = append(e.Fields, vault.Field{Name: name, Value: b})
		}
	}
	return t.settled()
}

// askField asks for a further field: visible where it is no secret.
func askField(ctx context.Context, t *terminal, name string, mayskip bool) ([]byte, error) {
	question := name
	if mayskip {
		question += " (Enter skips)"
	}
	switch name {
	case "username", "url", "email", "account":
		s, err := t.ask(ctx, question+": ")
		return []byte(s), err
	}
	return t.secret(ctx, question)
}

// becomeSeed makes the entry a totp one if nothing else was said and the
// value is plainly a seed: a seed must not become a readable secret.
func becomeSeed(e *vault.NewEntry, value []byte) {
	if e.Kind == 0 && catalog.IsSeedURI(string(value)) {
		e.Kind = vault.KindTOTP
	}
}

// enrolTries is how often a code may be typed; enrolSteps how far the clocks
// may be apart, in steps.
const (
	enrolTries = 3
	enrolSteps = 10
)

// enrol compares a code that a person types with the seed, before it is
// sealed: afterwards the owner cannot read it to find out.
func (a *app) enrol(ctx context.Context, t *terminal, text []byte) error {
	seed, err := totp.Parse(string(text))
	if err != nil {
		return nil // judge says why
	}
	defer seed.Wipe()
	for range enrolTries {
		typed, err := t.ask(ctx, "type the code the site shows (Enter skips): ")
		if err != nil {
			return err
		}
		typed = strings.ReplaceAll(typed, " ", "")
		if typed == "" {
			return nil
		}
		if steps, ok := drift(seed, typed, a.now()); ok {
			if steps != 0 {
				t.printf("the code matches, but the clocks are about %s apart: check the time of this machine\n", time.Duration(max(steps, -steps))*seed.Period())
			}
			return nil
		}
		t.printf("this is not a code of that seed\n")
	}
	return &failure{exit: exitExists, word: "not_confirmed", message: "the codes do not match the seed; nothing was stored"}
}

// drift finds the step, counted from now, whose code was typed.
func drift(seed totp.Seed, typed string, now time.Time) (steps int, ok bool) {
	for n := 0; n <= enrolSteps; n++ {
		for _, s := range []int{n, -n} {
			code, err := seed.Code(now.Add(time.Duration(s) * seed.Period()))
			if err == nil && strings.EqualFold(code.Digits, typed) {
				return s, true
			}
		}
	}
	return 0, false
}

func seedError(err error) *failure {
	return failf(exitUsage, "%v", err).hint("store the otpauth:// URI or the base32 secret that the site shows")
}

// checkValues judges what was read.
func (a *app) checkValues(e *vault.NewEntry, f putFlags) error {
	for _, x := range e.Fields {
		name := string(e.Label)
		if x.Name != "value" {
			name += "#" + x.Name
		}
		switch {
		case len(x.Value) == 0:
			return failf(exitUsage, "%s: the value is empty", name)
		case len(x.Value) > vault.MaxValue:
			return failf(exitUsage, "%s: the value is longer than 64 KiB", name)
		case !f.binary && !utf8.Valid(x.Value):
			return failf(exitUsage, "%s: the value is not UTF-8", name).hint("the same command with --binary")
		}
		if len(bytes.TrimSpace(x.Value)) != len(x.Value) && e.Kind != vault.KindTOTP && !f.raw {
			a.warn("%s: the value starts or ends with a blank; it is kept", name)
		}
	}
	return nil
}

func wipeFields(fs []vault.Field) {
	for _, f := range fs {
		clear(f.Value)
	}
}
