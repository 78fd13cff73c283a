# Every target works on a fresh machine: the environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ECOSYSTEM := .venv-ecosystem
# Files of tests go to two processes, in their order: those that wait for servers come early.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
WEBUI := .venv-openwebui
# What `make e2e` drives; Playwright's own browser is not downloaded.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: demo serve test test-ecosystem e2e chromium fast check fix clean help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED)  ## serve the two bundled demo models on http://127.0.0.1:8000
	$(BIN)/hotswap demo $(ARGS)

serve: $(INSTALLED)  ## serve a model: make serve ARGS="--model Qwen/Qwen3-0.6B"
	$(BIN)/hotswap serve $(ARGS)

test: check  ## lint, types and all tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-ecosystem: $(INSTALLED) $(ECOSYSTEM)/.installed  ## clients that need an environment of their own
	HOTSWAP=$(BIN)/hotswap $(ECOSYSTEM)/bin/python -m pytest -c tests/ecosystem/pytest.ini tests/ecosystem $(ARGS)

e2e: chromium $(INSTALLED) $(WEBUI)/.installed  ## Open WebUI in a browser (needs chromium)
	CHROMIUM=$(CHROMIUM) HOTSWAP_OPEN_WEBUI=$(WEBUI)/bin/open-webui \
		$(BIN)/python -m pytest -m browser tests/e2e/openwebui $(ARGS)

chromium:
	@command -v "$(CHROMIUM)" >/dev/null || { echo "make e2e drives a browser, and there is none: apt-get install chromium" \
		"(or make e2e CHROMIUM=/path/of/chrome)" >&2; exit 1; }

fast: $(INSTALLED)  ## the tests that need no torch, but for some that take seconds
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not torch and not slow and not e2e and not browser" $(ARGS)

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

$(ECOSYSTEM)/.installed: tests/ecosystem/requirements.txt
	test -x $(ECOSYSTEM)/bin/python || $(PYTHON) -m venv $(ECOSYSTEM)
	$(ECOSYSTEM)/bin/python -m pip install --quiet --requirement tests/ecosystem/requirements.txt
	touch $@

$(WEBUI)/.installed: tests/e2e/openwebui/requirements.txt constraints.txt
	test -x $(WEBUI)/bin/python || $(PYTHON) -m venv $(WEBUI)
	grep '^torch==' constraints.txt > $(WEBUI)/torch.txt
	$(WEBUI)/bin/python -m pip install --quiet --requirement $(WEBUI)/torch.txt
	$(WEBUI)/bin/python -m pip install --quiet --constraint $(WEBUI)/torch.txt --requirement tests/e2e/openwebui/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,browser]"
	touch $@

clean:  ## remove the environment and caches
	rm -rf $(VENV) $(ECOSYSTEM) $(WEBUI) .e2e .mypy_cache .pytest_cache .ruff_cache .hypothesis
