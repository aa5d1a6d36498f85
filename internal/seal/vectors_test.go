package seal_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
)

var update = flag.Bool("update", false, "add missing vectors to testdata/vectors.json")

const vectorFile = "testdata/vectors.json"

// vectors is the public file of test vectors, explained in docs/SPEC.md
// section 12. Published vectors are only ever added to.
type vectors struct {
	About   string    `json:"about"`
	Exact   []answer  `json:"exact"`
	Padding []padding `json:"padding"`
	Set     []member  `json:"set"`
	Open    []opening `json:"open"`
}

// padding: the payload, as bytes, is padded to Size bytes.
type padding struct {
	Payload int `json:"payload"`
	Size    int `json:"size"`
}

// member: adding the record to a set-hash, zero at first, gives Sum.
type member struct {
	Key    string `json:"key"`
	Stored string `json:"stored"`
	Elem   string `json:"elem"`
	Sum    string `json:"sum"`
}

// opening: with the inputs With, Sealed opens to Plaintext. It is refused
// after any change of Sealed, and with any one input replaced by that of
// Wrong.
type opening struct {
	Name      string            `json:"name"`
	Object    string            `json:"object"`
	With      map[string]string `json:"with"`
	Wrong     map[string]string `json:"wrong"`
	Sealed    string            `json:"sealed"`
	Plaintext string            `json:"plaintext"`
}

