package catalog_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/solekey/solekey/internal/catalog"
)

// tail makes a prefix look like a key.
const tail = "Q7w2Zk9LmX4vB8nR3tYh6J"

const jwt = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2lnbmF0dXJl"

const pem = "-----BEGIN RSA PRIVATE KEY-----\nQUJD\n-----END RSA PRIVATE KEY-----"

func skip(k catalog.Kind, reason string) catalog.Hint {
	return catalog.Hint{Kind: k, Action: catalog.Skip, Reason: reason}
}

func take(k catalog.Kind, notes ...string) catalog.Hint {
	return catalog.Hint{Kind: k, Action: catalog.Import, Notes: notes}
}

var (
	config    = skip(catalog.None, "config")
	secret    = take(catalog.Secret)
	seed      = take(catalog.TOTP)
	weak      = take(catalog.Secret, "weak")
	public    = skip(catalog.None, "public by design")
	empty     = skip(catalog.None, "empty")
	reference = skip(catalog.None, "already a reference")
)

// noBinding compares what is imported and why, not where it is sent.
var noBinding = cmpopts.IgnoreFields(catalog.Hint{}, "Hosts", "Placement", "RotateURL")

var judged = []struct {
	name, value string
	want        catalog.Hint
}{
	// The name has a part that says secret.
	{"KEY", "v", secret}, {"APIKEY", "v", secret}, {"MY_APIKEY", "v", secret}, {"A_SECRET_B", "v", secret},
	{"X_TOKEN", "v", secret}, {"DB_PASSWORD", "s3same", secret}, {"A_PASSWD", "v", secret}, {"A_PASS", "v", secret},
	{"A_PWD", "v", secret}, {"A_CREDENTIAL", "v", secret}, {"A_CREDENTIALS", "v", secret}, {"A_PRIVATE", "v", secret},
	{"A_AUTH", "v", secret}, {"A_DSN", "v", secret}, {"SENTRY_DSN", "https://abc@o1.ingest.example/1", secret},
	{"A_WEBHOOK", "v", secret}, {"A_SALT", "v", secret}, {"A_CERT", "v", secret}, {"A_PEM", "v", secret},
	{"A_OTP", "v", secret}, {"A_TOTP", "v", secret}, {"A_2FA", "v", secret}, {"A_MFA", "v", secret},
	{"a.key", "v", secret}, {"a-token", "v", secret}, {"db/password", "v", secret}, {"WALLET_PASSPHRASE", "v", secret},
	{"MONKEY", "v", config}, {"KEYBOARD", "v", config}, {"PASSENGER", "v", config}, {"AUTHOR", "v", config},
	{"MAX_TOKENS", "auto", config},

	// The value looks like a secret.
	{"A", "ghp_" + tail, secret}, {"A", "github_pat_x", secret}, {"A", "sk-" + tail, secret}, {"A", "xoxb-1", secret},
	{"A", "8123456789:AAH" + tail + tail, secret}, {"A", "AIza" + tail, secret}, {"A", "BSA" + tail, secret},
	{"A", pem, secret}, {"A", "-----BEGIN PRIVATE KEY-----\nx", secret}, {"A", "-----BEGIN PGP PRIVATE KEY BLOCK-----", secret},
	{"A", strings.ReplaceAll(pem, "\n", `\n`), secret}, {"A", jwt, secret},
	{"DATABASE_URL", "postgres://app:s3same@db/x", secret}, {"REDIS_URL", "redis://:s3same@localhost:6379/0", secret},
	{"A", "postgres://app:p/ss#w@rd@db/x", secret}, {"A", "postgres://app:${DB_PASSWORD}@db/x", secret},
	{"A", "postgres://db/x?user=a&password=s3same", secret}, {"A", "jdbc:postgresql://db/x?user=a&password=s3same", secret},
	{"A", "https://ghp_" + tail + "@github.com/a/b", secret}, {"A", "https://api.example.com/?api_key=s3same", secret},
	{"A", "https://hooks.slack.com/services/T0/B0/x", secret}, {"A", "https://discord.com/api/webhooks/1/x", secret},
	{"A", "aB3dE6gH9jK2mN5pQ8sT", secret}, {"A", "3f2b8c1e-9a4d-4e7f-b6c5-0d1e2f3a4b5c", secret},
	{"A", "word word word word word word word word word word word word", secret},
	{"A", "aB3dE6gH9jK2mN5pQ8s", config},      // 19 characters
	{"A", "abababababababababababab", config}, // 1 bit per character
	{"A", "00000000001111111111", config},
	{"LOCALE", "sk-SK", config}, {"MODEL", "pplx-7b-online", config}, {"PORTS", "8080:80", config},
	{"A", "AIza and other words about keys", config},
	{"APP_NAME", "My wonderful application 2", config}, {"MAIL_FROM", "no-reply@mail.example.com", config},
	{"ALLOWED_HOSTS", "localhost,127.0.0.1.example.com,api.example.com:8443", config},
	{"A", "postgres://app@db.internal.example.com:5432/customers", config},
	{"A", "eyJhbGciOiJIUzI1NiJ9.x.y", secret}, // no token, but random
	{"A", "-----BEGIN X", config},

	// Seeds.
	{"A", "otpauth://totp/GitHub:ana?secret=JBSWY3DPEHPK3PXP", seed}, {"A", "OTPAUTH://TOTP/x?secret=JBSWY3DPEHPK3PXP", seed},
	{"A", "otpauth://steam/x?secret=JBSWY3DPEHPK3PXP", seed}, {"A", "steam://JBSWY3DPEHPK3PXP", seed},
	{"GITHUB_OTP", "JBSWY3DPEHPK3PXP", seed}, {"GITHUB_TOTP", "jbsw y3dp ehpk 3pxp", seed}, {"A_2FA", "JBSW-Y3DP-EHPK-3PXP", seed},
	{"A_MFA", "JBSWY3DPEHPK3PXP======", seed}, {"mfa.seed", "JBSWY3DPEHPK3PXP", seed},
	{"A_OTP", "JBSWY3DPEHPK3PX", secret}, // 15 characters
	{"A_OTP", "JBSWY3DPEHPK3PX1", secret}, {"A_KEY", "JBSWY3DPEHPK3PXP", secret}, {"OTP_DIGITS", "6", config},
	{"VITE_OTP", "JBSWY3DPEHPK3PXP", catalog.Hint{Kind: catalog.TOTP, Action: catalog.Import, Notes: []string{"this name ships it to browsers"}, Warn: true}},
	{"A_OTP", "otpauth://hotp/x?secret=JBSWY3DPEHPK3PXP&counter=0", skip(catalog.None, "counter-based codes are not supported")},
	{"A", "apple-otpauth://totp/x?secret=JBSWY3DPEHPK3PXP", seed}, {"A", "\ufeffAPPLE-OTPAUTH://totp/x", seed}, {"A", "\u200botpauth://totp/" + strings.Repeat("x", 9000), seed},
	{"A", "otpauth://totp/x?secret=...", seed}, {"LOG_LEVEL", "steam://x", seed},
	{"A", "apple-otpauth://hotp/x?secret=JBSWY3DPEHPK3PXP", skip(catalog.None, "counter-based codes are not supported")},
	{"A", "\ufeffotpauth-migration://offline?data=x", skip(catalog.None, "export one account at a time")},
	{"A_OTP", "otpauth-migration://offline?data=x", skip(catalog.None, "export one account at a time")},

	// Settings, whatever the name.
	{"A_KEY", "true", config}, {"A_KEY", "FALSE", config}, {"AUTH", "yes", config}, {"AUTH", "off", config},
	{"A_SECRET", "42", config}, {"A_TOKEN", "-1.5", config}, {"TOKEN_TTL", "15m", config}, {"TOKEN_TTL", "3600s", config},
	{"SECRET_SIZE", "64KiB", config}, {"A_KEY", "0x1F", config}, {"A_KEY", "1e6", config}, {"A_KEY", "1_000", config},
	{"A_KEY", "10 MB", config}, {"A_KEY", "127.0.0.1", config},
	{"DB_PASSWORD", "123456", catalog.Hint{Kind: catalog.None, Action: catalog.Skip, Reason: "config", Notes: []string{catalog.NoteNumber}}},
	{"A_KEY", "384729384729384729384", secret}, // 21 digits
	{"A_KEY", "12ab", secret},
	{"KEY_FILE", "/etc/ssl/server.pem", config}, {"KEY_FILE", "./server.key", config}, {"KEY_FILE", "../a b/c", config},
	{"KEY_FILE", "~/.ssh/id_ed25519", config}, {"KEY_FILE", `C:\keys\a.pem`, config}, {"KEY_FILE", "C:/keys/a.pem", config},
	{"KEY_FILE", `\\server\share`, config}, {"KEY_FILE", "certs/server.pem", config}, {"GOOGLE_APPLICATION_CREDENTIALS", "service-account.json", config},
	{"AWS_SECRET_ACCESS_KEY", "/" + tail + "x7Kd9JfP2sQ", secret}, {"A_KEY", "/" + tail + "+a=", secret},
	{"AUTH_URL", "https://auth.example.com/oauth?response=code#x", config}, {"A_KEY", "http://localhost:8080", config},
	{"A_KEY", "https://[::1]:8080/x@y", config}, {"A", "https://host:8080/@scope/pkg", config},
	{"SLACK_WEBHOOK_URL", "https://hooks.example.com/x", secret}, {"MYWEBHOOKS", "https://hooks.example.com/x", secret},
	{"PORT", "3000", config}, {"NODE_ENV", "production", config}, {"LOG_LEVEL", "debug", config}, {"TZ", "Europe/Vienna", config},

	// Public by design.
	{"NEXT_PUBLIC_X_KEY", "v", public}, {"VITE_X_KEY", "v", public}, {"REACT_APP_X_KEY", "v", public},
	{"EXPO_PUBLIC_X_KEY", "v", public}, {"NUXT_PUBLIC_X_KEY", "v", public}, {"PUBLIC_X_KEY", "v", public},
	{"VITE_PORT", "3000", public}, {"NEXT_PUBLIC_SUPABASE_ANON_KEY", jwt, public}, {"NEXT_PUBLIC_FIREBASE_API_KEY", "AIza" + tail, public},
	{"STRIPE_PUBLISHABLE_KEY", "pk_live_" + tail, public}, {"STRIPE_KEY", "pk_test_" + tail, public},
	{"REPUBLIC_KEY", "v", secret},
	{"VITE_X", "ghp_" + tail, catalog.Hint{Kind: catalog.Secret, Action: catalog.Import, Notes: []string{"this name ships it to browsers"}, Warn: true}},
	{"VITE_X", pem, catalog.Hint{Kind: catalog.Secret, Action: catalog.Import, Notes: []string{"this name ships it to browsers"}, Warn: true}},
	{"VITE_GEMINI_API_KEY", "AIza" + tail, catalog.Hint{Kind: catalog.Secret, Action: catalog.Import, Notes: []string{"this name ships it to browsers"}, Warn: true}},
	{"NEXT_PUBLIC_STRIPE_KEY", "sk_live_x", catalog.Hint{Kind: catalog.Secret, Action: catalog.Import, Notes: []string{"live key", "this name ships it to browsers"}, Warn: true}},

	// Nothing there.
	{"A_KEY", "", empty}, {"A", "", empty}, {"A_KEY", " \t\n", empty},
	{"JWT_SECRET", "changeme", skip(catalog.Secret, "placeholder")}, {"JWT_TTL", "changeme", skip(catalog.None, "placeholder")},

	// Weak, but real.
	{"DB_PASSWORD", "postgres", weak}, {"DB_PASSWORD", "Password", weak}, {"DATABASE_URL", "postgres://postgres:postgres@db/x", weak},
	{"DB_USER", "postgres", config},

	// References.
	{"A_KEY", "solekey://A", reference}, {"A_KEY", "op://vault/item/field", reference}, {"A_KEY", "vault:secret/x#y", reference},
	{"A", "SOLEKEY://A", reference}, {"VITE_A", "solekey://A", reference}, {"A_KEY", "vaulted", secret},
}

