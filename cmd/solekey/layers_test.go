package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault"
)

const module = "github.com/solekey/solekey/"

// layers lists the packages from the bottom up. A package imports packages of
// lower layers only.
var layers = [][]string{
	{"identity", "totp", "internal/dotenv", "internal/catalog", "internal/harden", "internal/bridge"},
	{"vault/storage", "internal/seal", "internal/keyring"},
	{"vault/audit", "vault/storage/bolt", "vault/storage/enginetest"},
	{"vault"},
	{"mcp"},
	{"cmd/solekey", "examples"},
}

// doors says which packages may import a path, its subpackages included.
var doors = map[string][]string{
	"github.com/mark3labs/mcp-go":   {"mcp"},
	"go.etcd.io/bbolt":              {"vault/storage/bolt"},
	"github.com/pquerna/otp":        {"totp"},
	"golang.org/x/sys":              {"vault/storage/bolt", "internal/harden", "cmd/solekey"},
	"golang.org/x/term":             {"cmd/solekey"},
	"golang.org/x/crypto":           {"cmd/solekey"},
	"golang.org/x/time":             {"mcp"},
	"crypto/aes":                    {"internal/seal"},
	"crypto/cipher":                 {"internal/seal"},
	"crypto/hpke":                   {"internal/seal"},
	"github.com/zalando/go-keyring": {"internal/keyring"},
	"github.com/spf13/cobra":        {"cmd/solekey"},
	"os/exec":                       {"cmd/solekey", "examples"},
}

// callers says which files may call a method that takes a secret out of its
// type, or opens the inner lock.
var callers = map[string][]string{
	"Reveal": {
		"cmd/solekey/get.go",      // the value that was asked for
		"cmd/solekey/init.go",     // root text to its source, recovery key to the terminal
		"cmd/solekey/profiles.go", // agent key to its profile, or to stdout
		"cmd/solekey/restore.go",  // root text of a backup to its source
		"examples/embed/main.go",  // shows how a program reads a value
		"mcp/read.go",             // the value that was asked for
		"vault/backup.go",         // root text, sealed to the recovery key
		"internal/seal/rotate.go", // to compare root material with itself
		"vault/root.go",           // of seal's root, by the same name
	},
	"InnerLock": {"internal/seal/inner.go"},
}

// layersOf maps every package to its layer.
func layersOf(table [][]string) map[string]int {
	out := map[string]int{}
	for i, ps := range table {
		for _, p := range ps {
			out[p] = i
		}
	}
	return out
}

// breaks returns what is wrong with an import, empty if nothing is.
func breaks(from, to string, level map[string]int) string {
	at, ok := level[from]
	if !ok {
		return fmt.Sprintf("%s is in no layer", from)
	}
	for path, allowed := range doors {
		if (to == path || strings.HasPrefix(to, path+"/")) && !slices.Contains(allowed, from) {
			return fmt.Sprintf("%s imports %s, whose door is %s", from, to, strings.Join(allowed, ", "))
		}
	}
	own, ok := strings.CutPrefix(to, module)
	if !ok {
		return ""
	}
	below, ok := level[own]
	if !ok {
		return fmt.Sprintf("%s imports %s, which is in no layer", from, own)
	}
	if below >= at {
		return fmt.Sprintf("%s (layer %d) imports %s (layer %d)", from, at, own, below)
	}
	return ""
}

func TestLayers(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-f", `{{$p := .ImportPath}}{{range .Imports}}{{$p}} {{.}}{{"\n"}}{{end}}`, module+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	level := layersOf(layers)
	seen := 0
	for l := range strings.Lines(string(out)) {
		from, to, ok := strings.Cut(strings.TrimSpace(l), " ")
		if !ok {
			continue
		}
		seen++
		from = strings.TrimPrefix(from, module)
		if strings.HasPrefix(from, "examples/") {
			from = "examples"
		}
		if problem := breaks(from, to, level); problem != "" {
			t.Error(problem)
		}
	}
	if seen < 50 {
		t.Errorf("go list gave %d imports; the test sees nothing", seen)
	}
}

