package dotenv_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/internal/dotenv"
)

// plainEntry is an entry that can be compared and shown.
type plainEntry struct {
	Name, Value string
	Line        int
	Quote       string
	Export      bool
	Overridden  int
	Notes       []string
	Refers      []dotenv.Ref
	Command     bool
}

func plain(es []dotenv.Entry) []plainEntry {
	var out []plainEntry
	for _, e := range es {
		p := plainEntry{
			Name: e.Name, Value: e.Value, Line: e.Line, Export: e.Export,
			Overridden: e.Overridden, Notes: e.Notes, Refers: e.Refers, Command: e.Command,
		}
		if e.Quote != 0 {
			p.Quote = string(e.Quote)
		}
		out = append(out, p)
	}
	return out
}

func parse(t testing.TB, in string) *dotenv.File {
	t.Helper()
	f, err := dotenv.Parse(strings.NewReader(in))
	if err != nil {
		t.Fatalf("Parse(%q) = %v", in, err)
	}
	return f
}

// one is the common case: a single entry A.
func one(value string) []plainEntry { return []plainEntry{{Name: "A", Value: value, Line: 1}} }

func quoted(q, value string) []plainEntry {
	return []plainEntry{{Name: "A", Value: value, Line: 1, Quote: q}}
}

func noted(note, value string) []plainEntry {
	return []plainEntry{{Name: "A", Value: value, Line: 1, Notes: []string{note}}}
}

func exported(value string) []plainEntry {
	return []plainEntry{{Name: "A", Value: value, Line: 1, Export: true}}
}

func refers(quote, value string, refs ...dotenv.Ref) []plainEntry {
	return []plainEntry{{Name: "A", Value: value, Line: 1, Quote: quote, Refers: refs}}
}

func command(quote, value string) []plainEntry {
	return []plainEntry{{Name: "A", Value: value, Line: 1, Quote: quote, Command: true}}
}

func withB(a []plainEntry, b string, line int) []plainEntry {
	return append(a, plainEntry{Name: "B", Value: b, Line: line})
}

const (
	begin = "-----BEGIN PRIVATE KEY-----"
	end   = "-----END PRIVATE KEY-----"
	block = begin + "\nQUJD\n" + end
)

