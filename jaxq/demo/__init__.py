"""The whole job on a small model that comes with jaxq: what 8 bits cost and gain, measured.

The model (`digits.onnx`) is a depthwise-separable CNN with BatchNormalization; the data (`digits.npz`) are
scikit-learn's handwritten digits of 8 x 8 pixels. `tools/train_digits.py` made both.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from jaxq.analysis.verify import verify
from jaxq.data import Dataset
from jaxq.demo.page import write_page
from jaxq.engine.model import Model
from jaxq.errors import ConfigError, RuntimeMissingError
from jaxq.files import check_writable, withdraw, write_bytes, write_text
from jaxq.onnx_io.load import load
from jaxq.onnx_io.runtime import session
from jaxq.onnx_io.save import save
from jaxq.pipeline import quantize

FLOAT, QUANTIZED = "digits.onnx", "digits.int8.onnx"
PIXEL_MAXIMUM = 16  # of the stored pixels; the model sees pixel / 16
REPEATS = 5  # of a timed pass; the fastest counts

Run = Callable[[np.ndarray], np.ndarray]  # images float32 [N, 1, 8, 8] -> logits float32 [N, 10]


@dataclass(frozen=True)
class Result:
    """What was measured on the test images, also `result.json`; what needs ONNX Runtime is None without it.

    Attributes:
      float_accuracy, quantized_accuracy: as jaxq runs the models; the second one with the integers simulated.
      runtime_accuracy, float_runtime_accuracy: of the written file, and of the float one, in ONNX Runtime.
      float_bytes, quantized_bytes: of the files.
      seconds: that it took to quantize and to write, with compiling.
      float_microseconds, quantized_microseconds: an image in ONNX Runtime, all test images at once.
      agreement: share of test images for which the simulation and ONNX Runtime (plain) predict the same class.
    """

    float_accuracy: float
    quantized_accuracy: float
    runtime_accuracy: float | None
    float_bytes: int
    quantized_bytes: int
    seconds: float
    float_runtime_accuracy: float | None = None
    float_microseconds: float | None = None
    quantized_microseconds: float | None = None
    agreement: float | None = None


def run(folder: str | Path = "jaxq-demo") -> str:
    """Quantizes the demo's model, measures, and writes everything into a folder.

    The folder holds both models, the calibration and the test images as the command line takes them, `result.json` and,
    where the extra `report` is installed, `index.html`.

    Returns:
      What to print: a table, what verifying found, and what to try next.

    Raises:
      ConfigError: the folder cannot be made or written to.
    """
    folder = make_folder(Path(folder))
    withdraw(folder / "result.json", folder / "index.html")
    calibration, test, label = images("calibration"), images("test"), labels("test")
    write_bytes(folder / FLOAT, stored(FLOAT))
    write_bytes(folder / "calibration.npz", as_npz(image=calibration))
    write_bytes(folder / "test.npz", as_npz(image=test, label=label))

    started = time.perf_counter()
    model = load(folder / FLOAT)
    quantized = quantize(model, Dataset([calibration]))
    save(quantized, folder / QUANTIZED)
    seconds = time.perf_counter() - started

    logits = {"float": in_jax(model)(test), "int8": in_jax(quantized)(test)}
    figures = {
        "float_accuracy": accuracy(logits["float"], label),
        "quantized_accuracy": accuracy(logits["int8"], label),
        "runtime_accuracy": None,
        "float_bytes": (folder / FLOAT).stat().st_size,
        "quantized_bytes": (folder / QUANTIZED).stat().st_size,
        "seconds": round(seconds, 3),
    }
    try:
        found, checked = measure_in_runtime(folder, test, label)
    except RuntimeMissingError as missing:
        found, checked = {}, f"not verified: {missing}"
    result = Result(**figures | found)  # type: ignore[arg-type]
    write_text(folder / "result.json", json.dumps(asdict(result), indent=2) + "\n")
    page = write_page(folder / "index.html", table_rows(result), quantized, test, label, logits)
    return "\n".join([table(result), "", checked, "", *next_steps(folder, page)])


def stored(name: str) -> bytes:
    """A file of this package."""
    return resources.files(__name__).joinpath(name).read_bytes()


def images(split: str) -> np.ndarray:
    """The images of "calibration", "validation" or "test" as the model takes them: float32 [N, 1, 8, 8] of 0..1."""
    return stored_array(f"{split}_image").astype(np.float32) / PIXEL_MAXIMUM


def labels(split: str) -> np.ndarray:
    """The digits on the images of "validation" or "test": int64 [N]."""
    return stored_array(f"{split}_label")


def stored_array(key: str) -> np.ndarray:
    """An array of the demo's data, as it is stored."""
    with np.load(io.BytesIO(stored("digits.npz")), allow_pickle=False) as data:
        return np.asarray(data[key])


