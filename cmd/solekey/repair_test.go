package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// harm damages one identity of a store at rest: its header, one of its
// records, or both copies of its cell.
func harm(dir, what string, id identity.ID) error {
	if what == "cell" {
		path := filepath.Join(dir, "vault.cells")
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		parts := bytes.Split(b, id[:])
		for _, p := range parts[1:] {
			p[4] ^= 1
		}
		if len(parts) != 3 {
			return fmt.Errorf("%d copies of the cell", len(parts)-1)
		}
		return os.WriteFile(path, bytes.Join(parts, id[:]), 0o600)
	}
	b, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		return err
	}
	defer b.Close()
	ctx := context.Background()
	res, err := b.Get(ctx, id)
	if err != nil {
		return err
	}
	batch := storage.Batch{Meta: res.Meta}
	if what == "header" {
		batch.Meta[len(batch.Meta)/2] ^= 1
	} else {
		page, err := b.List(ctx, id, "", 1)
		if err != nil || len(page.Items) == 0 {
			return fmt.Errorf("no record to harm: %w", err)
		}
		it := page.Items[0]
		it.Val[len(it.Val)/2] ^= 1
		batch.Ops = []storage.Op{{Key: it.Key, Val: it.Val}}
	}
	_, err = b.Commit(ctx, id, res.Rev, batch)
	return err
}

// harmScript damages an identity of the store: harm header|record|cell NAME
func harmScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: harm header|record|cell NAME")
	}
	id, err := idIn(ts.Getenv("DATA"), ts.Getenv("CONFIG"), args[1])
	ts.Check(err)
	ts.Check(harm(ts.Getenv("DATA"), args[0], id))
}

func idIn(dir, conf, name string) (identity.ID, error) {
	b, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		return identity.ID{}, err
	}
	k := vault.Open(b, rootFrom(keyring.Open(conf, keyring.Options{NoOS: true})), vault.Options{})
	defer k.Close()
	info, err := k.Find(context.Background(), name)
	return info.ID, err
}

// inPlace skips where a directory in use is not renamed.
func inPlace(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there a repair only builds another directory")
	}
}