func TestImportTakesSecretsAndLeavesSettings(t *testing.T) {
	for _, tt := range judged {
		got := catalog.Guess(tt.name, tt.value, nil)
		if diff := cmp.Diff(tt.want, got, noBinding); diff != "" {
			t.Errorf("Guess(%q, %q) (-want +got):\n%s", tt.name, tt.value, diff)
		}
	}
}

func TestPlaceholdersAreSkipped(t *testing.T) {
	for _, v := range []string{
		"changeme", "change-me", "change_me", "replaceme", "todo", "tbd", "none", "null", "undefined",
		"xxx", "xxxxxxxxxxxxxxxxxxxxxxxx", "***", "*****", "<your key>", "<>", "your-api-key", "your_token", "sk-ant-...", "...",
		"ChangeMe", "TODO", "XXXX", "Your-Key", " changeme ",
	} {
		if got, want := catalog.Guess("A_KEY", v, nil), skip(catalog.Secret, "placeholder"); !cmp.Equal(want, got) {
			t.Errorf("Guess(A_KEY, %q) = %+v, want %+v", v, got, want)
		}
	}
	for _, v := range []string{"password", "postgres", "xx", "**", "xxxy", "your", "changeme1", "a<b>", "..", "nonesuch"} {
		if got := catalog.Guess("A_KEY", v, nil); got.Action != catalog.Import {
			t.Errorf("Guess(A_KEY, %q) = %+v, want import", v, got)
		}
	}
}

