"""The house: folders stand on floors, imports go down, or sideways without a circle; foreign packages come in at the edge.

Reads the sources with `ast`, so it sees imports inside functions too. `python tests/test_floors.py` prints how many there are.
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

# Folders, and modules that stand beside them, from the ground up.
FLOORS = (
    "errors checks version progress files",
    "ops numerics",  # what operators mean; numbers. They know no graph.
    "graph",
    "engine placement",  # these two do not know each other
    "algorithms onnx_io data",
    "pipeline compress options analysis backend summary",
    "accuracy",
    "jobs demo config",
    "cli __init__",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}

# Each algorithm stands alone; these modules are what several share.
SHARED_BY_ALGORITHMS = {"algorithms", "algorithms.layer_errors", "algorithms.biases", "algorithms.compressible"}

# Foreign package -> the folders and modules of jaxq that may import it. What is not named here (jax, numpy, optax) is free.
EDGE = {
    "onnx": {"onnx_io"},
    "onnx_ir": {"onnx_io"},
    "google": {"onnx_io"},  # protobuf
    "onnxruntime": {"onnx_io.runtime"},
    "flax": {"onnx_io.flax"},
    "pydantic": {"jobs"},
    "yaml": {"jobs"},
    "typer": {"cli"},
    "rich": {"cli"},
    "tqdm": {"progress"},
    "lazy_loader": {"__init__"},
    "PIL": {"data.images"},
    "jinja2": {"analysis.html"},
    "matplotlib": {"analysis.html"},
}
NOWHERE = {"torch", "tensorflow", "sklearn", "pytest", "hypothesis"}

# What only reads files, talks to a terminal or is an extra: importing jaxq must not need it, so it is imported inside
# the function that uses it. The exceptions define classes or commands with it; nobody below imports those modules.
LATE = {"onnxruntime", "pydantic", "yaml", "typer", "rich", "tqdm", "PIL", "jinja2", "matplotlib"}
EARLY_ALL_THE_SAME = {("cli", "typer"), ("jobs", "pydantic")}

MOST_FOLDERS, MOST_MODULES, MOST_FILES, MOST_LINES = 14, 12, 14, 450
MANY_FILES = {"ops"}  # a file for each kind of operator


@dataclass(frozen=True)
class Import:
    """What one statement imports: its name below `jaxq` or its full name, its line, and whether that happens at import."""

    name: str
    line: int
    at_import: bool
    is_ours: bool


def module_name(path: Path) -> str:
    """`jaxq/ops/neural.py` -> `ops.neural`; a package's `__init__.py` has the package's name, jaxq's own is `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def folder(name: str) -> str:
    """The key of FLOOR for a module: `ops.neural` -> `ops`, `errors` -> `errors`."""
    return name.partition(".")[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def named(full: str, base: str, line: int, at_import: bool) -> Import:
    """`from jaxq.ops import neural` imports a module, `from jaxq.ops import find` a name of the package."""
    if full.split(".")[0] != "jaxq":
        return Import(full, line, at_import, False)
    inside = full.removeprefix("jaxq").removeprefix(".")
    return Import(
        inside if inside in MODULES else base.removeprefix("jaxq.").replace("jaxq", "__init__"), line, at_import, True
    )


def walk_imports(node: ast.AST, at_import: bool = True) -> Iterator[Import]:
    """Every import below `node`; those in functions and under `if TYPE_CHECKING` do not run at import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (named(alias.name, alias.name, child.lineno, at_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):  # absolute ones only: ruff sees to that
            yield from (
                named(f"{child.module}.{each.name}", child.module, child.lineno, at_import) for each in child.names
            )
        else:
            late = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child)
            yield from walk_imports(child, at_import and not late)


@functools.cache
def imports(name: str) -> tuple[Import, ...]:
    """The imports of one module of jaxq, each once a line."""
    return tuple(dict.fromkeys(walk_imports(ast.parse(MODULES[name].read_text(encoding="utf-8")))))


def pairs() -> set[tuple[str, str]]:
    """(module, module that it imports), of jaxq's own."""
    return {(name, each.name) for name in MODULES for each in imports(name) if each.is_ours and each.name != name}


def place(name: str, imported: Import) -> str:
    return f"jaxq/{MODULES[name].relative_to(PACKAGE)}:{imported.line}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    here = folder(name)
    assert here in FLOOR, f"jaxq/{here} stands on no floor: give it one in FLOORS of {Path(__file__).name}"
    for imported in imports(name):
        there = folder(imported.name)
        if not imported.is_ours or there not in FLOOR:
            continue
        goes_down = FLOOR[there] <= FLOOR[here] and {here, there} != {"engine", "placement"}
        assert goes_down, (
            f"{place(name, imported)}: {here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]}); "
            "imports go down. Move what is needed down, or hand it over as an argument."
        )


def circle(edges: set[tuple[str, str]]) -> str:
    """A circle in words, or ""."""
    above: dict[str, set[str]] = {}
    for here, there in edges:
        above.setdefault(here, set()).add(there)
    try:
        graphlib.TopologicalSorter(above).prepare()
    except graphlib.CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def test_no_circles():
    # A package counts as its __init__.py: its modules may be imported by it, and not import it back.
    assert not circle(pairs())
    assert not circle({(folder(a), folder(b)) for a, b in pairs() if folder(a) != folder(b)})


@pytest.mark.parametrize("name", [each for each in MODULES if folder(each) == "algorithms"])
def test_no_algorithm_imports_another(name):
    for imported in imports(name):
        alone = imported.is_ours and folder(imported.name) == "algorithms" and name not in SHARED_BY_ALGORITHMS
        assert not alone or imported.name in SHARED_BY_ALGORITHMS, (
            f"{place(name, imported)}: {name} imports {imported.name}; what two algorithms share belongs on a lower floor"
        )


@pytest.mark.parametrize("name", MODULES)
def test_foreign_packages_come_in_at_the_edge(name):
    for imported in imports(name):
        package = imported.name.split(".")[0]
        allowed = set() if package in NOWHERE else EDGE.get(package)
        assert imported.is_ours or allowed is None or {name, folder(name)} & allowed, (
            f"{place(name, imported)}: {name} imports {package}; {', '.join(sorted(allowed)) or 'nobody'} may. "
            "Pass arrays, names and plain values across the edge instead."
        )
        late = imported.at_import and package in LATE and not imported.is_ours
        assert not late or (folder(name), package) in EARLY_ALL_THE_SAME, (
            f"{place(name, imported)}: import {package} inside the function that uses it"
        )


def test_rooms_are_of_a_size_to_find_ones_way():
    folders = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(folders) <= MOST_FOLDERS
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_MODULES
    full = [path.name for path in folders if path.name not in MANY_FILES and len(list(path.glob("*.py"))) > MOST_FILES]
    assert not full, f"more than {MOST_FILES} files in {full}: two ideas, two folders"
    long = [name for name, path in MODULES.items() if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]
    assert not long, f"more than {MOST_LINES} lines in {long}: two ideas, two files"


@pytest.mark.parametrize("name", [name for name in MODULES if folder(name) != "cli"])
def test_the_search_path_is_changed_by_the_shell_only(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"), f"{name}, line {node.lineno}"


# Floors 0 to 5: this much of jaxq runs with its five numerical packages alone.
CORE = [name for name in MODULES if FLOOR.get(folder(name), 9) <= 5]

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
    # flax itself imports rich and yaml; that jaxq's core does not is held by the tests above.
    absent = (LATE | NOWHERE) - {"rich", "yaml"}
    code = WITHOUT_EXTRAS.format(absent=absent, core=["jaxq", *(f"jaxq.{name}" for name in CORE)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr


def counts() -> str:
    between = [(a, b) for a, b in pairs() if folder(a) != folder(b)]
    folders = {(folder(a), folder(b)) for a, b in between}
    return (
        f"{len(MODULES)} modules, {len(pairs())} pairs of modules of which one imports the other, {len(between)} of them in "
        f"different folders; {len(folders)} pairs of folders"
    )


if __name__ == "__main__":
    print(counts())  # noqa: T201
