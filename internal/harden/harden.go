// Package harden keeps what a process knows from the other processes of the
// same user: it removes secrets from the environment block and turns off core
// dumps and tracing, as far as the system allows.
//
// It does not protect against root, against a debugger that was attached
// before, or against swap.
package harden

import (
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
)

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

// Quiet keeps what the goroutines hold out of the program's output. The
// signals at which the Go runtime would print every goroutine, with the words
// of its arguments, act as a request to terminate; a second one is not
// answered by a dump either. Faults of the program itself are not changed.
//
// It reports false if GOTRACEBACK asks for a core of the process, which cannot
// be turned off from inside. Call stop at the end.
func Quiet() (stop func(), ok bool) {
	debug.SetTraceback("none") // the runtime goes no lower than GOTRACEBACK, whose default is one goroutine
	asked := os.Getenv("GOTRACEBACK")
	return divert(), asked != "crash" && asked != "wer"
}

// divert turns the signals of dumps into the one that asks to terminate.
func divert() (stop func()) {
	signals := dumping()
	if len(signals) == 0 { // Notify would take every signal
		return func() {}
	}
	in := make(chan os.Signal, 1)
	signal.Notify(in, signals...)
	over := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-in:
				terminate()
			}
		}
	})
	return func() {
		signal.Stop(in)
		close(over)
		wait.Wait()
	}
}
