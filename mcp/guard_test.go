package mcp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// raw is a request as it stands on the wire.
type raw struct {
	method, target string
	header         []string // lines
	body           string
}

// with returns r with a header line in place of those of the same name.
func (r raw) with(line string) raw {
	name, _, _ := strings.Cut(line, ":")
	return r.without(name).plus(line)
}

func (r raw) without(name string) raw {
	r.header = slices.DeleteFunc(slices.Clone(r.header), func(l string) bool { return strings.HasPrefix(l, name+":") })
	return r
}

// plus returns r with one more header line.
func (r raw) plus(lines ...string) raw {
	r.header = append(slices.Clone(r.header), lines...)
	return r
}

func (r raw) by(method string) raw { r.method = method; return r }
func (r raw) to(target string) raw { r.target = target; return r }
func (r raw) query(q string) raw {
	r.target += map[bool]string{true: "&", false: "?"}[strings.Contains(r.target, "?")] + q
	return r
}
func (r raw) saying(body string) raw  { r.body = body; return r }
func (r raw) bearer(token string) raw { return r.with("Authorization: Bearer " + token) }
func (r raw) key(k identity.Key) raw  { return r.bearer(k.Reveal()) }
func (r raw) origin(o ...string) raw  { return r.without("Origin").plus(prefixed("Origin: ", o)...) }
func (r raw) host(h string) raw       { return r.with("Host: " + h) }
func prefixed(p string, l []string) []string {
	var all []string
	for _, s := range l {
		all = append(all, p+s)
	}
	return all
}

// send sends r on a connection of its own. Of an event stream it reads the
// first event only.
func (s *site) send(t testing.TB, r raw) answered {
	t.Helper()
	conn, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n%s\r\n", r.method, r.target, strings.Join(append(slices.Clone(r.header), ""), "\r\n"))
	b.WriteString(r.body)
	if _, err := io.WriteString(conn, b.String()); err != nil {
		t.Fatal(err)
	}
	return readAnswer(t, conn, r.method)
}

func readAnswer(t testing.TB, conn io.Reader, method string) answered {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	a := answered{status: resp.StatusCode, header: resp.Header}
	if resp.StatusCode == http.StatusOK && resp.Header.Get("Content-Type") == "text/event-stream" && resp.ContentLength < 0 {
		e, err := nextEvent(bufio.NewReader(resp.Body))
		if err != nil {
			t.Fatalf("reading the first event: %v", err)
		}
		a.body = e.data
		return a // closing its body would wait for the end of it
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	a.body = string(text)
	return a
}

// doors returns a request that is served, for every path and era.
func (s *site) doors(t testing.TB, k identity.Key) map[string]raw {
	t.Helper()
	st := s.stream(t, k)
	post := func(target, body string) raw {
		r := raw{method: "POST", target: target, body: body}
		return r.plus("Host: localhost", "Content-Type: application/json", "Connection: close", fmt.Sprintf("Content-Length: %d", len(body))).key(k)
	}
	modern := post("/mcp", request(1, "tools/call", eras["modern"](get("openai"))))
	return map[string]raw{
		"/mcp legacy": post("/mcp", call(1, "get_secret", `{"label":"openai"}`)),
		"/mcp modern": modern.plus("MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call", "Mcp-Name: get_secret"),
		"/message":    post(st.path, call(1, "get_secret", `{"label":"openai"}`)),
		"/sse":        raw{method: "GET", target: "/sse"}.plus("Host: localhost", "Connection: close").key(k),
	}
}

// opened reports whether a request was served.
func (a answered) opened() bool {
	return a.status == 200 && (strings.Contains(a.body, "CANARY-value") || strings.HasPrefix(a.body, "/message?")) || a.status == 202 && a.body == ""
}

// proper checks what every answer has and lacks.
func proper(t *testing.T, name string, a answered) {
	t.Helper()
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: headers %v lack no-store or nosniff", name, a.header)
	}
	for h := range a.header {
		if strings.HasPrefix(h, "Access-Control-") || h == "Server" || h == "X-Powered-By" || h == "Mcp-Session-Id" || h == "Set-Cookie" {
			t.Errorf("%s: header %s", name, h)
		}
	}
	if challenge := a.header.Values("WWW-Authenticate"); a.status == 401 && !slices.Equal(challenge, []string{`Bearer realm="solekey"`}) || a.status != 401 && challenge != nil {
		t.Errorf("%s: %d with WWW-Authenticate %q", name, a.status, challenge)
	}
	if (a.status == 405) != (a.header.Get("Allow") != "") {
		t.Errorf("%s: %d with Allow %q", name, a.status, a.header.Get("Allow"))
	}
	if (a.status == 429 || a.status == 503) != (a.header.Get("Retry-After") != "") {
		t.Errorf("%s: %d with Retry-After %q", name, a.status, a.header.Get("Retry-After"))
	}
	if strings.Contains(a.body, "goroutine ") || strings.Contains(a.body, ".go:") {
		t.Errorf("%s: a stack in %s", name, a.body)
	}
	if strings.HasPrefix(a.header.Get("Content-Type"), "application/json") && a.body != "" && !json.Valid([]byte(a.body)) {
		t.Errorf("%s: no JSON: %s", name, a.body)
	}
}

// estate is a site with the keys that the guard has to tell apart.
type estate struct {
	*site
	key, recovery, foreign, unknown, revoked, expired, closed identity.Key
}

