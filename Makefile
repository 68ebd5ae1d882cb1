# `make` lists the commands. VENV is made when it is missing; PYTHON is what makes it.
VENV ?= .venv
PYTHON ?= python3
PICTURES ?=
BIN := $(VENV)/bin

.PHONY: help demo test test-slow check core docs clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.demo: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.demo  ## install, index and search real pictures; PICTURES=~/Pictures takes your own
	$(BIN)/python examples/demo.py $(if $(PICTURES),"$(PICTURES)")

test: check  ## install, then all fast checks and tests
	$(BIN)/python -m pytest -q -n auto

test-slow: $(VENV)/.dev  ## the tests that take minutes
	$(BIN)/python -m pytest -q -n auto -m slow

check: $(VENV)/.dev  ## format, lint, types, import rules
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache | tail -n 3

core:  ## the wheel with its runtime dependencies alone, in an environment of its own
	rm -rf $(VENV)-core dist
	$(PYTHON) -m venv $(VENV)-core
	$(VENV)-core/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(VENV)-core/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd $(VENV)-core && bin/python -P ../tests/core_smoke.py bin/lookalike

docs: $(VENV)/.dev  ## write docs/reference/ anew
	$(BIN)/python scripts/write_reference.py

clean:  ## remove what these commands made
	rm -rf $(VENV) $(VENV)-core demo dist build
