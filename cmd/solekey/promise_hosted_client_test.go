package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The clients of the promises of a hosted endpoint. Each speaks with one key,
// in one of the ways there are, and every request of every client has the id
// that the others use as well.

// agent is a client that holds a key.
type agent struct {
	base   string // http://ADDR
	key    string
	client *http.Client
}

// newAgent returns a client with connections of its own.
func newAgent(h *hosted, key string) *agent {
	return &agent{base: strings.TrimSuffix(h.url, "/mcp"), key: key, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}}}
}

func (a *agent) close() { a.client.CloseIdleConnections() }

// keyOf reads the key of a profile.
func (w *world) keyOf(profile string) string {
	w.t.Helper()
	b, err := os.ReadFile(w.keyFile(profile))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// reply is an answer over HTTP.
type reply struct {
	status int
	body   string
	answer
}

// said tells what came, for a failing test.
func (r reply) said() string { return fmt.Sprintf("%d %.300s", r.status, r.body) }

func parseReply(status int, body []byte) reply {
	r := reply{status: status, body: string(body)}
	if a, err := parseAnswer(body, "1"); err == nil && status == http.StatusOK {
		r.answer = a
		return r
	}
	var why struct{ Error any }
	_ = json.Unmarshal(body, &why)
	r.word, _ = why.Error.(string)
	return r
}

// request sends a request with the key and returns its open answer.
func (a *agent) request(ctx context.Context, method, path, body string, header map[string]string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+a.key)
	req.Header.Set("Accept", "application/json, text/event-stream")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	return a.client.Do(req)
}

// post posts a message and reads the answer to its end.
func (a *agent) post(ctx context.Context, path, body string, header map[string]string) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := a.request(ctx, http.MethodPost, path, body, header)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return parseReply(resp.StatusCode, b), err
}

// modernMeta is what a request of revision 2026-07-28 carries.
const modernMeta = `,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"promise","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}`

// callText is a tool call.
func callText(id int, tool, args, meta string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":%s%s}}`, id, tool, args, meta)
}

func labelArg(label string) string { return fmt.Sprintf(`{"label":%q}`, label) }

// legacy reads a label as clients of the revisions before 2026-07-28 do.
func (a *agent) legacy(ctx context.Context, label string) (reply, error) {
	return a.post(ctx, "/mcp", callText(1, "get_secret", labelArg(label), ""), map[string]string{"MCP-Protocol-Version": "2025-11-25"})
}

// modern reads a label as clients of revision 2026-07-28 do.
func (a *agent) modern(ctx context.Context, label string) (reply, error) {
	return a.post(ctx, "/mcp", callText(1, "get_secret", labelArg(label), modernMeta),
		map[string]string{"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "get_secret"})
}

// session is an open event stream with its client.
type session struct {
	agent *agent
	place string // where to POST
	id    string
	leave context.CancelFunc
	over  chan struct{} // closed when the stream ended
	ended time.Time     // to be read once over is closed

	mu      sync.Mutex
	next    int
	waiting map[int]chan []byte
}

var errEnded = errors.New("the event stream ended")

// open opens an event stream, or returns why it is refused.
func (a *agent) open() (*session, reply, error) {
	ctx, cancel := context.WithCancel(context.Background())
	resp, err := a.request(ctx, http.MethodGet, "/sse", "", nil)
	if err != nil {
		cancel()
		return nil, reply{}, err
	}
	r := bufio.NewReader(resp.Body)
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(r)
		_ = resp.Body.Close()
		cancel()
		return nil, parseReply(resp.StatusCode, b), err
	}
	kind, data, err := nextEvent(r)
	if err != nil || kind != "endpoint" {
		_ = resp.Body.Close()
		cancel()
		return nil, reply{}, fmt.Errorf("the first event is %s %s: %w", kind, data, err)
	}
	s := &session{agent: a, place: data, leave: cancel, over: make(chan struct{}), waiting: map[int]chan []byte{}}
	_, s.id, _ = strings.Cut(data, "=")
	go s.read(resp.Body, r)
	return s, reply{status: http.StatusOK}, nil
}

// nextEvent reads one event.
func nextEvent(r *bufio.Reader) (kind, data string, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", "", err
		}
		switch line = strings.TrimRight(line, "\r\n"); {
		case strings.HasPrefix(line, "event: "):
			kind = line[len("event: "):]
		case strings.HasPrefix(line, "data: "):
			data = line[len("data: "):]
		case line == "" && data != "":
			return kind, data, nil
		}
	}
}

// read hands each answer to who waits for it.
func (s *session) read(body io.Closer, r *bufio.Reader) {
	defer s.leave()
	defer body.Close()
	defer close(s.over)
	for {
		_, data, err := nextEvent(r)
		if err != nil {
			s.ended = time.Now()
			return
		}
		var head struct{ ID int }
		if json.Unmarshal([]byte(data), &head) != nil {
			continue
		}
		s.mu.Lock()
		if c := s.waiting[head.ID]; c != nil {
			delete(s.waiting, head.ID)
			c <- []byte(data)
		}
		s.mu.Unlock()
	}
}

