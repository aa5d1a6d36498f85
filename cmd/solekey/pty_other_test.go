//go:build !linux

package main

import "github.com/rogpeppe/go-internal/testscript"

func ptyRun(ts *testscript.TestScript, _ bool, _ []string) { ts.Fatalf("pty: on Linux only") }
