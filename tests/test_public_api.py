"""The public names are the listed ones, each is explained, and importing them costs little."""

import __future__

import importlib
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import jaxq

REPOSITORY = Path(__file__).resolve().parent.parent
PUBLIC = {name: getattr(jaxq, name) for name in jaxq.__all__ if not name.startswith("_")}
# What a module may need to be typed is nobody's public name.
HELPERS = [(name, id(value)) for module in (typing, __future__) for name, value in vars(module).items()]


def test_public_names_are_the_listed_ones():
    # Names may be resolved lazily (PEP 562), so all are fetched first.
    for name in jaxq.__all__:
        getattr(jaxq, name)
    found = {
        name
        for name, value in vars(jaxq).items()
        if not name.startswith("_") and not inspect.ismodule(value) and (name, id(value)) not in HELPERS
    }
    assert found <= set(jaxq.__all__), "public by accident; list these in __all__ or give them a leading underscore"
    assert set(jaxq.__all__) <= set(dir(jaxq)), "listed, but dir(jaxq) and so completion does not show them"
    assert len(jaxq.__all__) == len(set(jaxq.__all__))


def explanation(name: str, value: object) -> str:
    """The docstring that somebody wrote: not an inherited one, nor the one that a dataclass makes for itself."""
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return "" if text is None or text.startswith(f"{name}(") else text.strip()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_explained(name):
    assert explanation(name, PUBLIC[name]), f"jaxq.{name} has no docstring"


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isfunction(value)])
def test_public_functions_name_their_options(name):
    kinds = {parameter.kind for parameter in inspect.signature(PUBLIC[name]).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds, f"jaxq.{name} takes **options; a misspelt one would pass unseen"


def modules_after(code: str) -> set[str]:
    """The packages that a fresh interpreter has imported after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_jaxq_imports_nothing_of_the_shell_or_the_extras():
    # Every public name is fetched too, so that lazy ones count. flax brings rich, so rich is looked for before.
    assert "rich" not in modules_after("import jaxq")
    fetched = modules_after("import jaxq\nfor name in jaxq.__all__: getattr(jaxq, name)")
    assert not fetched & {"onnxruntime", "typer", "pydantic", "matplotlib", "PIL", "jinja2", "sklearn"}


def test_help_does_not_import_jax():
    code = """
import sys
sys.argv = ["jaxq", "--help"]
from jaxq.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not modules_after(code) & {"jax", "flax", "optax", "onnx", "onnx_ir", "onnxruntime", "numpy", "pydantic"}


@pytest.mark.parametrize(
    "path, home", [("backend", "onnx_io.backend"), ("config", "jobs.job"), ("summary", "analysis.inspect")]
)
def test_scripts_find_names_where_they_were(path, home):
    old, new = importlib.import_module(f"jaxq.{path}"), importlib.import_module(f"jaxq.{home}")
    names = [name for name in vars(old) if not name.startswith("_")]
    assert names
    for name in names:
        assert getattr(old, name) is getattr(new, name)
