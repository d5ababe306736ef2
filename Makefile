# Each command prepares what it needs in .venv, and only where something has changed since.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LIBRARY := soft_mask/libsoft_mask.so
BUILT_FROM := pyproject.toml setup.py CMakeLists.txt soft_mask/_version.py $(wildcard _build/*.py csrc/*/*)
# In .venv the CUDA kernels are for the GPU at hand, or for one architecture that is not: pip install . compiles for all.
NATIVE_ARCH := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ';')
export TORCH_CUDA_ARCH_LIST ?= $(or $(NATIVE_ARCH),9.0)
# a process a core, each taking from the others what is left
PARALLEL := -n auto --dist worksteal

.PHONY: help demo test test-all lint bench gpu-report install clean
.DEFAULT_GOAL := help

help: ## show this
	@echo "make COMMAND [ARGS=...] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## see soft masking at work (ARGS=--quick: under a minute)
	@$(BIN)/soft-mask demo $(ARGS)

test: $(VENV)/.developed ## run the tests, on the compiled operators (ARGS="-k info")
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-all: $(VENV)/.developed ## the same, the operators' tests on all emulated CUDA kernels, and a wheel for all architectures
	@$(BIN)/python -m pytest $(PARALLEL) --all $(ARGS)

lint: $(VENV)/.dev ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy soft_mask

bench: $(VENV)/.developed ## run the benchmarks
	@$(BIN)/python -m pytest bench $(ARGS)

gpu-report: ## check and measure the CUDA kernels, where there is a GPU (no network is needed; ARGS=--rehearse: where there is none)
	@$(PYTHON) -m bench.gpu_report $(ARGS)

install: $(VENV)/.installed ## .venv with soft_mask in it, editable

clean: ## remove .venv, the library and what builds and tools left
	rm -rf $(VENV) soft_mask/*.so build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
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

# with what only the tests look into
$(VENV)/.developed: $(VENV)/.dev $(BUILT_FROM)
	@echo "-- building the operators and the emulated CUDA kernels, installing soft_mask in place"
	@SOFT_MASK_DEV=1 $(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $(VENV)/.installed $@

# someone removed the library: build it again, unless it is not wanted
ifeq ($(wildcard $(LIBRARY)),)
ifneq ($(SOFT_MASK_NATIVE),0)
.PHONY: $(VENV)/.installed $(VENV)/.developed
endif
endif
