package mcp

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// The fixture is the server that the MCP conformance suite is pointed at: the
// tools, prompts, resources and completions that its scenarios ask for, on the
// whole stack of this package. It lives in the test binary, so nothing of it
// ships. What it leaves out, and why, is in testdata/conformance.yml.

var (
	fixtureAddr = flag.String("fixture.addr", "", "serve the conformance fixture on this address until a signal")
	fixtureOpen = flag.String("fixture.open", "", "serve it on this address too, with the key filled in: the suite has no option for a header")
	fixtureBare = flag.Bool("fixture.bare", false, "serve the tools of the product only")
)

func TestFixtureServer(t *testing.T) {
	if *fixtureAddr == "" {
		t.Skip("a server for the conformance suite: needs -fixture.addr")
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	keeper, key := fixtureVault(t)
	s := New(keeper.Unlock, Options{Version: "fixture", HTTP: HTTPOptions{Loopback: true, Rate: -1}})
	if !*fixtureBare {
		s.equip()
	}
	h := s.Handler()
	open := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+key.Reveal())
		h.ServeHTTP(w, r)
	})
	ended := make(chan error, 2)
	for addr, h := range map[string]http.Handler{*fixtureAddr: h, *fixtureOpen: open} {
		if addr == "" {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
		defer srv.Close()
		go func() { ended <- srv.Serve(l) }()
		t.Logf("serving on %s", l.Addr())
	}
	select {
	case <-ctx.Done():
	case err := <-ended:
		t.Error(err)
	}
}

// fixtureVault returns a real store with one identity that has one label.
func fixtureVault(t *testing.T) (*vault.Keeper, identity.Key) {
	store, err := bolt.Create(t.TempDir(), bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	root := vault.NewRoot()
	if _, err := vault.Init(t.Context(), store, root, vault.InitOptions{NoRecovery: true}); err != nil {
		t.Fatal(err)
	}
	keeper := vault.Open(store, func(context.Context, identity.ID) (vault.Root, error) { return root, nil }, vault.Options{})
	t.Cleanup(func() { keeper.Close() })
	key, err := keeper.Create(t.Context(), vault.NewIdentity{Name: "fixture", NoRecovery: true})
	if err != nil {
		t.Fatal(err)
	}
	entry := vault.NewEntry{Label: "demo", Fields: []vault.Field{{Name: "value", Value: []byte("v")}}}
	if _, err := keeper.Import(t.Context(), key.Identity(), []vault.NewEntry{entry}, true); err != nil {
		t.Fatal(err)
	}
	return keeper, key
}

const (
	redPixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
	silence  = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
)

// schema2020 has what the suite expects to be passed on, and in its last $defs
// what some clients cannot read: a check for that must find it here.
const schema2020 = `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"$defs":{"address":{"$anchor":"addressDef","type":"object","properties":{"street":{"type":"string"},"city":{"type":"string"}}},"anything":true},
"properties":{"name":{"type":"string"},"address":{"$ref":"#/$defs/address"},"contactMethod":{"type":"string","enum":["phone","email"]},"phone":{"type":"string"},"email":{"type":"string"}},
"allOf":[{"anyOf":[{"required":["phone"]},{"required":["email"]}]}],
"if":{"properties":{"contactMethod":{"const":"phone"}},"required":["contactMethod"]},"then":{"required":["phone"]},"else":{"required":["email"]},
"additionalProperties":false}`

// equip adds what the suite's scenarios ask for. The tools run behind the
// edge and the scope filter, as the product's do.
func (s *Server) equip() {
	states := newStates()
	hooks := &server.Hooks{}
	hooks.AddOnError(s.strayCall)
	hooks.AddOnRequestInitialization(states.check)
	for _, option := range []server.ServerOption{
		server.WithHooks(hooks),
		server.WithPromptCapabilities(false),
		server.WithResourceCapabilities(false, false),
		server.WithCompletions(),
		server.WithPromptCompletionProvider(completer{}),
	} {
		option(s.proto)
	}
	tools := fixtureTools(states)
	for _, name := range slices.Sorted(maps.Keys(tools)) {
		s.tools[name] = tool{name: name, scope: identity.Read}
		schema := `{"type":"object"}`
		if name == "json_schema_2020_12_tool" {
			schema = schema2020
		}
		s.proto.AddTool(mcp.NewToolWithRawSchema(name, "Answers what the conformance suite expects.", []byte(schema)),
			func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				return tools[name](r.Params)
			})
	}
	addResources(s.proto)
	addPrompts(s.proto)
}

