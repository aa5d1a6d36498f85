package catalog

import (
	"slices"
	"strings"
)

// service is what is known about the key of one provider.
type service struct {
	provider  string   // as people call it
	names     []string // of variables, exact
	prefixes  []string // a key begins with one of them; none, or "" among them: it may begin with anything
	hosts     []string // empty: no suggestion
	tenant    []string // variables that hold the endpoint, instead of hosts
	placement string
	user      string // the variable that placement basic names
	userStart string // what the user name begins with
	rotate    string
}

const bearer = "header:Authorization: Bearer"

// services is never written to.
var services = []service{
	{
		provider: "OpenAI", names: []string{"OPENAI_API_KEY"}, prefixes: []string{"sk-proj-", "sk-"},
		hosts: []string{"api.openai.com"}, placement: bearer, rotate: "https://platform.openai.com/api-keys",
	},
	{
		provider: "OpenRouter", names: []string{"OPENROUTER_API_KEY"}, prefixes: []string{"sk-or-"},
		hosts: []string{"openrouter.ai"}, placement: bearer, rotate: "https://openrouter.ai/settings/keys",
	},
	{
		provider: "Groq", names: []string{"GROQ_API_KEY"}, prefixes: []string{"gsk_"},
		hosts: []string{"api.groq.com"}, placement: bearer, rotate: "https://console.groq.com/keys",
	},
	{
		provider: "Mistral", names: []string{"MISTRAL_API_KEY"},
		hosts: []string{"api.mistral.ai"}, placement: bearer, rotate: "https://console.mistral.ai/api-keys",
	},
	{
		provider: "DeepSeek", names: []string{"DEEPSEEK_API_KEY"}, prefixes: []string{"sk-"},
		hosts: []string{"api.deepseek.com"}, placement: bearer, rotate: "https://platform.deepseek.com/api_keys",
	},
	{
		provider: "xAI", names: []string{"XAI_API_KEY"}, prefixes: []string{"xai-"},
		hosts: []string{"api.x.ai"}, placement: bearer, rotate: "https://console.x.ai",
	},
	{
		provider: "Perplexity", names: []string{"PERPLEXITY_API_KEY", "PPLX_API_KEY"}, prefixes: []string{"pplx-"},
		hosts: []string{"api.perplexity.ai"}, placement: bearer, rotate: "https://www.perplexity.ai/settings/api",
	},
	{
		provider: "Hugging Face", names: []string{"HF_TOKEN", "HUGGINGFACE_API_KEY", "HUGGINGFACEHUB_API_TOKEN"}, prefixes: []string{"hf_"},
		hosts: []string{"huggingface.co", "router.huggingface.co"}, placement: bearer, rotate: "https://huggingface.co/settings/tokens",
	},
	{
		provider: "Replicate", names: []string{"REPLICATE_API_TOKEN"}, prefixes: []string{"r8_"},
		hosts: []string{"api.replicate.com"}, placement: bearer, rotate: "https://replicate.com/account/api-tokens",
	},
	{
		provider: "Tavily", names: []string{"TAVILY_API_KEY"}, prefixes: []string{"tvly-"},
		hosts: []string{"api.tavily.com"}, placement: bearer, rotate: "https://app.tavily.com/home",
	},
	{
		provider: "GitHub", names: []string{"GITHUB_TOKEN", "GH_TOKEN", "GITHUB_PAT"}, prefixes: []string{"ghp_", "github_pat_", "gho_", "ghu_", "ghs_"},
		hosts: []string{"api.github.com"}, placement: bearer, rotate: "https://github.com/settings/tokens",
	},
	{
		provider: "Slack", names: []string{"SLACK_BOT_TOKEN", "SLACK_TOKEN"}, prefixes: []string{"xoxb-", "xoxp-"},
		hosts: []string{"slack.com"}, placement: bearer, rotate: "https://api.slack.com/apps",
	},
	{
		provider: "Stripe", names: []string{"STRIPE_SECRET_KEY", "STRIPE_API_KEY", "STRIPE_KEY"}, prefixes: []string{"sk_live_", "sk_test_", "rk_live_", "rk_test_"},
		hosts: []string{"api.stripe.com"}, placement: bearer, rotate: "https://dashboard.stripe.com/apikeys",
	},
	{
		provider: "Anthropic", names: []string{"ANTHROPIC_API_KEY", "CLAUDE_API_KEY"}, prefixes: []string{"sk-ant-"},
		hosts: []string{"api.anthropic.com"}, placement: "header:x-api-key", rotate: "https://console.anthropic.com/settings/keys",
	},
	{
		provider: "Gemini", names: []string{"GEMINI_API_KEY"}, prefixes: []string{"AIza"},
		hosts: []string{"generativelanguage.googleapis.com"}, placement: "header:x-goog-api-key", rotate: "https://aistudio.google.com/apikey",
	},
	{
		provider: "ElevenLabs", names: []string{"ELEVENLABS_API_KEY"}, prefixes: []string{"sk_"},
		hosts: []string{"api.elevenlabs.io"}, placement: "header:xi-api-key", rotate: "https://elevenlabs.io/app/settings/api-keys",
	},
	{
		provider: "Brave", names: []string{"BRAVE_API_KEY", "BRAVE_SEARCH_API_KEY"}, prefixes: []string{"BSA"},
		hosts: []string{"api.search.brave.com"}, placement: "header:X-Subscription-Token", rotate: "https://api-dashboard.search.brave.com/app/keys",
	},
	{
		provider: "GitLab", names: []string{"GITLAB_TOKEN"}, prefixes: []string{"glpat-"},
		hosts: []string{"gitlab.com"}, placement: "header:PRIVATE-TOKEN", rotate: "https://gitlab.com/-/user_settings/personal_access_tokens",
	},
	{
		provider: "Linear", names: []string{"LINEAR_API_KEY"}, prefixes: []string{"lin_api_"},
		hosts: []string{"api.linear.app"}, placement: "header:Authorization", rotate: "https://linear.app/settings/account/security",
	},
	{
		provider: "Discord", names: []string{"DISCORD_TOKEN", "DISCORD_BOT_TOKEN"},
		hosts: []string{"discord.com"}, placement: "header:Authorization: Bot", rotate: "https://discord.com/developers/applications",
	},
	{
		provider: "Telegram", names: []string{"TELEGRAM_BOT_TOKEN"}, prefixes: []string{botPrefix},
		hosts: []string{"api.telegram.org"}, placement: "path:/bot{{secret}}/", rotate: "https://t.me/BotFather",
	},
	{
		provider: "Twilio", names: []string{"TWILIO_AUTH_TOKEN"}, user: "TWILIO_ACCOUNT_SID", userStart: "AC",
		hosts: []string{"api.twilio.com"}, placement: "basic:TWILIO_ACCOUNT_SID", rotate: "https://console.twilio.com",
	},
	{
		provider: "SendGrid", names: []string{"SENDGRID_API_KEY"}, prefixes: []string{"SG."},
		hosts: []string{"api.sendgrid.com"}, placement: bearer, rotate: "https://app.sendgrid.com/settings/api_keys",
	},
	{
		provider: "Cloudflare", names: []string{"CLOUDFLARE_API_TOKEN", "CF_API_TOKEN"},
		hosts: []string{"api.cloudflare.com"}, placement: bearer, rotate: "https://dash.cloudflare.com/profile/api-tokens",
	},
	{
		provider: "Notion", names: []string{"NOTION_TOKEN", "NOTION_API_KEY"}, prefixes: []string{"ntn_", "secret_"},
		hosts: []string{"api.notion.com"}, placement: bearer, rotate: "https://www.notion.so/profile/integrations",
	},
	{
		provider: "Azure", names: []string{"AZURE_OPENAI_API_KEY"}, tenant: []string{"AZURE_OPENAI_ENDPOINT"},
		placement: "header:api-key", rotate: "https://portal.azure.com",
	},
	{
		provider: "Supabase", names: []string{"SUPABASE_SERVICE_ROLE_KEY"}, tenant: []string{"SUPABASE_URL", "NEXT_PUBLIC_SUPABASE_URL"},
		placement: "header:apikey", rotate: "https://supabase.com/dashboard/project/_/settings/api-keys",
	},
	// Services of many hosts, or of signed requests: no suggestion.
	{
		provider: "AWS", names: []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"},
		rotate: "https://console.aws.amazon.com/iam/home#/security_credentials",
	},
	{
		provider: "Google", names: []string{"GOOGLE_API_KEY"}, prefixes: []string{"AIza", ""},
		rotate: "https://console.cloud.google.com/apis/credentials",
	},
}

