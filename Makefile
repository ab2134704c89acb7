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
PROMTOOL := $(VENV)/.prometheus
POSTGRES_15 := $(VENV)/postgres-15
PACKER := $(VENV)/packer
# Half of the tests wait for something most of the time: three for two cores.
JOBS ?= $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-15 test-pooler test-launch test-all check bench binary format clean

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) $(ANVIL) ## real payments on a local chain move real rows, while a worker is killed
	@$(BIN)/reconsup demo

test: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) ## all tests that take less than five minutes together
	$(PYTEST) -m "not long"

test-15: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) $(POSTGRES_15) ## those that touch PostgreSQL, on PostgreSQL 15
	RECONSUP_TEST_POSTGRES=$(POSTGRES_15) $(PYTEST) -m "service and not long"

test-pooler: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) ## and behind a PgBouncer in transaction mode
	RECONSUP_TEST_POOLER=1 $(PYTEST) -m "service and not long and not direct"

STORIES_OF_A_START := $(addprefix tests/story/test_,launch.py main_job.py reload.py resume.py status.py stopping.py)

test-launch: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) dist/reconsup dist/reconsup.pyz ## the stories from the wheel and the one files, as PID 1, under a service manager, where nothing else is
	for each in wheel+notify binary+bare+pid1; do \
	  RECONSUP_TEST_PROGRAM=$$each $(PYTEST) -m "service and story and not long and not planted" tests/story || exit 1; \
	done
	RECONSUP_TEST_PROGRAM=shiv+bare+notify $(PYTEST) -m "not long and not planted" $(STORIES_OF_A_START)
	for each in wheel binary shiv; do \
	  RECONSUP_TEST_PROGRAM=$$each $(PYTEST) -m "not long and not planted" tests/story/test_entry.py || exit 1; \
	done

test-all: $(READY) $(ANVIL) $(PGBOUNCER) $(PROMTOOL) $(POSTGRES_15) dist/reconsup dist/reconsup.pyz ## the long ones, and the others on PostgreSQL 15, behind PgBouncer, from each package
	$(PYTEST) -m long
	RECONSUP_TEST_POSTGRES=$(POSTGRES_15) RECONSUP_TEST_POOLER=1 $(PYTEST) -m "service and not long and not direct"
	RECONSUP_TEST_POSTGRES=$(POSTGRES_15) $(PYTEST) -m "service and not long and direct"
	$(MAKE) test-launch

check: $(READY) $(PROMTOOL) ## format, lint, types, the walls of the house, fast tests: before each commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -q -m "not service and not story and not long"

.PHONY: spec-lint
spec-lint: $(READY) ## what the pages name exists: front matter, links, requirements ↔ tasks ↔ tests (make check does it too)
	@$(BIN)/python -m tests.specs.lint

bench: $(RIVALS) $(ANVIL) ## measure everything: tables, and dist/bench.json (PARTS="takeover writes" for some of it)
	$(BIN)/python -m tests.bench $(PARTS)

binary: dist/reconsup ## one file for Linux machines without Python: dist/reconsup

.PHONY: shiv
shiv: dist/reconsup.pyz ## one file for machines with this version of Python and nothing else: dist/reconsup.pyz

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
$(PACKER)/.ready: packaging/requirements-binary.txt packaging/requirements-service.txt | $(READY)
	$(PYTHON) -m venv --clear $(PACKER)
	$(PACKER)/bin/python -I -m pip install --quiet --disable-pip-version-check --require-hashes -r packaging/requirements-binary.txt
	@touch $@

# Nothing of the caller's environment: what is packed depends on this checkout and on the pins alone.
PACK := env -i PATH="$$PATH" HOME=$(abspath $(PACKER)) LC_ALL=C.UTF-8 TZ=UTC PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=1767225600 \
  ZIG_GLOBAL_CACHE_DIR=$(abspath $(PACKER))/zig ZIG_LOCAL_CACHE_DIR=$(abspath $(PACKER))/zig

dist/reconsup: $(PACKER)/.ready packaging/reconsup.spec packaging/onefile.py packaging/onefile.c pyproject.toml \
  $(shell find reconsup migrations -name '*.py')
	$(PACK) $(PACKER)/bin/python -m PyInstaller --noconfirm --log-level ERROR \
	  --distpath dist --workpath $(PACKER)/work packaging/reconsup.spec
	$(PACK) $(PACKER)/bin/python packaging/onefile.py dist/reconsup-folder $@

# What the service needs, and nothing else, as pip lays it out.
$(PACKER)/service/.ready: packaging/requirements-service.txt | $(PACKER)/.ready
	rm -rf $(PACKER)/service
	$(PACKER)/bin/python -I -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --no-compile \
	  --target $(PACKER)/service -r packaging/requirements-service.txt
	@touch $@

dist/reconsup.pyz: $(PACKER)/service/.ready packaging/pyz.py packaging/pyz_start.py packaging/pyz_unpack.py pyproject.toml README.md \
  LICENSE $(shell find reconsup migrations -name '*.py')
	rm -rf $(PACKER)/wheel && mkdir -p dist
	$(PACK) $(BIN)/python -m build --wheel --no-isolation --outdir $(PACKER)/wheel . >/dev/null
	$(PACK) $(PACKER)/bin/python packaging/pyz.py $(PACKER)/service $(PACKER)/wheel/*.whl $@

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
	@$(BIN)/python -m tests.support.tools prometheus
	@touch $@

$(POSTGRES_15): | $(READY)
	@$(BIN)/python -m tests.support.tools postgres-15

# The browser of the status page's tests, which are long ones.
CHROMIUM := $(VENV)/.chromium
test-all: $(CHROMIUM)

$(CHROMIUM): | $(READY)
	@$(BIN)/python -m tests.support.tools chromium
	@touch $@

# systemd: units, the settings file, the Debian package
.PHONY: deb
deb: dist/reconsup ## a Debian package with units and settings: dist/reconsup_VERSION_ARCH.deb
	$(PYTHON) packaging/deb/build.py dist/reconsup dist

SYSTEMD_ANALYZE := $(VENV)/.systemd-analyze
check test test-15 test-pooler test-all: $(SYSTEMD_ANALYZE)
$(SYSTEMD_ANALYZE): | $(READY)
	@$(BIN)/python -m tests.support.tools systemd-analyze
	@touch $@

# Containers
.PHONY: service-up
service-up: ## PostgreSQL, reconsup, Prometheus, Grafana in containers (SERVICE_RECONCILER_REPLICAS=2 SERVICE_RECONCILER_WORKERS=4 …)
	@$(PYTHON) packaging/compose/service.py up

.PHONY: service-down
service-down: ## stop these, each supervisor after its drain; the data stays (SERVICE_KEEP_DATA=0 removes it)
	@$(PYTHON) packaging/compose/service.py down

COMPOSE := $(VENV)/.docker-compose
check test test-all: $(COMPOSE)
$(COMPOSE): | $(READY)
	@$(BIN)/python -m tests.support.tools docker-compose
	@touch $@
