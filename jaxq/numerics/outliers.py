"""Samples that reach values far beyond those of all others: broken ones, which would take the range from the good ones.

A range that holds a value FAR times as large as all others leaves these 32 of the 256 steps of an 8-bit grid, 18 dB less. That a
tensor has few large values in every sample (the attention sinks of transformers) is no reason to leave anything out: what is
compared is the largest absolute value of each sample with those of the other samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FAR = 8.0  # times the largest value of all other samples
SMALL = 1.0  # of what stays below it, a score that is near 0 for all other samples, nothing is broken
FEWEST = 8  # samples, to tell the odd one from the others
MOST = 0.05  # of the samples may be left out, but always one


class Outliers(NamedTuple):
    """Samples with outlying values in one tensor.

    Attributes:
      samples: their positions.
      values: the largest absolute value of each.
      others: that of all other samples.
    """

    samples: tuple[int, ...]
    values: tuple[float, ...]
    others: float


def outliers(magnitudes: np.ndarray) -> Outliers | None:
    """Those among the largest absolute values of samples, float [samples], NaN where one was not seen; None if there are none.

    In falling order, they are what stands above the last gap of FAR in the upper half. Zeros say nothing: a tensor that most
    samples leave at zero has no usual size.
    """
    seen = np.flatnonzero(~np.isnan(magnitudes))
    order = seen[np.argsort(-magnitudes[seen].astype(np.float64), kind="stable")]
    sizes = magnitudes[order].astype(np.float64)
    upper = sizes[: len(sizes) // 2 + 1]
    if len(sizes) < FEWEST or np.isinf(sizes[0]):  # of what is not finite, `Calibration` says so
        return None
    gaps = np.flatnonzero((upper[1:] > 0) & (upper[:-1] > FAR * upper[1:]) & (upper[:-1] > SMALL))
    if not gaps.size:
        return None
    count = int(gaps[-1]) + 1
    chosen = np.argsort(order[:count])
    return Outliers(tuple(order[chosen].tolist()), tuple(sizes[chosen].tolist()), float(sizes[count]))


def may_be_left_out(count: int, samples: int) -> bool:
    """Whether so many of the samples are few enough to be mistakes."""
    return count <= max(1, int(MOST * samples))
