package mcp_test

import (
	"strings"
	"testing"

	"github.com/solekey/solekey/mcp"
)

// TestUnknownToolsCountAgainstTheRate: each such call is a line of the log, so
// it must not be cheaper than one that reads.
func TestUnknownToolsCountAgainstTheRate(t *testing.T) {
	for name, strays := range map[string]int{"none before": 0, "a burst before": 4} {
		t.Run(name, func(t *testing.T) {
			e := newEstate(t, mcp.HTTPOptions{Loopback: true, Rate: 1}) // in bursts of four
			for range strays {
				e.post("/mcp", e.key, call(1, "no_such_tool", `{}`))
			}
			a := e.post("/mcp", e.key, call(2, "get_secret", `{"label":"openai"}`))
			if limited := strings.Contains(a.body, "rate_limited"); limited != (strays > 0) {
				t.Errorf("after %d calls of an unknown tool: %s", strays, a.body)
			}
		})
	}
}

func TestLabelThatIsAKeyIsNotRepeated(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true})
	escaped := strings.Replace(e.key.Reveal(), "_", "\\u005f", 1)
	a := e.post("/mcp", e.key, call(1, "get_secret", `{"label":"`+escaped+`"}`))
	if strings.Contains(a.body, e.key.Reveal()) || !strings.Contains(a.body, "leaked") {
		t.Errorf("the answer is %s", a.body)
	}
}
