package mcp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

func TestEveryWordIsMet(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	expiring := secret("old", "CANARY")
	expiring.Expires = noon.Add(time.Second)
	used := secret("used", "CANARY")
	used.Exposure = vault.ExposeUse
	h.put(k, secret("openai", "CANARY"), expiring, used, seeded("github"))
	revoked := h.agent("revoked", identity.Grant{})
	if _, err := h.keeper.Revoke(t.Context(), revoked.Identity(), vault.Revocation{}); err != nil {
		t.Fatal(err)
	}
	brief := h.agent("brief", identity.Grant{Scopes: identity.DefaultScopes, Expires: noon.Add(time.Second)})
	h.now = noon.Add(2 * time.Second)
	fails := func(err error) func() { return func() { h.backend.journal = err } }
	for name, c := range map[string]struct {
		key     identity.Key
		line    string
		before  func()
		want    string
		message string
		hint    string
		retry   bool
	}{
		"no key":        {line: call(1, "list_labels", `{}`), want: "unauthorized", message: "No valid agent key.", hint: "Tell the owner"},
		"unknown key":   {key: identity.NewKey(identity.Agent, k.Identity()), line: call(1, "list_labels", `{}`), want: "unauthorized", message: "No valid agent key."},
		"unknown id":    {key: identity.NewKey(identity.Agent, identity.NewID()), line: call(1, "list_labels", `{}`), want: "unauthorized", message: "No valid agent key."},
		"revoked key":   {key: revoked, line: call(1, "get_secret", `{"label":"openai"}`), want: "revoked", message: "This key has been revoked.", hint: "Stop."},
		"expired key":   {key: brief, line: call(1, "get_secret", `{"label":"openai"}`), want: "expired", message: "This key has expired."},
		"expired entry": {key: k, line: call(1, "get_secret", `{"label":"old"}`), want: "expired", message: "old expired on 2026-03-01."},
		"exposure use":  {key: k, line: call(1, "get_secret", `{"label":"used"}`), want: "forbidden", message: "used may be used but not read."},
		"absent label":  {key: k, line: call(1, "get_secret", `{"label":"openaj"}`), want: "not_found", message: "No label openaj for this key.", hint: "Did you mean openai?"},
		"bad argument":  {key: k, line: call(1, "get_totp_code", `{"label":"github","min_remaining":-1}`), want: "bad_request", message: "Argument min_remaining must be an integer from 0 to 299."},
		"spent code": {key: k, line: call(1, "get_totp_code", `{"label":"github"}`), want: "rate_limited", retry: true, before: func() {
			talk(t, h.server, k, call(1, "get_totp_code", `{"label":"github"}`))
		}},
		"audit fails":              {key: k, line: call(1, "get_secret", `{"label":"openai"}`), want: "audit_unavailable", retry: true, before: fails(errors.New("CANARY in an error"))},
		"audit and arguments fail": {key: k, line: call(1, "get_secret", `{}`), want: "audit_unavailable", retry: true, before: fails(errors.New("CANARY in an error"))},
		"storage fails":            {key: k, line: call(1, "get_secret", `{"label":"openai"}`), want: "unavailable", message: "internal error", retry: true, before: nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := h.server
			if name == "storage fails" {
				s = h.serve(func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) {
					return nil, fmt.Errorf("CANARY in an error: %w", os.ErrInvalid)
				})
			}
			if c.before != nil {
				c.before()
			}
			defer fails(nil)()
			r := talk(t, s, c.key, c.line)[0]
			got := r.refusal(t)
			if got.Error != c.want || (c.message != "" && got.Message != c.message) || got.Message == "" || !strings.Contains(got.Hint, c.hint) || (got.Retry > 0) != c.retry {
				t.Errorf("got %+v, want %s, %q", got, c.want, c.message)
			}
			if strings.Contains(r.raw+h.log.String(), "CANARY") {
				t.Errorf("the text of an error left: %s\n%s", r.raw, h.log)
			}
		})
	}
}

func TestStorageErrorsAreUnavailable(t *testing.T) {
	for _, err := range []error{storage.ErrUnavailable, storage.ErrDamaged, storage.ErrFull, storage.ErrClosed, storage.ErrConflict, context.DeadlineExceeded, vault.Exists} {
		r := talk(t, deadServer(fmt.Errorf("CANARY: %w", err)), identity.Key{}, call(1, "list_labels", `{}`))[0]
		if got := r.refusal(t); got.Error != "unavailable" || strings.Contains(r.raw, "CANARY") {
			t.Errorf("%v gives %s", err, r.raw)
		}
	}
}

