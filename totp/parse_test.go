package totp_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/totp"
)

func TestBase32InHumanShapes(t *testing.T) {
	want := mustCode(t, mustParse(t, secret32), 1700000000).Digits
	for _, text := range []string{
		strings.ToLower(secret32),
		"jbswy3dpehpk3PXPJBSWY3DPEHPK3PXP",
		"JBSW Y3DP EHPK 3PXP JBSW Y3DP EHPK 3PXP",
		"jbsw-y3dp-ehpk-3pxp-jbsw-y3dp-ehpk-3pxp",
		" \t" + secret32 + "\r\n",
		"JBSWY3DPEHPK3PXP\nJBSWY3DPEHPK3PXP\n",
		"JBSW\u00a0Y3DP\u2011EHPK\u20133PXP\u200bJBSWY3DPEHPK3PXP\ufeff",
		secret32 + "======",
		"otpauth://totp/?secret=" + secret32 + "%3D%3D",
		"otpauth://totp/?secret=" + secret32 + "==",
		"otpauth://totp/?secret=JBSW+Y3DP+EHPK+3PXP+JBSW%20Y3DP-EHPK-3pxp",
	} {
		s, err := totp.Parse(text)
		if err != nil {
			t.Errorf("Parse(%q) = %v", text, err)
			continue
		}
		if got := mustCode(t, s, 1700000000).Digits; got != want {
			t.Errorf("Parse(%q) gives %s, want %s", text, got, want)
		}
	}
	// The shortest, padded and not, and lengths that end inside a byte group.
	for _, text := range []string{
		"JBSWY3DPEHPK3PXP", "JBSWY3DPEHPK3PXPJA======", "JBSWY3DPEHPK3PXPJBSQ====", "JBSWY3DPEHPK3PXPJBSWY===", "JBSWY3DPEHPK3PXPJBSWY3A=",
		"JBSWY3DPEHPK3PXPJA", "JBSWY3DPEHPK3PXPJBSQ", "JBSWY3DPEHPK3PXPJBSWY", "JBSWY3DPEHPK3PXPJBSWY3A",
	} {
		mustParse(t, text)
	}
}

// view is what a Seed says of itself.
type view struct {
	Issuer, Account, Algorithm string
	Digits                     int
	Period                     time.Duration
}

