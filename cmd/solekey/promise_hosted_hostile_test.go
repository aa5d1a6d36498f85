//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fort is a hosted endpoint with a well-behaved client.
type fort struct {
	*world
	h    *hosted
	addr string
	key  string
	good *steady

	mu   sync.Mutex
	cuts map[string][]time.Duration // when connections were cut off
}

func newFort(t *testing.T, flags ...string) *fort {
	f := &fort{world: newKeyring(t), cuts: map[string][]time.Duration{}}
	f.key = f.keyOf("ci")
	f.h = f.host(setting{}, append([]string{"--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"}, flags...)...)
	f.addr = strings.TrimSuffix(strings.TrimPrefix(f.h.url, "http://"), "/mcp")
	f.good = beginSteady(t, f.h, f.key, "TOKEN", "CANARY-served")
	return f
}

// end wants that the well-behaved client missed nothing, and that the server
// ends in order.
func (f *fort) end(t *testing.T) {
	t.Helper()
	f.good.end(t)
	f.h.stop()
}

// odd is a strange request. In its text HOST, AUTH and BODY stand for the
// address, the header with the key, and a call that reads the value; LEN for
// the length of that.
type odd struct {
	name, text string
	want       []int // statuses of which one must come; empty: any refusal or none
	closed     bool  // and then the connection is closed
}

const (
	served   = http.StatusOK
	bad      = http.StatusBadRequest
	denied   = http.StatusForbidden
	nokey    = http.StatusUnauthorized
	tooLarge = http.StatusRequestHeaderFieldsTooLarge

	postLine = "POST /mcp HTTP/1.1\r\nHost: HOST\r\n"
	jsonType = "Content-Type: application/json\r\n"
	whole    = jsonType + "Content-Length: LEN\r\n\r\nBODY"
	chunked  = jsonType + "Transfer-Encoding: chunked\r\n\r\n"
)