// shapes is the grammar by example. Where loaders in wide use disagree, the
// comment says so: js is motdotla/dotenv 17, py python-dotenv, go godotenv 1.5.
var shapes = []struct {
	name   string
	in     string
	want   []plainEntry
	others []int
}{
	{name: "empty file", in: ""},
	{name: "only a line end", in: "\n"},
	{name: "only comments and blanks", in: "# a\n\n   \n\t# b = c\n"},
	{name: "plain", in: "A=v", want: one("v")},
	{name: "final newline", in: "A=v\n", want: one("v")},
	{name: "blanks around =", in: "A = v", want: one("v")},
	{name: "tabs around =", in: "A\t=\tv\t", want: one("v")},
	{name: "form feed is a blank", in: "A=\fv\v", want: one("v")},
	{name: "indented", in: "   A=v", want: one("v")},
	{name: "colon", in: "A: v", want: one("v")},
	{name: "colon and tab", in: "A:\tv", want: one("v")},
	{name: "colon at line end", in: "A:", want: one("")},
	{name: "colon, value with =", in: "A: b=c", want: one("b=c")},
	{name: "export", in: "export A=v", want: exported("v")},
	{name: "export, blanks", in: "  export \t A = v", want: exported("v")},
	{name: "export, colon", in: "export A: v", want: exported("v")},
	{name: "variable named export", in: "export=v", want: []plainEntry{{Name: "export", Value: "v", Line: 1}}},
	{name: "variable named export, blanks", in: "export = v", want: []plainEntry{{Name: "export", Value: "v", Line: 1}}},
	{name: "variable named exported", in: "exported=v", want: []plainEntry{{Name: "exported", Value: "v", Line: 1}}},
	{name: "exporting export", in: "export export=v", want: []plainEntry{{Name: "export", Value: "v", Line: 1, Export: true}}},
	{name: "all name characters", in: "_a.B-9=v", want: []plainEntry{{Name: "_a.B-9", Value: "v", Line: 1}}},
	{name: "lower case name", in: "abc=v", want: []plainEntry{{Name: "abc", Value: "v", Line: 1}}},
	{name: "export without value", in: "export A\nexport A B\n"},
	{name: "other text", in: "hello\nA=v\nsome words # x=y\n", want: []plainEntry{{Name: "A", Value: "v", Line: 2}}, others: []int{1, 3}},
	{name: "other text, ini section", in: "[default]\nA=v\n", want: []plainEntry{{Name: "A", Value: "v", Line: 2}}, others: []int{1}},
	{name: "other text, colon without blank", in: "A:v\n", others: []int{1}},
	{name: "other text, blank before colon", in: "A : v\n", others: []int{1}},
	{name: "other text, export of no name", in: "export 1A\nexport\n", others: []int{1, 2}},

	{name: "empty", in: "A=", want: one("")},
	{name: "empty with blanks", in: "A =  \n", want: one("")},
	{name: "empty and comment", in: "A= # c", want: one("")},
	{name: "empty, comment at once", in: "A=#c", want: noted(dotenv.NoteHashFirst, "")}, // py, go: #c
	{name: "value with =", in: "A=b=c==", want: one("b=c==")},
	{name: "second = belongs to the value", in: "A==v", want: one("=v")},
	{name: "blanks inside", in: "A= b  c ", want: one("b  c")},
	{name: "comment", in: "A=v # c", want: one("v")},
	{name: "comment after tab", in: "A=v\t#c", want: one("v")},
	{name: "two comments", in: "A=v # c # d", want: one("v")},
	{name: "hash inside", in: "A=a#b", want: noted(dotenv.NoteHash, "a#b")}, // js: a
	{name: "hash inside, then comment", in: "A=a#b #c", want: noted(dotenv.NoteHash, "a#b")},
	{name: "hash at the end", in: "A=a#", want: noted(dotenv.NoteHash, "a#")},
	{name: "backslashes are text", in: `A=C:\new\table`, want: one(`C:\new\table`)},
	{name: "backslash at line end is text", in: "A=a\\\nB=b", want: withB(one(`a\`), "b", 2)},
	{name: "quote inside", in: `A=don't "x"`, want: one(`don't "x"`)},
	{name: "quote at the end", in: `A=5"`, want: one(`5"`)},
	{name: "json", in: `A={"a":1}`, want: one(`{"a":1}`)},
	{name: "no export of several", in: "export A=1 B=2", want: exported("1 B=2")},
	{name: "unicode", in: "A=pässwörd→", want: one("pässwörd→")},
	{name: "no-break space is a blank", in: "A=\u00a0v\u00a0", want: one("v")},
	{name: "no-break spaces everywhere", in: "\u00a0export\u00a0A\u00a0=\u00a0\"v\"\u00a0\u00a0#c\n\u3000#d", want: []plainEntry{{Name: "A", Value: "v", Line: 1, Quote: `"`, Export: true}}},
	{name: "mark inside is text", in: "A=\ufeffv", want: one("\ufeffv")},
	{name: "line separator is text", in: "A=a\u2028b", want: one("a\u2028b")},
	{name: "semicolon", in: "A=a;b", want: one("a;b")},

	{name: "single", in: `A='v'`, want: quoted("'", "v")},
	{name: "single, no escapes", in: `A='a\n\'`, want: quoted("'", `a\n\`)}, // py decodes \' and \\
	{name: "single keeps blanks", in: `A='  v '`, want: quoted("'", "  v ")},
	{name: "single keeps hash", in: `A='a #b'`, want: quoted("'", "a #b")},
	{name: "single, other quotes", in: "A='\"`'", want: quoted("'", "\"`")},
	{name: "single empty", in: `A=''`, want: quoted("'", "")},
	{name: "single, lines", in: "A='a\nb\n'\nB=c", want: withB(quoted("'", "a\nb\n"), "c", 4)},
	{name: "single, reference is text", in: "A='${B} $B $(ls)'\nB=b", want: withB(quoted("'", "${B} $B $(ls)"), "b", 2)},
	{name: "backtick", in: "A=`it's \"v\"`", want: quoted("`", `it's "v"`)}, // py, go: no quote
	{name: "backtick, no escapes", in: "A=`a\\n`", want: quoted("`", `a\n`)},
	{name: "backtick, lines", in: "A=`a\nb`", want: quoted("`", "a\nb")},
	{name: "double", in: `A="v"`, want: quoted(`"`, "v")},
	{name: "double empty", in: `A=""`, want: quoted(`"`, "")},
	{name: "double escapes", in: `A="a\nb\rc\td\\e\"f\$g"`, want: quoted(`"`, "a\nb\rc\td\\e\"f$g")}, // js: \n \r only
	{name: "double, other escapes stay", in: `A="\a\'\x41\u0041\ "`, want: quoted(`"`, `\a\'\x41\u0041\ `)},
	{name: "double, escaped backslash before n", in: `A="\\n"`, want: quoted(`"`, `\n`)},
	{name: "double, escaped backslash at the end", in: `A="C:\\"`, want: quoted(`"`, `C:\`)},
	{name: "double, lines", in: "A=\"a\nb\"", want: quoted(`"`, "a\nb")},
	{name: "double, backslash before line end", in: "A=\"a\\\nb\"", want: quoted(`"`, "a\\\nb")}, // a shell joins
	{name: "double, hash and equals", in: "A=\"x\n#y\nZ=1\"", want: quoted(`"`, "x\n#y\nZ=1")},
	{name: "double after blanks", in: `A =   "v"  `, want: quoted(`"`, "v")},
	{name: "comment after quote", in: `A="v" # c`, want: quoted(`"`, "v")},
	{name: "comment at once after quote", in: `A='v'#c`, want: quoted("'", "v")},
	{name: "quote with colon", in: `A: "v"`, want: quoted(`"`, "v")},
	{name: "quoted block", in: "A=\"" + block + "\"\n", want: quoted(`"`, block)},
	{name: "escaped block on one line", in: "A=\"" + strings.ReplaceAll(block, "\n", `\n`) + "\"\n", want: quoted(`"`, block)},
	{name: "bare block on one line", in: "A=" + strings.ReplaceAll(block, "\n", `\n`), want: one(strings.ReplaceAll(block, "\n", `\n`))},
	{name: "block in a comment", in: "# " + begin + "\nA=v", want: []plainEntry{{Name: "A", Value: "v", Line: 2}}},

	{name: "crlf", in: "A=v\r\nB=w\r\n", want: withB(one("v"), "w", 2)},
	{name: "crlf in quotes", in: "A=\"a\r\nb\"\r\nB=w\r\n", want: withB(quoted(`"`, "a\nb"), "w", 3)},
	{name: "lone cr", in: "A=v\rB=w\r", want: withB(one("v"), "w", 2)},
	{name: "lone cr in quotes", in: "A='a\rb'\rB=w", want: withB(quoted("'", "a\nb"), "w", 3)},
	{name: "mixed line ends", in: "A=v\r\n\n\rB=w", want: withB(one("v"), "w", 4)},
	{name: "utf-8 mark", in: "\ufeffA=v", want: one("v")},
	{name: "utf-8 mark alone", in: "\ufeff"},

	{name: "duplicate", in: "A=1\nA=2", want: []plainEntry{{Name: "A", Value: "1", Line: 1, Overridden: 2}, {Name: "A", Value: "2", Line: 2}}},
	{name: "triplicate", in: "A=1\nA=2\nB=x\nA=3", want: []plainEntry{
		{Name: "A", Value: "1", Line: 1, Overridden: 4}, {Name: "A", Value: "2", Line: 2, Overridden: 4},
		{Name: "B", Value: "x", Line: 3}, {Name: "A", Value: "3", Line: 4},
	}},
	{name: "names are case-sensitive", in: "A=1\na=2", want: append(one("1"), plainEntry{Name: "a", Value: "2", Line: 2})},

	{name: "braced reference", in: "A=x${B}y\nB=b", want: withB(refers("", "x${B}y", dotenv.Ref{Name: "B", Line: 2}), "b", 2)},
	{name: "braced reference, not set", in: "A=${HOME}/x", want: refers("", "${HOME}/x", dotenv.Ref{Name: "HOME"})},
	{name: "braced reference, default", in: "A=${B:-x}", want: refers("", "${B:-x}", dotenv.Ref{Name: "B"})},
	{name: "braced reference, default with -", in: "A=${B-x}", want: refers("", "${B-x}", dotenv.Ref{Name: "B"})},
	{name: "braced reference, dotted name", in: "A=${b.c}\nb.c=1", want: append(refers("", "${b.c}", dotenv.Ref{Name: "b.c", Line: 2}), plainEntry{Name: "b.c", Value: "1", Line: 2})},
	{name: "braced reference, length", in: `A="${#B}"`, want: refers(`"`, "${#B}", dotenv.Ref{Name: "B"})},
	{name: "braced reference in double", in: `A="${B}"`, want: refers(`"`, "${B}", dotenv.Ref{Name: "B"})},
	{name: "braced reference in backticks", in: "A=`${B}`", want: refers("`", "${B}", dotenv.Ref{Name: "B"})},
	{name: "escaped reference in double", in: `A="\${B} \$(ls)"`, want: quoted(`"`, "${B} $(ls)")},
	{name: "reference after escaped backslash", in: `A="\\${B}"`, want: refers(`"`, `\${B}`, dotenv.Ref{Name: "B"})},
	{name: "backslash does not escape in bare", in: `A=\${B}`, want: refers("", `\${B}`, dotenv.Ref{Name: "B"})}, // js escapes
	{name: "reference to itself", in: "A=$A:x", want: refers("", "$A:x", dotenv.Ref{Name: "A", Line: 1})},
	{name: "dollar name set here", in: "A=x$B-y\nB=b", want: withB(refers("", "x$B-y", dotenv.Ref{Name: "B", Line: 2}), "b", 2)},
	{name: "dollar name not set here", in: "A=x$HOME", want: one("x$HOME")},
	{name: "dollar name is the longest", in: "A=$BC\nB=b", want: withB(one("$BC"), "b", 2)},
	{name: "dollars are text", in: "A=pa$$w0rd$1$", want: one("pa$$w0rd$1$")},
	{name: "open brace is text", in: "A=a${B", want: one("a${B")},
	{name: "braces without a name are text", in: "A=${}${1}${ x}", want: one("${}${1}${ x}")},
	{name: "references once each", in: "A=$B${B}${C}$B\nB=b", want: withB(refers("", "$B${B}${C}$B", dotenv.Ref{Name: "B", Line: 2}, dotenv.Ref{Name: "C"}), "b", 2)},
	{name: "command", in: "A=$(cat x)", want: command("", "$(cat x)")},
	{name: "command in double", in: `A="x$(cat y)"`, want: command(`"`, "x$(cat y)")},
	{name: "open parenthesis is text", in: "A=a$(b", want: one("a$(b")},
}

func TestShapesAreReadAsDocumented(t *testing.T) {
	if len(shapes) < 80 {
		t.Errorf("%d shapes, want 80", len(shapes))
	}
	for _, tt := range shapes {
		t.Run(tt.name, func(t *testing.T) {
			f := parse(t, tt.in)
			if diff := cmp.Diff(tt.want, plain(f.Entries())); diff != "" {
				t.Errorf("Entries of %q (-want +got):\n%s", tt.in, diff)
			}
			var others []int
			for _, l := range f.Others() {
				others = append(others, l.Number)
				if l.Reason != dotenv.NotAssignment {
					t.Errorf("Reason = %q, want %q", l.Reason, dotenv.NotAssignment)
				}
			}
			if diff := cmp.Diff(tt.others, others); diff != "" {
				t.Errorf("Others of %q (-want +got):\n%s", tt.in, diff)
			}
		})
	}
}

// TestEncodingsAreReadAlike stores every shape in every encoding and with
// every line end.
func TestEncodingsAreReadAlike(t *testing.T) {
	for _, tt := range shapes {
		text := strings.TrimPrefix(tt.in, "\ufeff")
		for name, raw := range map[string][]byte{
			"utf-8 mark": []byte("\ufeff" + text),
			"utf-16le":   toUTF16(text, binary.LittleEndian),
			"utf-16be":   toUTF16(text, binary.BigEndian),
		} {
			f, err := dotenv.Parse(bytes.NewReader(raw))
			if err != nil {
				t.Errorf("%s, %s: %v", tt.name, name, err)
				continue
			}
			if diff := cmp.Diff(tt.want, plain(f.Entries())); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", tt.name, name, diff)
			}
			if got := f.Rewrite(nil); !bytes.Equal(got, raw) {
				t.Errorf("%s, %s: Rewrite(nil) = %q, want %q", tt.name, name, got, raw)
			}
		}
	}
}

func toUTF16(text string, order binary.ByteOrder) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune("\ufeff" + text)) {
		var b [2]byte
		order.PutUint16(b[:], u)
		out = append(out, b[:]...)
	}
	return out
}

// canary stands for a secret in malformed files.
const canary = "CANARY7qzW"

var malformed = []struct {
	name, in, want string
}{
	{"no name", "=" + canary, "1: text before = is not a variable name"},
	{"name with a blank", "B=1\n" + canary + " x=1", "2: text before = is not a variable name"},
	{"name with a digit first", "1A=" + canary, "1: text before = is not a variable name"},
	{"name with a dollar", "$env:A=" + canary, "1: text before = is not a variable name"},
	{"plus before =", "A+=" + canary, "1: text before = is not a variable name"},
	{"list item", "- A=" + canary, "1: text before = is not a variable name"},
	{"colon without blank, then =", "http://" + canary + "?a=b", "1: text before = is not a variable name"},
	{"export of a bad name", "export 1=" + canary, "1: text before = is not a variable name"},
	{"mark twice", "\ufeff\ufeffA=" + canary, "1: text before = is not a variable name"},
	{"unterminated single", "A=1\nB='" + canary + "\nC=2\n", "2: unterminated quote"},
	{"unterminated double", "A=\"" + canary, "1: unterminated quote"},
	{"unterminated backtick", "\n\nA=`" + canary, "3: unterminated quote"},
	{"quote ended by a backslash", `A="` + canary + `\"`, "1: unterminated quote"},
	{"quote character alone", "A='", "1: unterminated quote"},
	{"text after quote", "A='a'" + canary, "1: text after the closing quote"},
	{"two quotes", `A="a" "` + canary + `"`, "1: text after the closing quote"},
	{"shell quoting of a quote", `A='it'\''s` + canary + `'`, "1: text after the closing quote"},
	{"quote closed by a later line's", "A=\"" + canary + "\nB=\"x\"\n", "1: text after the closing quote, which is on a later line"},
	{"bare block", "A=" + begin + "\n" + canary + "\n" + end, "1: unquoted key block; quote the whole block"},
	{"bare block under a comment", "# k\nA=" + begin + " # x\n" + canary, "2: unquoted key block; quote the whole block"},
	{"block on the line after the name", "A=\n" + begin + "\n" + canary + "==\n" + end, "2: unquoted key block; quote the whole block"},
	{"nul", "A=1\nB=" + canary + "\x00", "2: NUL character; save the file as UTF-8"},
	{"utf-16 without mark", string(toUTF16("A="+canary, binary.LittleEndian)[2:]), "1: NUL character; save the file as UTF-8"},
	{"utf-32", "\xff\xfe\x00\x00A\x00\x00\x00=\x00\x00\x00", "1: NUL character; save the file as UTF-8"},
	{"latin-1", "A=1\r\nB=" + canary + "\xe4\r\n", "2: not UTF-8; save the file as UTF-8"},
	{"surrogate in utf-8", "A=" + canary + "\xed\xa0\x80", "1: not UTF-8; save the file as UTF-8"},
	{"overlong utf-8", "A=" + canary + "\xc0\xaf", "1: not UTF-8; save the file as UTF-8"},
	{"utf-16, odd length", string(toUTF16("A=1\nB="+canary, binary.BigEndian)) + "x", "2: malformed UTF-16"},
	{"utf-16, lone high surrogate", string(toUTF16("A=1\n\nB="+canary, binary.LittleEndian)) + "\x00\xd8", "3: malformed UTF-16"},
	{"utf-16, lone low surrogate", string(toUTF16("A="+canary, binary.BigEndian)) + "\xdc\x00\x00A", "1: malformed UTF-16"},
	{"value too large", "B=1\nA=" + canary + strings.Repeat("x", dotenv.MaxValue), "2: value larger than 64 KiB"},
	{"quoted value too large", "A='\n" + canary + strings.Repeat("x", dotenv.MaxValue) + "'", "1: value larger than 64 KiB"},
	{"file too large", "A=" + canary + strings.Repeat("\n", dotenv.MaxSize), "1: the file is larger than 1 MiB"},
	{"too many names", many(dotenv.MaxNames) + "LAST=" + canary, "1001: more than 1000 variables"},
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "N%d=v\n", i)
	}
	return b.String()
}

