# The entry points of minivmm. `make demo` and `make test` do all set-up themselves on Debian 12 as
# root; without root they say which packages to install. Second runs fetch and rebuild nothing.

.PHONY: help test demo bench lint audit fuzz soak faults build setup guests unit e2e fmt clippy doc scripts deny lab-tests

MODE = tests/lab/kvm-mode
BINARIES = $(CURDIR)/target/x86_64-unknown-linux-gnu/release
RELEASE = cargo build --release --locked -p minivmm -p minivmm-agent
SCRIPTS = .ci/run .ci/phase resources/kernel/fetch $(wildcard resources/*.sh) resources/python/prepare \
	tests/prepare-guests tests/prepare-images tests/run-e2e tests/soak tests/check-faults tests/lab/run tests/lab/prepare tests/lab/qemu tests/lab/packages tests/lab/kvm-mode tests/lab/selftest

help:
	@echo 'make demo    boot a Debian kernel, make a template, restore clones; prints the figures'
	@echo 'make test    everything: build, unit tests, end-to-end tests on real kernels, lint'
	@echo 'make unit    unit tests and the KVM tests with hand-made guests'
	@echo 'make e2e     end-to-end tests only (TESTS="--test boot" for one file, KERNELS=all for each kernel)'
	@echo 'make soak    long tests with random moments for MINUTES=30; prints a table'
	@echo 'make bench   minivmm beside its floor, the bare KVM calls; prints ratios (BENCH="--only restores --rounds 50");'
	@echo '             FIRECRACKER=PATH, CLOUD_HYPERVISOR=PATH and QEMU=PATH are compared, too'
	@echo 'make lint    formatting, clippy, documentation, shell scripts, dependencies'
	@echo 'make audit   dependencies against known vulnerabilities; installs cargo-deny (minutes), needs GitHub'
	@echo 'make fuzz    hostile guests and files made up for SECONDS=60 each (TARGET=packets for one); installs cargo-fuzz'
	@echo 'make build   release builds of minivmm and the guest agent'
	@echo 'make setup   Debian packages, guest kernels, the lab; nothing else'
	@echo
	@echo 'Without hardware KVM (vmx or svm), stock kernels run in the lab: QEMU emulates a machine that has'
	@echo 'it, see tests/lab/run --help. MINIVMM_KVM=host|lab overrides the detection.'

test:
	@.ci/phase --start
	@.ci/phase 'set-up' $(MAKE) --no-print-directory setup
	@.ci/phase 'release build' $(MAKE) --no-print-directory build
	@.ci/phase 'unit tests' $(MAKE) --no-print-directory unit
	@.ci/phase 'lab tests' $(MAKE) --no-print-directory lab-tests
	@.ci/phase 'end-to-end tests' $(MAKE) --no-print-directory e2e
	@.ci/phase 'lint' $(MAKE) --no-print-directory lint
	@.ci/phase --summary

demo: setup build guests
	@resources/python/prepare || echo 'make: the demo goes without its scene with Python' >&2
	@mode=$$($(MODE) --why) && \
	if [ "$$mode" = lab ]; then tests/lab/run --cpus 1 resources/demo.sh; else resources/demo.sh; fi

# The toolchain is the one thing that is not fetched: Debian 12's is too old.
setup:
	@command -v cargo >/dev/null || \
	{ echo 'make: no cargo in PATH; install Rust 1.90 or newer, see https://rustup.rs' >&2; exit 1; }
	@tests/lab/packages gcc libc6-dev shellcheck busybox-static iproute2 e2fsprogs
	@resources/kernel/fetch
	@mode=$$($(MODE)) && if [ "$$mode" = lab ]; then tests/lab/qemu && tests/lab/prepare; fi

build:
	@$(RELEASE)

# Before the lab starts, in which nothing is kept.
guests: setup build
	@tests/prepare-guests

unit:
	@cargo test --locked --workspace --exclude minivmm-tests --no-fail-fast

# The lab boots once for each test file.
e2e: setup build guests
	@$(MODE) --why >/dev/null && tests/run-e2e $(TESTS)

# The long tests again and again, with random moments: MINUTES=30 unless told otherwise.
soak: setup build guests
	@$(MODE) --why >/dev/null && tests/soak

# One run on one machine: figures of different runs say nothing about each other in a lab.
# What is compared besides minivmm is given by its path, which must not be below /tmp: the lab's is its own.
PEERS = $(if $(FIRECRACKER),--firecracker $(abspath $(FIRECRACKER))) \
	$(if $(CLOUD_HYPERVISOR),--cloud-hypervisor $(abspath $(CLOUD_HYPERVISOR))) $(if $(QEMU),--qemu $(abspath $(QEMU)))

bench: setup build guests
	@cargo build --release --locked -p bench
	@[ -z '$(strip $(PEERS))' ] || tests/prepare-guests pci
	@mkdir -p target/bench
	@if [ "$$($(MODE))" = lab ] && [ -w /dev/kvm ]; then \
		echo "this machine's own KVM, with a tiny guest:" && \
		MINIVMM_BIN=$(BINARIES)/minivmm $(BINARIES)/bench --only starts --json target/bench/host.json; fi
	@mode=$$($(MODE) --why) && bench="env MINIVMM_BIN=$(BINARIES)/minivmm $(BINARIES)/bench" && \
	if [ "$$mode" = lab ]; then \
		tests/lab/run --cpus 1 --mem 12288 --timeout 10800 --out target/bench \
			$$bench --json /run/lab/out/bench.json $(PEERS) $(BENCH); \
	else $$bench --json target/bench/bench.json $(PEERS) $(BENCH); fi
	@echo 'all samples: target/bench/bench.json'

lab-tests:
	@mode=$$($(MODE)) && if [ "$$mode" = lab ]; then tests/lab/selftest; fi

lint: fmt clippy doc scripts faults deny

fmt:
	@cargo fmt --all --check

clippy:
	@cargo clippy --locked --workspace --all-targets -- -D warnings

doc:
	@RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --quiet

scripts:
	@if command -v shellcheck >/dev/null; then \
		shellcheck $(SCRIPTS) && shellcheck -s dash tests/lab/init tests/lab/supervisor; \
	else echo 'make: shellcheck is not installed, the scripts are not checked' >&2; fi

# Every test that tests/FAULTS.md names is there.
faults:
	@tests/check-faults

# Licences, sources and duplicates need no network; `make audit` adds the advisories.
deny:
	@if PATH=target/tools/bin:$$PATH command -v cargo-deny >/dev/null; then \
		PATH=target/tools/bin:$$PATH cargo deny --offline check bans licenses sources; \
	else echo 'make: cargo-deny is not installed (make audit installs it), dependencies are not checked' >&2; fi

# The bodies of the targets are in tests/hostile, and `make unit` runs them over the corpus. libFuzzer is
# C++. Its instrumentation works with any toolchain as long as no sanitizer is asked for; guest memory is
# mapped, which they do not look at anyway. The flags of .cargo/config.toml do not reach this build.
FUZZ_TARGETS = $(notdir $(basename $(wildcard tests/fuzz/fuzz_targets/*.rs)))
FUZZ = PATH="$(CURDIR)/target/tools/bin:$$PATH" cargo fuzz
FUZZ_OPTIONS = --fuzz-dir tests/fuzz --target-dir target/fuzz --sanitizer none
TARGET = $(FUZZ_TARGETS)
SECONDS = 60

fuzz:
	@PATH=target/tools/bin:$$PATH command -v cargo-fuzz >/dev/null || cargo install --locked --root target/tools cargo-fuzz
	@command -v c++ >/dev/null || tests/lab/packages g++
	@for target in $(TARGET); do \
		mkdir -p target/fuzz/found/$$target && \
		$(FUZZ) run $(FUZZ_OPTIONS) $$target target/fuzz/found/$$target tests/fuzz/corpus/$$target -- \
			-max_total_time=$(SECONDS) -timeout=20 -max_len=4096 || exit 1; \
	done

audit:
	@PATH=target/tools/bin:$$PATH command -v cargo-deny >/dev/null || cargo install --locked --root target/tools cargo-deny
	@PATH=target/tools/bin:$$PATH cargo deny check
