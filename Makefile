# Two commands are all a newcomer needs:
#
#   make demo    make a virtual environment, install qpack, run the whole line on this machine
#   make test    the same with the development tools: lint, types, tests
#
# PYTHON=/path/to/python3.11 chooses the interpreter; PYTEST_ARGS="-k budget" narrows the tests.
# pip reads its own settings from the environment; PyPI's torch for Linux brings CUDA along, and
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
# takes the much smaller CPU build instead.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV ?= .venv
DEMO_DIR ?= runs/demo
PYTEST_ARGS ?=
PIP = $(VENV)/bin/python -m pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit clean

help:
	@echo "make demo   install qpack into $(VENV), then text -> model -> artifact -> report (about 5 minutes)"
	@echo "make test   install the development tools as well, then lint, type-check and test"

demo: $(VENV)/.installed-pack
	$(VENV)/bin/qpack demo --out $(DEMO_DIR) --force
	@echo "qpack is $(VENV)/bin/qpack; the model decodes itself: $(VENV)/bin/python $(DEMO_DIR)/model.pyz"

test: lint types unit

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev
	$(VENV)/bin/mypy

unit: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -n 2 $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch comes first and by itself, so that no later requirement can choose another build of it.
# Build isolation is off because constraints do not reach an isolated build environment: the pinned
# setuptools of this environment builds the package. It warns of every editable install and of every
# folder that is not a package: tests/packaging/test_wheel.py checks what matters of that.
# Each stamp is newer than what it was made from.
$(VENV)/.installed-base: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: qpack needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)"; \
	  echo "  fix: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11"; exit 8; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --upgrade pip setuptools wheel
	$(PIP) install --quiet --constraint constraints.txt torch
	@touch $@

$(VENV)/.installed-pack: $(VENV)/.installed-base pyproject.toml
	PYTHONWARNINGS=ignore $(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[pack]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-base pyproject.toml
	PYTHONWARNINGS=ignore $(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[pack,dev]'
	@touch $@ $(VENV)/.installed-pack
