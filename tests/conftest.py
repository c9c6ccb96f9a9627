"""What all tests share: strict dtypes, one hypothesis profile, and the real models where there are some."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import hypothesis
import jax
import pytest

# float32 + int32 must be written out: a silent cast is a bug here.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# No deadline, since the first example of a test compiles; derandomized, so that the same code gives the same result.
hypothesis.settings.register_profile("jaxq", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxq")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def strict_ranks():
    """ONNX operators may broadcast ranks; quantizers, observers and ranges may not."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def standard_promotion():
    """JAX's usual dtype promotion, for tests that run optax: its Adam raises a float to an int32 step count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def find_shared_data() -> Path | None:
    """The folder of real models and labelled data, or None: $JAXQ_DATA, or `../shared/data` beside the repository."""
    named = os.environ.get("JAXQ_DATA")
    if named is not None and not (Path(named) / "evaluate.py").is_file():
        raise pytest.UsageError(f"JAXQ_DATA = {named!r} has no evaluate.py in it; unset it or name the right folder")
    folder = Path(named) if named is not None else REPOSITORY.parent / "shared" / "data"
    return folder if (folder / "evaluate.py").is_file() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and labelled data; a test that asks for it is skipped where there is none."""
    folder = find_shared_data()
    if folder is None:
        pytest.skip("needs the folder of real models: ../shared/data, or set JAXQ_DATA")
    return folder


@pytest.fixture(scope="session")
def evaluate(shared_data: Path) -> ModuleType:
    """`evaluate.py` of that folder; `evaluate.TASKS[name]` has `.model`, `.calib(count)` and `.metric(run, count)`."""
    specification = importlib.util.spec_from_file_location("shared_evaluate", shared_data / "evaluate.py")
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # the folder is not ours
        specification.loader.exec_module(module)
    return module
