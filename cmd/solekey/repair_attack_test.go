package main

import (
	"os"
	"path/filepath"
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
