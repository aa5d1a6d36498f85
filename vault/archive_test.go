package vault_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
)

var update = flag.Bool("update", false, "add golden files that are missing")

// skbFrame is one frame of a backup file. The functions around it follow
// docs/SPEC.md and share no code with the package.
type skbFrame struct {
	n    uint32
	kind byte
	id   [16]byte
	body []byte
}

const skbMagic = "SOLEKEY-BACKUP\n\x01"

func splitFrames(t testing.TB, file []byte) []skbFrame {
	t.Helper()
	var out []skbFrame
	for b := file[len(skbMagic):]; len(b) > 0; {
		size := binary.BigEndian.Uint32(b[21:])
		out = append(out, skbFrame{n: binary.BigEndian.Uint32(b), kind: b[4], id: [16]byte(b[5:]), body: b[25 : 25+size]})
		b = b[25+size+32:]
	}
	return out
}

// cutFrames are the frames as they stand in the file, the magic first.
func cutFrames(t testing.TB, file []byte) [][]byte {
	t.Helper()
	out := [][]byte{file[:len(skbMagic)]}
	b := file[len(skbMagic):]
	for _, f := range splitFrames(t, file) {
		n := 25 + len(f.body) + 32
		out = append(out, b[:n])
		b = b[n:]
	}
	return out
}

// joinFrames numbers and chains frames as an attacker would. With a signer it
// replaces the last one by a signature of the rest.
func joinFrames(frames []skbFrame, signer ed25519.PrivateKey) []byte {
	out := []byte(skbMagic)
	chain := sha256.Sum256(out)
	for i, f := range frames {
		if i == len(frames)-1 && signer != nil {
			f.body = ed25519.Sign(signer, append([]byte("solekey/v1/backup\x00"), chain[:]...))
		}
		head := binary.BigEndian.AppendUint32(nil, uint32(i))
		head = append(append(head, f.kind), f.id[:]...)
		head = binary.BigEndian.AppendUint32(head, uint32(len(f.body)))
		chain = sha256.Sum256(slices.Concat([]byte("solekey/v1/backup/frame\x00"), chain[:], head, f.body))
		out = slices.Concat(out, head, f.body, chain[:])
	}
	return out
}

func wantFault(t testing.TB, what string, file []byte, want ...vault.Fault) {
	t.Helper()
	_, err := vault.OpenArchive(t.Context(), bytes.NewReader(file))
	var f vault.Fault
	if !errors.As(err, &f) || len(want) > 0 && !slices.Contains(want, f) {
		t.Errorf("%s: OpenArchive = %v (%q), want %q", what, err, f, want)
	}
	if err != nil && vault.Refuse(err).Word != vault.BadRequest {
		t.Errorf("%s: word %s", what, vault.Refuse(err).Word)
	}
}

func twoBackups(t testing.TB) (h *house, one, two []byte) {
	t.Helper()
	h = newHouse(t)
	for _, name := range []string{"a", "b", "c"} {
		key := h.create(t, name, identity.Grant{})
		h.put(t, key.Identity(), secret("x", "value"), secret("y", "value"))
	}
	return h, h.backup(t), h.backup(t)
}

func TestDamagedBackupIsRefusedByClass(t *testing.T) {
	_, one, two := twoBackups(t)
	if _, err := vault.OpenArchive(t.Context(), bytes.NewReader(one)); err != nil {
		t.Fatalf("control: an intact backup = %v", err)
	}
	step := 11 // over the bytes; a soak takes every one
	if os.Getenv("SOLEKEY_SOAK") == "1" {
		step = 1
	}
	for n := 1; n < len(one); n += step {
		wantFault(t, fmt.Sprintf("cut to %d bytes", n), one[:n], vault.FaultTruncated)
	}
	for i := 0; i < len(one); i += step {
		b := slices.Clone(one)
		b[i] ^= 1 << (i % 8)
		wantFault(t, fmt.Sprintf("byte %d changed", i), b)
	}
	wantFault(t, "an empty file", nil, vault.FaultNoBackup)
	wantFault(t, "another file", []byte("PK\x03\x04 something else entirely"), vault.FaultNoBackup)
	wantFault(t, "a byte more", append(slices.Clone(one), 0), vault.FaultChanged)
	later := slices.Clone(one)
	later[len(skbMagic)-1]++
	wantFault(t, "a later version", later, vault.FaultVersion)

	f1, f2 := cutFrames(t, one), cutFrames(t, two)
	for i := 1; i+1 < len(f1); i++ {
		what := fmt.Sprintf("frame %d ", i)
		swapped := slices.Clone(f1)
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
		wantFault(t, what+"swapped", slices.Concat(swapped...), vault.FaultReordered)
		wantFault(t, what+"dropped", slices.Concat(slices.Delete(slices.Clone(f1), i, i+1)...), vault.FaultReordered)
		wantFault(t, what+"doubled", slices.Concat(slices.Insert(slices.Clone(f1), i, f1[i])...), vault.FaultReordered)
		mixed := slices.Clone(f1)
		mixed[i] = f2[i]
		wantFault(t, what+"of another backup", slices.Concat(mixed...), vault.FaultMixed)
	}
	frames := splitFrames(t, one)
	for i := range frames[:len(frames)-1] {
		edited := slices.Clone(frames)
		edited[i].body = slices.Clone(edited[i].body)
		edited[i].body[len(edited[i].body)-1] ^= 1
		wantFault(t, fmt.Sprintf("frame %d edited and chained again", i), joinFrames(edited, nil), vault.FaultForged, vault.FaultChanged)
	}
	if !bytes.Equal(joinFrames(frames, nil), one) {
		t.Error("control: the file is not what docs/SPEC.md says")
	}
}

