"""Checks that a runtime computes what jaxq simulates: the written file in ONNX Runtime, plainly and optimized."""

from __future__ import annotations

import collections
import dataclasses
import math
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxq.data import Dataset
from jaxq.errors import CalibrationError, InputError, JaxqWarning, ModelError, RuntimeMissingError
from jaxq.onnx_export import save
from jaxq.onnx_import import Source, load
from jaxq.progress import track

AGREEMENT = 0.995  # of the predicted class, from which on simulation and runtime count as one
SAME_ROWS = 0.9  # of an output with as many rows as the values ask for, from which on both count as one
TYPICAL_STEPS = 1.0  # of an 8-bit grid over the output: up to this, a typical difference is that of rounding
LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "FusedConv", "FusedGemm", "FusedMatMul"})
INTEGER_OPS = frozenset(
    [
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulIntegerToFloat",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "QAttention",
    ]
)
Runner = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class OutputComparison:
    """How far one output in the runtime is from jaxq's simulation, over all samples.

    Attributes:
      name: of the output.
      runtime: "plain" (graph optimizations off) or "optimized" (all on).
      largest: the largest absolute difference.
      steps: the same in steps of an 8-bit grid over the values that the simulation gave: (max - min) / 255.
      typical_steps: the root of the mean squared difference, in the same steps.
      agreement: share of samples (rows) with the same largest entry; None if the output does not look like class scores.
      same_rows: for an output whose shape depends on values (boxes that are left over): share of rows that occur on both sides,
        integers exactly, floats within one such step; else None. The differences then are those of the samples with equal shapes.
    """

    name: str
    runtime: str
    largest: float
    steps: float
    typical_steps: float
    agreement: float | None
    same_rows: float | None = None


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    Attributes:
      samples: how many were compared.
      outputs: one entry for each output and way of running.
      integer_kernels: operators that the optimized runtime computes in integers -> how many.
      float_kernels: convolutions and matrix products that it still computes in float -> how many.
      saturation: why integer kernels of this machine can saturate, or "" if they cannot.
      refused: why the runtime does not load the file with its graph optimizations on, or "" if it does.
    """

    samples: int
    outputs: tuple[OutputComparison, ...]
    integer_kernels: dict[str, int]
    float_kernels: dict[str, int]
    saturation: str
    refused: str = ""

    @property
    def agreement(self) -> float | None:
        """The lowest agreement of the predicted class with the plain runtime; None without class scores."""
        found = [each.agreement for each in self.outputs if each.runtime == "plain" and each.agreement is not None]
        return min(found, default=None)

    @property
    def ok(self) -> bool:
        """Whether the plain runtime computes what jaxq simulates: for each output, the same class for 99.5 % of the samples, or a
        typical difference of at most one 8-bit step. Of an output whose shape depends on values, 90 % of the rows must be the
        same.

        The second is for outputs that are no class scores, and for deep networks: where sums in another order put a few values on
        the other side of a rounding border, classes that are next to equal change places.
        """
        plain = [each for each in self.outputs if each.runtime == "plain"]
        return all(
            (each.agreement or 0.0) >= AGREEMENT or each.typical_steps <= TYPICAL_STEPS
            if each.same_rows is None
            else each.same_rows >= SAME_ROWS
            for each in plain
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {**dataclasses.asdict(self), "agreement": self.agreement, "ok": self.ok}

    def table(self) -> str:
        """The report as text, one line for each output and way of running."""
        rows: list[tuple[str, ...]] = [
            ("output", "runtime", "same class", "largest difference", "in 8-bit steps", "typically")
        ]
        for each in self.outputs:
            share = "-" if each.agreement is None else f"{each.agreement:.2%}"
            if each.same_rows is not None:
                share = f"{each.same_rows:.2%} of rows"
            numbers = (each.largest, each.steps, each.typical_steps)
            rows.append((each.name, each.runtime, share, *(f"{number:.3g}" for number in numbers)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        kernels = [f"{count} {name}" for name, count in sorted(self.integer_kernels.items())]
        floats = [f"{count} {name}" for name, count in sorted(self.float_kernels.items())]
        lines.append(
            f"integer kernels: {', '.join(kernels) or 'none'}; products left in float: {', '.join(floats) or 'none'}"
        )
        if self.saturation:
            lines.append(f"note: {self.saturation}")
        if self.refused:
            lines.append(f"note: with graph optimizations on: {self.refused}")
        return "\n".join(lines)


def verify(model: Source, data: Iterable[Any], *, samples: int = 100) -> VerifyReport:
    """Runs the quantized file in ONNX Runtime and compares each output with jaxq's own simulation.

    Args:
      model: a quantized `Model` (it is written to a temporary file), or the path of a QDQ file.
      data: batches as for `quantize`.
      samples: at most so many are compared.

    Returns:
      A `VerifyReport`; print its `table()`.

    Raises:
      RuntimeMissingError: onnxruntime is not installed.
      ModelError: ONNX Runtime refuses the file, even with its graph optimizations off.
      InputError: the data does not fit the model.
      CalibrationError: there are no samples.
    """
    simulated = load(model)
    if not simulated.encodings and not any(node.op == "DequantizeLinear" for _, node in simulated.graph.walk()):
        message = "the model is in float: it holds no quantizers, so that this says nothing about a quantized file"
        warnings.warn(message, JaxqWarning, stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="jaxq-verify-") as folder:
        path = Path(model) if isinstance(model, (str, Path)) else Path(folder) / "model.onnx"
        if not isinstance(model, (str, Path)):
            save(simulated, path)
        runners, refused = {"plain": session(path, optimized=None)}, ""
        integer, left = dict[str, int](), dict[str, int]()
        try:
            runners["optimized"] = session(path, optimized=Path(folder) / "optimized.onnx")
            integer, left = kernels(Path(folder) / "optimized.onnx")
        except ModelError as error:  # of types that its integer kernels do not have (float8)
            refused = str(error)
        expected: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        found: dict[tuple[str, str], list[np.ndarray]] = collections.defaultdict(list)
        items = data if isinstance(data, Dataset) else Dataset(data)
        feeds = items.feeds(simulated)
        count = 0
        for feed in track((feed for feed, _ in zip(feeds, range(samples), strict=False)), "verifying", samples):
            count += 1
            on_host = simulated.made_on_host(feed)
            for name, value in simulated(feed).items():
                expected[name].append(as_array(value))
            for runtime, run in runners.items():
                for name, value in run(feed).items():
                    found[name, runtime].append(as_array(value))
    if not count:
        raise CalibrationError("there are no samples to verify with; at least one is needed")
    compared = tuple(
        (compare_rows if name in on_host else compare)(name, runtime, expected[name], values)
        for (name, runtime), values in sorted(found.items())
    )
    return VerifyReport(count, compared, integer, left, saturation(), refused)


def session(path: Path, *, optimized: Path | None) -> Runner:
    """Runs the file in ONNX Runtime on the CPU: with all graph optimizations, the result written to `optimized`, or with none.

    Raises:
      RuntimeMissingError, ModelError: see `verify`.
    """
    try:
        import onnxruntime
    except ImportError:
        raise RuntimeMissingError(
            "verification runs the file in ONNX Runtime, which is not installed; pip install 'jaxq[runtime]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if optimized is None else level.ORT_ENABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"ONNX Runtime {onnxruntime.__version__} refuses {str(path)!r}: {error}") from error
    names = [output.name for output in made.get_outputs()]
    wanted = {given.name for given in made.get_inputs()}

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            values = made.run(names, {name: np.asarray(value) for name, value in feed.items() if name in wanted})
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run the file on the given sample: {error}") from error
        return dict(zip(names, values, strict=True))

    return run


def kernels(optimized: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(integer kernels, convolutions and products left in float) in the graph that ONNX Runtime made: operator -> count."""
    import onnx

    counts = collections.Counter[str]()
    pending = [onnx.load(str(optimized), load_external_data=False).graph]
    while pending:
        nodes = pending.pop().node
        counts.update(node.op_type for node in nodes)
        pending.extend(each.g for node in nodes for each in node.attribute if each.HasField("g"))
    integer = {op: count for op, count in counts.items() if op in INTEGER_OPS or op.startswith("QLinear")}
    return integer, {op: count for op, count in counts.items() if op in LINEAR_OPS}