// TestRepairKilledAtEveryStep kills a repair before storage calls and before
// each of its own steps. Then the damaged store is where it was, or the repaired
// one, or commands say that a repair is to go on; and running it again ends
// with a store in which everything lives that should, and nothing else.
func TestRepairKilledAtEveryStep(t *testing.T) {
	inPlace(t)
	t.Parallel()
	m := newLostMachine(t)
	m.put("full", "TOKEN", "later-full")
	m.want["full"] = "later-full"
	for name, what := range map[string]string{"live": "header", "full": "cell", "revoked": "header", "closed": "record"} {
		if err := harm(m.store, what, m.keys[name].Identity()); err != nil {
			t.Fatal(err)
		}
	}
	sound := map[string][]byte{}
	for _, name := range []string{"vault.db", "vault.cells", "audit.jsonl"} {
		sound[name], _ = os.ReadFile(filepath.Join(m.store, name))
	}
	dying, err := exec.LookPath("solekey-mortal")
	if err != nil {
		t.Fatal(err)
	}
	d := *m.world
	d.bin = dying
	args := func(dir string) []string {
		return []string{"--home", dir, "--yes", "doctor", "--repair", m.backup, "--recovery-key-file", m.recovery}
	}
	store := func(name string) string {
		dir := filepath.Join(m.root, name, "store")
		if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		copyTree(t, m.store, dir)
		return dir
	}
	first := d.start(setting{env: []string{envMortal + "=0"}}, args(store("count"))...)
	calls := 0
	if _, err := fmt.Sscanf(first.stderr[strings.LastIndex(first.stderr, "calls "):], "calls %d", &calls); err != nil || calls < 20 {
		t.Fatalf("%d steps: %v", calls, first)
	}
	seen := map[string]int{}
	for at := 1; at <= calls; at++ {
		if at%3 != 0 && at < calls-4 && !soaking() { // TestRestoreKilledAtEveryStorageCall has them all
			continue
		}
		dir := store(fmt.Sprintf("at-%d", at))
		out := d.start(setting{env: []string{fmt.Sprintf("%s=%d", envMortal, at)}}, args(dir)...)
		if out.code == 0 {
			t.Fatalf("step %d of %d killed nothing", at, calls)
		}
		aside, _ := filepath.Glob(dir + damagedInfix + "*")
		old := append(aside, dir)[0]
		for name, want := range sound {
			if got, err := os.ReadFile(filepath.Join(old, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("killed at step %d: %s of the damaged store was changed, or is gone: %v", at, name, err)
			}
		}
		where := "before"
		if _, err := os.Stat(dir); err != nil {
			where = "between"
			for _, args := range [][]string{{"identity", "list"}, {"init", "--no-recovery"}} {
				if out := m.run(append([]string{"--home", dir}, args...)...); out.code != exitUnavailable || !strings.Contains(out.stderr, "cut off") {
					t.Errorf("killed at step %d: %v = %v", at, args, out)
				}
			}
			if out := m.run("--home", dir, "doctor"); out.code != exitFindings || !strings.Contains(out.stdout, "cut off") {
				t.Errorf("killed at step %d: doctor = %v", at, out)
			}
		} else if len(aside) > 0 {
			where = "after"
		}
		seen[where]++
		m.must(args(dir)...)
		if stands, lost, revived := m.survey(dir); !stands || lost > 0 || revived > 0 {
			t.Errorf("killed at step %d (%s the swap) and repeated: stands %v, %d lost, %d revived", at, where, stands, lost, revived)
		}
		if left, _ := filepath.Glob(dir + repairedSuffix); len(left) > 0 {
			t.Errorf("killed at step %d and repeated: %v is left", at, left)
		}
		if _, err := os.Lstat(filepath.Join(dir, repairingName)); err == nil {
			t.Errorf("killed at step %d and repeated: %s is left", at, repairingName)
		}
		if receipts, _ := filepath.Glob(filepath.Join(dir, receiptDir, "*")); len(receipts) == 0 {
			t.Errorf("killed at step %d and repeated: no receipts", at)
		}
		if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d steps: %v", calls, seen)
	if seen["before"] == 0 || seen["between"] == 0 || seen["after"] == 0 {
		t.Errorf("one kind of point was never met: %v", seen)
	}
	// Control: the same survey of the damaged store finds the values missing.
	if _, lost, _ := m.survey(m.store); lost != 2 {
		t.Errorf("control: %d of 2 values are missing in the damaged store", lost)
	}
}

// TestRepairOfAStoreInUseChangesNothing: a store that is used while it is repaired stays in
// its place, as its last call is not in the repaired one.
func TestRepairOfAStoreInUseChangesNothing(t *testing.T) {
	inPlace(t)
	d := newDesk(t, "me", "bot")
	d.write("v", canary)
	d.do(0, "put", "A_TOKEN", "--identity", "me", "--file", "v")
	d.do(0, "put", "A_TOKEN", "--identity", "bot", "--file", "v")
	d.do(0, "backup", filepath.Join(d.home, "one.skb"))
	conf := newConfig(os.Getenv)
	config, err := conf.configPath()
	if err != nil {
		t.Fatal(err)
	}
	id, err := idIn(d.store(), config, "bot")
	if err != nil {
		t.Fatal(err)
	}
	if err := harm(d.store(), "header", id); err != nil {
		t.Fatal(err)
	}
	uses := 0
	repair := func(step func(string)) int {
		var out bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &out, now: time.Now, conf: newConfig(os.Getenv), step: step}
		root := newRoot(a)
		root.SetArgs([]string{"--yes", "doctor", "--repair", filepath.Join(d.home, "one.skb")})
		code := a.fail(root.ExecuteContext(t.Context()))
		if leak(out.String()) != "" {
			t.Errorf("a repair shows a value:\n%s", out.String())
		}
		return code
	}
	code := repair(func(step string) {
		if step == "built" {
			d.do(0, "get", "A_TOKEN", "--profile", "me")
			uses++
		}
	})
	if code != exitExists || uses != repairTries {
		t.Errorf("a repair beside calls = %d after %d tries, want %d after %d", code, uses, exitExists, repairTries)
	}
	if left, _ := filepath.Glob(d.store() + ".*"); len(left) != 0 {
		t.Errorf("it left %v", left)
	}
	d.do(exitUnavailable, "get", "A_TOKEN", "--profile", "bot")
	// Two repairs at once: one is told of the other.
	other := 0
	code = repair(func(step string) {
		if step == "built" && other == 0 {
			other = repair(nil)
			d.do(0, "get", "A_TOKEN", "--profile", "me")
		}
	})
	if other != exitExists || code != 0 {
		t.Errorf("two repairs at once = %d and %d, want 0 and %d", code, other, exitExists)
	}
	d.do(0, "get", "A_TOKEN", "--profile", "bot")
	if err := harm(d.store(), "header", id); err != nil {
		t.Fatal(err)
	}
	// Control: used once, it succeeds at the second try.
	uses = 0
	code = repair(func(step string) {
		if step == "built" && uses == 0 {
			d.do(0, "get", "A_TOKEN", "--profile", "me")
			uses++
		}
	})
	if code != 0 {
		t.Errorf("a repair beside one call = %d", code)
	}
	d.do(0, "get", "A_TOKEN", "--profile", "bot")
	d.do(0, "audit", "verify")
}
