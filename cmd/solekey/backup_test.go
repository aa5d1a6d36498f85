package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestBackupSweepsWhatKilledOnesLeft: their files are as large as the store,
// and nobody else knows of them.
func TestBackupSweepsWhatKilledOnesLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	old := time.Now().Add(-leftFor - time.Hour)
	for name, stays := range map[string]bool{
		".one.skb.123": false, ".yesterday.skb.456": false, ".one.tar.7": true, "one.skb.8": true, ".one.skb.x9": true, ".one.skb": true,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := os.Stat(path); (err == nil) != stays {
				t.Errorf("%s: stays %v, want %v", name, err == nil, stays)
			}
		}()
	}
	young := filepath.Join(dir, ".two.skb.10") // of a backup that runs
	if err := os.WriteFile(young, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.must("backup", filepath.Join(dir, "one.skb"))
	if _, err := os.Stat(young); err != nil {
		t.Error(err)
	}
	all, err := os.ReadDir(dir)
	if err != nil || !slices.ContainsFunc(all, func(e os.DirEntry) bool { return e.Name() == "one.skb" }) {
		t.Errorf("no backup: %v", err)
	}
}
