package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/mark3labs/mcp-go/mcp"
)

// JSON-RPC 2.0 messages, as every transport reads and answers them. The
// transports feed the library's message handler themselves and write its
// answers:
//
//   - A request is answered under exactly the id it came with.
//   - What is no message gets a JSON-RPC error with a constant text, and the
//     library's own errors lose what they quote of the request.
//   - A panic is an internal error, and its value stays inside.

const (
	maxDepth = 32
	maxParts = 4 << 10 // values in one message: the library makes maps of them, several times
	maxID    = 1 << 10
)

// message is the outside of a JSON-RPC message.
type message struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  mcp.MCPMethod   `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   json.RawMessage `json:"error"`
}

// parse reads the outside of a text, or returns the answer for one that is no
// message.
func parse(text []byte) (message, *answer) {
	var m message
	if deep, parts := shape(text); deep > maxDepth || parts > maxParts {
		return m, fault(idOf(text), mcp.INVALID_REQUEST, "The request is nested too deeply, or holds too many values.")
	}
	err := json.Unmarshal(text, &m)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) || !utf8.Valid(text) {
		return m, fault(nil, mcp.PARSE_ERROR, "Parse error")
	}
	if bytes.TrimLeft(text, " \t\r\n")[0] == '[' {
		return m, fault(nil, mcp.INVALID_REQUEST, "Batches are not supported.")
	}
	if ambiguous(text) {
		return m, fault(nil, mcp.INVALID_REQUEST, "A member is given twice, or in other letters.")
	}
	if m.ID != nil && !usableID(m.ID) {
		return m, fault(nil, mcp.INVALID_REQUEST, "The id must be a string or a number.")
	}
	answers := m.Result != nil || m.Error != nil
	if err != nil || m.Version != mcp.JSONRPC_VERSION || m.Method == "" && !answers || m.Method != "" && answers {
		return m, fault(m.ID, mcp.INVALID_REQUEST, "Invalid request")
	}
	if answers {
		m.ID = nil // an answer to a request that was never sent
	}
	return m, nil
}

// idOf returns the id of what is not decoded; nil if it has none to answer to.
func idOf(text []byte) json.RawMessage {
	var m struct {
		ID json.RawMessage `json:"id"`
	}
	if json.Unmarshal(text, &m) != nil || m.ID == nil || !usableID(m.ID) {
		return nil
	}
	return m.ID
}

func usableID(id json.RawMessage) bool {
	return len(id) <= maxID && (id[0] == '"' || id[0] == '-' || '0' <= id[0] && id[0] <= '9')
}

// shape returns how deep objects and arrays are nested in JSON, and about how
// many values there are. It allocates nothing, so it comes before decoding; of
// what is no JSON it may say anything.
func shape(b []byte) (deepest, parts int) {
	open, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
			if c == '\\' {
				i++
			}
		case c == '{' || c == '[':
			open++
			parts++
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		case c == ',':
			parts++
		}
	}
	return deepest, parts
}

// exchange has the library answer a request of the session name. The
// notifications belong before the answer: subscriptions/listen acknowledges,
// and then ends at once as nothing can be subscribed to.
func (s *Server) exchange(ctx context.Context, name string, m message, text []byte) ([]mcp.JSONRPCNotification, *answer) {
	own := &session{name: name}
	if m.Method == mcp.MethodSubscriptionsListen {
		own.notes = make(chan mcp.JSONRPCNotification, 1)
	}
	response := s.handle(s.proto.WithContext(ctx, own), m, text)
	var before []mcp.JSONRPCNotification
	select {
	case note := <-own.notes:
		before = append(before, note)
	default:
	}
	return before, reply(m, response)
}

// handle passes a message to the library; nil if that panics. Before a list
// it unlocks, so that the list shows what the key may do by now; if that fails
// the list shows all tools, and each call says why.
func (s *Server) handle(ctx context.Context, m message, text []byte) (response mcp.JSONRPCMessage) {
	defer func() {
		if p := recover(); p != nil {
			s.logPanic(p)
			response = nil
		}
	}()
	if m.Method == mcp.MethodToolsList {
		unlocking, cancel := context.WithTimeout(ctx, quick)
		defer cancel()
		_, _ = callerOf(ctx).unlock(unlocking)
	}
	return s.proto.HandleMessage(ctx, text)
}

// answer is a JSON-RPC response as it is written.
type answer struct {
	Version string                   `json:"jsonrpc"`
	ID      json.RawMessage          `json:"id"`
	Result  any                      `json:"result,omitempty"`
	Error   *mcp.JSONRPCErrorDetails `json:"error,omitempty"`
}

func fault(id json.RawMessage, code int, text string) *answer {
	if id == nil {
		id = json.RawMessage("null")
	}
	return &answer{Version: mcp.JSONRPC_VERSION, ID: id, Error: &mcp.JSONRPCErrorDetails{Code: code, Message: text}}
}

// reply puts the library's response under the id as the client wrote it: the
// library itself rounds large numbers.
func reply(m message, response mcp.JSONRPCMessage) *answer {
	switch r := response.(type) {
	case mcp.JSONRPCResponse:
		return &answer{Version: mcp.JSONRPC_VERSION, ID: m.ID, Result: lean(r.Result)}
	case mcp.JSONRPCError:
		return plain(m.ID, r.Error)
	}
	return fault(m.ID, mcp.INTERNAL_ERROR, "internal error")
}

// leanResult is what tools of ours return of a [mcp.CallToolResult], in the
// order in which the library writes it.
type leanResult struct {
	Meta       *mcp.Meta      `json:"_meta,omitempty"`
	Content    []mcp.Content  `json:"content"`
	IsError    bool           `json:"isError,omitempty"`
	Type       mcp.ResultType `json:"resultType,omitempty"`
	Structured any            `json:"structuredContent,omitempty"`
}

// lean spares a result of a tool the library's own encoding, which goes
// through a map and writes every value once more into a buffer of its own.
// Others, and results with parts that no tool of ours returns, stay as they
// are.
func lean(result any) any {
	r, ok := result.(*mcp.CallToolResult)
	if !ok || r.Content == nil || r.RawStructuredContent != nil || len(r.InputRequests) > 0 || r.RequestState != "" {
		return result
	}
	return leanResult{Meta: r.Meta, Content: r.Content, IsError: r.IsError, Type: r.ResultType, Structured: r.StructuredContent}
}

// plain returns an error of the library without what it quotes of the
// request, but for tool names and protocol versions.
func plain(id json.RawMessage, e mcp.JSONRPCErrorDetails) *answer {
	switch e.Code {
	case mcp.PARSE_ERROR, mcp.INVALID_REQUEST:
		return fault(id, mcp.INVALID_REQUEST, "Invalid request")
	case mcp.METHOD_NOT_FOUND:
		return fault(id, e.Code, "Method not found")
	case mcp.INVALID_PARAMS:
		if quotable(e.Message) {
			return fault(id, e.Code, e.Message)
		}
		return fault(id, e.Code, "Invalid params")
	case mcp.UNSUPPORTED_PROTOCOL_VERSION:
		return &answer{Version: mcp.JSONRPC_VERSION, ID: id, Error: &e}
	}
	return fault(id, mcp.INTERNAL_ERROR, "internal error")
}

// quotable reports whether an error names nothing but a well-formed tool or a
// field of _meta.
func quotable(text string) bool {
	if strings.HasPrefix(text, "missing or invalid _meta field ") {
		return true
	}
	name, ok := strings.CutPrefix(text, "tool '")
	if !ok {
		return false
	}
	name, ok = strings.CutSuffix(name, "' not found: tool not found")
	return ok && len(name) <= 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

// session is what the library knows of who asks: running requests are kept
// under its name and their id. Only subscriptions/listen gets one that can be
// notified.
type session struct {
	name  string
	notes chan mcp.JSONRPCNotification
}

func (s *session) Initialize()                                         {}
func (s *session) Initialized() bool                                   { return true }
func (s *session) NotificationChannel() chan<- mcp.JSONRPCNotification { return s.notes }
func (s *session) SessionID() string                                   { return s.name }
