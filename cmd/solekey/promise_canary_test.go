package main

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestSecretsStayWhereTheyWerePut plants a canary through every intake, runs
// many commands and calls, good and bad ones, and looks for the canaries in
// everything that was printed, in every file, and in what the system shows of
// running servers. A value stands only in the answer that asked for it, a key
// only in its key file, a seed nowhere.
func TestSecretsStayWhereTheyWerePut(t *testing.T) {
	t.Parallel()
	c := newCage(t)
	c.plant()
	c.askServers()
	c.runCommands()
	c.watchProcesses()
	c.scanFiles()
	c.control()
}

// cage is a world with canaries.
type cage struct {
	*world
	out    string              // a directory for input files, which do hold values
	forms  map[string][][]byte // every form of each canary, by its name
	values map[string]string
}

// newCage makes canaries that no label, name or number could contain by
// chance, with characters that encodings change.
func newCage(t *testing.T) *cage {
	c := &cage{world: newWorld(t), out: t.TempDir(), forms: map[string][][]byte{}, values: map[string]string{}}
	r := seeded(t)
	for _, name := range []string{"stdin", "file", "import", "refs", "password", "username", "argument", "invalid"} {
		c.add(name, "CANARY+"+name+"/"+draw(r, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 24)+"=&"+letters(r, 3))
	}
	for _, name := range []string{"seed", "bareseed", "importseed"} {
		c.addSeed(name, base32Text(r, 32))
	}
	return c
}

func (c *cage) add(name, value string) {
	c.values[name] = value
	c.forms[name] = disguises([]byte(value))
}

// addSeed adds the text of a seed and its bytes.
func (c *cage) addSeed(name, text string) {
	c.add(name, text)
	raw, err := base32.StdEncoding.DecodeString(text)
	if err != nil {
		c.t.Fatal(err)
	}
	c.forms[name] = append(c.forms[name], disguises(raw)...)
	c.forms[name] = append(c.forms[name], []byte(strings.ToLower(text)))
}

// disguises returns the forms in which a secret is searched: as it is, in
// hex, base64 and base32 at every alignment, and escaped for URLs and JSON.
func disguises(b []byte) [][]byte {
	s := string(b)
	quoted, _ := json.Marshal(s) // a string always marshals
	out := [][]byte{
		b, []byte(hex.EncodeToString(b)), []byte(strings.ToUpper(hex.EncodeToString(b))),
		[]byte(url.QueryEscape(s)), []byte(url.PathEscape(s)), quoted[1 : len(quoted)-1],
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for shift := range 3 {
			text := enc.EncodeToString(append(make([]byte, shift), b...))
			out = append(out, []byte(text[4*((shift+2)/3):len(text)-4])) // without what depends on neighbours
		}
	}
	for shift := range 5 {
		text := base32.StdEncoding.EncodeToString(append(make([]byte, shift), b...))
		text = text[8*((shift+4)/5) : len(text)-8]
		out = append(out, []byte(text), []byte(strings.ToLower(text)))
	}
	return out
}

