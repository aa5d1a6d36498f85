package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
)

// TestVerifyFindsTampering edits the log as somebody with a text editor
// would. The control is the log as it was.
func TestVerifyFindsTampering(t *testing.T) {
	d := newDesk(t, "me", "bot")
	d.write("v", canary)
	d.do(0, "put", "A_TOKEN", "--identity", "me", "--file", "v")
	d.do(0, "get", "A_TOKEN", "--profile", "me")
	d.do(0, "audit", "verify")
	path := filepath.Join(d.store(), "audit.jsonl")
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(bytes.TrimSuffix(sound, []byte("\n")), []byte("\n"))
	n := len(lines)
	join := func(parts ...[][]byte) (out []byte) {
		for _, p := range parts {
			out = append(out, bytes.Join(p, nil)...)
		}
		return append(bytes.TrimSuffix(out, []byte("\n")), '\n')
	}
	mark := filepath.Join(d.store(), "audit.head")
	soundMark, err := os.ReadFile(mark)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]byte{
		"a word changed":  bytes.Replace(sound, []byte(`"ev":"get"`), []byte(`"ev":"put"`), 1),
		"a line dropped":  join(lines[:2], lines[3:]),
		"lines swapped":   join(lines[:1], lines[2:3], lines[1:2], lines[3:]),
		"a line doubled":  join(lines[:3], lines[2:]),
		"the end cut":     join(lines[:n-1]),
		"the start cut":   join(lines[1:]),
		"a line put in":   join(lines[:2], [][]byte{[]byte("{}\n")}, lines[2:]),
		"another genesis": bytes.Replace(sound, []byte(`"note":"`), []byte(`"note":"00`), 1),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			exit, stdout, stderr := d.run("", "audit", "verify")
			if exit != exitFindings || !strings.Contains(stdout, "fail      ") || strings.Contains(stdout, "ok   ") {
				t.Errorf("verify = %d, want %d\n%s%s", exit, exitFindings, stdout, stderr)
			}
			if exit, stdout, _ = d.run("", "audit", "verify", "--json"); exit != exitFindings || !strings.Contains(stdout, `"ok":false`) {
				t.Errorf("verify --json = %d, %s", exit, stdout)
			}
			if exit, _, _ := d.run("", "doctor"); exit != exitFindings {
				t.Errorf("doctor = %d, want %d", exit, exitFindings)
			}
		})
		// What was appended by doctor is dropped again, from log and mark.
		if err := errors.Join(os.WriteFile(path, sound, 0o600), os.WriteFile(mark, soundMark, 0o600)); err != nil {
			t.Fatal(err)
		}
		d.do(0, "audit", "verify")
	}
}

// TestTailFollows: a line that is written while tail -f runs is shown, and
// the end of the context ends it without an error.
func TestTailFollows(t *testing.T) {
	d := newDesk(t, "me")
	d.write("v", canary)
	r, w := io.Pipe()
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"audit", "tail", "-f", "-n", "1"}, strings.NewReader(""), w, io.Discard)
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() || !strings.Contains(lines.Text(), want) {
			t.Fatalf("tail -f shows %q, want %s", lines.Text(), want)
		}
	}
	next(" create ")
	d.do(0, "put", "A_TOKEN", "--identity", "me", "--file", "v")
	next(" put     A_TOKEN v1 ")
	d.do(3, "get", "B_TOKEN", "--profile", "me")
	next(" get_secret  not_found ")
	stop()
	if exit := <-done; exit != 0 {
		t.Errorf("tail -f ended with %d", exit)
	}
	if lines.Scan() {
		t.Errorf("tail -f shows %q at its end", lines.Text())
	}
}

// TestTailKeepsTheLast covers the window over a log longer than it.
func TestTailKeepsTheLast(t *testing.T) {
	d := newDesk(t, "me")
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, now: time.Now, conf: newConfig(os.Getenv)}
	in, err := a.profileKey("me")
	if err != nil {
		t.Fatal(err)
	}
	k, err := a.owner()
	if err != nil {
		t.Fatal(err)
	}
	v, err := k.Unlock(t.Context(), in.key, vault.Source{Via: "cli"})
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if _, err := v.Labels(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	all := d.do(0, "audit", "tail", "-n", "1000")
	if strings.Count(all, "\n") != 302 {
		t.Fatalf("tail -n 1000 shows\n%s", all)
	}
	for _, n := range []int{0, 1, 3, 40, 301} {
		got := strings.Fields(d.do(0, "audit", "tail", "-n", strconv.Itoa(n)))
		want := strings.Fields(strings.Join(strings.SplitAfter(all, "\n")[302-n:], ""))
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("tail -n %d (-want +got):\n%s", n, diff)
		}
	}
}

