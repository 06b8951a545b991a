# Sets quatrefoil up in a virtual environment and runs it. `make help` lists the commands.
#
#   make demo VENV=/tmp/venv      another place for the virtual environment
#   make test PYTHON=python3.12   another Python (the first one from 3.11 on is taken otherwise)
#   make test ARGS="-k lstm"      more arguments for pytest

SHELL := /bin/sh
VENV ?= .venv
ARGS ?=
PYTHON ?= $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
    $(python) -c 'import sys; sys.version_info >= (3, 11) and print("$(python)")' 2>/dev/null)) python3)

BIN := $(VENV)/bin
NATIVE := pyproject.toml setup.py $(wildcard cpu/*.pyx cpu/src/* asic_sim/src/* kernels/include/quatrefoil/*)
ifneq ($(filter demo,$(MAKECMDGOALS)),)
# On a machine with an NVIDIA driver the demo takes the GPU too: 13 for CUDA 13 and newer, 12 for CUDA 12.
CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Z ]* Version: *\([0-9]*\).*/\1/p' | \
    awk '$$1 >= 13 { print 13 } $$1 == 12 { print 12 }')
endif

# The stamps say when each part was last installed; make redoes a part whose sources are newer.
CORE := $(VENV)/.quatrefoil-core
EXTRA = $(VENV)/.quatrefoil-$(1)

PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint sanitize emulate docs wheel clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

demo: $(call EXTRA,demo) $(if $(CUDA),$(call EXTRA,cuda$(CUDA))) ## run real models on every backend that this machine has, and write a report
	@$(BIN)/quatrefoil demo $(ARGS)

test: $(call EXTRA,test) ## run all tests
	@$(PYTEST) $(ARGS)

lint: $(call EXTRA,test) $(call EXTRA,lint) ## check style and types
	@$(BIN)/python .ci/typeroot.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: $(call EXTRA,test) ## run the native code's conformance under AddressSanitizer and UBSan
	@VENV_BIN=$(abspath $(BIN)) .ci/sanitize $(ARGS)

emulate: $(call EXTRA,test) ## run the conformance of the AVX-512, VNNI and AMX kernels on a processor without them
	@VENV_BIN=$(abspath $(BIN)) .ci/emulate-v4 $(ARGS)

docs: $(call EXTRA,docs) ## build the documentation into build/docs
	$(BIN)/python -m quatrefoil.bench.support_table
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs
	@echo "The documentation is in build/docs/index.html"

wheel: $(CORE) ## build a wheel into dist/
	@$(PIP) wheel --no-deps --wheel-dir dist .

clean: ## remove everything that was built (the virtual environment stays)
	rm -rf build dist reports .typeroot *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find kernels cpu gpu fpga asic_sim models bench cli tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f cpu/*.so asic_sim/*.so $(VENV)/.quatrefoil-*

$(BIN)/python:
	@$(PYTHON) .ci/prerequisites.py
	@echo "Making the virtual environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(CORE): $(NATIVE) | $(BIN)/python
	@$(PYTHON) .ci/prerequisites.py
	@echo "Installing quatrefoil (its kernels are compiled for every instruction set: 1 to 3 minutes)"
	@$(PIP) install --editable .
	@touch $@

# quatrefoil is there already, so this adds what the extra names and compiles nothing again.
$(VENV)/.quatrefoil-%: $(CORE) pyproject.toml
	@echo "Adding the packages of quatrefoil[$*]"
	@$(PIP) install 'quatrefoil[$*]'
	@touch $@
