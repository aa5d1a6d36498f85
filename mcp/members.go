package mcp

import (
	"bytes"
	"encoding/json"

	"github.com/mark3labs/mcp-go/mcp"
)

// The members of a message that say what it asks for. Of a name that stands
// twice decoders take the first, the last or both together, and ours takes
// "Method" for "method" as well. What reads a request on its way, a gateway
// with rules or a log, may so see another call than the one that is made. So
// these names stand once, and as they are written in JSON-RPC and MCP.

// watched returns the names that are read at a level of a message: of itself,
// its params, and their _meta. The first one leads to the next level.
func watched(level int) []string {
	switch level {
	case 0:
		return []string{"params", "jsonrpc", "id", "method", "result", "error"}
	case 1:
		return []string{"_meta", "name", "arguments", "uri", "cursor", "protocolVersion"}
	}
	return []string{"", mcp.MetaKeyProtocolVersion, mcp.MetaKeyClientInfo, mcp.MetaKeyClientCapabilities}
}

const lastLevel = 2

// ambiguous reports that a message, which is valid JSON, has a name twice that
// means something, or in other letters.
func ambiguous(text []byte) bool {
	m := memberWalk{text: text}
	m.blank()
	return m.here() == '{' && !m.object(0)
}

// memberWalk goes over valid JSON.
type memberWalk struct {
	text []byte
	at   int
}

func (m *memberWalk) here() byte { return m.text[m.at] }

func (m *memberWalk) blank() {
	for bytes.IndexByte([]byte(" \t\r\n"), m.here()) >= 0 {
		m.at++
	}
}

// object goes over an object. It reports whether its names, and those of the
// levels below, are clear.
func (m *memberWalk) object(level int) bool {
	m.at++
	for seen := 0; ; {
		m.blank()
		switch m.here() {
		case '}':
			m.at++
			return true
		case ',':
			m.at++
			continue
		}
		i, exact := find(watched(level), m.quoted())
		m.blank()
		m.at++ // the colon
		m.blank()
		if i >= 0 && (!exact || seen&(1<<i) != 0) {
			return false
		}
		if i >= 0 {
			seen |= 1 << i
		}
		if i != 0 || level == lastLevel || m.here() != '{' {
			m.value()
		} else if !m.object(level + 1) {
			return false
		}
	}
}

// quoted goes over a text and returns what is between its quotes, as it is
// written.
func (m *memberWalk) quoted() []byte {
	m.at++
	from := m.at
	for m.here() != '"' {
		if m.here() == '\\' {
			m.at++
		}
		m.at++
	}
	m.at++
	return m.text[from : m.at-1]
}

// value goes over a value.
func (m *memberWalk) value() {
	for open := 0; m.at < len(m.text); {
		switch m.here() {
		case '"':
			m.quoted()
			if open == 0 {
				return
			}
			continue
		case '{', '[':
			open++
		case '}', ']':
			if open--; open < 0 {
				return
			}
			if open == 0 {
				m.at++
				return
			}
		case ',':
			if open == 0 {
				return
			}
		}
		m.at++
	}
}

// find returns which of some names a quoted one is, as a decoder that does not
// mind the case sees it, and whether it is so exactly; -1 if it is none.
func find(names []string, quoted []byte) (i int, exact bool) {
	if bytes.IndexByte(quoted, '\\') >= 0 {
		var plain string
		if json.Unmarshal(append(append([]byte{'"'}, quoted...), '"'), &plain) != nil {
			return -1, false
		}
		quoted = []byte(plain)
	}
	for i, name := range names {
		if name != "" && bytes.EqualFold(quoted, []byte(name)) {
			return i, string(quoted) == name
		}
	}
	return -1, false
}
