package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// harmed damages the header of an identity of the desk's store.
func (d *desk) harmed(name string) {
	d.t.Helper()
	id, err := idIn(d.store(), filepath.Dir(d.config("x")), name)
	if err == nil {
		err = harm(d.store(), "header", id)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// A repair of a store whose log goes on in several files, the first of which
// were moved away before the backup, cannot write that log anew. It says so
// before it asks, and says where the lines are; receipts and checkpoints from
// before do not pass for proven.
func TestRepairOfALogWithoutItsBeginning(t *testing.T) {
	inPlace(t)
	const limit = 3000
	d := newKeptDesk(t)
	for _, name := range []string{"bot", "gone", "later"} {
		d.do(0, "identity", "create", name)
		d.write("v", canary)
		d.do(0, "put", "A_TOKEN", "--identity", name, "--file", "v")
	}
	d.lines(30, limit)
	if err := os.Remove(filepath.Join(d.store(), "audit-0.jsonl")); err != nil {
		t.Fatal(err)
	}
	d.do(0, "backup", "headless.skb")
	d.lines(30, limit)
	if got := d.do(0, "identity", "revoke", "gone", "--yes"); strings.Contains(got, "audit complete") { // no line of its creation is left
		t.Errorf("a receipt claims to be complete:\n%s", got)
	}
	d.do(0, "audit", "checkpoint", "kept")
	d.harmed("bot")
	d.harmed("gone")

	said := d.do(0, "--yes", "doctor", "--repair", "headless.skb")
	for _, want := range []string{"log       begins anew", "gone: revoked, as the log says", "keep its audit*.jsonl"} {
		if !strings.Contains(said, want) {
			t.Errorf("the repair does not say %q:\n%s", want, said)
		}
	}
	aside, err := filepath.Glob(d.store() + damagedInfix + "*")
	if err != nil || len(aside) != 1 || !strings.Contains(said, "the lines so far stay in "+tilde(aside[0])) {
		t.Fatalf("the older lines are in %v, %v; said\n%s", aside, err, said)
	}
	if got := d.do(0, "audit", "verify"); !strings.Contains(got, "had been moved away") {
		t.Errorf("verify = %s", got)
	}
	d.do(exitFindings, "audit", "verify", "--checkpoint", "kept")
	if got := d.do(0, "identity", "list"); !strings.Contains(got, "gone   revoked") {
		t.Errorf("list = %s", got)
	}
	if got := d.do(0, "identity", "revoke", "later", "--yes"); strings.Contains(got, "audit complete") {
		t.Errorf("a receipt after the repair claims to be complete:\n%s", got)
	}

	receipts, err := filepath.Glob(filepath.Join(d.store(), receiptDir, "*-gone.json"))
	if err != nil || len(receipts) != 1 {
		t.Fatalf("receipts = %v, %v", receipts, err)
	}
	if got := d.do(exitUnavailable, "receipt", "verify", receipts[0]); !strings.Contains(got, "could not take over") {
		t.Errorf("an honest receipt from before the repair: %s", got)
	}

	// It goes on: what is repaired and restored later knows what was revoked.
	d.harmed("later")
	d.do(0, "--yes", "doctor", "--repair", "headless.skb", "--json")
	d.do(0, "backup", "after.skb")
	d.do(0, "restore", "after.skb", "--into", "R", "--recovery-key-file", "rec", "--yes")
	for _, args := range [][]string{{"identity", "list"}, {"--home", "R", "identity", "list"}} {
		if got := d.do(0, args...); !strings.Contains(got, "gone   revoked") || !strings.Contains(got, "later  revoked") {
			t.Errorf("%v = %s", args, got)
		}
	}
	d.do(0, "--home", "R", "audit", "verify")
}

// What a repair prints to be typed is typed as it is, in a directory whose name
// a shell would take apart.
func TestRepairPrintsCommandsThatWork(t *testing.T) {
	inPlace(t)
	d := newKeptDesk(t)
	dir := filepath.Join(d.home, "it's Application Support")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.store(), filepath.Join(dir, "solekey")); err != nil {
		t.Fatal(err)
	}
	t.Setenv(envHome, filepath.Join(dir, "solekey"))
	d.do(0, "identity", "create", "bot")
	d.do(0, "backup", "one.skb")
	d.harmed("bot")
	typed := func(out, begin string) {
		t.Helper()
		for _, line := range strings.Split(out, "\n") {
			if i := strings.Index(line, begin); i >= 0 {
				cmd, _, _ := strings.Cut(line[i:], "     (")
				if b, err := exec.Command("sh", "-c", cmd).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", cmd, err, b)
				}
				return
			}
		}
		t.Fatalf("no command %q in\n%s", begin, out)
	}
	typed(d.do(0, "--yes", "doctor", "--repair", "one.skb", "--into", "a new one"), "mv ")
	d.do(0, "audit", "verify")
	typed(d.do(0, "doctor"), "rm -r ")
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if got := shellPath("/var/lib/solekey-2.damaged"); got != "/var/lib/solekey-2.damaged" { // control
		t.Errorf("a plain path = %s", got)
	}
}

