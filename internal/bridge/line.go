package bridge

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// The outside of JSON-RPC messages. What is no message is answered like the
// stdio server of package mcp answers it, text by text.

const (
	maxLine  = 1 << 20
	maxDepth = 32
	maxID    = 1 << 10
)

// The codes and methods that mean something to the bridge.
const (
	parseError     = -32700
	invalidRequest = -32600
	internalError  = -32603

	methodInitialize   = "initialize"
	methodListen       = "subscriptions/listen"
	methodAcknowledged = "notifications/subscriptions/acknowledged"
	methodCall         = "tools/call"
	methodCancelled    = "notifications/cancelled"
)

// message is the outside of a JSON-RPC message.
type message struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   json.RawMessage `json:"error"`
}

// nextLine returns the next line of r, at most maxLine and one byte of it. At
// the end of r it returns what is left and the error.
func nextLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line) <= maxLine {
			line = append(line, part[:min(len(part), maxLine+1-len(line))]...)
		}
		if err != bufio.ErrBufferFull {
			return line, err
		}
	}
}

// parse reads the outside of a line, or returns the answer for one that is no
// message.
func parse(line []byte) (message, []byte) {
	var m message
	err := json.Unmarshal(line, &m)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) || !utf8.Valid(line) {
		return m, fault(nil, parseError, "Parse error")
	}
	if bytes.TrimLeft(line, " \t")[0] == '[' {
		return m, fault(nil, invalidRequest, "Batches are not supported.")
	}
	if m.ID != nil && !usableID(m.ID) {
		return m, fault(nil, invalidRequest, "The id must be a string or a number.")
	}
	answers := m.Result != nil || m.Error != nil
	switch {
	case err != nil || m.Version != "2.0" || m.Method == "" && !answers || m.Method != "" && answers:
		return m, fault(m.ID, invalidRequest, "Invalid request")
	case depth(line) > maxDepth:
		return m, fault(m.ID, invalidRequest, "The request is nested too deeply, or holds too many values.")
	}
	if answers {
		m.ID, m.Method = nil, "" // an answer to a request that was never sent
	}
	return m, nil
}

func usableID(id json.RawMessage) bool {
	return len(id) <= maxID && (id[0] == '"' || id[0] == '-' || '0' <= id[0] && id[0] <= '9')
}

// depth returns how deep objects and arrays are nested in valid JSON.
func depth(b []byte) int {
	deepest, open, quoted := 0, 0, false
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
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return deepest
}

// details is the error member of a JSON-RPC answer.
type details struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// fault returns an error as a line.
func fault(id json.RawMessage, code int, text string) []byte {
	if id == nil {
		id = json.RawMessage("null")
	}
	return compact(struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Error   details         `json:"error"`
	}{"2.0", id, details{code, text}})
}

// refused returns the answer to a tools/call that the endpoint did not answer:
// a tool error, since models see those, and no structured content, which some
// clients would check against the tool's schema.
func refused(m message, why *Refusal) []byte {
	text := compact(struct {
		Word    string `json:"error"`
		Message string `json:"message"`
		Hint    string `json:"hint,omitempty"`
		Retry   int64  `json:"retry_after_ms,omitempty"`
	}{why.Word, why.Message, why.Hint, why.RetryAfter.Milliseconds()})
	type block struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	type result struct {
		Type    string  `json:"resultType,omitempty"`
		Content []block `json:"content"`
		IsError bool    `json:"isError"`
	}
	r := result{Content: []block{{"text", string(text)}}, IsError: true}
	if modern(m.meta().version) {
		r.Type = "complete"
	}
	return success(m.ID, compact(r))
}

// success returns a result as a line.
func success(id, result json.RawMessage) []byte {
	return compact(struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Result  json.RawMessage `json:"result"`
	}{"2.0", id, result})
}

// compact marshals what cannot fail to one line, without escaping < > &.
func compact(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return []byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"internal error"}}`)
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}
