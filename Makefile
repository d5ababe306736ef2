# Each command prepares what it needs in .venv, and only where something has changed since.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LIBRARY := soft_mask/libsoft_mask.so
BUILT_FROM := pyproject.toml setup.py CMakeLists.txt soft_mask/_version.py $(wildcard _build/*.py csrc/*/*)

.PHONY: help demo test lint bench install clean
.DEFAULT_GOAL := help

help: ## show this
	@echo "make COMMAND [ARGS=...] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## see soft masking at work (ARGS=--quick: under a minute)
	@$(BIN)/soft-mask demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.installed ## run the tests, on the compiled operators (ARGS="-k info")
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy soft_mask

bench: $(VENV)/.dev $(VENV)/.installed ## run the benchmarks
	@$(BIN)/python -m pytest bench $(ARGS)

install: $(VENV)/.installed ## .venv with soft_mask in it, editable

clean: ## remove .venv, the library and what builds and tools left
	rm -rf $(VENV) $(LIBRARY) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "soft_mask needs Python >= 3.10, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one: make PYTHON=python3.12 COMMAND"; exit 1; } >&2
	@echo "-- making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@touch $@

# torch first and by itself: it is the largest, and everything else is built or chosen to fit it
$(VENV)/.demo: $(VENV)/.created requirements/demo.txt
	@echo "-- installing torch and the pinned requirements (minutes, the first time)"
	@$(PIP) install -q "$$(grep '^torch==' requirements/demo.txt)"
	@$(PIP) install -q -r requirements/demo.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt
	@echo "-- installing the development tools"
	@$(PIP) install -q -r requirements/dev.txt
	@touch $@

# build tools are pinned and in .venv by now, so no isolation: nothing is downloaded here
$(VENV)/.installed: $(VENV)/.demo $(BUILT_FROM)
	@echo "-- building the operators, installing soft_mask in place"
	@$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

# someone removed the library: build it again, unless it is not wanted
ifeq ($(wildcard $(LIBRARY)),)
ifneq ($(SOFT_MASK_NATIVE),0)
.PHONY: $(VENV)/.installed
endif
endif