// call calls a tool: the answer comes on the stream, a refusal of the POST at
// once.
func (s *session) call(ctx context.Context, tool, args string) (reply, error) {
	c := make(chan []byte, 1)
	s.mu.Lock()
	s.next++
	id := s.next
	s.waiting[id] = c
	s.mu.Unlock()
	r, err := s.agent.post(ctx, s.place, callText(id, tool, args, ""), nil)
	if err != nil || r.status != http.StatusAccepted {
		return r, err
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case text := <-c:
		a, err := parseAnswer(text, strconv.Itoa(id))
		return reply{http.StatusOK, string(text), a}, err
	case <-s.over:
	case <-t.C:
		return reply{}, errSilent
	}
	select {
	case text := <-c:
		a, err := parseAnswer(text, strconv.Itoa(id))
		return reply{http.StatusOK, string(text), a}, err
	default:
		return reply{}, errEnded
	}
}

func (s *session) get(ctx context.Context, label string) (reply, error) {
	return s.call(ctx, "get_secret", labelArg(label))
}

// alive reports whether the stream is open.
func (s *session) alive() bool {
	select {
	case <-s.over:
		return false
	default:
		return true
	}
}

// close leaves the stream, as a client does.
func (s *session) close() {
	s.leave()
	<-s.over
}

// steady is a well-behaved client: it reads its value over and over, in every
// way, and must never miss it.
type steady struct {
	agent  *agent
	label  string
	value  string
	pace   time.Duration
	stop   chan struct{}
	wait   sync.WaitGroup
	calls  int
	missed []string
}

// beginSteady starts a steady client. It returns when that has been served
// once in each way.
func beginSteady(t *testing.T, h *hosted, key, label, value string) *steady {
	t.Helper()
	s := &steady{agent: newAgent(h, key), label: label, value: value, pace: 5 * time.Millisecond, stop: make(chan struct{})}
	stream, r, err := s.agent.open()
	if err != nil || stream == nil {
		t.Fatalf("opening the stream of a steady client: %s, %v", r.said(), err)
	}
	for i := range 3 {
		s.turn(i, stream)
	}
	if len(s.missed) > 0 {
		t.Fatalf("a steady client is not served: %q", s.missed)
	}
	s.wait.Go(func() {
		defer s.agent.close()
		defer stream.close()
		for i := 0; ; i++ {
			select {
			case <-s.stop:
				if !stream.alive() {
					s.missed = append(s.missed, "the stream ended")
				}
				return
			case <-time.After(s.pace):
			}
			s.turn(i, stream)
		}
	})
	return s
}

func (s *steady) turn(i int, stream *session) {
	ask := []func(context.Context, string) (reply, error){s.agent.legacy, s.agent.modern, stream.get}[i%3]
	begun := time.Now()
	r, err := ask(context.Background(), s.label)
	s.calls++
	if err != nil || r.text("value") != s.value {
		s.missed = append(s.missed, fmt.Sprintf("way %d, after %v: %s, %v", i%3, time.Since(begun), r.said(), err))
	}
}

// end stops the client and wants that it got its value every time.
func (s *steady) end(t *testing.T) {
	t.Helper()
	close(s.stop)
	s.wait.Wait()
	if len(s.missed) > 0 {
		t.Errorf("a well-behaved client missed %d of %d answers: %q", len(s.missed), s.calls, s.missed[:min(5, len(s.missed))])
	}
}

// gauge reads one metric without labels.
func (h *hosted) gauge(name string) float64 {
	h.w.t.Helper()
	_, text := h.ask("/metrics")
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				h.w.t.Fatal(err)
			}
			return v
		}
	}
	h.w.t.Fatalf("the metrics lack %s", name)
	return 0
}

// spread words p50, p99 and the largest of some durations.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "none"
	}
	slices.Sort(all)
	at := func(share float64) time.Duration {
		return all[int(share*float64(len(all)-1))].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("n %d, p50 %v, p99 %v, max %v", len(all), at(0.5), at(0.99), at(1))
}

// heard is what came back on a connection.
type heard struct {
	statuses []int  // of the answers, 100 included
	text     string // all of it
	closed   bool   // the server closed the connection
}

// rawAsk sends bytes on a connection of their own and listens: until the
// server closes it, or for so long after an answer.
func rawAsk(addr, text string, linger time.Duration) (heard, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return heard{}, err
	}
	defer c.Close()
	go func() { _, _ = io.WriteString(c, text) }() // a server may answer before it has read everything
	_ = c.SetReadDeadline(time.Now().Add(patience / 4))
	var all bytes.Buffer
	var out heard
	for r := bufio.NewReader(io.TeeReader(c, &all)); ; {
		var resp *http.Response
		if resp, err = http.ReadResponse(r, nil); err != nil {
			break
		}
		out.statuses = append(out.statuses, resp.StatusCode)
		if _, err = io.Copy(io.Discard, resp.Body); err != nil {
			break
		}
		if resp.StatusCode != http.StatusContinue {
			_ = c.SetReadDeadline(time.Now().Add(linger))
		}
	}
	slow, ok := errors.AsType[net.Error](err)
	out.closed, out.text = !ok || !slow.Timeout(), all.String()
	return out, nil
}
