package identity_test

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/identity"
)

// The known answers of docs/SPEC.md section 12: id 00..0f, secret 10..2f,
// shard 0, store_id 40..4f.
const (
	agentText    = "slk1_028pjNsepcEVmdQBL69VLpUiZ53oDH4mEVFvp7u7ED6UzpF5eHPrBI5AHumY7UBpOQIJz1eBDwh"
	recoveryText = "slr1_028pr4yEZBaIRMlly7Pczoubwg3oDH4mEVFvp7u7ED6UzpF5eHPrBI5AHumY7UBpOQIJz2UCszB"
)

func run(from byte) (b [32]byte) {
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func runID(from byte) identity.ID {
	b := run(from)
	return identity.ID(b[:16])
}

func mustParse(t testing.TB, text string) identity.Key {
	t.Helper()
	k, err := identity.ParseKey(text)
	if err != nil {
		t.Fatalf("ParseKey of a good key: %v", err)
	}
	return k
}

func wantHex(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if diff := cmp.Diff(want, hex.EncodeToString(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestDerivationIsHKDF compares what a key derives with the standard library,
// of which package identity uses only the hash.
func TestDerivationIsHKDF(t *testing.T) {
	for range 100 {
		k := identity.NewKey(identity.Agent, identity.NewID())
		pub, secret, err := identity.DecodeText("slk1_", k.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		want := standardHKDF(t, secret, "solekey/v1/api-key", "slk1_"+string(pub[:]), 80)
		slot, auth, lock := k.Slot(), k.Auth(), k.InnerLock()
		if got := slices.Concat(slot[:], auth[:], lock[:]); !bytes.Equal(got, want) {
			t.Errorf("slot, auth and lock = %x, want %x", got, want)
		}
		store, seed := identity.NewID(), k.RecoverySeed(identity.ID{})
		if want := standardHKDF(t, secret, "solekey/v1/recovery", string(store[:]), 32); bytes.Equal(seed[:], want) {
			t.Error("control: the seed of another store is the same")
		}
		seed = k.RecoverySeed(store)
		if want := standardHKDF(t, secret, "solekey/v1/recovery", string(store[:]), 32); !bytes.Equal(seed[:], want) {
			t.Errorf("recovery seed = %x, want %x", seed, want)
		}
	}
}

func standardHKDF(t *testing.T, secret [32]byte, label, context string, n int) []byte {
	t.Helper()
	okm, err := hkdf.Key(sha256.New, secret[:], []byte(label), label+"\x00"+context, n)
	if err != nil {
		t.Fatal(err)
	}
	return okm
}

func TestKnownAnswers(t *testing.T) {
	pub := [19]byte{0: 1}
	id := runID(0)
	copy(pub[3:], id[:])
	if got := identity.EncodeText("slk1_", pub, run(0x10)); got != agentText {
		t.Errorf("EncodeText = %q, want %q", got, agentText)
	}

	k := mustParse(t, agentText)
	if k.Kind() != identity.Agent || k.Shard() != 0 || k.Identity() != id || k.IsZero() {
		t.Errorf("ParseKey: kind %v, shard %d, identity %v, zero %v", k.Kind(), k.Shard(), k.Identity(), k.IsZero())
	}
	slot, auth, lock := k.Slot(), k.Auth(), k.InnerLock()
	hash := sha256.Sum256(auth[:])
	wantHex(t, "slot ID", slot[:], "06cde5e63c7b92208fb07ea7a73fd5c5")
	wantHex(t, "H(auth)", hash[:], "2c2362f76f53b33d753fd05a87dee7feea59fe2072b193c967b9ef6bc8f9688b")
	wantHex(t, "lock", lock[:], "5409d37fe95278e57e7a84730e1fb7b2362e2f68a37ed69bc74578724ca0470c")
	if slot.String() != "06cde5e6" {
		t.Errorf("Slot().String() = %q, want 06cde5e6", slot)
	}
	if k.Reveal() != agentText {
		t.Error("Reveal() is not the text that was parsed")
	}
}

func TestKnownRecoveryAnswers(t *testing.T) {
	k := mustParse(t, recoveryText)
	if k.Kind() != identity.Recovery {
		t.Errorf("Kind() = %v, want recovery", k.Kind())
	}
	id := k.Identity()
	wantHex(t, "fingerprint", id[:], "fcd66083191a226ff6417d79f8612f8a")
	// The SHA-256 of the X-Wing public key of this seed is the H(recovery_pk)
	// of the known answers.
	seed := k.RecoverySeed(runID(0x40))
	wantHex(t, "seed", seed[:], "689a1507195f625730bc9fcc23afd1581978b21ce2ff0d772a310c136fb7f49b")
	if other := k.RecoverySeed(runID(0x41)); other == seed {
		t.Error("two stores share a recovery seed")
	}
}

func TestNewKeyIsFreshAndParses(t *testing.T) {
	id := identity.NewID()
	for _, kind := range []identity.Kind{identity.Agent, identity.Recovery} {
		a, b := identity.NewKey(kind, id), identity.NewKey(kind, id)
		if a.Reveal() == b.Reveal() || a.Slot() == b.Slot() || a.Auth() == b.Auth() || a.InnerLock() == b.InnerLock() {
			t.Errorf("two %v keys of one identity share a part", kind)
		}
		got := mustParse(t, a.Reveal())
		if got.Kind() != kind || got.Identity() != id || got.Slot() != a.Slot() ||
			got.Auth() != a.Auth() || got.InnerLock() != a.InnerLock() {
			t.Errorf("a new %v key does not come back from its text", kind)
		}
		if len(a.Reveal()) != 80 {
			t.Errorf("length of a %v key = %d, want 80", kind, len(a.Reveal()))
		}
	}
}

func TestNewRecoveryKeyNamesItsFingerprint(t *testing.T) {
	store := identity.NewID()
	fingerprint := func(seed [32]byte) identity.ID {
		h := sha256.Sum256(seed[:])
		return identity.ID(h[:16])
	}
	k := identity.NewRecoveryKey(store, fingerprint)
	if got, want := k.Identity(), fingerprint(k.RecoverySeed(store)); got != want {
		t.Errorf("Identity() = %v, want the fingerprint %v", got, want)
	}
	if k.Kind() != identity.Recovery {
		t.Errorf("Kind() = %v, want recovery", k.Kind())
	}
}

// TestKeyIsBoundToPrefixShardAndIdentity re-encodes one secret under another
// kind, shard and ID: each is another key.
func TestKeyIsBoundToPrefixShardAndIdentity(t *testing.T) {
	pub := [19]byte{0: 1, 18: 9}
	shard, id := pub, pub
	shard[2] = 7
	id[18] = 8
	base := mustParse(t, identity.EncodeText("slk1_", pub, run(1)))
	for name, text := range map[string]string{
		"kind":     identity.EncodeText("slr1_", pub, run(1)),
		"shard":    identity.EncodeText("slk1_", shard, run(1)),
		"identity": identity.EncodeText("slk1_", id, run(1)),
	} {
		k := mustParse(t, text)
		if k.Slot() == base.Slot() || k.Auth() == base.Auth() || k.InnerLock() == base.InnerLock() {
			t.Errorf("another %s gives the same key", name)
		}
	}
	if k := mustParse(t, identity.EncodeText("slk1_", shard, run(1))); k.Shard() != 7 {
		t.Errorf("Shard() = %d, want 7", k.Shard())
	}
	// Control: the same text is the same key.
	if again := mustParse(t, base.Reveal()); again.Slot() != base.Slot() {
		t.Error("the same text gives another key")
	}
}

func TestParseKeyDropsBlanksAround(t *testing.T) {
	for _, text := range []string{agentText + "\n", "\r\n\t " + agentText + " \r\n"} {
		if _, err := identity.ParseKey(text); err != nil {
			t.Errorf("ParseKey with blanks around = %v, want a key", err)
		}
	}
}

// base62 encodes as the specification says it, with math/big.
func base62(t *testing.T, n *big.Int, width int) string {
	t.Helper()
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	out := make([]byte, width)
	n, r := new(big.Int).Set(n), new(big.Int)
	for i := width - 1; i >= 0; i-- {
		n.DivMod(n, big.NewInt(62), r)
		out[i] = alphabet[r.Int64()]
	}
	if n.Sign() != 0 {
		t.Fatalf("number too large for %d characters", width)
	}
	return string(out)
}

// withSum completes a text whose checksum is right, whatever its numbers are.
func withSum(t *testing.T, prefix string, pub, secret *big.Int) string {
	t.Helper()
	text := prefix + base62(t, pub, 26) + base62(t, secret, 43)
	return text + base62(t, big.NewInt(int64(crc32.ChecksumIEEE([]byte(text)))), 6)
}

func power(base, exp int64) *big.Int {
	return new(big.Int).Exp(big.NewInt(base), big.NewInt(exp), nil)
}

func less1(n *big.Int) *big.Int { return new(big.Int).Sub(n, big.NewInt(1)) }

// TestCodecAgreesWithBigNumbers compares the fixed-width arithmetic with
// math/big, at the edges and on many numbers in between.
func TestCodecAgreesWithBigNumbers(t *testing.T) {
	check := func(pub [19]byte, secret [32]byte) {
		t.Helper()
		want := withSum(t, "slroot1_", new(big.Int).SetBytes(pub[:]), new(big.Int).SetBytes(secret[:]))
		if got := identity.EncodeText("slroot1_", pub, secret); got != want {
			t.Fatalf("EncodeText(%x, %x) = %q, want %q", pub, secret, got, want)
		}
		gotPub, gotSecret, err := identity.DecodeText("slroot1_", want)
		if err != nil || gotPub != pub || gotSecret != secret {
			t.Fatalf("DecodeText(EncodeText(%x, %x)) = %x, %x, %v", pub, secret, gotPub, gotSecret, err)
		}
	}
	var pub [19]byte
	var secret [32]byte
	pub[0] = 1
	check(pub, secret)
	for i := range secret {
		secret[i] = 0xff
	}
	for i := range pub[1:] {
		pub[1+i] = 0xff
	}
	check(pub, secret)
	for i := range 2000 {
		h := sha256.Sum256(fmt.Append(nil, "codec", i))
		copy(pub[1:], h[:])
		check(pub, sha256.Sum256(h[:]))
	}
}

// TestMalformedKeysAreNamed checks which refusal a text meets, and that none
// repeats a part of it.
func TestMalformedKeysAreNamed(t *testing.T) {
	pubOne := new(big.Int).SetBytes(append([]byte{1}, bytes.Repeat([]byte{3}, 18)...))
	secret := new(big.Int).SetBytes(bytes.Repeat([]byte{5}, 32))
	resum := func(prefix string) string { return withSum(t, prefix, pubOne, secret) }
	good := resum("slk1_")
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "prefix"},
		{"word", "hunter2-hunter2-hunter2", "prefix"},
		{"upper case prefix", "SLK1_" + good[5:], "prefix"},
		{"later version", resum("slk2_"), "prefix"},
		{"admin key", resum("sla1_"), "sla1_ (admin key) is reserved"},
		{"enrolment code", resum("sle1_"), "sle1_ (enrolment code) is reserved"},
		{"root text", resum("slroot1_"), "root text"},
		{"prefix only", "slk1_", "length"},
		{"short", good[:79], "length"},
		{"long", good + "0", "length"},
		{"two keys", good + " " + good, "length"},
		{"blank inside", good[:40] + " " + good[41:], "alphabet"},
		{"dash inside", good[:40] + "-" + good[41:], "alphabet"},
		{"not ASCII", good[:40] + "\u00e9" + good[42:], "alphabet"},
		{"zero byte", good[:40] + "\x00" + good[41:], "alphabet"},
		{"mistyped", good[:79] + string(good[79]^1), "a character is mistyped or missing"},
		{"kind changed", "slr1_" + good[5:], "checksum"},
		{"checksum too large", good[:74] + "zzzzzz", "checksum"},
		{"public part too large", withSum(t, "slk1_", power(2, 152), secret), "number too large"},
		{"public part at its largest", withSum(t, "slk1_", less1(power(62, 26)), secret), "number too large"},
		{"secret too large", withSum(t, "slk1_", pubOne, power(2, 256)), "number too large"},
		{"secret at its largest", withSum(t, "slk1_", pubOne, less1(power(62, 43))), "number too large"},
		{"version 0", withSum(t, "slk1_", new(big.Int), secret), "version"},
		{"version 2", withSum(t, "slk1_", power(2, 145), secret), "version"},
		{"zero ID", withSum(t, "slk1_", power(2, 144), secret), "names no identity"},
	} {
		_, err := identity.ParseKey(tt.text)
		if !errors.Is(err, identity.ErrMalformedKey) {
			t.Errorf("%s: error = %v, want ErrMalformedKey", tt.name, err)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error = %q, want it to name %q", tt.name, err, tt.want)
		}
		if part := sharedRun(tt.text, err.Error(), 9); part != "" {
			t.Errorf("%s: error %q repeats %q of the text", tt.name, err, part)
		}
	}
	// Control: the text that all these are variants of is a key.
	mustParse(t, good)
}

// TestAlphabetIsExact puts every byte at every place behind the prefix: letters
// and digits fail by checksum, everything else by alphabet.
func TestAlphabetIsExact(t *testing.T) {
	alnum := regexp.MustCompile(`[0-9A-Za-z]`)
	for i := len("slk1_"); i < len(agentText); i++ {
		for c := range 256 {
			text := []byte(agentText)
			if text[i] == byte(c) {
				continue
			}
			text[i] = byte(c)
			want := "alphabet"
			if c < 0x80 && alnum.Match(text[i:i+1]) {
				want = "checksum"
			}
			if _, _, err := identity.DecodeText("slk1_", string(text)); err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("byte %#x at %d: error = %v, want %s", c, i, err, want)
			}
		}
	}
}

// sharedRun returns a run of n bytes that a and b share.
func sharedRun(a, b string, n int) string {
	for i := 0; i+n <= len(a); i++ {
		if strings.Contains(b, a[i:i+n]) {
			return a[i : i+n]
		}
	}
	return ""
}

// edits calls visit with every text that one slip of the hand makes of text:
// a character replaced, dropped, doubled or added, or two neighbours swapped.
func edits(text string, visit func(string)) {
	const typed = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-. "
	for i := range len(text) {
		visit(text[:i] + text[i+1:])
		if i+1 < len(text) && text[i] != text[i+1] {
			visit(text[:i] + text[i+1:i+2] + text[i:i+1] + text[i+2:])
		}
		for _, c := range typed {
			if byte(c) != text[i] {
				visit(text[:i] + string(c) + text[i+1:])
			}
			if i > 0 || c != ' ' { // a blank in front is dropped
				visit(text[:i] + string(c) + text[i:])
			}
		}
	}
	for _, c := range typed[:len(typed)-1] {
		visit(text + string(c))
	}
}

func TestEveryTypoIsRefused(t *testing.T) {
	keys := []string{agentText, recoveryText}
	for i := range 6 {
		id := run(byte(40 * i))
		pub := [19]byte{0: 1}
		copy(pub[3:], id[:16])
		keys = append(keys, identity.EncodeText("slk1_", pub, sha256.Sum256(id[:])))
	}
	tried := 0
	for _, key := range keys {
		edits(key, func(text string) {
			tried++
			if _, err := identity.ParseKey(text); !errors.Is(err, identity.ErrMalformedKey) {
				t.Errorf("typo accepted: %q of %q (error %v)", text, key, err)
			}
		})
	}
	t.Logf("%d typos of %d keys tried", tried, len(keys))

	// Control: with the checksum made anew, replaced characters of the secret
	// are other keys, so it is the checksum that refuses them.
	accepted := 0
	edits(agentText[31:74], func(secret string) {
		if len(secret) != 43 || strings.ContainsAny(secret, "_-. ") {
			return
		}
		text := agentText[:31] + secret
		sum := base62(t, big.NewInt(int64(crc32.ChecksumIEEE([]byte(text)))), 6)
		if _, err := identity.ParseKey(text + sum); err == nil {
			accepted++
		}
	})
	if accepted < 2000 {
		t.Errorf("control: %d edited keys with a right checksum accepted, want thousands", accepted)
	}
}

func TestZeroKeyHoldsNothing(t *testing.T) {
	var k identity.Key
	if !k.IsZero() || k.Kind() != 0 || !k.Identity().IsZero() || k.Shard() != 0 || k.Slot() != (identity.SlotID{}) || k.Reveal() != "" {
		t.Error("the zero Key holds something")
	}
	for name, use := range map[string]func(){
		"Auth":         func() { k.Auth() },
		"InnerLock":    func() { k.InnerLock() },
		"RecoverySeed": func() { k.RecoverySeed(runID(1)) },
		"NewKey":       func() { identity.NewKey(identity.Agent, identity.ID{}) },
		"kind":         func() { identity.NewKey(9, runID(1)) },
	} {
		if !panics(use) {
			t.Errorf("%s of the zero Key, ID or an unknown kind does not panic", name)
		}
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

// TestHoldsKeyKnowsWholeKeysOnly: a label may look like the beginning of one.
func TestHoldsKeyKnowsWholeKeysOnly(t *testing.T) {
	key := identity.NewKey(identity.Agent, identity.NewID()).Reveal()
	for s, want := range map[string]bool{
		key: true, `{"label":"` + key + `"}`: true, "1_1_sl1_" + key + "x": true,
		"": false, "slk1_": false, "tesla1_token": false, key[:len(key)-1]: false, key[1:]: false,
		key[:40] + " " + key[40:]: false,
	} {
		if got := identity.HoldsKey(s); got != want {
			t.Errorf("HoldsKey(%q) = %v, want %v", s, got, want)
		}
	}
}

func TestLooksLikeKey(t *testing.T) {
	for _, s := range []string{
		agentText, recoveryText, "sla1_", "x=sle1_abc", "--key=slk1_zz", "slroot1_0", "slslk1_", "1 slroot1_x", "sl slr1_",
	} {
		if !identity.LooksLikeKey(s) {
			t.Errorf("LooksLikeKey(%q) = false, want true", s)
		}
	}
	for _, s := range []string{"", "s", "sl", "slk", "slk1", "slk2_", "slx1_", "SLK1_", "slroot1", "hassle", "sl1_", "slslsl"} {
		if identity.LooksLikeKey(s) {
			t.Errorf("LooksLikeKey(%q) = true, want false", s)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(agentText)
	f.Add(recoveryText)
	f.Add(" " + agentText + "\r\n")
	f.Add("sla1_" + agentText[5:])
	f.Add("slroot1_")
	f.Add(strings.Replace(agentText, "0", "\u0660", 1))
	f.Fuzz(func(t *testing.T, text string) {
		k, err := identity.ParseKey(text)
		if err != nil {
			if !errors.Is(err, identity.ErrMalformedKey) || !k.IsZero() {
				t.Fatalf("ParseKey(%q) = zero %v, %v", text, k.IsZero(), err)
			}
			return
		}
		if want := strings.Trim(text, " \t\r\n"); k.Reveal() != want {
			t.Fatalf("ParseKey(%q) reads another text", text)
		}
		if !identity.LooksLikeKey(text) {
			t.Fatalf("LooksLikeKey(%q) = false for a key", text)
		}
	})
}

// FuzzKeyText goes the other way: every number has one text, and that text
// leads back to it.
func FuzzKeyText(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 18), bytes.Repeat([]byte{0xff}, 32))
	f.Fuzz(func(t *testing.T, p, s []byte) {
		pub := [19]byte{0: 1}
		var secret [32]byte
		copy(pub[1:], p)
		copy(secret[:], s)
		text := identity.EncodeText("slk1_", pub, secret)
		gotPub, gotSecret, err := identity.DecodeText("slk1_", text)
		if err != nil || gotPub != pub || gotSecret != secret {
			t.Fatalf("DecodeText(%q) = %x, %x, %v, want %x, %x", text, gotPub, gotSecret, err, pub, secret)
		}
	})
}

func BenchmarkParseKey(b *testing.B) {
	good := agentText
	for name, text := range map[string]string{
		"good":  good,
		"typo":  good[:40] + "x" + good[41:],
		"short": good[:79],
		"word":  "Bearer " + good,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				identity.ParseKey(text)
			}
		})
	}
}

func BenchmarkReveal(b *testing.B) {
	k := mustParse(b, agentText)
	b.ReportAllocs()
	for b.Loop() {
		k.Reveal()
	}
}
