# Each target does all of its own setup: scripts/setup looks for the packages that are needed and installs what is
# missing (as root), or names the command that does.
CARGO ?= cargo
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)

.PHONY: all build setup demo test bench servers cve stock old-kernels lint fuzz

all: build

setup:
	@scripts/setup

build:
	$(CARGO) build --release -p livegraft

demo: setup build
	@$(CARGO) build --quiet --release -p livegraft-scenarios --bin demo
	@$(TARGET_DIR)/release/demo

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

test: lint build
	$(CARGO) test --workspace

bench: setup build
	@$(CARGO) build --quiet --release -p livegraft-scenarios --bin bench
	@$(TARGET_DIR)/release/bench
	@echo; echo "Who calls what, in large programs without symbols:"
	@$(CARGO) test --quiet --release -p livegraft-process --test parts -- --ignored --nocapture
	@echo; echo "How each function of stock servers could be redirected:"
	@$(CARGO) test --quiet --release -p livegraft-process --test coverage -- --ignored --nocapture
	@echo; echo "What it costs to observe a build, configure script and make:"
	@benches/capture/generate $(TARGET_DIR)/capture
	@$(CARGO) run --quiet --release -p livegraft-observe --example overhead \
		5 'cd $(TARGET_DIR)/capture; rm -rf b; mkdir b' 'cd $(TARGET_DIR)/capture/b; ../configure; make'
	@echo; echo "Debian's redis, proven and placed:"
	@scripts/setup redis
	@redis=$$(scripts/redis) && LIVEGRAFT_REDIS=$$redis \
		$(CARGO) test --quiet --release -p livegraft-build --test redis -- --ignored --nocapture

servers: build
	@scripts/setup servers
	@$(CARGO) build --quiet --release -p livegraft-scenarios --bin servers
	@$(TARGET_DIR)/release/servers

# Each reader of files in turn, for so many seconds; what is found lies in fuzz/artifacts. `make test` reads what lies in
# fuzz/seeds.
FUZZ_SECONDS ?= 300
fuzz: setup
	@scripts/setup fuzz
	@scripts/fuzz $(FUZZ_SECONDS)

# Stock servers, patched from source diffs. Their source packages are fetched and built, twice and more: as long as that takes.
stock: build
	@scripts/setup stock
	@$(CARGO) build --quiet --release -p livegraft-scenarios --bin stock
	@$(TARGET_DIR)/release/stock

# Kernels of older releases, whose packages are fetched: scenarios in virtual machines.
old-kernels: setup build
	$(CARGO) test --release -p livegraft-scenarios --test guest -- --ignored

# Real security fixes of Debian 12, each built into a patch and loaded into the program that lacks it. One package or
# row: make cve ROWS=redis or ROWS=nginx/2024-7347. What was run with this livegraft is not run again.
cve: build
	@scripts/setup cve
	@$(CARGO) build --quiet --release -p livegraft-scenarios --bin cve
	@$(TARGET_DIR)/release/cve --table docs/cve.md $(ROWS)
