# Every task of this repository. Each installs the Debian packages that it needs (as root) and only those missing.
#   PROFILE=dev|release   which build the tests and the demo use (dev)
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help build demo test lint deny bench fuzz soak package clean-package

PROFILE ?= dev
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
SECONDS_PER_FUZZ_TARGET ?= 300
SEEDS ?= 20000
ROUNDS ?= 20

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## the three programs, into target/debug (PROFILE=release: target/release)
	@cargo build --workspace --bins --locked --profile $(PROFILE)

demo: ## two machines join a mesh and talk; one that does not join (root)
	@packaging/needs.sh demo
	$(MAKE) --no-print-directory build
	MESH_BIN=$(BIN) tests/demo/demo.sh

test: ## everything that must hold: lint, all tests, fuzzing in short, the package, the demo
	@CARGO_TARGET_DIR=$(TARGET) PROFILE=$(PROFILE) tests/all.sh

lint: ## formatting, clippy without a warning, shell scripts
	@packaging/needs.sh lint
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	git ls-files -z '*.sh' .ci/run 'packaging/debian/*.prerm' 'packaging/debian/*.postrm' | xargs -0 shellcheck -x

deny: ## licences, advisories, sources and duplicates of all dependencies (compiles cargo-deny if it is missing)
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --all-features check bans licenses sources

bench: ## micro-benchmarks, then plain TCP against the mesh in two namespaces, as one table (root)
	@packaging/needs.sh bench
	cargo build --workspace --bins --locked --release
	cargo bench --workspace --locked

fuzz: ## every fuzz target for SECONDS_PER_FUZZ_TARGET (300) each
	@CARGO_TARGET_DIR= fuzz/run.sh $(SECONDS_PER_FUZZ_TARGET)

soak: ## the simulation with SEEDS (20000) seeds, and the whole-agent tests ROUNDS (20) times (root)
	@packaging/needs.sh test
	MESH_SIM_SEEDS=$(SEEDS) cargo test --locked --release -p mesh-core --test sim
	cargo build --locked --workspace --bins --tests --profile $(PROFILE)
	for round in $$(seq $(ROUNDS)); do
		echo "soak: round $$round of $(ROUNDS)"
		cargo test --locked --profile $(PROFILE) --tests -q
	done

package: ## the .deb packages, into target/package
	@packaging/needs.sh package
	CARGO_TARGET_DIR=$(TARGET) packaging/build.sh
