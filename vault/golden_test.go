package vault_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// goldenHouse is a golden data directory, open in a fresh copy.
type goldenHouse struct {
	*house
	dir  string
	data goldenData
	keys map[string]identity.Key
}

func readGolden(t *testing.T, from string) goldenData {
	t.Helper()
	var d goldenData
	in := json.NewDecoder(bytes.NewReader(must(os.ReadFile(filepath.Join(from, "keys.json")))))
	in.DisallowUnknownFields()
	if err := in.Decode(&d); err != nil {
		t.Fatal(err)
	}
	return d
}

func openGolden(t *testing.T, from string) *goldenHouse {
	t.Helper()
	g := &goldenHouse{dir: unpackGolden(t, from), data: readGolden(t, from), keys: map[string]identity.Key{}}
	g.house = &house{root: must(vault.ParseRoot(g.data.Root)), clock: g.data.ReadAt, birth: vault.Birth{Recovery: must(identity.ParseKey(g.data.Recovery))}}
	for name, text := range g.data.Keys {
		g.keys[name] = must(identity.ParseKey(text))
	}
	g.open(t)
	t.Cleanup(func() { g.Close() })
	return g
}

// open opens the directory with the code of this version.
func (g *goldenHouse) open(t *testing.T) {
	t.Helper()
	b, err := bolt.Open(g.dir, bolt.Options{})
	if err != nil {
		t.Fatalf("opening a data directory of an earlier version: %v", err)
	}
	g.Keeper = vault.Open(b, g.rootSource, vault.Options{Now: g.now})
}

func (g *goldenHouse) reopen(t *testing.T) {
	t.Helper()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g.open(t)
}

// ask makes one call.
func (g *goldenHouse) ask(t *testing.T, a goldenAsk) string {
	t.Helper()
	v, err := g.Unlock(t.Context(), g.keys[a.Key], stdio)
	var heard string
	if err == nil {
		switch a.Call {
		case "get":
			var s vault.Secret
			s, err = v.Get(t.Context(), vault.Label(a.Label), a.Field)
			heard = s.Reveal()
		case "code":
			s, fault := v.Code(t.Context(), vault.Label(a.Label), 0)
			heard, err = s.Digits, fault
		case "labels":
			ls, fault := v.Labels(t.Context(), "")
			for i, l := range ls {
				heard += strings.Repeat(" ", min(i, 1)) + fmt.Sprintf("%s:%d", l.Label, l.Version)
			}
			err = fault
		default:
			t.Fatalf("a golden directory asks for %q", a.Call)
		}
	}
	if err != nil {
		return string(vault.Refuse(err).Word)
	}
	return heard
}

// wantHeard asks everything but the codes, which are given out once, or with
// codes those too. but says what else keys hear than the directory tells.
func (g *goldenHouse) wantHeard(t *testing.T, when string, codes bool, but map[string]string) {
	t.Helper()
	for _, a := range g.data.Asks {
		want := a.Hears
		if w, ok := but[a.Key]; ok {
			want = w
		}
		if a.Call == "code" && !codes {
			continue
		}
		if got := g.ask(t, a); got != want {
			t.Errorf("%s: %s of %q %q as %s = %q, want %q", when, a.Call, a.Label, a.Field, a.Key, got, want)
		}
	}
}

func (g *goldenHouse) wantSound(t *testing.T, when string) {
	t.Helper()
	rep, err := g.VerifyAuditAgainst(t.Context(), vault.Outside{Checkpoints: []byte(g.data.Checkpoints)})
	if err != nil || !rep.OK() {
		t.Errorf("%s: VerifyAudit = %v, %v", when, rep.Problems, err)
	}
	checks, err := g.Health(t.Context())
	if err != nil || len(checks) == 0 {
		t.Errorf("%s: Health = %v, %v", when, checks, err)
	}
	for _, c := range checks {
		if !c.OK {
			t.Errorf("%s: Health says of %s: %s", when, c.Subject, c.Detail)
		}
	}
}

func goldenDirectories(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("testdata/data-*")
	if err != nil || len(all) == 0 {
		t.Fatalf("no golden data directories: %v", err)
	}
	return all
}