func readVectors(t testing.TB) (v vectors) {
	t.Helper()
	b, err := os.ReadFile(vectorFile)
	if err != nil && !*update {
		t.Fatal(err)
	}
	if err == nil {
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// TestVectors opens each published vector, and must not open any mutation.
func TestVectors(t *testing.T) {
	if *update {
		updateVectors(t)
	}
	v, k := readVectors(t), newKit(t)
	if diff := cmp.Diff(v.Exact, answers(k)); diff != "" {
		t.Errorf("exact values (-published +computed):\n%s", diff)
	}
	if diff := cmp.Diff(v.Padding, paddings()); diff != "" {
		t.Errorf("padding (-published +computed):\n%s", diff)
	}
	if diff := cmp.Diff(v.Set, members(k)); diff != "" {
		t.Errorf("set-hash (-published +computed):\n%s", diff)
	}
	if got, want := len(v.Open), len(openings(k)); got < want {
		t.Errorf("%d opening vectors, want %d", got, want)
	}
	for _, o := range v.Open {
		t.Run(strings.ReplaceAll(o.Name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			checkOpening(t, o)
		})
	}
}

func checkOpening(t *testing.T, o opening) {
	open := openers[o.Object]
	sealed := unhex(t, o.Sealed)
	got, err := open(o.With, sealed)
	if err != nil || hex.EncodeToString(got) != o.Plaintext {
		t.Fatalf("open = %x, %v, want %s", got, err, o.Plaintext)
	}
	for n, name := range mutations(sealed, stride(len(sealed), o.slow()), func(b []byte) error {
		_, err := open(o.With, b)
		return err
	}) {
		t.Errorf("mutation %d opened: %s", n, name)
	}
	for input, other := range o.Wrong {
		with := map[string]string{}
		for k, v := range o.With {
			with[k] = v
		}
		if with[input] == other || with[input] == "" {
			t.Errorf("%s: the wrong input is the right one", input)
		}
		with[input] = other
		if _, err := open(with, sealed); !errors.Is(err, seal.ErrRefused) {
			t.Errorf("open with another %s: %v, want %v", input, err, seal.ErrRefused)
		}
	}
}

// slow tells that an open takes an X-Wing decapsulation.
func (o opening) slow() bool { return slowObjects[o.Object] }

var slowObjects = map[string]bool{"hseal": true, "mailbox": true, "recovery": true}

// stride leaves out most positions of big objects in a short run and under the
// race detector.
func stride(n int, slow bool) int {
	switch {
	case !testing.Short() && !sampled:
		return 1
	case slow:
		return 1 + n/12
	}
	return 1 + n/128
}

// mutations tries bit flips and truncations at each stride, and one more byte;
// it returns the names of those that were not refused.
func mutations(sealed []byte, stride int, open func([]byte) error) (opened []string) {
	try := func(b []byte, name string, want error) {
		if err := open(b); !errors.Is(err, want) {
			opened = append(opened, fmt.Sprintf("%s: %v, want %v", name, err, want))
		}
	}
	prefixed := open(append([]byte{2}, sealed[1:]...)) == seal.ErrVersion
	b := bytes.Clone(sealed)
	for i := 0; i < len(b); i += stride {
		want := seal.ErrRefused
		if prefixed && i < 2 {
			want = seal.ErrVersion
		}
		for bit := range 8 {
			b[i] ^= 1 << bit
			try(b, fmt.Sprintf("bit %d of byte %d", bit, i), want)
			b[i] ^= 1 << bit
		}
		try(b[:i], fmt.Sprintf("cut to %d bytes", i), seal.ErrRefused)
	}
	try(append(b, 0), "one byte more", seal.ErrRefused)
	return opened
}

// TestMutationsAreFound is the control of the mutation test: an opener that
// ignores its last byte is caught.
func TestMutationsAreFound(t *testing.T) {
	good := []byte("sealed bytes.")
	opened := mutations(good, 1, func(b []byte) error {
		if len(b) >= 12 && bytes.Equal(b[:12], good[:12]) {
			return nil
		}
		return seal.ErrRefused
	})
	if len(opened) != 10 {
		t.Errorf("%d mutations found, want 8 bits, 1 cut, 1 byte more", len(opened))
	}
}

// inputs reads the With of an opening.
type inputs map[string]string

func (in inputs) bytes(name string) []byte {
	return must(hex.DecodeString(in[name]))
}

func (in inputs) key(name string) [32]byte { return [32]byte(in.bytes(name)) }

func (in inputs) id(name string) identity.ID { return identity.ID(in.bytes(name)) }

func (in inputs) number(name string) uint64 { return must(strconv.ParseUint(in[name], 10, 32)) }

func (in inputs) agent() identity.Key { return must(identity.ParseKey(in["key"])) }

func (in inputs) store() *seal.Store {
	return must(seal.ParseRoot(in["root"])).Store()
}

func (in inputs) outer() *seal.Outer {
	pub := [19]byte{1}
	store := in.id("store")
	copy(pub[3:], store[:])
	text := fmt.Sprintf("0 %s\n1 %[1]s\n", identity.EncodeText("slroot1_", pub, [32]byte{}))
	return must(seal.ParseRoot(text)).Store().Outer(in.id("id"), &seal.Header{OK: in.key("ok")})
}

func (in inputs) bind() seal.Bind {
	return seal.Bind{
		Store: in.id("store"), ID: in.id("id"), Version: uint32(in.number("version")),
		Kind: uint8(in.number("kind")), Exposure: uint8(in.number("exposure")), Label: in["label"],
	}
}

func (in inputs) open(form uint8, sealed []byte) ([]byte, error) {
	inner := seal.Opener(in.id("store"), in.id("id"), in.key("isk"))
	fields, err := inner.Open(in.bind(), form, sealed)
	if err != nil {
		return nil, err
	}
	return seal.EncodePayload(fields)
}

// openers open an object through the public API and give its plaintext back.
var openers = map[string]func(in inputs, sealed []byte) ([]byte, error){
	"oseal": func(in inputs, sealed []byte) ([]byte, error) {
		key := in.key("key")
		return seal.OOpen(&key, in.bytes("aad"), sealed)
	},
	"cseal": func(in inputs, sealed []byte) ([]byte, error) {
		key := in.key("key")
		return seal.COpen(&key, in["label"]+"\x00", in.bytes("aad"), sealed)
	},
	"hseal": func(in inputs, sealed []byte) ([]byte, error) {
		seed := in.key("seed")
		return seal.HOpen(&seed, in.bytes("info"), in.bytes("aad"), sealed)
	},
	"store record": func(in inputs, sealed []byte) ([]byte, error) {
		r, err := in.store().OpenStoreRecord(sealed)
		if err != nil {
			return nil, err
		}
		return seal.EncodeStoreRecord(r)
	},
	"header": func(in inputs, sealed []byte) ([]byte, error) {
		h, err := in.store().OpenHeader(in.id("id"), in.key("cell"), sealed)
		if err != nil {
			return nil, err
		}
		return seal.EncodeHeader(h)
	},
	"tombstone": func(in inputs, sealed []byte) ([]byte, error) {
		t, err := in.store().OpenTombstone(in.id("id"), sealed)
		if err != nil {
			return nil, err
		}
		return seal.EncodeTombstone(t)
	},
	"entry": func(in inputs, sealed []byte) ([]byte, error) {
		e, err := in.outer().OpenEntry(string(in.bytes("storage_key")), sealed)
		if err != nil {
			return nil, err
		}
		return seal.EncodeEntry(e)
	},
	"state": func(in inputs, sealed []byte) ([]byte, error) {
		s, err := in.outer().OpenState(string(in.bytes("storage_key")), sealed)
		if err != nil {
			return nil, err
		}
		return seal.EncodeState(s), nil
	},
	"value":   func(in inputs, sealed []byte) ([]byte, error) { return in.open(seal.FormValue, sealed) },
	"mailbox": func(in inputs, sealed []byte) ([]byte, error) { return in.open(seal.FormMailbox, sealed) },
	"wrapped": func(in inputs, sealed []byte) ([]byte, error) {
		return secretOf(seal.Unwrap(in.id("store"), in.id("id"), in.agent(), in.bytes("pk"), sealed))
	},
	"recovery": func(in inputs, sealed []byte) ([]byte, error) {
		return secretOf(seal.UnwrapRecovery(in.id("store"), in.id("id"), in.agent(), in.bytes("pk"), sealed))
	},
}

func secretOf(inner *seal.Inner, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	s := inner.Secret()
	return s[:], nil
}

func paddings() (list []padding) {
	for _, n := range []int{0, 1, 59, 60, 61, 124, 125, 252, 253, 4092, 4093, 65532, 65533, seal.MaxPayload, seal.MaxPayload + 1} {
		list = append(list, padding{n, seal.PadPayload(n + 4)})
	}
	return list
}

func members(k *kit) (list []member) {
	var sum seal.SetHash
	for _, r := range []struct{ key, stored string }{
		{seal.EntryKey(k.tag), "abc"}, {seal.StateKey(k.tag), ""}, {seal.EntryKey(run16(0xe0)), strings.Repeat("x", 300)},
	} {
		e := k.outer.Elem(r.key, []byte(r.stored))
		sum = sum.Add(e)
		list = append(list, member{hex.EncodeToString([]byte(r.key)), hex.EncodeToString([]byte(r.stored)), hex.EncodeToString(e[:]), hex.EncodeToString(sum[:])})
	}
	return list
}

// openings makes an opening vector of each object; sealing is random, so the
// published bytes are others.
func openings(k *kit) []opening {
	hexOf := func(b []byte) string { return hex.EncodeToString(b) }
	key, aad, pt := run(0x10), []byte("associated data"), []byte("plaintext")
	isk, seed := k.inner.Secret(), k.inner.KEMSeed()
	entryKey, stateKey := seal.EntryKey(k.tag), seal.StateKey(k.tag)
	otherPK := seal.RecoveryPublicKey(run(1))
	otherID, otherKey := hexRun(1, 16), hexRun(1, 32)

	root := rootText(1)
	otherEpoch := strings.Replace(root, "\n1 ", "\n2 ", 1)
	meta := func(extra ...string) map[string]string {
		return pairs(append(extra, "root", root, "id", hexRun(0, 16))...)
	}
	wrongMeta := func(extra ...string) map[string]string {
		return pairs(append(extra, "root", otherEpoch, "id", otherID)...)
	}
	record := func(key string) map[string]string {
		return pairs("store", hexRun(0x40, 16), "id", hexRun(0, 16), "ok", hexOf(k.ok[:]), "storage_key", hexOf([]byte(key)))
	}
	wrongRecord := func(key string) map[string]string {
		other := key[:16] + "~"
		return pairs("store", otherID, "id", otherID, "ok", otherKey, "storage_key", hexOf([]byte(other)))
	}
	bind := pairs("store", hexRun(0x40, 16), "id", hexRun(0, 16), "isk", hexOf(isk[:]), "version", "1", "kind", "1", "exposure", "1", "label", label)
	wrongBind := pairs("store", otherID, "id", otherID, "isk", otherKey, "version", "2", "kind", "3", "exposure", "2", "label", "stripe/test")
	wrap := func(key string) map[string]string {
		return pairs("store", hexRun(0x40, 16), "id", hexRun(0, 16), "key", key, "pk", hexOf(k.pk))
	}
	wrongWrap := func(key string) map[string]string {
		return pairs("store", otherID, "id", otherID, "key", key, "pk", hexOf(otherPK))
	}
	plain := must(seal.EncodePayload(value))
	inner := must(k.inner.Seal(k.bind, value))
	mailbox := must(seal.SealMailbox(k.pk, k.bind, value))
	rec := seal.StoreRecord{Gen: 3, Created: 1_795_442_732_000, DefaultExposure: 2, WriteVersion: 1, RecoveryPK: k.recoveryPK}
	tomb := seal.Tombstone{Shredded: 1_795_442_732_000, AuditOwed: true, Slots: []seal.DeadSlot{{ID: k.key.Slot(), AuthHash: seal.AuthHash(k.key.Auth())}}}
	state := seal.EntryState{LastFrom: 59848091, Uses: 12}
	value1, value2 := k.record(inner, seal.FormValue), k.record(mailbox, seal.FormMailbox)
	removed := k.record(nil, seal.FormNone)

	return []opening{
		{"oseal", "oseal", pairs("key", hexOf(key[:]), "aad", hexOf(aad)), pairs("key", otherKey, "aad", "00"), hexOf(seal.OSeal(&key, aad, pt)), hexOf(pt)},
		{"cseal", "cseal", pairs("key", hexOf(key[:]), "label", "solekey/v1/rec", "aad", hexOf(aad)), pairs("key", otherKey, "label", "solekey/v1/isk", "aad", "00"), hexOf(seal.CSeal(&key, "solekey/v1/rec\x00", aad, pt)), hexOf(pt)},
		{"hseal", "hseal", pairs("seed", hexOf(seed[:]), "info", "696e666f", "aad", hexOf(aad)), pairs("seed", otherKey, "info", "00", "aad", "00"), hexOf(must(seal.HSeal(k.pk, []byte("info"), aad, pt))), hexOf(pt)},
		{"store record", "store record", pairs("root", root), pairs("root", otherEpoch), hexOf(must(k.store.SealStoreRecord(rec))), hexOf(must(seal.EncodeStoreRecord(rec)))},
		{"header", "header", meta("cell", hexOf(k.z[:])), wrongMeta("cell", otherKey), hexOf(must(k.store.SealHeader(k.id, k.z, k.header))), hexOf(must(seal.EncodeHeader(k.header)))},
		{"tombstone", "tombstone", meta(), wrongMeta(), hexOf(must(k.store.SealTombstone(k.id, tomb))), hexOf(must(seal.EncodeTombstone(tomb)))},
		{"entry", "entry", record(entryKey), wrongRecord(entryKey), hexOf(must(k.outer.SealEntry(entryKey, value1))), hexOf(must(seal.EncodeEntry(value1)))},
		{"entry in the mailbox", "entry", record(entryKey), wrongRecord(entryKey), hexOf(must(k.outer.SealEntry(entryKey, value2))), hexOf(must(seal.EncodeEntry(value2)))},
		{"removed entry", "entry", record(entryKey), wrongRecord(entryKey), hexOf(must(k.outer.SealEntry(entryKey, removed))), hexOf(must(seal.EncodeEntry(removed)))},
		{"state", "state", record(stateKey), wrongRecord(stateKey), hexOf(must(k.outer.SealState(stateKey, state))), hexOf(seal.EncodeState(state))},
		{"value", "value", bind, wrongBind, hexOf(inner), hexOf(plain)},
		{"mailbox", "mailbox", bind, wrongBind, hexOf(mailbox), hexOf(plain)},
		{"wrapped secret", "wrapped", wrap(agentText), wrongWrap(identity.NewKey(identity.Agent, k.id).Reveal()), hexOf(k.header.Slots[0].Wrapped), hexOf(isk[:])},
		{"recovery slot", "recovery", wrap(recoveryText), wrongWrap(identity.NewKey(identity.Recovery, k.recovery.Identity()).Reveal()), hexOf(k.header.Recovery), hexOf(isk[:])},
	}
}

func pairs(kv ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

// updateVectors keeps published openings and adds those that are missing.
func updateVectors(t *testing.T) {
	t.Helper()
	v, k := readVectors(t), newKit(t)
	v.About = "Test vectors of solekey, explained in docs/SPEC.md section 12. Bytes are hex; key and root texts, labels and numbers are text."
	v.Exact, v.Padding, v.Set = answers(k), paddings(), members(k)
	for _, o := range openings(k) {
		if !slices.ContainsFunc(v.Open, func(old opening) bool { return old.Name == o.Name }) {
			v.Open = append(v.Open, o)
		}
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorFile, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
