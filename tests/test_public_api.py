"""The public names are these, each is explained with its errors, type checkers see the same, and importing them costs little."""

import enum
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxq

REPOSITORY = Path(__file__).resolve().parent.parent

OPTIONS = [
    "AdvancedAccuracyRestorerParameters",
    "AdvancedBiasCorrectionParameters",
    "AdvancedQuantizationParameters",
    "AdvancedSmoothQuantParameters",
    "FP8QuantizationParameters",
    "IgnoredScope",
    "Operation",
    "Override",
    "QuantizationParameters",
    "QuantizeOptions",
    "RangeEstimatorParameters",
    "StatisticsCollectorParameters",
    "Subgraph",
]
NAMES = [
    "AggregatorType",
    "BackupMode",
    "CompressWeightsMode",
    "DropType",
    "FP8Type",
    "GroupSizeFallbackMode",
    "ModelType",
    "OverflowFix",
    "Preset",
    "QuantizationScheme",
    "QuantizerPropagationRule",
    "StatisticsType",
    "TargetDevice",
]
ERRORS = [
    "AccuracyError",
    "CalibrationError",
    "ConfigError",
    "DeviceError",
    "DynamicShapeError",
    "InputError",
    "JaxqError",
    "JaxqWarning",
    "ModelError",
    "RuntimeMissingError",
    "UnsupportedOpError",
]
FUNCTIONS = [
    "compress_weights",
    "from_flax",
    "load",
    "quantize",
    "quantize_with_accuracy_control",
    "run_config",
    "save",
    "to_flax",
    "verify",
]
WHAT_COMES_BACK = ["Model", "QuantParams", "RangeEstimatorParametersSet", "RunResult"]  # nobody makes these but jaxq
PUBLIC = sorted([*OPTIONS, *NAMES, *ERRORS, *FUNCTIONS, *WHAT_COMES_BACK, "Dataset"])


def test_the_public_names_are_these():
    assert sorted(jaxq.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(jaxq)), "completion does not show what dir(jaxq) does not"
    with pytest.raises(AttributeError, match="nothing"):
        jaxq.nothing  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_defined_in_one_module_and_hidden_by_none(name):
    value = getattr(jaxq, name)
    assert getattr(sys.modules[value.__module__], name) is value
    assert value.__module__.startswith("jaxq.")
    assert not list((REPOSITORY / "jaxq").glob(f"{name}*/")), "a folder of that name would hide it once it is imported"
    assert not (REPOSITORY / "jaxq" / f"{name}.py").exists(), "a module of that name would hide it once it is imported"


def explanation(name: str, value: object) -> str:
    """The docstring that somebody wrote: not an inherited one, nor the one that a dataclass makes for itself."""
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return "" if text is None or text.startswith(f"{name}(") else text.strip()


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_explained(name):
    assert explanation(name, getattr(jaxq, name)), f"jaxq.{name} has no docstring"


@pytest.mark.parametrize("name", [*FUNCTIONS, *OPTIONS, "Dataset"])
def test_what_can_be_called_wrongly_says_what_it_raises(name):
    _, mark, raises = explanation(name, getattr(jaxq, name)).partition("Raises:\n")
    assert mark, f"jaxq.{name} does not say what it raises"
    named = {
        word.strip(",:") for line in raises.splitlines() for word in line.split() if word.strip(",:").endswith("Error")
    }
    assert named, f"jaxq.{name} names no error"
    assert named <= {*ERRORS, "TypeError", "OSError"}


def test_the_groups_are_what_they_say():
    assert all(issubclass(getattr(jaxq, name), enum.Enum) for name in NAMES)
    assert all(issubclass(getattr(jaxq, name), jaxq.JaxqError | jaxq.JaxqWarning) for name in ERRORS)
    assert all(inspect.isfunction(getattr(jaxq, name)) for name in FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_name_their_options(name):
    kinds = {parameter.kind for parameter in inspect.signature(getattr(jaxq, name)).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds, f"jaxq.{name} takes **options; a misspelt one would pass unseen"


@pytest.mark.slow
def test_mypy_sees_the_same_names_with_their_types(tmp_path):
    lines = [
        "import jaxq",
        *(f"reveal_type(jaxq.{name})" for name in PUBLIC),
        "jaxq.nothing",
        "jaxq.__version__.upper()",
    ]
    (tmp_path / "uses.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(tmp_path / "uses.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    said = [line.partition("uses.py:")[2] for line in done.stdout.splitlines() if "uses.py:" in line]
    notes = [line.partition("note: ")[2] for line in said if "Revealed type" in line]
    assert len(notes) == len(PUBLIC), done.stdout + done.stderr
    assert not [note for note in notes if note.endswith('is "Any"')]
    errors = [line for line in said if "error:" in line]
    assert errors == [f'{len(PUBLIC) + 2}: error: Module has no attribute "nothing"  [attr-defined]']


def modules_after(code: str) -> set[str]:
    """The packages that a fresh interpreter has imported after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_jaxq_is_a_matter_of_few_modules():
    assert not modules_after("import jaxq") & {"jax", "flax", "numpy", "onnx", "tqdm", "typer"}


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
