# Everything a fresh machine needs is `make demo` or `make test`; both set up `.venv` first.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
# Not compiled at once: most of the files of torch and transformers are never imported. Those that a clip needs are
# compiled afterwards (COMPILE), so that not even the first command has to, nor each one where Python may write nothing.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
COMPILE := $(BIN)/python -m soundstage.cli.imports
# A process per core, four at most: each takes a file of tests at a time, with one thread (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

PROMPT ?= a red ball bounces on a wooden floor
SEED ?= 7

.DEFAULT_GOAL := help
.PHONY: help setup demo fmt check test test-slow bench docs

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(VENV)/.developer ## install the package with all that development needs into .venv

demo: $(VENV)/.user ## generate a clip with the embedded model
	@mkdir -p outputs
	@$(BIN)/soundstage generate "$(PROMPT)" --seed $(SEED) -o outputs/demo.mp4
	@echo "Picture and sound are in $(CURDIR)/outputs/demo.mp4"

fmt: setup ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup ## formatting, lint, types, import order, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m soundstage.cli.reference --check

test: setup ## all fast tests; needs no network, GPU or official weights
	$(PYTEST)

test-slow: setup ## the tests that take minutes, too
	$(PYTEST) --slow

bench: setup ## time and memory of the embedded model; prints a table for docs/benchmarks.md
	$(BIN)/python benchmarks/generate.py

docs: setup ## write the generated pages of docs/
	$(BIN)/python -m soundstage.cli.reference

# A stamp per kind of installation: the package is installed again only when what it needs has changed.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "soundstage needs Python 3.11 or newer; none was found" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.user: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) -e .
	@$(COMPILE)
	@touch $@

$(VENV)/.developer: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) -e '.[test,dev]'
	@$(COMPILE)
	@touch $@ $(VENV)/.user