// Absent, removed, another identity's and out of the key's globs must be one
// answer: else an agent learns which labels there are.
func TestAbsentAndForbiddenLabelsLookAlike(t *testing.T) {
	h := newHouse(t)
	glob, err := identity.ParseGlob("mine/*")
	if err != nil {
		t.Fatal(err)
	}
	k := h.agent("a", identity.Grant{Scopes: identity.DefaultScopes, Globs: []identity.Glob{glob}})
	other := h.agent("b", identity.Grant{})
	h.put(k, secret("mine/one", "x"), secret("hide/aa", "CANARY-a"), secret("gone/aa", "CANARY-g"))
	h.put(other, secret("them/aa", "CANARY-b"))
	if _, err := h.keeper.Remove(t.Context(), k.Identity(), "gone/aa"); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"get_secret", "get_totp_code"} {
		var first string
		for _, label := range []string{"none/aa", "hide/aa", "them/aa", "gone/aa", "mine/aa"} {
			out := pipe(t, h.server, k, call(1, tool, `{"label":"`+label+`"}`))
			masked := strings.ReplaceAll(out, label, "LABEL")
			if first == "" {
				first = masked
			}
			if masked != first || replies(t, out)[0].refusal(t).Error != "not_found" {
				t.Errorf("%s of %s answers\n%s, of an absent label\n%s", tool, label, masked, first)
			}
		}
	}
	// The control: a label that can be seen answers otherwise.
	if r := talk(t, h.server, k, call(1, "get_secret", `{"label":"mine/one"}`))[0]; value[map[string]any](t, r)["value"] != "x" {
		t.Errorf("a visible label answers %s", r.raw)
	}
	if out := pipe(t, h.server, k, call(1, "list_labels", `{}`), call(2, "list_labels", `{"prefix":"hide"}`)); strings.Contains(out, "hide/aa") || !strings.Contains(out, "mine/one") {
		t.Errorf("list_labels shows %s", out)
	}
}

func TestRefusedArguments(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	h.put(k, secret("openai", "v"))
	const canary = "CANARY-argument"
	for _, c := range []struct{ tool, arguments, message string }{
		{"get_secret", `"CANARY-argument"`, "Arguments must be a JSON object."},
		{"get_secret", `["CANARY-argument"]`, "Arguments must be a JSON object."},
		{"get_secret", `7`, "Arguments must be a JSON object."},
		{"get_secret", `null`, "Argument label is required."},
		{"get_secret", `{}`, "Argument label is required."},
		{"get_secret", `{"label":null}`, "Argument label is required."},
		{"get_secret", `{"label":""}`, "Argument label must be a string of 1 to 128 characters."},
		{"get_secret", `{"label":7}`, "Argument label must be a string of 1 to 128 characters."},
		{"get_secret", `{"label":["CANARY-argument"]}`, "Argument label must be a string of 1 to 128 characters."},
		{"get_secret", `{"label":"` + strings.Repeat("x", 129) + `"}`, "Argument label must be a string of 1 to 128 characters."},
		{"get_secret", `{"label":"CANARY-argument\u0000"}`, ""},
		{"get_secret", `{"label":"\ud800CANARY-argument"}`, ""},
		{"get_secret", `{"label":"openai","field":""}`, "Argument field must be a string of 1 to 64 characters."},
		{"get_secret", `{"label":"openai","field":{"x":"CANARY-argument"}}`, "Argument field must be a string of 1 to 64 characters."},
		{"get_secret", `{"label":"openai","label":"openai"}`, "An argument is given twice."},
		{"get_secret", `{"label":"openai","\u006cabel":"openai"}`, "An argument is given twice."},
		{"get_secret", `{"label":"openai","field":{"\"x\":":[1,{"y":2}]},"field":null}`, "An argument is given twice."},
		{"get_secret", `{"label":"openai","field":{"\"x\":":[1,{"y":2}],"z":":"}}`, "Argument field must be a string of 1 to 64 characters."},
		{"get_secret", `{"label":"openai","name":"openai"}`, "There is an argument this tool does not have."},
		{"get_secret", `{"label":"openai","CANARY-argument":1}`, "There is an argument this tool does not have."},
		{"get_secret", `{"Label":"openai"}`, "Argument label is required."},
		{"get_totp_code", `{"label":"openai","min_remaining":"CANARY-argument"}`, "Argument min_remaining must be an integer from 0 to 299."},
		{"get_totp_code", `{"label":"openai","min_remaining":1.5}`, "Argument min_remaining must be an integer from 0 to 299."},
		{"get_totp_code", `{"label":"openai","min_remaining":300}`, "Argument min_remaining must be an integer from 0 to 299."},
		{"get_totp_code", `{"label":"openai","min_remaining":-1}`, "Argument min_remaining must be an integer from 0 to 299."},
		{"list_labels", `{"prefix":"CANARY argument"}`, "Argument prefix must be the start of a label."},
		{"list_labels", `{"prefix":["CANARY-argument"]}`, "Argument prefix must be a string of 0 to 128 characters."},
		{"list_labels", `{"label":"openai"}`, "There is an argument this tool does not have."},
	} {
		for era, params := range eras {
			before := denials(t, h)
			r := talk(t, h.server, k, request(1, "tools/call", params(fmt.Sprintf(`"name":%q,"arguments":%s`, c.tool, c.arguments))))[0]
			got := r.refusal(t)
			if got.Error != "bad_request" || (c.message != "" && got.Message != c.message) {
				t.Errorf("%s %s %s = %+v, want %q", era, c.tool, c.arguments, got, c.message)
			}
			if strings.Contains(r.raw+h.log.String(), canary) {
				t.Errorf("%s %s echoes an argument: %s", c.tool, c.arguments, r.raw)
			}
			after := denials(t, h)
			if len(after) != len(before)+1 || after[len(after)-1].Why != "bad_request" {
				t.Errorf("%s %s left %d audit lines, want one that says bad_request", c.tool, c.arguments, len(after)-len(before))
			}
		}
	}
}

