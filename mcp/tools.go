package mcp

import (
	"context"
	"encoding/json"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
)

// The table of tools. Schemas are literals, flat, without $ref or
// combinators, because some clients and models read no more. No stored text
// enters a description. The whole of it is testdata/tools.json.

const (
	quick = 10 * time.Second
	wait  = 45 * time.Second // a code may wait 35 s for its step
)

const labelSchema = `"label":{"type":"string","minLength":1,"maxLength":128,"pattern":"^[A-Za-z0-9._/-]+$","description":"Exact label, as in list_labels"}`

// tool is one row of the table.
type tool struct {
	name, title, about string
	in, out            string // JSON schemas
	readOnly           bool
	destructive        bool
	idempotent         bool
	openWorld          bool
	scope              identity.Scope
	event              audit.Event
	limit              time.Duration
	run                action
}

// action decodes the arguments of a call, makes it and returns what is shown.
// Refused arguments come back as [errArguments].
type action func(ctx context.Context, v *vault.Vault, raw json.RawMessage) (any, error)

// table returns all tools, in byte order of their names.
func (s *Server) table() []tool {
	return []tool{
		{
			name:  "get_secret",
			title: "Get secret",
			about: "Return one secret value by label. If the answer is forbidden, follow its hint.",
			in: `{"type":"object","properties":{` + labelSchema + `,` +
				`"field":{"type":"string","minLength":1,"maxLength":64,"description":"Field of the entry, e.g. username; default value"}},` +
				`"required":["label"],"additionalProperties":false}`,
			out: `{"type":"object","properties":{"label":{"type":"string"},"kind":{"type":"string"},"field":{"type":"string"},"value":{"type":"string"},` +
				`"encoding":{"type":"string","enum":["utf-8","base64"]},` +
				`"fields":{"type":"array","items":{"type":"string"},"description":"Readable field names"},` +
				`"version":{"type":"integer"},"expires_at":{"type":"string"}},` +
				`"required":["label","kind","field","value","encoding","fields","version"]}`,
			readOnly: true, idempotent: true,
			scope: identity.Read, event: audit.Get, limit: quick,
			run: bind(parseGet, getSecret),
		},
		{
			name:  "get_totp_code",
			title: "Get TOTP code",
			about: "Return the current one-time code of a label. Waits for the next code if this one is spent or has fewer than min_remaining seconds left.",
			in: `{"type":"object","properties":{` + labelSchema + `,` +
				`"min_remaining":{"type":"integer","minimum":0,"maximum":299,"description":"Seconds the code must stay valid; default 10"}},` +
				`"required":["label"],"additionalProperties":false}`,
			out: `{"type":"object","properties":{"label":{"type":"string"},"code":{"type":"string"},"remaining":{"type":"integer"},` +
				`"period":{"type":"integer"},"valid_until":{"type":"string"}},` +
				`"required":["label","code","remaining","period","valid_until"]}`,
			readOnly: true,
			scope:    identity.Code, event: audit.Code, limit: wait,
			run: bind(parseCode, s.getCode),
		},
		{
			name:  "list_labels",
			title: "List labels",
			about: "List the labels this key can see, with kind and exposure. Never returns values.",
			in: `{"type":"object","properties":{"prefix":{"type":"string","maxLength":128,"pattern":"^[A-Za-z0-9._/-]*$","description":"Only labels that start with this"}},` +
				`"additionalProperties":false}`,
			out: `{"type":"object","properties":{"labels":{"type":"array","items":{"type":"object","properties":{"label":{"type":"string"},"kind":{"type":"string"},` +
				`"exposure":{"type":"string","enum":["reveal","use","never"]},"has_totp":{"type":"boolean"},"expires_at":{"type":"string"},` +
				`"tags":{"type":"array","items":{"type":"string"}}},"required":["label","kind","exposure","has_totp"]}},` +
				`"count":{"type":"integer"},"truncated":{"type":"boolean"}},"required":["labels","count","truncated"]}`,
			readOnly: true, idempotent: true,
			scope: identity.List, event: audit.List, limit: quick,
			run: bind(parseList, listLabels),
		},
	}
}

// describe returns the tool as clients list it. All four hints are given: the
// library's defaults call every tool destructive.
func (t tool) describe() mcp.Tool {
	d := mcp.NewToolWithRawSchema(t.name, t.about, json.RawMessage(t.in))
	d.Title = t.title
	d.RawOutputSchema = json.RawMessage(t.out)
	d.Annotations = mcp.ToolAnnotation{
		ReadOnlyHint:    &t.readOnly,
		DestructiveHint: &t.destructive,
		IdempotentHint:  &t.idempotent,
		OpenWorldHint:   &t.openWorld,
	}
	return d
}

// bind joins a decoder of arguments and a handler to an action.
func bind[In, Out any](parse func(*arguments) In, do func(context.Context, *vault.Vault, In) (Out, error)) action {
	return func(ctx context.Context, v *vault.Vault, raw json.RawMessage) (any, error) {
		a := newArguments(raw)
		in := parse(a)
		if err := a.done(); err != nil {
			return nil, errArguments{err}
		}
		return do(ctx, v, in)
	}
}
