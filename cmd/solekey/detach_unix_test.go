//go:build unix

package main

import "syscall"

// detach leaves the terminal from which the tests were started, so that a
// script without ttyin has none. It fails for a group leader, which a test
// binary started by `go test` is not.
func detach() { _, _ = syscall.Setsid() }
