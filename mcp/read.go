package mcp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault"
)

// The handlers of the read tools. Absent fields are left out, never null;
// times are RFC 3339 in UTC.

const (
	maxListed    = 500
	maxListBytes = 64 << 10
)

type getIn struct {
	label vault.Label
	field string
}

type getOut struct {
	Label    vault.Label `json:"label"`
	Kind     string      `json:"kind"`
	Field    string      `json:"field"`
	Value    string      `json:"value"`
	Encoding string      `json:"encoding"`
	Fields   []string    `json:"fields"`
	Version  uint32      `json:"version"`
	Expires  string      `json:"expires_at,omitempty"`
}

func parseGet(a *arguments) getIn {
	return getIn{label: a.label(), field: a.text("field", 1, 64)}
}

func getSecret(ctx context.Context, v *vault.Vault, in getIn) (getOut, error) {
	secret, err := v.Get(ctx, in.label, in.field)
	if err != nil {
		return getOut{}, err
	}
	out := getOut{
		Label:    secret.Label,
		Kind:     secret.Kind.String(),
		Field:    secret.Field,
		Encoding: "utf-8",
		Fields:   list(secret.Fields),
		Version:  secret.Version,
		Expires:  stamp(secret.Expires),
	}
	seal.Do(func() {
		if out.Value = secret.Reveal(); !utf8.ValidString(out.Value) {
			out.Value, out.Encoding = base64.StdEncoding.EncodeToString([]byte(out.Value)), "base64"
		}
	})
	return out, nil
}

type codeIn struct {
	label   vault.Label
	atLeast time.Duration
}

type codeOut struct {
	Label     vault.Label `json:"label"`
	Code      string      `json:"code"`
	Remaining int64       `json:"remaining"`
	Period    int64       `json:"period"`
	Until     string      `json:"valid_until"`
}

// parseCode asks for 10 seconds by default: a model needs time to type.
func parseCode(a *arguments) codeIn {
	return codeIn{label: a.label(), atLeast: time.Duration(a.whole("min_remaining", 0, 299, 10)) * time.Second}
}

func (s *Server) getCode(ctx context.Context, v *vault.Vault, in codeIn) (codeOut, error) {
	code, err := v.Code(ctx, in.label, in.atLeast)
	if err != nil {
		return codeOut{}, err
	}
	return codeOut{
		Label:     in.label,
		Code:      code.Digits,
		Remaining: max(0, int64(code.Until.Sub(s.now())/time.Second)),
		Period:    int64(code.Period / time.Second),
		Until:     stamp(code.Until),
	}, nil
}

type listIn struct{ prefix string }

type listOut struct {
	Labels    []json.RawMessage `json:"labels"` // listRow
	Count     int               `json:"count"`
	Truncated bool              `json:"truncated"`
}

type listRow struct {
	Label    vault.Label `json:"label"`
	Kind     string      `json:"kind"`
	Exposure string      `json:"exposure"`
	HasTOTP  bool        `json:"has_totp"`
	Expires  string      `json:"expires_at,omitempty"`
	Tags     []string    `json:"tags,omitempty"`
}

func parseList(a *arguments) listIn { return listIn{prefix: a.prefix()} }

// listLabels returns at most maxListed labels and about maxListBytes, so that
// a list cannot flood the context of a model.
func listLabels(ctx context.Context, v *vault.Vault, in listIn) (listOut, error) {
	infos, err := v.Labels(ctx, in.prefix)
	if err != nil {
		return listOut{}, err
	}
	out := listOut{Labels: []json.RawMessage{}}
	size := len(`{"labels":[],"count":500,"truncated":false}`)
	for _, info := range infos {
		row, err := json.Marshal(listRow{
			Label:    info.Label,
			Kind:     info.Kind.String(),
			Exposure: info.Exposure.String(),
			HasTOTP:  info.HasTOTP,
			Expires:  stamp(info.Expires),
			Tags:     info.Tags,
		})
		if err != nil {
			return listOut{}, err
		}
		size += len(row) + len(",")
		if out.Count == maxListed || size > maxListBytes {
			out.Truncated = true
			break
		}
		out.Labels = append(out.Labels, row)
		out.Count++
	}
	return out, nil
}

// list returns names as a list that is never null.
func list(names []string) []string {
	if names == nil {
		return []string{}
	}
	return names
}

// stamp writes t as results show times; the zero time is left out.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
