# The README's commands. Everything is installed into .venv; nothing outside the checkout is touched but caches.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow simulate lint format bench clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml
	@echo "setting up $(VENV) (first time: a minute or two) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3,11),(3,12),(3,13)) and "Penstock needs Python 3.11 to 3.13, got " + sys.version.split()[0] + "; name one: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

demo: $(READY)  ## makes a click log, trains, evaluates, predicts, says what to try next
	@PENSTOCK="$(CURDIR)/$(BIN)/penstock" bash examples/demo.sh .demo

test: $(READY) lint  ## passes the tests
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

test-slow: $(READY)  ## the tests that take minutes or gigabytes
	$(BIN)/python -m pytest -q -m slow

SEEDS := 100000
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
	for name in startup quality kernel online online-tsv ps-pull-push ps-train ps-straggler ps-skew log-append replay kappa prove serve-http serve-bulk score sync fresh mapped windows soak; do $(BIN)/python -m benchmarks $$name || exit 1; done

clean:  ## remove what make made
	rm -rf $(VENV) .demo bench-data
