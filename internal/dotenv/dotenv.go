// Package dotenv reads .env files without changing a byte of what it does
// not replace.
//
// [Parse] accepts the shapes that common loaders agree on and names the line
// of everything else. It never expands, never executes and never guesses a
// closing quote: a value is what stands in the file, or the file is refused.
// [File.Rewrite] puts references in the place of values and keeps every other
// byte: comments, order, export words, line ends, byte order mark, encoding.
//
// No error and no printed form of a type of this package holds a byte of a
// value. What a variable means is no matter of this package. It does no I/O
// but reading the given reader. A [File] does not change after Parse, so it
// is safe for concurrent use.
//
// # Grammar
//
//	file       = { line end } ; end is LF, CRLF or CR
//	line       = blanks | comment | "export" names | assignment | other text
//	assignment = [ "export" ] name ( [ blanks ] "=" | ":" blank ) value
//	name       = [A-Za-z_][A-Za-z0-9_.-]*
//	value      = bare | 'literal' | `literal` | "escaped"
//
// Blanks are Unicode's white space but for CR and LF. A bare value is trimmed
// and ends at its line; # starts a comment at the start of the value or after
// a blank; backslashes are text. Quoted values may span lines; line ends in
// them become LF. In double quotes \n \r \t \\ \" \$ are decoded and every
// other backslash is text. After a closing quote only blanks or a comment may
// follow. Of several assignments to one name the last wins. Text without = is
// kept and listed; text with = but without a name is an error.
//
// A file is UTF-8, with or without byte order mark, or UTF-16 with one.
package dotenv

import (
	"fmt"
	"io"
	"slices"
)

// The limits of a file.
const (
	MaxSize  = 1 << 20  // bytes of a file
	MaxNames = 1000     // different names in a file
	MaxValue = 64 << 10 // bytes of a value, as decoded to UTF-8
)

// The notes an [Entry] may carry.
const (
	// NoteHash marks a bare value that holds a # which some loaders take for
	// the start of a comment.
	NoteHash = "some loaders stop at #"
	// NoteHashFirst marks a value that is empty because # follows the = at
	// once. Some loaders read the text after it as the value.
	NoteHashFirst = "a comment starts right after =; quote a value that begins with #"
)

// NotAssignment is the [Line.Reason] of text that sets no variable.
const NotAssignment = "not an assignment"

// Error says on which line a file is malformed, and how. It holds nothing of
// the file's text.
type Error struct {
	Line    int
	Problem string
}

// Error returns LINE: PROBLEM, so that a caller need only put the file's name
// and a colon before it.
func (e *Error) Error() string { return fmt.Sprintf("%d: %s", e.Line, e.Problem) }

// File is a parsed file. It prints as [redacted].
type File struct {
	text    string // the whole file as UTF-8, without byte order mark
	enc     encoding
	entries []Entry
	spans   []span // of the value of each entry, in text
	others  []Line
}

// span is where a value stands in the text, its quotes included.
type span struct {
	start, end int
	tight      bool // the start follows a colon, which needs a blank
}

// Entry is one assignment. It prints without its value.
type Entry struct {
	// Name is the variable's name.
	Name string
	// Value is the text between the quotes or of the bare value, decoded but
	// not expanded.
	Value string
	// Line is where the assignment starts, from 1.
	Line int
	// Quote is one of ' " ` or 0 for a bare value.
	Quote byte
	// Export says that the word export stands before the name.
	Export bool
	// Overridden is the line of the assignment to the same name that wins, 0
	// for the one that wins.
	Overridden int
	// Notes are remarks for the owner, of the Note constants.
	Notes []string
	// Refers names the variables that other loaders would put into the value,
	// each once: ${NAME}, set in this file or not, and $NAME where NAME is set
	// in this file. Single quotes and \$ in double quotes switch this off.
	Refers []Ref
	// Command says that a shell would run a command, $(..), to make the value.
	Command bool
}

// Ref is a variable that a value refers to.
type Ref struct {
	Name string
	Line int // of the assignment that wins, 0 if the file does not set it
}

// Line is a line that sets no variable although it is neither blank nor a
// comment. Its text is not told: it may be the torn half of a secret.
type Line struct {
	Number int
	Reason string
}

// Parse reads a file of at most [MaxSize] bytes. It fails with an [*Error]
// for a malformed file and with the reader's error, wrapped.
func Parse(r io.Reader) (*File, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading variables: %w", err)
	}
	if len(raw) > MaxSize {
		return nil, &Error{Line: 1, Problem: "the file is larger than 1 MiB"}
	}
	text, enc, err := decode(raw)
	if err != nil {
		return nil, err
	}
	f := &File{text: text, enc: enc}
	s := scanner{text: text, line: 1, file: f, wins: map[string]int{}}
	if err := s.scan(); err != nil {
		return nil, err
	}
	return f, nil
}

// Entries returns the assignments in the order of the file, the overridden
// ones included.
func (f *File) Entries() []Entry { return slices.Clone(f.entries) }

// Others returns the lines that hold text which is no assignment. Blank
// lines, comments and export without a value are not among them.
func (f *File) Others() []Line { return slices.Clone(f.others) }
