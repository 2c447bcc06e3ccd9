# Every target makes the virtual environment itself, when it is missing or older than what it is made from.
# Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Against the schemas of Kubernetes; kustomize's own file and the catalog are none.
MANIFESTS := $(filter-out %/kustomization.yaml %/catalog.yaml,$(wildcard deploy/kubernetes/*.yaml))

.DELETE_ON_ERROR:
.PHONY: help demo test faults simulate soak test-image lint format fuzz docs bench bench-latency services clean

help:
	@echo "make demo        see what tallyflow does, with embedded engines and sample events"
	@echo "make test        run the tests"
	@echo "make faults      run the fault matrix: what is killed, cut off, emptied and moved under real processes"
	@echo "make simulate    run the whole flow over failing fakes, by seeds (SEEDS=200 FIRST=1 EVENTS=2000)"
	@echo "make soak        half of the maximum load and a kill every 30 s; MINUTES=20 unless told"
	@echo "make test-image  install without the embedded engines and run as the image does (a minute)"
	@echo "make fuzz        look for inputs that break what reads them (SECONDS=60 for each target, TARGET=line ...)"
	@echo "make lint        ruff, mypy, import contracts, secrets, known vulnerabilities, and what is deployed"
	@echo "make format      let ruff rewrite the code"
	@echo "make docs        write the reference pages anew"
	@echo "make bench       measure throughput and memory"
	@echo "make bench-latency  measure the time from an event to its signal"
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

faults: $(STAMP)
	$(BIN)/python -m pytest -m faults

simulate: $(STAMP)
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),200) --first $(or $(FIRST),1) --events $(or $(EVENTS),2000) --jobs 2

soak: $(STAMP)
	$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),20)

test-image: $(STAMP)
	$(BIN)/python -m pytest -m image

# SECONDS is for each target; bash has a variable of that name, so one from the environment is no wish.
fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60) $(TARGET)

$(VENV)/.fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.security.secrets
	$(BIN)/python -m tests.security.advisories
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/kubernetes-validate --strict --quiet $(MANIFESTS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m docs.reference

bench: $(STAMP)
	$(BIN)/python -m bench

bench-latency: $(STAMP)
	$(BIN)/python -m bench.latency

services: $(STAMP)
	@exec $(BIN)/python -m tests.services

clean:
	rm -rf $(VENV) .services build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .faults
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
