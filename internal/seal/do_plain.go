//go:build !goexperiment.runtimesecret

package seal

// Do runs f. Builds with GOEXPERIMENT=runtimesecret also erase what f left in
// registers, on the stack and, at the next collection, on the heap. Call it
// around the steps that open or seal, without I/O, goroutines or storage calls
// inside, and copy the result into a buffer made outside.
func Do(f func()) { f() }