// The attack: a directory that looks like one that a repair left, in a place
// where others can write, with a link in it to a file of the owner. Clearing it
// overwrites shred keys, and must overwrite nothing else.
func TestRepairClearsNoFileBehindALink(t *testing.T) {
	inPlace(t)
	d := newKeptDesk(t)
	d.do(0, "identity", "create", "bot")
	d.do(0, "backup", "one.skb")
	d.harmed("bot")
	before, err := os.ReadFile("rec")
	if err != nil {
		t.Fatal(err)
	}
	built := d.store() + repairedSuffix
	if err := os.Mkdir(built, 0o700); err != nil {
		t.Fatal(err)
	}
	d.write(filepath.Join(built, repairingName), "")
	rec, err := filepath.Abs("rec")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(rec, filepath.Join(built, "vault.cells")); err != nil {
		t.Fatal(err)
	}
	d.do(0, "--yes", "doctor", "--repair", "one.skb")
	if after, err := os.ReadFile("rec"); err != nil || string(after) != string(before) {
		t.Errorf("the file behind the link was overwritten: %v", err)
	}
	// Control: cells that a repair left are overwritten.
	link := filepath.Join(d.home, "cells")
	d.write(link, "the cells of before")
	if err := scramble(link); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(link); err != nil || string(b) == "the cells of before" {
		t.Errorf("cells stay: %v", err)
	}
}

// Every end of a repair has its JSON, also where nothing was changed.
func TestRepairSaysInJSONThatNothingChanged(t *testing.T) {
	d := newKeptDesk(t)
	d.do(0, "backup", "none.skb")
	d.do(0, "identity", "create", "bot")
	check := func(exit, damaged int) {
		t.Helper()
		code, stdout, stderr := d.run("", "--yes", "--json", "doctor", "--repair", "none.skb", "--into", "X")
		var got repairResult
		if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != exit {
			t.Fatalf("exit %d, %v: %s%s", code, err, stdout, stderr)
		}
		if got.Store != d.store() || got.Aside != "" || got.InPlace || len(got.Damaged) != damaged {
			t.Errorf("result = %+v", got)
		}
		if _, err := os.Stat("X"); err == nil {
			t.Error("it built a store")
		}
	}
	check(0, 0)
	d.harmed("bot")
	check(exitFindings, 1)
}

// A vault whose database went back, and of which the backup is older still, is
// not called unchanged.
func TestRepairNamesWhatARollBackLost(t *testing.T) {
	d := newKeptDesk(t)
	for _, name := range []string{"bot", "me"} {
		d.do(0, "identity", "create", name)
	}
	d.write("v", canary)
	d.do(0, "backup", "one.skb")
	database := filepath.Join(d.store(), "vault.db")
	old, err := os.ReadFile(database)
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"A_TOKEN", "B_TOKEN"} {
		d.do(0, "put", label, "--identity", "bot", "--file", "v")
	}
	d.write(database, string(old))
	said := d.do(0, "--yes", "doctor", "--repair", "one.skb", "--into", "X")
	for _, want := range []string{"older     bot: the store was rolled back, and the backup has nothing newer, at most 2 later changes lost", "kept      1 identity unchanged"} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
}
