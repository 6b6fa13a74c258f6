# `make demo` and `make test` set up what they need in .venv; uv is used when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: help demo test test-all crash check format bench clean

help:
	@echo "make demo      draw scenes, train a captioner on them, caption unseen ones, leave a page to open"
	@echo "make test      the tests (a few minutes)"
	@echo "make test-all  the long ones too (training to a score, fresh environments)"
	@echo "make crash     kills, power loss, damage, full disks, hangs: whether training survives, and the figures"
	@echo "make check     lint, format and types"
	@echo "make bench     the tables of docs/benchmarks.md"

demo: $(VENV)/.train
	$(BIN)/cutline demo --out $(DEMO)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or not slow"

crash: $(VENV)/.test
	$(BIN)/python -m pytest tests/crash -m "slow or not slow" -rP --deselect tests/crash/test_storm.py
	$(BIN)/python -m tests.crash.storm --kills 200 --seed 0

check: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache

# One stamp for each set of packages; each set holds the ones before it.
$(VENV)/.train: EXTRAS := train
$(VENV)/.test: EXTRAS := train,openvino,tensorboard,health,heic,test,dev
$(VENV)/.bench: EXTRAS := train,openvino,tensorboard,health,heic,test,dev,bench
$(VENV)/.train $(VENV)/.test $(VENV)/.bench: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Cutline needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "setting up $(VENV) with [$(EXTRAS)] (some GB the first time)"
	@if command -v uv >/dev/null; then \
	  { [ -x $(BIN)/python ] || uv venv -q --python $(PYTHON) $(VENV); } && \
	  uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'; \
	else \
	  { [ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install -q --disable-pip-version-check pip; }; } && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'; \
	fi
	@touch $@
