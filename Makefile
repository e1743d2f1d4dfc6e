# `make demo` and `make test` are all a newcomer needs: Python 3.11 or later and make.
# Everything is installed into .venv beside this file; JOBS and PYTHON can be set on the command line.

VENV := .venv
BIN := $(VENV)/bin
GPU_PYTHON ?= python3
JOBS ?= 2
# The first of these that is 3.11 or later.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

# One thread for each test process: more of them than cores only wait for one another.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal
MAKE_VENV = test -n "$(PYTHON)" || { echo "error: there is no Python 3.11 or later here; install \
	one, or say where it is: make PYTHON=/path/to/python" >&2; exit 1; }; $(PYTHON) -m venv $(VENV)
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-deepspeed test-gpu lint types contracts recipes clean

help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## The whole method on tiny models: some minutes on two CPU cores.
	@$(BIN)/masters demo

test: $(VENV)/.installed-dev ## The test suite, without what takes minutes.
	$(PYTEST)

test-slow: $(VENV)/.installed-dev ## Every kill, every model family, two processes.
	$(PYTEST) -m slow

test-deepspeed: $(VENV)/.installed-dev ## Two processes of DeepSpeed, which is installed into .venv for it.
	DS_BUILD_OPS=0 $(PIP) -e '.[dev,deepspeed]'
	$(PYTEST) -m slow -n 0 -k deepspeed tests/invariant tests/end_to_end

test-gpu: ## On a CUDA device, within ten minutes; GPU_PYTHON is a Python that has torch for it.
	PYTHONPATH=src HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
		$(GPU_PYTHON) -m pytest -m gpu -rs -p no:cacheprovider tests/gpu

lint: $(VENV)/.installed-dev ## ruff and codespell.
	$(BIN)/ruff check src tests docs benchmarks
	$(BIN)/codespell src tests docs benchmarks .ci Makefile pyproject.toml README.md CHANGELOG.md CONTRIBUTING.md

types: $(VENV)/.installed-dev ## pyright.
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: $(VENV)/.installed-dev ## Who may import whom (import-linter).
	$(BIN)/lint-imports

recipes: $(VENV)/.installed ## Writes docs/recipes.md, docs/sizes.md and the table of docs/scaling.md anew.
	$(BIN)/python docs/generate_recipes.py
	$(BIN)/python docs/generate_sizes.py
	$(BIN)/python docs/generate_scaling.py

venv: $(VENV)/.installed-dev ## Installs everything into .venv and does no more.

clean: ## Removes .venv and caches; runs/ stays.
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache build src/*.egg-info

# Stamps: installed again only when what to install has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(MAKE_VENV)
	@echo "Installing Masters into $(VENV) (minutes the first time) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	@$(MAKE_VENV)
	@echo "Installing Masters and its test tools into $(VENV) (minutes the first time) ..."
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@
