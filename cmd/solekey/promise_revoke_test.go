package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRevokeHoldsForTheNextCall revokes, in a process of its own, the key of
// a server that is busy: no call that starts once revoke has returned gets
// anything but `revoked`.
func TestRevokeHoldsForTheNextCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("identity", "create", "other")
	w.put("other", "TOKEN", "of-other")
	other := w.serve("--profile", "other")
	for i := range rounds(3, 10, 200) {
		name := fmt.Sprintf("bot-%d", i)
		w.must("identity", "create", name)
		w.put(name, "TOKEN", "of-"+name)
		s := w.serve("--profile", name)
		s.get("TOKEN").wants(t, "before revoke", "of-"+name, "")

		args := []string{"identity", "revoke", name, "--yes"}
		if i%2 == 1 {
			args = []string{"key", "revoke", name, keyID(t, w, name), "--yes"}
		}
		load := beginLoad(s, 3)
		<-load.busy
		w.must(args...)
		load.over.Store(true)
		after := s.get("TOKEN")
		load.end()
		after.wants(t, "the call after "+args[0]+" revoke", "", "revoked")
		for _, tool := range []string{"list_labels", "get_totp_code", "get_secret"} {
			args := map[string]any{"label": "TOKEN"}
			if tool == "list_labels" {
				args = nil
			}
			s.mustCall(tool, args).wants(t, tool+" after revoke", "", "revoked")
		}
		if late, all := load.late.Load(), load.all.Load(); late > 0 || all == 0 {
			t.Errorf("round %d: %d of %d values went to calls that began after revoke had returned", i, late, all)
		}
		s.close()

		// Control: the same question to a server whose key nobody revoked.
		load = beginLoad(other, 1)
		load.over.Store(true)
		<-load.busy
		load.end()
		if load.late.Load() == 0 {
			t.Error("no late value was seen where every value is late")
		}
	}
}

// keyID is the short name of an identity's only key.
func keyID(t *testing.T, w *world, name string) string {
	t.Helper()
	var out struct {
		Keys []struct {
			ID string `json:"key_id"`
		} `json:"keys"`
	}
	text := w.must("key", "list", name, "--json").stdout
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out.Keys) != 1 {
		t.Fatalf("key list --json = %s, %v", text, err)
	}
	return out.Keys[0].ID
}

// load is callers that read one label until they are told to end.
type load struct {
	stop, busy chan struct{}
	once       sync.Once
	wait       sync.WaitGroup
	over       atomic.Bool  // values must not come any more
	all, late  atomic.Int64 // values, and those of calls that began once it was over
}

func beginLoad(s *server, callers int) *load {
	l := &load{stop: make(chan struct{}), busy: make(chan struct{})}
	for range callers {
		l.wait.Go(func() { l.read(s) })
	}
	return l
}

func (l *load) read(s *server) {
	defer l.once.Do(func() { close(l.busy) })
	for calls := 0; ; calls++ {
		if calls == 5 {
			l.once.Do(func() { close(l.busy) })
		}
		select {
		case <-l.stop:
			return
		default:
		}
		over := l.over.Load()
		a, err := s.call("get_secret", map[string]any{"label": "TOKEN"})
		if err != nil {
			s.w.t.Error(err)
			return
		}
		if !a.refused {
			l.all.Add(1)
		}
		if over && !a.refused {
			l.late.Add(1)
		}
	}
}

func (l *load) end() {
	close(l.stop)
	l.wait.Wait()
}

