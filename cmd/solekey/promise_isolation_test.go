package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNothingOfAnotherIdentityComesOut asks with ann's key, which is bound to
// open/*, for everything that a generator can think of: labels of ben and
// parts of them, ann's own labels outside her globs, odd arguments. No byte
// of a value, label or name that is not hers to see comes back.
func TestNothingOfAnotherIdentityComesOut(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	h := newHouse(t, r)
	s := h.serve("--profile", "ann")
	asks := make(chan question)
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for q := range asks {
				h.judge(s, q)
			}
		})
	}
	for range rounds(400, 2000, 100000) {
		asks <- h.question(r)
	}
	close(asks)
	callers.Wait()
	if code := s.close(); code != 0 {
		t.Errorf("the server ended with %d", code)
	}
	if leaked := h.leaks(s.stderr.String()); leaked != "" {
		t.Errorf("stderr holds %q", leaked)
	}
	if h.values == 0 || h.refusals == 0 {
		t.Errorf("%d values and %d refusals: the test asks nothing", h.values, h.refusals)
	}

	// Control: ben's own server says what the search looks for.
	ben := h.serve("--profile", "ben-quartz")
	for label, value := range h.foreign {
		if a := ben.get(label); a.text("value") == value && h.leaks(a.String()) == "" {
			t.Errorf("the search does not find %q in %v", value, a)
		}
	}
	if h.leaks(ben.mustCall("list_labels", nil).String()) == "" {
		t.Error("the search finds no label in ben's list")
	}
}

// house is a store with two identities, and what each has.
type house struct {
	*world
	own     map[string]string // ann's, that she may see
	closed  map[string]string // ann's, outside her globs
	foreign map[string]string // ben's
	hidden  []string          // what must not come out

	mu               sync.Mutex
	values, refusals int
}

func newHouse(t *testing.T, r *rand.Rand) *house {
	h := &house{world: newWorld(t), own: map[string]string{}, closed: map[string]string{}, foreign: map[string]string{}}
	h.must("identity", "create", "ann", "--labels", "open/*")
	h.must("identity", "create", "ben-quartz")
	h.hidden = append(h.hidden, "ben-quartz")
	for i := range 6 {
		h.fill("ann", h.own, "open/"+letters(r, 8+i), letters(r, 24))
		h.hide("ann", h.closed, "shut/"+letters(r, 8+i), letters(r, 24))
		h.hide("ben-quartz", h.foreign, letters(r, 10+i), letters(r, 24))
		h.hide("ben-quartz", h.foreign, "open/"+letters(r, 8+i), letters(r, 24))
	}
	user, pass, label := letters(r, 20), letters(r, 20), "open/"+letters(r, 9)
	h.put("ben-quartz", label, pass+"\n"+user+"\n", "--kind", "login", "--field", "username")
	h.foreign[label] = pass
	h.hidden = append(h.hidden, user, pass, label)
	seed, otp := base32Text(r, 32), letters(r, 12)
	h.put("ben-quartz", otp, "otpauth://totp/Iss:acc?secret="+seed)
	h.foreign[otp] = seed
	h.hidden = append(h.hidden, seed, otp)
	return h
}

func (h *house) fill(identity string, into map[string]string, label, value string) {
	h.put(identity, label, value)
	into[label] = value
}

func (h *house) hide(identity string, into map[string]string, label, value string) {
	h.fill(identity, into, label, value)
	h.hidden = append(h.hidden, label, value)
}

// leaks returns something hidden that text holds, empty if there is nothing.
func (h *house) leaks(text string) string {
	for _, s := range h.hidden {
		for _, form := range forms(s) {
			if bytes.Contains([]byte(text), form) {
				return s
			}
		}
	}
	return ""
}

// question is one call.
type question struct {
	tool string
	args any
	echo string // a label that the answer may repeat
}

func letters(r *rand.Rand, n int) string {
	return draw(r, "abcdefghijklmnopqrstuvwxyz0123456789", n)
}