func TestMalformedFileNamesItsLineAndNoValue(t *testing.T) {
	if !leaks("1: "+canary[2:], canary) { // the control
		t.Fatal("a leak would not be found")
	}
	for _, tt := range malformed {
		t.Run(tt.name, func(t *testing.T) {
			f, err := dotenv.Parse(strings.NewReader(tt.in))
			if err == nil || f != nil {
				t.Fatalf("Parse = %v, %v, want nil and an error", f, err)
			}
			var e *dotenv.Error
			if !errors.As(err, &e) || err.Error() != tt.want {
				t.Errorf("Parse = %q, want *Error %q", err, tt.want)
			}
			if leaks(fmt.Sprintf("%v %+v %#v %q", err, err, err, err), canary) {
				t.Errorf("the error holds a part of the value: %v", err)
			}
		})
	}
}

// leaks reports whether text holds four bytes in a row of a secret.
func leaks(text, secret string) bool {
	for i := 0; i+4 <= len(secret); i++ {
		if strings.Contains(text, secret[i:i+4]) {
			return true
		}
	}
	return false
}

func TestLimitsAreInclusive(t *testing.T) {
	for name, in := range map[string]string{
		"value":         "A=" + strings.Repeat("x", dotenv.MaxValue),
		"decoded value": "A=\"" + strings.Repeat(`\n`, dotenv.MaxValue) + "\"",
		"names":         many(dotenv.MaxNames) + "N0=again\n",
		"size":          "A=v" + strings.Repeat("\n", dotenv.MaxSize-3),
	} {
		if _, err := dotenv.Parse(strings.NewReader(in)); err != nil {
			t.Errorf("%s at its limit: Parse = %v, want nil", name, err)
		}
	}
}

