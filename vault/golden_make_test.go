package vault_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// testdata/data-N holds a whole data directory as an earlier version left it,
// what rests elsewhere, and what each key must hear. What it says is never
// changed; a change of the formats adds the next one, by
//
//	go test ./vault -run TestGoldenDirectoriesOpen -golden.make testdata/data-2

var makeGolden = flag.String("golden.make", "", "write a golden data directory to `DIR`, which must not exist")

// goldenReadAt is when a golden directory is read: a moment for which RFC 6238
// lists the codes of its seeds.
var goldenReadAt = time.Unix(2_000_000_000, 0).UTC()

// goldenFiles are the files of a data directory that a golden one holds. The
// others are made anew.
var goldenFiles = []string{"vault.db", "vault.cells", "audit*.jsonl", "audit.head"}

// goldenData is keys.json: what is not in the data directory.
type goldenData struct {
	ReadAt      time.Time         `json:"read_at"`
	Root        string            `json:"root_text"`
	Recovery    string            `json:"recovery_key"`
	Keys        map[string]string `json:"keys"`
	Names       map[string]string `json:"identities"` // by name: status
	Receipts    []json.RawMessage `json:"receipts"`
	Checkpoints string            `json:"checkpoints"`
	Asks        []goldenAsk       `json:"asks"`
}

// goldenAsk is one call and what it hears: a value, a code, the labels with
// their versions, or a word.
type goldenAsk struct {
	Key   string `json:"key"`
	Call  string `json:"call"` // get, code or labels
	Label string `json:"label,omitempty"`
	Field string `json:"field,omitempty"`
	Hears string `json:"hears"`
}

// goldenMaker lives the life of a golden directory.
type goldenMaker struct {
	*house
	t    *testing.T
	keys map[string]identity.Key
	data goldenData
}

func (m *goldenMaker) identity(name string, es ...vault.NewEntry) identity.Key {
	m.t.Helper()
	key := m.create(m.t, name, identity.Grant{})
	m.keys[name] = key
	m.put(m.t, key.Identity(), es...)
	m.clock = m.clock.Add(time.Minute)
	return key
}

func (m *goldenMaker) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *goldenMaker) keep(r vault.Receipt) error {
	b, err := json.Marshal(r)
	m.data.Receipts = append(m.data.Receipts, b)
	return err
}

func (m *goldenMaker) checkpoint() {
	m.t.Helper()
	note, _, err := m.Checkpoint(m.t.Context(), vault.Outside{})
	m.check(err)
	m.data.Checkpoints += string(note)
}

func (m *goldenMaker) grant(proof identity.Key, as string, g identity.Grant) {
	m.t.Helper()
	key, err := m.AddKey(m.t.Context(), proof.Identity(), proof, as, g)
	m.check(err)
	m.keys[as] = key
}

// The seeds of RFC 6238, appendix B.
const (
	rfcSeed1   = "otpauth://totp/Example:rfc?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&digits=8"
	rfcSeed512 = "otpauth://totp/Example:rfc?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNA&digits=8&algorithm=SHA512"
)