// bindings is the table of docs/PRODUCT.md, section 8, row by row.
var bindings = []struct {
	names     string
	prefixes  string
	hosts     string
	placement string
}{
	{"OPENAI_API_KEY", "sk-proj- sk-", "api.openai.com", "header:Authorization: Bearer"},
	{"OPENROUTER_API_KEY", "sk-or-", "openrouter.ai", "header:Authorization: Bearer"},
	{"GROQ_API_KEY", "gsk_", "api.groq.com", "header:Authorization: Bearer"},
	{"MISTRAL_API_KEY", "", "api.mistral.ai", "header:Authorization: Bearer"},
	{"DEEPSEEK_API_KEY", "sk-", "api.deepseek.com", "header:Authorization: Bearer"},
	{"XAI_API_KEY", "xai-", "api.x.ai", "header:Authorization: Bearer"},
	{"PERPLEXITY_API_KEY PPLX_API_KEY", "pplx-", "api.perplexity.ai", "header:Authorization: Bearer"},
	{"HF_TOKEN HUGGINGFACE_API_KEY HUGGINGFACEHUB_API_TOKEN", "hf_", "huggingface.co router.huggingface.co", "header:Authorization: Bearer"},
	{"REPLICATE_API_TOKEN", "r8_", "api.replicate.com", "header:Authorization: Bearer"},
	{"TAVILY_API_KEY", "tvly-", "api.tavily.com", "header:Authorization: Bearer"},
	{"GITHUB_TOKEN GH_TOKEN GITHUB_PAT", "ghp_ github_pat_ gho_ ghu_ ghs_", "api.github.com", "header:Authorization: Bearer"},
	{"SLACK_BOT_TOKEN SLACK_TOKEN", "xoxb- xoxp-", "slack.com", "header:Authorization: Bearer"},
	{"STRIPE_SECRET_KEY STRIPE_API_KEY STRIPE_KEY", "sk_live_ sk_test_ rk_live_ rk_test_", "api.stripe.com", "header:Authorization: Bearer"},
	{"ANTHROPIC_API_KEY CLAUDE_API_KEY", "sk-ant-", "api.anthropic.com", "header:x-api-key"},
	{"GEMINI_API_KEY", "AIza", "generativelanguage.googleapis.com", "header:x-goog-api-key"},
	{"ELEVENLABS_API_KEY", "sk_", "api.elevenlabs.io", "header:xi-api-key"},
	{"BRAVE_API_KEY BRAVE_SEARCH_API_KEY", "BSA", "api.search.brave.com", "header:X-Subscription-Token"},
	{"GITLAB_TOKEN", "glpat-", "gitlab.com", "header:PRIVATE-TOKEN"},
	{"LINEAR_API_KEY", "lin_api_", "api.linear.app", "header:Authorization"},
	{"DISCORD_TOKEN DISCORD_BOT_TOKEN", "", "discord.com", "header:Authorization: Bot"},
	{"TELEGRAM_BOT_TOKEN", "123456:", "api.telegram.org", "path:/bot{{secret}}/"},
	{"TWILIO_AUTH_TOKEN", "", "api.twilio.com", "basic:TWILIO_ACCOUNT_SID"},
	{"SENDGRID_API_KEY", "SG.", "api.sendgrid.com", "header:Authorization: Bearer"},
	{"CLOUDFLARE_API_TOKEN CF_API_TOKEN", "", "api.cloudflare.com", "header:Authorization: Bearer"},
	{"NOTION_TOKEN NOTION_API_KEY", "ntn_ secret_", "api.notion.com", "header:Authorization: Bearer"},
	{"AZURE_OPENAI_API_KEY", "", "acme.openai.azure.com", "header:api-key"},
	{"SUPABASE_SERVICE_ROLE_KEY", "", "abcd.supabase.co", "header:apikey"},
}

