# What a newcomer needs; every target sets up .venv itself, from the pinned locks.
#
#   make quickstart                             a small run of the task handles, to see everything once; no results
#   make demo                                   the whole default recipe; prints the report's path at the end
#   make demo ARGS='--config configs/detour.yaml --seed 1'
#   make test                                   ruff, mypy, pytest
#   make faults                                 kills, full disks and other faults at every stage, under an hour; writes the
#                                               table of docs/reliability.md
#   make fuzz FUZZ_SECONDS=600                  damaged files for every reader, that long for each
#   make audit                                  known holes of the pinned versions, where the index can tell
#   make worlds                                 the tests that need other simulators or LeRobot (docs/worlds.md)
#   make api                                    the reference of all modules from their docstrings, build/api/index.html
#   make locks                                  requirements/*.lock again, from pyproject.toml
#   make clean                                  removes .venv and caches, never runs/

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help quickstart demo test faults fuzz audit worlds api locks clean
.DELETE_ON_ERROR:

# small networks gain nothing from threads, and two threads on two busy cores lose tenfold
export OMP_NUM_THREADS := 1

ARGS ?=
# python3.11 where it runs (a shim that only says "not found" does not count), else python3, which is checked below
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' requirements/cpu.lock)

help:
	@awk '!/^#/ { exit } { sub(/^# ?/, ""); print }' Makefile

quickstart: $(VENV)/.demo-ready
	$(BIN)/flow2one --config quickstart $(ARGS)

demo: $(VENV)/.demo-ready
	$(BIN)/flow2one $(ARGS)

test: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --cache-dir .mypy_cache/script distill.py
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

# a Python without ensurepip (Debian's without python3-venv) can still fill the environment with its own pip
define make_venv
$(PYTHON) -c 'import sys; v = sys.version_info; got = ".".join(map(str, v[:3])); \
print(f"note: Python {got}; the pinned versions were tried on 3.11 only") if v[:2] > (3, 11) else None; \
sys.exit(f"got Python {got}, expected 3.11 or newer" if v < (3, 11) else 0)' \
|| { echo "make: $(PYTHON) cannot be used: install Python 3.11, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
$(PYTHON) -m venv --clear $(VENV) > /dev/null 2>&1 \
|| { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
|| { echo "make: $(PYTHON) makes no virtual environment: install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
endef

# A second call installs nothing; a changed lock installs again. torch comes first, by itself: PyPI's Linux build is
# for CUDA, so it is looked for as a CPU build where pip is set up to look, and then at PyTorch's own index.
$(VENV)/.demo-ready: requirements/cpu.lock pyproject.toml
	@if ! $(BIN)/python -c 'import pip, ssl, subprocess, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then $(make_venv); fi
	@echo 'installing into $(VENV), which takes a few minutes the first time'
	@$(PIP) install --no-deps 'torch==$(TORCH)+cpu' 2> /dev/null \
	|| $(PIP) install --no-deps --index-url $(TORCH_INDEX) 'torch==$(TORCH)' \
	|| { echo 'no CPU build of torch $(TORCH) found; taking the plain one, on Linux 2.7 GB with CUDA' && $(PIP) install 'torch==$(TORCH)'; }
	$(PIP) install --quiet --no-deps -r requirements/cpu.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.test-ready: $(VENV)/.demo-ready requirements/test.lock
	$(PIP) install --quiet --no-deps -r requirements/test.lock
	@touch $@

FUZZ_SECONDS ?= 600

faults: $(VENV)/.test-ready
	$(if $(ARGS),,sed -i '/^<!-- tries/,/^<!-- end/{/^|/d}' docs/reliability.md)
	FAULT_TRIES=30 $(BIN)/python -m pytest tests/faults -m 'faults or not faults' --timeout 3000 \
	--numprocesses auto --dist worksteal $(ARGS)

fuzz: $(VENV)/.test-ready
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/faults/test_readers.py $(ARGS)

audit:
	@$(PYTHON) requirements/audit.py

# each in the interpreter that FLOW2ONE_METAWORLD and others name; a test without one is skipped
worlds: $(VENV)/.test-ready
	$(BIN)/python -m pytest -m worlds -rs tests/worlds $(ARGS)

# glfw, which mujoco imports, looks for its library in a process of its own; pdoc forbids that unless it is told not to
api: $(VENV)/.demo-ready
	$(PIP) install --quiet --no-deps -r requirements/docs.lock
	PDOC_ALLOW_EXEC=1 $(BIN)/python -m pdoc -o build/api envs teachers students distill flow2one_runtime
	@echo build/api/index.html

locks:
	requirements/make_locks.sh $(PYTHON) $(TORCH_INDEX)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find $(wildcard envs teachers students distill flow2one_runtime tests benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +
