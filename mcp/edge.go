package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
)

// The edge between the tools and the protocol library. It is the only place
// that builds results, and the outermost one: panics and errors stop here,
// since the library would send their text on.

// edge wraps every tool handler: it holds the caller to its rate, and what
// panics or fails inside becomes a tool error.
func (s *Server) edge(next server.ToolHandlerFunc) server.ToolHandlerFunc {
	return func(ctx context.Context, r mcp.CallToolRequest) (result *mcp.CallToolResult, _ error) {
		begun, word := time.Now(), vault.Word("")
		defer func() {
			if p := recover(); p != nil {
				s.logPanic(p)
				result, word = s.refused(errPanic)
			}
			s.endpoint.observe.Call(s.toolName(r.Params.Name), word, time.Since(begun))
		}()
		err := callerOf(ctx).admit(s.now())
		if err == nil {
			result, err = next(ctx, r)
		}
		if err != nil {
			result, word = s.refused(err)
		}
		return result, nil
	}
}

// toolName returns the name of one of our tools, or other.
func (s *Server) toolName(name string) string {
	if _, ok := s.tools[name]; ok {
		return name
	}
	return "other"
}

// errPanic stands for a panic, whose value stays inside.
var errPanic = errors.New("panic in a tool")

// serve returns the handler of t: it opens the caller's vault, runs the tool
// within its deadline and renders what it returns.
func (s *Server) serve(t tool) server.ToolHandlerFunc {
	return func(ctx context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		ctx, cancel := context.WithTimeout(ctx, t.limit)
		defer cancel()
		v, err := callerOf(ctx).unlock(ctx)
		if err != nil {
			return nil, err
		}
		out, err := t.run(ctx, v, r.Params.RawArguments)
		if refused := (errArguments{}); errors.As(err, &refused) {
			return nil, v.Deny(ctx, t.event, vault.Refuse(refused.error))
		}
		if err != nil {
			return nil, err
		}
		return released(out)
	}
}

// released renders what a tool returns: as structured content, and the same
// JSON as the one text block for clients that know no other.
func released(out any) (result *mcp.CallToolResult, err error) {
	seal.Do(func() {
		var text []byte
		if text, err = compact(out); err != nil {
			return
		}
		result = &mcp.CallToolResult{
			Content:           []mcp.Content{mcp.TextContent{Type: mcp.ContentTypeText, Text: string(text)}},
			StructuredContent: json.RawMessage(text),
		}
	})
	return result, err
}

// refusedOut is a refusal as agents read it.
type refusedOut struct {
	Error   vault.Word `json:"error"`
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
	Retry   int64      `json:"retry_after_ms,omitempty"`
}

// shown returns a refusal as agents read it.
func shown(r *vault.Refusal) refusedOut {
	return refusedOut{Error: r.Word.Agent(), Message: r.Message, Hint: r.Hint, Retry: r.RetryAfter.Milliseconds()}
}

// refused renders an error. It has no structured content: some clients check
// that against the output schema even here, and then lose the hint.
func (s *Server) refused(err error) (*mcp.CallToolResult, vault.Word) {
	r := vault.Refuse(err)
	if r.Word == vault.Internal {
		s.log.Error("tool failed", slog.String("cause", chain(r.Cause())))
	}
	text, err := compact(shown(r))
	if err != nil {
		text = []byte(`{"error":"unavailable","message":"internal error"}`)
	}
	return &mcp.CallToolResult{
		Content: []mcp.Content{mcp.TextContent{Type: mcp.ContentTypeText, Text: string(text)}},
		IsError: true,
	}, r.Word.Agent()
}

// strayCall records a tools/call that reached no tool: an unknown one, one
// that the key has no scope for, or a call that cannot be read. The library
// has answered it already.
func (s *Server) strayCall(ctx context.Context, _ any, method mcp.MCPMethod, message any, err error) {
	c := callerOf(ctx)
	if method != mcp.MethodToolsCall || c.admit(s.now()) != nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			s.logPanic(p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	v, failed := c.unlock(ctx)
	if failed != nil {
		return
	}
	name, event, refusal := "", audit.Auth, &vault.Refusal{Word: vault.BadRequest, Message: "There is no such tool."}
	if r, ok := message.(*mcp.CallToolRequest); ok && errors.Is(err, server.ErrToolNotFound) {
		name = r.Params.Name
		if t, hidden := s.tools[name]; hidden {
			event, refusal = t.event, vault.Refuse(identity.ErrForbidden)
		}
	}
	s.endpoint.observe.Call(s.toolName(name), refusal.Word, 0)
	if shown := vault.Refuse(v.Deny(ctx, event, refusal)); shown.Word != refusal.Word {
		s.log.Error("recording a refused call failed", slog.String("cause", chain(shown.Cause())))
	}
}

// compact marshals v without escaping < > &, which a model might copy out of
// a value as they stand.
func compact(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

// logPanic logs what panicked by type and place, without the value. It runs
// in the deferred call that recovered.
func (s *Server) logPanic(p any) {
	s.log.Error("panic", slog.String("type", fmt.Sprintf("%T", p)), slog.String("at", places()))
}

// calmly runs f, whose panic ends nothing but f.
func (s *Server) calmly(f func()) {
	defer func() {
		if p := recover(); p != nil {
			s.logPanic(p)
		}
	}()
	f()
}

// places names the functions above, innermost first. A stack trace of the
// runtime would show arguments too, and the first bytes of arrays among them.
func places() string {
	var b strings.Builder
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		f, more := frames.Next()
		fmt.Fprintf(&b, "%s %s:%d\n", f.Function, filepath.Base(f.File), f.Line)
		if !more {
			return b.String()
		}
	}
}

// chain names the types of the errors that err wraps, outermost first.
func chain(err error) string {
	var types []byte
	for ; err != nil; err = errors.Unwrap(err) {
		types = fmt.Appendf(types, "%T ", err)
	}
	return string(bytes.TrimSpace(types))
}
