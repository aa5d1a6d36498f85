package catalog

import "strings"

// IsSeedURI reports whether a value is, by the way it begins, a seed of
// one-time codes or an export of seeds, of any length and whether or not it
// is well-formed: otpauth:, apple-otpauth:, otpauth-migration:, steam://.
func IsSeedURI(value string) bool {
	return hasFoldPrefix(seedText(value), "otpauth:", "apple-otpauth:", "otpauth-migration:", "steam://")
}

// IsSecretField reports whether a field of this name holds what makes codes
// or keys, and so must never be given out.
func IsSecretField(name string) bool {
	switch strings.ToLower(name) {
	case "seed", "otp", "totp", "backup_codes", "recovery_codes", "private_key":
		return true
	}
	return false
}

// seedText is a value without the blanks around it, and without the invisible
// ones that come along when text is copied from a page.
func seedText(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return r == '\u200b' || r == '\ufeff' || r <= ' ' || r == '\u00a0' })
}