var siblings = map[string]string{
	"TWILIO_ACCOUNT_SID":    "AC00000000000000000000000000000000",
	"AZURE_OPENAI_ENDPOINT": "https://acme.openai.azure.com/",
	"SUPABASE_URL":          "https://abcd.supabase.co",
}

func TestKnownNamesAreBoundToTheirHost(t *testing.T) {
	for _, tt := range bindings {
		for name := range strings.FieldsSeq(tt.names) {
			for _, prefix := range strings.Split(tt.prefixes, " ") {
				got := catalog.Guess(name, prefix+tail, siblings)
				want := catalog.Hint{
					Kind: catalog.Secret, Action: catalog.Import,
					Hosts: strings.Fields(tt.hosts), Placement: tt.placement, RotateURL: catalog.RotateURL(name),
				}
				if strings.Contains(prefix, "k_live_") {
					want.Notes = []string{"live key"}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("Guess(%s, %q) (-want +got):\n%s", name, prefix+tail, diff)
				}
			}
		}
	}
}

// TestForeignKeysAreBoundNowhere tries the keys of each provider under the
// names of all others.
func TestForeignKeysAreBoundNowhere(t *testing.T) {
	for _, key := range bindings {
		for _, prefix := range strings.Fields(key.prefixes) {
			for _, tt := range bindings {
				if tt.names == key.names || accepts(tt.prefixes, prefix) {
					continue
				}
				name, _, _ := strings.Cut(tt.names, " ")
				got := catalog.Guess(name, prefix+tail, siblings)
				if len(got.Hosts) > 0 || got.Placement != "" || got.RotateURL != "" || !got.Warn || len(got.Notes) == 0 {
					t.Errorf("Guess(%s, %q) = %+v, want a warning and no host", name, prefix+tail, got)
				}
				if got.Action != catalog.Import {
					t.Errorf("Guess(%s, %q) = %s, want import", name, prefix+tail, got.Action)
				}
			}
		}
	}
}

