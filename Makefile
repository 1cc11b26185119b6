# Every target does its own set-up: it makes .venv once, installs what it needs, and is then quick.
# Choose an interpreter with `make PYTHON=/path/to/python3.12 ...`; parallel test processes with `make TEST_PROCESSES=4 test`.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2
SOAK_SECONDS ?= 600
BUDGET ?= 400
ONLY ?=
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest
# the source files, for the checks that take them; benchmarks and examples are Python too
CODE := $(wildcard src tests examples benchmarks tools docs/conf.py)
# what `make check` runs: everything that is quick
FAST := $(wildcard tests/unit tests/paper tests/scenarios tests/simulation tests/test_architecture.py tests/test_docs.py)

.PHONY: help run test check soak scopes bench compiled zoo docs bless format clean

help:  ## say what the targets do
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

# -- set-up ------------------------------------------------------------------------------------------------------

$(VENV)/.made:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for candidate in python3.11 python3.12 python3.13 python3.14 python3; do \
	    if command -v "$$candidate" >/dev/null 2>&1 && \
	       "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	      python="$$candidate"; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "error: Oarlock needs Python 3.11 or later with the venv module; none was found on PATH." >&2; \
	  echo "       Install one (Debian: apt-get install python3.11-venv) or say: make PYTHON=/path/to/python3.12 ..." >&2; \
	  exit 1; fi; \
	"$$python" -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"error: Oarlock needs Python 3.11 or later; {sys.executable} is {sys.version.split()[0]}")'; \
	echo "making $(VENV) with $$python ($$("$$python" --version))"; \
	"$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	@echo "installing what the server and the demonstration need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' --group demo
	@touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml
	@echo "installing what tests, checks, benchmarks and documentation need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

# -- targets -----------------------------------------------------------------------------------------------------

run: $(VENV)/.run  ## a three-member cluster on this machine: load data, kill the leader, compare everything
	@$(BIN)/python -m oarlock demo $(ARGS)

ifdef COMPILED
COMPILE := compiled
PYTEST += -o pythonpath=build/compiled
export PYTHONPATH := $(CURDIR)/build/compiled
endif

test: $(VENV)/.dev $(COMPILE)  ## everything, the system tests included (minutes)
	@$(PYTEST) tests -n $(TEST_PROCESSES) --dist loadgroup -m "not soak" $(ARGS)

check: $(VENV)/.dev  ## format, lint, types and the fast tests (about a minute): all a change needs
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(PYTEST) $(FAST) -n $(TEST_PROCESSES) --dist loadgroup -m "not soak and not system and not slow" -q $(ARGS)

soak: $(VENV)/.dev  ## the long tests; SOAK_SECONDS=3600 for an hour each
	@SOAK_SECONDS=$(SOAK_SECONDS) $(PYTEST) tests -m soak --timeout=0 $(ARGS)

scopes: $(VENV)/.dev  ## every state of the small scopes, in their large sizes (an hour or so)
	@$(BIN)/python -m oarlock sim scopes --full $(ARGS)

bench: $(VENV)/.dev $(COMPILE)  ## the measurements, side by side with a real etcd
	@$(BIN)/python -m benchmarks $(ARGS)

zoo: $(VENV)/.dev  ## plant known defects in copies of the source and let the simulator find them: BUDGET=400 ONLY="BZ-44 BZ-65" JOBS=2
	@$(BIN)/python -m benchmarks.zoo --budget $(BUDGET) --jobs $(JOBS) --only $(ONLY)

compiled: $(VENV)/.dev  ## the package with its hot modules compiled, in build/compiled; then e.g. make test COMPILED=1
	@$(BIN)/python tools/compiled.py

docs: $(VENV)/.dev  ## the documentation as HTML in build/docs
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

bless: $(VENV)/.dev  ## rewrite golden files and generated reference pages; then read the diff
	@$(BIN)/python -m oarlock.config.reference docs/reference/configuration.md
	@$(BIN)/python -m oarlock.ctl.reference docs/reference/oarlockctl.md
	@$(PYTEST) tests/scenarios --bless -q

format: $(VENV)/.dev  ## format and sort imports
	@$(BIN)/ruff check --fix-only --quiet $(CODE)
	@$(BIN)/ruff format $(CODE)

clean:  ## remove what builds and tests left
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)