def compare(name: str, runtime: str, expected: list[np.ndarray], found: list[np.ndarray]) -> OutputComparison:
    """One output, one way of running, over all samples."""
    differences = [_difference(_float(a), _float(b)) for a, b in zip(expected, found, strict=True)]
    largest = float(np.max([np.abs(each).max(initial=0.0) for each in differences]))  # NaN if one is
    squared = sum(float((each**2).sum()) for each in differences) / max(sum(each.size for each in differences), 1)
    step = _step(expected)
    pairs = [(class_scores(a), class_scores(b)) for a, b in zip(expected, found, strict=True)]
    same = [(a.argmax(-1) == b.argmax(-1)).mean() for a, b in pairs if a is not None and b is not None]
    agreement = float(np.mean(same)) if len(same) == len(pairs) else None
    return OutputComparison(name, runtime, largest, largest / step, squared**0.5 / step, agreement)


def as_array(value: Any) -> np.ndarray:
    """An output as one array; the elements of a sequence, which may differ in shape, one behind the other."""
    return np.concatenate([np.zeros(0), *map(np.ravel, value)]) if isinstance(value, list) else np.asarray(value)


def compare_rows(name: str, runtime: str, expected: list[np.ndarray], found: list[np.ndarray]) -> OutputComparison:
    """One output whose shape depends on values, over all samples: as sets of rows."""
    pairs = list(zip(expected, found, strict=True))
    equal = [(a, b) for a, b in pairs if a.shape == b.shape and a.size]
    plain = compare(name, runtime, [a for a, _ in equal] or [np.zeros(1)], [b for _, b in equal] or [np.zeros(1)])
    step = _step(expected) if expected[0].dtype.kind == "f" else 0.0
    rows = [_rows(a, b) for a, b in pairs]
    matched = sum(_matched(a, b, step) + _matched(b, a, step) for a, b in rows)
    total = sum(len(a) + len(b) for a, b in rows)
    return dataclasses.replace(plain, agreement=None, same_rows=matched / total if total else 1.0)


