package dotenv

import "strings"

// Rewrite returns the file with the values of the named variables replaced by
// the given references, in all their assignments, the overridden ones too:
// an old value is as secret as the last. Names that the file does not set are
// ignored. Every other byte stays, in the file's own encoding.
//
// A reference takes the place of the value and of its quotes. It is written
// bare if it consists of letters, digits and . _ / : ? = & @ % + , ~ -, as
// solekey://LABEL?field=NAME does, because some loaders keep quotes as part
// of the value. Other text, and a reference that a comment follows without a
// blank, is put into single quotes, or into double quotes with escapes if it
// holds a single quote or a control character. NUL and bytes that are not
// UTF-8 become U+FFFD.
func (f *File) Rewrite(refs map[string]string) []byte {
	var b strings.Builder
	b.Grow(len(f.text))
	pos := 0
	for i, e := range f.entries {
		ref, ok := refs[e.Name]
		if !ok {
			continue
		}
		at := f.spans[i]
		b.WriteString(f.text[pos:at.start])
		b.WriteString(written(ref, at, f.text))
		pos = at.end
	}
	b.WriteString(f.text[pos:])
	return f.enc.encode(b.String())
}

// written returns the text that reads as ref in the place at.
func written(ref string, at span, text string) string {
	ref = strings.ReplaceAll(strings.ToValidUTF8(ref, "\uFFFD"), "\x00", "\uFFFD")
	before := ""
	if at.tight && ref != "" {
		before = " "
	}
	if comment := at.end < len(text) && text[at.end] == '#'; comment || !isPlain(ref) {
		return before + quote(ref)
	}
	return before + ref
}

// isPlain reports whether ref reads as itself without quotes, in every loader
// we know.
func isPlain(ref string) bool {
	for i := range len(ref) {
		if !isWord(ref[i]) && strings.IndexByte("./:?=&@%+,~-", ref[i]) < 0 {
			return false
		}
	}
	return !strings.Contains(ref, blockBegin)
}

func quote(ref string) string {
	if !strings.ContainsFunc(ref, func(r rune) bool { return r == '\'' || r < ' ' }) {
		return "'" + ref + "'"
	}
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "\n", `\n`, "\r", `\r`, "\t", `\t`)
	return `"` + escape.Replace(ref) + `"`
}
