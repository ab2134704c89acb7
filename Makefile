# Every target does its own set-up: make, Python >= 3.11 and Node >= 20 are all that a machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ANVIL := $(VENV)/node/.ready
RIVALS := $(VENV)/.rivals
ANVIL_PACKAGE := @foundry-rs/anvil@1.7.1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench format clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) $(ANVIL) ## real payments on a local chain move real rows, while a worker is killed
	@$(BIN)/reconsup demo

test: $(READY) $(ANVIL) ## all tests that take less than five minutes together
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not long"

test-all: $(READY) $(ANVIL) ## those, and the long ones
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY) ## format, lint, types, the walls of the house, fast tests: before each commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not service and not story and not long"

bench: $(RIVALS) $(ANVIL) ## measure everything: tables, and dist/bench.json (PARTS="takeover writes" for some of it)
	$(BIN)/python -m tests.bench $(PARTS)

format: $(READY) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

clean: ## remove what make made here
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): packaging/requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "reconsup needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r packaging/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(RIVALS): packaging/requirements-bench.txt | $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r packaging/requirements-bench.txt
	@touch $@

$(ANVIL): | $(READY)
	@command -v npm >/dev/null \
	  || { echo "the local chain (anvil) comes as an npm package: install Node 20 or newer" >&2; exit 1; }
	mkdir -p $(VENV)/node
	npm install --prefix $(VENV)/node --ignore-scripts --no-save --no-audit --no-fund --loglevel=error $(ANVIL_PACKAGE)
	@touch $@
