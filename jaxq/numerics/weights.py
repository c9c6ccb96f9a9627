"""Ranges of weights, from the weights themselves: extremes, quantiles, least squares; per tensor, axis or block."""

from __future__ import annotations

import numpy as np

from jaxq.errors import CalibrationError, ConfigError
from jaxq.numerics.estimators import (
    AggregatorType,
    RangeEstimatorParameters,
    StatisticsCollectorParameters,
    StatisticsType,
)
from jaxq.numerics.quantizer import Granularity, Grid, IntType, PerAxis, PerBlock, QuantParams, Scheme
from jaxq.numerics.ranges import (
    Range,
    asymmetric_borders,
    asymmetric_params,
    clipped,
    signed_below_zero,
    symmetric_weight_params,
)

CLIPPING = np.linspace(1.0, 0.3, 36)  # candidates for the least-squares range, as parts of the full range
CHUNK = 1 << 16  # weights worked on at a time: they stay in the cache


def weight_params(
    name: str,
    weight: np.ndarray,
    scheme: Scheme,
    estimator: RangeEstimatorParameters,
    *,
    unified_zero_point: bool = False,
) -> QuantParams:
    """The quantizer of a weight; its scale has the weight's rank.

    MSE searches for each scale the part of the full range with the least squared error; PERCENTILE means the quantiles.

    Raises:
      CalibrationError: the weight has NaN or infinity.
      ConfigError: the estimator is one for activations.
    """
    refuse_not_finite(name, weight)
    rows, shape = scale_rows(np.asarray(weight, np.float32), scheme.granularity)
    found = clipped(weight_range(rows, scheme, estimator), estimator, scheme.symmetric)
    found = Range(*(np.asarray(each, np.float32).reshape(shape) for each in found))
    if scheme.symmetric:
        made = symmetric_weight_params(found.high, scheme.grid)
    else:
        made = asymmetric_params(found, scheme.grid, unified_zero_point=unified_zero_point)
    return signed_below_zero(made, scheme)  # as a constant in the place of an activation may be wanted


def refuse_not_finite(name: str, weight: np.ndarray) -> None:
    """Raises CalibrationError if the weight has NaN or infinity."""
    bad = weight.size - int(np.isfinite(weight).sum())
    if bad:
        raise CalibrationError(
            f"weight {name!r} has {bad} value(s) that are NaN or infinite; mend the model, or put the nodes that read it into "
            "the ignored scope",
            path=("model",),
        )


def scale_rows(weight: np.ndarray, granularity: Granularity) -> tuple[np.ndarray, tuple[int, ...]]:
    """The weight as [scales, values behind each], and the shape of its scale.

    Raises:
      ConfigError: the axis does not divide into blocks.
    """
    rank = weight.ndim
    if isinstance(granularity, PerAxis) and rank:
        axis = granularity.axis % rank
        shape = tuple(size if each == axis else 1 for each, size in enumerate(weight.shape))
        return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1), shape
    if isinstance(granularity, PerBlock):
        axis, length = granularity.axis % rank, weight.shape[granularity.axis]
        if length % granularity.size:
            raise ConfigError(f"{length} values along axis {axis} do not divide into groups of {granularity.size}")
        shape = (*weight.shape[:axis], length // granularity.size, *weight.shape[axis + 1 :])
        blocks = weight.reshape(*shape[: axis + 1], granularity.size, *shape[axis + 1 :])
        return np.moveaxis(blocks, axis + 1, -1).reshape(-1, granularity.size), shape
    return weight.reshape(1, -1), (1,) * rank


def weight_range(rows: np.ndarray, scheme: Scheme, estimator: RangeEstimatorParameters) -> Range:
    """The range of each row, float32 [scales]; of symmetric ones `high` is the end and `low` = -high."""
    if not rows.shape[1]:
        return Range(np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32))
    kind = estimator.distribution
    if kind is AggregatorType.MSE:
        return least_squares_weights(rows, scheme.grid, scheme.symmetric)
    if kind not in (None, AggregatorType.PERCENTILE):
        raise ConfigError(
            f"weights cannot take the range estimator {str(kind)!r}; expected extremes, quantiles, 'percentile' or 'mse'"
        )
    if kind is AggregatorType.PERCENTILE:
        low, high = (
            StatisticsCollectorParameters(StatisticsType.QUANTILE, None, None, each.quantile_outlier_prob)
            for each in (estimator.min, estimator.max)
        )
        estimator = RangeEstimatorParameters(low, high)
    full = estimator.completed(weights=True, symmetric=scheme.symmetric, per_channel=True)
    end = _statistic(rows, full.max, 1.0)
    if scheme.symmetric:
        return Range(-end, end)
    return Range(_statistic(rows, full.min, -1.0), end)


def _statistic(rows: np.ndarray, wanted: StatisticsCollectorParameters, side: float) -> np.ndarray:
    """The statistic of each row towards one side: 1 upwards, -1 downwards."""
    kind, outlier = wanted.statistics_type, wanted.quantile_outlier_prob or 0.0
    if kind in (StatisticsType.ABS_MAX, StatisticsType.ABS_QUANTILE):
        values = np.abs(rows)
    else:
        values = rows * np.float32(side)
    if kind in (StatisticsType.QUANTILE, StatisticsType.ABS_QUANTILE):
        return np.float32(side) * np.quantile(values, 1 - outlier, axis=1).astype(np.float32)
    if kind is StatisticsType.MEAN:
        return rows.mean(axis=1)
    return np.float32(side) * values.max(axis=1)


def least_squares_weights(rows: np.ndarray, grid: Grid, symmetric: bool) -> Range:
    """For each row the part c of its full range, of `CLIPPING`, with the least squared error of rounding and clipping.

    On a floating-point grid clipping gains nothing, and the range is the full one.

    Source: the criterion of Banner et al., arXiv:1810.05723, by search.
    """
    low, high = rows.min(1).astype(np.float64), rows.max(1).astype(np.float64)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    if not isinstance(grid, IntType):
        return Range(low, high)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    best = np.ones(len(rows))
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        errors = [_squared_error(rows[part], low[part] * c, high[part] * c, grid, symmetric) for c in CLIPPING]
        best[part] = CLIPPING[np.argmin(errors, axis=0)]
    return Range(low * best, high * best)


def _squared_error(rows: np.ndarray, low: np.ndarray, high: np.ndarray, grid: Grid, symmetric: bool) -> np.ndarray:
    if symmetric:
        scale = np.asarray(2 * high / (grid.qmax - grid.qmin))
        zero_point = np.full(scale.shape, (grid.qmin + grid.qmax + 1) // 2)
    else:
        scale, zero_point = asymmetric_borders(low, high, grid)
    step, offset = np.maximum(scale, 1e-30).astype(np.float32)[:, None], zero_point.astype(np.float32)[:, None]
    q = np.rint(rows / step)
    np.clip(q, grid.qmin - offset, grid.qmax - offset, out=q)
    q *= step
    q -= rows
    return np.einsum("ij,ij->i", q, q, dtype=np.float64)