func newEstate(t *testing.T, o mcp.HTTPOptions) *estate {
	t.Helper()
	h, other := newHouse(t), newHouse(t)
	e := &estate{key: h.agent("a", identity.Grant{}), foreign: other.agent("a", identity.Grant{}), unknown: identity.NewKey(identity.Agent, identity.NewID())}
	h.put(e.key, secret("openai", "CANARY-value"))
	other.put(e.foreign, secret("openai", "CANARY-foreign"))
	e.recovery = identity.NewKey(identity.Recovery, identity.NewID())
	e.revoked = h.agent("revoked", identity.Grant{})
	if _, err := h.keeper.Revoke(t.Context(), e.revoked.Identity(), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	e.expired = h.agent("expired", identity.Grant{Scopes: identity.DefaultScopes, Expires: noon.Add(time.Second)})
	h.pass(time.Second)
	var err error
	if e.closed, err = h.keeper.AddKey(t.Context(), e.key.Identity(), e.key, "closed", identity.Grant{Scopes: identity.DefaultScopes}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.keeper.Revoke(t.Context(), e.key.Identity(), vault.Revocation{Slots: []identity.SlotID{e.closed.Slot()}}); err != nil {
		t.Fatal(err)
	}
	e.site = h.open(t, o)
	return e
}

// rootText is root text on one line.
func (e *estate) rootText() string { return strings.Join(strings.Fields(e.root.Reveal()), "") }

func TestGuardTurnsAwayHostileRequests(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true, Origins: []string{"https://app.example.com"}, Rate: -1})
	k := e.key.Reveal()
	typo := k[:len(k)-1] + map[bool]string{true: "b", false: "a"}[k[len(k)-1] == 'a']
	type edit func(raw) raw
	type hostile struct {
		word   string // of the refusal; empty: the server of net/http answers
		status int
		edits  map[string]edit
	}
	table := map[string]hostile{
		"host": {"forbidden", 403, map[string]edit{}},
		"host that is none": {"", 400, map[string]edit{
			"absent": func(r raw) raw { return r.without("Host") }, "two": func(r raw) raw { return r.plus("Host: evil.com") },
			"with a blank": func(r raw) raw { return r.host("localhost evil.com") }, "with a user": func(r raw) raw { return r.host("localhost@evil.com") }, "with a slash": func(r raw) raw { return r.host("localhost/evil.com") },
		}},
		"origin": {"forbidden", 403, map[string]edit{}},
		"method": {"bad_request", 405, map[string]edit{}},
		"leaked": {"bad_request", 400, map[string]edit{
			"key in the query of a page":       func(r raw) raw { return r.by("DELETE").query("key=" + k) },
			"key in the query":                 func(r raw) raw { return r.query("key=" + k) },
			"key in the query, no header":      func(r raw) raw { return r.without("Authorization").query("api_key=" + k) },
			"percent-encoded in the query":     func(r raw) raw { return r.query("key=" + strings.NewReplacer("_", "%5F", "s", "%73").Replace(k)) },
			"encoded beside a broken escape":   func(r raw) raw { return r.query("a=%zz&key=" + strings.ReplaceAll(k, "_", "%5F")) },
			"encoded in a cookie":              func(r raw) raw { return r.plus("Cookie: key=" + strings.ReplaceAll(k, "_", "%5F")) },
			"as the name of a parameter":       func(r raw) raw { return r.query(k) },
			"another key in the query":         func(r raw) raw { return r.query("key=" + e.foreign.Reveal()) },
			"recovery key in the query":        func(r raw) raw { return r.query("key=" + e.recovery.Reveal()) },
			"root text in the query":           func(r raw) raw { return r.query("key=" + e.rootText()) },
			"key in a cookie":                  func(r raw) raw { return r.plus("Cookie: key=" + k) },
			"key in a second cookie":           func(r raw) raw { return r.plus("Cookie: a=b", "Cookie: c=d; key="+k) },
			"key in a cookie, no header":       func(r raw) raw { return r.without("Authorization").plus("Cookie: " + k) },
			"key in another path":              func(r raw) raw { return r.to("/mcp/" + k) },
			"key in another path, encoded":     func(r raw) raw { return r.to("/" + strings.ReplaceAll(k, "_", "%5f") + "/sse") },
			"key in the path, well-known":      func(r raw) raw { return r.to("/.well-known/" + k) },
			"key in the query of /register":    func(r raw) raw { return r.to("/register?key=" + k) },
			"half a key in the query":          func(r raw) raw { return r.query("key=" + k[:12]) },
			"key in the query of another path": func(r raw) raw { return r.to("/nothing?" + k) },
		}},
		"no key": {"unauthorized", 401, map[string]edit{
			"absent":       func(r raw) raw { return r.without("Authorization") },
			"empty header": func(r raw) raw { return r.with("Authorization:") },
			"empty bearer": func(r raw) raw { return r.with("Authorization: Bearer") },
			"blank bearer": func(r raw) raw { return r.with("Authorization: Bearer   ") },
			"no scheme":    func(r raw) raw { return r.with("Authorization: " + k) },
			"basic": func(r raw) raw {
				return r.with("Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(k+":")))
			},
			"basic with the key": func(r raw) raw { return r.with("Authorization: Basic " + k) },
			"other scheme":       func(r raw) raw { return r.with("Authorization: Bearer2 " + k) },
			"two headers":        func(r raw) raw { return r.plus("Authorization: Bearer " + k) },
			"two, one is wrong":  func(r raw) raw { return r.plus("authorization: Bearer x") },
			"two in one":         func(r raw) raw { return r.bearer(k + ", Bearer " + k) },
			"two tokens":         func(r raw) raw { return r.bearer(k + " " + k) },
			"other header": func(r raw) raw {
				return r.without("Authorization").plus("X-Api-Key: "+k, "Proxy-Authorization: Bearer "+k, "Mcp-Session-Id: "+k)
			},
			"quoted":                    func(r raw) raw { return r.bearer(`"` + k + `"`) },
			"a word":                    func(r raw) raw { return r.bearer("CANARY") },
			"typo":                      func(r raw) raw { return r.bearer(typo) },
			"in capitals":               func(r raw) raw { return r.bearer(strings.ToUpper(k)) },
			"cut":                       func(r raw) raw { return r.bearer(k[:len(k)-1]) },
			"too long":                  func(r raw) raw { return r.bearer(k + "a") },
			"very long":                 func(r raw) raw { return r.bearer(k + strings.Repeat("a", 8000)) },
			"recovery key":              func(r raw) raw { return r.key(e.recovery) },
			"root text":                 func(r raw) raw { return r.bearer(e.rootText()) },
			"key of another store":      func(r raw) raw { return r.key(e.foreign) },
			"key of nobody":             func(r raw) raw { return r.key(e.unknown) },
			"other key of the identity": func(r raw) raw { return r.key(identity.NewKey(identity.Agent, e.key.Identity())) },
		}},
		"revoked identity": {"revoked", 401, map[string]edit{"": func(r raw) raw { return r.key(e.revoked) }}},
		"revoked slot":     {"revoked", 401, map[string]edit{"": func(r raw) raw { return r.key(e.closed) }}},
		"expired":          {"expired", 401, map[string]edit{"": func(r raw) raw { return r.key(e.expired) }}},
		"elsewhere":        {"not_found", 404, map[string]edit{}},
	}
	for _, h := range []string{
		"evil.com", "evil.com:7653", "127.0.0.1.evil.com", "localhost.evil.com", "evil-localhost", "localhost.", "localhost.:80", "127.0.0.1.", "0.0.0.0", "0.0.0.0:80", "[::]", "[::]:80",
		"2130706433", "127.1", "0x7f.0.0.1", "0177.0.0.1", "localhost,evil.com", "10.0.0.1", "[fe80::1]:80", "[::2]", "", ":80", "app.example.com", "127.0.0.1:80:80", "*",
	} {
		table["host"].edits[h] = func(r raw) raw { return r.host(h) }
	}
	table["host"].edits["absolute target"] = func(r raw) raw { return r.to("http://evil.com" + r.target) }
	for _, o := range []string{
		"http://evil.com", "https://evil.com", "null", "", "http://localhost.evil.com", "http://127.0.0.1.evil.com", "http://evil.com:80/localhost", "http://localhost@evil.com", "http://evil.com#localhost",
		"http://evil.com?localhost", "file://", "file://localhost", "ftp://localhost", "chrome-extension://localhost", "localhost", "//localhost", "http://[::1].evil.com", "http://[::1", "http://0.0.0.0", "http://127.1", "http://localhost.",
		"http://localhost http://evil.com", "http://localhost, http://evil.com", "http://app.example.com", "https://app.example.com:8443", "https://app.example.com.evil.com", "https://app.example.com/", "*", "http://10.0.0.1", "data:text/html,localhost",
	} {
		table["origin"].edits[o] = func(r raw) raw { return r.origin(o) }
	}
	table["origin"].edits["good and evil"] = func(r raw) raw { return r.origin("http://localhost", "http://evil.com") }
	table["origin"].edits["evil and good"] = func(r raw) raw { return r.origin("http://evil.com", "https://app.example.com") }
	table["origin"].edits["twice null"] = func(r raw) raw { return r.origin("null", "null") }
	for _, m := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "post", "PROPFIND"} {
		table["method"].edits[m] = func(r raw) raw {
			if r.method == m {
				return r.by("DELETE")
			}
			return r.by(m)
		}
	}
	table["method"].edits["preflight"] = func(r raw) raw {
		return r.by("OPTIONS").origin("https://app.example.com").plus("Access-Control-Request-Method: "+r.method, "Access-Control-Request-Headers: authorization").without("Authorization")
	}
	for _, p := range []string{"/", "/mcp/", "/MCP", "//mcp", "/mcp%2f", "/mcp/sse", "/sse/", "/message/", "/metrics", "/livez", "/debug/pprof/", "/authorize", "/token", "/../mcp", "/.well-known"} {
		table["elsewhere"].edits[p] = func(r raw) raw { return r.to(p) }
	}

	doors := e.doors(t, e.key)
	bell := e.stream(t, e.key)
	doors["/message"] = doors["/message"].to(bell.path)
	served := func() {
		t.Helper()
		for door, r := range doors {
			a := e.send(t, r)
			if !a.opened() {
				t.Fatalf("the control: %s = %d %s", door, a.status, a.body)
			}
			proper(t, door, a)
		}
		if r := bell.reply(t); !strings.Contains(r.raw, "CANARY-value") {
			t.Errorf("the first event is not that of the control: %s", r.raw)
		}
	}
	served()
	count := 0
	for kind, c := range table {
		for name, f := range c.edits {
			for door, r := range doors {
				e.pass(time.Second) // the failed keys of an address are not what is tested here
				name := fmt.Sprintf("%s: %s: %s", door, kind, name)
				r := f(r)
				a := e.send(t, r)
				count++
				if a.status != c.status {
					t.Errorf("%s = %d %s, want %d", name, a.status, a.body, c.status)
				}
				if a.opened() || strings.Contains(a.body, "CANARY") || identity.LooksLikeKey(a.body) {
					t.Errorf("%s: the answer holds a secret: %s", name, a.body)
				}
				if c.word == "" {
					continue
				}
				proper(t, name, a)
				if r.method != "HEAD" && decode[refusal](t, a.body).Error != c.word {
					t.Errorf("%s answers %s, want %s", name, a.body, c.word)
				}
			}
		}
	}
	served() // which hears of nothing that was sent in between
	log := e.log.String()
	for _, text := range []string{"CANARY", "sla1_", k[5:20], e.revoked.Reveal()[5:20]} {
		if strings.Contains(log, text) {
			t.Errorf("the log holds %s: %s", text, log)
		}
	}
	t.Logf("%d hostile requests", count)
}

