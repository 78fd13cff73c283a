# Every target works on a fresh machine: the environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo serve test fast check fix clean help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED)  ## serve the two bundled demo models on http://127.0.0.1:8000
	$(BIN)/hotswap demo $(ARGS)

serve: $(INSTALLED)  ## serve a model: make serve ARGS="--model Qwen/Qwen3-0.6B"
	$(BIN)/hotswap serve $(ARGS)

test: check  ## lint, types and all tests
	$(BIN)/python -m pytest $(ARGS)

fast: $(INSTALLED)  ## the tests that need no torch
	$(BIN)/python -m pytest -m "not torch and not e2e" $(ARGS)

check: $(INSTALLED)  ## lint and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: $(INSTALLED)  ## mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# torch comes first and by its exact version: a looser request may bring gigabytes of CUDA
# packages that a development machine without a GPU has no use for. Last, what decodes on the CPU is
# compiled, which the first start would otherwise do.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m hotswap.engine.native.code
	touch $(INSTALLED)

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
