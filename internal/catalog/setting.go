package catalog

import (
	"net/url"
	"strings"
)

// isSetting reports whether a value is a boolean, a number, a path or a plain
// URL: a setting, whatever its name says.
func isSetting(n name, text string) bool {
	return isBoolean(text) || isNumber(text) || isPath(text) || !n.webhook && isPlainURL(text)
}

func isBoolean(text string) bool {
	switch strings.ToLower(text) {
	case "true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "enabled", "disabled":
		return true
	}
	return false
}

// isNumber reports whether text is a number, with or without a unit of time
// or size. More than 20 digits are no number that a program counts with.
func isNumber(text string) bool {
	s := strings.ToLower(strings.TrimLeft(text, "+-"))
	if len(text)-len(s) > 1 || s == "" || !isDigit(s[0]) {
		return false
	}
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		return hex != "" && len(hex) <= 16 && strings.Trim(hex, "0123456789abcdef") == ""
	}
	unit := strings.TrimLeft(s, "0123456789._")
	if len(s)-len(unit) > 20 {
		return false
	}
	switch trim(unit) {
	case "", "%", "ns", "us", "ms", "s", "sec", "m", "min", "h", "d", "w", "y",
		"b", "k", "kb", "kib", "mb", "mib", "g", "gb", "gib", "tb", "tib", "px":
		return true
	}
	return strings.HasPrefix(unit, "e") && strings.Trim(strings.TrimLeft(unit[1:], "+-"), "0123456789") == "" && len(unit) <= 6
}

// isPath reports whether text names a file. A random text may begin with a
// slash too, so that a long part of mixed letters and digits speaks against
// it.
func isPath(text string) bool {
	if strings.ContainsAny(text, "\n\r=+") || len(text) > 4096 {
		return false
	}
	drive := len(text) > 2 && isLower(text[0]|0x20) && text[1] == ':' && (text[2] == '\\' || text[2] == '/')
	if !drive && !hasAnyPrefix(text, "/", "./", "../", "~/", `.\`, `..\`, `\\`) && !isFileName(text) {
		return false
	}
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '/' || r == '\\' }) {
		if isScrambled(part) {
			return false
		}
	}
	return true
}

// isFileName reports whether text is a relative path that ends as files of
// keys and settings do.
func isFileName(text string) bool {
	plain := consists(text, func(c byte) bool { return isAlnum(c) || strings.IndexByte("._-/\\", c) >= 0 })
	dot := strings.LastIndexByte(text, '.')
	if !plain || dot <= 0 {
		return false
	}
	switch strings.ToLower(text[dot+1:]) {
	case "cer", "cfg", "conf", "crt", "csv", "db", "der", "env", "ini", "jks", "json", "key", "log", "p12",
		"p8", "pem", "pfx", "pub", "sock", "sql", "sqlite", "sqlite3", "toml", "txt", "xml", "yaml", "yml":
		return true
	}
	return false
}

// isScrambled reports whether a part of a path has capitals, small letters
// and digits over 16 characters or more, as keys have and names rarely.
func isScrambled(part string) bool {
	var upper, lower, digit bool
	for i := range len(part) {
		c := part[i]
		upper = upper || 'A' <= c && c <= 'Z'
		lower = lower || isLower(c)
		digit = digit || isDigit(c)
	}
	return len(part) >= 16 && upper && lower && digit
}

// isPlainURL reports whether text is a URL that holds no user and no secret.
func isPlainURL(text string) bool {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || scheme == "" || rest == "" || strings.ContainsAny(text, " \t\n") ||
		!consists(scheme, func(c byte) bool { return isAlnum(c) || strings.IndexByte("+-.:", c) >= 0 }) {
		return false
	}
	user, password := userinfo(text)
	return user == "" && password == "" && !urlHasSecret(text)
}

// urlHasSecret reports whether a URL holds a password, a secret in its query,
// or is itself the secret.
func urlHasSecret(text string) bool {
	if user, password := userinfo(text); password != "" || isKey(user) || isRandom(user) {
		return true
	}
	if hasFoldPrefix(text, "https://hooks.slack.com/services/", "https://discord.com/api/webhooks/", "https://discordapp.com/api/webhooks/") {
		return true
	}
	_, query, _ := strings.Cut(text, "?")
	for pair := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		key, val, _ := strings.Cut(pair, "=")
		if val != "" && isSecretParameter(key) && !isBoolean(val) && !isNumber(val) {
			return true
		}
	}
	return false
}

func isSecretParameter(key string) bool {
	switch strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(key)) {
	case "accesstoken", "apikey", "authtoken", "key", "pass", "passwd", "password", "pwd", "secret", "sig", "signature", "token":
		return true
	}
	return false
}

// userinfo returns user and password of a URL. Passwords in such files often
// hold characters that ought to be escaped, so it goes by the last @ of the
// authority, and by the last @ of all if the authority alone makes no sense.
func userinfo(text string) (user, password string) {
	_, rest, ok := strings.Cut(text, "://")
	if !ok {
		return "", ""
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	at := strings.LastIndexByte(authority, '@')
	if _, port, ok := strings.Cut(authority, ":"); at < 0 && ok && !consists(port, isDigit) && !strings.HasPrefix(authority, "[") {
		authority = rest
		at = strings.LastIndexByte(rest, '@')
	}
	if at < 0 {
		return "", ""
	}
	user, password, _ = strings.Cut(authority[:at], ":")
	return user, password
}

// isAddressList reports whether text is a mail address, a host name with or
// without port, or a list of those.
func isAddressList(text string) bool {
	for item := range strings.SplitSeq(text, ",") {
		if mailbox, host, ok := strings.Cut(item, "@"); ok {
			if mailbox == "" || !consists(mailbox, isAddressByte) {
				return false
			}
			item = host
		}
		host, port, _ := strings.Cut(item, ":")
		if !consists(port, isDigit) || !isHostName(host) {
			return false
		}
	}
	return true
}

func isAddressByte(c byte) bool { return isAlnum(c) || strings.IndexByte(".+-_", c) >= 0 }

// isHostName reports whether s is localhost or a name of two or more parts in
// lower case that ends in letters.
func isHostName(s string) bool {
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' ||
			!consists(l, func(c byte) bool { return isLower(c) || isDigit(c) || c == '-' }) {
			return false
		}
	}
	last := labels[len(labels)-1]
	return s == "localhost" || len(s) <= 253 && len(labels) >= 2 && len(last) >= 2 && (consists(last, isLower) || strings.HasPrefix(last, "xn--"))
}

// endpointHost returns the host of a tenant's HTTPS endpoint, with its port
// unless that is 443, or "" if there is none to bind to.
func endpointHost(text string) string {
	u, err := url.Parse(text)
	if err != nil || !strings.EqualFold(u.Scheme, "https") {
		return ""
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if !isHostName(host) || host == "localhost" {
		return ""
	}
	if p := u.Port(); p != "" && p != "443" {
		return host + ":" + p
	}
	return host
}