// live is everything that happens in a golden directory.
func (m *goldenMaker) live() {
	t, ctx := m.t, m.t.Context()
	m.identity("mailbox", secret("x", "never read"), vault.NewEntry{Label: "late", Expires: goldenReadAt.AddDate(-1, 0, 0), Fields: []vault.Field{{Name: "value", Value: []byte("too late")}}})
	key := m.identity("absorbed", secret("x", "read once"), secret("twice", "first"))
	get(t, unlock(t, m.Keeper, key), "x")
	get(t, unlock(t, m.Keeper, key), "twice")
	m.put(t, key.Identity(), secret("twice", "second"))

	m.identity("fields",
		vault.NewEntry{Label: "login", Kind: vault.KindLogin, Tags: []string{"web"}, Hosts: []string{"example.com"}, Placement: "header:Authorization: Bearer", Fields: []vault.Field{
			{Name: "value", Value: []byte("a password")}, {Name: "username", Value: []byte("an agent")}, {Name: "note", Value: []byte("line\nline é")}, {Name: "private_key", Value: []byte("never leaves"), Never: true}}},
		vault.NewEntry{Label: "used", Exposure: vault.ExposeUse, Hosts: []string{"example.com"}, Fields: []vault.Field{{Name: "value", Value: []byte("only used")}}})
	key = m.identity("codes", vault.NewEntry{Label: "sha1", Kind: vault.KindTOTP, Fields: []vault.Field{{Name: "value", Value: []byte(rfcSeed1)}}}, vault.NewEntry{Label: "sha512", Kind: vault.KindTOTP, Fields: []vault.Field{{Name: "value", Value: []byte(rfcSeed512)}}})
	_, err := unlock(t, m.Keeper, key).Code(ctx, "sha1", 0) // leaves its state, and the seed absorbed
	m.check(err)

	key = m.identity("removed", secret("gone", "1"), secret("again", "1"), secret("x", "stays"))
	_, err = m.Remove(ctx, key.Identity(), "gone", "again")
	m.check(err)
	m.put(t, key.Identity(), secret("again", "2"))

	key = m.identity("granted", secret("prod/x", "in the glob"), secret("dev/x", "outside"))
	m.grant(key, "granted-reader", identity.Grant{Scopes: identity.Scopes(identity.Read), Globs: []identity.Glob{"prod/*"}, Expires: goldenReadAt.AddDate(1, 0, 0)})
	m.grant(key, "granted-lister", identity.Grant{Scopes: identity.Scopes(identity.List), Globs: []identity.Glob{"dev/*"}})
	m.grant(key, "granted-expired", identity.Grant{Scopes: identity.DefaultScopes, Expires: goldenReadAt.AddDate(-1, 0, 0)})
	m.grant(key, "granted-closed", identity.Grant{Scopes: identity.DefaultScopes})
	_, err = m.Revoke(ctx, key.Identity(), vault.Revocation{Slots: []identity.SlotID{m.keys["granted-closed"].Slot()}, Keep: m.keep})
	m.check(err)
	m.checkpoint()

	key = m.identity("rotated", secret("x", "through a rotation"))
	m.keys["rotated-new"], err = m.Rotate(ctx, key.Identity(), key, vault.Rotation{})
	m.check(err)
	key = m.identity("graced", secret("x", "through a grace"))
	m.keys["graced-new"], err = m.Rotate(ctx, key.Identity(), key, vault.Rotation{Grace: time.Hour})
	m.check(err)
	key = m.identity("leaked", secret("x", "of the heir"), secret("unread", "of the heir too"))
	get(t, unlock(t, m.Keeper, key), "x")
	_, err = m.Replace(ctx, key.Identity(), key, vault.Replacement{Hand: func(k identity.Key) error { m.keys["heir"] = k; return nil }, Keep: m.keep})
	m.check(err)

	for name, shred := range map[string]bool{"revoked": false, "shredded": true} {
		key = m.identity(name, secret("x", "was here"))
		get(t, unlock(t, m.Keeper, key), "x")
		_, err = m.Revoke(ctx, key.Identity(), vault.Revocation{Shred: shred, Keep: m.keep})
		m.check(err)
	}
	m.keys["unrecoverable"], err = m.Create(ctx, vault.NewIdentity{Name: "unrecoverable", NoRecovery: true})
	m.check(err)
	m.put(t, m.keys["unrecoverable"].Identity(), secret("x", "without a recovery slot"))
	m.keys["stranger"] = identity.NewKey(identity.Agent, identity.NewID())
	m.keys["impostor"] = identity.NewKey(identity.Agent, m.keys["mailbox"].Identity())

	m.rotateRoot(t, m.Keeper)
	m.identity("late", secret("x", "after the root rotation"))
	m.checkpoint()
}