func TestGuardLetsThroughWhatIsRight(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true, Origins: []string{"https://app.example.com"}, Rate: -1})
	k := e.key.Reveal()
	for door, r := range e.doors(t, e.key) {
		for name, r := range map[string]raw{
			"lower-case scheme": r.with("Authorization: bearer " + k), "upper-case scheme": r.with("Authorization: BEARER " + k), "blanks around": r.with("Authorization:  Bearer   " + k + "  "),
			"localhost": r.host("localhost"), "capitals": r.host("LocalHost:123"), "IPv4": r.host("127.0.0.1:1"), "other IPv4": r.host("127.8.9.10"), "IPv6": r.host("[::1]:7653"), "IPv6 without port": r.host("[::1]"),
			"absolute target": r.to("http://localhost:7" + r.target), "origin allowed": r.origin("https://app.example.com"), "origin on loopback": r.origin("http://localhost:3000"),
			"origin on IPv4": r.origin("https://127.0.0.1:8443"), "origin on IPv6": r.origin("http://[::1]:5173"), "two good origins": r.origin("http://localhost", "https://app.example.com"),
			"harmless query": r.query("a=%zz&slack=1"), "harmless cookie": r.plus("Cookie: sl=a1"), "invented session": r.plus("Mcp-Session-Id: CANARY"), "forwarded": r.plus("X-Forwarded-For: evil", "X-Forwarded-Host: evil.com", "Forwarded: host=evil.com"),
			"method override": r.plus("X-Http-Method-Override: DELETE"),
		} {
			if a := e.send(t, r); !a.opened() {
				t.Errorf("%s, %s = %d %s", door, name, a.status, a.body)
			} else {
				proper(t, door+" "+name, a)
			}
		}
	}
}