// found returns the names of the canaries in b, in order.
func (c *cage) found(b []byte) []string {
	var out []string
	for name, forms := range c.forms {
		if slices.ContainsFunc(forms, func(f []byte) bool { return bytes.Contains(b, f) }) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// wants fails unless exactly these canaries are in b.
func (c *cage) wants(what string, b []byte, names ...string) {
	c.t.Helper()
	slices.Sort(names)
	if got := c.found(b); !slices.Equal(got, names) {
		c.t.Errorf("%s holds %v, want %v: %.600s", what, got, names, b)
	}
}

// step is one command and the canaries it may print.
type step struct {
	args  string // split at blanks; %NAME% is a canary
	stdin string
	code  int // -1: any
	gives []string
}

func (c *cage) step(s step) outcome {
	c.t.Helper()
	var args []string
	for _, word := range strings.Fields(s.args) {
		for name, value := range c.values {
			word = strings.ReplaceAll(word, "%"+name+"%", value)
		}
		args = append(args, word)
	}
	out := c.start(setting{stdin: s.stdin}, args...)
	if s.code >= 0 && out.code != s.code {
		c.t.Errorf("solekey %s: %v, want %d", s.args, out, s.code)
	}
	c.wants("stdout of solekey "+s.args, []byte(out.stdout), s.gives...)
	c.wants("stderr of solekey "+s.args, []byte(out.stderr))
	return out
}

// file writes an input file outside of what is scanned.
func (c *cage) file(name, text string) string {
	c.t.Helper()
	path := filepath.Join(c.out, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// key remembers the key of a profile as a canary.
func (c *cage) key(profile string) {
	c.t.Helper()
	b, err := os.ReadFile(c.keyFile(profile))
	if err != nil {
		c.t.Fatal(err)
	}
	c.add("key of "+profile, strings.TrimSpace(string(b)))
}

// plant puts every canary in.
func (c *cage) plant() {
	c.step(step{args: "identity create ann"})
	c.step(step{args: "identity create ben --json"})
	c.key("ann")
	c.key("ben")
	v := c.values
	uri := "otpauth://totp/Site:me?issuer=Site&secret="
	refs := c.file("refs.env", "REFS_TOKEN="+v["refs"]+"\n")
	for _, s := range []step{
		{args: "put STDIN --identity ann --stdin", stdin: v["stdin"] + "\n"},
		{args: "put FILE --identity ann --json --file " + c.file("value", v["file"])},
		{args: "put shop --identity ann --kind login --field username --stdin", stdin: v["password"] + "\n" + v["username"] + "\n"},
		{args: "put SEED --identity ann --stdin", stdin: uri + v["seed"]},
		{args: "put BARE --identity ann --otp --stdin", stdin: v["bareseed"]},
		{args: "import --identity ann --dry-run " + c.file("some.env", "IMPORT_TOKEN='"+v["import"]+"'\nIMPORT_TOTP="+uri+v["importseed"]+"\nLOG=debug\n")},
		{args: "import --identity ann --json " + filepath.Join(c.out, "some.env")},
		{args: "import --identity ann --write-refs --shred " + refs},
	} {
		c.step(s)
	}
	if b, err := os.ReadFile(refs); err != nil {
		c.t.Error(err)
	} else {
		c.wants("the rewritten file", b)
	}
}

// askServers asks for every value once, and for the rest in every way.
func (c *cage) askServers() {
	s := c.serve("--profile", "ann")
	for _, q := range []struct{ label, field, gives string }{
		{"STDIN", "value", "stdin"}, {"FILE", "value", "file"}, {"IMPORT_TOKEN", "value", "import"}, {"REFS_TOKEN", "value", "refs"},
		{"shop", "value", "password"}, {"shop", "username", "username"},
	} {
		a := s.mustCall("get_secret", map[string]any{"label": q.label, "field": q.field})
		c.wants("the answer about "+q.label, a.raw, q.gives)
	}
	for _, label := range []string{"SEED", "BARE", "IMPORT_TOTP"} {
		for _, field := range []string{"value", "seed", "secret", "uri", "otpauth"} {
			c.wants("get_secret "+label+" "+field, s.mustCall("get_secret", map[string]any{"label": label, "field": field}).raw)
		}
		a := s.mustCall("get_totp_code", map[string]any{"label": label, "min_remaining": 0})
		if c.wants("the code of "+label, a.raw); a.text("code") == "" {
			c.t.Errorf("get_totp_code %s = %v", label, a)
		}
	}
	c.wants("list_labels", s.mustCall("list_labels", nil).raw)
	if code := s.close(); code != 0 {
		c.t.Errorf("the server ended with %d", code)
	}
	c.wants("stderr of the server", s.stderr.Bytes())
	c.malform()
}

// malform sends a server canaries in the places where they do not belong.
func (c *cage) malform() {
	s := c.serve("--profile", "ann")
	bad, _ := json.Marshal(c.values["invalid"]) // a string always marshals
	for _, line := range []string{
		`{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"STDIN","x":%[1]s}}}`,
		`{"jsonrpc":"2.0","id":71,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":%s}}}`,
		`{"jsonrpc":"2.0","id":72,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"STDIN","field":%s}}}`,
		`{"jsonrpc":"2.0","id":73,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"STDIN",%s:1}}}`,
		`{"jsonrpc":"2.0","id":74,"method":"tools/call","params":{"name":"get_secret","arguments":%s}}`,
		`{"jsonrpc":"2.0","id":75,"method":"tools/call","params":{"name":"get_secret","arguments":[%s]}}`,
		`{"jsonrpc":"2.0","id":76,"method":"tools/call","params":{"name":%s,"arguments":{}}}`,
		`{"jsonrpc":"2.0","id":77,"method":"tools/call","params":%s}`,
		`{"jsonrpc":"2.0","id":78,"method":%s,"params":{}}`,
		`{"jsonrpc":"2.0","id":79,"method":"tools/call","params":{"name":"list_labels","arguments":{"prefix":%s}}}`,
		`{"jsonrpc":"2.0","id":80,"method":"tools/call","params":{"name":"get_totp_code","arguments":{"label":"SEED","min_remaining":%s}}}`,
		`{"jsonrpc":%s,"id":81,"method":"tools/list"}`,
		`{"jsonrpc":"2.0","id":{"x":%s},"method":"tools/list"}`,
		`[{"jsonrpc":"2.0","id":82,"method":%s}]`,
		`{"jsonrpc":"2.0","id":83,"method":"prompts/get","params":{"name":%s}}`,
		`{"jsonrpc":"2.0","id":84,"method":"resources/read","params":{"uri":%s}}`,
		`{"jsonrpc":"2.0","id":85,"method":"initialize","params":{"protocolVersion":%s}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"reason":%s}}`,
		`{"jsonrpc":"2.0","id":86,"result":%s}`,
		`{%s`, `%s`, `{"jsonrpc":"2.0","id":87,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":%s`,
		`{"jsonrpc":"2.0","id":88,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"STDIN"},"_meta":{"progressToken":%s}}` + "\x00}",
	} {
		if err := s.write(strings.Replace(strings.Replace(line, "%s", string(bad), 1), "%[1]s", string(bad), 1)); err != nil {
			c.t.Fatalf("writing %s: %v", line, err)
		}
	}
	if err := s.write(strings.Repeat(c.values["invalid"], 40000)); err != nil { // longer than a line may be
		c.t.Fatal(err)
	}
	if a := s.mustCall("list_labels", nil); a.refused {
		c.t.Errorf("list_labels after bad lines = %v", a)
	}
	if code := s.close(); code != 0 {
		c.t.Errorf("the server ended with %d", code)
	}
	// One answer repeats an id, which is the caller's own to choose.
	said := slices.DeleteFunc(bytes.Split(s.stdout.Bytes(), []byte("\n")), func(l []byte) bool {
		return bytes.HasPrefix(l, []byte(`{"jsonrpc":"2.0","id":"CANARY+`))
	})
	c.wants("what the server said to bad lines", bytes.Join(said, []byte("\n")))
	c.wants("stderr of the server with bad lines", s.stderr.Bytes())
}

// runCommands runs what a person or a script may run, well and badly.
func (c *cage) runCommands() {
	v := c.values
	broken := c.file("broken.env", "A_TOKEN="+v["import"]+"\nB_TOKEN='"+v["invalid"]+"\n")
	for _, s := range []step{
		{args: "get STDIN --profile ann", gives: []string{"stdin"}},
		{args: "get FILE --profile ann --json", gives: []string{"file"}},
		{args: "get shop#username --profile ann", gives: []string{"username"}},
		{args: "get SEED --profile ann", code: 4},
		{args: "get SEED#secret --profile ann --json", code: 4},
		{args: "get STDIN --profile ben", code: 3},
		{args: "get STDIN#nofield --profile ann", code: -1},
		{args: "code BARE --profile ann --min-remaining 300", code: -1},
		{args: "code STDIN --profile ann", code: 4},
		{args: "list --identity ann"}, {args: "list --identity ann --json"}, {args: "list --expiring 7d --identity ann"},
		{args: "identity list --json"}, {args: "identity show ann"}, {args: "identity show ann --json"}, {args: "key list ann --json"},
		{args: "profile list --json"}, {args: "profile show ann"}, {args: "profile show ann --json"},
		{args: "audit tail -n 500"}, {args: "audit tail -n 500 --json"}, {args: "audit tail --denied --identity ann"}, {args: "audit verify"}, {args: "audit verify --json"},
		{args: "audit export"}, {args: "audit export --format csv"},
		{args: "doctor", code: -1}, {args: "doctor --json", code: -1},
		{args: "generate FRESH --identity ann --length 40"},
		{args: "put STDIN %argument% --identity ann", code: 2}, {args: "put STDIN --identity ann --value %argument%", code: 2},
		{args: "put STDIN --identity ann --value=%argument%", code: 2}, {args: "put --identity ann %argument%", code: -1},
		{args: "put STDIN --identity ann --stdin %argument% --json", code: 2},
		{args: "get %argument% --profile ann", code: 2}, {args: "get STDIN#%argument% --profile ann", code: -1}, {args: "get STDIN %argument%", code: 2},
		{args: "%argument%", code: 2}, {args: "identity %argument%", code: 2}, {args: "identity create %argument%", code: 2},
		{args: "list --profile %argument%", code: 2}, {args: "list %argument%", code: -1},
		{args: "list --color %argument%", code: 2}, {args: "rm %argument% --identity ann --yes", code: -1}, {args: "profile show %argument%", code: -1}, {args: "help %argument%", code: 2},
		{args: "put X --identity ann --stdin --expires %argument%", stdin: "x", code: 2}, {args: "put X --identity ann --stdin --kind %argument%", stdin: "x", code: 2},
		{args: "put X --identity ann --stdin --exposure %argument%", stdin: "x", code: 2}, {args: "put X --identity ann --stdin --in %argument%", stdin: "x", code: 2},
		{args: "put X --identity ann --stdin --host %argument%", stdin: "x", code: 2}, {args: "put X --identity ann --stdin --tag %argument%", stdin: "x", code: 2},
		{args: "put X --identity ann --stdin --field %argument%", stdin: "x", code: 2},
		{args: "key revoke ann %argument% --yes", code: -1}, {args: "audit tail --label %argument%", code: 2}, {args: "audit export --from %argument%", code: 2},
		{args: "identity create x --labels %argument%", code: 2}, {args: "identity create x --scope %argument%", code: 2}, {args: "identity rotate ann --grace %argument%", code: 2},
		{args: "identity show %argument%", code: 2}, {args: "identity revoke %argument% --yes", code: 2}, {args: "list --identity %argument%", code: 2},
		{args: "get STDIN --api-key-fd %argument%", code: 2}, {args: "completion %argument%", code: 2}, {args: "import --kind %argument% " + broken, code: 2},
		{args: "put X --identity ann --otp --stdin", stdin: v["invalid"], code: 2},
		{args: "put X --identity ann --stdin", stdin: "otpauth://totp/x?secret=" + v["invalid"], code: 2},
		{args: "put X --identity ann --stdin", stdin: "otpauth://totp/x?algorithm=MD5&secret=" + v["seed"], code: 2},
		{args: "put X --identity ann --stdin", stdin: v["stdin"] + "\xff", code: 2},
		{args: "put X --identity ann --stdin --kind login --field a --field b", stdin: v["password"] + "\n", code: 2},
		{args: "put X --identity nobody --stdin", stdin: v["stdin"], code: 3},
		{args: "put X --stdin", stdin: v["stdin"], code: 2},
		{args: "put " + strings.Repeat("x", 200) + " --identity ann --stdin", stdin: v["stdin"], code: 2},
		{args: "import --identity ann " + broken, code: 2}, {args: "import --identity ann --json " + broken, code: 2},
		{args: "get STDIN --api-key-file " + broken, code: 2},
		{args: "get STDIN --api-key-file " + c.file("wrong.key", strings.Replace(v["key of ann"], "slk1_", "slr1_", 1)), code: 2},
		{args: "get STDIN --api-key-file " + c.file("short.key", v["key of ann"][:70]), code: 2},
		{args: "mcp --api-key-file " + filepath.Join(c.out, "short.key"), code: 2},
		{args: "mcp %argument%", code: 2},
		{args: "identity rotate ann --grace 0"},
	} {
		c.step(s)
	}
	for _, args := range [][]string{{"get", v["key of ann"]}, {"put", v["key of ann"]}, {"--json", "list", "--profile=" + v["key of ann"]}} {
		out := c.run(args...)
		if out.code != 2 {
			c.t.Errorf("a key as an argument of %s: %v, want exit code 2", args[0], out)
		}
		c.wants("stdout with a key as argument", []byte(out.stdout))
		c.wants("stderr with a key as argument", []byte(out.stderr))
	}
	c.forms["old key of ann"], c.values["old key of ann"] = c.forms["key of ann"], v["key of ann"]
	c.key("ann")
}

// watchProcesses starts servers with the key from every source, and looks at
// what the system shows of them.
func (c *cage) watchProcesses() {
	key := c.values["key of ann"]
	file := c.file("ann.key", key+"\n")
	fd, err := os.Open(file)
	if err != nil {
		c.t.Fatal(err)
	}
	defer fd.Close()
	for name, start := range map[string]func() *server{
		"profile":         func() *server { return c.serve("--profile", "ann") },
		"file":            func() *server { return c.serve("--api-key-file", file) },
		"environment":     func() *server { return c.serveWith(setting{env: []string{"SOLEKEY_API_KEY=" + key}}) },
		"file in environ": func() *server { return c.serveWith(setting{env: []string{"SOLEKEY_API_KEY_FILE=" + file}}) },
		"descriptor": func() *server {
			if runtime.GOOS == "windows" {
				return c.serve("--profile", "ann")
			}
			return c.serveWith(setting{fd3: fd}, "--api-key-fd", "3")
		},
	} {
		s := start()
		c.wants("the answer with the key from a "+name, s.get("STDIN").raw, "stdin")
		c.wants("the process with the key from a "+name, shownOf(c.t, s.cmd.Process.Pid))
		s.close()
		c.wants("stderr with the key from a "+name, s.stderr.Bytes())
	}

	// Control: a program that does nothing about it shows its environment.
	if runtime.GOOS == "linux" {
		cmd := exec.Command("sh", "-c", "echo; read x")
		cmd.Env = []string{"SOLEKEY_API_KEY=" + key}
		in, inErr := cmd.StdinPipe()
		out, outErr := cmd.StdoutPipe()
		if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
			c.t.Fatal(err)
		}
		_, _ = out.Read(make([]byte, 1)) // it runs
		c.wants("the control process", shownOf(c.t, cmd.Process.Pid), "key of ann")
		_ = in.Close()
		_ = cmd.Wait()
	}
}

// shownOf is what the system shows of a process; nothing where it hides that.
func shownOf(t *testing.T, pid int) []byte {
	t.Helper()
	var out []byte
	for _, name := range []string{"environ", "cmdline", "status"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil && runtime.GOOS == "linux" && !os.IsPermission(err) {
			t.Error(err)
		}
		out = append(append(out, b...), '\n')
	}
	return out
}

// scanFiles wants no canary in any file but the keys in their key files.
func (c *cage) scanFiles() {
	c.t.Helper()
	for path, names := range c.foundInFiles() {
		if strings.HasPrefix(path, filepath.Dir(c.keyFile("x"))) && len(names) == 1 && names[0] == "key of "+strings.TrimSuffix(filepath.Base(path), ".key") {
			info, err := os.Stat(path)
			if err == nil && (runtime.GOOS == "windows" || info.Mode() == 0o600) {
				continue
			}
		}
		c.t.Errorf("%s holds %v", path, names)
	}
}

func (c *cage) foundInFiles() map[string][]string {
	c.t.Helper()
	out := map[string][]string{}
	files := 0
	err := filepath.WalkDir(c.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if names := c.found(append(b, path...)); len(names) > 0 {
			out[path] = names
		}
		files++
		return err
	})
	if err != nil || files < 8 {
		c.t.Fatalf("scanned %d files: %v", files, err)
	}
	return out
}

// control plants every form of every canary in a file, one at a time in
// memory and once on disk, and wants each to be found.
func (c *cage) control() {
	for name, forms := range c.forms {
		for i, f := range forms {
			text := slices.Concat([]byte("some text "), f, []byte(" and more"))
			if !slices.Contains(c.found(text), name) {
				c.t.Errorf("form %d of %s is not found", i, name)
			}
		}
	}
	for _, enc := range []func([]byte) string{base64.StdEncoding.EncodeToString, base64.RawURLEncoding.EncodeToString, base32.StdEncoding.EncodeToString, hex.EncodeToString} {
		for shift := range 5 {
			text := enc([]byte(strings.Repeat("x", shift) + c.values["stdin"] + "tail"))
			if !slices.Contains(c.found([]byte(text)), "stdin") {
				c.t.Errorf("the canary is not found in %s", text)
			}
		}
	}
	path := filepath.Join(c.root, "tmp", "left-behind")
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString([]byte(c.values["seed"]))), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(c.foundInFiles())); !slices.Contains(got, path) {
		c.t.Errorf("the file left behind is not among %v", got)
	}
}
