# The README's commands. Everything is installed into .venv; nothing outside the checkout is touched but caches.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS := constraints.txt

# Tests do not depend on chance: Hypothesis is derandomised by its profile (tests/conftest.py), Python's sets by this.
HASH_SEED := 0
ROUNDS := 10
SEEDS := 100000
PYTHONS := python3.11 python3.12 python3.13

.PHONY: demo test test-slow test-dist fuzz simulate lint format bench dist update clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# Build tools run in an environment of their own; pip takes its versions from these variables (the second: since 25.3).
$(READY): pyproject.toml $(CONSTRAINTS)
	@echo "setting up $(VENV) (first time: a minute or two) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3,11),(3,12),(3,13)) and "Penstock needs Python 3.11 to 3.13, got " + sys.version.split()[0] + "; name one: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

demo: $(READY)  ## makes a click log, trains, evaluates, predicts, says what to try next
	@PENSTOCK="$(CURDIR)/$(BIN)/penstock" bash examples/demo.sh .demo

test: $(READY) lint  ## passes the tests
	PYTHONHASHSEED=$(HASH_SEED) $(BIN)/python -m pytest -n 2 -q -m "not slow"

test-slow: $(READY)  ## the tests that take minutes or gigabytes
	PYTHONHASHSEED=$(HASH_SEED) $(BIN)/python -m pytest -q -m slow

test-dist: $(READY)  ## installs the wheel with each extra in an environment of its own, and imports what it brings
	$(BIN)/python -m tests.distribution

fuzz: $(READY)  ## Hypothesis searches for new examples, ROUNDS times; what it finds is tried first from then on
	for round in $$(seq $(ROUNDS)); do \
		PENSTOCK_HYPOTHESIS=search $(BIN)/python -m pytest -n auto -q -m "hypothesis and not slow" || exit 1; done

simulate: $(READY)  ## the parameter server under SEEDS seeded faults, on all cores
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

lint: $(READY)  ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## lay out the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## all benchmarks, ours and the peers' (two hours)
	for name in $$($(BIN)/python -m benchmarks --names); do $(BIN)/python -m benchmarks $$name || exit 1; done

dist: $(READY)  ## wheel and source distribution in dist/, checked
	rm -rf dist
	PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

update:  ## takes the newest versions of all dependencies, and passes the tests with them on PYTHONS
	rm -rf .venvs
	$(firstword $(PYTHONS)) -m venv .venvs/newest
	.venvs/newest/bin/python -m pip install --quiet --disable-pip-version-check '.[dev,bench]'
	sed '/^[^#]/d' $(CONSTRAINTS) > .venvs/$(CONSTRAINTS)
	.venvs/newest/bin/python -m pip freeze --exclude penstock-ml >> .venvs/$(CONSTRAINTS)
	mv .venvs/$(CONSTRAINTS) $(CONSTRAINTS)
	for python in $(PYTHONS); do $(MAKE) PYTHON=$$python VENV=.venvs/$$python test || exit 1; done

clean:  ## remove what make made
	rm -rf $(VENV) .venvs .demo bench-data dist
