# make demo, make test: set everything up from nothing, then do their job. make help lists the rest.
# What is assumed: Python >= 3.11, make, a C compiler, package indexes.

PYTHON ?= python3
TOOLS := .tools
# uv from the PATH, else from a private environment, since system Pythons refuse pip
UV := $(or $(shell command -v uv 2>/dev/null),$(TOOLS)/bin/uv)
RUN := .venv/bin/python

# a compiler that the user names must also be the one that mpicc calls
COMPILER := $(if $(filter-out default,$(origin CC)),CC="$(CC)" OMPI_CC="$(CC)")

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo 'make: $(PYTHON) is missing or older than 3.11: install Python 3.11 or later, or name one, as in make PYTHON=python3.12' >&2; exit 1; }
endef

define CHECK_COMPILER
@command -v $(firstword $(CC)) >/dev/null 2>&1 || { \
  echo 'make: no C compiler found (tried $(CC)), and mpi4jax is built from source: install one (Debian: apt-get install gcc), or name one, as in make CC=gcc' >&2; exit 1; }
endef

# Not --quiet, which would hide warnings from --strict; the variable is for a banner of the theme about its future.
define DOCS
@output=$$(NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict 2>&1) || { echo "$$output" >&2; exit 1; }
endef

.PHONY: help setup demo test style static check pytest docs format benchmark clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       set up, then train digits on four processes with one late at every step, and compare'
	@echo 'make test       set up, then lint, type-check and run all tests'
	@echo 'make check      linter, formatter, type checker and documentation only'
	@echo 'make docs       build the documentation into build/docs/index.html'
	@echo 'make format     rewrite the sources in the project format'
	@echo 'make benchmark  measure the collectives (some minutes; run nothing else)'
	@echo 'make clean      remove the environments and caches (not runs/)'
	@echo 'PYTHON=python3.12 make ... uses another interpreter'

setup: .venv/.ready

$(TOOLS)/bin/uv:
	$(CHECK_PYTHON)
	$(CHECK_COMPILER)
	@echo 'setting up uv in $(TOOLS)'
	@$(PYTHON) -m venv $(TOOLS) >/dev/null 2>&1 && $(TOOLS)/bin/python -m pip install --quiet uv || \
	  { rm -rf $(TOOLS); $(PYTHON) -m pip install --quiet --target $(TOOLS) uv; } || { \
	  rm -rf $(TOOLS); \
	  echo 'make: uv could not be installed: $(PYTHON) has neither venv nor pip, or no package index was reached (Debian: apt-get install python3-venv)' >&2; exit 1; }

# While mpi4jax is built on one core, modules are compiled on another: processes that start at once would each do it.
.venv/.ready: pyproject.toml $(if $(filter $(TOOLS)/bin/uv,$(UV)),$(TOOLS)/bin/uv)
	$(CHECK_PYTHON)
	$(CHECK_COMPILER)
	@echo 'installing the environment into .venv'
	@[ -t 2 ] || quiet=--quiet; sync="$(UV) sync $$quiet --all-extras --python $(PYTHON)"; \
	  $(COMPILER) $$sync --no-install-package mpi4jax && { \
	  $(RUN) -m compileall -q -x '/tests?/' .venv/lib >/dev/null 2>&1 & \
	  $(COMPILER) $$sync; status=$$?; wait; exit $$status; }
	@touch $@

demo: setup
	@$(RUN) -m train.demo

# The type checker and the documentation need one core for a while, so they run beside the tests.
test: style
	@$(MAKE) --no-print-directory --jobs=2 static pytest

style: setup
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check . || { echo 'make: run make format' >&2; exit 1; }

static: setup
	@.venv/bin/pyrefly check --output-format min-text --min-severity error
	$(DOCS)

check: style static

pytest: setup
	@$(RUN) -m pytest

docs: setup
	$(DOCS)
	@echo 'open build/docs/index.html'

format: setup
	@.venv/bin/ruff check --quiet --fix . || true
	@.venv/bin/ruff format --quiet .

benchmark: setup
	@$(RUN) -m benchmarks.xla_collectives

clean:
	rm -rf .venv $(TOOLS) .pytest_cache .ruff_cache .hypothesis build dist
