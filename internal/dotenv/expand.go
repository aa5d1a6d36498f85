package dotenv

import "strings"

// expansions finds what a shell or an expanding loader would replace in a
// value. dollars are the indexes of the $ that are not escaped, set holds the
// names of the file with their lines. It takes time linear in the value.
func expansions(value string, dollars []int, set map[string]int) (refs []Ref, command bool) {
	brace := strings.LastIndexByte(value, '}')
	paren := strings.LastIndexByte(value, ')')
	seen := map[string]bool{}
	for _, i := range dollars {
		rest := value[i+1:]
		name, found := "", false
		switch {
		case strings.HasPrefix(rest, "(") && i < paren:
			command = true
		case strings.HasPrefix(rest, "{") && i < brace:
			name, found = bracedName(rest[1:], set)
		default:
			name = rest[:wordEnd(rest)]
			_, found = set[name]
		}
		if found && !seen[name] {
			seen[name] = true
			refs = append(refs, Ref{Name: name, Line: set[name]})
		}
	}
	return refs, command
}

// bracedName returns the name behind ${. It knows the shell's operators, as
// in ${NAME:-default}; a name with . or - must be one the file sets, because
// ${NAME-default} is an operator too.
func bracedName(s string, set map[string]int) (string, bool) {
	if s != "" && (s[0] == '!' || s[0] == '#') {
		s = s[1:]
	}
	if j := nameEnd(s, 0); j < len(s) && s[j] == '}' {
		if _, ok := set[s[:j]]; ok {
			return s[:j], true
		}
	}
	j := wordEnd(s)
	if j == 0 || j == len(s) || strings.IndexByte("}:-+?=#%/^,@[.", s[j]) < 0 {
		return "", false
	}
	return s[:j], true
}

// wordEnd returns the length of the name, as shells know it, at the start of
// s.
func wordEnd(s string) int {
	if s == "" || !isNameStart(s[0]) {
		return 0
	}
	i := 0
	for i < len(s) && isWord(s[i]) {
		i++
	}
	return i
}
