package catalog

import "strings"

// name is a variable's name, taken apart.
type name struct {
	base     string // upper case, _ for - and ., without folders or public prefix
	public   bool   // build tools put variables of this name into web pages
	secret   bool   // the name says that the value is a secret
	password bool   // the name says that the value is a password
	otp      bool   // the name says that the value has to do with codes
	webhook  bool   // the value's URL is the secret
}

func parseName(s string) name {
	s = s[strings.LastIndexByte(s, '/')+1:]
	base := strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(s))
	n := name{base: base, webhook: strings.Contains(base, "WEBHOOK")}
	for _, p := range []string{"NEXT_PUBLIC_", "VITE_", "REACT_APP_", "EXPO_PUBLIC_", "NUXT_PUBLIC_", "PUBLIC_"} {
		if rest, ok := strings.CutPrefix(base, p); ok {
			n.base, n.public = rest, true
			break
		}
	}
	n.secret = n.webhook || findService(n.base) != nil
	for part := range strings.SplitSeq(base, "_") {
		n.mark(part)
	}
	return n
}

// mark judges one part of a name.
func (n *name) mark(part string) {
	switch part {
	case "PASSWORD", "PASSWD", "PASS", "PWD", "PASSPHRASE":
		n.password, n.secret = true, true
	case "OTP", "TOTP", "2FA", "MFA":
		n.otp, n.secret = true, true
	case "KEY", "APIKEY", "SECRET", "TOKEN", "CREDENTIAL", "CREDENTIALS", "PRIVATE", "AUTH",
		"DSN", "WEBHOOK", "SALT", "CERT", "PEM", "MNEMONIC":
		n.secret = true
	}
}
