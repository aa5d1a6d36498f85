package catalog

import (
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// minKey is the length below which a short or general prefix under an unknown
// name says nothing: sk-SK is a locale, pplx-7b-online a model.
const minKey = 16

// isSecret reports whether a value looks like a secret under any name.
func isSecret(text string) bool {
	switch {
	case isKey(text), isPrivateKey(text), isToken(text), isMnemonic(text):
		return true
	case strings.Contains(text, "://"):
		return urlHasSecret(text)
	}
	return isRandom(text)
}

// isKey reports whether a value begins as keys of a known provider do.
func isKey(text string) bool {
	p := keyPrefix(text)
	switch {
	case p == "" || strings.ContainsAny(text, " \t\n"):
		return false
	case p == botPrefix:
		return len(text) >= 40 && !strings.ContainsAny(text, "./")
	case !isDecisive(p), p == "hf_", p == "r8_", p == "SG.", p == "pplx-":
		return len(text) >= minKey
	}
	return len(text) > len(p)
}

// isLeak reports whether a value must not stand under a public name. Web keys
// of Google are made for web pages, but those of its models are not.
func isLeak(n name, text string) bool {
	p := keyPrefix(text)
	if s := findService(n.base); s != nil && p != "" && slices.Contains(s.prefixes, p) {
		return true
	}
	return isPrivateKey(text) || p != "AIza" && isKey(text)
}

func isPrivateKey(text string) bool {
	_, rest, ok := strings.Cut(text, "-----BEGIN ")
	label, _, _ := strings.Cut(rest, "-----")
	return ok && strings.Contains(label, "PRIVATE KEY")
}

// isToken reports whether a value is a JSON web token.
func isToken(text string) bool {
	parts := strings.Split(text, ".")
	if len(parts) != 3 || !strings.HasPrefix(text, "eyJ") || len(parts[0]) < 10 || len(parts[1]) < 10 {
		return false
	}
	for _, p := range parts {
		if !consists(p, func(c byte) bool { return isAlnum(c) || c == '-' || c == '_' }) {
			return false
		}
	}
	return true
}

// isMnemonic reports whether a value has the shape of a BIP-39 phrase.
func isMnemonic(text string) bool {
	words := strings.Fields(text)
	if len(words) < 12 || len(words) > 24 || len(words)%3 != 0 {
		return false
	}
	for _, w := range words {
		if len(w) < 3 || len(w) > 8 || !consists(w, isLower) {
			return false
		}
	}
	return true
}

// isRandom reports whether a value has 20 characters or more at 3.5 bits per
// character or more. Prose, addresses and host names have as much; they are
// told apart by their shape.
func isRandom(text string) bool {
	n := utf8.RuneCountInString(text)
	if n < 20 || strings.ContainsAny(text, " \t\n") || isAddressList(text) {
		return false
	}
	count := map[rune]int{}
	for _, r := range text {
		count[r]++
	}
	bits := 0.0
	for _, c := range count {
		p := float64(c) / float64(n)
		bits -= p * math.Log2(p)
	}
	return bits >= 3.5
}

// isSeed reports whether a value is, or may well be, a seed of one-time
// codes.
func isSeed(n name, text string) bool {
	return IsSeedURI(text) || n.otp && isBase32(text)
}

// isBase32 reports whether text has 16 characters of base32 or more, as sites
// show seeds: in groups, in lower case, with or without padding.
func isBase32(text string) bool {
	s := strings.TrimRight(strings.NewReplacer(" ", "", "-", "").Replace(text), "=")
	return len(s) >= 16 && consists(s, func(c byte) bool {
		return isLower(c) || 'A' <= c && c <= 'Z' || '2' <= c && c <= '7'
	})
}

// isPlaceholder reports whether a value stands for one that is to be filled
// in.
func isPlaceholder(text string) bool {
	s := strings.ToLower(text)
	switch s {
	case "changeme", "change-me", "change_me", "replaceme", "todo", "tbd", "none", "null", "undefined":
		return true
	}
	return len(s) >= 3 && (strings.Trim(s, "x") == "" || strings.Trim(s, "*") == "") ||
		strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">") ||
		hasAnyPrefix(s, "your-", "your_") || strings.HasSuffix(s, "...")
}

// isWeak reports whether a value, or the password in a URL, is one that
// everybody tries first.
func isWeak(text string) bool {
	if _, password := userinfo(text); password != "" {
		text = password
	}
	switch strings.ToLower(text) {
	case "admin", "administrator", "default", "demo", "dev", "development", "example", "guest", "letmein",
		"minio", "minioadmin", "mongo", "mysql", "pass", "passw0rd", "passwd", "password", "password1",
		"password123", "postgres", "postgresql", "qwerty", "rabbitmq", "redis", "root", "secret",
		"supersecret", "test", "test123", "testing", "toor", "user", "welcome":
		return true
	}
	return false
}

func trim(s string) string { return strings.TrimSpace(s) }

func hasAnyPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// hasFoldPrefix is hasAnyPrefix, case-blind for ASCII prefixes.
func hasFoldPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if len(s) >= len(p) && strings.EqualFold(s[:len(p)], p) {
			return true
		}
	}
	return false
}

// consists reports whether all bytes of s are of a kind.
func consists(s string, kind func(byte) bool) bool {
	for i := range len(s) {
		if !kind(s[i]) {
			return false
		}
	}
	return true
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isAlnum(c byte) bool { return isLower(c|0x20) || isDigit(c) }