// TestForeignTextIsInert: who can write to the log can write neither to the
// terminal nor into the spreadsheet of its reader.
func TestForeignTextIsInert(t *testing.T) {
	for _, evil := range []string{"=HYPERLINK(\"http://x\")", "+1+1", "-1", "@SUM(A1)", "\t=1", "|calc", "\x1b]0;x\a", "é\u202e"} {
		l := vault.AuditLine{Record: audit.Record{Event: audit.Note, Note: evil, Key: evil, Via: evil, From: evil, Why: evil, Slot: evil}}
		for _, cell := range cellsOf(l) {
			if strings.ContainsFunc(cell, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("cell %q reaches the terminal", cell)
			}
		}
		for _, cell := range csvLine(l, false) {
			if cell != "" && strings.ContainsRune("=+-@\t|", rune(cell[0])) {
				t.Errorf("cell %q may be a formula", cell)
			}
		}
	}
	if got := inert("plain = text"); got != "plain = text" {
		t.Errorf("inert changes harmless text to %q", got)
	}
}

// TestSealedExportNamesNothing: a sealed export holds no label and no name,
// in either format. The control is the export in clear.
func TestSealedExportNamesNothing(t *testing.T) {
	d := newDesk(t, "zebra-agent")
	d.write("v", canary)
	d.do(0, "put", "giraffe/token", "--identity", "zebra-agent", "--file", "v")
	for _, format := range []string{"jsonl", "csv"} {
		clear := d.do(0, "audit", "export", "--format", format)
		sealed := d.do(0, "audit", "export", "--format", format, "--sealed")
		for _, word := range []string{"zebra-agent", "giraffe/token"} {
			if !strings.Contains(clear, word) {
				t.Errorf("control: %s in clear lacks %s", format, word)
			}
			if strings.Contains(sealed, word) {
				t.Errorf("%s sealed holds %s", format, word)
			}
		}
	}
	rows, err := csv.NewReader(strings.NewReader(d.do(0, "audit", "export", "--format", "csv"))).ReadAll()
	if err != nil || len(rows) != 4 || len(rows[1]) != len(csvHeader()) {
		t.Errorf("csv has %d rows, %v", len(rows), err)
	}
}

func TestParseMoment(t *testing.T) {
	tests := []struct {
		in   string
		end  bool
		want string
	}{
		{"2026-11-01", false, "2026-11-01T00:00:00Z"},
		{"2026-11-30", true, "2026-12-01T00:00:00Z"},
		{"2026-11-01T10:00:00+01:00", false, "2026-11-01T09:00:00Z"},
	}
	for _, tt := range tests {
		got, err := parseMoment("--from", tt.in, tt.end)
		if err != nil || got.UTC().Format(time.RFC3339) != tt.want {
			t.Errorf("parseMoment(%s, %v) = %v, %v, want %s", tt.in, tt.end, got, err, tt.want)
		}
	}
	if _, err := parseMoment("--from", "last week", false); err == nil {
		t.Error("parseMoment takes last week")
	}
}

// TestSubject is the fifth column of tail.
func TestSubject(t *testing.T) {
	one := []audit.Ref{{Tag: audit.Tag{1}, Version: 2}}
	tests := []struct {
		line vault.AuditLine
		want string
	}{
		{vault.AuditLine{Record: audit.Record{Event: audit.Get, Labels: one}, Labels: []string{"A"}}, "A v2"},
		{vault.AuditLine{Record: audit.Record{Event: audit.Get, Labels: one, Denied: true, Why: "forbidden"}, Labels: []string{"A"}}, "forbidden A"},
		{vault.AuditLine{Record: audit.Record{Event: audit.Get, Labels: one, Denied: true, Why: "not_found"}, Labels: []string{one[0].Tag.String()}}, "not_found"},
		{vault.AuditLine{Record: audit.Record{Event: audit.Put, Labels: append(one, one...)}, Labels: []string{"A", "B"}}, "2 labels"},
		{vault.AuditLine{Record: audit.Record{Event: audit.List, N: 12}}, "12"},
		{vault.AuditLine{Record: audit.Record{Event: audit.List}}, "0"},
		{vault.AuditLine{Record: audit.Record{Event: audit.Rotate, Slot: "7f3a91c2"}}, "key 7f3a91c2"},
		{vault.AuditLine{Record: audit.Record{Event: audit.Shred, Identity: identity.ID{1}}}, "-"},
		{vault.AuditLine{Record: audit.Record{Event: audit.Note, Note: "doctor"}}, "doctor"},
	}
	for _, tt := range tests {
		if got := subject(tt.line); got != tt.want {
			t.Errorf("subject of a %s line = %q, want %q", tt.line.Event, got, tt.want)
		}
	}
	if got := records(1234567); got != "1,234,567 records" {
		t.Errorf("records = %s", got)
	}
}