// accepts reports whether a service of these prefixes takes a key that begins
// so: those without a prefix take what no other provider's prefix claims.
func accepts(prefixes, prefix string) bool {
	if prefixes == "" {
		return strings.Contains(" sk- sk_ secret_ BSA 123456: ", " "+prefix+" ")
	}
	return strings.Contains(" "+prefixes+" ", " "+prefix+" ")
}

func TestMismatchTellsTheProvider(t *testing.T) {
	tests := []struct{ name, value, note string }{
		{"OPENAI_API_KEY", "sk-ant-" + tail, catalog.NoteLooksLike + "Anthropic"},
		{"OPENAI_API_KEY", "sk-or-" + tail, catalog.NoteLooksLike + "OpenRouter"},
		{"OPENAI_API_KEY", "sk_live_" + tail, catalog.NoteLooksLike + "Stripe"},
		{"DEEPSEEK_API_KEY", "sk-proj-" + tail, catalog.NoteLooksLike + "OpenAI"},
		{"ELEVENLABS_API_KEY", "sk_live_" + tail, catalog.NoteLooksLike + "Stripe"},
		{"MISTRAL_API_KEY", "gsk_" + tail, catalog.NoteLooksLike + "Groq"},
		{"ANTHROPIC_API_KEY", "sk-" + tail, catalog.NoteUnlike + "Anthropic"},
		{"OPENAI_API_KEY", tail, catalog.NoteUnlike + "OpenAI"},
		{"TELEGRAM_BOT_TOKEN", "bot" + tail, catalog.NoteUnlike + "Telegram"},
		{"OPENAI_API_KEY", "AIza" + tail, catalog.NoteUnlike + "OpenAI"}, // of two services of one provider
	}
	for _, tt := range tests {
		got := catalog.Guess(tt.name, tt.value, nil)
		if !got.Warn || got.Hosts != nil || !strings.Contains(strings.Join(got.Notes, "\n"), tt.note) {
			t.Errorf("Guess(%s, %q) = %+v, want note %q and no host", tt.name, tt.value, got, tt.note)
		}
	}
}

