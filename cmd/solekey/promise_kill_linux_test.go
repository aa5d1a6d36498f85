package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// These tests kill the built program at each of its system calls that changes
// a file, before the call takes effect and after it. What is left is looked at
// with every key; then the same command runs to its end, and all is looked at
// again.
//
// SOLEKEY_KILL=all takes every point, else a sample is drawn.

// mortals are the agents of a machine on which a command is killed.
type mortals struct {
	*world
	recovery, backup, ledger, dotenv string

	said string // by the command that ended what a death cut off

	keys   map[string]identity.Key      // the first key of each
	values map[string]map[string]string // what each agent stored
}

const victim = "victim"

func newMortals(t *testing.T) *mortals {
	m := &mortals{world: newBareWorld(t), keys: make(map[string]identity.Key), values: make(map[string]map[string]string)}
	at := func(name string) string { return filepath.Join(m.root, "home", name) }
	m.recovery, m.backup, m.ledger, m.dotenv = at("recovery.txt"), at("one.skb"), at("ledger.jsonl"), at(".env")
	m.must("init", "--root", "file", "--recovery-file", m.recovery)
	for _, name := range []string{victim, "bystander", "revoked", "shredded"} {
		m.must("identity", "create", name)
		m.values[name] = make(map[string]string)
		for _, label := range []string{"ONE", "TWO"} {
			m.values[name][label] = label + "-of-" + name
			m.put(name, label, m.values[name][label])
		}
		m.keys[name] = m.profileKey(name)
	}
	m.must("backup", m.backup)
	m.must("identity", "revoke", "revoked", "--yes")
	m.must("identity", "revoke", "shredded", "--shred", "--confirm", "shredded")
	log, err := os.ReadFile(filepath.Join(m.store, "audit.jsonl"))
	err = errors.Join(err, os.WriteFile(m.ledger, log, 0o600))
	err = errors.Join(err, os.WriteFile(m.dotenv, []byte("PORT=80\nSTRIPE_API_KEY=sk_live_51H8aaaaBBBBccccDDDDeeee\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// profileKey returns the key that a profile holds, the zero key if none.
func (m *mortals) profileKey(name string) identity.Key {
	text, err := os.ReadFile(m.keyFile(name))
	if err != nil {
		return identity.Key{}
	}
	k, err := identity.ParseKey(strings.TrimSpace(string(text)))
	if err != nil {
		m.t.Errorf("the profile %s holds %d bytes that are no key: %v", name, len(text), err)
	}
	return k
}

// reads returns what a key opens, or the word of its refusal.
func (m *mortals) reads(dir string, key identity.Key) (map[string]string, string) {
	b, err := bolt.Open(dir, bolt.Options{TurnTimeout: patience})
	if err != nil {
		return nil, err.Error()
	}
	k := vault.Open(b, rootFrom(keyring.Open(m.conf, keyring.Options{NoOS: true})), vault.Options{})
	defer func() { _ = k.Close() }()
	ctx := context.Background()
	v, err := k.Unlock(ctx, key, vault.Source{Via: "cli"})
	if err != nil {
		return nil, string(vault.Refuse(err).Word)
	}
	labels, err := v.Labels(ctx, "")
	if err != nil {
		return nil, string(vault.Refuse(err).Word)
	}
	out := make(map[string]string)
	for _, l := range labels {
		s, err := v.Get(ctx, l.Label, "")
		if err != nil {
			return nil, string(vault.Refuse(err).Word)
		}
		out[string(l.Label)] = s.Reveal()
	}
	return out, ""
}

// opens reports whether a key opens all that its agent stored.
func (m *mortals) opens(dir, name string, key identity.Key) bool {
	got, _ := m.reads(dir, key)
	for label, want := range m.values[name] {
		if got[label] != want {
			return false
		}
	}
	return true
}

// closed reports whether a key opens nothing.
func (m *mortals) closed(dir string, key identity.Key) bool {
	got, _ := m.reads(dir, key)
	return len(got) == 0
}

// others says what is wrong with the agents that the command is not about.
func (m *mortals) others(dir string) (wrong []string) {
	if !m.opens(dir, "bystander", m.keys["bystander"]) {
		wrong = append(wrong, "lost: the key of a bystander")
	}
	for _, name := range []string{"revoked", "shredded"} {
		if !m.closed(dir, m.keys[name]) {
			wrong = append(wrong, "revived: the key that was "+name)
		}
	}
	return wrong
}

// fatal is a command that is killed.
type fatal struct {
	name string
	args func(m *mortals) []string
	// prepare changes the machine before it is kept.
	prepare func(m *mortals)
	// half says what is wrong after the death, whole what is wrong once the
	// command ran to its end.
	half, whole func(m *mortals) []string
	// again are exit codes, beside 0, of a command that was done when it was
	// killed.
	again []int
}

// either: after a death the profile's key or the first one opens everything.
func either(m *mortals) (wrong []string) {
	if !m.opens(m.store, victim, m.profileKey(victim)) && !m.opens(m.store, victim, m.keys[victim]) {
		wrong = append(wrong, "lost: neither key of the victim opens its values")
	}
	return append(wrong, m.others(m.store)...)
}

// replaced: the key of the profile opens everything, the first one nothing.
func replaced(m *mortals) (wrong []string) {
	if !m.opens(m.store, victim, m.profileKey(victim)) {
		wrong = append(wrong, "lost: the new key of the victim does not open its values")
	}
	if !m.closed(m.store, m.keys[victim]) {
		wrong = append(wrong, "revived: the old key of the victim")
	}
	return append(wrong, m.others(m.store)...)
}

// ended is replaced, but for a first key that a death left in its grace: that
// is short, and the command that went on named the key.
func ended(m *mortals) []string {
	wrong := replaced(m)
	key := m.keys[victim].Slot().String()
	i := slices.Index(wrong, "revived: the old key of the victim")
	if i < 0 || !strings.Contains(m.said, "another key, "+key+", goes on until") {
		return wrong
	}
	var list struct {
		Keys []struct {
			ID  string    `json:"key_id"`
			End time.Time `json:"expires_at"`
		}
	}
	if err := json.Unmarshal([]byte(m.must("key", "list", victim, "--json").stdout), &list); err != nil {
		m.t.Fatal(err)
	}
	for _, k := range list.Keys {
		if k.ID == key && !k.End.IsZero() && time.Until(k.End) <= defaultGrace {
			return slices.Delete(wrong, i, i+1)
		}
	}
	return wrong
}

func (m *mortals) receipts() (wrong []string) {
	all, err := filepath.Glob(filepath.Join(m.store, "receipts", "*"+victim+"*.json"))
	if err != nil || len(all) == 0 {
		return []string{"no receipt"}
	}
	for _, path := range all {
		if out := m.run("receipt", "verify", path); out.code != 0 {
			wrong = append(wrong, fmt.Sprintf("receipt verify: %v", out))
		}
	}
	return wrong
}

// fatals are the commands that must survive their death.
var fatals = []fatal{
	{
		name:  "identity rotate",
		args:  func(*mortals) []string { return []string{"identity", "rotate", victim, "--grace", "0"} },
		half:  either,
		whole: ended,
	},
	{
		name: "identity rotate --leaked",
		args: func(*mortals) []string { return []string{"identity", "rotate", victim, "--leaked", "--yes"} },
		half: func(m *mortals) (wrong []string) { return m.others(m.store) }, // its values are back once the run is finished
		whole: func(m *mortals) (wrong []string) {
			return append(replaced(m), m.receipts()...)
		},
	},
	{
		name:    "identity recover",
		prepare: func(m *mortals) { m.must("identity", "revoke", victim, "--yes") },
		args: func(m *mortals) []string {
			return []string{"identity", "recover", victim, "--recovery-key-file", m.recovery, "--yes"}
		},
		half:  func(m *mortals) (wrong []string) { return m.others(m.store) },
		whole: replaced,
		again: []int{exitExists},
	},
	{
		name: "identity revoke --shred",
		args: func(*mortals) []string {
			return []string{"identity", "revoke", victim, "--shred", "--confirm", victim, "--yes"}
		},
		half: func(m *mortals) []string { return m.others(m.store) },
		whole: func(m *mortals) (wrong []string) {
			if !m.closed(m.store, m.keys[victim]) {
				wrong = append(wrong, "revived: the key of the shredded victim")
			}
			return slices.Concat(wrong, m.others(m.store), m.receipts())
		},
		again: []int{exitNotFound},
	},
	{
		name: "root rotate",
		args: func(*mortals) []string { return []string{"root", "rotate"} },
		half: either,
		whole: func(m *mortals) []string {
			if !m.opens(m.store, victim, m.keys[victim]) {
				return append(m.others(m.store), "lost: the key of the victim")
			}
			return m.others(m.store)
		},
	},
	{
		name: "restore",
		args: func(m *mortals) []string {
			return []string{"restore", m.backup, "--recovery-key-file", m.recovery, "--ledger", m.ledger, "--yes"}
		},
		prepare: func(m *mortals) {
			if err := os.RemoveAll(m.store); err != nil {
				m.t.Fatal(err)
			}
		},
		half: func(m *mortals) (wrong []string) {
			for _, name := range []string{"revoked", "shredded"} {
				if !m.closed(m.store, m.keys[name]) {
					wrong = append(wrong, "revived: the key that was "+name)
				}
			}
			return wrong
		},
		whole: func(m *mortals) []string {
			if !m.opens(m.store, victim, m.keys[victim]) {
				return append(m.others(m.store), "lost: the key of the victim")
			}
			return m.others(m.store)
		},
		again: []int{exitExists},
	},
	{
		name: "doctor --repair",
		prepare: func(m *mortals) {
			if err := harm(m.store, "header", m.keys[victim].Identity()); err != nil {
				m.t.Fatal(err)
			}
		},
		args: func(m *mortals) []string { return []string{"doctor", "--repair", m.backup, "--yes"} },
		half: func(m *mortals) []string {
			if _, err := os.Stat(m.store); err != nil { // between the two renames
				return m.others(m.store + repairedSuffix)
			}
			return m.others(m.store)
		},
		whole: func(m *mortals) []string {
			if !m.opens(m.store, victim, m.keys[victim]) {
				return append(m.others(m.store), "lost: the key of the victim")
			}
			return m.others(m.store)
		},
	},
	{
		name: "backup",
		args: func(m *mortals) []string {
			return []string{"backup", filepath.Join(m.root, "home", "two.skb"), "--yes"}
		},
		half: func(m *mortals) []string {
			two := filepath.Join(m.root, "home", "two.skb")
			if _, err := os.Stat(two); err != nil {
				return either(m)
			}
			if out := m.run("restore", two, "--verify", "--recovery-key-file", m.recovery); out.code != 0 {
				return append(either(m), fmt.Sprintf("a half backup has the name of a whole one: %v", out))
			}
			return either(m)
		},
		whole: func(m *mortals) []string {
			out := m.run("restore", filepath.Join(m.root, "home", "two.skb"), "--verify", "--recovery-key-file", m.recovery)
			if out.code != 0 {
				return append(either(m), fmt.Sprintf("lost: the backup: %v", out))
			}
			return either(m)
		},
	},
	{
		name: "import",
		args: func(m *mortals) []string {
			return []string{"import", m.dotenv, "--identity", victim, "--write-refs", "--shred", "--yes"}
		},
		half: imported,
		whole: func(m *mortals) []string {
			wrong := imported(m)
			text, err := os.ReadFile(m.dotenv)
			if err != nil || strings.Contains(string(text), "sk_live_") {
				wrong = append(wrong, fmt.Sprintf("the value still stands in the .env file, %v", err))
			}
			return wrong
		},
	},
}

// imported: the value is in the file, which is whole, or in the vault.
func imported(m *mortals) []string {
	text, err := os.ReadFile(m.dotenv)
	got, _ := m.reads(m.store, m.keys[victim])
	stored := slices.Contains(slices.Collect(maps.Values(got)), "sk_live_51H8aaaaBBBBccccDDDDeeee")
	if err != nil || !strings.Contains(string(text), "PORT=80\n") || !stored && !strings.Contains(string(text), "sk_live_51H8aaaaBBBBccccDDDDeeee") {
		return append(either(m), fmt.Sprintf("lost: the imported value, %v", err))
	}
	return either(m)
}

// everyPoint reports whether all points are taken.
func everyPoint() bool { return os.Getenv("SOLEKEY_KILL") == "all" }

// TestKilledProgramLosesNothing kills the built program.
func TestKilledProgramLosesNothing(t *testing.T) {
	for n, f := range fatals {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			f.run(t, n)
		})
	}
}

func (f *fatal) run(t *testing.T, n int) {
	m := newMortals(t)
	if f.prepare != nil {
		f.prepare(m)
	}
	tree, err := keepTree(filepath.Join(m.root, "data"), filepath.Join(m.root, "config"), filepath.Join(m.root, "home"))
	if err != nil {
		t.Fatal(err)
	}
	first, err := trace(m.bin, f.args(m), m.env, m.root, death{})
	if errors.Is(err, errNoTrace) {
		t.Skip(err)
	}
	if err != nil || first.code != 0 || first.calls < 8 {
		t.Fatalf("a life without a death: %v, %v", first, err)
	}
	if wrong := f.whole(m); len(wrong) > 0 {
		t.Fatalf("after a life without a death: %q", wrong)
	}
	deaths, lost, revived := 0, 0, 0
	for _, d := range points(first.calls, n) {
		if err := tree.back(); err != nil {
			t.Fatal(err)
		}
		l, err := trace(m.bin, f.args(m), m.env, m.root, d)
		if err != nil {
			t.Fatal(err)
		}
		if !l.killed { // it made fewer calls than the first
			continue
		}
		deaths++
		for _, w := range f.after(m) {
			t.Errorf("killed at call %d of %d, %s, after it %v: %s", d.at, first.calls, l.last, d.after, w)
			if lost++; strings.Contains(w, "revived") {
				lost, revived = lost-1, revived+1
			}
		}
	}
	t.Logf("%d calls that last, %d deaths: %d lost or wrong, %d revived", first.calls, deaths, lost, revived)
	if deaths == 0 {
		t.Error("no death, so this shows nothing")
	}
}

// after looks at what a death left, ends the command, and looks again.
func (f *fatal) after(m *mortals) (wrong []string) {
	for _, w := range f.half(m) {
		wrong = append(wrong, "at once: "+w)
	}
	out := m.run(f.args(m)...)
	m.said = out.stdout + out.stderr
	if out.code != 0 && !slices.Contains(f.again, out.code) {
		wrong = append(wrong, fmt.Sprintf("again: %v", out))
	}
	for _, w := range f.whole(m) {
		wrong = append(wrong, "in the end: "+w)
	}
	if out := m.run("audit", "verify"); out.code != 0 {
		wrong = append(wrong, fmt.Sprintf("audit verify: %v", out))
	}
	out = m.run("doctor")
	for line := range strings.Lines(out.stdout) {
		usual := strings.Contains(line, "leads to an identity that was") || strings.Contains(line, "is the store before a repair")
		if strings.HasPrefix(line, "fail") || strings.HasPrefix(line, "warn") && !usual {
			wrong = append(wrong, "doctor: "+line)
		}
	}
	return wrong
}

// points are where a life of so many calls ends: at each call, before it and
// after it, or at a sample of them.
func points(calls, seed int) (out []death) {
	step := 1
	if !everyPoint() {
		step = max(1, calls/6)
	}
	for at := 1 + seed%step; at <= calls; at += step {
		if everyPoint() || (at/step)%2 == 0 {
			out = append(out, death{at: at})
		}
		if everyPoint() || (at/step)%2 == 1 {
			out = append(out, death{at: at, after: true})
		}
	}
	return out
}

// TestKillHarnessSeesWhatIsLost are its controls: an older copy of the data
// directory behind an acknowledged command, and one without a vault.
func TestKillHarnessSeesWhatIsLost(t *testing.T) {
	m := newMortals(t)
	old, err := keepTree(m.store)
	if err != nil {
		t.Fatal(err)
	}
	m.must("identity", "rotate", victim, "--grace", "0")
	if wrong := replaced(m); len(wrong) > 0 {
		t.Fatalf("after a rotation: %q", wrong)
	}
	if err := old.back(); err != nil {
		t.Fatal(err)
	}
	wrong := strings.Join(replaced(m), "\n")
	for _, want := range []string{"lost: the new key", "revived: the old key"} {
		if !strings.Contains(wrong, want) {
			t.Errorf("an older directory is not seen as %q: %q", want, wrong)
		}
	}
	m.must("rm", "ONE", "--identity", "bystander", "--yes")
	if wrong := either(m); !slices.Contains(wrong, "lost: the key of a bystander") {
		t.Errorf("a removed value is not seen: %q", wrong)
	}
	start := time.Now()
	l, err := trace(m.bin, []string{"identity", "list"}, m.env, m.root, death{at: 1})
	if err != nil && !errors.Is(err, errNoTrace) || time.Since(start) > patience {
		t.Errorf("tracing a command that changes little: %v, %v", l, err)
	}
}
