# `make` lists the targets. Everything but test-oldest runs in .venv, made on the first call and
# updated when pyproject.toml changes.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
OLDEST := .venv-oldest
QUICK := "not gpu and not slow and not long and not multi and not browser"
EXTRAS := --extra dev --extra export --extra site --extra sweep --extra track

.DEFAULT_GOAL := help
.PHONY: help venv quickstart check test coverage test-slow test-oldest lint bench docs site

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## the environment, .venv, with everything a run and the tests need

# uv, because it resolves torch and torchvision together, as the pair that was built for each other.
$(STAMP): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; type: make PYTHON=python3.11 $(MAKECMDGOALS)')"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --compile-bytecode -r pyproject.toml $(EXTRAS)
	touch $@

quickstart: $(STAMP)  ## teacher, student alone, distilled student: minutes on a CPU, no download
	$(BIN)/python cli.py study --recipe kd_cutmix+quickstart --out runs/quickstart

check: lint  ## lint and the quick tests, for every day: no long one, several processes or browser
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --no-cov -m $(QUICK)

test: lint  ## lint, then every test that needs neither network nor GPU, but the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --no-cov

coverage: $(STAMP)  ## the tests of `make test`, and which lines they do not reach
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

test-slow: $(STAMP)  ## the tests marked slow: those of benchmarks/, and some that take minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --no-cov -m "slow and not gpu"

test-oldest: $(OLDEST)/.installed  ## the quick tests with the oldest libraries that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --no-cov -m "not gpu and not slow and not multi"
	$(OLDEST)/bin/python -m pytest --no-cov tests/training/test_processes.py -k terms_that_compare

$(OLDEST)/.installed: $(STAMP)
	$(PYTHON) -m venv --clear $(OLDEST)
	VIRTUAL_ENV=$(CURDIR)/$(OLDEST) $(BIN)/uv pip install --resolution lowest-direct -r pyproject.toml $(EXTRAS)
	touch $@

lint: $(STAMP)  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## where the time of one step goes, stage by stage
	$(BIN)/python -m benchmarks.stages

docs: $(STAMP)  ## the generated parts of the documents, the schema of recipes; with RUN=a finished run also its picture
	$(BIN)/python -m docs.generate $(if $(RUN),--run $(RUN))

site: $(STAMP)  ## the documents as a website in site/; python -m http.server -d site shows it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
