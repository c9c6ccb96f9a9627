"""From statistics to ranges, and from ranges to scales and zero points. Plain numpy on small arrays.

Ranges follow NNCF and POT: what their users get there by the same names they get here. Where those have a known defect, the
docstring says what is done instead.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from jaxq.errors import ConfigError
from jaxq.quantizer import Granularity, Grid, IntType, PerBlock, QuantParams, Scheme, reduced_axes

SMALLEST_RANGE = 8e-4  # an asymmetric range narrower than this is widened by it on both sides
SMALLEST_HIGH = 8e-5  # a symmetric range never ends below this
ZERO_CHANNEL_RATIO = 0.01  # nor below this part of the widest channel of the tensor

Aggregator = Literal["min", "max", "mean", "median"]


class Range(NamedTuple):
    """The ends of a float range: float32 arrays or scalars, with the shape of the scale."""

    low: Any
    high: Any


def aggregate(values: np.ndarray, how: Aggregator) -> np.ndarray:
    """One number from one number per sample: values [samples, ...] -> [...], in an order-independent way."""
    # Sorted first: the float sum of a mean then does not depend on the order in which the samples came.
    return getattr(np, how)(np.sort(values.astype(np.float64), axis=0), axis=0).astype(np.float32)


def widen_zero_channels(high: np.ndarray) -> np.ndarray:
    """Raises the ends of (nearly) empty symmetric ranges: high <- max(high, max(8e-5, 0.01 * widest channel)).

    Keeps the scale of an all-zero channel, and with it the int32 bias, at a sane size.

    Source: POT `fix_zero_filters_symmetric`.
    """
    high = np.asarray(high, np.float32)
    return np.maximum(high, np.float32(max(SMALLEST_HIGH, ZERO_CHANNEL_RATIO * float(high.max(initial=0.0)))))


def weight_absmax(weight: np.ndarray, granularity: Granularity) -> np.ndarray:
    """The largest absolute value behind each scale of a weight, in the shape of the scale.

    Raises:
      ConfigError: the axis does not divide into blocks.
    """
    size = np.abs(weight)
    if not isinstance(granularity, PerBlock):
        return np.asarray(size.max(axis=reduced_axes(granularity, weight.ndim), keepdims=True, initial=0.0))
    axis, length = granularity.axis % weight.ndim, weight.shape[granularity.axis]
    if length % granularity.size:
        raise ConfigError(f"{length} values along axis {axis} do not divide into groups of {granularity.size}")
    blocks = (*weight.shape[:axis], length // granularity.size, granularity.size, *weight.shape[axis + 1 :])
    return np.asarray(size.reshape(blocks).max(axis=axis + 1, initial=0.0))


def symmetric_weight_params(absmax: np.ndarray, grid: Grid) -> QuantParams:
    """Weights: zero point 0 and as many steps on both sides as the grid has room for.

    scale = 2 * absmax / (levels - 1):  absmax / 127 on the narrow grid of 8 bits, absmax / 448 on float8 E4M3
    """
    return QuantParams.of(widen_zero_channels(absmax) / np.float32((grid.qmax - grid.qmin) / 2), 0, grid)


def symmetric_params(found: Range, grid: Grid) -> QuantParams:
    """Activations, symmetric: [0, high] on all levels if nothing is negative, else +-high with zero in the middle.

        low >= 0:  scale = high / 255,  zero_point = qmin
        else:      scale = high / 127,  zero_point = the middle of the grid (0 of int8, 128 of uint8)

    The second is NNCF's [-high * 128/127, high] on 256 levels; `high` is the largest absolute value. Floating-point grids have
    their zero in the middle always.
    """
    high = widen_zero_channels(np.maximum(found.high, -found.low))
    levels = grid.qmax - grid.qmin
    middle = grid.qmin + (levels + 1) // 2
    unsigned = (found.low >= 0) & isinstance(grid, IntType)
    scale = np.where(unsigned, high / np.float32(levels), high / np.float32(grid.qmax - middle))
    return QuantParams.of(scale, np.where(unsigned, grid.qmin, middle), grid)


def asymmetric_params(found: Range, grid: Grid) -> QuantParams:
    """Activations, asymmetric: the range, widened to hold 0 and so that 0 falls on the grid.

        q = round(-low * levels / (high - low));  the wider of  low' = q / (q - levels) * high  and
        high' = (q - levels) / q * low;  scale = (high - low) / levels;  zero_point = qmin + round(-low / scale)

    A range below 8e-4 is first widened by 8e-4 on both sides.

    Source: POT `tune_range`. When q is 0 or `levels` the range is left as it is and, as in the files that NNCF writes, the
    zero point is rounded, so that 0 is always on the grid.
    """
    levels = float(grid.qmax - grid.qmin)
    low, high = np.asarray(found.low, np.float64), np.asarray(found.high, np.float64)
    narrow = high - low <= SMALLEST_RANGE
    low, high = np.where(narrow, low - SMALLEST_RANGE, low), np.where(narrow, high + SMALLEST_RANGE, high)
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    q = np.round(-low * levels / (high - low))
    inside = (q > 0) & (q < levels)
    divisor = np.where(inside, q, 1.0)
    low_moved, high_moved = divisor / (divisor - levels) * high, (divisor - levels) / divisor * low
    move_low = inside & (high - low_moved > high_moved - low)
    low, high = np.where(move_low, low_moved, low), np.where(inside & ~move_low, high_moved, high)
    scale = (high - low) / levels
    zero_point = grid.qmin + np.clip(np.round(-low / scale), 0, levels)
    return QuantParams.of(scale, zero_point, grid)


def bias_params(input_scale: Any, weight_scale: np.ndarray) -> QuantParams:
    """A bias in int32 whose scale is that of the products it is added to: input_scale * weight_scale."""
    scale = (np.float32(np.asarray(input_scale).reshape(())) * np.asarray(weight_scale, np.float32)).astype(np.float32)
    return QuantParams.of(scale, 0, IntType(32))


CLIPPING = np.linspace(1.0, 0.3, 36)  # candidates for the least-squares range, as parts of each end of the full range


def histogram_values(counts: np.ndarray, exponent: int) -> np.ndarray:
    """The middle of each bin of `observers.Histogram`, float64 [bins]."""
    middle = len(counts) // 2
    return (np.arange(len(counts)) - middle + 0.5) * (2.0 ** float(exponent) / middle)


def least_squares_range(found: Range, counts: np.ndarray, exponent: int, scheme: Scheme) -> Range:
    """The range, within the full range `found`, with the least mean squared rounding and clipping error.

        argmin over candidates of  sum over bins of counts * (x - fake_quantize(x))^2

    The ends are searched in turn, each over `CLIPPING` parts of its full size, twice; symmetric ranges have one end. The
    values are known to the histogram's resolution, at most 1/1024 of the largest. The full range is among the candidates, so the
    error is never above that of min-max.

    Source: the criterion of Banner et al., arXiv:1810.05723, by search in place of a model of the distribution.
    """
    used = counts > 0
    values, weights = histogram_values(counts, exponent)[used], counts[used].astype(np.float64)
    grid = scheme.grid
    choose = symmetric_params if scheme.symmetric else asymmetric_params

    def error(low: float, high: float) -> float:
        params = choose(Range(np.float32(low), np.float32(high)), grid)
        scale, zero_point = np.float64(params.scale), np.float64(params.zero_point)
        q = np.clip(np.round(values / scale) + zero_point, grid.qmin, grid.qmax)
        return float((weights * ((q - zero_point) * scale - values) ** 2).sum())

    low, high = float(found.low), float(found.high)
    if scheme.symmetric:
        end = max(high, -low)
        part = CLIPPING[int(np.argmin([error(max(low, -end * c), end * c) for c in CLIPPING]))]
        return Range(np.float32(max(low, -end * part)), np.float32(end * part))
    best_low, best_high = low, high
    for _ in range(2):
        best_high = high * CLIPPING[int(np.argmin([error(best_low, high * c) for c in CLIPPING]))]
        best_low = low * CLIPPING[int(np.argmin([error(low * c, best_high) for c in CLIPPING]))]
    return Range(np.float32(best_low), np.float32(best_high))
