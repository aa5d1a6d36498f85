//go:build !race

package seal_test

const sampled = false
