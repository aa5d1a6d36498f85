package dotenv

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// The problems a file may have. They are constant texts, so that no error can
// carry a byte of a value.
const (
	problemName     = "text before = is not a variable name"
	problemQuote    = "unterminated quote"
	problemTail     = "text after the closing quote"
	problemTailFar  = "text after the closing quote, which is on a later line"
	problemBlock    = "unquoted key block; quote the whole block"
	problemNames    = "more than 1000 variables"
	problemTooLarge = "value larger than 64 KiB"
)

const (
	blockBegin = "-----BEGIN"
	blockEnd   = "-----END"
)

// scanner walks through the text once, line by line.
type scanner struct {
	text    string
	pos     int
	line    int
	file    *File
	dollars [][]int        // per entry: where a $ of its value is not escaped
	wins    map[string]int // line of the last assignment to a name
}

func (s *scanner) scan() error {
	for s.pos < len(s.text) {
		if err := s.statement(); err != nil {
			return err
		}
	}
	for i := range s.file.entries {
		s.resolve(&s.file.entries[i], s.dollars[i])
	}
	return nil
}

// resolve fills in what is known once the whole file is read.
func (s *scanner) resolve(e *Entry, dollars []int) {
	if win := s.wins[e.Name]; win != e.Line {
		e.Overridden = win
	}
	e.Refers, e.Command = expansions(e.Value, dollars, s.wins)
}

func (s *scanner) fail(problem string) error {
	return &Error{Line: s.line, Problem: problem}
}

// statement reads one line, or more if a quoted value spans them.
func (s *scanner) statement() error {
	end := lineEnd(s.text, s.pos)
	row := s.text[s.pos:end]
	if h, ok := parseHead(row); ok {
		return s.assignment(h)
	}
	text := strings.TrimFunc(row[:commentStart(row)], isBlank)
	switch {
	case strings.HasPrefix(text, blockBegin):
		return s.fail(problemBlock)
	case strings.Contains(text, "="):
		return s.fail(problemName)
	case text != "" && !isExport(text):
		s.file.others = append(s.file.others, Line{Number: s.line, Reason: NotAssignment})
	}
	s.pos = nextLine(s.text, end)
	s.line++
	return nil
}

// value is what stands behind the separator.
type value struct {
	text    string
	span    span
	dollars []int
	notes   []string
	quote   byte
	lines   int // line ends inside the quotes
}

func (s *scanner) assignment(h head) error {
	at := s.pos + h.after
	var v value
	var err error
	if open := skipBlanks(s.text, at); open < len(s.text) && strings.IndexByte("'\"`", s.text[open]) >= 0 {
		v, err = s.quoted(open)
	} else {
		v, err = s.bare(at)
	}
	if err != nil {
		return err
	}
	if len(v.text) > MaxValue {
		return s.fail(problemTooLarge)
	}
	v.span.tight = h.colon && v.span.start == at
	return s.add(h, v)
}

// add records an assignment and moves behind its last line.
func (s *scanner) add(h head, v value) error {
	s.wins[h.name] = s.line
	if len(s.wins) > MaxNames {
		return s.fail(problemNames)
	}
	s.file.entries = append(s.file.entries, Entry{
		Name: h.name, Value: v.text, Line: s.line, Quote: v.quote, Export: h.export, Notes: v.notes,
	})
	s.file.spans = append(s.file.spans, v.span)
	s.dollars = append(s.dollars, v.dollars)
	s.pos = nextLine(s.text, lineEnd(s.text, v.span.end))
	s.line += v.lines + 1
	return nil
}

// bare reads an unquoted value, which begins at the separator's end.
func (s *scanner) bare(at int) (value, error) {
	raw := s.text[at:lineEnd(s.text, at)]
	cut := commentStart(raw)
	text := strings.TrimFunc(raw[:cut], isBlank)
	if i := strings.Index(text, blockBegin); i >= 0 && !strings.Contains(text[i:], blockEnd) {
		return value{}, s.fail(problemBlock)
	}
	v := value{text: text, span: span{start: at, end: at}}
	if text == "" {
		if cut == 0 && raw != "" {
			v.notes = []string{NoteHashFirst}
		}
		return v, nil
	}
	v.span.start = skipBlanks(s.text, at)
	v.span.end = v.span.start + len(text)
	if strings.Contains(text, "#") {
		v.notes = []string{NoteHash}
	}
	for i := range len(text) {
		if text[i] == '$' {
			v.dollars = append(v.dollars, i)
		}
	}
	return v, nil
}

// quoted reads the value whose opening quote stands at open.
func (s *scanner) quoted(open int) (value, error) {
	v := value{quote: s.text[open]}
	var b strings.Builder
	for i := open + 1; i < len(s.text); {
		c := s.text[i]
		switch {
		case c == v.quote:
			v.text, v.span = b.String(), span{start: open, end: i + 1}
			return v, s.checkTail(v)
		case c == '\r' || c == '\n':
			b.WriteByte('\n')
			v.lines++
			i = nextLine(s.text, i)
			continue
		case c == '\\' && v.quote == '"' && i+1 < len(s.text):
			if d, ok := unescape(s.text[i+1]); ok {
				b.WriteByte(d)
				i += 2
				continue
			}
		case c == '$' && v.quote != '\'':
			v.dollars = append(v.dollars, b.Len())
		}
		b.WriteByte(c)
		i++
	}
	return value{}, s.fail(problemQuote)
}

// checkTail refuses text behind a closing quote. It names the line of the
// opening quote, which is where a quote is missing most of the time.
func (s *scanner) checkTail(v value) error {
	tail := strings.TrimLeftFunc(s.text[v.span.end:lineEnd(s.text, v.span.end)], isBlank)
	switch {
	case tail == "" || tail[0] == '#':
		return nil
	case v.lines > 0:
		return s.fail(problemTailFar)
	}
	return s.fail(problemTail)
}

// unescape decodes the character behind a backslash in double quotes.
func unescape(c byte) (byte, bool) {
	switch c {
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	case '\\', '"', '$':
		return c, true
	}
	return 0, false
}

// commentStart returns the index of the # that starts a comment in a row or
// bare value, or the row's length.
func commentStart(row string) int {
	for i := range len(row) {
		if row[i] != '#' {
			continue
		}
		if r, _ := utf8.DecodeLastRuneInString(row[:i]); i == 0 || isBlank(r) {
			return i
		}
	}
	return len(row)
}

// isBlank reports whether r separates words in a line. Loaders trim all of
// Unicode's white space, so that a pasted no-break space is no part of a key.
func isBlank(r rune) bool { return unicode.IsSpace(r) && r != '\n' && r != '\r' }

// startsBlank reports whether s begins with a blank.
func startsBlank(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return isBlank(r)
}

// skipBlanks returns the index of the first character at or after i that is
// no blank.
func skipBlanks(text string, i int) int {
	for i < len(text) {
		r, n := utf8.DecodeRuneInString(text[i:])
		if !isBlank(r) {
			break
		}
		i += n
	}
	return i
}