func TestNoHostWithoutItsSibling(t *testing.T) {
	tests := []struct {
		name, sibling, value, host string
	}{
		{"TWILIO_AUTH_TOKEN", "", "", ""},
		{"TWILIO_AUTH_TOKEN", "TWILIO_ACCOUNT_SID", "SK00", ""},
		{"AZURE_OPENAI_API_KEY", "", "", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "http://acme.openai.azure.com", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "acme.openai.azure.com", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "https://*.openai.azure.com", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "https://localhost", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "https://10.0.0.1", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "https://[::1]", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "https://", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "%", ""},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", " https://ACME.openai.azure.com./x?y ", "acme.openai.azure.com"},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "https://user:pw@acme.example.com:443", "acme.example.com"},
		{"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "https://acme.example.com:8443/", "acme.example.com:8443"},
		{"SUPABASE_SERVICE_ROLE_KEY", "", "", ""},
		{"SUPABASE_SERVICE_ROLE_KEY", "NEXT_PUBLIC_SUPABASE_URL", "https://abcd.supabase.co", "abcd.supabase.co"},
	}
	for _, tt := range tests {
		got := catalog.Guess(tt.name, tail, map[string]string{tt.sibling: tt.value})
		if host := strings.Join(got.Hosts, " "); host != tt.host || (got.Placement != "") != (tt.host != "") {
			t.Errorf("Guess(%s) beside %q: host %q, placement %q, want host %q", tt.name, tt.value, host, got.Placement, tt.host)
		}
		if noted := strings.Contains(strings.Join(got.Notes, ""), catalog.NoteNoHost); noted != (tt.host == "") {
			t.Errorf("Guess(%s) beside %q: notes %q", tt.name, tt.value, got.Notes)
		}
	}
}

func TestSomeNamesHaveNoSuggestion(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIA" + tail, "AWS_SECRET_ACCESS_KEY": tail + tail, "AWS_SESSION_TOKEN": tail,
		"DATABASE_URL": "postgres://app:s3same@db/x", "REDIS_URL": "redis://:s3same@db/0",
		"GOOGLE_API_KEY": "AIza" + tail, "SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/T/B/x",
		"MY_TOKEN": "sk-ant-" + tail, "OPENAI_API_KEY_2": "sk-proj-" + tail,
	} {
		got := catalog.Guess(name, value, siblings)
		if got.Action != catalog.Import || got.Hosts != nil || got.Placement != "" || got.Warn || got.Notes != nil {
			t.Errorf("Guess(%s) = %+v, want import without a suggestion", name, got)
		}
	}
}

