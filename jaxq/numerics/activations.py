"""From what was seen of an activation to its range: each sample's statistics, aggregated, or its whole distribution."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from jaxq.errors import CalibrationError
from jaxq.numerics.estimators import (
    AggregatorType,
    RangeEstimatorParameters,
    StatisticsCollectorParameters,
    StatisticsType,
)
from jaxq.numerics.histograms import Distributions
from jaxq.numerics.observers import Extremes, Histogram, SampleStatistic
from jaxq.numerics.quantizer import SMALLEST_SCALE, Scheme
from jaxq.numerics.ranges import Range, aggregate


def ends(estimator: RangeEstimatorParameters) -> Iterator[tuple[bool, StatisticsCollectorParameters, SampleStatistic]]:
    """(whether it is the lower end, its parameters, its statistic as the observer knows it), for both ends."""
    for lower, each in ((True, estimator.min), (False, estimator.max)):
        assert each.statistics_type is not None, "the estimator is complete"
        kind, outlier = StatisticsType(each.statistics_type), each.quantile_outlier_prob or 0.0
        downwards = lower and kind is StatisticsType.QUANTILE
        yield lower, each, SampleStatistic(kind.value, outlier if downwards else 1 - outlier)


def running(estimator: RangeEstimatorParameters) -> bool:
    """Whether the extremes over all samples are enough for the estimator, so that none of a single sample has to be kept."""
    low, high = estimator.min, estimator.max
    return (
        low.statistics_type == StatisticsType.MIN
        and low.aggregator_type == AggregatorType.MIN
        and high.statistics_type in (StatisticsType.MAX, StatisticsType.ABS_MAX)
        and high.aggregator_type == AggregatorType.MAX
    )


def aggregated(
    estimator: RangeEstimatorParameters, scheme: Scheme, seen: Extremes, rest: Any, real: np.ndarray
) -> Range:
    """The range from statistics of each sample, those where `real` [samples]: scalars, or float32 [channels]."""
    if rest is not None and not isinstance(rest, np.ndarray):  # extremes of the channels, over all samples
        low, high = rest
        return Range(low, np.maximum(high, -low) if scheme.symmetric else high)
    values = []
    for position, (lower, each, statistic) in enumerate(ends(estimator)):
        if rest is not None:
            samples = rest[real, position]
        elif statistic.kind == "abs_max":
            samples = np.maximum(seen.high[real], -seen.low[real])
        else:
            samples = (seen.low if statistic.kind == "min" else seen.high)[real]
        assert isinstance(each.aggregator_type, str), "the estimator is complete, and looks at samples"
        found = aggregate(samples, each.aggregator_type)
        values.append(-found if lower and statistic.kind.startswith("abs_") else found)
    low, high = values
    if scheme.symmetric:  # the lower end only tells whether anything is negative
        low = np.maximum(low, -high)
    return Range(np.minimum(low, high), high)


def of_folds(seen: Extremes, found: Histogram, folds: Collection[int]) -> tuple[Extremes, Histogram]:
    """What was seen of one tensor in some of the folds of the samples; a sample of another fold counts as not seen."""
    chosen = list(folds)
    there = np.isin(np.arange(len(seen.low)) % len(found.counts), chosen)
    extremes = Extremes(*(np.where(there, each, np.float32(np.nan)) for each in seen))
    counts, zeros = (np.asarray(each, np.int64)[chosen].sum(0) for each in (found.counts, found.zeros))
    return extremes, Histogram(counts, found.exponent, zeros)


def distribution(seen: Extremes, found: Histogram, *, signed: bool = False) -> Distributions:
    """What was seen of one tensor, as one row of a table; without samples, with the range [0, 0].

    `signed` makes it count as having negative values: those of a range that is centered have the steps of one that has.
    """
    real = ~np.isnan(seen.low)
    low, high = (seen.low[real].min(), seen.high[real].max()) if real.any() else (0.0, 0.0)
    if signed:
        low = min(low, -SMALLEST_SCALE)
    return Distributions(
        np.asarray(found.counts, np.float64),
        np.asarray(found.exponent, np.int64),
        np.asarray(found.zeros, np.float64),
        np.asarray(low, np.float64),
        np.asarray(high, np.float64),
    )


def table(rows: Iterable[Distributions]) -> Distributions:
    """The rows as one table."""
    return Distributions(*map(np.stack, zip(*rows, strict=True)))


def refuse_not_finite(name: str, seen: Extremes) -> None:
    """Raises CalibrationError if the tensor was NaN or infinite in a sample."""
    bad = np.isinf(seen.low) | np.isinf(seen.high)
    if bad.any():
        raise CalibrationError(
            f"tensor {name!r} is NaN or infinite in {bad.sum()} calibration sample(s), first in sample "
            f"{int(np.flatnonzero(bad)[0])} (counted from 0); run the float model on it, and leave such samples out"
        )
