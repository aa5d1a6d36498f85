// Package harden keeps what a process knows from the other processes of the
// same user: it removes secrets from the environment block and turns off core
// dumps and tracing, as far as the system allows.
//
// It does not protect against root, against a debugger that was attached
// before, or against swap.
package harden

import "os"

// ScrubEnv removes the named variables from the environment of this process
// and its future children. On Linux it also overwrites their values in the
// initial environment block, because unsetting alone leaves them readable in
// /proc/PID/environ. It reports whether no value of them is left in the
// block: false where the system has no way, or refused.
//
// Strings read from the environment before keep their bytes, in this
// process's memory. Call ScrubEnv before [Process].
func ScrubEnv(names ...string) bool {
	wiped := wipeBlock(names)
	for _, name := range names {
		os.Unsetenv(name)
	}
	return wiped
}

// Process forbids core dumps and, on Linux, also ptrace and the reading of
// /proc/self/mem and environ by processes of the same user. It returns what
// the system refused, after trying everything.
func Process() error { return protect() }
