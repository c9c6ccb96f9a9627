"""How far two lists of one output, a value for each sample, are apart: as numbers, as classes, or as sets of rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxq.numerics.distance import differences, squares

MOST_PAIRS = 1 << 22  # of rows that are compared with each other; more are compared in their order


@dataclasses.dataclass(frozen=True)
class OutputComparison:
    """How far one output in the runtime is from jaxq's simulation, over all samples.

    Attributes:
      name: of the output.
      runtime: "plain" (graph optimizations off) or "optimized" (the default, all on).
      largest: the largest absolute difference; infinity where only one side is a number.
      steps: the same in steps of an 8-bit grid over the values that the simulation gave: (max - min) / 255.
      typical_steps: the root of the mean squared difference, in the same steps.
      agreement: share of samples (rows) with the same largest entry; None if the output is not known to be class scores.
      same_rows: for an output whose shape depends on values (boxes that are left over): share of rows that occur on both sides,
        integers exactly, floats within one such step; else None. The differences then are those of the samples with equal shapes.
      lost: whether the runtime gives NaN or infinity where the simulation gives a number, or another shape (where the shape
        depends on values: NaN or infinity for a sample for which the simulation gives numbers alone).
    """

    name: str
    runtime: str
    largest: float
    steps: float
    typical_steps: float
    agreement: float | None
    same_rows: float | None = None
    lost: bool = False


@dataclasses.dataclass(frozen=True)
class OutputCost:
    """What quantization costs at one output: the quantized file against the float model, both in the runtime.

    Attributes:
      name: of the output.
      snr: 10 log10(sum of squares of the float output / that of the difference) in dB, over all samples; infinity where nothing
        differs, minus infinity where only one side is a number, None where the shapes differ.
      agreement: share of samples (rows) with the same class; None if the output is not known to be class scores.
    """

    name: str
    snr: float | None
    agreement: float | None


def as_array(value: Any) -> np.ndarray:
    """An output as one array; the elements of a sequence, which may differ in shape, one behind the other."""
    return np.concatenate([np.zeros(0), *map(np.ravel, value)]) if isinstance(value, list) else np.asarray(value)


def compare(
    name: str, runtime: str, expected: list[np.ndarray], found: list[np.ndarray], *, classes: bool = False
) -> OutputComparison:
    """One output, one way of running, over all samples; `classes` says that it is class scores."""
    if any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
        return OutputComparison(name, runtime, math.inf, math.inf, math.inf, 0.0 if classes else None, lost=True)
    apart = [differences(a, b) for a, b in zip(expected, found, strict=True)]
    largest = float(max(each.max(initial=0.0) for each in apart))
    squared = sum(float((each**2).sum()) for each in apart) / max(sum(each.size for each in apart), 1)
    step = step_of(expected)
    agreement = same_class(expected, found) if classes else None
    lost = any((np.isfinite(a) & ~np.isfinite(b)).any() for a, b in zip(expected, found, strict=True))
    return OutputComparison(name, runtime, largest, largest / step, squared**0.5 / step, agreement, lost=lost)


def compare_rows(name: str, runtime: str, expected: list[np.ndarray], found: list[np.ndarray]) -> OutputComparison:
    """One output whose shape depends on values, over all samples: as sets of rows."""
    pairs = list(zip(expected, found, strict=True))
    equal = [(a, b) for a, b in pairs if a.shape == b.shape and a.size]
    plain = compare(name, runtime, [a for a, _ in equal] or [np.zeros(1)], [b for _, b in equal] or [np.zeros(1)])
    step = step_of(expected) if expected[0].dtype.kind == "f" else 0.0
    matched, total = (sum(counts) for counts in zip(*(count_rows(a, b, step) for a, b in pairs), strict=True))
    lost = any(np.isfinite(a).all() and not np.isfinite(b).all() for a, b in pairs)
    return dataclasses.replace(plain, agreement=None, same_rows=matched / total if total else 1.0, lost=lost)


def cost(name: str, reference: list[np.ndarray], found: list[np.ndarray], *, classes: bool) -> OutputCost:
    """What one output lost, over all samples."""
    if any(a.shape != b.shape for a, b in zip(reference, found, strict=True)):
        return OutputCost(name, None, None)
    noise = sum(float((differences(a, b) ** 2).sum()) for a, b in zip(reference, found, strict=True))
    signal = sum(float(squares(each).sum()) for each in reference)
    return OutputCost(name, decibels(signal, noise), same_class(reference, found) if classes else None)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers; infinity without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def same_class(expected: list[np.ndarray], found: list[np.ndarray]) -> float | None:
    """The share of rows [..., classes] with the same largest entry, in the mean over the samples; None without a class axis."""
    pairs = [(_scores(a), _scores(b)) for a, b in zip(expected, found, strict=True)]
    same = [(a.argmax(-1) == b.argmax(-1)).mean() for a, b in pairs if a is not None and b is not None and len(a)]
    return float(np.mean(same)) if len(same) == len(pairs) and same else None


def _scores(value: np.ndarray) -> np.ndarray | None:
    """The output as [rows, classes] if it has that form, apart from trailing axes of size one; else None."""
    scores = value.reshape(value.shape[:2]) if value.ndim >= 2 and value.size == np.prod(value.shape[:2]) else value
    return scores if scores.ndim == 2 and scores.shape[1] > 1 else None


def count_rows(a: np.ndarray, b: np.ndarray, step: float) -> tuple[int, int]:
    """(how many rows of both have an equal one in the other, to `step` in each place, how many rows there are).

    Rows lie along the axis in which both differ, or their longest one; else each value is a row.
    """
    if a.ndim != b.ndim or a.ndim == 0:
        first, second = _float(a).reshape(-1, 1), _float(b).reshape(-1, 1)
    else:
        differing = [axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]]
        axis = differing[0] if differing else int(np.argmax(a.shape))
        moved = [np.moveaxis(_float(value), axis, 0) for value in (a, b)]
        first, second = (value.reshape(len(value), math.prod(value.shape[1:])) for value in moved)
    total = len(first) + len(second)
    if first.shape == second.shape:
        same = (differences(first, second) <= step).all(1)
        if same.all() or len(first) ** 2 > MOST_PAIRS:
            return 2 * int(same.sum()), total
    return _matched(first, second, step) + _matched(second, first, step), total


def _matched(rows: np.ndarray, others: np.ndarray, step: float) -> int:
    """How many of `rows` [n, k] have an equal one, to one step in each place, among `others` [m, k]."""
    if rows.shape[1] != others.shape[1]:
        return 0
    return sum(bool((differences(others, row) <= step).all(1).any()) for row in rows)


def step_of(values: list[np.ndarray]) -> float:
    """The step of an 8-bit grid over the finite ones of all values."""
    finite = [each[np.isfinite(each)] for each in map(_float, values)]
    low = min(float(each.min(initial=np.inf)) for each in finite)
    high = max(float(each.max(initial=-np.inf)) for each in finite)
    return max((high - low) / 255, 1e-30)


def _float(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64)
