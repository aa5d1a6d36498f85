package mcp

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mark3labs/mcp-go/mcp"
)

// TestLeanResultReadsAsTheLibraryWritesIt compares the bytes, for results with
// each part that there is.
func TestLeanResultReadsAsTheLibraryWritesIt(t *testing.T) {
	text := []mcp.Content{mcp.TextContent{Type: mcp.ContentTypeText, Text: `{"value":"<a> & \u2028"}`}}
	whole := func(change func(*mcp.CallToolResult)) *mcp.CallToolResult {
		r := &mcp.CallToolResult{Content: text}
		change(r)
		return r
	}
	for name, c := range map[string]struct {
		result *mcp.CallToolResult
		lean   bool
	}{
		"text":           {whole(func(*mcp.CallToolResult) {}), true},
		"empty":          {whole(func(r *mcp.CallToolResult) { r.Content = []mcp.Content{} }), true},
		"no content":     {whole(func(r *mcp.CallToolResult) { r.Content = nil }), false},
		"error":          {whole(func(r *mcp.CallToolResult) { r.IsError = true }), true},
		"structured":     {whole(func(r *mcp.CallToolResult) { r.StructuredContent = json.RawMessage(`{"value":"<a> & b"}`) }), true},
		"raw structured": {whole(func(r *mcp.CallToolResult) { r.RawStructuredContent = json.RawMessage(`{"value":1}`) }), false},
		"modern": {whole(func(r *mcp.CallToolResult) {
			r.ResultType = mcp.ResultTypeComplete
			r.EnsureResultMeta().SetServerInfo(mcp.Implementation{Name: "solekey"})
		}), true},
		"state": {whole(func(r *mcp.CallToolResult) { r.RequestState = "s" }), false},
	} {
		want, err := json.Marshal(c.result)
		if err != nil {
			t.Fatal(err)
		}
		result := lean(c.result)
		got, err := json.Marshal(result)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := result.(leanResult); ok != c.lean {
			t.Errorf("%s: lean = %v, want %v", name, ok, c.lean)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-library +lean):\n%s", name, diff)
		}
	}
	// A part that the library adds would be lost: look at lean again.
	known := []string{"Result", "Meta", "ResultType", "MultiRoundTripResult", "InputRequests", "RequestState", "Content", "StructuredContent", "RawStructuredContent", "IsError"}
	var parts []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[mcp.CallToolResult]()) {
		if f.IsExported() {
			parts = append(parts, f.Name)
		}
	}
	if diff := cmp.Diff(known, parts); diff != "" {
		t.Errorf("parts of a result (-known +library):\n%s", diff)
	}
}
