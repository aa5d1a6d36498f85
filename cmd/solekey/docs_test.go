package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What maintainers copy from the documents is compared with the tree: a
// pattern that matches no test passes in silence, and a figure without its
// benchmark is a claim.

// document returns a file of the repository.
func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

var (
	goTest  = regexp.MustCompile(`\bgo test [^#\n` + "`" + `]*`)
	pattern = regexp.MustCompile(`-(run|bench|fuzz) '?([^'\s]+)'?`)
	aTest   = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`)
	kinds   = map[string][]string{"run": {"Test", "Fuzz"}, "bench": {"Benchmark"}, "fuzz": {"Fuzz"}}
)

// testsOf returns the names of the tests, benchmarks and fuzz targets of a
// package, by its path from the top.
func testsOf(pkg string) (names []string, err error) {
	files, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(pkg), "*_test.go"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		for _, m := range aTest.FindAllStringSubmatch(string(b), -1) {
			names = append(names, m[1])
		}
	}
	return names, err
}

// unmatched returns what the test commands of a text ask for and no package
// that they name has. Each alternative of a pattern must match.
func unmatched(text string) (out []string, err error) {
	for _, command := range goTest.FindAllString(text, -1) {
		var names []string
		for _, word := range strings.Fields(command) {
			if pkg, ok := strings.CutPrefix(word, "./"); ok && pkg != "..." {
				of, err := testsOf(pkg)
				if err != nil {
					return nil, err
				}
				names = append(names, of...)
			}
		}
		for _, m := range pattern.FindAllStringSubmatch(command, -1) {
			for _, one := range strings.Split(m[2], "|") {
				one, _, _ = strings.Cut(one, "/")
				if one == "^$" || one == "NAME" { // none, and a place to fill
					continue
				}
				re, err := regexp.Compile(one)
				if err != nil {
					return nil, err
				}
				if !slices.ContainsFunc(names, func(n string) bool {
					return re.MatchString(n) && slices.ContainsFunc(kinds[m[1]], func(k string) bool { return strings.HasPrefix(n, k) })
				}) {
					out = append(out, fmt.Sprintf("%s in %q", one, command))
				}
			}
		}
	}
	return out, nil
}

// TestDocumentedTestsExist runs every command of the documents as far as its
// pattern. The control is a command whose test is of another package.
func TestDocumentedTestsExist(t *testing.T) {
	found := 0
	for _, name := range []string{"README.md", "docs/RELIABILITY.md", "docs/PERFORMANCE.md", "docs/STYLE.md", "docs/ARCHITECTURE.md", "docs/SPEC.md"} {
		text := document(t, name)
		found += len(goTest.FindAllString(text, -1))
		wrong, err := unmatched(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wrong {
			t.Errorf("%s: no test matches %s", name, w)
		}
	}
	if found < 30 {
		t.Errorf("%d test commands in the documents, want 30 or more: are they still recognised?", found)
	}
	wrong, err := unmatched("go test ./identity -run 'TestDocumentedTestsExist|TestKey' -bench Documented")
	if err != nil || len(wrong) != 2 {
		t.Errorf("of two patterns that match nothing %q were found, %v", wrong, err)
	}
}

// TestNamedTestsExist looks up every test that a document names as the proof
// of something.
func TestNamedTestsExist(t *testing.T) {
	there := map[string]bool{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range aTest.FindAllStringSubmatch(string(b), -1) {
			there[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, name := range []string{"ARCHITECTURE", "CLIENTS", "OPERATING", "PERFORMANCE", "PRODUCT", "RELIABILITY", "SPEC", "THREAT_MODEL"} {
		for _, m := range regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z]\\w+)[`/]").FindAllStringSubmatch(document(t, "docs/"+name+".md"), -1) {
			if named++; !there[m[1]] {
				t.Errorf("docs/%s.md names %s, which is not there", name, m[1])
			}
		}
	}
	if named < 200 {
		t.Errorf("%d tests are named in the documents, want 200 or more: are they still recognised?", named)
	}
}

// TestNightlyIsDocumented compares the harnesses of .ci/nightly with the list
// in RELIABILITY.md.
func TestNightlyIsDocumented(t *testing.T) {
	all := regexp.MustCompile(`(?m)^all=\((.*)\)$`).FindStringSubmatch(document(t, ".ci/nightly"))
	if all == nil {
		t.Fatal("no list in .ci/nightly")
	}
	text := strings.Join(strings.Fields(document(t, "docs/RELIABILITY.md")), " ")
	if !strings.Contains(text, "`"+all[1]+"`") {
		t.Errorf("docs/RELIABILITY.md does not list %s", all[1])
	}
}

// TestArchitectureNamesTheFiles compares the map of the house with the house:
// every file of vault and mcp is in it, and every file that it names is there.
func TestArchitectureNamesTheFiles(t *testing.T) {
	text := document(t, "docs/ARCHITECTURE.md")
	named := map[string]bool{}
	for _, name := range regexp.MustCompile(`\w+\.go\b`).FindAllString(text, -1) {
		named[name] = true
	}
	there := map[string]bool{}
	for _, dir := range []string{"identity", "totp", "vault", "vault/*", "vault/storage/*", "internal/*", "mcp", "cmd/solekey"} {
		files, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(dir), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			name := filepath.Base(f)
			there[name] = true
			if (dir == "vault" || dir == "mcp") && !strings.HasSuffix(name, "_test.go") && !named[name] {
				t.Errorf("docs/ARCHITECTURE.md does not say what %s/%s owns", dir, name)
			}
		}
	}
	for name := range named {
		if !there[name] {
			t.Errorf("docs/ARCHITECTURE.md names %s, which is not there", name)
		}
	}
}
