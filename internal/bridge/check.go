package bridge

import (
	"context"
	"encoding/json"
)

// Found is what an endpoint says about itself.
type Found struct {
	Name  string // of the server
	Tools int    // that the key may call
}

// Check asks an endpoint for its tools, after a handshake. An error is a
// [Refusal]. Options.Local is not used.
func Check(ctx context.Context, o Options) (Found, error) {
	c := newClient(o)
	defer c.close()
	var hello struct {
		Info struct {
			Name string `json:"name"`
		} `json:"serverInfo"`
	}
	const shake = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"solekey","version":"1"}}}`
	if why := c.want(ctx, shake, &hello); why != nil {
		return Found{}, why
	}
	var list struct {
		Tools []struct {
			Name string `json:"name"`
		} `json:"tools"`
	}
	if why := c.want(ctx, `{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{}}`, &list); why != nil {
		return Found{}, why
	}
	return Found{Name: plain(hello.Info.Name), Tools: len(list.Tools)}, nil
}

// want sends a request and reads its result into v.
func (c *client) want(ctx context.Context, line string, v any) *Refusal {
	m, _ := parse([]byte(line))
	answer, why := c.exchange(ctx, m, []byte(line), func([]byte) {})
	if why != nil {
		return why
	}
	var a message
	if json.Unmarshal(answer, &a) != nil || a.Result == nil || json.Unmarshal(a.Result, v) != nil {
		return c.endpoint.garbled()
	}
	return nil
}

// plain is a word of the endpoint that may be printed, or nothing.
func plain(s string) string {
	if len(s) > 64 || !visible(s) {
		return ""
	}
	return s
}