// Who has neither root nor recovery key can make a backup file of a store,
// but none that the recovery key of another one takes for its own.
func TestForgedBackupIsRefused(t *testing.T) {
	h, one, _ := twoBackups(t)
	pub, signer, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	resigned := splitFrames(t, one)
	wantFault(t, "signed by a stranger", joinFrames(resigned, signer), vault.FaultForged)

	resigned[0].body = slices.Clone(resigned[0].body)
	copy(resigned[0].body[16:], pub)
	a, err := vault.OpenArchive(t.Context(), bytes.NewReader(joinFrames(resigned, signer)))
	if err != nil {
		t.Fatalf("a file that names its own signer = %v", err)
	}
	if err := a.OpenWithRecoveryKey(h.birth.Recovery); !errors.Is(err, vault.FaultForeign) {
		t.Errorf("OpenWithRecoveryKey of a forged backup = %v, want foreign", err)
	}
	if err := a.OpenWithRoot(h.root, h.mem); !errors.Is(err, vault.FaultForged) || a.SignedBy(h.root) {
		t.Errorf("OpenWithRoot of a forged backup = %v, want forged", err)
	}
	if _, err := a.Plan(t.Context(), nil, h.clock); err == nil {
		t.Error("a backup that was not opened gives a plan")
	}
	keys := slices.IndexFunc(resigned, func(f skbFrame) bool { return f.kind == 5 })
	many := slices.Insert(slices.Clone(resigned), keys, resigned[keys])
	wantFault(t, "more frames of keys than its identities need", joinFrames(many, signer), vault.FaultForged)

	other := newHouse(t)
	b, err := vault.OpenArchive(t.Context(), bytes.NewReader(one))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.OpenWithRecoveryKey(other.birth.Recovery); !errors.Is(err, vault.FaultForeign) {
		t.Errorf("the recovery key of another store = %v, want foreign", err)
	}
	key := h.create(t, "z", identity.Grant{})
	wantWord(t, "an agent's key", b.OpenWithRecoveryKey(key), vault.Unauthorized)
	if err := b.OpenWithRoot(other.root, other.mem); !errors.Is(err, vault.FaultForeign) {
		t.Errorf("the root of another store = %v, want foreign", err)
	}
}

