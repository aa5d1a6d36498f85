package bridge

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
)

// firstModern is the first revision without a handshake, whose requests carry
// their version, and whose method and name are repeated in headers.
const firstModern = "2026-07-28"

func modern(version string) bool { return version >= firstModern }

// meta is what the headers of a request are made of.
type meta struct{ version, name string }

// meta reads it from the parameters. What has another shape is left out, and
// the endpoint says what is wrong with it.
func (m message) meta() meta {
	var p struct {
		Meta struct {
			Version string `json:"io.modelcontextprotocol/protocolVersion"`
		} `json:"_meta"`
		Name string `json:"name"`
		URI  string `json:"uri"`
	}
	_ = json.Unmarshal(m.Params, &p)
	switch m.Method {
	case methodCall, "prompts/get":
		return meta{p.Meta.Version, p.Name}
	case "resources/read":
		return meta{p.Meta.Version, p.URI}
	}
	return meta{version: p.Meta.Version}
}

// describe sets the headers that tell proxies what a request is about. A
// request of a modern revision names its own version; any other goes under
// the negotiated one, if there is one.
func (m message) describe(h http.Header, negotiated string) {
	x := m.meta()
	if !modern(x.version) {
		set(h, "Mcp-Protocol-Version", negotiated)
		return
	}
	set(h, "Mcp-Protocol-Version", x.version)
	set(h, "Mcp-Method", m.Method)
	set(h, "Mcp-Name", encode(x.name))
}

// set sets a header to what fits in one.
func set(h http.Header, name, value string) {
	if value != "" && len(value) <= 4096 && visible(value) {
		h.Set(name, value)
	}
}

// encode writes a name as a header carries it: as it stands, or in Base64 if
// it has blanks around it, is not printable ASCII, or looks encoded already.
func encode(s string) string {
	const open, end = "=?base64?", "?="
	if s == strings.Trim(s, " \t") && visible(s) && !(strings.HasPrefix(s, open) && strings.HasSuffix(s, end)) {
		return s
	}
	return open + base64.StdEncoding.EncodeToString([]byte(s)) + end
}

// visible reports that s is printable ASCII.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
