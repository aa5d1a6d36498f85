package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

// Completion offers names and labels from the owner's half, so no key is
// touched and no line is logged. It waits completionTime for the store and
// then offers nothing.
const completionTime = 100 * time.Millisecond

func completionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the completion script of a shell",
		Example: `  source <(solekey completion bash)
  solekey completion zsh > "${fpath[1]}/_solekey"
  solekey completion fish | source`,
		Args:      usageArgs(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		out := cmd.OutOrStdout()
		switch args[0] {
		case "bash":
			return cmd.Root().GenBashCompletionV2(out, true)
		case "zsh":
			return cmd.Root().GenZshCompletion(out)
		case "fish":
			return cmd.Root().GenFishCompletion(out, true)
		}
		return cmd.Root().GenPowerShellCompletionWithDesc(out)
	}
	return c
}

type completer = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective)

// words completes from a fixed list.
func words(all ...string) completer {
	return cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp)
}

// completeGlobals completes the flags that every command takes.
func (a *app) completeGlobals(root *cobra.Command) {
	_ = root.RegisterFlagCompletionFunc("identity", a.offerIdentities)
	_ = root.RegisterFlagCompletionFunc("profile", a.offerProfiles)
	_ = root.RegisterFlagCompletionFunc("color", words("auto", "always", "never"))
}

// completeIdentities completes a first argument that names an identity.
func (a *app) completeIdentities(cmd *cobra.Command, args []string, part string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.offerIdentities(cmd, args, part)
}

func (a *app) offerIdentities(cmd *cobra.Command, _ []string, part string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, part, func(ctx context.Context, k *vault.Keeper) ([]string, error) {
		active, err := a.active(ctx, k)
		var out []string
		for _, i := range active {
			out = append(out, i.Name)
		}
		return out, err
	})
}

// completeProfiles completes a first argument that names a profile.
func (a *app) completeProfiles(cmd *cobra.Command, args []string, part string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.offerProfiles(cmd, args, part)
}

func (a *app) offerProfiles(_ *cobra.Command, _ []string, part string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all, err := a.profiles()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, p := range all {
		if strings.HasPrefix(p.name, part) {
			out = append(out, p.name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeLabels offers the labels of the vaults that the flags name, or of
// every active one.
func (a *app) completeLabels(cmd *cobra.Command, _ []string, part string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, part, func(ctx context.Context, k *vault.Keeper) ([]string, error) {
		in, err := a.active(ctx, k)
		if len(a.conf.identities) > 0 || a.conf.profile != "" {
			in, err = a.several(ctx, k)
		}
		var out []string
		for _, i := range in {
			labels, err := k.Labels(ctx, i.ID)
			if err != nil {
				return nil, err
			}
			for _, l := range labels {
				out = append(out, string(l.Label))
			}
		}
		slices.Sort(out)
		return slices.Compact(out), err
	})
}

// offer asks the store for words and keeps those that begin with part.
func (a *app) offer(cmd *cobra.Command, part string, ask func(context.Context, *vault.Keeper) ([]string, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionTime)
	defer cancel()
	k, err := a.owner()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer k.Close()
	all, err := ask(ctx, k)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, s := range all {
		if strings.HasPrefix(s, part) {
			out = append(out, s)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