func TestSkippedVariablesAreBoundNowhere(t *testing.T) {
	for _, name := range catalog.Names() {
		for _, value := range []string{"", "changeme", "true", "solekey://A", "pk_live_x"} {
			got := catalog.Guess(name, value, siblings)
			if got.Action != catalog.Skip || got.Hosts != nil || got.RotateURL != "" {
				t.Errorf("Guess(%s, %q) = %+v, want skip without a host", name, value, got)
			}
		}
	}
}

func TestHostsAreACopy(t *testing.T) {
	catalog.Guess("OPENAI_API_KEY", "sk-"+tail, nil).Hosts[0] = "evil.example"
	if got := catalog.Guess("OPENAI_API_KEY", "sk-"+tail, nil).Hosts[0]; got != "api.openai.com" {
		t.Errorf("changing a hint changed the catalog: host %q", got)
	}
}

func TestRotateURLGoesByTheName(t *testing.T) {
	for _, name := range catalog.Names() {
		u, err := url.Parse(catalog.RotateURL(name))
		if err != nil || u.Scheme != "https" || u.Host == "" {
			t.Errorf("RotateURL(%s) = %q, want an https URL", name, u)
		}
	}
	want := "https://platform.openai.com/api-keys"
	for _, label := range []string{"OPENAI_API_KEY", "app/OPENAI_API_KEY", "openai-api-key", "openai.api.key", "VITE_OPENAI_API_KEY"} {
		if got := catalog.RotateURL(label); got != want {
			t.Errorf("RotateURL(%s) = %q, want %q", label, got, want)
		}
	}
	for _, label := range []string{"", "/", "db/password", "OPENAI_API_KEY/x", "MY_OPENAI_API_KEY", "SENTRY_AUTH_TOKEN"} {
		if got := catalog.RotateURL(label); got != "" {
			t.Errorf("RotateURL(%q) = %q, want none", label, got)
		}
	}
}

// told returns all texts of a hint but the host of a tenant.
func told(h catalog.Hint) string {
	hosts := h.Hosts
	if h.Placement == "header:api-key" || h.Placement == "header:apikey" {
		hosts = nil
	}
	return fmt.Sprint(h.Kind, "\n", h.Action, "\n", h.Reason, "\n", strings.Join(hosts, "\n"), "\n",
		h.Placement, "\n", h.RotateURL, "\n", strings.Join(h.Notes, "\n"))
}

// foreign returns a run of four bytes of value that is in text but not in
// what the catalog says of itself.
func foreign(text, value, vocabulary string) string {
	for i := 0; i+4 <= len(value); i++ {
		if run := value[i : i+4]; strings.Contains(text, run) && !strings.Contains(vocabulary, run) {
			return run
		}
	}
	return ""
}