// A file that is exchanged between the check and the restore is found before
// the store record is written.
func TestBackupExchangedAfterTheCheckIsRefused(t *testing.T) {
	h, one, two := twoBackups(t)
	if len(two) < len(one) {
		one, two = two, one
	}
	file := &swapped{Reader: bytes.NewReader(one)}
	a, err := vault.OpenArchive(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.OpenWithRecoveryKey(h.birth.Recovery); err != nil {
		t.Fatal(err)
	}
	p, err := a.Plan(t.Context(), nil, h.clock)
	if err != nil {
		t.Fatal(err)
	}
	file.Reader = bytes.NewReader(two)
	to := newMemory()
	if err := p.Restore(t.Context(), to, vault.RestoreOptions{}); err == nil {
		t.Error("a restore from an exchanged file succeeds")
	}
	if id, err := vault.StoreIn(t.Context(), to); err != nil || !id.IsZero() {
		t.Errorf("StoreIn = %v, %v; want no store", id, err)
	}
}

type swapped struct{ *bytes.Reader }

func TestIdentityThatChangesUnderTheBackupIsWhole(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "busy", identity.Grant{})
	for i := range 100 {
		h.put(t, key.Identity(), secret(fmt.Sprintf("l%02d", i), fmt.Sprint(i)))
	}
	left := 3
	eng := &hooked{memory: h.mem, list: func(after string) {
		if after != "" && left > 0 { // between two pages of one listing
			left--
			h.put(t, key.Identity(), secret("l00", fmt.Sprintf("changed-%d", left)))
		}
	}}
	k := vault.Open(eng, h.rootSource, vault.Options{Now: h.now})
	var file bytes.Buffer
	rep, err := k.Backup(t.Context(), &file, vault.BackupOptions{})
	if err != nil || rep.Records != 100 || rep.Damaged != 0 || left != 0 {
		t.Fatalf("Backup = %+v, %v, %d changes left", rep, err, left)
	}
	begins := 0
	for _, f := range splitFrames(t, file.Bytes()) {
		if f.kind == 2 {
			begins++
		}
	}
	if begins != 4 {
		t.Errorf("%d beginnings, want 3 void ones and a whole one", begins)
	}
	to, p := h.restore(t, file.Bytes(), nil)
	if got := word(to.Keeper, key, "l00"); got != "changed-0" || p.Identities[0].Damaged {
		t.Errorf("Get = %s, damaged %v", got, p.Identities[0].Damaged)
	}
	to.wantVerified(t)
}

// hooked runs a function before a page is listed.
type hooked struct {
	*memory
	list func(after string)
}

func (h *hooked) List(ctx context.Context, id identity.ID, after string, limit int) (storage.Page, error) {
	h.list(after)
	return h.memory.List(ctx, id, after, limit)
}

