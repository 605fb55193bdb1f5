# `make demo` and `make test` work on a fresh machine that has Python 3.11+ and make.
# Settings: PYTHON names the interpreter; PIP_ARGS is passed to pip (an index, a proxy, --no-index ...).

PYTHON ?= python3
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TREE := build/typing
SOURCES := sqluice engine optimizer udfs workers tests scripts benchmarks

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help demo test lint typing format nightly complete install weights embedder clean

help:
	@echo "make demo      install, fetch the default models, run the main job on them"
	@echo "make test      install, lint, run every test"
	@echo "make lint      ruff, mypy --strict, import-linter"
	@echo "make format    let ruff rewrite the sources"
	@echo "make nightly   what make test repeats, many more times, at random; long tests of the model"
	@echo "make complete FILE=tests/sql/x.test   write the answers of today into a .test file"
	@echo "make clean     remove the environment and everything built"

demo: weights
	$(BIN)/sqluice demo

test: lint weights embedder
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(TREE) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p sqluice
	MYPYPATH=$(TREE):tests/unit $(BIN)/mypy scripts tests
	cd $(TREE) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml --no-cache

typing: install
	@$(BIN)/python scripts/typing_tree.py $(TREE)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

nightly: install
	SQLUICE_NIGHTLY=1 $(BIN)/python -m pytest -m 'long or not long' tests/property tests/local tests/statistics tests/jobs \
	  tests/unit/test_join_random.py tests/unit/test_quant_distill.py

complete: install
	PYTHONPATH=tests $(BIN)/python -m sql.runner --complete $(FILE)

weights: install
	$(BIN)/sqluice models fetch default

embedder: install
	$(BIN)/sqluice models fetch embedder

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SQLuice needs Python 3.11 or later; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[local,ray,dev]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
