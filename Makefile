# First `make train` or `make test` builds .venv (about a minute); later ones start at once.
#   make train ARGS="data=hillstrom trainer.max_epochs=3"      make test ARGS="-k cli"      make check
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON   ?= python3
VENV     ?= .venv
ARGS     ?=
PIP_ARGS ?=
ifeq ($(origin ACCEL),undefined)
ACCEL    := $(shell nvidia-smi -L 2>/dev/null | grep -q . && echo cuda || echo cpu)
endif
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed-$(ACCEL)
DEV   := $(VENV)/.installed-$(ACCEL)-dev
# torchrec asks for `fbgemm-gpu`, the CUDA build; on a CPU this stand-in meets it.
SHIM_cpu  := ./shims/fbgemm-gpu
SHIM_cuda :=
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS)

.PHONY: help train test check setup clean
help:
	@echo 'make train | test | check | setup | clean; ARGS="..." is passed on, PYTHON=python3.12 chooses the interpreter'

train: setup
	@$(BIN)/python scripts/train.py $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(ARGS)

check: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

setup: $(STAMP)

# A stamp that is there means a whole environment: mend it. Without one, what lies there may be half an environment: start anew.
$(STAMP): pyproject.toml setup.py $(wildcard shims/*/pyproject.toml)
	@[ "$$(uname -s)" = Linux ] || { echo "Linux needed, found $$(uname -s): fbgemm has no other build; use a container" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "Python 3.11 to 3.14 needed, found $$($(PYTHON) -V 2>&1): try make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing the $(ACCEL) build into $(VENV)" >&2
	@if [ -f $@ ]; then rm -f $@ $(DEV); else $(PYTHON) -m venv --clear $(VENV); fi
	@$(PIP) $(SHIM_$(ACCEL)) -e '.[test]'
	@touch $@

$(DEV): $(STAMP)
	@$(PIP) $(SHIM_$(ACCEL)) -e '.[test,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build shims/*/build *.egg-info shims/*/*.egg-info .pytest_cache .ruff_cache .hypothesis