// A backup gives the turn back after some 80 calls at most, whatever the
// machine does: what another process waits for is bounded by work, not luck.
func TestBackupRestsBetweenBursts(t *testing.T) {
	h := newHouse(t)
	for i := range 60 {
		key := h.create(t, fmt.Sprintf("a%d", i), identity.Grant{})
		h.put(t, key.Identity(), secret("x", "value"))
	}
	eng := &counted{memory: h.mem}
	if _, err := vault.Open(eng, h.rootSource, vault.Options{}).Backup(t.Context(), &bytes.Buffer{}, vault.BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	if eng.most > 80 || eng.all < 250 {
		t.Errorf("%d of %d calls without a rest, want 80 at most", eng.most, eng.all)
	}
}

// counted counts calls between which nobody rested for 8 ms.
type counted struct {
	*memory
	last           time.Time
	run, most, all int
}

func (c *counted) count() {
	if now := time.Now(); now.Sub(c.last) >= 8*time.Millisecond {
		c.run = 0
	}
	c.all++
	c.run++
	c.most = max(c.most, c.run)
}

func (c *counted) Get(ctx context.Context, id identity.ID, keys ...string) (storage.Result, error) {
	c.count()
	defer func() { c.last = time.Now() }()
	return c.memory.Get(ctx, id, keys...)
}

func (c *counted) List(ctx context.Context, id identity.ID, after string, limit int) (storage.Page, error) {
	c.count()
	defer func() { c.last = time.Now() }()
	return c.memory.List(ctx, id, after, limit)
}

func (c *counted) Cell(ctx context.Context, id identity.ID) (storage.Cell, error) {
	c.count()
	defer func() { c.last = time.Now() }()
	return c.memory.Cell(ctx, id)
}

// A shred that returns while a backup runs leaves no cell in that backup.
func TestShredDuringTheBackupHolds(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "gone", identity.Grant{})
	h.put(t, key.Identity(), secret("x", "value"))
	stay := h.create(t, "stays", identity.Grant{})
	h.put(t, stay.Identity(), secret("x", "value"))
	done := false
	k := vault.Open(h.mem, h.rootSource, vault.Options{Now: h.now})
	var file bytes.Buffer
	_, err := k.Backup(t.Context(), &file, vault.BackupOptions{Progress: func(at, total int) {
		if at == total && !done { // every record has been read
			done = true
			if _, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{Shred: true}); err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil || !done {
		t.Fatalf("Backup = %v", err)
	}
	to, p := h.restore(t, file.Bytes(), nil)
	if got := word(to.Keeper, key, "x"); got == "value" {
		t.Error("an identity that was shredded while the backup ran opens from it")
	}
	if got := word(to.Keeper, stay, "x"); got != "value" {
		t.Errorf("control: the other identity = %s", got)
	}
	for _, i := range p.Identities {
		if i.ID == key.Identity() && i.Status != identity.Shredded {
			t.Errorf("plan = %+v, want shredded", i)
		}
	}
	to.wantVerified(t)
}

func TestDamagedIdentityIsBackedUpAsItIs(t *testing.T) {
	h := newHouse(t)
	bad, good := h.create(t, "bad", identity.Grant{}), h.create(t, "good", identity.Grant{})
	for _, k := range []identity.Key{bad, good} {
		h.put(t, k.Identity(), secret("x", "value"))
	}
	for key, val := range h.mem.ids[bad.Identity()].vals {
		val = slices.Clone(val)
		val[40] ^= 1
		h.mem.ids[bad.Identity()].vals[key] = val
	}
	var file bytes.Buffer
	rep, err := h.keeper(h.mem).Backup(t.Context(), &file, vault.BackupOptions{})
	if err != nil || rep.Damaged != 1 || rep.Identities != 2 {
		t.Fatalf("Backup = %+v, %v; want one damaged", rep, err)
	}
	to, p := h.restore(t, file.Bytes(), nil)
	n := 0
	for _, i := range p.Identities {
		if i.Damaged {
			n++
		}
	}
	if n != 1 || word(to.Keeper, good, "x") != "value" || word(to.Keeper, bad, "x") != "unavailable" {
		t.Errorf("%d damaged; good %s, bad %s", n, word(to.Keeper, good, "x"), word(to.Keeper, bad, "x"))
	}
}

func TestBrokenLogIsNotLaundered(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "a", identity.Grant{})
	h.put(t, key.Identity(), secret("x", "value"), secret("y", "value"))
	h.mem.lines[2] = bytes.Replace(h.mem.lines[2], []byte("owner"), []byte("OWNER"), 1)
	file := h.backup(t)
	to, _ := h.restore(t, file, nil)
	if got := word(to.Keeper, key, "x"); got != "value" {
		t.Errorf("Get = %s", got)
	}
	rep, err := to.VerifyAudit(t.Context())
	if err != nil || rep.OK() || len(rep.Problems) != 1 {
		t.Errorf("VerifyAudit = %v, %v; want the one finding that the log was broken", rep.Problems, err)
	}
	a := openArchive(t, file, h.birth.Recovery)
	if a.Info().LogBroken != 4 { // the first that does not continue the edited one
		t.Errorf("LogBroken = %d, want 4", a.Info().LogBroken)
	}
}

func TestOnlyTheStoreAnnouncesARestore(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "a", identity.Grant{})
	h.put(t, key.Identity(), secret("x", "1"))
	old := h.mem.clone()
	h.put(t, key.Identity(), secret("x", "2"))
	to, _ := h.restore(t, h.backup(t), nil)
	// The database is rolled back, and a line of a restore is copied to where
	// it would excuse that.
	for i, l := range to.mem.lines {
		if !bytes.Contains(l, []byte(`"ev":"restore"`)) || i < len(h.mem.lines) {
			continue
		}
		_, body, _ := bytes.Cut(l, []byte(`"v":1,`))
		if _, err := h.mem.Append(t.Context(), append([]byte(`{"v":1,`), body...)); err != nil {
			t.Fatal(err)
		}
		break
	}
	h.mem.ids = old.ids
	rep, err := h.keeper(h.mem).VerifyAudit(t.Context())
	if err != nil || rep.OK() {
		t.Errorf("VerifyAudit = %v, %v; want the rollback found", rep.Problems, err)
	}
}

// golden is what testdata/backup-N says of its files.
type golden struct {
	Recovery string            `json:"recovery_key"`
	Keys     map[string]string `json:"keys"`
	// What a get of label x hears: a value or a word.
	Plain  map[string]string `json:"without_ledger"`
	Ledger map[string]string `json:"with_ledger"`
}

func TestGoldenBackupsOpen(t *testing.T) {
	const dir = "testdata/backup-1"
	if _, err := os.Stat(dir); os.IsNotExist(err) && *update {
		writeGolden(t, dir)
	}
	all, err := filepath.Glob("testdata/backup-*")
	if err != nil || len(all) == 0 {
		t.Fatalf("no golden backups: %v", err)
	}
	for _, dir := range all {
		var g golden
		if err := json.Unmarshal(must(os.ReadFile(filepath.Join(dir, "keys.json"))), &g); err != nil {
			t.Fatal(err)
		}
		h := &house{birth: vault.Birth{Recovery: must(identity.ParseKey(g.Recovery))}, clock: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
		file := must(os.ReadFile(filepath.Join(dir, "store.skb")))
		for _, c := range []struct {
			ledger *bytes.Reader
			want   map[string]string
		}{{nil, g.Plain}, {bytes.NewReader(must(os.ReadFile(filepath.Join(dir, "ledger.jsonl")))), g.Ledger}} {
			to, _ := h.restore(t, file, c.ledger)
			for name, want := range c.want {
				if got := word(to.Keeper, must(identity.ParseKey(g.Keys[name])), "x"); got != want {
					t.Errorf("%s: Get as %s = %s, want %s", dir, name, got, want)
				}
			}
			to.wantVerified(t)
		}
	}
}

func writeGolden(t *testing.T, dir string) {
	t.Helper()
	h := newHouse(t)
	keys := later(t, h)
	get(t, unlock(t, h.Keeper, keys["live"]), "x")
	file := h.backup(t)
	changeLater(t, h, keys)
	g := golden{Recovery: h.birth.Recovery.Reveal(), Keys: map[string]string{}, Plain: map[string]string{}, Ledger: map[string]string{}}
	for name, k := range keys {
		g.Keys[name], g.Plain[name], g.Ledger[name] = k.Reveal(), "value", "revoked"
	}
	g.Ledger["live"], g.Ledger["second"] = "value", "value"
	g.Plain["lost"], g.Ledger["lost"] = "unauthorized", "unauthorized"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"store.skb": file, "ledger.jsonl": must(bytesOf(h.ledger())), "keys.json": append(must(json.MarshalIndent(g, "", "  ")), '\n'),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzArchive feeds frames of any kind and body, chained and signed as they
// should be: every refusal is a fault, nothing panics, and the recovery key of
// another store opens none of it.
func FuzzArchive(f *testing.F) {
	var g golden
	if err := json.Unmarshal(must(os.ReadFile("testdata/backup-1/keys.json")), &g); err != nil {
		f.Fatal(err)
	}
	recovery := must(identity.ParseKey(g.Recovery))
	seed := sha256.Sum256([]byte("fuzz"))
	signer := ed25519.NewKeyFromSeed(seed[:])
	pub := signer.Public().(ed25519.PublicKey)
	id, meta := bytes.Repeat([]byte{7}, 16), []byte{0, 0, 0, 1, 9}
	line := []byte("{}\n")
	head := sha256.Sum256(line[:2])
	end := slices.Concat(be64(1), be64(1), be64(1), head[:])
	whole := []skbFrame{
		{kind: 1, body: slices.Concat(id, make([]byte, 64), be64(1), meta)},
		{kind: 2, body: slices.Concat(id, meta)},
		{kind: 3, body: []byte{1, 'k', 0, 0, 0, 1, 'v'}},
		{kind: 4, body: be64(1)},
		{kind: 6, body: line},
		{kind: 7, body: end},
	}
	if _, err := vault.OpenArchive(f.Context(), bytes.NewReader(joinFrames(unpack(pack(whole), pub), signer))); err != nil {
		f.Fatalf("control: a whole file = %v", err)
	}
	f.Add(pack(whole))
	for i := range whole {
		f.Add(pack(slices.Delete(slices.Clone(whole), i, i+1)))
		f.Add(pack(slices.Insert(slices.Clone(whole), i, whole[i])))
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		a, err := vault.OpenArchive(t.Context(), bytes.NewReader(joinFrames(unpack(packed, pub), signer)))
		var fault vault.Fault
		if err != nil {
			if !errors.As(err, &fault) {
				t.Errorf("OpenArchive = %v, want a fault", err)
			}
			return
		}
		_ = a.Info()
		if a.OpenWithRecoveryKey(recovery) == nil {
			t.Error("a file that the store did not sign opens")
		}
	})
}

func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func pack(frames []skbFrame) (b []byte) {
	for _, f := range frames {
		b = append(b, f.kind)
		b = binary.BigEndian.AppendUint32(b, uint32(len(f.body)))
		b = append(b, f.body...)
	}
	return b
}

func unpack(b []byte, pub ed25519.PublicKey) (out []skbFrame) {
	for len(b) >= 5 && len(out) < 64 {
		f := skbFrame{kind: b[0], body: b[5:][:min(int(binary.BigEndian.Uint32(b[1:])), len(b)-5)]}
		b = b[5+len(f.body):]
		if f.kind == 1 && len(f.body) >= 48 {
			f.body = slices.Clone(f.body)
			copy(f.body[16:], pub)
		}
		out = append(out, f)
	}
	return append(out, skbFrame{kind: 8})
}
