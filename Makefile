# Each target sets itself up: a virtual environment in .venv with avow installed as it is edited.
# Needs make, git and python3 (3.11 or newer, with venv); no C compiler, but for the extra `tpm`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input
READY  := $(VENV)/.ready

# Nothing of the caller's Python may reach into the environment.
unexport PYTHONPATH
unexport PYTHONHOME

# Where libtss2 and a C compiler are, the extra `tpm` is installed as well.
TPM_READY := $(VENV)/.ready-tpm
TPM_BUILD := $(shell pkg-config --exists tss2-esys tss2-mu tss2-rc tss2-tctildr 2>/dev/null && command -v cc >/dev/null && \
	$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' && echo yes)

# What a few tests need and pip cannot install. Without it those tests are left out, and the end of
# the run counts them (tests/conftest.py). .ci/run installs it, so nothing is left out there.
VECTORS := $(or $(AVOW_VECTORS),../shared/vectors)
CASES := $(or $(AVOW_CASES),$(dir $(VECTORS:/=))cases)
ABSENT := $(if $(and $(shell command -v mosquitto_pub),$(shell PATH="$$PATH:/usr/sbin" command -v mosquitto)),,mosquitto) $(if $(shell command -v openssl),,openssl)
ABSENT += $(if $(and $(TPM_BUILD),$(shell command -v swtpm)),,tpm) $(if $(wildcard $(VECTORS)/README.md),,vectors)
ABSENT += $(if $(wildcard $(CASES)/README.md),,cases)
ABSENT := $(strip $(ABSENT))
ifneq ($(ABSENT),)
LEFT_OUT := -m "not ($(subst $() $(), or ,$(ABSENT)))"
endif

FUZZ_S ?= 60
FAULTS ?= 5000

.PHONY: help absent demo test lint bench fuzz torture docs build lock digests clean
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: build ## an attested broker, real clients, three refusals, for less than a minute
	$(BIN)/python -m examples.demo

test: lint ## every check and test
	$(BIN)/python -m pytest -n auto --dist loadfile $(LEFT_OUT)

absent: ## which tests would be left out here, by their marker
	@echo $(ABSENT)

lint: build ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m ziglang fmt --check core pump vault bench

bench: build ## speed against an installed mosquitto, as a table and JSON
	$(BIN)/python -m bench $(BENCH)

fuzz: build ## mutated packets against the core and mutated evidence, FUZZ_S seconds
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)

torture: build ## FAULTS faults against a broker and SQLite that keep their state, and every cut of a commit
	AVOW_CUT_SHARE=1 $(BIN)/python -m pytest -n auto tests/simulation/test_store_crashes.py
	$(BIN)/python -m tests.torture --faults $(FAULTS) $(TORTURE)
	$(BIN)/python -m tests.integration.sqlite_kills --kills $(FAULTS)

docs: build ## the documentation, into site/
	$(BIN)/python -m docs.generate
	$(BIN)/python -m mkdocs build --strict

build: $(READY) $(if $(TPM_BUILD),$(TPM_READY)) ## compile core and pump, and print their SHA-256
	@$(BIN)/python hatch_build.py

lock: build ## the lock files in requirements/, for the newest versions that pyproject.toml allows
	$(BIN)/python requirements/lock.py

digests: build ## what a release is measured as, for each supported Python that is here
	$(BIN)/python -m docs.digests $(DIGESTS)

clean: ## remove all that was built or downloaded into this folder
	rm -rf $(VENV) build dist site src/avow/_native .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Every file that is installed has to have a hash in requirements/ (`make lock`). The compiler goes in
# first and is used without build isolation, else pip would take another one, which has none.
$(READY): pyproject.toml requirements/build.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "avow needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "== 1/3 virtual environment in $(VENV)"
	$(PYTHON) -m venv --clear $(VENV)
	@echo "== 2/3 the Zig compiler (100 MB, once)"
	$(PIP) install --require-hashes -r requirements/build.txt
	@echo "== 3/3 avow, its dependencies and the tools"
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Compiled here, as there is no wheel of tpm2-pytss.
$(TPM_READY): $(READY) requirements/tpm-build.txt requirements/tpm.txt
	@echo "== and the TPM's library, compiled for libtss2"
	$(PIP) install --require-hashes -r requirements/tpm-build.txt
	$(PIP) install --require-hashes --no-build-isolation -r requirements/tpm.txt
	@touch $@
