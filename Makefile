# make demo    sets everything up and runs the main job on the demo's model
# make test    sets everything up and runs all checks
# Both need only Python 3.11 or newer; `make PYTHON=/path/to/python demo` chooses which.

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

.PHONY: help demo test quick lint format clean

help:
	@echo "make demo     quantize the demo's model and verify it"
	@echo "make test     all checks: format, lint, types, every test"
	@echo "make quick    the tests without the slow ones"
	@echo "make lint     format, lint, types"
	@echo "make format   put the code into the project's format"
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

# One stamp for the whole installation. An environment that a stopped run left without pip is made anew.
$(INSTALLED): pyproject.toml
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
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist jaxq-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
