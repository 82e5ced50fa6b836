# `make demo` and `make test` are the two commands a newcomer needs; both do their own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.PHONY: demo test build deps lint model peers clean

CARGO ?= cargo
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

demo: build
	$(SUDO) target/release/hoist demo --report target/demo.html

# Everything: format, lints, unit and property tests, the model checker, and the tests that need root.
test: deps lint build
	$(CARGO) test --release --workspace --no-fail-fast
	$(MAKE) model

build: deps
	$(CARGO) build --release --workspace

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

# Two threads on one ring, every interleaving.
model:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test -p hoist-xsk --release --lib

# What else receives faster than plain sockets, to be measured beside Hoist: docs/peers.md. Not part of the ordinary build.
peers: deps
	@missing=$$(for p in $$(cat peers.txt); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done)
	if [ -n "$$missing" ]; then
		echo "installing: $$missing"
		$(SUDO) apt-get update -qq
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null
	fi
	$(CARGO) build --release --manifest-path benches/peers/Cargo.toml --target-dir "$${CARGO_TARGET_DIR:-target}"
	echo "peers: testpmd of DPDK $$(dpkg-query -W -f '$${Version}' dpdk-dev); programs in $${CARGO_TARGET_DIR:-target}/release:"
	cd "$${CARGO_TARGET_DIR:-target}/release" && ls peer-io-uring peer-packet-mmap peer-smoltcp peer-testpmd

# Debian packages, listed once in packages.txt. Nothing happens when all are there.
deps:
	@missing=$$(for p in $$(cat packages.txt); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done)
	if [ -n "$$missing" ]; then
		echo "installing: $$missing"
		$(SUDO) apt-get update -qq
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq $$missing >/dev/null
	fi
	command -v $(CARGO) >/dev/null || { echo "Hoist is built with Rust 1.88 or newer: cargo was not found"; exit 1; }

clean:
	$(CARGO) clean