// botPrefix stands for the digits and the colon that a bot's token of
// Telegram begins with.
const botPrefix = "0:"

// findService returns the service whose key a variable of this name holds, or
// nil.
func findService(base string) *service {
	for i := range services {
		if slices.Contains(services[i].names, base) {
			return &services[i]
		}
	}
	return nil
}

func rotateURL(n name) string {
	if s := findService(n.base); s != nil {
		return s.rotate
	}
	return ""
}

// keyPrefix returns the longest known prefix that text begins with, or "".
func keyPrefix(text string) string {
	best := ""
	for i := range services {
		for _, p := range services[i].prefixes {
			if len(p) > len(best) && hasKeyPrefix(text, p) {
				best = p
			}
		}
	}
	return best
}

func hasKeyPrefix(text, prefix string) bool {
	if prefix == botPrefix {
		digits := len(text) - len(strings.TrimLeft(text, "0123456789"))
		return digits > 0 && strings.HasPrefix(text[digits:], ":")
	}
	return strings.HasPrefix(text, prefix)
}

// isDecisive reports whether a prefix alone tells the provider. Short and
// general ones tell nothing.
func isDecisive(prefix string) bool {
	switch prefix {
	case "", "sk-", "sk_", "secret_", "BSA", botPrefix:
		return false
	}
	return true
}