// goldenAsks is what must be heard at goldenReadAt, in this order.
var goldenAsks = []goldenAsk{
	{"mailbox", "labels", "", "", "late:1 x:1"},
	{"mailbox", "get", "x", "", "never read"},
	{"mailbox", "get", "late", "", "expired"},
	{"absorbed", "get", "x", "", "read once"},
	{"absorbed", "get", "twice", "", "second"},
	{"absorbed", "labels", "", "", "twice:2 x:1"},
	{"fields", "get", "login", "", "a password"},
	{"fields", "get", "login", "username", "an agent"},
	{"fields", "get", "login", "note", "line\nline é"},
	{"fields", "get", "login", "private_key", "not_found"},
	{"fields", "get", "used", "", "forbidden"},
	{"codes", "code", "sha1", "", "69279037"},
	{"codes", "code", "sha512", "", "38618901"},
	{"codes", "get", "sha1", "", "forbidden"},
	{"removed", "get", "gone", "", "not_found"},
	{"removed", "get", "again", "", "2"},
	{"removed", "labels", "", "", "again:2 x:1"},
	{"granted", "get", "dev/x", "", "outside"},
	{"granted-reader", "get", "prod/x", "", "in the glob"},
	{"granted-reader", "get", "dev/x", "", "not_found"},
	{"granted-reader", "labels", "", "", "forbidden"},
	{"granted-lister", "labels", "", "", "dev/x:1"},
	{"granted-lister", "get", "dev/x", "", "forbidden"},
	{"granted-expired", "get", "prod/x", "", "expired"},
	{"granted-closed", "get", "prod/x", "", "revoked"},
	{"rotated", "get", "x", "", "revoked"},
	{"rotated-new", "get", "x", "", "through a rotation"},
	{"graced", "get", "x", "", "expired"},
	{"graced-new", "get", "x", "", "through a grace"},
	{"leaked", "get", "x", "", "revoked"},
	{"heir", "get", "x", "", "of the heir"},
	{"heir", "get", "unread", "", "of the heir too"},
	{"revoked", "get", "x", "", "revoked"},
	{"shredded", "get", "x", "", "revoked"},
	{"unrecoverable", "get", "x", "", "without a recovery slot"},
	{"stranger", "get", "x", "", "unauthorized"},
	{"impostor", "get", "x", "", "unauthorized"},
	{"late", "get", "x", "", "after the root rotation"},
}

// writeGoldenDirectory makes DIR. The log is cut into several files, so that
// there are earlier ones.
func writeGoldenDirectory(t *testing.T, to string) {
	t.Helper()
	m := &goldenMaker{t: t, keys: map[string]identity.Key{}, house: &house{root: vault.NewRoot(), clock: time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)}}
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatalf("a golden directory is never written over: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	b, err := bolt.Create(dir, bolt.Options{MaxLog: 8000})
	m.check(err)
	m.birth, err = vault.Init(t.Context(), b, m.root, vault.InitOptions{Now: m.now})
	m.check(err)
	m.Keeper = vault.Open(b, m.rootSource, vault.Options{Now: m.now})
	m.live()
	m.data.Names = map[string]string{}
	infos, err := m.Identities(t.Context())
	m.check(err)
	for _, i := range infos {
		if i.Name != "" {
			m.data.Names[i.Name] = i.Status.String()
		}
	}
	m.check(m.Close())
	m.data.ReadAt, m.data.Root, m.data.Recovery, m.data.Asks = goldenReadAt, m.root.Reveal(), m.birth.Recovery.Reveal(), goldenAsks
	m.data.Keys = map[string]string{}
	for name, k := range m.keys {
		m.data.Keys[name] = k.Reveal()
	}
	m.check(os.WriteFile(filepath.Join(to, "store.tar.gz"), packGolden(t, dir), 0o644))
	m.check(os.WriteFile(filepath.Join(to, "keys.json"), append(must(json.MarshalIndent(m.data, "", "  ")), '\n'), 0o644))
}

// packGolden packs the files of a data directory. vault.db grows by 1 MiB at
// a time and is mostly zeros.
func packGolden(t *testing.T, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	zip := must(gzip.NewWriterLevel(&out, gzip.BestCompression))
	w := tar.NewWriter(zip)
	for _, pattern := range goldenFiles {
		for _, path := range must(filepath.Glob(filepath.Join(dir, pattern))) {
			b := must(os.ReadFile(path))
			if err := w.WriteHeader(&tar.Header{Name: filepath.Base(path), Mode: 0o600, Size: int64(len(b))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// unpackGolden makes the data directory of dir anew.
func unpackGolden(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(must(gzip.NewReader(bytes.NewReader(must(os.ReadFile(filepath.Join(dir, "store.tar.gz")))))))
	for n := 0; ; n++ {
		h, err := r.Next()
		if err == io.EOF {
			if n < 4 {
				t.Fatalf("%s holds %d files", dir, n)
			}
			return to
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(h.Name)), must(io.ReadAll(r)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
