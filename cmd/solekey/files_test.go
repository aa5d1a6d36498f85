package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestFilesAreWholeOrAbsent: a file that replaces or is made leaves nothing
// beside it, and one that is made replaces nothing.
func TestFilesAreWholeOrAbsent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := writeNew(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := writeNew(path, []byte("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("writeNew over a file = %v, want fs.ErrExist", err)
	}
	if b, err := os.ReadFile(path); string(b) != "one" || err != nil {
		t.Errorf("the file holds %q, %v, want one", b, err)
	}
	if err := writeFile(path, []byte("two")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); string(b) != "two" || err != nil {
		t.Errorf("the file holds %q, %v, want two", b, err)
	}
	if err := writeNew(filepath.Join(dir, "absent", "file"), nil); err == nil {
		t.Error("a directory that is not there took a file")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err == nil {
		if err := writeNew(link, []byte("x")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("writeNew over a link = %v, want fs.ErrExist", err)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("%d files are left, %v, want 1", len(left), err)
	}
}
