# The one front door: `make help` lists what it opens.

SHELL    := /bin/bash
BUILD    := build
POLLUX   := $(BUILD)/pollux
BIN      := $(CURDIR)/$(BUILD)/bin
GOFUMPT  := $(BIN)/gofumpt
GOLANGCI := $(BIN)/golangci-lint
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

GOFUMPT_VERSION  := v0.12.0
GOLANGCI_VERSION := v2.15.0

export CGO_ENABLED = 0

.PHONY: help build guests setup demo test test-unit lint fuzz explore soak bench clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

build: $(POLLUX) ## build the static binary, build/pollux

.PHONY: $(POLLUX)
$(POLLUX):
	@command -v go >/dev/null || { echo "make: Go is missing: install Go 1.26 or newer (https://go.dev/dl)" >&2; exit 1; }
	go build -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/pollux

guests: ## build the test guests and fetch the pinned kernel, into build/guests
	@go run ./tests/setup guests

setup: ## install what is missing on this machine (Debian packages); says clearly what it can't
	@go run ./tests/setup packages

demo: setup build guests ## a Linux guest survives the power loss of its host, as you watch
	$(POLLUX) lab demo --report $(BUILD)/demo/report.json

test: setup build guests ## every test that this machine can run; a required one never skips
	@go run ./tests/run

test-unit: ## the tests that need nothing but Go
	go test ./...

lint: $(GOFUMPT) $(GOLANGCI) ## formatting, vet, and golangci-lint's configured set
	@out=$$($(GOFUMPT) -l .); test -z "$$out" || { echo "gofumpt would change:"; echo "$$out"; exit 1; }
	$(GOLANGCI) run ./...

$(GOFUMPT):
	GOBIN=$(BIN) go install mvdan.cc/gofumpt@$(GOFUMPT_VERSION)

$(GOLANGCI):
	GOBIN=$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

FUZZTIME ?= 30s
fuzz: ## run every fuzz target for FUZZTIME (30s) each
	@set -e; for f in $$(grep -rl --include='*_test.go' '^func Fuzz' .); do \
	  for t in $$(grep -oE '^func Fuzz[A-Za-z0-9_]*' $$f | cut -c6-); do \
	    echo "$$t ($$(dirname $$f))"; go test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$f); done; done

RUNS ?= 1000000
FROM ?= 1
explore: ## simulate RUNS (1000000) random histories of the role protocol, from seed FROM (1)
	go test ./checkpoint/role -run 'TestSimulation$$' -timeout 0 -v -args -role.runs=$(RUNS) -role.from=$(FROM)

SOAK_RUNS ?= 30
SOAK_TIME ?= 2m
soak: setup build guests ## run SOAK_RUNS (30) emulated nodes under load for SOAK_TIME (2m) each, and count the dead
	$(POLLUX) lab soak --runs $(SOAK_RUNS) --time $(SOAK_TIME) --report $(BUILD)/soak/report.jsonl

clean: ## remove everything that was built
	rm -rf $(BUILD)