func TestURIs(t *testing.T) {
	for _, tt := range []struct {
		text string
		want view
	}{
		{"otpauth://totp/Example:alice@google.com?secret=S&issuer=Example", view{"Example", "alice@google.com", "SHA1", 6, 30 * time.Second}},
		{"OTPAUTH://TOTP/Example:alice?SECRET=S&Issuer=Example&ALGORITHM=sha256&Digits=8&PERIOD=60", view{"Example", "alice", "SHA256", 8, time.Minute}},
		{"otpauth://totp/ACME%20Co:john.doe%40email.com?secret=S&issuer=ACME%20Co", view{"ACME Co", "john.doe@email.com", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/ACME%20Co%3A%20john?secret=S", view{"ACME Co", "john", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/ACME Co: john?secret=S&issuer=ACME Co", view{"ACME Co", "john", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/john?secret=S&issuer=Big+Corp", view{"Big Corp", "john", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/a+b?secret=S", view{"", "a+b", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/Old:john?secret=S&issuer=New", view{"New", "john", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/Old:john?secret=S&issuer=", view{"Old", "john", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/a:b:c?secret=S", view{"a", "b:c", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/a/b?secret=S", view{"", "a/b", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/?secret=S", view{"", "", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp?secret=S", view{"", "", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/%E6%97%A5%E6%9C%AC:%C3%A9?secret=S", view{"日本", "é", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/x?%73ecret=S&digit%73=7", view{"", "x", "SHA1", 7, 30 * time.Second}},
		{"otpauth://totp/x?&&secret=S&", view{"", "x", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/x?secret=S&image=https%3A%2F%2Fx%2Fy.png&color=ff0000&counter=1&lock=false&flag", view{"", "x", "SHA1", 6, 30 * time.Second}},
		{"otpauth://totp/x?secret=S&algorithm=SHA-512&period=10", view{"", "x", "SHA512", 6, 10 * time.Second}},
		{"otpauth://totp/x?secret=S&algorithm=HmacSHA256&period=300", view{"", "x", "SHA256", 6, 300 * time.Second}},
		{"otpauth://totp/x?secret=S&algorithm=HMAC-SHA-1", view{"", "x", "SHA1", 6, 30 * time.Second}},
		{" otpauth://steam/Steam:gabe?secret=S\n", view{"Steam", "gabe", "SHA1", 5, 30 * time.Second}},
		{"steam://S", view{"", "", "SHA1", 5, 30 * time.Second}},
		{"S", view{"", "", "SHA1", 6, 30 * time.Second}},
	} {
		text := strings.Replace(tt.text, "=S", "="+secret32, 1)
		if !strings.Contains(tt.text, "=S") {
			text = strings.TrimSuffix(tt.text, "S") + secret32
		}
		s, err := totp.Parse(text)
		if err != nil {
			t.Errorf("Parse(%q) = %v", tt.text, err)
			continue
		}
		got := view{s.Issuer(), s.Account(), s.Algorithm(), s.Digits(), s.Period()}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("Parse(%q) (-want +got):\n%s", tt.text, diff)
		}
	}
}

func TestRefusalsAreNamed(t *testing.T) {
	const s = secret32
	uri := "otpauth://totp/Example:alice?secret=" + s
	for _, tt := range []struct{ text, want string }{
		{"", "empty"},
		{" \n", "empty"},
		{strings.Repeat("A", 4097), "longer than 4096"},
		{"otpauth://hotp/x?secret=" + s + "&counter=1", "counter-based codes (hotp) are not supported"},
		{"OtpAuth://HOTP/x?secret=" + s, "hotp"},
		{"otpauth-migration://offline?data=" + s, "export one account at a time"},
		{"OTPAUTH-MIGRATION://offline?data=" + s, "export one account at a time"},
		{"otpauth://motp/x?secret=" + s, "type of the URI"},
		{"otpauth:///x?secret=" + s, "type of the URI"},
		{"otpauth://" + s, "type of the URI"},
		{"otpauth://totp:80/x?secret=" + s, "type of the URI"},
		{"otpauth://user@totp/x?secret=" + s, "type of the URI"},
		{"https://example.com/?secret=" + s, "neither an otpauth URI nor base32"},
		{"://" + s, "neither an otpauth URI nor base32"},
		{uri + "&algorithm=MD5", "MD5 is not supported"},
		{uri + "&algorithm=md-5", "MD5 is not supported"},
		{uri + "&algorithm=HmacMD5", "MD5 is not supported"},
		{uri + "&algorithm=SHA224", "unknown algorithm"},
		{uri + "&algorithm=SHA3-256", "unknown algorithm"},
		{uri + "&algorithm=SHA", "unknown algorithm"},
		{uri + "&algorithm=", "unknown algorithm"},
		{uri + "&algorithm", "unknown algorithm"},
		{uri + "&algorithm=" + s, "unknown algorithm"},
		{uri + "&digits=5", "digits out of range"},
		{uri + "&digits=9", "digits out of range"},
		{uri + "&digits=0", "digits out of range"},
		{uri + "&digits=", "digits out of range"},
		{uri + "&digits=-6", "digits out of range"},
		{uri + "&digits=6.0", "digits out of range"},
		{uri + "&digits=six", "digits out of range"},
		{uri + "&digits=18446744073709551622", "digits out of range"},
		{uri + "&period=0", "period out of range"},
		{uri + "&period=9", "period out of range"},
		{uri + "&period=301", "period out of range"},
		{uri + "&period=", "period out of range"},
		{uri + "&period=-30", "period out of range"},
		{uri + "&period=%2B30", "period out of range"},
		{uri + "&period=30s", "period out of range"},
		{uri + "&period=65566", "period out of range"},
		{uri + "&period=18446744073709551646", "period out of range"},
		{uri + "&encoder=base10", "unknown encoder"},
		{uri + "&encoder=", "unknown encoder"},
		{uri + "&encoder=steam&digits=6", "always 5"},
		{uri + "&encoder=steam&algorithm=SHA256", "Steam codes use SHA1"},
		{"otpauth://steam/x?period=60&secret=" + s, "Steam codes use SHA1"},
		{uri + "&secret=" + s, "given twice"},
		{uri + "&SECRET=" + s, "given twice"},
		{uri + "&%73ecret=" + s, "given twice"},
		{uri + "&digits=6&DIGITS=8", "given twice"},
		{uri + "&image=a&image=b", "given twice"},
		{uri + "&amp;digits=8", "copied as HTML"},
		{uri + "&issuer=C#&digits=8", "write it as %23"},
		{"otpauth://totp/No #1?secret=" + s, "write it as %23"},
		{uri + "&issuer=100%", "percent-encoded"},
		{uri + "&%zz=1", "percent-encoded"},
		{"otpauth://totp/%zz" + s + "?secret=" + s, "label is not percent-encoded"},
		{uri + "\n&digits=8", "line break"},
		{uri + "\x00", "control character"},
		{"otpauth://totp/x?issuer=y", "no secret"},
		{"otpauth://totp/" + s, "no secret"},
		{"otpauth://totp/x?secret=", "shorter than 10 bytes"},
		{"steam://", "shorter than 10 bytes"},
		{"JBSWY3DPEHPK3PX", "shorter than 10 bytes"},
		{"====", "shorter than 10 bytes"},
		{s + "A", "a character is missing or too many"},
		{s[:len(s)-5], "a character is missing or too many"},
		{s[:len(s)-2], "a character is missing or too many"},
		{strings.Replace(s, "J", "1", 1), "not base32"},
		{strings.Replace(s, "3", "8", 1), "not base32"},
		{s[:8] + "=" + s[8:], "not base32"},
		{"not a seed at all!", "not base32"},
		{s + "?digits=8", "not base32"},
		{s[:15] + "\u0131" + s[16:], "not base32"}, // a dotless i
		{s[:15] + "\u017f" + s[16:], "not base32"}, // a long s
		{s[:15] + "\xff" + s[16:], "not base32"},
		{"steam://" + s + "!", "not base32"},
		{"otpauth://totp/" + s + "?secret=" + s, "issuer or account holds the secret"},
		{"otpauth://totp/x:jbsw-y3dp-ehpk-3pxp-jbsw-y3dp-ehpk-3pxp?secret=" + s, "issuer or account holds the secret"},
		{uri + "&issuer=my%20" + strings.ToLower(s), "issuer or account holds the secret"},
		{"otpauth://totp/a%0Ab?secret=" + s, "cannot be shown"},
		{"otpauth://totp/a%1B%5B2J?secret=" + s, "cannot be shown"},
		{"otpauth://totp/a%E2%80%AEb?secret=" + s, "cannot be shown"},
		{uri + "&issuer=%FF", "cannot be shown"},
	} {
		seed, err := totp.Parse(tt.text)
		if !errors.Is(err, totp.ErrMalformedSeed) {
			t.Errorf("Parse(%q) = %v, want ErrMalformedSeed", tt.text, err)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q) = %q, want it to name %q", tt.text, err, tt.want)
		}
		if part := repeats(tt.text, err); part != "" {
			t.Errorf("Parse(%q) = %q repeats %q", tt.text, err, part)
		}
		if _, err := seed.Code(time.Unix(0, 0)); err == nil {
			t.Errorf("Parse(%q) returns a working seed with its error", tt.text)
		}
	}
	// Control: what all these are variants of is a seed, and a text that is
	// repeated is found.
	mustParse(t, uri)
	if repeats(uri, errors.New("bad secret "+s)) == "" {
		t.Error("control: a repeated secret was not found")
	}
}

// repeats returns a part of text that could be a secret, ten or more of the
// base32 alphabet, if the error repeats it; no word of an error is so long.
func repeats(text string, err error) string {
	for _, part := range regexp.MustCompile(`[A-Z2-7]{10,}|[a-z2-7]{14,}`).FindAllString(text, -1) {
		if strings.Contains(strings.ToUpper(err.Error()), strings.ToUpper(part)) {
			return part
		}
	}
	return ""
}

func TestLooksLike(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"otpauth://totp/x?secret=" + secret32, "totp"},
		{" OTPAUTH://TOTP/x", "totp"},
		{"otpauth://steam/x", "totp"},
		{"steam://" + secret32, "totp"},
		{"otpauth://hotp/x?secret=" + secret32, "hotp"},
		{"OTPauth://HOTP/x", "hotp"},
		{"otpauth-migration://offline?data=x", "migration"},
		{secret32, "base32"},
		{"jbsw y3dp ehpk 3pxp", "base32"},
		{"JBSWY3DPEHPK3PX", ""},
		{"", ""},
		{"sk-proj-0123456789", ""},
		{"https://example.com", ""},
		{"日本", ""},
	} {
		if got := totp.LooksLike(tt.text); got != tt.want {
			t.Errorf("LooksLike(%q) = %q, want %q", tt.text, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		secret32,
		"jbsw-y3dp ehpk-3pxp",
		"steam://" + secret32,
		"otpauth://totp/Example:alice@google.com?secret=" + secret32 + "&issuer=Example",
		"otpauth://totp/A%20B?secret=" + secret32 + "%3D&algorithm=HmacSHA512&digits=7&period=60",
		"otpauth://steam/x?secret=" + secret32,
		"otpauth://hotp/x?secret=" + secret32,
		"otpauth-migration://offline?data=" + secret32,
		"otpauth://totp/%zz?secret=%41#",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		kind := totp.LooksLike(text)
		s, err := totp.Parse(text)
		if err != nil {
			if !errors.Is(err, totp.ErrMalformedSeed) {
				t.Fatalf("Parse(%q) = %v", text, err)
			}
			if part := repeats(text, err); part != "" && len(part) > 14 {
				t.Fatalf("Parse(%q) = %q repeats %q", text, err, part)
			}
			return
		}
		if kind != "totp" && kind != "base32" {
			t.Fatalf("LooksLike(%q) = %q for a seed", text, kind)
		}
		checkSeed(t, text, s)
	})
}

func checkSeed(t *testing.T, text string, s totp.Seed) {
	t.Helper()
	at := time.Unix(1700000000, 0)
	c, err := s.Code(at)
	if err != nil {
		t.Fatalf("Code of %q: %v", text, err)
	}
	letters := "0123456789"
	if s.Digits() == 5 {
		letters = "23456789BCDFGHJKMNPQRTVWXY"
	} else if s.Digits() < 6 || s.Digits() > 8 {
		t.Fatalf("%q has codes of %d digits", text, s.Digits())
	}
	if len(c.Digits) != s.Digits() || strings.Trim(c.Digits, letters) != "" {
		t.Fatalf("Code of %q = %q, want %d of %s", text, c.Digits, s.Digits(), letters)
	}
	if at.Before(c.From) || !at.Before(c.Until) || c.Until.Sub(c.From) != s.Period() || c.Period != s.Period() {
		t.Fatalf("Code of %q holds from %v until %v, period %v", text, c.From, c.Until, c.Period)
	}
	if s.Period() < 10*time.Second || s.Period() > 300*time.Second {
		t.Fatalf("%q has period %v", text, s.Period())
	}
	if !strings.Contains(" SHA1 SHA256 SHA512 ", " "+s.Algorithm()+" ") {
		t.Fatalf("%q has algorithm %q", text, s.Algorithm())
	}
	again := mustParse(t, " "+text+"\n")
	if c2, err := again.Code(at); err != nil || c2 != c {
		t.Fatalf("%q with blanks around gives %v, %v, want %v", text, c2, err, c)
	}
}