// denials returns the lines of refused attempts.
func denials(t testing.TB, h *house) []audit.Record {
	t.Helper()
	var all []audit.Record
	for line, err := range h.keeper.Audit(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if line.Denied {
			all = append(all, line.Record)
		}
	}
	return all
}

func TestHiddenAndUnknownToolsLookAlikeAndAreRecorded(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{Scopes: identity.Scopes(identity.List)})
	h.put(k, secret("openai", "CANARY"))
	c := dial(t, h.server, k)
	var list struct{ Tools []struct{ Name string } }
	if err := json.Unmarshal(c.ask(request(1, "tools/list", "{}")).Result, &list); err != nil || len(list.Tools) != 1 || list.Tools[0].Name != "list_labels" {
		t.Fatalf("tools/list with scope list = %+v, %v", list, err)
	}
	var first string
	for _, tool := range []struct {
		name, why string
		event     audit.Event
	}{{"http_request", "bad_request", audit.Auth}, {"get_secret", "forbidden", audit.Get}, {"get_totp_code", "forbidden", audit.Code}, {"put_secret", "bad_request", audit.Auth}} {
		before := len(denials(t, h))
		r := c.ask(call(1, tool.name, `{"label":"openai"}`))
		masked := strings.ReplaceAll(r.raw, tool.name, "TOOL")
		if first == "" {
			first = masked
		}
		if masked != first || r.Error == nil || r.Error.Code != -32602 || r.Error.Message != "tool '"+tool.name+"' not found: tool not found" {
			t.Errorf("%s answers %s, want %s", tool.name, r.raw, first)
		}
		lines := denials(t, h)
		if len(lines) != before+1 || lines[before].Event != tool.event || lines[before].Why != tool.why {
			t.Errorf("%s left %+v", tool.name, lines[before:])
		}
	}
	for _, params := range []string{`[1]`, `{"name":["CANARY"]}`, `{"name":"CANARY with blanks"}`, `{}`} {
		before := len(denials(t, h))
		r := c.ask(request(1, "tools/call", params))
		if r.Error == nil || strings.Contains(r.raw, "CANARY") {
			t.Errorf("tools/call %s answers %s", params, r.raw)
		}
		if n := len(denials(t, h)) - before; n != 1 {
			t.Errorf("tools/call %s left %d audit lines, want 1", params, n)
		}
	}
	// Without a list before it the gate judges the call.
	if r := talk(t, h.server, k, call(1, "get_secret", `{"label":"openai"}`))[0].refusal(t); r.Error != "forbidden" {
		t.Errorf("get_secret without its scope answers %+v", r)
	}
}

func TestPanicStaysInside(t *testing.T) {
	h := newHouse(t)
	k := h.agent("a", identity.Grant{})
	for name, u := range map[string]mcp.Unlock{
		"unlock panics": func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) { panic("CANARY in a panic") },
		"no vault":      func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) { return nil, nil },
		"empty vault":   func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) { return &vault.Vault{}, nil },
	} {
		for era, params := range eras {
			h.log.Reset()
			c := dial(t, h.serve(u), k)
			r := c.ask(request(1, "tools/call", params(`"name":"get_secret","arguments":{"label":"x"}`)))
			if got := r.refusal(t); got.Error != "unavailable" || got.Message != "internal error" {
				t.Errorf("%s, %s: %s", name, era, r.raw)
			}
			if r := c.ask(request(2, "tools/call", params(`"name":"unknown"`))); r.Error == nil || r.Error.Code != -32602 {
				t.Errorf("%s, %s, unknown tool: %s", name, era, r.raw)
			}
			list := c.ask(request(3, "tools/list", params("")))
			ping := c.ask(request(4, "ping", "{}"))
			if out := r.raw + list.raw + ping.raw; strings.Contains(out+h.log.String(), "CANARY") || strings.Contains(out, "goroutine") || string(ping.Result) != "{}" {
				t.Errorf("%s, %s: %s\n%s", name, era, out, h.log)
			}
			if log := h.log.String(); !strings.Contains(log, "msg=panic") || !strings.Contains(log, "mcp.(*Server)") || strings.Contains(log, "0x") {
				t.Errorf("%s, %s: the log should name the panic and its place, without arguments: %s", name, era, log)
			}
		}
	}
}
