# Every target makes the virtual environment itself, when it is missing or older than what it is made from.
# Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.DELETE_ON_ERROR:
.PHONY: help demo test test-crash lint format docs bench services clean

help:
	@echo "make demo        see what tallyflow does, with embedded engines and sample events"
	@echo "make test        run the tests"
	@echo "make test-crash  run the tests that kill processes (minutes)"
	@echo "make lint        ruff, mypy and the import contracts"
	@echo "make format      let ruff rewrite the code"
	@echo "make docs        write the reference pages anew"
	@echo "make bench       measure"
	@echo "make services    Kafka, Redis and ClickHouse on loopback until Ctrl-C; needs Java 17 and Maven"
	@echo "make clean       remove the virtual environment and everything generated"

$(STAMP): pyproject.toml constraints.txt sdk/pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found. Name a Python 3.11 or 3.12: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { echo "tallyflow needs Python 3.11 or 3.12, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,embedded]' -e ./sdk
	@touch $@

demo: $(STAMP)
	$(BIN)/tally demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-crash: $(STAMP)
	$(BIN)/python -m pytest -m crash

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m docs.reference

bench: $(STAMP)
	$(BIN)/python -m bench

services: $(STAMP)
	@exec $(BIN)/python -m tests.services

clean:
	rm -rf $(VENV) .services build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
