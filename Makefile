# The one door, for people and for CI.
# Everything is built into one folder, so that the tests' own packages share the controller's dependencies.
export CARGO_TARGET_DIR ?= $(CURDIR)/target

.PHONY: help demo test release-test check bench fuzz simulation soak mutants

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: ## run route-sync against a foundation in a box, over examples/
	cargo build --quiet --locked
	cargo build --quiet --locked --manifest-path tests/Cargo.toml --package sandbox
	@exec $(CARGO_TARGET_DIR)/debug/demo --controller $(CARGO_TARGET_DIR)/debug/route-sync --manifests examples

test: ## set up what the tests need, run all of them, end with one line of counts
	@tests/run

release-test: ## make the BOSH release and compile its packages as a director would, without a network
	@tests/release/run

check: ## formatting, lints, documentation, licences, the release's digests
	bosh-release/scripts/bundle --fresh
	cargo fmt --check
	cargo fmt --check --manifest-path tests/Cargo.toml --all
	cargo clippy --quiet --locked --all-targets -- -D warnings
	cargo clippy --quiet --locked --manifest-path tests/Cargo.toml --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps
	@if command -v cargo-deny >/dev/null; then cargo deny --offline --log-level error check bans licenses sources; \
	else echo "cargo-deny is not installed: licences were not looked at; to do so: cargo install --locked cargo-deny"; fi

# What a life is drawn from.
SEED ?= 0
MINUTES ?= 60

simulation: ## live one simulated life and print what happens: SEED=17
	@tests/simulation/cargo run --quiet -- --seed $(SEED) --trace --log route_sync=info

soak: ## live simulated lives with ever new seeds, then put the real programs under load: MINUTES=60
	@MINUTES=$(MINUTES) tests/soak

mutants: ## show that the simulation kills each deliberate defect
	@tests/simulation/mutants/run

bench: ## measure what the README claims
	@tests/bench

fuzz: ## search all that reads what others write for five minutes each, or FUZZ_SECONDS
	@tests/fuzz/run