// oddRequests are requests on the wire that no client means well.
func oddRequests() []odd {
	long, deep := strings.Repeat("a", 24<<10), strings.Repeat("[", 100_000)
	sized := func(body string) string {
		return postLine + "AUTH" + jsonType + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) + body
	}
	return []odd{
		{"garbage", "\x00\xff\x01\x02 nothing at all\r\n\r\n", []int{bad}, true},
		{"greeting of TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x05", 200) + "\r\n\r\n", []int{bad}, true},
		{"greeting of SSH", "SSH-2.0-OpenSSH_9.9\r\n\r\n", []int{bad}, true},
		{"greeting of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", nil, true},
		{"HTTP/0.9", "GET /mcp\r\n\r\n", []int{bad}, true},
		{"HTTP/3.0", "POST /mcp HTTP/3.0\r\nHost: HOST\r\nAUTH" + whole, []int{505, bad}, true},
		{"version without end", "POST /mcp HTTP/1.1.1\r\nHost: HOST\r\nAUTH" + whole, []int{bad}, true},
		{"HTTP/1.0 without Host", "POST /mcp HTTP/1.0\r\nAUTH" + whole, []int{denied, bad}, true},
		{"no Host", "POST /mcp HTTP/1.1\r\nAUTH" + whole, []int{bad}, true},
		{"two Hosts", postLine + "Host: HOST\r\nAUTH" + whole, []int{bad}, true},
		{"Host of somebody else", "POST /mcp HTTP/1.1\r\nHost: evil.example\r\nAUTH" + whole, []int{denied}, false},
		{"Host that begins with ours", "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\nAUTH" + whole, []int{denied}, false},
		{"Host with a user", "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1@evil.example\r\nAUTH" + whole, []int{denied, bad}, false},
		{"Host with a blank", "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1 evil\r\nAUTH" + whole, []int{denied, bad}, false},
		{"absolute address of somebody else", "POST http://evil.example/mcp HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{denied, bad}, false},
		{"CONNECT", "CONNECT HOST HTTP/1.1\r\nHost: HOST\r\nAUTH\r\n", []int{404, 405, bad}, false},
		{"CONNECT elsewhere", "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", []int{denied, bad}, false},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: evil.example\r\n\r\n", []int{denied, 405, bad}, false},
		{"TRACE", "TRACE /mcp HTTP/1.1\r\nHost: HOST\r\nAUTH\r\n", []int{405}, false},
		{"method in lower case", "post /mcp HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{405, bad}, false},
		{"method with a separator", "PO(ST /mcp HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{bad}, true},
		{"blank in the address", "POST /mcp x HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{bad}, true},
		{"control in the address", "POST /m\x01cp HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{bad}, true},
		{"address that climbs", "POST /x/../mcp HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{404}, false},
		{"address with two slashes", "POST //mcp HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{404}, false},
		{"long address", "POST /" + long + " HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{tooLarge, 414}, true},
		{"long header", postLine + "X-Long: " + long + "\r\nAUTH" + whole, []int{tooLarge}, true},
		{"many headers", postLine + strings.Repeat("X-A: b\r\n", 5000) + "AUTH" + whole, []int{tooLarge}, true},
		{"header without a colon", postLine + "X-Nothing\r\nAUTH" + whole, []int{bad}, true},
		{"header without a name", postLine + ": x\r\nAUTH" + whole, []int{bad}, true},
		{"blank before the colon", postLine + "AUTH" + jsonType + "Content-Length : LEN\r\n\r\nBODY", []int{bad}, true},
		{"zero in a header", postLine + "X-A: b\x00c\r\nAUTH" + whole, []int{bad}, true},
		{"lone CR in a header", postLine + "X-A: b\rX-B: c\r\nAUTH" + whole, []int{bad}, true},
		{"first header is a continuation", "POST /mcp HTTP/1.1\r\n Host: HOST\r\nAUTH" + whole, []int{bad}, true},

		{"both lengths", postLine + "AUTH" + "Content-Length: 4\r\n" + chunked + "0\r\n\r\n", []int{bad}, true},
		{"both lengths, the other first", postLine + "AUTH" + jsonType + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", []int{bad}, true},
		{"two lengths", postLine + "AUTH" + jsonType + "Content-Length: LEN\r\nContent-Length: 4\r\n\r\nBODY", []int{bad}, true},
		{"list of lengths", postLine + "AUTH" + jsonType + "Content-Length: LEN, 4\r\n\r\nBODY", []int{bad}, true},
		{"negative length", postLine + "AUTH" + jsonType + "Content-Length: -1\r\n\r\nBODY", []int{bad}, true},
		{"length with a sign", postLine + "AUTH" + jsonType + "Content-Length: +LEN\r\n\r\nBODY", []int{bad}, true},
		{"length in hex", postLine + "AUTH" + jsonType + "Content-Length: 0x10\r\n\r\nBODY", []int{bad}, true},
		{"length beyond numbers", postLine + "AUTH" + jsonType + "Content-Length: 99999999999999999999\r\n\r\nBODY", []int{bad}, true},
		{"unknown coding", postLine + "AUTH" + jsonType + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", []int{501, bad}, true},
		{"coding twice", postLine + "AUTH" + jsonType + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{501, bad}, true},
		{"two codings", postLine + "AUTH" + jsonType + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", []int{501, bad}, true},
		{"coding with a tab", postLine + "AUTH" + jsonType + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", []int{501, bad}, true},
		{"coding in HTTP/1.0", "POST /mcp HTTP/1.0\r\nHost: HOST\r\nAUTH" + chunked + "0\r\n\r\n", []int{bad, 501}, true},
		{"chunk without a number", postLine + "AUTH" + chunked + "zz\r\nBODY\r\n0\r\n\r\n", []int{bad}, true},
		{"chunk beyond numbers", postLine + "AUTH" + chunked + "fffffffffffffffff\r\nBODY\r\n0\r\n\r\n", []int{bad}, true},
		{"chunk with a long extension", postLine + "AUTH" + chunked + "1;" + long + "\r\n{\r\n0\r\n\r\n", []int{bad}, true},
		{"chunk that does not end", postLine + "AUTH" + chunked + "1\r\n{xx\r\n0\r\n\r\n", []int{bad}, true},

		{"key in the trailer", postLine + "Trailer: Authorization\r\n" + chunked + "2\r\n{}\r\n0\r\nAUTH\r\n", []int{nokey}, false},
		{"second request without a key", postLine + "AUTH" + whole + postLine + whole, []int{nokey}, true},
		{"request in a body", "POST /nowhere HTTP/1.1\r\nHost: HOST\r\n" + jsonType + "Content-Length: 4\r\n\r\nxxxx" + postLine + whole, []int{404, nokey}, true},
		{"two keys", postLine + "AUTHAUTH" + whole, []int{nokey}, false},
		{"key in a cookie", postLine + "Cookie: k=KEY\r\nAUTH" + whole, []int{bad}, false},
		{"key in the address", "POST /mcp?k=KEY HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole, []int{bad}, false},
		{"page of somebody else", postLine + "Origin: https://evil.example\r\nAUTH" + whole, []int{denied}, false},
		{"page of a file", postLine + "Origin: null\r\nAUTH" + whole, []int{denied}, false},
		{"two pages", postLine + "Origin: http://localhost\r\nOrigin: https://evil.example\r\nAUTH" + whole, []int{denied}, false},
		{"form of a page", postLine + "AUTHContent-Type: text/plain\r\nContent-Length: LEN\r\n\r\nBODY", []int{415}, false},
		{"expects what nobody gives", postLine + "Expect: tea\r\nAUTH" + whole, []int{417}, true},
		{"expects to send too much", postLine + "Expect: 100-continue\r\nAUTH" + jsonType + "Content-Length: 209715200\r\n\r\n", []int{413}, true},

		{"deep array", sized(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":` + deep), []int{bad}, false},
		{"deep object", sized(strings.Repeat(`{"a":`, 40_000)), []int{bad}, false},
		{"deep and closed", sized(`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"a":` + deep[:1000] + strings.Repeat("]", 1000) + `}}`), []int{bad}, false},
		{"no JSON", sized("hello"), []int{bad}, false},
		{"zeros", sized(strings.Repeat("\x00", 1000)), []int{bad}, false},
		{"text that is no UTF-8", sized("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\xfe\"}"), nil, false},
		{"batch", sized(`[{"jsonrpc":"2.0","id":1,"method":"tools/list"}]`), []int{bad}, false},
		{"nothing", sized(""), []int{bad}, false},
	}
}

// fill puts an address and a key into an odd request.
func (f *fort) fill(text string) string {
	body := callText(1, "get_secret", labelArg("TOKEN"), "")
	return strings.NewReplacer("HOST", f.addr, "AUTH", "Authorization: Bearer "+f.key+"\r\n", "BODY", body, "LEN", strconv.Itoa(len(body)), "KEY", f.key).Replace(text)
}

// TestOddRequestsGetNothing sends them all, while a well-behaved client
// misses nothing. None brings a value, and after each the server answers on
// another connection.
func TestOddRequestsGetNothing(t *testing.T) {
	t.Parallel()
	f := newFort(t)
	var all sync.WaitGroup
	room := make(chan struct{}, 16)
	for _, o := range oddRequests() {
		all.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			f.odd(t, o)
		})
	}
	all.Wait()
	// Control: the same way of asking is served when there is nothing odd
	// about it.
	for name, text := range map[string]string{
		"HTTP/1.1": postLine + "AUTH" + whole, "HTTP/1.0": "POST /mcp HTTP/1.0\r\nHost: HOST\r\nAUTH" + whole,
		"chunked":  postLine + "AUTH" + chunked + fmt.Sprintf("%x\r\n", len(callText(1, "get_secret", labelArg("TOKEN"), ""))) + "BODY\r\n0\r\n\r\n",
		"absolute": "POST http://HOST/mcp HTTP/1.1\r\nHost: HOST\r\nAUTH" + whole,
		"upgrade":  postLine + "Connection: Upgrade\r\nUpgrade: websocket\r\nAUTH" + whole,
	} {
		got, err := rawAsk(f.addr, f.fill(text), 200*time.Millisecond)
		if err != nil || !slices.Equal(got.statuses, []int{served}) || !strings.Contains(got.text, "CANARY-served") {
			t.Errorf("control %s: %+v, %v, want the value", name, got, err)
		}
	}
	f.end(t)
}

func (f *fort) odd(t *testing.T, o odd) {
	linger := 200 * time.Millisecond
	if o.closed {
		linger = patience / 2
	}
	got, err := rawAsk(f.addr, f.fill(o.text), linger)
	if err != nil {
		t.Errorf("%s: %v", o.name, err)
		return
	}
	last := 0
	if len(got.statuses) > 0 {
		last = got.statuses[len(got.statuses)-1]
	}
	twice := o.name == "second request without a key" || o.name == "request in a body" // two requests, two answers
	switch {
	case len(o.want) > 0 && !slices.Contains(o.want, last), len(o.want) == 0 && last != 0 && last < 400, len(got.statuses) > 1 && !twice:
		t.Errorf("%s: answers %v, want one of %v: %.300s", o.name, got.statuses, o.want, got.text)
	case o.closed && !got.closed:
		t.Errorf("%s: the connection stays open after %v", o.name, got.statuses)
	}
	if first, _, _ := strings.Cut(got.text, "HTTP/1.1 401"); strings.Contains(strings.TrimPrefix(got.text, first), "CANARY-served") ||
		o.name != "second request without a key" && strings.Contains(first, "CANARY-served") {
		t.Errorf("%s: it brings the value: %.300s", o.name, got.text)
	}
	if strings.Contains(got.text, f.key) {
		t.Errorf("%s: the answer repeats the key", o.name)
	}
	if next, err := rawAsk(f.addr, "GET /nowhere HTTP/1.1\r\nHost: "+f.addr+"\r\nConnection: close\r\n\r\n", patience); err != nil || !slices.Equal(next.statuses, []int{404}) {
		t.Errorf("%s: the next connection gets %+v, %v", o.name, next, err)
	}
}

// cutAfter wants the server to close a connection between two times.
func (f *fort) cutAfter(t *testing.T, c net.Conn, what string, begun time.Time, least, most time.Duration) {
	t.Helper()
	_ = c.SetReadDeadline(begun.Add(most))
	_, err := io.Copy(io.Discard, c)
	if slow, ok := errors.AsType[net.Error](err); ok && slow.Timeout() {
		t.Errorf("%s is not cut off in %v", what, most)
		return
	}
	if took := time.Since(begun); took < least {
		t.Errorf("%s is cut off after %v, want %v or later", what, took, least)
	} else {
		f.mu.Lock()
		f.cuts[what] = append(f.cuts[what], took)
		f.mu.Unlock()
	}
}

// trickle opens a connection, sends a beginning, and then a byte at a time
// until the server has enough.
func (f *fort) trickle(t *testing.T, what, first, rest string, pace, least, most time.Duration) {
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	begun := time.Now()
	go func() {
		_, _ = io.WriteString(c, f.fill(first))
		for i := range len(rest) {
			<-time.After(pace)
			if _, err := io.WriteString(c, rest[i:i+1]); err != nil {
				return
			}
		}
	}()
	f.cutAfter(t, c, what, begun, least, most)
}

// TestSlowClientsAreCut sends headers and bodies slowly, and reads slowly,
// while a well-behaved client misses nothing.
func TestSlowClientsAreCut(t *testing.T) {
	t.Parallel()
	f := newFort(t)
	drops := strings.Repeat("x", 600)
	var all sync.WaitGroup
	for range rounds(5, 20, 200) {
		all.Go(func() {
			f.trickle(t, "a slow header", "POST /mcp HTTP/1.1\r\nHost: HOST\r\nAUTHX-Slow: ", drops, 500*time.Millisecond, 4*time.Second, 20*time.Second)
		})
	}
	all.Go(func() { f.trickle(t, "a silent connection", "", "", 0, 4*time.Second, 20*time.Second) })
	if soaking() {
		all.Go(func() {
			f.trickle(t, "a slow body", postLine+"AUTH"+jsonType+"Content-Length: 600\r\n\r\n", drops, 500*time.Millisecond, 13*time.Second, 25*time.Second)
		})
		all.Go(func() { f.stall(t) })
		all.Go(func() { f.linger(t) })
	}
	all.Wait()
	for _, what := range sorted(f.cuts) {
		t.Logf("%s is cut off after: %s", what, spread(f.cuts[what]))
	}
	f.end(t)
}

// stall opens an event stream and never reads, but asks on: the stream ends,
// and its session with it.
func (f *fort) stall(t *testing.T) {
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
	fmt.Fprintf(c, "GET /sse HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", f.addr, f.key)
	var head []byte
	for one := make([]byte, 1); !strings.Contains(string(head), "\n\n"); head = append(head, one...) {
		if _, err := c.Read(one); err != nil {
			t.Error(err)
			return
		}
	}
	_, place, _ := strings.Cut(string(head), "data: ")
	place, _, _ = strings.Cut(place, "\n")
	a := newAgent(f.h, f.key)
	defer a.close()
	begun := time.Now()
	for status := 0; status != http.StatusNotFound; {
		r, err := a.post(t.Context(), place, `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}`, nil)
		if status = r.status; err != nil || time.Since(begun) > patience {
			t.Errorf("a stalled reader is not dropped: %s, %v", r.said(), err)
			return
		}
	}
	t.Logf("a stalled reader is dropped after %v", time.Since(begun).Round(time.Millisecond))
}

// linger holds a stream for longer than a request may take to arrive, and
// than the server waits between its signs of life.
func (f *fort) linger(t *testing.T) {
	a := newAgent(f.h, f.key)
	s, r, err := a.open()
	if s == nil {
		t.Errorf("opening a stream: %s, %v", r.said(), err)
		return
	}
	defer s.close()
	select {
	case <-s.over:
		t.Error("a stream that says nothing is ended")
	case <-time.After(40 * time.Second):
	}
	if r, err := s.get(t.Context(), "TOKEN"); err != nil || r.text("value") != "CANARY-served" {
		t.Errorf("a stream after 40 s: %s, %v", r.said(), err)
	}
}
