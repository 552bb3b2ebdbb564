//go:build race

package role

// raceFactor divides the number of runs: the race detector costs that much.
const raceFactor = 20
