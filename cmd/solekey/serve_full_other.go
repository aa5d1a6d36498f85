//go:build !unix

package main

// maxFiles reports that there is no such limit.
func maxFiles() (int, bool) { return 0, false }