def _rows(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as [rows, values]: along the axis in which they differ, or their longest one; else each value is a row."""
    if a.ndim != b.ndim or a.ndim == 0:
        return _float(a).reshape(-1, 1), _float(b).reshape(-1, 1)
    differing = [axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]]
    axis = differing[0] if differing else int(np.argmax(a.shape))
    first, second = (np.moveaxis(_float(value), axis, 0) for value in (a, b))
    return tuple(value.reshape(len(value), math.prod(value.shape[1:])) for value in (first, second))  # type: ignore[return-value]


def _matched(rows: np.ndarray, others: np.ndarray, step: float) -> int:
    """How many of `rows` [n, k] have an equal one, to one step in each place, among `others` [m, k]."""
    if rows.shape[1] != others.shape[1]:
        return 0
    return sum(bool((np.abs(others - row) <= step).all(1).any()) for row in rows)


def _step(values: list[np.ndarray]) -> float:
    """The step of an 8-bit grid over the finite ones of all values."""
    finite = [each[np.isfinite(each)] for each in map(_float, values)]
    low = min(float(each.min(initial=np.inf)) for each in finite)
    high = max(float(each.max(initial=-np.inf)) for each in finite)
    return max((high - low) / 255, 1e-30)


def class_scores(value: np.ndarray) -> np.ndarray | None:
    """The output as [rows, classes] if it has that form, apart from trailing axes of size one; else None."""
    scores = value.reshape(value.shape[:2]) if value.ndim >= 2 and value.size == np.prod(value.shape[:2]) else value
    return scores if scores.ndim == 2 and scores.shape[1] > 1 and scores.dtype.kind == "f" else None


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b, and zero where both are the same infinity (a masked score) or both NaN; NaN where only one is."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.subtract(a, b, out=np.zeros_like(a), where=~same)


def _float(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64)


def saturation() -> str:
    """Why products of uint8 and int8 can saturate on this machine, or "" if they cannot."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return ""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "the processor's features are unknown; without VNNI, sums of two u8*s8 products saturate at 16 bits"
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return ""
    return (
        "this processor has no VNNI: ONNX Runtime's u8*s8 kernels add two products in 16 bits and can saturate, so that the "
        "optimized runtime differs from other machines; see session.x64quantprecision of ONNX Runtime"
    )