// TestGoldenDirectoriesOpen opens the data directory of every earlier format,
// reads all of it and lives on in it.
func TestGoldenDirectoriesOpen(t *testing.T) {
	if *makeGolden != "" {
		writeGoldenDirectory(t, *makeGolden)
	}
	for _, from := range goldenDirectories(t) {
		t.Run(filepath.Base(from), func(t *testing.T) {
			g := openGolden(t, from)
			g.wantSound(t, "as found")
			g.wantHeard(t, "as found", true, nil)
			g.reopen(t)
			g.wantHeard(t, "once absorbed", false, nil)
			g.wantSound(t, "once absorbed")
			g.wantOwner(t)
			g.wantReceipts(t)
			g.liveOn(t)
		})
	}
}

// wantOwner compares what the owner is shown.
func (g *goldenHouse) wantOwner(t *testing.T) {
	t.Helper()
	infos, err := g.Identities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names, shredded := map[string]string{}, 0
	for _, i := range infos {
		if i.Damaged {
			t.Errorf("%s is damaged", i.ID)
		}
		if i.Name == "" && i.Status == identity.Shredded {
			shredded++
			continue
		}
		names[i.Name] = i.Status.String()
		if _, err := g.Labels(t.Context(), i.ID); err != nil {
			t.Errorf("Labels of %s = %v", i.Name, err)
		}
	}
	if len(names) != len(g.data.Names) || shredded == 0 {
		t.Errorf("identities are %v and %d shredded, want %v", names, shredded, g.data.Names)
	}
	for name, want := range g.data.Names {
		if names[name] != want {
			t.Errorf("%s is %s, want %s", name, names[name], want)
		}
	}
}

func (g *goldenHouse) wantReceipts(t *testing.T) {
	t.Helper()
	pub, err := g.AuditPublic(t.Context())
	if err != nil || len(g.data.Receipts) == 0 {
		t.Fatalf("%d receipts, %v", len(g.data.Receipts), err)
	}
	for _, b := range g.data.Receipts {
		r, err := vault.ParseReceipt(b)
		if err == nil {
			err = errors.Join(r.Verify(pub), g.Recount(t.Context(), r))
		}
		if err != nil {
			t.Errorf("a receipt of an earlier version: %v", err)
		}
	}
}

// liveOn changes the directory in every way, then takes it to another one.
func (g *goldenHouse) liveOn(t *testing.T) {
	ctx := t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	live := g.keys["absorbed"]
	g.put(t, live.Identity(), secret("twice", "third"), secret("more", "of this version"))
	_, err := g.Remove(ctx, live.Identity(), "x")
	check(err)
	g.keys["absorbed-new"], err = g.Rotate(ctx, live.Identity(), live, vault.Rotation{})
	check(err)
	g.keys["granted-more"], err = g.AddKey(ctx, g.keys["granted"].Identity(), g.keys["granted"], "more", identity.Grant{})
	check(err)
	g.keys["revoked-new"], err = g.Recover(ctx, g.keys["revoked"].Identity(), g.birth.Recovery, identity.Grant{})
	check(err)
	_, err = g.Revoke(ctx, g.keys["late"].Identity(), vault.Revocation{})
	check(err)
	_, err = g.Revoke(ctx, g.keys["heir"].Identity(), vault.Revocation{Shred: true})
	check(err)
	_, err = g.Replace(ctx, g.keys["rotated"].Identity(), g.keys["rotated-new"], vault.Replacement{Hand: func(k identity.Key) error { g.keys["rotated-heir"] = k; return nil }})
	check(err)
	if out := g.rotateRoot(t, g.Keeper); len(out.Left) != 0 {
		t.Errorf("RotateRoot = %+v", out)
	}
	but := map[string]string{"absorbed": "revoked", "late": "revoked", "heir": "revoked", "rotated-new": "revoked"}
	g.data.Asks = append(slices.Clone(g.data.Asks),
		goldenAsk{"absorbed-new", "get", "twice", "", "third"}, goldenAsk{"absorbed-new", "get", "more", "", "of this version"}, goldenAsk{"absorbed-new", "get", "x", "", "not_found"},
		goldenAsk{"granted-more", "get", "prod/x", "", "in the glob"}, goldenAsk{"revoked-new", "get", "x", "", "was here"}, goldenAsk{"rotated-heir", "get", "x", "", "through a rotation"})
	g.reopen(t)
	g.wantHeard(t, "changed by this version", false, but)
	g.clock = g.clock.Add(time.Minute)
	if code := g.ask(t, goldenAsk{Key: "codes", Call: "code", Label: "sha1"}); len(code) != 8 {
		t.Errorf("the next code hears %q", code)
	}
	g.wantSound(t, "changed by this version")

	a := openArchive(t, g.backup(t), g.birth.Recovery)
	to := &goldenHouse{dir: filepath.Join(t.TempDir(), "data"), data: g.data, keys: g.keys}
	to.house = &house{root: rootOf(t, a), birth: g.birth, clock: g.clock}
	b, err := bolt.Create(to.dir, bolt.Options{})
	check(err)
	check(plan(t, a, nil, g.clock).Restore(ctx, b, vault.RestoreOptions{Now: to.now}))
	check(b.Close())
	to.open(t)
	defer to.Close()
	to.wantHeard(t, "restored from a backup", false, but)
	to.wantSound(t, "restored from a backup")
}

