package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/harden"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
)

// app is one run of the program: its streams, its clock, and what flags and
// environment say. Every command hangs on it.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
	conf           config
	engine         func(dir string) (storage.Backend, error) // of a restored store; nil: createEngine
	step           func(string)                              // told of each step of a repair; nil: nothing
}

// run executes one command line and returns its exit code. Nothing it starts
// is left behind.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, now: time.Now, conf: newConfig(os.Getenv)}
	if a.conf.envKey != "" {
		a.conf.envHidden = harden.ScrubEnv(envAPIKey)
	}
	loud, err := a.hide()
	defer loud()
	if err == nil {
		err = guard(args)
	}
	if err != nil {
		a.conf.asJSON = hasWord(args, "--json")
		return a.fail(err)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // a second signal ends the process at once
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err = root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil {
		err = errInterrupted
	}
	if err != nil && !a.conf.asJSON {
		a.conf.asJSON = hasWord(args, "--json") // flags after a faulty one are not parsed
	}
	return a.fail(err)
}

// hide keeps the memory of this process from others, before any key is read:
// no core, no tracing, no dump of goroutines. The caller calls stop at the
// end.
func (a *app) hide() (stop func(), err error) {
	stop, ok := harden.Quiet()
	if err := harden.Process(); err != nil {
		return stop, failf(exitInternal, "protecting the process: %v", err)
	}
	if !ok {
		return stop, failf(exitUsage, "GOTRACEBACK asks for a core of this process, which would hold keys").
			hint("unset GOTRACEBACK")
	}
	return stop, nil
}

// newRoot returns the tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "solekey",
		Short: "The vault that takes the place of your agents' .env files",
		Long: `Every agent identity has its own encrypted vault; one key opens it, and
everything else is fetched from it by label over MCP.`,
		Example: `  solekey init
  solekey identity create claude-code
  solekey put OPENAI_API_KEY --identity claude-code
  solekey mcp --profile claude-code`,
		Args:              usageArgs(cobra.NoArgs),
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.conf.check() },
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	a.conf.globals(root.PersistentFlags())
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand())
	for _, g := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Agents and their keys", []*cobra.Command{initCommand(a), identityCommand(a), keyCommand(a), profileCommand(a)}},
		{"Their secrets", []*cobra.Command{importCommand(a), putCommand(a), generateCommand(a), listCommand(a), rmCommand(a)}},
		{"Serving them", []*cobra.Command{mcpCommand(a), serveCommand(a)}},
		{"By hand, with the key of an agent", []*cobra.Command{getCommand(a), codeCommand(a)}},
		{"What happened", []*cobra.Command{auditCommand(a), receiptCommand(a)}},
		{"Before and after something goes wrong", []*cobra.Command{doctorCommand(a), backupCommand(a), restoreCommand(a), rootCommand(a)}},
		{"This program", []*cobra.Command{completionCommand(), versionCommand(a)}},
	} {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title + ":"})
		for _, c := range g.commands {
			c.GroupID = g.title
			root.AddCommand(c)
		}
	}
	root.SetHelpCommandGroupID("This program")
	a.completeGlobals(root)
	return root
}

// helpCommand shows the help of the command that its arguments name.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Show the help of a command", Example: "  solekey help identity revoke",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return failf(exitUsage, "no help: unknown command").hint("solekey --help")
			}
			return c.Help()
		},
	}
}

// guard refuses command lines that carry a key or a value, before anything is
// parsed: a wrong refusal costs a retry, a leak costs a rotation.
func guard(args []string) error {
	for _, s := range args {
		if identity.LooksLikeKey(s) {
			return &failure{
				exit: exitUsage, message: "keys are not taken as arguments: this value is now in your shell history; treat it as leaked",
				try: []string{"solekey identity rotate NAME --leaked", "solekey get LABEL --api-key-file FILE     (hands a key over)"},
			}
		}
	}
	return guardPut(args)
}

// guardPut refuses a second argument to put. The flags before it may take a
// value, so what follows a flag without `=` is an argument only if the flag
// is a switch.
func guardPut(args []string) error {
	at := -1
	var words []string
	for i := 0; i < len(args); i++ {
		s := args[i]
		switch {
		case s == "--":
			words = append(words, args[i+1:]...)
			i = len(args)
		case strings.HasPrefix(s, "-") && s != "-":
			if takesValue(s) {
				i++
			}
		case at < 0:
			if s != "put" {
				return nil
			}
			at = i
		default:
			words = append(words, s)
		}
	}
	if at < 0 || len(words) < 2 {
		return nil
	}
	return valueInArgs(words[0])
}

// valueInArgs is the refusal of a value on the command line. The label is
// repeated unless it could be a value itself.
func valueInArgs(label string) error {
	if _, err := vault.ParseLabel(label); err != nil || len(label) > 64 {
		label = "LABEL"
	}
	return &failure{
		exit: exitUsage, message: "values are not taken as arguments: they show in ps and stay in shell history; treat this one as leaked",
		try: []string{"solekey put " + label + "     (hidden prompt)   or   --stdin   or   --file PATH"},
	}
}

// takesValue reports whether the flag s takes its value from the next
// argument. Every flag of put but its switches does.
func takesValue(s string) bool {
	if strings.Contains(s, "=") {
		return false
	}
	switch s {
	case "--json", "--quiet", "--yes", "--stdin", "--otp", "--raw", "--binary", "--everywhere", "--no-hosts", "--help", "-h", "-q", "-y":
		return false
	}
	return true
}

func hasWord(words []string, w string) bool {
	for _, s := range words {
		if s == "--" {
			return false
		}
		if s == w {
			return true
		}
	}
	return false
}

// usageArgs makes a cobra check of positional arguments a usage error. What
// was passed is not repeated: it may be a value.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) == nil {
			return nil
		}
		if cmd.HasSubCommands() && len(args) > 0 {
			f := failf(exitUsage, "unknown command for %q", cmd.CommandPath())
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return f.hint(cmd.CommandPath() + " " + near[0])
			}
			return f.hint(cmd.CommandPath() + " --help")
		}
		return failf(exitUsage, "usage: %s", cmd.UseLine()).hint(cmd.CommandPath() + " --help")
	}
}

// flagError hides what pflag would quote, since a mistyped flag may carry a
// value.
func flagError(cmd *cobra.Command, err error) error {
	return failf(exitUsage, "%s", flagProblem(err)).hint(cmd.CommandPath() + " --help")
}

// group is a command that only holds others.
func group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Example: example,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(subs...)
	return c
}
