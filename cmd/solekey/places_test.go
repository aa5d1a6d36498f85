package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A home whose path holds the characters of a pattern hides neither the
// receipts nor what a root rotation that was killed left of the older root key.
func TestPatternsInThePathHideNothing(t *testing.T) {
	for _, home := range []string{"plain", "h[1]"} { // the first is the control
		d := newDesk(t)
		for _, name := range []string{"XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
			t.Setenv(name, filepath.Join(d.home, home))
		}
		t.Setenv(envHome, filepath.Join(d.home, home, "store"))
		d.do(0, "init", "--root", "file", "--no-recovery")
		d.do(0, "identity", "create", "ci", "--print-key")
		d.do(0, "identity", "revoke", "ci", "--yes")
		if got := d.do(0, "receipt", "list"); !strings.Contains(got, "-ci") {
			t.Errorf("%s: receipt list = %q", home, got)
		}
		left := d.config(".new-1")
		d.write(left, "older root text")
		d.do(0, "root", "rotate")
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s: the rest of an older root key stays", home)
		}
	}
}
