# Everything runs in .venv, and each target sets up what it needs of it.
PYTHON ?= python3
ARGS ?=
FIGURES ?= benchmarks.json

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
FRESH := .venv-constraints

# One stamp for each stage, so that the demo does not wait for the test tools.
VENV_READY := $(VENV)/.venv-ready
DEMO_READY := $(VENV)/.demo-ready
DEV_READY := $(VENV)/.dev-ready
BENCH_READY := $(VENV)/.bench-ready
# What the wire is tried with, beside the client in .venv itself: each in a directory of its own, so that none sees another.
CLIENTS_READY := $(VENV)/client-2/.ready $(VENV)/client-1/.ready $(VENV)/node/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test lint format demo demo-wire bench bench-quick bench-before bench-chart constraints clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV_READY) $(CLIENTS_READY) ## Set up .venv with all tools

test: $(DEV_READY) $(CLIENTS_READY) ## Run all tests (ARGS="-k name" for some)
	$(BIN)/pytest $(ARGS)

lint: $(DEV_READY) ## Check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(DEV_READY) ## Format the code, and mend what can be mended by itself
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

demo: $(DEMO_READY) ## Run 210 recorded conversations through a store and a worker
	$(BIN)/python examples/coffee_bar.py $(ARGS)

demo-wire: $(DEMO_READY) ## Run them over HTTP, with OpenAI's own client
	$(BIN)/python examples/coffee_bar_wire.py $(ARGS)

bench: $(BENCH_READY) ## Measure it beside what one would take instead (ARGS="--json FILE")
	$(BIN)/python benchmarks/store.py $(ARGS)
	$(BIN)/python benchmarks/worker.py $(ARGS)
	$(BIN)/python benchmarks/cancellation.py $(ARGS)
	$(BIN)/python benchmarks/streaming.py $(ARGS)
	$(BIN)/python benchmarks/growth.py $(ARGS)

bench-quick: $(BENCH_READY) ## The same in a minute, and with less to rely on
	$(BIN)/python benchmarks/store.py --quick $(ARGS)
	$(BIN)/python benchmarks/worker.py --quick $(ARGS)
	$(BIN)/python benchmarks/cancellation.py --quick $(ARGS)
	$(BIN)/python benchmarks/streaming.py --quick $(ARGS)

bench-before: $(BENCH_READY) ## Measure it beside what it was at ea744ed (ARGS="--quick")
	$(BIN)/python benchmarks/before.py $(ARGS)

bench-chart: $(BENCH_READY) ## Draw docs/benchmarks.svg from the figures that make bench wrote (FIGURES=FILE)
	$(BIN)/python benchmarks/chart.py $(FIGURES) docs/benchmarks.svg

constraints: ## Renew the pins in constraints.txt (with Python 3.11)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo 'The pins are made with Python 3.11, the oldest supported: make constraints PYTHON=python3.11' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(FRESH)
	$(FRESH)/bin/python -m pip install -qU pip
	$(FRESH)/bin/python -m pip install -q -e '.[cli,demo,web]' --group test --group lint --group bench
	$(FRESH)/bin/python -m pip install -q --group client-2
	$(FRESH)/bin/python -m pip install -q --group client-1
	echo '# Every version that `make` installs, made with Python 3.11. To renew: make constraints' > $(FRESH)/constraints.txt
	echo '# Only openai is missing, for there are three of it: pyproject.toml pins each in a group of its own.' >> $(FRESH)/constraints.txt
	$(FRESH)/bin/python -m pip freeze --all --exclude-editable --exclude setuptools --exclude openai >> $(FRESH)/constraints.txt
	mv $(FRESH)/constraints.txt constraints.txt
	rm -rf $(FRESH)

clean: ## Remove .venv, caches and build artefacts
	rm -rf $(VENV) $(FRESH) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Cleared first: what an older set of pins had left there could hide a missing dependency.
$(VENV_READY): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'threadloom needs Python 3.11 or newer; to name one: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo '$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -qU -c constraints.txt pip
	@touch $@

$(DEMO_READY): $(VENV_READY) pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[demo]' --group client-3
	@touch $@

$(DEV_READY): $(VENV_READY) pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e '.[cli,demo,web]' --group test --group lint
	@touch $(DEMO_READY) $@

# The demo's stamp is made anew where the pins or the groups have changed, and these packages with it.
$(BENCH_READY): $(DEMO_READY)
	$(PIP) install -q -c constraints.txt --group bench
	@touch $@

$(VENV)/client-%/.ready: $(VENV_READY) pyproject.toml constraints.txt
	rm -rf $(@D)
	$(PIP) install -q -c constraints.txt --target $(@D) --group client-$*
	@touch $@

# npm comes with the test tools. They need not be older than what it installs.
$(VENV)/node/.ready: tests/wire/node/package.json | $(DEV_READY)
	rm -rf $(@D)
	mkdir $(@D)
	cp $< $(@D)
	$(BIN)/npm install --prefix $(@D) --loglevel=error --no-package-lock --no-audit --no-fund --ignore-scripts
	@touch $@
