# make setup    .venv from the pinned constraints
# make bench    set up, build, and run the main job on this machine: preset quick, default suites, to runs/latest/report.md
# make test     set up, lint, types, and all tests that need no GPU
# make baselines  measure the suite resources, and make it the baseline of this nvcc; commit what it changes
# make gpu      on a machine with a GPU: build, gpu tests, then latency, memory and profile of PRESET (paper) to
#               ddfbench-gpu.tar.gz
# SYSTEM=1      with any of them: use the present Python and its packages, install nothing

PYTHON ?= python3
PRESET ?= paper
ARGS ?=

ifdef SYSTEM
PY := $(PYTHON)
READY :=
CLANG_FORMAT := clang-format
else
PY := .venv/bin/python
READY := .venv/.ready
CLANG_FORMAT := .venv/bin/clang-format
endif

.PHONY: setup bench test lint baselines gpu clean

setup: $(READY)

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, PYTHON=... names one")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

bench: $(READY)
	$(PY) runner.py $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	find csrc suites tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs -r $(CLANG_FORMAT) --dry-run --Werror

# The library is built as the test of warnings wants it, and once for all tests.
test: export CXXFLAGS ?= -Wall -Wextra -Werror
test: lint
	$(PY) -m pytest -m "not gpu" -n auto --maxprocesses 4 $(ARGS)

baselines: $(READY)
	rm -rf runs/baselines
	$(PY) runner.py --suite resources --output runs/baselines
	$(PY) runner.py compare reports/baselines runs/baselines --update

# The suites of a GPU run, of those that there are; ARGS='--suite NAME' adds more.
GPU_SUITES := latency|memory|profile

gpu: $(READY)
	$(PY) -m ops.core.build $(patsubst csrc/%/,%,$(wildcard csrc/*/))
	$(PY) -m pytest -m gpu
	rm -rf runs/gpu ddfbench-gpu.tar.gz
	$(PY) runner.py --suite $$($(PY) runner.py list suites | grep -oEw '^($(GPU_SUITES))' | paste -sd, -) \
		--device cuda --preset $(PRESET) --output runs/gpu $(ARGS); code=$$?; \
	if test -d runs/gpu; then tar -czf ddfbench-gpu.tar.gz -C runs gpu; fi; exit $$code

clean:
	rm -rf .venv .build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
