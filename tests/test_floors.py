"""Imports go down the floors, or sideways without a circle; foreign packages come in at the edge only.

Reads the sources with `ast`, so it sees imports inside functions too. A new module gets a floor in FLOOR.
"""

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "jaxq"

FLOOR = {
    # what is wrong, in words
    "errors": 0, "checks": 0, "version": 0, "mapped": 0, "functions": 0, "wording": 0,
    # numbers | structure
    "quantizer": 1, "observers": 1, "estimators": 1, "ranges": 1, "distributions": 1, "weight_ranges": 1,
    "activation_ranges": 1, "biases": 1, "metrics": 1, "distance": 1, "outliers": 1, "outputs": 1,
    "graph": 1, "carriers": 1,
    # what each ONNX operator means
    "ops": 2,
    # running and rewriting
    "bounds": 3, "execute": 3, "model": 3, "collect": 3, "passes": 3, "opsets": 3, "split": 3,
    "fusion": 3, "linear_layers": 3, "ranks": 3, "clamps": 3, "masks": 3, "fillers": 4,
    "layer_errors": 3, "traces": 3, "indices": 3, "layerwise": 3, "classes": 3,
    "programs": 3, "placed": 3, "engine": 3,
    # what to quantize, for which runtime
    "targets": 4, "scope": 4, "schemes": 4, "patterns": 4, "recurrent": 4, "plan": 4,
    "saturation": 4, "places": 4, "fates": 4, "placement": 4, "own_biases": 4, "float_types": 4,
    # what to change
    "algorithms": 5,
    # files and foreign formats
    "onnx_import": 6, "onnx_check": 6, "onnx_export": 6, "external_data": 6, "qdq": 6, "flax_module": 6, "matmul_nbits": 6,
    "dequantizers": 6, "compressible": 6, "data": 6, "options": 6,
    "config": 7,
    "formats": 7, "verify": 6, "verdict": 6, "runtime": 6,
    "analysis": 6, "report": 6, "devices": 6, "files": 6, "progress": 6, "summary": 6,
    "lint": 6,
    # wires everything
    "quantize": 7, "pipeline": 7, "run": 7, "compress": 7, "accuracy": 7, "batch": 7, "cli": 7, "commands": 7, "backend": 7,
    "demo": 7, "__init__": 7, "__main__": 7,
}  # fmt: skip

# Two halves of floor 1 that do not meet: numbers know no graph, the graph knows no numbers.
NUMBERS, STRUCTURE = (
    {
        "quantizer",
        "observers",
        "estimators",
        "ranges",
        "distributions",
        "weight_ranges",
        "activation_ranges",
        "biases",
        "metrics",
        "outputs",
    },
    {"graph"},
)

# Foreign package -> the modules of jaxq that may import it. What is not named here (jax, numpy, optax) is free.
EDGE = {
    "onnx": {"onnx_import", "onnx_check", "onnx_export", "external_data", "quantize", "runtime", "backend", "config"},
    "onnx_ir": {
        "onnx_import",
        "onnx_check",
        "onnx_export",
        "external_data",
        "quantize",
        "runtime",
        "backend",
        "config",
    },
    "google": {"onnx_import", "onnx_export"},  # protobuf
    "onnxruntime": {"runtime", "backend"},
    "flax": {"flax_module"},
    "pydantic": {"config", "formats", "batch"},
    "yaml": {"config", "batch"},
    "typer": {"cli", "commands"},
    "rich": {"commands", "batch", "demo"},
    "tqdm": {"progress"},
    "lazy_loader": {"__init__"},
    "PIL": {"data"},
    "jinja2": {"report", "demo"},
    "matplotlib": {"report", "demo"},
}
NOWHERE = {"torch", "tensorflow", "sklearn", "pytest", "hypothesis"}

# What only reads files, talks to a terminal or is an extra: importing jaxq must not need it, so it is imported inside
# the function that uses it. The exceptions define classes or commands with it; nobody below imports those modules.
LATE = {"onnxruntime", "pydantic", "yaml", "typer", "rich", "tqdm", "PIL", "jinja2", "matplotlib"}
EARLY_ALL_THE_SAME = {
    ("cli", "typer"),
    ("commands", "typer"),
    ("config", "pydantic"),
    ("formats", "pydantic"),
    ("batch", "pydantic"),
}


@dataclass(frozen=True)
class Import:
    """What one statement imports: its full name, its line, and whether that happens when the module is imported."""

    name: str
    line: int
    at_import: bool