def as_npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def make_folder(folder: Path) -> Path:
    """The folder, made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {str(folder)!r}: {error.strerror}; name another one") from None
    check_writable(folder / FLOAT)
    return folder


# ----------------------------------------------------------------------------------------------------------- measuring


def in_jax(model: Model) -> Run:
    return lambda image: np.asarray(model({"image": image})["logits"])


def accuracy(logits: np.ndarray, label: np.ndarray) -> float:
    """The share of rows of [N, 10] whose largest entry is that of the label."""
    return float((logits.argmax(axis=1) == label).mean())


def measure_in_runtime(folder: Path, test: np.ndarray, label: np.ndarray) -> tuple[dict[str, float | None], str]:
    """What ONNX Runtime makes of both files, as attributes of `Result`, and what verifying found, as text.

    Raises:
      RuntimeMissingError: it is not installed.
    """
    logits, microseconds = {}, {}
    with tempfile.TemporaryDirectory(prefix="jaxq-demo-") as scratch:
        for name in (FLOAT, QUANTIZED):
            runner = session(folder / name, optimized=Path(scratch) / name)
            passes = []
            for _ in range(1 + REPEATS):
                started = time.perf_counter()
                logits[name] = runner({"image": test})["logits"]
                passes.append(time.perf_counter() - started)
            microseconds[name] = round(min(passes) / len(test) * 1e6, 2)
    report = verify(folder / QUANTIZED, [test], samples=len(test), float_model=folder / FLOAT)
    found = {
        "runtime_accuracy": accuracy(logits[QUANTIZED], label),
        "float_runtime_accuracy": accuracy(logits[FLOAT], label),
        "float_microseconds": microseconds[FLOAT],
        "quantized_microseconds": microseconds[QUANTIZED],
        "agreement": report.agreement,
    }
    return found, report.table()


# ------------------------------------------------------------------------------------------------------------- showing


def table_rows(result: Result) -> list[tuple[str, str, str]]:
    """(what, float, int8) for each line of the table."""
    in_jaxq = ("accuracy in jaxq", f"{result.float_accuracy:.2%}", f"{result.quantized_accuracy:.2%}")
    sizes = ("size in bytes", f"{result.float_bytes:,}", f"{result.quantized_bytes:,}")
    if result.runtime_accuracy is None:
        return [in_jaxq, sizes]
    in_runtime = ("accuracy in ONNX Runtime", f"{result.float_runtime_accuracy:.2%}", f"{result.runtime_accuracy:.2%}")
    times = ("microseconds an image", f"{result.float_microseconds:.1f}", f"{result.quantized_microseconds:.1f}")
    return [in_jaxq, in_runtime, sizes, times]


def table(result: Result) -> str:
    """The table as text."""
    lines = [f"{'':26s}{'float':>10s}{'int8':>10s}"]
    lines += [f"{what:26s}{before:>10s}{after:>10s}" for what, before, after in table_rows(result)]
    lines.append(f"quantized in {result.seconds:.1f} s, with compiling")
    if (result.quantized_microseconds or 0) > (result.float_microseconds or 0):
        lines.append("(images of 8 x 8 pixels are too small for integers to save time)")
    return "\n".join(lines)


def next_steps(folder: Path, page: bool) -> list[str]:
    """What there is to look at, and the same job by hand."""
    looks = [f"to look at: {folder / 'index.html'}"] if page else ["for a page to look at: pip install 'jaxq[report]'"]
    return [
        *looks,
        "the same by hand:",
        f"  jaxq inspect {folder / FLOAT}",
        f"  jaxq quantize {folder / FLOAT} --data {folder / 'calibration.npz'} -o {folder / 'mine.onnx'}",
        f"  jaxq verify {folder / 'mine.onnx'} --data {folder / 'test.npz'} --float {folder / FLOAT}",
    ]