// TestLayersBite plants offences: the test above must be able to fail.
func TestLayersBite(t *testing.T) {
	level := layersOf(layers)
	for _, offence := range [][2]string{
		{"vault", module + "mcp"},
		{"identity", module + "internal/seal"},
		{"vault/storage/bolt", module + "vault/audit"},
		{"mcp", "go.etcd.io/bbolt"},
		{"mcp", "crypto/aes"},
		{"vault", "github.com/spf13/cobra/doc"},
		{"internal/new", "fmt"},
	} {
		if breaks(offence[0], offence[1], level) == "" {
			t.Errorf("%s may import %s, want a refusal", offence[0], offence[1])
		}
	}
}

// stray returns the calls in a file of methods that callers does not grant
// it.
func stray(path string, src any) ([]string, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr) // also a method value that is called later
		if !ok {
			return true
		}
		if allowed, guarded := callers[sel.Sel.Name]; guarded && !slices.Contains(allowed, path) {
			out = append(out, fmt.Sprintf("%s: %s is not for this file", set.Position(sel.Pos()), sel.Sel.Name))
		}
		return true
	})
	return out, nil
}

func TestCallers(t *testing.T) {
	root := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != root) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		found, err := stray(filepath.ToSlash(name), src)
		for _, s := range found {
			t.Error(s)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("walked %d files; the test sees nothing", files)
	}
}

func TestCallersBite(t *testing.T) {
	for _, src := range []string{
		"package p\nfunc f(k key) string { return k.Reveal() }",
		"package p\nfunc f(k key) func() string { return k.Reveal }",
		"package p\nfunc f(k key) [32]byte { return k.InnerLock() }",
	} {
		if found, err := stray("mcp/edge.go", src); err != nil || len(found) != 1 {
			t.Errorf("stray(%q) = %v, %v, want one offence", src, found, err)
		}
	}
}

// carries reports whether a value of type t can hold one of the forbidden
// types.
func carries(t reflect.Type, seen map[reflect.Type]bool, forbidden ...reflect.Type) bool {
	if seen[t] {
		return false
	}
	seen[t] = true
	if slices.Contains(forbidden, t) {
		return true
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Chan:
		return carries(t.Elem(), seen, forbidden...)
	case reflect.Map:
		return carries(t.Key(), seen, forbidden...) || carries(t.Elem(), seen, forbidden...)
	case reflect.Struct:
		for f := range t.Fields() {
			if carries(f.Type, seen, forbidden...) {
				return true
			}
		}
	case reflect.Func: // an iterator yields what its function's function takes
		for i := range t.NumIn() {
			if carries(t.In(i), seen, forbidden...) {
				return true
			}
		}
		for i := range t.NumOut() {
			if carries(t.Out(i), seen, forbidden...) {
				return true
			}
		}
	}
	return false
}

func secretTypes() []reflect.Type {
	return []reflect.Type{reflect.TypeFor[vault.Secret](), reflect.TypeFor[totp.Code](), reflect.TypeFor[totp.Seed](), reflect.TypeFor[vault.Vault]()}
}

func TestKeeperReturnsNoSecret(t *testing.T) {
	keeper := reflect.TypeFor[*vault.Keeper]()
	if keeper.NumMethod() < 10 {
		t.Fatalf("%d methods; the test sees nothing", keeper.NumMethod())
	}
	for m := range keeper.Methods() {
		if m.Name == "Unlock" {
			continue
		}
		for i := range m.Type.NumOut() {
			if out := m.Type.Out(i); carries(out, map[reflect.Type]bool{}, secretTypes()...) {
				t.Errorf("Keeper.%s returns %v, which carries a secret", m.Name, out)
			}
		}
	}
}

// TestKeeperReturnsNoSecretBites shows that Unlock, and types that hide a
// secret, would be found.
func TestKeeperReturnsNoSecretBites(t *testing.T) {
	type hidden struct{ M map[string][]*vault.Secret }
	for _, typ := range []reflect.Type{
		reflect.TypeFor[*vault.Vault](), reflect.TypeFor[hidden](), reflect.TypeFor[func(func(totp.Code) bool)](),
	} {
		if !carries(typ, map[reflect.Type]bool{}, secretTypes()...) {
			t.Errorf("%v is not found", typ)
		}
	}
}
