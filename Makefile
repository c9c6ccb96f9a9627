# make demo    sets everything up and runs the main job on the demo's model
# make test    sets everything up and runs all checks
# Both need only Python 3.11 or newer; `make PYTHON=/path/to/python demo` chooses which.
# They install the versions in requirements/tested.txt, so that a new release of a library changes nothing under a commit.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tried in this order; the first that is new enough and can make environments is taken.
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3 python3.12 python3.11 python3.13 python)
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

# A log is no place for progress bars.
ifdef CI
export PIP_PROGRESS_BAR := off
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-newest test-oldest quick lint format lock clean

help:
	@echo "make demo     quantize the demo's model and verify it"
	@echo "make test     all checks: format, lint, types, every test"
	@echo "make quick    the tests without the slow ones"
	@echo "make lint     format, lint, types"
	@echo "make format   put the code into the project's format"
	@echo "make lock     choose the newest versions of everything that is installed, and write requirements/tested.txt"
	@echo "make test-newest, make test-oldest   the tests with the newest and the oldest versions that jaxq allows"
	@echo "make clean    remove the environment and everything made"

demo: $(INSTALLED)
	$(BIN)/jaxq demo

test: lint
	$(BIN)/pytest

quick: $(INSTALLED)
	$(BIN)/pytest -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(INSTALLED)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
	    --output-file requirements/tested.txt

# Environments of their own: these two ask what the bounds in pyproject.toml are worth, not whether a commit is good.
test-newest: $(INSTALLED)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-newest
	$(BIN)/uv pip install --quiet --python .venv-newest --editable '.[dev]'
	.venv-newest/bin/pytest

test-oldest: $(INSTALLED)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable '.[dev]'
	.venv-oldest/bin/pytest

# One stamp for the whole installation. An environment that a stopped run left without pip is made anew.
$(INSTALLED): pyproject.toml requirements/tested.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    found=""; \
	    for python in $(PYTHONS); do \
	        if "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then found="$$python"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "jaxq needs Python 3.11 or newer with its venv module; tried: $(PYTHONS)." >&2; \
	        echo "Install it (on Debian and Ubuntu: python3 and python3-venv), or name one: make PYTHON=/path/to/python3.12" >&2; \
	        exit 1; \
	    fi; \
	    echo "Making $(VENV) with $$("$$found" --version) ($$found)"; \
	    "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "Installing jaxq and its tools into $(VENV); this happens once and takes a minute or two"
	$(BIN)/python -m pip install --quiet --requirement requirements/tested.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist jaxq-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
