package dotenv

import "strings"

// head is an assignment up to its value.
type head struct {
	name   string
	export bool
	colon  bool
	after  int // index in the row behind the separator
}

// parseHead reads the start of a row, if it is that of an assignment.
func parseHead(row string) (head, bool) {
	i := skipBlanks(row, 0)
	if j, ok := skipExport(row, i); ok {
		if h, ok := headAt(row, j); ok {
			h.export = true
			return h, true
		}
	}
	return headAt(row, i)
}

func headAt(row string, i int) (head, bool) {
	j := nameEnd(row, i)
	if j == i {
		return head{}, false
	}
	h := head{name: row[i:j]}
	if k := skipBlanks(row, j); k < len(row) && row[k] == '=' {
		h.after = k + 1
		return h, true
	}
	if j < len(row) && row[j] == ':' && (j+1 == len(row) || startsBlank(row[j+1:])) {
		h.colon, h.after = true, j+1
		return h, true
	}
	return head{}, false
}

// nameEnd returns the index behind the name at i, or i if none is there.
func nameEnd(s string, i int) int {
	if i == len(s) || !isNameStart(s[i]) {
		return i
	}
	for i < len(s) && (isWord(s[i]) || s[i] == '.' || s[i] == '-') {
		i++
	}
	return i
}

// skipExport returns the index behind the word export and its blanks.
func skipExport(row string, i int) (int, bool) {
	rest, ok := strings.CutPrefix(row[i:], "export")
	if !ok || !startsBlank(rest) {
		return i, false
	}
	return skipBlanks(row, i+len("export")), true
}

// isExport reports whether a trimmed row exports names without setting them.
func isExport(row string) bool {
	i, ok := skipExport(row, 0)
	if !ok {
		return false
	}
	for i < len(row) {
		j := nameEnd(row, i)
		k := skipBlanks(row, j)
		if j == i || (k == j && k < len(row)) {
			return false
		}
		i = k
	}
	return true
}

func isNameStart(c byte) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// isWord reports whether c may stand in a name as shells know it.
func isWord(c byte) bool { return isNameStart(c) || '0' <= c && c <= '9' }
