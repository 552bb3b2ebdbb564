package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// documented finds the pollux command lines in the fenced blocks of a Markdown file, continuation lines joined.
func documented(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	prompt := regexp.MustCompile(`^(?:[a-z-]+\$ +)?(?:build/)?pollux (.*)$`)
	var commands []string
	for i, block := range strings.Split(string(b), "```") {
		if i%2 == 0 {
			continue
		}
		block = strings.ReplaceAll(block, "\\\n", " ")
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(line, "#")
			if m := prompt.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
				commands = append(commands, m[1])
			}
		}
	}
	return commands
}

// Every command line in the documentation is one that this pollux understands.
func TestDocumentedCommandsParse(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	n := 0
	for _, page := range append(pages, "../../README.md") {
		for _, command := range documented(t, page) {
			n++
			args := strings.Fields(command)
			for i, arg := range args {
				// What a command reads must exist for it to be parsed.
				if i > 0 && (args[i-1] == "--kernel" || args[i-1] == "--initrd" || args[i-1] == "--restore") {
					args[i] = filepath.Join(dir, filepath.Base(arg))
					if err := os.WriteFile(args[i], nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			parser, err := kong.New(&cli{}, kong.Exit(func(int) {}))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(args); err != nil {
				t.Errorf("%s: pollux %s: %v", filepath.Base(page), command, err)
			}
		}
	}
	if n < 10 {
		t.Errorf("found %d commands in the documentation: the search is broken", n)
	}
}
