package bridge_test

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/solekey/solekey/internal/bridge"
)

// FuzzLine: a line is either a message or answered by one line.
func FuzzLine(f *testing.F) {
	for _, s := range []string{initialize, `{`, `[]`, `{"jsonrpc":"2.0","id":"\u0000","method":"x","params":[[]]}`, ` {"jsonrpc":"2.0","result":{}}`, "null", `"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if len(bytes.Trim(line, " \t")) == 0 || bytes.ContainsAny(line, "\r\n") {
			return
		}
		ok, answer := bridge.Parse(line)
		if ok == (answer != nil) || answer != nil && (!json.Valid(answer) || bytes.ContainsAny(answer, "\r\n")) {
			t.Errorf("%q: %v, %q", line, ok, answer)
		}
	})
}

// FuzzEvents: a stream is read alike however it arrives, and data is what was
// in it.
func FuzzEvents(f *testing.F) {
	for _, s := range []string{"data: a\n\n", "data:a\r\ndata: b\r\n\r\n", "\ufeffevent: x\rdata: 1\r\r", ": c\nid\n\ndata\n\n", "data: cut"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all := bridge.Events(strings.NewReader(s))
		if slow := bridge.Events(&drip{s}); strings.Join(all, "\x00") != strings.Join(slow, "\x00") {
			t.Errorf("%q: %q at once, %q byte by byte", s, all, slow)
		}
		for _, e := range all {
			for l := range strings.Lines(e) {
				if !strings.Contains(s, strings.TrimSuffix(l, "\n")) {
					t.Errorf("%q: %q was not in it", s, l)
				}
			}
		}
	})
}

// drip is a reader that gives one byte at a time.
type drip struct{ rest string }

func (d *drip) Read(b []byte) (int, error) {
	n := copy(b, d.rest[:min(1, len(d.rest), len(b))])
	d.rest = d.rest[n:]
	if n == 0 {
		return strings.NewReader("").Read(b)
	}
	return n, nil
}

// FuzzMessage: what reaches the client of anything that an endpoint sends is
// one line of JSON, under the id of the request, without the bearer.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{`{"jsonrpc":"2.0","id":1,"result":{}}`, `{"jsonrpc":"2.0","id":1.0,"error":{"code":1,"message":"\n"}}`, `{"jsonrpc":"2.0","method":"x"}`, `{"jsonrpc":"2.0","id":1,"result":{"a":"` + canary + `"}}`, "{\n\"jsonrpc\":\"2.0\",\"id\":1,\n\"result\":{\n}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		line := bridge.Message([]byte(ping("1")), body, canary)
		if line == nil {
			return
		}
		var m struct {
			ID     json.RawMessage
			Method string
		}
		if err := json.Unmarshal(line, &m); err != nil || bytes.ContainsAny(line, "\r\n") || bytes.Contains(line, []byte(canary)) {
			t.Errorf("%q becomes %q: %v", body, line, err)
		}
		if m.Method == "" && string(m.ID) != "1" {
			t.Errorf("%q becomes %q, under another id", body, line)
		}
	})
}

// FuzzEndpoint: a URL is refused by one of two texts, or leads where its text
// says: over https, or to this machine, without user, query or fragment.
func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"https://vault.example.com", "http://[::1]:8080/a/b", "https://user:pass@x", "http://127.0.0.1.example.com", "https://x/?key=1#f", "HTTPS://X/%2e%2e/", "https:opaque", "http://localhost:", "https://x:99999/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := bridge.ParseEndpoint(s)
		if err != nil {
			if err != bridge.ErrURL && err != bridge.ErrScheme {
				t.Errorf("ParseEndpoint(%q) = %v", s, err)
			}
			return
		}
		u, err := url.Parse(e.String())
		if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Host == "" || u.Path == "" {
			t.Fatalf("%q leads to %q, %v", s, e, err)
		}
		addr, _ := netip.ParseAddr(u.Hostname())
		if u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost" && !addr.Unmap().IsLoopback()) {
			t.Errorf("%q leads to %q without TLS", s, e)
		}
		if again, err := bridge.ParseEndpoint(e.String()); err != nil || again != e {
			t.Errorf("%q leads to %q, which leads to %q, %v", s, e, again, err)
		}
	})
}
