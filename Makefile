# Each target installs what it needs and the machine lacks: packages of the system
# (tests/lab/needs) and, unpacked below target/, real programs (tests/lab/parts).
SHELL := bash
CARGO := cargo
RELEASES := 1.6 1.7 2.1
# The containerd of `make test`.
PORTCULLIS_CONTAINERD ?= 1.6
export PORTCULLIS_CONTAINERD
# The fixtures of `make differential`: all, or a part of their names.
FIXTURES ?= all

.PHONY: help build demo test check differential test-matrix test-cluster faults bench fuzz clean needs parts
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: needs ## the program, target/debug/portcullis
	$(CARGO) build --locked

demo: parts build ## what Portcullis does, shown with a real registry, containerd and cosign
	tests/demo

test: parts check ## every check and test; containerd 1.6 or $PORTCULLIS_CONTAINERD
	$(CARGO) test --locked --no-fail-fast
	@mkdir -p target && tests/demo > target/demo.log 2>&1 || { cat target/demo.log; exit 1; }
	@tail -n 1 target/demo.log

check: needs ## formatting, lints and documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps --document-private-items

differential: parts ## every byte of every fixture changed, cosign 2 and 3 asked; half an hour
	tests/lab/parts cosign-3
	RUST_BACKTRACE=0 PORTCULLIS_EVERY_BYTE=$(FIXTURES) $(CARGO) test --locked --test it -- --include-ignored --nocapture differential::cosign

test-matrix: parts ## the tests on real containerd, with each of its releases
	tests/lab/parts $(RELEASES:%=containerd-%)
	set -e; for release in $(RELEASES); do \
	  PORTCULLIS_CONTAINERD=$$release $(CARGO) test --locked --test real; done

test-cluster: needs ## a real API server and etcd, built first: 10 minutes, the next time one
	tests/lab/parts etcd kubectl
	tests/cluster/servers
	$(CARGO) test --locked --test cluster

faults: parts build ## faults, and ten thousand connections; panics shown are provoked; a minute after the build
	RUST_BACKTRACE=0 $(CARGO) test --locked --test it faults:: -- --include-ignored --nocapture
	RUST_BACKTRACE=0 $(CARGO) test --locked --test real faults:: -- --nocapture

bench: needs ## what it costs, in tests/bench/RESULTS.md; ten minutes after the build
	tests/bench/run

# TIME=600 seconds for each target, JOBS=1 at once; tests/fuzz/run --help tells the rest.
fuzz: needs ## hostile input for 12 parsers, 10 minutes each: two hours (JOBS=2: one; TIME=60: 12 minutes)
	tests/fuzz/run

clean: ## delete what was built and unpacked
	$(CARGO) clean

needs:
	@tests/lab/needs

parts: needs
	@tests/lab/parts containerd-$(PORTCULLIS_CONTAINERD) runc docker-registry cosign-2