// TestGoldenDirectoryNoticesOneByte is the control: a byte of an identity that
// changed is noticed by the keys of that identity and by no other, a byte of
// the log by its verification, and another root opens nothing.
func TestGoldenDirectoryNoticesOneByte(t *testing.T) {
	for _, from := range goldenDirectories(t) {
		g := openGolden(t, from)
		for _, name := range []string{"mailbox", "codes", "granted", "heir", "unrecoverable"} {
			for what, pick := range map[string]func(storage.Result, storage.Page) []byte{
				"header": func(r storage.Result, _ storage.Page) []byte { return r.Meta },
				"record": func(_ storage.Result, p storage.Page) []byte { return p.Items[0].Val },
			} {
				bad := openGolden(t, from)
				stored := bad.stored(t, name, pick)
				bad.flip(t, "vault.db", stored, len(stored)/2)
				refused, other := 0, 0
				for _, a := range bad.data.Asks {
					got, own := bad.ask(t, a), bad.keys[a.Key].Identity() == bad.keys[name].Identity()
					switch {
					case own && a.Key != "impostor" && a.Hears == got:
						t.Errorf("a changed %s of %s: %s of %q as %s goes on to hear %q", what, name, a.Call, a.Label, a.Key, got)
					case own:
						refused++
					case got != a.Hears:
						t.Errorf("a changed %s of %s: %s of %q as %s = %q, want %q", what, name, a.Call, a.Label, a.Key, got, a.Hears)
					default:
						other++
					}
				}
				if refused == 0 || other == 0 {
					t.Errorf("a changed %s of %s was asked for %d times, others %d times", what, name, refused, other)
				}
			}
		}
		log := must(os.ReadFile(filepath.Join(g.dir, "audit.jsonl")))
		bad := openGolden(t, from)
		bad.flip(t, "audit.jsonl", log, bytes.Index(log, []byte(`"res":"`))+8)
		if rep, err := bad.VerifyAudit(t.Context()); err != nil || rep.OK() {
			t.Errorf("VerifyAudit of a changed log = %v, %v", rep.Problems, err)
		}
		g.root = vault.NewRoot()
		g.reopen(t)
		for name, key := range g.keys {
			if got := word(g.Keeper, key, "x"); got != "unavailable" {
				t.Errorf("under another root %s hears %q", name, got)
			}
		}
	}
}

// stored is an object of an identity as it lies in vault.db.
func (g *goldenHouse) stored(t *testing.T, name string, pick func(storage.Result, storage.Page) []byte) []byte {
	t.Helper()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	b := must(bolt.Open(g.dir, bolt.Options{}))
	id := g.keys[name].Identity()
	out := pick(must(b.Get(t.Context(), id)), must(b.List(t.Context(), id, "", 10)))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

// flip changes one bit of the byte at in every place where a file holds whole,
// and opens the directory again.
func (g *goldenHouse) flip(t *testing.T, file string, whole []byte, at int) {
	t.Helper()
	_ = g.Close()
	path := filepath.Join(g.dir, file)
	b := must(os.ReadFile(path))
	n := 0
	for from := 0; ; n++ {
		i := bytes.Index(b[from:], whole)
		if i < 0 {
			break
		}
		b[from+i+at] ^= 1
		from += i + len(whole)
	}
	if n == 0 {
		t.Fatalf("%s does not hold the object", file)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	g.open(t)
}