func base32Text(r *rand.Rand, n int) string {
	return draw(r, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", n)
}

func draw(r *rand.Rand, alphabet string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(b)
}

func pickKey(r *rand.Rand, m map[string]string) string {
	n := r.IntN(len(m))
	for k := range m {
		if n == 0 {
			return k
		}
		n--
	}
	return ""
}

// question thinks of a call.
func (h *house) question(r *rand.Rand) question {
	label := h.label(r)
	switch n := r.IntN(20); {
	case n < 9:
		args := map[string]any{"label": label}
		if r.IntN(2) == 0 {
			args["field"] = []any{"value", "username", "seed", "secret", "password", "", letters(r, 65), 7, nil}[r.IntN(9)]
		}
		return question{"get_secret", args, label}
	case n < 12: // not for her own labels: they hold no seed
		return question{"get_totp_code", map[string]any{"label": label, "min_remaining": []any{0, 10, 299, -1, 1.5, "x"}[r.IntN(6)]}, label}
	case n < 15:
		return question{"list_labels", map[string]any{"prefix": label[:r.IntN(len(label)+1)]}, ""}
	case n < 16:
		return question{"list_labels", []any{nil, map[string]any{}, map[string]any{"prefix": nil}, map[string]any{"identity": "ben"}}[r.IntN(4)], ""}
	case n < 17:
		return question{"get_secret", map[string]any{"name": label}, label}
	case n < 18:
		return question{"get_secret", map[string]any{"label": label, "identity": "other", "version": 1}, label}
	case n < 19:
		return question{[]string{"put_secret", "http_request", "delete_secret", "get_secrets"}[r.IntN(4)], map[string]any{"label": label}, ""}
	}
	return question{"get_secret", []any{"text", 3, []string{label}, map[string]any{"label": []string{label}}, map[string]any{"label": map[string]any{"$ne": ""}}}[r.IntN(5)], ""}
}

// label thinks of a label.
func (h *house) label(r *rand.Rand) string {
	foreign := pickKey(r, h.foreign)
	switch r.IntN(12) {
	case 0, 1, 2:
		return pickKey(r, h.own)
	case 3:
		return pickKey(r, h.closed)
	case 4:
		return foreign[:1+r.IntN(len(foreign)-1)]
	case 5:
		return foreign + letters(r, 1)
	case 6:
		return strings.ToUpper(foreign)
	case 7:
		return "open/" + strings.TrimPrefix(foreign, "open/")
	case 8:
		return []string{"*", "open/*", "../" + foreign, "open/../" + foreign, "./" + foreign, "{{secret:x}}", " ", "\x00", strings.Repeat("x", 129), "ümlaut"}[r.IntN(10)]
	case 9:
		return letters(r, 1+r.IntN(20))
	}
	return foreign
}

// judge makes a call and looks for leaks in its answer.
func (h *house) judge(s *server, q question) {
	a, err := s.call(q.tool, q.args)
	if err != nil {
		h.t.Errorf("%s %v: %v", q.tool, q.args, err)
		return
	}
	text := a.String()
	if q.echo != "" && a.message == "No label "+q.echo+" for this key." {
		text = strings.Replace(text, a.message, "", 1)
	}
	if leaked := h.leaks(text); leaked != "" {
		h.t.Errorf("%s %v: %q came out: %s", q.tool, q.args, leaked, a)
	}
	value := a.text("value")
	if value != "" && h.own[q.echo] != value {
		h.t.Errorf("%s %v gave a value of something else: %v", q.tool, q.args, a)
	}
	if rows, ok := a.fields["labels"].([]any); ok {
		for _, row := range rows {
			if label, _ := row.(map[string]any)["label"].(string); h.own[label] == "" {
				h.t.Errorf("%s %v lists %s", q.tool, q.args, label)
			}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if value != "" {
		h.values++
	}
	if a.refused {
		h.refusals++
	}
}

// TestAbsentAndForbiddenLookAlike asks for one label while nobody has it,
// while another has it, while it lies outside the key's globs, and once it
// was removed: the answers of all tools are the same to the byte.
func TestAbsentAndForbiddenLookAlike(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	w := newWorld(t)
	w.must("identity", "create", "ann", "--labels", "open/*,open-*")
	w.must("identity", "create", "ben")
	w.put("ann", "open/visible", "value")
	s := w.serve("--profile", "ann")
	value := map[string]string{"secret": "a value", "totp": "otpauth://totp/A:b?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"}
	for kind, text := range value {
		for range rounds(1, 3, 50) {
			label := "shut/" + letters(r, 6)
			absent := faces(t, s, label)
			states := map[string]func(){
				"1 another identity has it": func() { w.put("ben", label, text) },
				"2 outside the globs":       func() { w.put("ann", label, text) },
				"3 outside the globs only":  func() { w.must("rm", label, "--identity", "ben", "--yes") },
				"4 removed":                 func() { w.must("rm", label, "--identity", "ann", "--yes") },
			}
			for _, name := range sorted(states) {
				states[name]()
				if diff := cmp.Diff(absent, faces(t, s, label)); diff != "" {
					t.Errorf("%s %s, %s (-absent +now):\n%s", kind, label, name, diff)
				}
			}

			// Control: a label that the key covers does show.
			label = "open-" + letters(r, 6)
			absent = faces(t, s, label)
			w.put("ann", label, text)
			for i, now := range faces(t, s, label) {
				if now == absent[i] {
					t.Errorf("%s: answer %d is the same before and after it is stored: %s", label, i, now)
				}
			}
		}
	}
}

// faces is what each tool answers about a label.
func faces(t *testing.T, s *server, label string) []string {
	t.Helper()
	var out []string
	for _, c := range []struct{ tool, args string }{
		{"get_secret", `{"label":%q}`},
		{"get_totp_code", `{"label":%q,"min_remaining":0}`},
		{"list_labels", `{"prefix":%q}`},
		{"get_secret", `{"label":%q,"field":"username"}`},
	} {
		out = append(out, s.mustCall(c.tool, object(t, fmt.Sprintf(c.args, label))).String())
	}
	return out
}

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}
