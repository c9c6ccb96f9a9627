"""From statistics to ranges, and from ranges to scales and zero points. Plain numpy on small arrays.

Ranges follow NNCF and POT: what their users get there by the same names they get here. Where those have a known defect, the
docstring says what is done instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxq.numerics.estimators import AggregatorType, RangeEstimatorParameters
from jaxq.numerics.quantizer import Grid, IntType, QuantParams, Scheme

SMALLEST_RANGE = 8e-4  # an asymmetric range narrower than this is widened by it on both sides
SMALLEST_HIGH = 8e-5  # a symmetric range never ends below this
ZERO_CHANNEL_RATIO = 0.01  # nor below this part of the widest channel of the tensor
OUTLIERS = 0.01  # the part of the samples at each end that the aggregators "no_outliers" leave out
PAIRED = 2048  # samples of which the Hodges-Lehmann estimator takes all pairs


class Range(NamedTuple):
    """The ends of a float range: float32 arrays or scalars, with the shape of the scale."""

    low: Any
    high: Any


def aggregate(values: np.ndarray, how: AggregatorType | str) -> np.ndarray:
    """One number from one number per sample: values [samples, ...] -> [...], in an order-independent way.

    mean_no_outliers and median_no_outliers are over the samples v with  quantile(0.01) <= v <= quantile(0.99);  hl_estimator
    is the median of (v_i + v_j) / 2 over all pairs i < j (Hodges and Lehmann, 1963), and the value itself of a single sample.
    Of more than PAIRED samples it takes that many, evenly spread in size.

    Source: POT `statistics/functions/aggregation`. POT's "mean" averages the means of its batches, which differs where the last
    batch is short.
    """
    how = AggregatorType(how)
    # Sorted first: the float sum of a mean then does not depend on the order in which the samples came.
    ordered = np.sort(values.astype(np.float64), axis=0)
    if how in (AggregatorType.MEAN_NO_OUTLIERS, AggregatorType.MEDIAN_NO_OUTLIERS):
        low, high = np.quantile(ordered, [OUTLIERS, 1 - OUTLIERS], axis=0)
        kept = np.where((ordered >= low) & (ordered <= high), ordered, np.nan)
        kept = np.where(np.isnan(kept).all(0), ordered, kept)  # two samples: both are the most extreme
        found = np.nanmean(kept, axis=0) if how is AggregatorType.MEAN_NO_OUTLIERS else np.nanmedian(kept, axis=0)
    elif how is AggregatorType.HODGES_LEHMANN:
        found = np.apply_along_axis(_hodges_lehmann, 0, ordered)
    else:
        reduce: Callable[..., np.ndarray]
        reduce = {"mean": np.mean, "min": np.min, "max": np.max, "median": np.median}[how.value]  # type: ignore[assignment]
        found = reduce(ordered, axis=0)
    return np.asarray(found, np.float32)


def _hodges_lehmann(ordered: np.ndarray) -> float:
    """The median of the means of all pairs of different samples."""
    if len(ordered) > PAIRED:
        ordered = ordered[np.linspace(0, len(ordered) - 1, PAIRED).round().astype(np.int64)]
    if len(ordered) == 1:
        return float(ordered[0])
    first, second = np.triu_indices(len(ordered), 1)
    return float(np.median((ordered[first] + ordered[second]) / 2))


def clipped(found: Range, estimator: RangeEstimatorParameters, symmetric: bool) -> Range:
    """The range with its ends no farther than the estimator's clipping values; symmetric ones stay symmetric (POT's do not)."""
    low, high = estimator.min.clipping_value, estimator.max.clipping_value
    if symmetric:
        end = min(np.inf if low in (None, 0) else -low, np.inf if high in (None, 0) else high)
        return Range(np.maximum(found.low, 0 if low == 0 else -end), np.minimum(found.high, end))
    return Range(
        found.low if low is None else np.maximum(found.low, low),
        found.high if high is None else np.minimum(found.high, high),
    )


def widen_zero_channels(high: np.ndarray) -> np.ndarray:
    """Raises the ends of (nearly) empty symmetric ranges: high <- max(high, max(8e-5, 0.01 * widest channel)).

    Keeps the scale of an all-zero channel, and with it the int32 bias, at a sane size.

    Source: POT `fix_zero_filters_symmetric`.
    """
    high = np.asarray(high, np.float32)
    return np.maximum(high, np.float32(max(SMALLEST_HIGH, ZERO_CHANNEL_RATIO * float(high.max(initial=0.0)))))


def symmetric_weight_params(absmax: np.ndarray, grid: Grid) -> QuantParams:
    """Weights: zero in the middle and as many steps on both sides as the grid has room for.

    scale = 2 * absmax / (levels - 1):  absmax / 127 on the narrow grid of 8 bits, absmax / 448 on float8 E4M3

    On a grid that does not have its middle at zero (POT's level_low and level_high: any two integers), the zero point is in
    the middle.
    """
    scale = widen_zero_channels(absmax) / np.float32((grid.qmax - grid.qmin) / 2)
    return QuantParams.of(scale, (grid.qmin + grid.qmax + 1) // 2, grid)


def symmetric_params(found: Range, grid: Grid, *, centered: bool = False) -> QuantParams:
    """Activations, symmetric: [0, high] on all levels if nothing is negative, else +-high with zero in the middle.

        low >= 0:  scale = high / 255,  zero_point = qmin
        else:      scale = high / 127,  zero_point = the middle of the grid (0 of int8, 128 of uint8)

    The second is NNCF's [-high * 128/127, high] on 256 levels; `high` is the largest absolute value. Floating-point grids have
    their zero in the middle always, and so has what is `centered`.
    """
    high = widen_zero_channels(np.maximum(found.high, -found.low))
    signed = centered or (np.asarray(found.low) < 0).any()  # the channels of a tensor have one zero point
    low = np.where(signed, -high, 0)
    return QuantParams.of(*symmetric_borders(low, high, grid), grid)


def symmetric_borders(low: np.ndarray, high: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero point) of each symmetric range by itself; see `symmetric_params`."""
    high = np.maximum(np.maximum(high, -low), np.float32(SMALLEST_HIGH))
    levels = grid.qmax - grid.qmin
    middle = grid.qmin + (levels + 1) // 2
    unsigned = (low >= 0) & isinstance(grid, IntType)
    scale = np.where(unsigned, high / np.float32(levels), high / np.float32(grid.qmax - middle))
    return scale, np.where(unsigned, grid.qmin, middle)


def asymmetric_params(found: Range, grid: Grid, *, unified_zero_point: bool = False) -> QuantParams:
    """Asymmetric: the range, widened to hold 0 and so that 0 falls on the grid.

        q = round(-low * levels / (high - low));  the wider of  low' = q / (q - levels) * high  and
        high' = (q - levels) / q * low;  scale = (high - low) / levels;  zero_point = qmin + round(-low / scale)

    A range below 8e-4 is first widened by 8e-4 on both sides. With `unified_zero_point`, all channels have one: q is the mean
    of theirs.

    Source: POT `tune_range`. When q is 0 or `levels` POT leaves the range as it is, with 0 off the grid. Here, as in the
    files that NNCF writes, the zero point is rounded, so that 0 is always on the grid, and the range moves by less than half
    a step.
    """
    return QuantParams.of(*asymmetric_borders(found.low, found.high, grid, unified_zero_point), grid)


def on_grid(encoding: QuantParams, bits: int | None, *, signed: bool = False) -> QuantParams:
    """The quantizer of the same range on an integer grid of so many bits (None: as it is); on a signed one it is symmetric."""
    if bits is None:
        return encoding
    grid = IntType(bits, signed=signed, narrow=signed)
    scale, zero_point = np.asarray(encoding.scale, np.float64), np.asarray(encoding.zero_point, np.float64)
    low, high = ((end - zero_point) * scale for end in (float(encoding.qmin), float(encoding.qmax)))
    if signed:
        return QuantParams.of(np.maximum(np.abs(low), np.abs(high)) / grid.qmax, 0, grid)
    return asymmetric_params(Range(low, high), grid)


def asymmetric_borders(low: Any, high: Any, grid: Grid, unified: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero point) of each asymmetric range; see `asymmetric_params`."""
    levels = float(grid.qmax - grid.qmin)
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    narrow = high - low <= SMALLEST_RANGE
    low, high = np.where(narrow, low - SMALLEST_RANGE, low), np.where(narrow, high + SMALLEST_RANGE, high)
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    q = np.round(-low * levels / (high - low))
    if unified:
        q = np.full(q.shape, np.round(q.mean()))
    inside = (q > 0) & (q < levels)
    divisor = np.where(inside, q, 1.0)
    low_moved, high_moved = divisor / (divisor - levels) * high, (divisor - levels) / divisor * low
    move_low = inside & (high - low_moved > high_moved - low)
    low, high = np.where(move_low, low_moved, low), np.where(inside & ~move_low, high_moved, high)
    scale = (high - low) / levels
    return scale, grid.qmin + np.clip(np.round(-low / scale), 0, levels)


def activation_params(found: Range, scheme: Scheme) -> QuantParams:
    """Activations, as their scheme says."""
    if scheme.symmetric:
        made = symmetric_params(found, scheme.grid, centered=scheme.centered)
    else:
        made = asymmetric_params(found, scheme.grid)
    return signed_below_zero(made, scheme)


def signed_below_zero(params: QuantParams, scheme: Scheme) -> QuantParams:
    """The quantizer in signed integers, if its range goes below zero and the scheme wants such ones signed."""
    wanted = scheme.signed_below_zero and (params.zero_point > params.qmin).any()
    return signed(params, scheme.grid) if wanted else params


def signed(params: QuantParams, grid: Grid) -> QuantParams:
    """The same quantizer in signed integers: 0 to 255 with zero point 128 becomes -128 to 127 with zero point 0."""
    if not isinstance(grid, IntType) or grid.signed:
        return params
    half = 1 << (grid.bits - 1)
    shifted = IntType(grid.bits, levels=(grid.qmin - half, grid.qmax - half))
    return QuantParams.of(params.scale, params.zero_point - half, shifted)


def bias_params(input_scale: Any, weight_scale: np.ndarray) -> QuantParams:
    """A bias in int32 whose scale is that of the products it is added to: input_scale * weight_scale."""
    scale = (np.float32(np.asarray(input_scale).reshape(())) * np.asarray(weight_scale, np.float32)).astype(np.float32)
    return QuantParams.of(scale, 0, IntType(32))


def own_bias_params(bias: np.ndarray, room: float) -> QuantParams:
    """A bias [C] in int32 with a scale of its own: the smallest power of two with which no integer is above `room` (2**30).

    Float32 values within 2**6 of the largest one are kept exactly; of the others, what is lost is below 2**-30 of that.
    """
    largest = float(np.abs(np.asarray(bias, np.float64)).max(initial=0.0)) or 1.0
    scale = np.exp2(np.ceil(np.log2(largest / room)))
    return QuantParams.of(np.full((1,) * np.ndim(bias), scale), 0, IntType(32))
