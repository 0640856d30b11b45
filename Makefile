# Everything starts here: `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  make %-10s %s\n", $$1, $$2}'

# One virtual environment; a stamp a lock file, so that an unchanged lock installs nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "MarketPrism needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock requirements-tools.lock pyproject.toml | $(BIN)/python
	@echo "installing the run-time packages of requirements.lock, and grpcurl"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock -r requirements-tools.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "installing the development packages of requirements-dev.lock"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@ $(VENV)/.run

.PHONY: lock
lock: $(VENV)/.dev ## Resolve pyproject.toml into requirements*.lock
	PATH=$(CURDIR)/$(BIN):$$PATH sh tools/lock.sh

.PHONY: demo up test test-unit lint format gen bench clean
demo: $(VENV)/.run ## The whole mesh against simulated venues, until Ctrl-C (ARGS="--exchanges okx", ...)
	@exec $(BIN)/marketprism up --simulated $(ARGS)

up: $(VENV)/.run ## The whole mesh against the live venues, until Ctrl-C (ARGS="--exchanges okx", ...)
	@exec $(BIN)/marketprism up $(ARGS)

test: $(VENV)/.dev ## Everything that is checked: lint, types, contracts, all tests (PYTEST_ARGS=...)
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-unit: $(VENV)/.dev ## Only the tests that start nothing
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff, mypy, buf, generated code, Envoy's own validation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m tools.buf lint
	$(BIN)/python -m tools.buf format --diff --exit-code proto
	$(BIN)/python -m tools.gen --check
	$(BIN)/python -m tools.breaking
	$(BIN)/python -m services.gateway --validate

format: $(VENV)/.dev ## Format Python and contracts
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python -m tools.buf format -w proto

gen: $(VENV)/.dev ## Regenerate gen/ from proto/
	$(BIN)/python -m tools.gen

.PHONY: clients
clients: $(VENV)/.dev ## Stubs for Go, TypeScript, Java and Rust, and the example clients (CLIENTS=go, ...)
	$(BIN)/python -m tools.clients $(CLIENTS)

.PHONY: soak
soak: $(VENV)/.dev ## Ten minutes of misbehaving venues, every book compared (SOAK_ARGS=..., docs/soak.md)
	$(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

bench: $(VENV)/.dev ## Benchmarks, each beside its floor (BENCH_ARGS=...)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean: ## Remove the virtual environment, build products and local data
	rm -rf $(VENV) build dist var .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf gen/go/*/ examples/java/target examples/rust/Cargo.lock
	cd examples/typescript && rm -rf node_modules dist src/gen browser/dist