func TestHostsOffLoopback(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Hosts: []string{"api.example.com", "Other.Example.com:8443", "[2001:db8::1]:8443", "2001:db8::2"}, Origins: []string{"https://app.example.com"}, Rate: -1})
	good := raw{method: "POST", target: "/mcp", body: request(1, "ping", "{}")}.key(k).plus("Content-Type: application/json", "Connection: close", "Content-Length: 48")
	good = good.with(fmt.Sprintf("Content-Length: %d", len(good.body)))
	for host, status := range map[string]int{
		"api.example.com": 200, "API.Example.COM": 200, "api.example.com:9999": 200, "other.example.com:8443": 200, "OTHER.example.com:8443": 200, "[2001:db8::1]:8443": 200, "[2001:db8::2]": 200, "[2001:DB8::2]:77": 200,
		"localhost": 403, "127.0.0.1": 403, "[::1]": 403, "[::1]:8443": 403, "api.example.com.": 403, "other.example.com": 403, "other.example.com:8444": 403, "xapi.example.com": 403, "api.example.com.evil.com": 403, "[2001:db8::1]": 403, "[2001:db8::1]:1": 403, "": 403,
		"[other.example.com:8443]": 403, "[other.example.com:8443]:1": 403, "[api.example.com]": 403,
	} {
		if a := s.send(t, good.host(host)); a.status != status {
			t.Errorf("Host %q = %d %s, want %d", host, a.status, a.body, status)
		}
	}
	for origin, status := range map[string]int{"https://app.example.com": 200, "http://localhost": 403, "http://127.0.0.1": 403, "null": 403, "https://api.example.com": 403} {
		if a := s.send(t, good.host("api.example.com").origin(origin)); a.status != status {
			t.Errorf("Origin %q = %d %s, want %d", origin, a.status, a.body, status)
		}
	}
}

func TestUnauthorizedReadsExactlyThis(t *testing.T) {
	const want = `{"error":"unauthorized","message":"No valid agent key.","hint":"Put the agent key into the Authorization header as a bearer token. There is no OAuth login."}`
	e := newEstate(t, mcp.HTTPOptions{Loopback: true})
	for door, r := range e.doors(t, e.key) {
		for name, r := range map[string]raw{"no key": r.without("Authorization"), "malformed": r.bearer("x"), "of nobody": r.key(e.unknown), "of another store": r.key(e.foreign), "recovery": r.key(e.recovery)} {
			a := e.send(t, r)
			if a.status != 401 || a.body != want || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s, %s = %d %v %s", door, name, a.status, a.header, a.body)
			}
			proper(t, door+" "+name, a)
		}
	}
	get := raw{method: "GET"}.plus("Host: localhost", "Connection: close")
	for _, path := range []string{"oauth-protected-resource", "oauth-protected-resource/mcp", "oauth-authorization-server", "oauth-authorization-server/mcp", "openid-configuration", "anything"} {
		a := e.send(t, get.to("/.well-known/"+path))
		if a.status != 404 || a.body != want || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("/.well-known/%s = %d %v %s", path, a.status, a.header, a.body)
		}
		proper(t, path, a)
	}
	for _, method := range []string{"GET", "POST"} {
		a := e.send(t, get.by(method).to("/register").plus("Content-Length: 2").saying("{}"))
		if a.status != 404 || a.body != "Put the agent key into the Authorization header as a bearer token. There is no OAuth login.\n" || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s /register = %d %v %s", method, a.status, a.header, a.body)
		}
		proper(t, "/register", a)
	}
}

func TestNoSSEIsNowhere(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true, NoSSE: true})
	for _, target := range []string{"/sse", "/message", "/message?sessionId=x"} {
		for _, method := range []string{"GET", "POST"} {
			a := e.send(t, raw{method: method, target: target}.plus("Host: localhost", "Connection: close", "Content-Length: 0").key(e.key))
			if a.status != 404 {
				t.Errorf("%s %s = %d %s", method, target, a.status, a.body)
			}
		}
	}
	if a := e.post("/mcp", e.key, call(1, "get_secret", `{"label":"openai"}`)); !a.opened() {
		t.Errorf("/mcp = %d %s", a.status, a.body)
	}
}