type completer struct{}

func (completer) CompletePromptArgument(_ context.Context, _ string, a mcp.CompleteArgument, _ mcp.CompleteContext) (*mcp.Completion, error) {
	return &mcp.Completion{Values: []string{a.Value + "-1", a.Value + "-2"}, Total: 2}, nil
}

// fixtureTool answers a call; an error is refused by the edge.
type fixtureTool func(mcp.CallToolParams) (*mcp.CallToolResult, error)

func fixtureTools(states *states) map[string]fixtureTool {
	tools := map[string]fixtureTool{
		"json_schema_2020_12_tool":   says(mcp.NewTextContent("Nothing is done.")),
		"test_simple_text":           says(mcp.NewTextContent("This is a simple text response for testing.")),
		"test_image_content":         says(mcp.NewImageContent(redPixel, "image/png")),
		"test_audio_content":         says(mcp.NewAudioContent(silence, "audio/wav")),
		"test_embedded_resource":     says(embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
		"test_logging_tool":          says(mcp.NewTextContent("No log message is sent.")),
		"test_streaming_elicitation": says(mcp.NewTextContent("Nothing is asked.")),
		"test_multiple_content_types": says(
			mcp.NewTextContent("Multiple content types test:"),
			mcp.NewImageContent(redPixel, "image/png"),
			embedded("test://mixed-content-resource", "application/json", `{"test":"data","value":123}`)),
		"test_error_handling": func(mcp.CallToolParams) (*mcp.CallToolResult, error) {
			return nil, errors.New("this tool always fails")
		},
		"test_input_required_result_capabilities": withinCapabilities,
	}
	for name, rounds := range asking() {
		tools[name] = rounds.tool(name, states)
	}
	return tools
}

func says(content ...mcp.Content) fixtureTool {
	return func(mcp.CallToolParams) (*mcp.CallToolResult, error) {
		return &mcp.CallToolResult{Content: content}, nil
	}
}

func embedded(uri, kind, text string) mcp.EmbeddedResource {
	return mcp.NewEmbeddedResource(mcp.TextResourceContents{URI: uri, MIMEType: kind, Text: text})
}

// withinCapabilities asks only what the client says it can answer.
func withinCapabilities(p mcp.CallToolParams) (*mcp.CallToolResult, error) {
	b := server.NewInputRequestBuilder("")
	if can := p.Meta.ClientCapabilities(); can != nil {
		if can.Sampling != nil {
			b.Sample("greeting", sampling("Generate a greeting"))
		}
		if can.Elicitation != nil {
			b.Elicit("user_name", form("What is your name?", "name", "string"))
		}
	}
	return b.ToolResult(), nil
}

// questions are the rounds of a tool that asks back.
type questions struct {
	rounds []map[string]any // elicitation, sampling or nil for roots, by id
	state  bool             // a round is known by its requestState
}

// asking are the tools that ask back.
func asking() map[string]questions {
	return map[string]questions{
		"test_input_required_result_elicitation": {rounds: []map[string]any{{"user_name": form("What is your name?", "name", "string")}}},
		"test_input_required_result_sampling":    {rounds: []map[string]any{{"capital_question": sampling("What is the capital of France?")}}},
		"test_input_required_result_list_roots":  {rounds: []map[string]any{{"client_roots": nil}}},
		"test_input_required_result_multiple_inputs": {state: true, rounds: []map[string]any{{
			"user_name":    form("What is your name?", "name", "string"),
			"greeting":     sampling("Generate a greeting"),
			"client_roots": nil,
		}}},
		"test_input_required_result_request_state":  {state: true, rounds: []map[string]any{{"confirm": form("Please confirm", "ok", "boolean")}}},
		"test_input_required_result_tampered_state": {state: true, rounds: []map[string]any{{"confirm": form("Please confirm", "ok", "boolean")}}},
		"test_input_required_result_multi_round": {state: true, rounds: []map[string]any{
			{"step1": form("Step 1: What is your name?", "name", "string")},
			{"step2": form("Step 2: What is your favorite color?", "color", "string")},
		}},
	}
}

// tool asks the first round that is not answered; after the last it is done.
func (q questions) tool(name string, states *states) fixtureTool {
	return func(p mcp.CallToolParams) (*mcp.CallToolResult, error) {
		round, known := states.round(name, p.RequestState)
		if (known || !q.state) && answered(q.rounds[round], p.InputResponses) {
			round++
		}
		if round >= len(q.rounds) {
			return mcp.NewToolResultText("Done: state-ok."), nil
		}
		state := ""
		if q.state {
			state = states.seal(name, round)
		}
		return ask(server.NewInputRequestBuilder(state), q.rounds[round]).ToolResult(), nil
	}
}

func ask(b *server.InputRequestBuilder, requests map[string]any) *server.InputRequestBuilder {
	for id, request := range requests {
		switch r := request.(type) {
		case mcp.ElicitationParams:
			b.Elicit(id, r)
		case mcp.CreateMessageParams:
			b.Sample(id, r)
		default:
			b.Roots(id)
		}
	}
	return b
}

// answered reports whether each request has an answer of its kind.
func answered(requests map[string]any, given mcp.InputResponses) bool {
	for id, request := range requests {
		ok := false
		switch request.(type) {
		case mcp.ElicitationParams:
			ok = server.ElicitationResponse(given, id) != nil
		case mcp.CreateMessageParams:
			ok = server.SamplingResponse(given, id) != nil
		default:
			ok = server.RootsResponse(given, id) != nil
		}
		if !ok {
			return false
		}
	}
	return true
}

func form(question, field, kind string) mcp.ElicitationParams {
	return mcp.ElicitationParams{Message: question, RequestedSchema: map[string]any{
		"type": "object", "properties": map[string]any{field: map[string]any{"type": kind}}, "required": []string{field},
	}}
}

func sampling(question string) mcp.CreateMessageParams {
	return mcp.CreateMessageParams{MaxTokens: 100, Messages: []mcp.SamplingMessage{{Role: mcp.RoleUser, Content: mcp.NewTextContent(question)}}}
}

// states seals the requestState of the tools: which tool, which round.
type states struct{ key []byte }

func newStates() *states {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	return &states{key}
}

func (s *states) seal(tool string, round int) string {
	m := hmac.New(sha256.New, s.key)
	fmt.Fprintf(m, "%s %d", tool, round)
	return fmt.Sprintf("%d.%s", round, hex.EncodeToString(m.Sum(nil)))
}

// round returns the round that a state was given out for.
func (s *states) round(tool, state string) (int, bool) {
	for round := range asking()[tool].rounds {
		if hmac.Equal([]byte(s.seal(tool, round)), []byte(state)) {
			return round, true
		}
	}
	return 0, false
}

// check refuses a call with a state that was not given out for its tool. It
// runs before the library reads the request, because the suite takes nothing
// but a JSON-RPC error here, and the edge turns every error into a result.
func (s *states) check(_ context.Context, _ any, message any) error {
	var call struct {
		Method mcp.MCPMethod
		Params struct{ Name, RequestState string }
	}
	raw, _ := message.(json.RawMessage)
	if json.Unmarshal(raw, &call) != nil || call.Method != mcp.MethodToolsCall || call.Params.RequestState == "" {
		return nil
	}
	if _, ok := s.round(call.Params.Name, call.Params.RequestState); !ok {
		return errors.New("requestState rejected")
	}
	return nil
}

func addResources(s *server.MCPServer) {
	s.AddResource(mcp.NewResource("test://static-text", "static-text", mcp.WithResourceDescription("A text."), mcp.WithMIMEType("text/plain")),
		func(_ context.Context, r mcp.ReadResourceRequest) ([]mcp.ResourceContents, error) {
			return []mcp.ResourceContents{mcp.TextResourceContents{URI: r.Params.URI, MIMEType: "text/plain", Text: "This is the content of the static text resource."}}, nil
		})
	s.AddResource(mcp.NewResource("test://static-binary", "static-binary", mcp.WithResourceDescription("An image."), mcp.WithMIMEType("image/png")),
		func(_ context.Context, r mcp.ReadResourceRequest) ([]mcp.ResourceContents, error) {
			return []mcp.ResourceContents{mcp.BlobResourceContents{URI: r.Params.URI, MIMEType: "image/png", Blob: redPixel}}, nil
		})
	s.AddResourceTemplate(mcp.NewResourceTemplate("test://template/{id}/data", "template", mcp.WithTemplateDescription("Data of one id."), mcp.WithTemplateMIMEType("application/json")),
		func(_ context.Context, r mcp.ReadResourceRequest) ([]mcp.ResourceContents, error) {
			id := strings.TrimSuffix(strings.TrimPrefix(r.Params.URI, "test://template/"), "/data")
			text := fmt.Sprintf(`{"id":%q,"templateTest":true,"data":%q}`, id, "Data for ID: "+id)
			return []mcp.ResourceContents{mcp.TextResourceContents{URI: r.Params.URI, MIMEType: "application/json", Text: text}}, nil
		})
}

func addPrompts(s *server.MCPServer) {
	prompt := func(name string, content func(args map[string]string) []mcp.Content, arguments ...string) {
		options := []mcp.PromptOption{mcp.WithPromptDescription("A prompt of the conformance suite.")}
		for _, a := range arguments {
			options = append(options, mcp.WithArgument(a, mcp.ArgumentDescription("Comes back in the message."), mcp.RequiredArgument()))
		}
		s.AddPrompt(mcp.NewPrompt(name, options...), func(_ context.Context, r mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			result := &mcp.GetPromptResult{}
			for _, c := range content(r.Params.Arguments) {
				result.Messages = append(result.Messages, mcp.NewPromptMessage(mcp.RoleUser, c))
			}
			return result, nil
		})
	}
	prompt("test_simple_prompt", func(map[string]string) []mcp.Content {
		return []mcp.Content{mcp.NewTextContent("This is a simple prompt for testing.")}
	})
	prompt("test_prompt_with_arguments", func(args map[string]string) []mcp.Content {
		return []mcp.Content{mcp.NewTextContent(fmt.Sprintf("Prompt with arguments: arg1='%s', arg2='%s'", args["arg1"], args["arg2"]))}
	}, "arg1", "arg2")
	prompt("test_prompt_with_embedded_resource", func(args map[string]string) []mcp.Content {
		return []mcp.Content{
			embedded(args["resourceUri"], "text/plain", "Embedded resource content for testing."),
			mcp.NewTextContent("Please process the embedded resource above."),
		}
	}, "resourceUri")
	prompt("test_prompt_with_image", func(map[string]string) []mcp.Content {
		return []mcp.Content{mcp.NewImageContent(redPixel, "image/png"), mcp.NewTextContent("Please analyze the image above.")}
	})
	question := map[string]any{"user_context": form("What context should the prompt use?", "context", "string")}
	s.AddPrompt(mcp.NewPrompt("test_input_required_result_prompt", mcp.WithPromptDescription("A prompt that asks back.")),
		func(_ context.Context, r mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			if !answered(question, r.Params.InputResponses) {
				return ask(server.NewInputRequestBuilder(""), question).PromptResult(), nil
			}
			return &mcp.GetPromptResult{Messages: []mcp.PromptMessage{mcp.NewPromptMessage(mcp.RoleUser, mcp.NewTextContent("Prompt with context."))}}, nil
		})
}
