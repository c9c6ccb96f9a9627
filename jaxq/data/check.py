"""Whether calibration data can be what they are meant to be: finite numbers, that differ, that are not noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxq.errors import CalibrationError
from jaxq.numerics.outliers import Outliers, outliers

NOISE_SAMPLES, NOISE_PAIRS = 32, 100_000  # looked at for noise, at least; after that there is no more to learn
FEWEST_PAIRS = 1000  # of neighbouring pixels, to tell noise at all
NOISE_CORRELATION = 0.05  # of neighbouring pixels: white noise has 0, photographs about 0.9, spectrograms above 0.3
SMALLEST_IMAGE = 8  # height and width from which on an input counts as an image


class DataCheck:
    """Passes samples through while it watches them; afterwards `warnings()` says what is suspicious.

    Args:
      samples: feeds of one sample each, {input name: array}.
      masks: inputs that are added to, or select, what a Softmax reads: minus infinity in them is no mistake.

    Raises (while the samples are passed through):
      CalibrationError: a value is NaN or infinite; the message names the input and the sample.
    """

    def __init__(self, samples: Iterable[Mapping[str, Any]], masks: Collection[str] = ()):
        self._samples, self._masks = samples, masks
        self._count = 0
        self._first: dict[str, np.ndarray] = {}
        self._identical = True
        # An input with one value in each sample -> the lowest and the highest of them.
        self._flat: dict[str, tuple[float, float]] = {}
        self._noise: dict[str, _Neighbours] = {}
        self._magnitudes: dict[str, list[float]] = {}  # of each sample, for the inputs in floating point

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for feed in self._samples:
            arrays = {name: np.asarray(value) for name, value in feed.items()}
            for name, array in arrays.items():
                refuse_not_finite(name, array, self._count, mask=name in self._masks)
            self._watch(arrays)
            self._count += 1
            yield feed

    @property
    def count(self) -> int:
        """Samples that have been passed through."""
        return self._count

    def outlying(self) -> dict[str, Outliers]:
        """The inputs in which some samples reach values far beyond those of the others."""
        found = {name: outliers(np.asarray(sizes)) for name, sizes in self._magnitudes.items()}
        return {name: each for name, each in found.items() if each is not None}

    def _watch(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if _is_float(array) and name not in self._masks:
                size = float(max(array.max(), -array.min())) if array.size else 0.0
                self._magnitudes.setdefault(name, []).append(size)
        if self._count == 0:
            self._first = {name: array.copy() for name, array in arrays.items()}
            self._flat = {
                name: (np.inf, -np.inf) for name, array in arrays.items() if _is_float(array) and array.size > 1
            }
            self._noise = {name: _Neighbours(axes) for name, array in arrays.items() if (axes := image_axes(array))}
        elif self._identical:
            self._identical = all(np.array_equal(array, self._first[name]) for name, array in arrays.items())
        for name, (low, high) in list(self._flat.items()):
            value = float(arrays[name].flat[0])
            if (arrays[name] == arrays[name].flat[0]).all():
                self._flat[name] = (min(low, value), max(high, value))
            else:
                del self._flat[name]
        for name, neighbours in self._noise.items():
            if self._count < NOISE_SAMPLES or neighbours.pairs < NOISE_PAIRS:
                neighbours.add(arrays[name])

    def warnings(self) -> list[str]:
        """What is suspicious about the samples seen so far, one sentence each."""
        found = []
        if self._count > 1 and self._identical:
            found.append(
                f"all {self._count} calibration samples are identical; ranges from them will not fit other data"
            )
        for name, (low, high) in self._flat.items():
            values = f"{low:g}" if low == high else f"from {low:g} to {high:g}"
            found.append(
                f"input {name!r} is constant: every element of a calibration sample has the same value ({values}); "
                "ranges from such data mean nothing"
            )
        for name, neighbours in self._noise.items():
            if name not in self._flat and name not in self.outlying() and neighbours.is_noise():
                found.append(
                    f"input {name!r} looks like random noise: neighbouring pixels of the calibration samples are "
                    f"unrelated (correlation {neighbours.correlation:.2f}); calibrate with real data"
                )
        return found


def refuse_not_finite(
    name: str, array: np.ndarray, number: int, data: str = "calibration", *, mask: bool = False
) -> None:
    """Raises CalibrationError if a float array holds NaN or infinity; `number` is that of the sample, `data` what it is for.

    A `mask` may hold minus infinity.
    """
    if not _is_float(array):
        return
    bad = ~np.isfinite(array)
    if mask:
        bad &= ~np.isneginf(array.astype(np.float32))
    if bad.any():
        what = "NaN" if np.isnan(array).any() else "infinity"
        raise CalibrationError(
            f"{data} sample {number} (counted from 0): input {name!r} holds {what}, in {bad.sum()} of "
            f"{array.size} values; repair the data or leave the sample out"
        )


def _is_float(array: np.ndarray) -> bool:
    # bfloat16 and the like, which ml_dtypes adds to numpy, are of kind "V"
    return array.dtype.kind == "f" or "float" in array.dtype.name


def image_axes(array: np.ndarray) -> tuple[int, int] | None:
    """The axes of height and width of one image [1, C, H, W] or [1, H, W, C], C 1, 3 or 4; None if it is no image."""
    if array.ndim != 4 or array.dtype.kind not in "fu":
        return None
    for channel, axes in ((1, (2, 3)), (3, (1, 2))):
        if array.shape[channel] in (1, 3, 4) and min(array.shape[axes[0]], array.shape[axes[1]]) >= SMALLEST_IMAGE:
            return axes
    return None


class _Neighbours:
    """The correlation of neighbouring pixels, over all images that were added."""

    def __init__(self, axes: tuple[int, int]):
        self._axes = axes
        self.pairs = 0
        self._products = np.zeros(2)  # sums over pairs of neighbours, down and across
        self._squares = np.zeros(2)

    def add(self, image: np.ndarray) -> None:
        centred = np.moveaxis(image, self._axes, (-2, -1)).astype(np.float64)
        centred = centred - centred.mean(axis=(-2, -1), keepdims=True)
        for direction, (before, after) in enumerate(
            ((centred[..., :-1, :], centred[..., 1:, :]), (centred[..., :-1], centred[..., 1:]))
        ):
            self._products[direction] += (before * after).sum()
            self._squares[direction] += ((before**2).sum() + (after**2).sum()) / 2
        self.pairs += centred[..., :-1].size

    @property
    def correlation(self) -> float:
        """The larger of the two directions' correlations, in -1..1."""
        return float((self._products / np.maximum(self._squares, np.finfo(float).tiny)).max())

    def is_noise(self) -> bool:
        """Whether the pixels are independent: by chance, their correlation strays by 1 / sqrt(pairs)."""
        if self.pairs < FEWEST_PAIRS or not self._squares.all():
            return False
        return abs(self.correlation) < NOISE_CORRELATION + 3 / math.sqrt(self.pairs)