func TestBodiesThatAreNoRequests(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	nested := func(n int) string {
		return request(1, "ping", `{"a":`+strings.Repeat("[", n-2)+strings.Repeat("]", n-2)+`}`)
	}
	st := e.stream(t, e.key)
	for name, c := range map[string]struct {
		body   string
		status int
		id     string
		code   int
	}{
		"empty":                 {"", 400, "null", -32700},
		"blank":                 {" \n", 400, "null", -32700},
		"text":                  {"CANARY", 400, "null", -32700},
		"half":                  {`{"jsonrpc":"2.0","id":1,"method":"CANARY`, 400, "null", -32700},
		"two":                   {request(1, "ping", "{}") + request(2, "ping", "{}"), 400, "null", -32700},
		"two lines":             {request(1, "ping", "{}") + "\n" + request(2, "ping", "{}"), 400, "null", -32700},
		"byte order mark":       {"\xef\xbb\xbf" + request(1, "ping", "{}"), 400, "null", -32700},
		"UTF-16":                {"\xff\xfe{\x00}\x00", 400, "null", -32700},
		"no UTF-8":              {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"CANARY\xff\"}", 400, "null", -32700},
		"no UTF-8 in the id":    {"{\"jsonrpc\":\"2.0\",\"id\":\"\xc3\x28\",\"method\":\"ping\"}", 400, "null", -32700},
		"NUL":                   {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pi\x00ng\"}", 400, "null", -32700},
		"batch":                 {"[" + request(1, "ping", "{}") + "]", 400, "null", -32600},
		"batch of two":          {"[" + request(1, "ping", "{}") + "," + call(2, "get_secret", `{"label":"openai"}`) + "]", 400, "null", -32600},
		"empty batch":           {"[]", 400, "null", -32600},
		"number":                {"7", 400, "null", -32600},
		"string":                {`"CANARY"`, 400, "null", -32600},
		"null":                  {"null", 400, "null", -32600},
		"empty object":          {"{}", 400, "null", -32600},
		"no version":            {`{"id":1,"method":"ping"}`, 400, "1", -32600},
		"version 1":             {`{"jsonrpc":"1.0","id":1,"method":"ping"}`, 400, "1", -32600},
		"method is a number":    {`{"jsonrpc":"2.0","id":1,"method":7}`, 400, "1", -32600},
		"request and answer":    {`{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}`, 400, "1", -32600},
		"id null":               {`{"jsonrpc":"2.0","id":null,"method":"ping"}`, 400, "null", -32600},
		"id object":             {`{"jsonrpc":"2.0","id":{"CANARY":1},"method":"ping"}`, 400, "null", -32600},
		"id list":               {`{"jsonrpc":"2.0","id":["CANARY"],"method":"ping"}`, 400, "null", -32600},
		"id true":               {`{"jsonrpc":"2.0","id":true,"method":"ping"}`, 400, "null", -32600},
		"id over 1 KiB":         {`{"jsonrpc":"2.0","id":"` + strings.Repeat("x", 1023) + `","method":"ping"}`, 400, "null", -32600},
		"id of 100,000 digits":  {`{"jsonrpc":"2.0","id":` + strings.Repeat("9", 100_000) + `,"method":"ping"}`, 400, "null", -32600},
		"33 levels":             {nested(33), 400, "1", -32600},
		"100,000 brackets":      {strings.Repeat("[", 100_000), 400, "null", -32600},
		"100,000 pairs":         {nested(100_000), 400, "null", -32600},
		"9,999 pairs":           {nested(9_999), 400, "1", -32600},
		"32 levels":             {nested(32), 200, "1", 0},
		"4,200 values":          {request(1, "ping", `{"a":[`+strings.Repeat("0,", 4199)+"0]}"), 400, "1", -32600},
		"4,200 members":         {request(1, "ping", `{"a":{`+strings.Repeat(`"x":0,`, 4199)+`"x":0}}`), 400, "1", -32600},
		"4,000 values":          {request(1, "ping", `{"a":[`+strings.Repeat("0,", 3999)+"0]}"), 200, "1", 0},
		"two ids":               {`{"jsonrpc":"2.0","id":1,"method":"ping","id":2}`, 400, "null", -32600},
		"brackets in a text":    {request(1, "ping", `{"a":"`+strings.Repeat("[", 100)+`\"[[[["}`), 200, "1", 0},
		"blanks around":         {"\r\n " + request(1, "ping", "{}") + "\n", 200, "1", 0},
		"huge number":           {request(1, "ping", `{"a":1e400}`), 0, "1", 0},
		"huge id":               {`{"jsonrpc":"2.0","id":1e999,"method":"ping"}`, 0, "1e999", 0},
		"huge number in a call": {call(1, "get_totp_code", `{"label":"x","min_remaining":1e999}`), 0, "1", 0},
	} {
		for _, path := range []string{"/mcp", st.path} {
			a := e.post(path, e.key, c.body)
			proper(t, name, a)
			if strings.Contains(a.body, "CANARY") {
				t.Errorf("%s %s quotes the body: %s", path, name, a.body)
			}
			if path != "/mcp" && a.status == 202 && c.status != 400 {
				if r := st.reply(t); string(r.ID) != c.id || c.status == 200 && r.Error != nil {
					t.Errorf("%s: on the stream comes %s, want an answer with id %s", name, r.raw, c.id)
				}
				continue
			}
			r := a.reply(t)
			switch {
			case string(r.ID) != c.id:
				t.Errorf("%s %s answers under id %s: %s", path, name, r.ID, a.body)
			case c.status != 0 && a.status != c.status, (c.status == 200) != (r.Error == nil) && c.status != 0, c.code != 0 && r.Error.Code != c.code:
				t.Errorf("%s %s = %d %s, want %d and code %d", path, name, a.status, a.body, c.status, c.code)
			}
		}
	}
	for _, body := range []string{call(1, "get_secret", `{"label":"openai","label":"openai"}`), call(1, "get_secret", `{"label":"`+strings.Repeat("CANARY", 10_000)+`"}`)} {
		if a := e.post("/mcp", e.key, body); a.reply(t).refusal(t).Error != "bad_request" || strings.Contains(a.body, "CANARY") {
			t.Errorf("%.80s answers %s", body, a.body)
		}
	}
	if r := st.ask(t, request(99, "ping", "{}")); string(r.ID) != "99" {
		t.Errorf("the stream has heard %s", r.raw)
	}
}