def module_name(path: Path) -> str:
    """`jaxq/ops/neural.py` -> `jaxq.ops.neural`; a package's `__init__.py` has the package's name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(name: str) -> str:
    """The key of FLOOR for a module: `jaxq.ops.neural` -> `ops`, `jaxq` -> `__init__`."""
    return [*name.split("."), "__init__"][1]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk_imports(node: ast.AST, package: str, at_import: bool = True) -> Iterator[Import]:
    """Every import below `node`; those in functions and under `if TYPE_CHECKING` do not run at import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                above = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            # `from jaxq.ops import neural` imports a module, `from jaxq.ops import find` a name of the package.
            for alias in child.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in MODULES else base, child.lineno, at_import)
        else:
            late = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child)
            yield from walk_imports(child, package, at_import and not late)


@functools.cache
def imports(name: str) -> tuple[Import, ...]:
    """The imports of one module of jaxq, each once a line."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(dict.fromkeys(walk_imports(ast.parse(path.read_text(encoding="utf-8")), package)))


def is_ours(imported: Import) -> bool:
    return imported.name.split(".")[0] == "jaxq"


def place(name: str, imported: Import) -> str:
    return f"{MODULES[name].relative_to(PACKAGE.parent)}:{imported.line}"


@pytest.mark.parametrize("name", MODULES)
def test_module_stands_on_a_floor(name):
    assert room(name) in FLOOR, f"{name} stands on no floor: give {room(name)!r} one in FLOOR of {Path(__file__).name}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    here = room(name)
    for imported in filter(is_ours, imports(name)):
        there = room(imported.name)
        if not {here, there} <= FLOOR.keys():
            continue  # the test above says so
        assert FLOOR[there] <= FLOOR[here], (
            f"{place(name, imported)}: {here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]}); "
            "imports go down. Move what is needed down, or hand it over as an argument."
        )


def test_no_circles():
    # A package counts as its __init__.py: its modules may be imported by it, and not import it back.
    edges = {
        name: {imported.name for imported in imports(name) if imported.name in MODULES} - {name} for name in MODULES
    }
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        pytest.fail("modules import each other in a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in NUMBERS | STRUCTURE])
def test_numbers_and_structure_do_not_meet(name):
    others = STRUCTURE if room(name) in NUMBERS else NUMBERS
    for imported in filter(is_ours, imports(name)):
        assert room(imported.name) not in others, (
            f"{place(name, imported)}: numbers ({', '.join(sorted(NUMBERS))}) and structure "
            f"({', '.join(sorted(STRUCTURE))}) do not import each other"
        )


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("jaxq.algorithms.")])
def test_no_algorithm_imports_another(name):
    for imported in filter(is_ours, imports(name)):
        assert not imported.name.startswith("jaxq.algorithms.") or imported.name == name, (
            f"{place(name, imported)}: {name} imports {imported.name}; "
            "what two algorithms share belongs on a lower floor"
        )


@pytest.mark.parametrize("name", MODULES)
def test_foreign_packages_come_in_at_the_edge(name):
    for imported in imports(name):
        package = imported.name.split(".")[0]
        allowed = set() if package in NOWHERE else EDGE.get(package)
        assert allowed is None or room(name) in allowed, (
            f"{place(name, imported)}: {room(name)} imports {package}; {', '.join(sorted(allowed)) or 'nobody'} may. "
            "Pass arrays, names and plain values across the edge instead."
        )


@pytest.mark.parametrize("name", MODULES)
def test_optional_packages_are_imported_where_they_are_used(name):
    for imported in imports(name):
        package = imported.name.split(".")[0]
        early = imported.at_import and package in LATE and (room(name), package) not in EARLY_ALL_THE_SAME
        assert not early, f"{place(name, imported)}: import {package} inside the function that uses it"


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) not in ("cli", "commands")])
def test_the_search_path_is_changed_by_the_shell_only(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"), f"{name}, line {node.lineno}"


# Floors 0 to 5, import, export and flax: this much of jaxq runs with its five numerical packages alone.
CORE = [
    name
    for name in MODULES
    if FLOOR.get(room(name), 7) <= 5 or room(name) in ("onnx_import", "onnx_export", "flax_module")
]

WITHOUT_EXTRAS = """
import importlib, importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (taken away by the test)", name=name)

sys.meta_path.insert(0, Absent())
for name in {core}:
    importlib.import_module(name)
"""


def test_the_core_needs_no_optional_package():
    # flax itself imports rich and yaml; that jaxq's core does not is held by the two tests above.
    absent = (LATE | NOWHERE) - {"rich", "yaml"}
    code = WITHOUT_EXTRAS.format(absent=absent, core=["jaxq", *CORE])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