func TestReaderErrorIsWrapped(t *testing.T) {
	want := errors.New("disk on fire")
	if _, err := dotenv.Parse(iotest.ErrReader(want)); !errors.Is(err, want) {
		t.Errorf("Parse = %v, want %v", err, want)
	}
}

func TestEntriesAreACopy(t *testing.T) {
	f := parse(t, "A=v\nx\n")
	f.Entries()[0].Value = "changed"
	f.Others()[0].Number = 99
	if f.Entries()[0].Value != "v" || f.Others()[0].Number != 2 {
		t.Error("changing a result changed the file")
	}
}

func TestNothingPrintsAValue(t *testing.T) {
	f := parse(t, "A="+canary)
	e := f.Entries()[0]
	for _, v := range []any{f, *f, e, &e, f.Entries(), map[string]any{"f": f, "e": e}} {
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "v", v)
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "v", v)
		js, err := json.Marshal(v)
		if err != nil {
			t.Errorf("Marshal(%T) = %v", v, err)
		}
		text := fmt.Sprintf("%v %+v %#v %s %q %x %d", v, v, v, v, v, v, v) + log.String() + string(js)
		if strings.Contains(text, canary) || strings.Contains(text, fmt.Sprintf("%x", canary)) {
			t.Errorf("%T prints its value", v)
		}
	}
	// The control: the value is there to be printed.
	if got := fmt.Sprint(e.Value); got != canary {
		t.Errorf("Value = %q, want %q", got, canary)
	}
	if got, want := e.String(), "A (line 1)"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
}

func BenchmarkParse(b *testing.B) {
	var file strings.Builder
	for i := range 50 {
		fmt.Fprintf(&file, "# service %d\nSERVICE_%d_KEY=sk-proj-%040d\nexport SERVICE_%d_URL=\"https://${HOST}/v%d\" # url\n\n", i, i, i, i, i)
	}
	in := file.String()
	if n := strings.Count(in, "\n"); n != 200 {
		b.Fatalf("%d lines, want 200", n)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if _, err := dotenv.Parse(strings.NewReader(in)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseLargest(b *testing.B) {
	line := "A=" + strings.Repeat("${", 30_000) + "\n"
	in := strings.Repeat(line, dotenv.MaxSize/len(line))
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if _, err := dotenv.Parse(strings.NewReader(in)); err != nil {
			b.Fatal(err)
		}
	}
}