func TestKeyInABodyIsCalledLeaked(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true})
	st := e.stream(t, e.key)
	for _, path := range []string{"/mcp", st.path} {
		for name, body := range map[string]string{
			"argument": call(1, "get_secret", `{"label":"openai","api_key":"`+e.key.Reveal()+`"}`), "label": call(1, "get_secret", `{"label":"`+e.key.Reveal()+`"}`),
			"id": request(`"`+e.key.Reveal()+`"`, "ping", "{}"), "method": request(1, e.key.Reveal(), "{}"), "no JSON": "key=" + e.key.Reveal(), "another": call(1, "get_secret", `{"label":"`+e.foreign.Reveal()+`"}`),
			"root text": request(1, "ping", `{"a":"`+e.rootText()+`"}`),
		} {
			a := e.post(path, e.key, body)
			if got := decode[refusal](t, a.body); a.status != 400 || got.Error != "bad_request" || !strings.Contains(got.Message, "leaked") || identity.LooksLikeKey(a.body) {
				t.Errorf("%s, key as %s = %d %s", path, name, a.status, a.body)
			}
		}
	}
	if strings.Contains(e.log.String(), "sla1_") {
		t.Errorf("the log holds a key: %s", e.log)
	}
}

func TestContentTypeIsJSON(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	doors := e.doors(t, e.key)
	delete(doors, "/sse")
	for door, r := range doors {
		for kind, status := range map[string]int{
			"application/json": 0, "application/json; charset=utf-8": 0, "Application/JSON": 0, "application/json;charset=UTF-8": 0,
			"text/plain": 415, "": 415, "application/x-www-form-urlencoded": 415, "multipart/form-data; boundary=x": 415, "text/plain; application/json": 415, "application/json-rpc": 415, "application/jsonx": 415, "text/json": 415, "application/json, text/plain": 415, "application/json; charset": 415,
		} {
			r := r.with("Content-Type: " + kind)
			if kind == "" {
				r = r.without("Content-Type")
			}
			if a := e.send(t, r); status == 0 && !a.opened() || status != 0 && a.status != status {
				t.Errorf("%s with Content-Type %q = %d %s", door, kind, a.status, a.body)
			}
		}
	}
}

// flood sends the head of a request and then the body of 200 MiB, as far as
// the server takes it, and returns the answer and how much was sent.
func (s *site) flood(t *testing.T, r raw, chunked bool) (a answered, sent int) {
	t.Helper()
	conn, err := s.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	line := fmt.Sprintf("Content-Length: %d", 200<<20)
	if chunked {
		line = "Transfer-Encoding: chunked"
	}
	r = r.without("Content-Length").plus(line)
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\n%s\r\n\r\n", r.method, r.target, strings.Join(r.header, "\r\n"))
	part := bytes.Repeat([]byte(" "), 64<<10)
	if chunked {
		part = append(append([]byte("10000\r\n"), part...), "\r\n"...)
	}
	answer := make(chan answered, 1)
	go func() { answer <- readAnswer(t, conn, r.method) }()
	for range 200 << 20 / (64 << 10) {
		select {
		case a = <-answer:
			return a, sent
		default:
		}
		n, err := conn.Write(part)
		sent += n
		if err != nil {
			break
		}
	}
	return <-answer, sent
}

func TestGreatBodiesAreNotRead(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	doors := e.doors(t, e.key)
	delete(doors, "/sse")
	delete(doors, "/mcp modern")
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	for door, r := range doors {
		for _, chunked := range []bool{false, true} {
			for name, c := range map[string]struct {
				r      raw
				status int
			}{"right key": {r, 413}, "no key": {r.without("Authorization"), 401}, "wrong host": {r.host("evil.com"), 403}} {
				var a answered
				var sent int
				bytes := allocated(func() { a, sent = e.flood(t, c.r, chunked) })
				if a.status != c.status || sent > 32<<20 || bytes > 2<<20 {
					t.Errorf("%s, %s, chunked %v: %d %s, %d bytes were taken, %d allocated", door, name, chunked, a.status, a.body, sent, bytes)
				}
				proper(t, door, a)
			}
		}
		// The control: 256 KiB is not too much, and a byte more is.
		pad := func(n int) raw {
			r := r.saying(r.body + strings.Repeat(" ", n-len(r.body)))
			return r.with(fmt.Sprintf("Content-Length: %d", n))
		}
		if a := e.send(t, pad(256<<10)); !a.opened() {
			t.Errorf("%s of 256 KiB = %d %s", door, a.status, a.body)
		}
		if a := e.send(t, pad(256<<10+1)); a.status != 413 {
			t.Errorf("%s of 256 KiB and a byte = %d %s", door, a.status, a.body)
		}
	}
	if got := allocated(func() { _ = bytes.Repeat([]byte("x"), 4<<20) }); got < 4<<20 {
		t.Errorf("the measure finds %d bytes in an allocation of 4 MiB", got)
	}
}

func TestBodyThatDoesNotArriveIsNotServed(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	doors := e.doors(t, e.key)
	delete(doors, "/sse")
	for door, r := range doors {
		for name, r := range map[string]raw{
			"longer than it says":   r.with(fmt.Sprintf("Content-Length: %d", len(r.body)-1)),
			"broken chunks":         r.without("Content-Length").plus("Transfer-Encoding: chunked").saying("zz\r\n" + r.body),
			"chunks with a length":  r.plus("Transfer-Encoding: chunked").saying("0\r\n\r\n"),
			"unknown encoding":      r.plus("Transfer-Encoding: gzip"),
			"compressed":            r.plus("Content-Encoding: gzip").with("Content-Length: 2").saying("\x1f\x8b"),
			"two different lengths": r.plus("Content-Length: 1"),
		} {
			if a := e.send(t, r); a.opened() || a.status < 400 || strings.Contains(a.body, "CANARY") {
				t.Errorf("%s, %s = %d %s", door, name, a.status, a.body)
			}
		}
		// A client that stops in the middle.
		conn, err := e.dial()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\n%s\r\n\r\n%s", r.method, r.target, strings.Join(r.header, "\r\n"), r.body[:len(r.body)/2])
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if a := readAnswer(t, conn, r.method); a.status != 400 {
			t.Errorf("%s, half a body = %d %s", door, a.status, a.body)
		}
		conn.Close()
	}
}