// TestShredOpensNothing keeps a copy of everything an attacker could have
// kept, and shreds: the old database with the old log, the API key and the
// root key opens nothing beside the cells as they are now.
func TestShredOpensNothing(t *testing.T) {
	t.Parallel()
	const value = "CANARY-shred-4b1d9c"
	w := newWorld(t)
	w.must("identity", "create", "old-bot")
	w.put("old-bot", "TOKEN", value)
	w.must("get", "TOKEN", "--profile", "old-bot")
	old := filepath.Join(w.root, "old")
	copyTree(t, w.store, old)
	key := filepath.Join(w.root, "kept.key")
	copyFile(t, w.keyFile("old-bot"), key)
	roots, err := filepath.Glob(filepath.Join(w.conf, "root-*.key"))
	if err != nil || len(roots) != 1 {
		t.Fatalf("root files: %v, %v", roots, err)
	}
	keptRoot, err := os.ReadFile(roots[0])
	if err != nil {
		t.Fatal(err)
	}
	w.must("identity", "revoke", "old-bot", "--shred", "--confirm", "old-bot")
	if now, err := os.ReadFile(roots[0]); err != nil || string(now) != string(keptRoot) {
		t.Errorf("the root file changed, so this test would prove too little: %v", err)
	}

	build := func(name string, fromOld ...string) string {
		dir := filepath.Join(w.root, name)
		copyTree(t, w.store, dir)
		for _, f := range fromOld {
			copyFile(t, filepath.Join(old, f), filepath.Join(dir, f))
		}
		return dir
	}
	for _, c := range []struct {
		name string
		old  []string
		code int // -1: any but 0
	}{
		{"as it is", nil, 4},
		{"old database", []string{"vault.db"}, -1},
		{"old database and log", []string{"vault.db", "audit.jsonl", "audit.head"}, -1},
		// Controls: with the old cells everything is as it was.
		{"old database and cells", []string{"vault.db", "vault.cells"}, 0},
		{"everything old", []string{"vault.db", "vault.cells", "audit.jsonl", "audit.head"}, 0},
	} {
		dir := build(filepath.Join("try", c.name), c.old...)
		out := w.run("get", "TOKEN", "--api-key-file", key, "--home", dir)
		if (c.code >= 0 && out.code != c.code) || (c.code < 0 && out.code == 0) {
			t.Errorf("%s: get = %v, want exit code %d", c.name, out, c.code)
		}
		if got := out.stdout == value+"\n" || out.stdout == value; got != (c.code == 0) {
			t.Errorf("%s: get printed %q", c.name, out.stdout)
		}
		a := w.serve("--api-key-file", key, "--home", dir).get("TOKEN")
		if (a.text("value") == value) != (c.code == 0) {
			t.Errorf("%s: get_secret = %v", c.name, a)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// receiptFile is what a receipt says of values.
type receiptFile struct {
	Revealed []receiptRow
	Codes    []receiptRow
	Counts   struct{ Labels, Revealed, Codes, Untouched, Denied int }
	Audit    struct{ Complete bool }
}

type receiptRow struct {
	Label          string
	Version, Times int
	Current        bool
}

// TestReceiptNamesWhatWasRevealed reads at random with two keys and compares
// the receipts with what came out: of one key when that is revoked, of all
// when the identity is.
func TestReceiptNamesWhatWasRevealed(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	w := newWorld(t)
	w.must("identity", "create", "bot")
	second := w.must("key", "add", "bot", "--profile", "second", "--json")
	var made struct {
		Key string `json:"key_id"`
	}
	if err := json.Unmarshal([]byte(second.stdout), &made); err != nil || made.Key == "" {
		t.Fatalf("key add --json: %v", second)
	}
	const labels = 12
	for i := range labels {
		w.put("bot", fmt.Sprintf("L%d", i), fmt.Sprintf("value-%d", i))
	}
	w.put("bot", "otp", "otpauth://totp/X:y?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP&period=300")
	w.put("bot", "locked", "value", "--exposure", "use")

	read := map[string]map[string]int{"bot": {}, "second": {}}
	denied := map[string]int{}
	for profile, got := range read {
		s := w.serve("--profile", profile)
		for range 30 {
			label := fmt.Sprintf("L%d", r.IntN(labels-2)+r.IntN(3)) // some often, one perhaps never
			if r.IntN(4) == 0 {
				label = []string{"locked", "absent", "otp"}[r.IntN(3)]
			}
			if a := s.get(label); a.refused {
				denied[profile]++
			} else {
				got[label]++
			}
		}
		s.close()
	}
	for range 3 { // the command line is one more way out
		label := fmt.Sprintf("L%d", r.IntN(labels))
		w.must("get", label, "--profile", "bot")
		read["bot"][label]++
	}
	code := w.serve("--profile", "bot").mustCall("get_totp_code", map[string]any{"label": "otp", "min_remaining": 0})
	if code.refused {
		t.Fatalf("get_totp_code = %v", code)
	}
	if len(read["second"]) == 0 || cmp.Equal(read["bot"], read["second"]) {
		t.Fatalf("both keys read %v: the test would see nothing", read)
	}

	one := w.receipt("key", "revoke", "bot", made.Key, "--yes")
	compareReceipt(t, "of the second key", one, read["second"], nil, denied["second"])
	for label, n := range read["second"] {
		read["bot"][label] += n
	}
	all := w.receipt("identity", "revoke", "bot", "--yes")
	compareReceipt(t, "of the identity", all, read["bot"], []string{"otp"}, denied["bot"]+denied["second"])
	if all.Counts.Labels != labels+2 || all.Counts.Untouched != labels+2-len(read["bot"])-1 {
		t.Errorf("receipt of the identity counts %+v, want %d labels", all.Counts, labels+2)
	}

	// Control: one read more or less is a difference.
	if cmp.Equal(timesOf(all), timesOf(one)) {
		t.Errorf("both receipts say %v", timesOf(all))
	}
}

// receipt runs a command that writes a receipt, and reads that.
func (w *world) receipt(args ...string) receiptFile {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "receipt.json")
	w.must(append(args, "--receipt", path)...)
	b, err := os.ReadFile(path)
	var out receiptFile
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func timesOf(r receiptFile) map[string]int {
	out := map[string]int{}
	for _, row := range r.Revealed {
		out[row.Label] = row.Times
	}
	return out
}

func compareReceipt(t *testing.T, what string, got receiptFile, revealed map[string]int, codes []string, denied int) {
	t.Helper()
	if diff := cmp.Diff(revealed, timesOf(got)); diff != "" {
		t.Errorf("receipt %s: revealed (-want +got):\n%s", what, diff)
	}
	for _, row := range got.Revealed {
		if row.Version != 1 || !row.Current {
			t.Errorf("receipt %s: %+v, want the current version 1", what, row)
		}
	}
	var labels []string
	for _, row := range got.Codes {
		labels = append(labels, row.Label)
	}
	if diff := cmp.Diff(codes, labels); diff != "" {
		t.Errorf("receipt %s: codes (-want +got):\n%s", what, diff)
	}
	if got.Counts.Revealed != len(revealed) || got.Counts.Codes != len(codes) || got.Counts.Denied != denied || !got.Audit.Complete {
		t.Errorf("receipt %s counts %+v, complete %v, want %d revealed, %d codes, %d denied", what, got.Counts, got.Audit.Complete, len(revealed), len(codes), denied)
	}
}
