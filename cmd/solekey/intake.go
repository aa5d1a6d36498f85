package main

import (
	"cmp"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
)

// Whose key acts: where agents' commands, and proofs for the owner's, take a
// key from.

// intake is a key with its origin.
type intake struct {
	key  identity.Key
	from string  // what to name in messages
	prof profile // zero unless the key came from a profile
	src  keyring.Source
}

var errTwoKeys = failf(exitUsage, "two sources of a key were given: use one of --profile, --api-key-file, --api-key-fd, %s, %s", envAPIKeyFile, envAPIKey).
	hint("unset "+envAPIKeyFile+" "+envAPIKey, "solekey profile list")

// agentKey returns the key that an agent's command acts with: that of
// --profile, a key file, a descriptor, the environment, in this order; else
// that of the profile fallback, if not empty. Two at once are refused.
func (a *app) agentKey(k keyFlags, fallback string) (intake, error) {
	given := 0
	for _, on := range []bool{a.conf.profile != "", k.file != "", k.fd >= 0, a.conf.envKeyFile != "", a.conf.envKey != ""} {
		if on {
			given++
		}
	}
	if given > 1 {
		return intake{}, errTwoKeys
	}
	switch {
	case a.conf.profile != "":
		return a.profileKey(a.conf.profile)
	case k.file != "":
		return keyFile(k.file, "--api-key-file")
	case k.fd >= 0:
		return keyDescriptor(k.fd)
	case a.conf.envKeyFile != "":
		return keyFile(a.conf.envKeyFile, envAPIKeyFile)
	case a.conf.envKey != "":
		a.warnEnvironment()
		return parseIntake(a.conf.envKey, envAPIKey)
	case fallback != "":
		return a.profileKey(fallback)
	}
	return intake{}, failf(exitUsage, "whose key? no --profile, key file or descriptor was given").hint("solekey profile list     (then the same command with --profile NAME)")
}

func (a *app) warnEnvironment() {
	if a.conf.envHidden {
		a.warn("%s is removed from this process, and the one that set it may still show it; prefer --profile or --api-key-file", envAPIKey)
		return
	}
	a.warn("%s stays visible to other programs of this account; prefer --profile or --api-key-file", envAPIKey)
}

// profileKey returns the key of a local profile.
func (a *app) profileKey(name string) (intake, error) {
	p, err := a.loadProfile(name)
	if err != nil {
		return intake{}, missingProfile(name, err)
	}
	return a.keyOf(p)
}

// keyOf returns the key of a profile, local or remote.
func (a *app) keyOf(p profile) (intake, error) {
	name := p.name
	ring, err := a.ring()
	if err != nil {
		return intake{}, err
	}
	text, src, err := ring.Get(keyring.Profile, name)
	if errors.Is(err, keyring.ErrNone) {
		again := "solekey identity create OTHER"
		if p.remote() {
			again = "solekey profile add " + name + " --remote " + p.URL
		}
		return intake{prof: p}, failf(exitNotFound, "profile %s has no key on this machine", name).hint("solekey profile rm "+name, again)
	}
	if err != nil {
		return intake{prof: p}, unusableKey("profile "+name, err)
	}
	in, err := parseIntake(text, "profile "+name)
	in.prof, in.src = p, src
	return in, err
}

// unusableKey words a key file that is refused. The ring names the file and
// what is wrong with it.
func unusableKey(what string, err error) error {
	return failf(exitUsage, "%s: %v", what, err).hint(anotherKey()...)
}

// anotherKey is how to go on when the key that was given is of no use.
func anotherKey() []string {
	return []string{"solekey profile list     (then the same command with --profile NAME)", "solekey identity rotate NAME --profile NEW"}
}

func keyFile(path, what string) (intake, error) {
	b, err := keyring.ReadPrivate(path, maxKeyFile)
	if err != nil {
		return intake{}, unusableKey(what, err)
	}
	defer clear(b)
	return parseIntake(string(b), what)
}

// keyDescriptor reads a key from an inherited descriptor to its end, and
// closes it.
func keyDescriptor(fd int) (intake, error) {
	f := os.NewFile(uintptr(fd), "api-key-fd")
	if f == nil {
		return intake{}, failf(exitUsage, "--api-key-fd: not a descriptor").hint(anotherKey()...)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return intake{}, failf(exitUsage, "--api-key-fd: the descriptor cannot be read").hint(anotherKey()...)
	}
	defer clear(b)
	return parseIntake(string(b), "--api-key-fd")
}

// parseIntake reads key text. What is wrong is named without the text.
func parseIntake(text, what string) (intake, error) {
	key, err := identity.ParseKey(text)
	if err != nil {
		return intake{}, failf(exitUsage, "%s: %v", what, err).hint(anotherKey()...)
	}
	return intake{key: key, from: what}, nil
}

// proof returns a live key of an identity for what the owner alone cannot do:
// --api-key-file or --api-key-fd, else the key of a profile of that identity
// on this machine, that of the same name first.
func (a *app) proof(k keyFlags, id identity.ID, name string) (intake, error) {
	if k.file != "" && k.fd >= 0 {
		return intake{}, errTwoKeys
	}
	if k.file != "" {
		return agentProof(keyFile(k.file, "--api-key-file"))
	}
	if k.fd >= 0 {
		return agentProof(keyDescriptor(k.fd))
	}
	all, err := a.profiles()
	if err != nil {
		return intake{}, err
	}
	if i := slices.IndexFunc(all, func(p profile) bool { return p.name == name }); i > 0 {
		all[0], all[i] = all[i], all[0]
	}
	var broken error
	for _, p := range all {
		if p.ID != id.String() {
			continue
		}
		in, err := a.profileKey(p.name)
		if err == nil {
			return in, nil
		}
		broken = cmp.Or(broken, err)
	}
	if broken != nil {
		return intake{}, broken
	}
	return intake{}, failf(exitRefused, "rotating or adding a key needs a current key of %s: the owner cannot open this vault", name).
		hint("solekey identity rotate "+name+" --api-key-file FILE --print-key", "solekey identity recover "+name+"     (with the recovery key)")
}

// agentProof refuses the recovery key in the place of an agent's.
func agentProof(in intake, err error) (intake, error) {
	if err == nil && in.key.Kind() == identity.Recovery {
		return intake{}, failf(exitUsage, "%s: the recovery key takes the place of no key", in.from).
			hint("solekey identity recover NAME", "solekey identity rotate NAME --leaked --recovery-key-file FILE")
	}
	return in, err
}