// issuer returns the name of the only provider that uses a prefix, or "".
func issuer(prefix string) string {
	if !isDecisive(prefix) {
		return ""
	}
	found := ""
	for i := range services {
		if slices.Contains(services[i].prefixes, prefix) {
			if found != "" {
				return ""
			}
			found = services[i].provider
		}
	}
	return found
}

// bind suggests hosts and placement if name and value agree, and warns if
// they do not: a key bound to a wrong host is a key given away.
func (h *Hint) bind(n name, text string, siblings map[string]string) {
	s := findService(n.base)
	if s == nil {
		return
	}
	prefix := keyPrefix(text)
	agree := slices.Contains(s.prefixes, prefix) || len(s.prefixes) == 0 && !isDecisive(prefix)
	if !agree {
		h.mismatch(s, issuer(prefix))
		return
	}
	h.RotateURL = s.rotate
	hosts, missing := s.bindHosts(siblings)
	if missing != "" {
		h.Notes = append(h.Notes, NoteNoHost+missing)
	}
	if len(hosts) > 0 {
		h.Hosts, h.Placement = hosts, s.placement
	}
}

func (h *Hint) mismatch(s *service, provider string) {
	h.Warn = true
	if provider == "" {
		h.Notes = append(h.Notes, NoteUnlike+s.provider)
		return
	}
	h.Notes = append(h.Notes, NoteLooksLike+provider)
}

// bindHosts returns the service's hosts, or the name of the sibling without
// which there are none.
func (s *service) bindHosts(siblings map[string]string) (hosts []string, missing string) {
	if s.user != "" && !strings.HasPrefix(trim(siblings[s.user]), s.userStart) {
		return nil, s.user
	}
	if len(s.tenant) == 0 {
		return slices.Clone(s.hosts), ""
	}
	for _, v := range s.tenant {
		if host := endpointHost(trim(siblings[v])); host != "" {
			return []string{host}, ""
		}
	}
	return nil, s.tenant[0]
}
