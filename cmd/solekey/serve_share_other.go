//go:build !linux

package main

import "syscall"

const canShare = false

func sharePort(syscall.RawConn) error    { return nil }
func preferNewest(syscall.RawConn) error { return nil }
func listening(syscall.RawConn) bool     { return true }
