package main

import (
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

// What operators copy from docs/OPERATING.md and from examples is compared
// with the program: commands, flags, variables, metrics, times.

// manual returns the files for operators, by their slashed paths.
func manual(t *testing.T) map[string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	out := map[string]string{}
	for _, top := range []string{"docs/OPERATING.md", "examples/docker", "examples/systemd", "examples/kubernetes"} {
		err := filepath.WalkDir(filepath.Join(root, filepath.FromSlash(top)), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			name, _ := filepath.Rel(root, path)
			out[filepath.ToSlash(name)] = strings.ReplaceAll(string(b), "\r\n", "\n")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// page returns one file for operators.
func page(t *testing.T, name string) string {
	t.Helper()
	text, ok := manual(t)[name]
	if !ok {
		t.Fatalf("there is no %s", name)
	}
	return text
}

// code returns what of a file is meant for a machine: of Markdown fenced lines
// and spans, of others every line that is no comment, and spans.
func code(name, text string) []string {
	var out []string
	fenced := !strings.HasSuffix(name, ".md")
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced && !strings.HasPrefix(line, "#"):
			line, _, _ = strings.Cut(line, " # ")
			out = append(out, line)
		default:
			for i, span := range strings.Split(line, "`") {
				if i%2 == 1 {
					out = append(out, span)
				}
			}
		}
	}
	return out
}

// ourWords returns the words after the program's name in a piece of a shell
// line, or the arguments of a container; sure says that it must be a command.
func ourWords(piece string) (words []string, sure bool) {
	if _, args, ok := strings.Cut(piece, "args: ["); ok {
		return strings.Split(strings.TrimSuffix(args, "]"), ", "), true
	}
	all := strings.Fields(piece)
	for i, w := range slices.Backward(all) {
		if w = strings.TrimPrefix(w, "ExecStart="); w == "solekey" || strings.HasSuffix(w, "/bin/solekey") || w == "solekey-owner" {
			return all[i+1:], i == 0
		}
	}
	if len(all) > 0 && strings.HasPrefix(all[0], "--") {
		return all, false // flags alone, of whichever command
	}
	return nil, false
}

var (
	betweenCommands = regexp.MustCompile(`[|;&()<>]+`)
	anyVariable     = regexp.MustCompile(`SOLEKEY_[A-Z_]+`)
)

// strangers returns the commands, flags and variables in a file that the
// program does not have.
func strangers(root *cobra.Command, name, text string) (out []string, seen int) {
	for _, line := range code(name, text) {
		for _, piece := range betweenCommands.Split(line, -1) {
			words, sure := ourWords(piece)
			found, n := unknown(root, words, sure)
			out, seen = append(out, found...), seen+n
		}
	}
	serve, _, _ := root.Find([]string{"serve"})
	for _, v := range anyVariable.FindAllString(text, -1) {
		flag, ok := strings.CutPrefix(v, "SOLEKEY_SERVE_")
		if ok && serve.LocalNonPersistentFlags().Lookup(strings.ToLower(strings.ReplaceAll(flag, "_", "-"))) == nil ||
			!ok && !slices.Contains([]string{envHome, envAPIKey, envAPIKeyFile, envNoKeyring}, v) {
			out = append(out, v)
		}
		seen++
	}
	return out, seen
}

// unknown returns what of a command line the program does not have, and how
// many flags and commands were looked at.
func unknown(root *cobra.Command, words []string, sure bool) (out []string, seen int) {
	if len(words) == 0 {
		return nil, 0
	}
	alone := strings.HasPrefix(words[0], "--")
	c, rest, err := root.Find(words)
	switch {
	case !alone && (err != nil || c == root) && sure:
		return []string{"solekey " + words[0]}, 1
	case !alone && (err != nil || c == root):
		return nil, 0
	case c.HasSubCommands() && !alone && len(rest) > 0 && !strings.HasPrefix(rest[0], "-"):
		return []string{c.CommandPath() + " " + rest[0]}, 1
	}
	seen++
	for _, w := range words {
		flag, ok := strings.CutPrefix(w, "--")
		if flag, _, _ = strings.Cut(flag, "="); !ok || flag == "" || hasFlag(c, flag) || alone && anyHasFlag(root, flag) {
			continue
		}
		out = append(out, c.CommandPath()+" --"+flag)
	}
	return out, seen
}

func hasFlag(c *cobra.Command, flag string) bool {
	c.InitDefaultHelpFlag()
	return c.Flags().Lookup(flag) != nil || c.InheritedFlags().Lookup(flag) != nil
}

func anyHasFlag(c *cobra.Command, flag string) bool {
	return hasFlag(c, flag) || slices.ContainsFunc(c.Commands(), func(sub *cobra.Command) bool { return anyHasFlag(sub, flag) })
}

// tree is the program's commands.
func tree() *cobra.Command {
	return newRoot(&app{stdout: io.Discard, stderr: io.Discard, now: time.Now, conf: newConfig(func(string) string { return "" })})
}

func TestManualNamesWhatExists(t *testing.T) {
	root, all := tree(), 0
	for name, text := range manual(t) {
		found, seen := strangers(root, name, text)
		for _, s := range found {
			t.Errorf("%s: there is no %s", name, s)
		}
		all += seen
	}
	if all < 60 {
		t.Errorf("%d commands, flags and variables; the test sees nothing", all)
	}
}

// TestManualNamesBite plants what a renamed flag would leave behind.
func TestManualNamesBite(t *testing.T) {
	for _, text := range []string{
		"`solekey serve --no-such`", "`--no-such`", "`solekey nothing`", "`solekey identity nothing`",
		"```sh\nrunuser -u x -- solekey identity create a --no-such | cat\n```", "SOLEKEY_SERVE_NO_SUCH=1", "SOLEKEY_NOTHING",
		"```sh\nsolekey serve \\\n  --no-such\n```", "```yaml\nargs: [serve, --no-such]\n```",
	} {
		if found, _ := strangers(tree(), "x.md", text); len(found) != 1 {
			t.Errorf("strangers(%q) = %q, want one", text, found)
		}
	}
}

// missing returns the lines that a text has not, indentation aside.
func missing(text string, lines ...string) (out []string) {
	have := map[string]bool{}
	for l := range strings.Lines(text) {
		l, _, _ = strings.Cut(l, " # ")
		have[strings.TrimPrefix(strings.TrimSpace(l), "- ")] = true
	}
	for _, l := range lines {
		if !have[l] {
			out = append(out, l)
		}
	}
	return out
}

func TestPackagingIsConfined(t *testing.T) {
	for name, lines := range map[string][]string{
		"examples/systemd/solekey.service": {
			"Type=notify", "User=solekey", "StateDirectoryMode=0700", "UMask=0077", "LoadCredential=solekey-root:/etc/solekey/root.key",
			"ProtectSystem=strict", "ProtectHome=yes", "NoNewPrivileges=yes", "MemoryDenyWriteExecute=yes", "CapabilityBoundingSet=",
			"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "SystemCallFilter=@system-service", "LimitCORE=0", "MemorySwapMax=0",
		},
		"examples/docker/compose.yaml": {
			"read_only: true", "cap_drop: [ALL]", `security_opt: ["no-new-privileges:true"]`, `user: "65532:65532"`, "core: 0",
		},
		"examples/kubernetes/deployment.yaml": {
			"runAsNonRoot: true", "readOnlyRootFilesystem: true", "allowPrivilegeEscalation: false", "drop: [ALL]", "type: RuntimeDefault",
			"automountServiceAccountToken: false", "subPath: solekey-root", "defaultMode: 0400", "fsGroupChangePolicy: OnRootMismatch",
			"httpGet: {path: /livez, port: private}", "httpGet: {path: /readyz, port: private}",
		},
	} {
		text := page(t, name)
		for _, l := range missing(text, lines...) {
			t.Errorf("%s: the line %q is missing", name, l)
		}
		if without := strings.ReplaceAll(text, lines[0], ""); len(missing(without, lines...)) != 1 {
			t.Errorf("%s: a missing line is not seen", name)
		}
	}
}

// TestImageIsNotRoot looks at the stage that ships.
func TestImageIsNotRoot(t *testing.T) {
	text := page(t, "examples/docker/Dockerfile")
	last := text[strings.LastIndex(text, "\nFROM ")+1:]
	if !strings.HasPrefix(last, "FROM gcr.io/distroless/static") {
		t.Error("the image is not built on one without a shell")
	}
	users := regexp.MustCompile(`(?m)^USER (.*)$`).FindAllStringSubmatch(last, -1)
	if len(users) != 1 || !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(users[0][1]) {
		t.Errorf("users of the image = %q, want one that is not root, in numbers", users)
	}
	if !strings.Contains(last, "CREDENTIALS_DIRECTORY=/run/secrets") || regexp.MustCompile(`(?m)^(ARG|ENV).*(KEY|SECRET)=`).MatchString(text) {
		t.Error("the root key comes from elsewhere than a mounted file")
	}
}

// TestImageIsBuiltFromTheWholeTree compares what is kept out of the build of
// the image with what belongs to the repository: if a tracked file is missing,
// the version in the binary says that the tree was changed.
func TestImageIsBuiltFromTheWholeTree(t *testing.T) {
	list, err := exec.Command("git", "-C", filepath.Join("..", ".."), "ls-files").Output()
	if err != nil {
		t.Skip("the tracked files are not known: ", err)
	}
	left := func(ignored string) (out []string) {
		for path := range strings.Lines(string(list)) {
			path, gone := strings.TrimSuffix(path, "\n"), false
			for rule := range strings.Lines(ignored) {
				rule = strings.TrimSpace(rule)
				if rule == "" || rule[0] == '#' {
					continue
				}
				rule, back := strings.CutPrefix(rule, "!")
				words := regexp.QuoteMeta(strings.Trim(rule, "/"))
				words = strings.NewReplacer(`\*\*/`, `(.*/)?`, `\*`, `[^/]*`).Replace(words)
				if regexp.MustCompile(`^` + words + `(/.*)?$`).MatchString(path) {
					gone = !back
				}
			}
			if gone {
				out = append(out, path)
			}
		}
		return out
	}
	text := page(t, "examples/docker/Dockerfile.dockerignore")
	if got := left(text); len(got) > 0 {
		t.Errorf("these files do not get into the build: %q", got)
	}
	if left(text+"\n**/*.md\n") == nil { // the control
		t.Error("a rule that leaves tracked files out is not seen")
	}
}

// TestConnectionsFitTheMemory is a stranger without a key who holds as many
// idle connections as a server takes: what they cost, beside what the
// collector is to stay under, is within the memory that examples give it.
func TestConnectionsFitTheMemory(t *testing.T) {
	need := connsOfAll*connMemory + softMemory
	for name, setting := range map[string]string{
		"examples/docker/compose.yaml":        `mem_limit: (\d+)m`,
		"examples/kubernetes/deployment.yaml": `limits: \{memory: (\d+)Mi\}`,
	} {
		found := regexp.MustCompile(setting).FindStringSubmatch(page(t, name))
		if found == nil {
			t.Errorf("%s does not say how much memory there is", name)
			continue
		}
		if n, err := strconv.Atoi(found[1]); err != nil || n<<20 < need {
			t.Errorf("%s gives %s MiB, want %d", name, found[1], need>>20)
		}
	}
}

// TestDrainFitsTheGrace compares how long a stop may take with how long it is
// let.
func TestDrainFitsTheGrace(t *testing.T) {
	need := drainAway + drainClose + drainCalls
	for name, setting := range map[string]string{
		"examples/systemd/solekey.service":    `TimeoutStopSec=(\d+s)`,
		"examples/docker/compose.yaml":        `stop_grace_period: (\d+s)`,
		"examples/kubernetes/deployment.yaml": `terminationGracePeriodSeconds: (\d+)`,
	} {
		found := regexp.MustCompile(setting).FindStringSubmatch(page(t, name))
		if found == nil {
			t.Errorf("%s does not say how long a stop may take", name)
			continue
		}
		if let, err := time.ParseDuration(strings.TrimSuffix(found[1], "s") + "s"); err != nil || let < need+5*time.Second {
			t.Errorf("%s lets a stop take %v, %v, want some seconds more than %v", name, let, err, need)
		}
	}
}

func TestManualNamesTheMetrics(t *testing.T) {
	m := newMeter(slog.New(slog.DiscardHandler), version(), time.Now())
	m.Request("/mcp", 200, time.Millisecond)
	m.Call("get_secret", vault.Forbidden, time.Millisecond)
	w := httptest.NewRecorder()
	m.write(w, nil)
	name := regexp.MustCompile(`solekey_[a-z_]*[a-z]`)
	names := func(text string) map[string]bool {
		out := map[string]bool{}
		for _, n := range name.FindAllString(text, -1) {
			for _, end := range []string{"_bucket", "_sum", "_count"} {
				n = strings.TrimSuffix(n, end)
			}
			out[n] = true
		}
		return out
	}
	shown, told := names(w.Body.String()), names(page(t, "docs/OPERATING.md"))
	if len(shown) < 5 {
		t.Fatalf("%d metrics; the test sees nothing", len(shown))
	}
	if diff := fmt.Sprint(told); diff != fmt.Sprint(shown) {
		t.Errorf("metrics in the manual %s, of the program %v", diff, shown)
	}
}
