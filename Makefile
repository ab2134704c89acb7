# Every target does its own set-up: make, Python >= 3.11 and Node >= 20 are all that a machine needs. Tests also take
# PgBouncer and promtool, from the machine or from Debian's packages; where one is neither, a sentence says what to install.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ANVIL := $(VENV)/node/.ready
RIVALS := $(VENV)/.rivals
ANVIL_PACKAGE := @foundry-rs/anvil@1.7.1
PGBOUNCER := $(VENV)/.pgbouncer
PROMTOOL := $(VENV)/.promtool
POSTGRES_15 := $(VENV)/postgres-15
PACKER := $(VENV)/packer
# Half of the tests wait for something most of the time: three for two cores.
JOBS ?= $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-15 test-pooler test-launch test-all check bench binary format clean

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) $(ANVIL) ## real payments on a local chain move real rows, while a worker is killed
	@$(BIN)/reconsup demo

test: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) ## all tests that take less than five minutes together
	$(PYTEST) -m "not long"

test-15: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) $(POSTGRES_15) ## those that touch PostgreSQL, on PostgreSQL 15
	RECONSUP_TEST_POSTGRES=$(POSTGRES_15) $(PYTEST) -m "service and not long"

test-pooler: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) ## and behind a PgBouncer in transaction mode
	RECONSUP_TEST_POOLER=1 $(PYTEST) -m "service and not long and not direct"

test-launch: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) dist/reconsup ## the stories from the wheel and the one file, as PID 1, under a service manager
	for each in wheel+notify binary+pid1; do \
	  RECONSUP_TEST_PROGRAM=$$each $(PYTEST) -m "service and story and not long and not planted" tests/story || exit 1; \
	done

test-all: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) $(POSTGRES_15) dist/reconsup ## all of these, and the long ones
	$(PYTEST)
	$(MAKE) test-15 test-pooler test-launch

check: $(READY) $(PROMTOOL) ## format, lint, types, the walls of the house, fast tests: before each commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not service and not story and not long"

.PHONY: spec-lint
spec-lint: $(READY) ## what the pages name exists: front matter, links, requirements ↔ tasks ↔ tests (make check does it too)
	@$(BIN)/python -m tests.specs.lint

bench: $(RIVALS) $(ANVIL) ## measure everything: tables, and dist/bench.json (PARTS="takeover writes" for some of it)
	$(BIN)/python -m tests.bench $(PARTS)

binary: dist/reconsup ## one file for Linux machines without Python: dist/reconsup

.PHONY: local-up-all
local-up-all: $(READY) $(ANVIL) ## PostgreSQL, a chain, 2 supervisors × 2 workers here, without containers (same knobs as service-up)
	@$(BIN)/python -m tests.local up

.PHONY: local-receive-test
local-receive-test: $(READY) $(ANVIL) ## pays ETH and USDT there: each is confirmed once, by workers of every supervisor
	@$(BIN)/python -m tests.local receive-test

.PHONY: local-down
local-down: $(READY) ## drains all of that and stops it (LOCAL_KEEP_DATA=0 removes its data)
	@$(BIN)/python -m tests.local down

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

# What packs has an environment of its own, so that nothing but the service's dependencies can get in.
$(PACKER)/.ready: packaging/requirements-binary.txt | $(READY)
	$(PYTHON) -m venv --clear $(PACKER)
	$(PACKER)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r packaging/requirements-binary.txt
	@touch $@

dist/reconsup: $(PACKER)/.ready packaging/reconsup.spec packaging/onefile.py packaging/onefile.c pyproject.toml \
  $(shell find reconsup migrations -name '*.py')
	PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=1767225600 $(PACKER)/bin/python -m PyInstaller --noconfirm --log-level ERROR \
	  --distpath dist --workpath $(PACKER)/work packaging/reconsup.spec
	ZIG_GLOBAL_CACHE_DIR=$(abspath $(PACKER))/zig $(PACKER)/bin/python packaging/onefile.py dist/reconsup-folder $@

$(ANVIL): | $(READY)
	@command -v npm >/dev/null \
	  || { echo "the local chain (anvil) comes as an npm package: install Node 20 or newer" >&2; exit 1; }
	mkdir -p $(VENV)/node
	npm install --prefix $(VENV)/node --ignore-scripts --no-save --no-audit --no-fund --loglevel=error $(ANVIL_PACKAGE)
	@touch $@

$(PGBOUNCER): | $(READY)
	@$(BIN)/python -m tests.support.tools pgbouncer
	@touch $@

$(PROMTOOL): | $(READY)
	@$(BIN)/python -m tests.support.tools promtool
	@touch $@

$(POSTGRES_15): | $(READY)
	@$(BIN)/python -m tests.support.tools postgres-15

# systemd: units, the settings file, the Debian package
.PHONY: deb
deb: dist/reconsup ## a Debian package with units and settings: dist/reconsup_VERSION_ARCH.deb
	$(PYTHON) packaging/deb/build.py dist/reconsup dist

SYSTEMD_ANALYZE := $(VENV)/.systemd-analyze
check test test-15 test-pooler test-all: $(SYSTEMD_ANALYZE)
$(SYSTEMD_ANALYZE): | $(READY)
	@$(BIN)/python -m tests.support.tools systemd-analyze
	@touch $@