func TestPanicsStayInsideOverHTTP(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "CANARY-value"))
	for name, u := range map[string]mcp.Unlock{
		"unlock panics": func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) { panic("CANARY in a panic") },
		"panics with an error": func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) {
			panic(errors.New("CANARY in a panic"))
		},
		"no vault": func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) { return nil, nil },
	} {
		h.log.Reset()
		s := h.openWith(t, u, mcp.HTTPOptions{Loopback: true})
		for _, r := range []raw{
			{"POST", "/mcp", []string{"Content-Length: 2", "Content-Type: application/json"}, "{}"}, {"GET", "/sse", nil, ""}, {"POST", "/message?sessionId=x", []string{"Content-Length: 2", "Content-Type: application/json"}, "{}"},
		} {
			a := s.send(t, r.plus("Host: localhost", "Connection: close").key(k))
			if a.status != 500 || a.body != `{"error":"unavailable","message":"internal error","retry_after_ms":500}` || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: %s = %d %s", name, r.target, a.status, a.body)
			}
			if a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %s has headers %v", name, r.target, a.header)
			}
		}
		s.close()
		if log := h.log.String(); strings.Contains(log, "CANARY") || !strings.Contains(log, "msg=panic") || strings.Contains(log, "0x") || strings.Contains(log, "sla1_") {
			t.Errorf("%s: the log should name the panic and its place only: %s", name, log)
		}
	}
	h.log.Reset()
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	text := "CANARY in a panic"
	for _, name := range wires {
		ask := s.wire(t, name, k)
		h.backend.panics.Store(&text)
		r := ask(1, "tools/call", get("openai"))
		h.backend.panics.Store(nil)
		if got := r.refusal(t); got.Error != "unavailable" || got.Message != "internal error" || strings.Contains(r.raw, "CANARY") {
			t.Errorf("%s: a tool that panics answers %s", name, r.raw)
		}
		if r := ask(2, "tools/call", get("openai")); value[map[string]any](t, r)["value"] != "CANARY-value" {
			t.Errorf("%s: the call after it answers %s", name, r.raw)
		}
	}
	if log := h.log.String(); strings.Contains(log, "CANARY") || strings.Count(log, "msg=panic") < len(wires) {
		t.Errorf("the log = %s", log)
	}
}

func TestStorageThatFailsIsUnavailable(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	s := h.open(t, mcp.HTTPOptions{Loopback: true})
	doors := s.doors(t, k)
	err := errors.New("CANARY in an error")
	h.backend.reads.Store(&err)
	for door, r := range doors {
		a := s.send(t, r)
		if a.status != 503 || decode[refusal](t, a.body).Error != "unavailable" || strings.Contains(a.body, "CANARY") {
			t.Errorf("%s = %d %s", door, a.status, a.body)
		}
		proper(t, door, a)
	}
	h.backend.reads.Store(nil)
	if log := h.log.String(); strings.Contains(log, "CANARY") || !strings.Contains(log, "unlocking failed") {
		t.Errorf("the log = %s", log)
	}
}

// TestStrangersDoNotFillTheLog is somebody with keys of their own making, at an
// endpoint whose store is gone for a while: each request left a line, as fast
// as requests come, on the disk that perhaps was the cause. A cause is logged
// once a second.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		s := h.openInside(t, mcp.HTTPOptions{Loopback: true})
		err := errors.New("the store is gone")
		h.backend.reads.Store(&err)
		for second := range 3 {
			for range 200 {
				if a := s.post("/mcp", identity.NewKey(identity.Agent, identity.NewID()), request(1, "ping", "{}")); a.status != 503 {
					t.Fatalf("a stranger = %d %s", a.status, a.body)
				}
			}
			if got := strings.Count(h.log.String(), "unlocking failed"); got != second+1 {
				t.Fatalf("in second %d there are %d lines, want %d", second, got, second+1)
			}
			time.Sleep(time.Second + time.Millisecond)
		}
	})
}

// Unlock gets no more than 2 s, and its caller an answer.
func TestSlowUnlockIsUnavailable(t *testing.T) {
	h := newHouse(t)
	s := h.openWith(t, func(ctx context.Context, _ identity.Key, _ vault.Source) (*vault.Vault, error) {
		end, ok := ctx.Deadline()
		if left := time.Until(end); !ok || left > 2*time.Second {
			t.Errorf("unlock may take %v", left)
		}
		return nil, context.DeadlineExceeded
	}, mcp.HTTPOptions{Loopback: true})
	if a := s.post("/mcp", identity.NewKey(identity.Agent, identity.NewID()), request(1, "ping", "{}")); a.status != 503 || decode[refusal](t, a.body).Error != "unavailable" {
		t.Errorf("an unlock out of time = %d %s", a.status, a.body)
	}
}

// forms are those that a value may leave in.
func forms(value string) []string {
	return []string{value, base64.StdEncoding.EncodeToString([]byte(value)), base64.RawURLEncoding.EncodeToString([]byte(value)), fmt.Sprintf("%x", value), fmt.Sprintf("%X", value), url.QueryEscape(value)}
}