// FuzzGuess: no input panics, and no hint tells any of the value.
func FuzzGuess(f *testing.F) {
	for _, tt := range judged {
		f.Add(tt.name, tt.value, "")
	}
	for _, tt := range bindings {
		name, _, _ := strings.Cut(tt.names, " ")
		prefix, _, _ := strings.Cut(tt.prefixes, " ")
		f.Add(name, prefix+tail, "https://acme.example.com:8443/x")
	}
	vocabulary := "\n" + catalog.Vocabulary() + "\n"
	if foreign("note: "+tail, tail, vocabulary) == "" { // the control
		f.Fatal("a leak would not be found")
	}
	f.Fuzz(func(t *testing.T, name, value, sibling string) {
		h := catalog.Guess(name, value, map[string]string{
			"AZURE_OPENAI_ENDPOINT": sibling, "SUPABASE_URL": sibling, "TWILIO_ACCOUNT_SID": sibling,
		})
		text := told(h)
		for line := range strings.SplitSeq(text, "\n") {
			if run := foreign(line, value, vocabulary); run != "" {
				t.Errorf("the hint holds %q of the value: %q", run, line)
			}
			if line != "" && !strings.Contains(vocabulary, "\n"+line+"\n") {
				t.Errorf("the hint says %q, which is not in the vocabulary", line)
			}
		}
		if (h.Action == catalog.Skip) != (h.Reason != "") || h.Action == catalog.Import && h.Kind == catalog.None {
			t.Errorf("Guess = %+v, which contradicts itself", h)
		}
		if (len(h.Hosts) > 0) != (h.Placement != "") || h.Warn && (len(h.Hosts) > 0 || len(h.Notes) == 0) {
			t.Errorf("Guess = %+v, which contradicts itself", h)
		}
		checkTenant(t, h, sibling)
	})
}

// checkTenant holds a tenant's host against the endpoint it came from.
func checkTenant(t *testing.T, h catalog.Hint, endpoint string) {
	t.Helper()
	if h.Placement != "header:api-key" && h.Placement != "header:apikey" {
		return
	}
	if len(h.Hosts) != 1 || strings.ContainsAny(h.Hosts[0], "*@/ ") || !strings.Contains(strings.ToLower(endpoint), h.Hosts[0]) {
		t.Errorf("hosts %q of endpoint %q", h.Hosts, endpoint)
	}
}

func BenchmarkGuess(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		catalog.Guess("SERVICE_KEY", "sk-proj-"+tail+tail, siblings)
	}
}

func TestSeedURIsAreKnownByTheirBeginning(t *testing.T) {
	long := strings.Repeat("x", 1<<16)
	for _, s := range []string{
		"otpauth://totp/x?secret=A", "otpauth://hotp/x", "otpauth:totp", "OtpAuth://" + long, "apple-otpauth://totp/x", "otpauth-migration://offline?data=" + long,
		"steam://A", " \r\n\totpauth://x", "\ufeffotpauth://x", "\u200b \u200bsteam://x", "\u00a0otpauth://x",
	} {
		if !catalog.IsSeedURI(s) {
			t.Errorf("IsSeedURI(%.40q) = false, want true", s)
		}
	}
	for _, s := range []string{"", "otpauth", "steam", "https://otpauth://x", "xotpauth://x", "JBSWY3DPEHPK3PXP", long} {
		if catalog.IsSeedURI(s) {
			t.Errorf("control: IsSeedURI(%.40q) = true, want false", s)
		}
	}
}

func TestSecretFields(t *testing.T) {
	for _, s := range []string{"seed", "otp", "totp", "backup_codes", "recovery_codes", "private_key", "SEED"} {
		if !catalog.IsSecretField(s) {
			t.Errorf("IsSecretField(%q) = false, want true", s)
		}
	}
	for _, s := range []string{"", "value", "username", "url", "public_key", "seeds"} {
		if catalog.IsSecretField(s) {
			t.Errorf("control: IsSecretField(%q) = true, want false", s)
		}
	}
}
