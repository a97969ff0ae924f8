# make demo | test | check | test-torch-versions | lint | format | cmake | clean. The environment and the compiled extension are made first where needed.
#   PYTHON=python3      the Python (3.10 or later) that .venv is made with
#   VENV=.venv          the environment
#   EXTRAS=vision,test,dev   add compare for the tests that agree with torchattacks and foolbox
#   PYTEST_ARGS=        more for pytest, such as PYTEST_ARGS="-k theory -x"
#   TEST_JOBS=auto      processes that tests run in, one for each core; 0 runs them in the one that pytest is
#   FORCE_CUDA, TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS: see setup.py

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= vision,test,dev
TEST_JOBS ?= auto
PY := $(VENV)/bin/python
MADE := $(VENV)/.made
STEP := .ci/step
# The pinned versions are of Python 3.11; with 3.10 pip takes what fits.
PINS := $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')
PIP := $(PY) -m pip install --disable-pip-version-check $(PINS)
CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
EMULATOR := $(wildcard tests/emulator/*.cpp tests/emulator/*.h)

# Where it is set, pytest compiles all tests again at each start, in each of its processes: five seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env compile demo test check test-torch-versions lint format cmake clean distclean
help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

$(MADE)/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python should be 3.10 or later, got " + sys.version)'
	@test -x $(PY) || $(STEP) "environment: $(VENV), $$($(PYTHON) --version)" $(PYTHON) -m venv $(VENV)
	@$(STEP) "environment: torch (a CUDA build is some 3 GB to fetch)" $(PIP) torch torchvision setuptools ninja
	@mkdir -p $(MADE) && touch $@

# An editable install compiles, too; ninja then finds nothing left to do below.
$(MADE)/installed: $(MADE)/torch pyproject.toml setup.py advfeat/_version.py $(wildcard build_support/*.py)
	@$(STEP) "environment: advfeat and what it needs, compiled" \
	  $(PIP) -v --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@

# Without the library itself a stamp says nothing.
$(MADE)/compiled: $(MADE)/installed $(CPP) $(if $(wildcard advfeat/_C.*.so),,always)
	@$(STEP) "compile: csrc" $(PY) setup.py build_ext --inplace
	@touch $@
.PHONY: always
always:

env: $(MADE)/installed
compile: $(MADE)/compiled

demo: compile
	@$(VENV)/bin/advfeat demo

test: compile
	$(PY) -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# What a change is tried with while it is made: two minutes where make test takes ten. Tests of random examples draw ten
# where make test draws forty (tests/conftest.py).
check: compile lint
	HYPOTHESIS_PROFILE=check $(PY) -m pytest -q -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not emulated and not compare" $(PYTEST_ARGS)

# Against the oldest and the newest torch, each in an environment of its own; downloads both.
test-torch-versions:
	.ci/torch_versions

lint: $(MADE)/installed
	$(PY) -m ruff check --output-format concise .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP) $(EMULATOR)

format: $(MADE)/installed
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP) $(EMULATOR)

# The same library through CMake: compile_commands.json for clangd, symbols for profilers.
cmake: $(MADE)/installed
	@$(STEP) "cmake: configure build/cmake" cmake -S . -B build/cmake -G Ninja -DPython_EXECUTABLE=$(abspath $(PY))
	@$(STEP) "cmake: compile" cmake --build build/cmake

clean:
	rm -rf build dist *.egg-info advfeat/_C.*.so .pytest_cache .ruff_cache .hypothesis $(MADE)/compiled
	find advfeat theory tests build_support -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
