package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/dotenv"
	"github.com/solekey/solekey/vault"
)

// desk is a home directory with a store, and the program run inside the test.
type desk struct {
	t    testing.TB
	home string
}

// newDesk makes a home with a store and the given identities, and makes a
// directory in it the current one.
func newDesk(t testing.TB, identities ...string) *desk {
	t.Helper()
	d := &desk{t: t, home: t.TempDir()}
	for _, name := range []string{"HOME", "LOCALAPPDATA"} {
		t.Setenv(name, d.home)
	}
	for _, name := range []string{envHome, envAPIKey, envAPIKeyFile, "XDG_DATA_HOME", "XDG_CONFIG_HOME", "CREDENTIALS_DIRECTORY"} {
		t.Setenv(name, "")
	}
	t.Setenv(envNoKeyring, "1")
	work := filepath.Join(d.home, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(work)
	d.do(0, "init", "--no-recovery")
	for _, name := range identities {
		d.do(0, "identity", "create", name)
	}
	return d
}

// run runs a command line with this standard input.
func (d *desk) run(stdin string, args ...string) (exit int, stdout, stderr string) {
	var out, errs bytes.Buffer
	exit = run(context.Background(), args, strings.NewReader(stdin), &out, &errs)
	return exit, out.String(), errs.String()
}

// do runs a command line, wants an exit code and returns all output.
func (d *desk) do(want int, args ...string) string {
	d.t.Helper()
	exit, stdout, stderr := d.run("", args...)
	if exit != want {
		d.t.Fatalf("solekey %s = %d, want %d\n%s%s", strings.Join(args, " "), exit, want, stdout, stderr)
	}
	return stdout + stderr
}

// write makes a private file in the current directory.
func (d *desk) write(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) store() string {
	d.t.Helper()
	c := newConfig(os.Getenv)
	dir, err := c.dataDir()
	if err != nil {
		d.t.Fatal(err)
	}
	return dir
}

const canary = "CANARY-9f8e7d6c5b4a-CANARY"

// hostile are files that try to get a value, or something worse, into the
// table. Each holds the canary in its values only.
var hostile = []string{
	"A_TOKEN=" + canary,
	"A_TOKEN='" + canary + "\x1b[31m'\n",
	"A_TOKEN=" + canary + "\nA_TOKEN=" + canary + "2\n",
	"A_TOKEN=${" + canary + "\nB=$(echo " + canary + ")\n",
	"A_TOTP=otpauth://totp/x?secret=" + canary + "\n",
	"A_TOTP=otpauth://hotp/x?secret=" + canary + "\n",
	"OPENAI_API_KEY=sk-ant-" + canary + "\n",
	"DATABASE_URL=postgres://u:" + canary + "@h/db\n",
	"AZURE_OPENAI_API_KEY=" + canary + "\nAZURE_OPENAI_ENDPOINT=https://x.example.com/" + canary + "\n",
	"PORT=3000\n" + canary + "\n",
	"A_TOKEN=\"" + canary,
	"A_TOKEN=\"x\" " + canary,
	canary + " X=" + canary,
	"\xff\xfe" + canary,
	"A_KEY=-----BEGIN PRIVATE KEY-----\n" + canary,
}

// leak returns the form in which text holds the canary, or "".
func leak(text string) string {
	for _, form := range []string{
		canary, strings.ToLower(canary), base64.StdEncoding.EncodeToString([]byte(canary))[:24], fmt.Sprintf("%x", canary), url.QueryEscape(canary),
	} {
		if strings.Contains(text, form) {
			return form
		}
	}
	return ""
}

// TestImportNeverShowsAValue runs hostile files through every form of output.
// The control is a command that does print the value.
func TestImportNeverShowsAValue(t *testing.T) {
	d := newDesk(t, "me")
	for i, text := range hostile {
		d.write(".env", text)
		for _, args := range [][]string{{"--dry-run"}, {"--json", "--dry-run", "--all"}, {"--all", "--literal"}, {"--replace"}, {"--write-refs", "--shred"}} {
			_, stdout, stderr := d.run("", append([]string{"import", ".env"}, args...)...)
			if leak(stdout+stderr) != "" || strings.Contains(stdout+stderr, "\x1b") {
				t.Errorf("file %d, %v: the output holds a value or an escape:\n%s%s", i, args, stdout, stderr)
			}
		}
	}
	d.write(".env", hostile[0])
	d.do(0, "import", ".env", "--replace")
	if leak(d.do(0, "get", "A_TOKEN", "--profile", "me")) == "" {
		t.Error("control: get prints the value, and it was not found")
	}
	if leak(d.do(0, "audit", "export")) != "" {
		t.Error("the audit log holds a value")
	}
}

// TestVariablePrintsNoValue covers every way to print the plan's own type.
func TestVariablePrintsNoValue(t *testing.T) {
	v := variable{name: "A", value: canary}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", slog.Any("v", v))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&log, verb, v)
		fmt.Fprintf(&log, verb, &v)
		fmt.Fprintf(&log, verb, []variable{v})
	}
	if strings.Contains(log.String(), canary) || strings.Contains(log.String(), fmt.Sprintf("%x", canary)) {
		t.Errorf("printed: %s", log.String())
	}
}

// TestImportIsAllOrNothing: one entry that the vault refuses keeps all others
// out.
func TestImportIsAllOrNothing(t *testing.T) {
	d := newDesk(t, "me")
	var b strings.Builder
	for i := range 600 {
		fmt.Fprintf(&b, "N%d_TOKEN=%s%d\n", i, canary, i)
	}
	d.write("many.env", b.String())
	if out := d.do(0, "import", "many.env"); !strings.Contains(out, "600 imported into me, 0 skipped.") {
		t.Errorf("a large file: %s", out[max(0, len(out)-200):])
	}
	d.do(0, "audit", "verify")
	d.write("bad.env", "X_TOKEN=one-value-here\nY_OTP=JBSWY3DPEHPK3PXP\n")
	d.do(2, "import", "bad.env", "--kind", "X_TOKEN=totp", "--kind", "NOT_THERE=secret")
	d.do(0, "import", "bad.env", "--kind", "Y_OTP=secret")
	if out := d.do(0, "list"); !strings.Contains(out, "X_TOKEN") {
		t.Errorf("list = %s", out)
	}
}

// TestShredLeavesNoPlaintext looks at the old file through a descriptor that
// was open before. The control shows that without --shred it is still there.
func TestShredLeavesNoPlaintext(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be replaced here")
	}
	d := newDesk(t, "me")
	old := func(args ...string) string {
		t.Helper()
		d.write(".env", "A_TOKEN="+canary+"\n")
		f, err := os.Open(".env")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d.do(0, append([]string{"import", ".env"}, args...)...)
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := old("--write-refs"); !strings.Contains(got, canary) {
		t.Fatalf("control: the old file holds %q without --shred", got)
	}
	if got := old("--write-refs", "--shred"); strings.Contains(got, canary) {
		t.Error("the old file still holds the value after --write-refs --shred")
	}
	if got := old("--shred"); strings.Contains(got, canary) {
		t.Error("the deleted file still holds the value")
	}
	if _, err := os.Lstat(".env"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if left, _ := filepath.Glob(".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestChangedFileIsLeftAlone: what somebody wrote meanwhile is not lost.
func TestChangedFileIsLeftAlone(t *testing.T) {
	t.Chdir(t.TempDir())
	const path, before, after = ".env", "A_TOKEN=" + canary + "\n", "A_TOKEN=something else\n"
	changes := map[string]func() error{
		"written":  func() error { return os.WriteFile(path, []byte(after), 0o600) },
		"appended": func() error { return os.WriteFile(path, []byte(before+"B=1\n"), 0o600) },
		"replaced": func() error {
			return errors.Join(os.WriteFile("new", []byte(before), 0o600), os.Rename("new", path))
		},
		"linked":  func() error { return os.Link(path, "other") },
		"deleted": func() error { return os.Remove(path) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove("other")
			if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
			o, err := openOriginal(path, true)
			if err != nil {
				t.Fatal(err)
			}
			defer o.close()
			if !o.unchanged() {
				t.Fatal("control: an untouched file counts as changed")
			}
			if err := change(); err != nil {
				t.Fatal(err)
			}
			want, _ := os.ReadFile(path)
			var done touched
			if err := replaceOriginal(o, []byte("A_TOKEN=solekey://A_TOKEN\n"), true, &done); err == nil || done.rewritten {
				t.Errorf("replaceOriginal = %v, %+v, want a refusal", err, done)
			}
			if err := destroy(o, &done); err == nil || done.shredded {
				t.Errorf("destroy = %v, %+v, want a refusal", err, done)
			}
			if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
				t.Errorf("the file holds %q, want %q", got, want)
			}
			if left, _ := filepath.Glob("..env.*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestRewriteKeepsModeAndBytes covers encodings that a script cannot write.
func TestRewriteKeepsModeAndBytes(t *testing.T) {
	d := newDesk(t, "me")
	in := "\ufeff# c\r\nexport A_TOKEN = '" + canary + "' # x\r\nPORT=1"
	d.write(".env", in)
	d.do(0, "import", ".env", "--write-refs", "--prefix", "app/")
	want := "\ufeff# c\r\nexport A_TOKEN = solekey://app/A_TOKEN # x\r\nPORT=1"
	got, err := os.ReadFile(".env")
	if diff := cmp.Diff(want, string(got)); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if out := d.do(0, "import", ".env"); !strings.Contains(out, "already a reference") {
		t.Errorf("a second import: %s", out)
	}
}

// TestShredAsksTheVault: a value that the vault has not is not destroyed,
// even if it is there under that label.
func TestShredAsksTheVault(t *testing.T) {
	d := newDesk(t, "me")
	d.write("first.env", "A_TOKEN="+canary+"\n")
	d.do(0, "import", "first.env")
	d.write(".env", "A_TOKEN=another-value-than-that\n")
	exit, _, stderr := d.run("", "import", ".env", "--shred")
	if exit != exitUsage || !strings.Contains(stderr, "A_TOKEN") {
		t.Errorf("import --shred of a changed value = %d, %s", exit, stderr)
	}
	if _, err := os.Lstat(".env"); err != nil {
		t.Error("the file is gone")
	}
	d.do(0, "import", ".env", "--shred", "--replace")
	if _, err := os.Lstat(".env"); err == nil {
		t.Error("the file is still there after --replace --shred")
	}
}

// TestValueThatSomebodyElseStored: a label that another process stores between
// the look and the commit is skipped, and its value stays in the file.
func TestValueThatSomebodyElseStored(t *testing.T) {
	d := newDesk(t, "me")
	d.write(".env", "A_TOKEN="+canary+"\n")
	var out bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &out, now: time.Now, conf: newConfig(os.Getenv)}
	k, err := a.owner()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	sources, err := a.readSources(t.Context(), []string{".env"}, true, false)
	defer closeSources(sources)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := planImport(importRules{}, sources)
	if err != nil {
		t.Fatal(err)
	}
	who, err := a.several(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	j := &importJob{app: a, keeper: k, flags: importFlags{writeRefs: true}, sources: sources, plan: plan}
	if err := j.meet(t.Context(), who); err != nil {
		t.Fatal(err)
	}
	other := vault.NewEntry{Label: "A_TOKEN", Fields: []vault.Field{{Name: "value", Value: []byte("of somebody else")}}}
	if _, err := k.Put(t.Context(), who[0].ID, other); err != nil {
		t.Fatal(err)
	}
	if err := j.store(t.Context()); err != nil {
		t.Fatal(err)
	}
	done, err := j.touch(t.Context())
	if err := errors.Join(err, j.report(done)); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(".env"); len(done) != 0 || leak(string(text)) == "" {
		t.Errorf("the file was rewritten: %s", text)
	}
	if !strings.Contains(out.String(), "skip  -  exists") {
		t.Errorf("report:\n%s", out.String())
	}
}

func planOf(t testing.TB, r importRules, text string) ([]variable, error) {
	t.Helper()
	f, err := dotenv.Parse(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	return planImport(r, []source{{name: ".env", file: f}})
}

// TestPlan is the table of what is taken.
func TestPlan(t *testing.T) {
	glob := func(s ...string) (out []identity.Glob) {
		for _, g := range s {
			out = append(out, identity.Glob(g))
		}
		return out
	}
	tests := []struct {
		name, in string
		rules    importRules
		want     []string
	}{
		{name: "secret by name", in: "MY_PASSWORD=correct horse", want: []string{"take MY_PASSWORD secret"}},
		{name: "setting", in: "PORT=1", want: []string{"skip PORT secret config"}},
		{name: "setting with --all", in: "PORT=1", rules: importRules{all: true}, want: []string{"take PORT secret"}},
		{name: "setting with --only", in: "PORT=1", rules: importRules{only: glob("P*")}, want: []string{"take PORT secret"}},
		{name: "skip wins over only", in: "PORT=1", rules: importRules{only: glob("P*"), skip: glob("PORT")}, want: []string{"skip PORT secret in --skip"}},
		{name: "placeholder stays out with --all", in: "A_KEY=changeme", rules: importRules{all: true}, want: []string{"skip A_KEY secret placeholder"}},
		{name: "told kind takes it", in: "A_KEY=changeme", rules: importRules{kinds: map[string]vault.EntryKind{"A_KEY": vault.KindSecret}}, want: []string{"take A_KEY secret"}},
		{name: "empty stays out", in: "A_KEY=", rules: importRules{all: true, kinds: map[string]vault.EntryKind{"A_KEY": vault.KindSecret}}, want: []string{"skip A_KEY secret empty"}},
		{name: "the last of several", in: "A_KEY=first-of-two\nA_KEY=second-of-two", want: []string{"skip A_KEY secret overridden at line 2", "take A_KEY secret"}},
		{name: "seed", in: "X_OTP=JBSWY3DPEHPK3PXP", want: []string{"take X_OTP totp 6 digits, 30 s"}},
		{name: "seed as text", in: "X_OTP=JBSWY3DPEHPK3PXP", rules: importRules{kinds: map[string]vault.EntryKind{"X_OTP": vault.KindSecret}}, want: []string{"take X_OTP secret"}},
		{name: "counter", in: "X_OTP=otpauth://hotp/a?secret=JBSWY3DPEHPK3PXP&counter=1", rules: importRules{all: true}, want: []string{"skip X_OTP secret counter-based codes are not supported"}},
		{name: "command", in: "A_KEY=$(pass show x)", want: []string{"skip A_KEY secret command, not run"}},
		{name: "command as text", in: "A_KEY=$(pass show x)", rules: importRules{literal: true}, want: []string{"take A_KEY secret"}},
		{name: "dollars are text", in: "A_PASSWORD=pa$$w0rd", want: []string{"take A_PASSWORD secret"}},
		{name: "refers outside", in: "A_KEY=${HOME}/key-of-mine", rules: importRules{all: true}, want: []string{"skip A_KEY secret refers to HOME"}},
		{name: "prefix", in: "A_KEY=abcdefgh", rules: importRules{prefix: "app/"}, want: []string{"take app/A_KEY secret"}},
		{name: "name too long", in: strings.Repeat("A", 125) + "_KEY=abcdefgh", want: []string{"skip  secret with the prefix, longer than a label may be"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plan, err := planOf(t, tt.rules, tt.in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range plan {
				word := "skip"
				if v.take {
					word = "take"
				}
				got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", word, v.label, v.kind, strings.Join(v.notes, "; "))))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("plan of %q (-want +got):\n%s", tt.in, diff)
			}
		})
	}
}

// FuzzImportPlan: no file makes the plan panic or put a value into a note or
// host; what is taken has a label, a value and a kind, and no label twice.
func FuzzImportPlan(f *testing.F) {
	for _, text := range hostile {
		f.Add([]byte(text), uint8(0), "")
		f.Add([]byte(text), uint8(7), "app/")
	}
	f.Fuzz(func(t *testing.T, in []byte, flags uint8, prefix string) {
		if _, err := vault.ParseLabel(prefix + "A"); err != nil {
			return
		}
		file, err := dotenv.Parse(bytes.NewReader(in))
		if err != nil {
			return
		}
		r := importRules{all: flags&1 > 0, literal: flags&2 > 0, noHosts: flags&4 > 0, prefix: prefix}
		plan, err := planImport(r, []source{{name: ".env", file: file}})
		if err != nil {
			t.Fatalf("planImport of one file = %v", err)
		}
		seen := map[vault.Label]bool{}
		for i := range plan {
			checkPlanned(t, &plan[i], seen)
		}
	})
}

func checkPlanned(t *testing.T, v *variable, seen map[vault.Label]bool) {
	t.Helper()
	text := strings.Join(v.notes, " ") + strings.Join(v.hosts, " ") + v.place
	if len(v.value) >= 24 && !strings.Contains(v.name, v.value) && strings.Contains(text, v.value) {
		t.Fatalf("%s: the row holds the value: %q", v.name, text)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		t.Fatalf("%s: the row holds a control character: %q", v.name, text)
	}
	if !v.take {
		return
	}
	if v.value == "" || seen[v.label] {
		t.Fatalf("%s is taken without a value, or its label twice", v.name)
	}
	seen[v.label] = true
	if _, err := vault.ParseLabel(string(v.label)); err != nil {
		t.Fatalf("%s is taken without a label", v.name)
	}
}

// TestDemoFile keeps the example that the documentation shows in step with
// the rules.
func TestDemoFile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "demo.env"))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := planOf(t, importRules{}, string(text))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range plan {
		if v.take {
			got = append(got, strings.TrimSpace(v.name+" "+strings.Join(v.hosts, " ")))
		}
	}
	want := []string{
		"OPENAI_API_KEY api.openai.com", "ANTHROPIC_API_KEY api.anthropic.com", "GROQ_API_KEY api.groq.com", "GITHUB_TOKEN api.github.com",
		"STRIPE_SECRET_KEY api.stripe.com", "SLACK_BOT_TOKEN slack.com", "GITHUB_TOTP", "DB_PASSWORD",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("taken from demo.env (-want +got):\n%s", diff)
	}
	if len(plan)-len(got) != 6 {
		t.Errorf("%d skipped, want 6", len(plan)-len(got))
	}
}

func TestLeakyCommentsAreNamed(t *testing.T) {
	in := "# OPENAI_API_KEY=sk-proj-EXAMPLE-not-a-real-key\n#PORT=1\n# a sentence = nothing\nA=b\n  ## export X_TOKEN='abcdefghijk'\n"
	if diff := cmp.Diff([]int{1, 5}, leakyComments([]byte(in))); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func BenchmarkImportPlan(b *testing.B) {
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "demo.env"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := planOf(b, importRules{}, string(text)); err != nil {
			b.Fatal(err)
		}
	}
}