func TestValueIsInNoAnswerButTheOneThatAsked(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true, Rate: -1})
	const canary = "CANARY value/+&"
	used, expiring := secret("used", canary), secret("old", canary)
	used.Exposure, expiring.Expires = vault.ExposeUse, noon.Add(2*time.Second)
	e.put(e.key, secret("plain", canary), used, expiring, vault.NewEntry{Label: "login", Kind: vault.KindLogin, Fields: []vault.Field{{Name: "value", Value: []byte("x")}, {Name: "pin", Value: []byte(canary), Never: true}}}, seeded("github"))
	e.pass(2 * time.Second)
	narrow, err := e.keeper.AddKey(t.Context(), e.key.Identity(), e.key, "narrow", identity.Grant{Scopes: identity.DefaultScopes, Globs: []identity.Glob{"used"}})
	if err != nil {
		t.Fatal(err)
	}
	fails := errors.New(canary)
	var heard strings.Builder
	for _, name := range wires {
		ask := e.wire(t, name, e.key)
		for id, params := range []string{
			get("used"), get("old"), get("login"), `"name":"get_secret","arguments":{"label":"login","field":"pin"}`, get("github"), get("none"), `"name":"list_labels"`, `"name":"get_totp_code","arguments":{"label":"github"}`,
			`"name":"get_totp_code","arguments":{"label":"plain"}`, `"name":"get_secret","arguments":{"label":"plain","field":"none"}`, `"name":"get_secret","arguments":["plain"]`, `"name":"put_secret","arguments":{"label":"plain"}`,
		} {
			heard.WriteString(ask(id, "tools/call", params).raw)
		}
		heard.WriteString(ask(1, "tools/list", "").raw)
		heard.WriteString(ask(2, "resources/read", `"uri":"plain"`).raw)
		heard.WriteString(e.wire(t, name, narrow)(3, "tools/call", get("plain")).raw)
		text := canary
		e.backend.panics.Store(&text)
		heard.WriteString(ask(4, "tools/call", get("plain")).raw)
		e.backend.panics.Store(nil)
		e.backend.journal = fails
		heard.WriteString(ask(5, "tools/call", get("plain")).raw)
		e.backend.journal = nil
		for _, k := range []identity.Key{e.foreign, e.revoked, e.expired, e.unknown} {
			heard.WriteString(e.post("/mcp", k, call(6, "get_secret", `{"label":"plain"}`)).body)
		}
		// The control: the search finds it where it belongs.
		if r := ask(7, "tools/call", get("plain")); value[map[string]any](t, r)["value"] != canary {
			t.Errorf("%s: get_secret = %s", name, r.raw)
		}
	}
	all := heard.String() + e.log.String()
	var wrong []string
	for _, value := range []string{canary, seed} {
		wrong = append(wrong, forms(value)...)
	}
	for _, k := range []identity.Key{e.key, narrow, e.foreign, e.revoked, e.expired} {
		wrong = append(wrong, k.Reveal())
	}
	for _, text := range wrong {
		if strings.Contains(all, text) {
			t.Errorf("%q is in what was heard:\n%s", text, all)
		}
	}
	if !strings.Contains(e.log.String(), "msg=panic") {
		t.Errorf("the log was not looked at: %s", e.log)
	}
}

// FuzzGuard sends arbitrary requests to a vault with a canary in it.
func FuzzGuard(f *testing.F) {
	h, k := fuzzHouse(f)
	seen := &statuses{}
	handler := h.serveHTTP(h.keeper.Unlock, mcp.HTTPOptions{Loopback: true, Rate: -1, Observe: seen}).Handler()
	body := call(1, "get_secret", `{"label":"openai"}`)
	for _, text := range []string{
		"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: " + fmt.Sprint(len(body)) + "\r\n\r\n" + body,
		"POST /mcp HTTP/1.1\r\nHost: [::1]:1\r\nOrigin: http://localhost\r\nMCP-Protocol-Version: 2026-07-28\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"GET /sse HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "POST /message?sessionId=x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		"GET /.well-known/openid-configuration HTTP/1.0\r\n\r\n", "OPTIONS /register?key=sla1_ HTTP/1.1\r\nHost: evil.com\r\nCookie: a=b\r\n\r\n", "HEAD http://localhost/mcp HTTP/1.1\r\nHost: evil\r\n\r\n",
		"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\nX-Forwarded-For: 1.2.3.4\r\nContent-Length: 0\r\n\r\n",
	} {
		f.Add([]byte(text), true)
		f.Add([]byte(text), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, right bool) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
		if err != nil {
			t.Skip("no request")
		}
		if right {
			r.Header["Authorization"] = []string{"Bearer " + k.Reveal()}
		}
		r.RemoteAddr = "192.0.2.1:1"
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		h.pass(time.Second)
		w := &shortWriter{ResponseRecorder: httptest.NewRecorder(), cancel: cancel}
		handler.ServeHTTP(w, r.WithContext(ctx))
		out := w.Body.String()
		status := seen.last()
		if status < 200 || status != w.Code || strings.Contains(h.log.String(), "panic") {
			t.Fatalf("%q ends with status %d (%d), %s\n%s", text, status, w.Code, out, h.log)
		}
		proper(t, string(text), answered{w.Code, w.Header(), out})
		if strings.Contains(out, "CANARY") && !bytes.Contains(text, []byte("CANARY")) && (!right || status != 200 || !strings.Contains(out, `"value":"CANARY-openai"`)) {
			t.Fatalf("%q gives %d %s", text, status, out)
		}
		if !right && status < 400 {
			t.Fatalf("%q without a key gives %d %s", text, status, out)
		}
		if strings.Contains(out+h.log.String(), k.Reveal()) {
			t.Fatalf("%q gives the key away: %s", text, out)
		}
	})
}

// shortWriter ends its request with the first byte that is written.
type shortWriter struct {
	*httptest.ResponseRecorder
	cancel context.CancelFunc
}

func (w *shortWriter) Write(p []byte) (int, error) {
	defer w.cancel()
	return w.ResponseRecorder.Write(p)
}

// statuses remembers the last status.
type statuses struct {
	watcher
	status int
}

func (s *statuses) Request(_ string, status int, _ time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}
func (s *statuses) Call(string, vault.Word, time.Duration) {}

func (s *statuses) last() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}
