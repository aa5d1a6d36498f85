package seal_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
)

// TestKnownAnswers computes every known answer of docs/SPEC.md section 12. Key
// text, cell row, audit line and verifier key belong to other packages; they
// are computed here from the specification, so that the list is whole.
func TestKnownAnswers(t *testing.T) {
	want := map[string]string{
		"slk1_":                            hex.EncodeToString([]byte(agentText)),
		"slr1_":                            hex.EncodeToString([]byte(recoveryText)),
		"slot_id":                          "06cde5e63c7b92208fb07ea7a73fd5c5",
		"idx16":                            "ada0a376a5be3767490b6cd8209a522e",
		"H(auth)":                          "2c2362f76f53b33d753fd05a87dee7feea59fe2072b193c967b9ef6bc8f9688b",
		"lock":                             "5409d37fe95278e57e7a84730e1fb7b2362e2f68a37ed69bc74578724ca0470c",
		"PRK_1":                            "d82bb3fb709d2f019747cec592942a2da1aa51783aab00485c8bf07185e31f34",
		"Extract":                          "17079881fd7d9c5449dc3cc32b8479b7e93db24bbf9727575f082da03477205a",
		"K_header":                         "c11b010da577e7a0f48caa5e16c6dd08e0126a361b0686bd12ed6f1d5345b01d",
		"K_outer":                          "c4d03c77152fcfc6b1d9cf3bf7d5d440bd898f7b487e485cb75512c266571da0",
		"K_set":                            "e2ec0c84416171df1a3065b8e268194a0536385a3ad952e0ac137d20022d91e4",
		"K_store":                          "7bcbe5045fdae5b6128c51553856f73e4f91c5b7ab3e79276fccc7b752cd77bb",
		"K_tomb":                           "ff3ccd3b5a7c1d828d86e8bea38bfe3b0ec145fad7172f88ddb0eaeeddb8c890",
		"K_mcp":                            "d61bf40addd5516f2b20d745a570675198657438a3f01aef30e78667fd13630e",
		"VK":                               "9ac913c7cddfc96b95c4a142381a0d7461207b380c420b266bbcf4e992ed8c19",
		"H(pk)":                            "fb8bf43fa9923575e59dfd776ea0ef36db852bbb3603506db5501c3b647d43a6",
		"H(recovery_pk)":                   "2c85a7ea307ff3aa3bd7f901af536b923a3e2aeaa4e627d5a50a187fa7d021e5",
		"fingerprint":                      "fcd66083191a226ff6417d79f8612f8a",
		"fingerprint without recovery key": "92f579412f35a27165b17e7edadd01eb",
		"inner AAD":                        "736f6c656b65792f76312f6161642f696e6e657200" + hexRun(0x40, 16) + hexRun(0, 16) + "00000001 01 01 0b7374726970652f70726f64",
		"ISK AAD":                          "736f6c656b65792f76312f6161642f69736b00" + hexRun(0x40, 16) + hexRun(0, 16) + "06cde5e63c7b92208fb07ea7a73fd5c5" + "fb8bf43fa9923575e59dfd776ea0ef36db852bbb3603506db5501c3b647d43a6",
		"payload":                          "00000013 01 0576616c7565 00 00000007 68756e74657232" + strings.Repeat("00", 41),
		"row 7":                            "52f830f5721ef45c56b4b733ee95cd0c855251419bfde32ea522d91e74a31ff3",
		"set elem":                         "1eda761074f3fe5304129655525a70872cb6d6f0c310e87a9f1d35b4406f1f30",
		"audit pub":                        "7fd47c6461a1bd48ca38decc41084e419e87db88ec46d08b88e458efb5af67a1",
		"vkey":                             hex.EncodeToString([]byte("solekey/fcd66083191a226ff6417d79f8612f8a+4ac6454d+AX/UfGRhob1IyjjezEEITkGeh9uI7EbQi4jkWO+1r2eh")),
		"H(line 0)":                        "955e8b2a3469d8a280d299f2d6d246c3890e945aa5ce96da69a7977a9cf01f60",
	}
	got := answers(newKit(t))
	for _, a := range got {
		if w := strings.ReplaceAll(want[a.Name], " ", ""); a.Hex != w {
			t.Errorf("%s = %s, want %s", a.Name, a.Hex, w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d answers, want %d", len(got), len(want))
	}
}

// answer is one value that an implementation must arrive at exactly.
type answer struct {
	Name string `json:"name"`
	Hex  string `json:"hex"`
}

func answers(k *kit) []answer {
	slot := k.key.Slot()
	outer, set := k.outer.Keys()
	fingerprint := k.store.Fingerprint(k.recoveryPK)
	auditPublic := k.store.AuditPublic()
	name := fmt.Sprintf("solekey/%x", fingerprint[:])
	pkHash := sha256.Sum256(k.pk)
	recoveryHash := sha256.Sum256(k.recoveryPK)
	prk := k.store.PRK()
	z := k.z
	line := fmt.Sprintf(`{"seq":0,"prev":"%064d","v":1,"t":"2026-11-23T14:05:32.000000Z","ev":"genesis","res":"allow","key":"owner","via":"cli","note":"%s %x %x"}`,
		0, k.store.ID(), auditPublic, recoveryHash)

	return []answer{
		{"slk1_", fmt.Sprintf("%x", pubText("slk1_", k.id))},
		{"slr1_", fmt.Sprintf("%x", pubText("slr1_", fingerprint))},
		{"slot_id", fmt.Sprintf("%x", [16]byte(slot))},
		{"idx16", fmt.Sprintf("%x", k.tag)},
		{"H(auth)", fmt.Sprintf("%x", seal.AuthHash(k.key.Auth()))},
		{"lock", fmt.Sprintf("%x", k.key.InnerLock())},
		{"PRK_1", fmt.Sprintf("%x", prk)},
		{"Extract", fmt.Sprintf("%x", seal.Extract(z[:], prk[:]))},
		{"K_header", fmt.Sprintf("%x", k.store.HeaderKey(k.id, k.z))},
		{"K_outer", fmt.Sprintf("%x", outer)},
		{"K_set", fmt.Sprintf("%x", set)},
		{"K_store", fmt.Sprintf("%x", k.store.RecordKey())},
		{"K_tomb", fmt.Sprintf("%x", k.store.TombstoneKey(k.id))},
		{"K_mcp", fmt.Sprintf("%x", k.store.SessionSecret())},
		{"VK", fmt.Sprintf("%x", k.inner.VaultKey())},
		{"H(pk)", fmt.Sprintf("%x", pkHash)},
		{"H(recovery_pk)", fmt.Sprintf("%x", recoveryHash)},
		{"fingerprint", fmt.Sprintf("%x", [16]byte(fingerprint))},
		{"fingerprint without recovery key", fmt.Sprintf("%x", [16]byte(k.store.Fingerprint(nil)))},
		{"inner AAD", fmt.Sprintf("%x", must(k.bind.AAD()))},
		{"ISK AAD", fmt.Sprintf("%x", seal.WrapAAD(k.store.ID(), k.id, slot[:], pkHash))},
		{"payload", fmt.Sprintf("%x", must(seal.EncodePayload(value)))},
		{"row 7", fmt.Sprintf("%x", cellRow(7, run16(0xf0), k.id, k.z))},
		{"set elem", fmt.Sprintf("%x", k.outer.Elem(seal.EntryKey(k.tag), []byte("abc")))},
		{"audit pub", fmt.Sprintf("%x", auditPublic)},
		{"vkey", fmt.Sprintf("%x", []byte(vkey(name, auditPublic)))},
		{"H(line 0)", fmt.Sprintf("%x", sha256.Sum256([]byte(line)))},
	}
}

func pubText(prefix string, id identity.ID) []byte {
	pub := [19]byte{1}
	copy(pub[3:], id[:])
	return []byte(identity.EncodeText(prefix, pub, run(0x10)))
}

func hexRun(from byte, n int) string {
	b := run(from)
	return hex.EncodeToString(b[:n])
}

// cellRow is the check of a live row of vault.cells, seq 1, section 7.
func cellRow(n uint32, file [16]byte, id identity.ID, z [32]byte) [32]byte {
	row := append([]byte{1, 1, 0, 0, 0, 0, 0, 0}, 0, 0, 0, 0, 0, 0, 0, 1)
	row = append(append(append(row, id[:]...), z[:]...), make([]byte, 32)...)
	in := append([]byte("solekey/v1/cell\x00"), file[:]...)
	in = binary.BigEndian.AppendUint32(in, n)
	return sha256.Sum256(append(in, row...))
}

// vkey is the verifier key of a signed note, c2sp.org/signed-note.
func vkey(name string, public []byte) string {
	key := append([]byte{1}, public...)
	id := sha256.Sum256(append([]byte(name+"\n"), key...))
	return fmt.Sprintf("%s+%x+%s", name, id[:4], base64.StdEncoding.EncodeToString(key))
}

// TestDerivationIsHKDF holds the direct HMAC against the standard library, for
// all lengths about the sizes of its buffer.
func TestDerivationIsHKDF(t *testing.T) {
	key := run(1)
	for n := range 420 {
		msg := bytes.Repeat([]byte{byte(n)}, n)
		h := hmac.New(sha256.New, key[:])
		h.Write(msg)
		if got := seal.Mac(key[:], msg[:n/3], msg[n/3:]); !bytes.Equal(got[:], h.Sum(nil)) {
			t.Fatalf("mac of %d bytes differs from crypto/hmac", n)
		}
	}
	ctx := run(2)
	want := must(hkdf.Expand(sha256.New, key[:], "label\x00"+string(ctx[:]), 64))
	a, b := seal.Expand2(&key, "label\x00", ctx[:])
	if got := append(a[:], b[:]...); !bytes.Equal(got, want) {
		t.Errorf("Expand2 = %x, want %x", got, want)
	}
	if got := seal.Expand(&key, "label\x00", ctx[:]); !bytes.Equal(got[:], want[:32]) {
		t.Errorf("Expand = %x, want %x", got, want[:32])
	}
	if got, want := seal.Extract(key[:], ctx[:]), must(hkdf.Extract(sha256.New, key[:], ctx[:])); !bytes.Equal(got[:], want) {
		t.Errorf("Extract = %x, want %x", got, want)
	}
}

func TestSignatureVerifies(t *testing.T) {
	s := newKit(t).store
	sig := s.Sign([]byte("receipt"))
	if !ed25519.Verify(s.AuditPublic(), []byte("receipt"), sig) {
		t.Error("Verify of Sign = false, want true")
	}
	if ed25519.Verify(s.AuditPublic(), []byte("Receipt"), sig) {
		t.Error("Verify of another message = true, want false")
	}
}

// TestSealedSizes holds the sizes of docs/SPEC.md section 8.
func TestSealedSizes(t *testing.T) {
	s := newStored(t)
	sixteen := *s.header
	for len(sixteen.Slots) < seal.MaxSlots {
		sixteen.Slots = append(sixteen.Slots, sixteen.Slots[0])
	}
	for _, c := range []struct {
		name      string
		got, want int
	}{
		{"header with one key", len(s.meta), 3108},
		{"header with sixteen keys", len(must(s.store.SealHeader(s.id, s.z, &sixteen))), 6180},
		{"entry", len(s.entry), 374},
		{"entry in the mailbox", len(s.mailbox), 1450},
		{"wrapped secret", len(s.header.Slots[0].Wrapped), 124},
		{"recovery slot", len(s.header.Recovery), 1200},
		{"tombstone", len(must(s.store.SealTombstone(s.id, seal.Tombstone{}))), 36 + 256},
		{"state", len(must(s.outer.SealState(seal.StateKey(s.tag), seal.EntryState{}))), 36 + 16},
	} {
		if c.got != c.want {
			t.Errorf("%s has %d bytes, want %d", c.name, c.got, c.want)
		}
	}
}

// TestSpecificationHoldsKnownAnswers: the published numbers are the computed
// ones. Three of them are abridged there.
func TestSpecificationHoldsKnownAnswers(t *testing.T) {
	spec := string(must(os.ReadFile("../../docs/SPEC.md")))
	abridged := map[string]bool{"inner AAD": true, "ISK AAD": true, "payload": true}
	asText := map[string]bool{"slk1_": true, "slr1_": true, "vkey": true}
	for _, a := range answers(newKit(t)) {
		want := a.Hex
		if asText[a.Name] {
			want = string(unhex(t, a.Hex))
		}
		if !abridged[a.Name] && !strings.Contains(spec, want) {
			t.Errorf("docs/SPEC.md lacks %s = %s", a.Name, want)
		}
	}
}
