"""How a range follows from what was seen of a tensor: names, defaults, and what may be combined.

The names are nncf's, with its values as strings; POT's presets are there by name. Each end of a range has a statistic (one
number from each sample) and an aggregator (one number from those of all samples). Estimators that read the whole distribution
(a histogram) have the statistic RAW at both ends; a function in the place of the aggregator is such an estimator, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from jaxq.checks import check_number, member
from jaxq.errors import ConfigError, Option, did_you_mean

OUTLIER_PROBABILITY = 1e-4  # the part of the values that lies beyond a quantile, at each end
LARGEST_OUTLIER_PROBABILITY = 0.4999


class StatisticsType(StrEnum):
    """One number from each sample of a tensor."""

    MAX = "max"
    MIN = "min"
    ABS_MAX = "abs_max"
    QUANTILE = "quantile"  # of probability p at the lower end, 1 - p at the upper
    ABS_QUANTILE = "abs_quantile"  # of probability 1 - p, of the absolute values
    MEAN = "mean"
    RAW = "raw"  # the distribution itself, for an aggregator that reads it


class AggregatorType(StrEnum):
    """One number from those of all samples; or, from HISTOGRAM on, the ends of a range from a distribution."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"
    MEDIAN = "median"
    MEAN_NO_OUTLIERS = "mean_no_outliers"
    MEDIAN_NO_OUTLIERS = "median_no_outliers"
    HODGES_LEHMANN = "hl_estimator"
    HISTOGRAM = "histogram"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"
    AUTO = "auto"


class RangeEstimatorPreset(StrEnum):
    """POT's `range_estimator.preset`: what stands for the fields that are not given."""

    DEFAULT = "default"
    QUANTILE = "quantile"


DISTRIBUTION = frozenset(
    {
        AggregatorType.HISTOGRAM,
        AggregatorType.PERCENTILE,
        AggregatorType.MSE,
        AggregatorType.ENTROPY,
        AggregatorType.AUTO,
    }
)
QUANTILES = frozenset({StatisticsType.QUANTILE, StatisticsType.ABS_QUANTILE})

Kind = TypeVar("Kind", bound=StrEnum)

# (distributions of T tensors, integer grid, symmetric) -> (low [T], high [T]): `jaxq.numerics.histograms`.
RangeFunction = Callable[[Any, Any, bool], Any]


@dataclass(frozen=True)
class StatisticsCollectorParameters:
    """How one end of a range is found. None: the default for the tensor's kind (`RangeEstimatorParameters.completed`).

    Attributes:
      statistics_type: one number from each sample.
      aggregator_type: one number from those of all samples; or a function that finds both ends from the distribution.
      clipping_value: the end never lies beyond this (an upper bound of the upper end, a lower bound of the lower end), except
      for less
        than a step, to keep 0 on the grid. In nncf the parameter has no effect.
      quantile_outlier_prob: the part of the values beyond the end, for quantiles and percentiles; at least 0, below 0.5. It does
        not change the aggregators "no_outliers", which leave out 1 % at each end as POT documents (nncf: this probability).

    Raises:
      ConfigError: a value is wrong, or values do not go together; the message gives the nearest that is right.
    """

    statistics_type: StatisticsType | str | None = None
    aggregator_type: AggregatorType | str | RangeFunction | None = None
    clipping_value: float | None = None
    quantile_outlier_prob: float | None = OUTLIER_PROBABILITY

    def __post_init__(self) -> None:
        if self.statistics_type is not None:
            found = member(StatisticsType, "statistics_type", self.statistics_type)
            object.__setattr__(self, "statistics_type", found)
        if isinstance(self.aggregator_type, str) or not (
            self.aggregator_type is None or callable(self.aggregator_type)
        ):
            object.__setattr__(self, "aggregator_type", member(AggregatorType, "aggregator_type", self.aggregator_type))
        if self.clipping_value is not None:
            check_number("clipping_value", self.clipping_value)
        self._check_probability()
        self._check_combination()

    def _check_probability(self) -> None:
        probability = self.quantile_outlier_prob
        if probability is None:
            if self.statistics_type in QUANTILES or self.aggregator_type is AggregatorType.PERCENTILE:
                kind = self.statistics_type or self.aggregator_type
                raise ConfigError(
                    Option(("quantile_outlier_prob",), None),
                    f" with {kind}; a quantile needs it: {OUTLIER_PROBABILITY} is usual",
                )
            return
        check_number("quantile_outlier_prob", probability)
        if not 0 <= probability < 0.5:
            nearest = 0.0 if probability < 0 else LARGEST_OUTLIER_PROBABILITY
            rest = 100 - probability if probability > 1 else 1 - probability
            usual = rest / 100 if probability > 1 else rest
            meant = f"; for the quantile {probability}, write {usual:.6g}" if 0 < usual < 0.5 else ""
            raise ConfigError(
                Option(("quantile_outlier_prob",), probability),
                "; expected at least 0 and less than 0.5, the part of the values beyond the end (the nearest: "
                f"{nearest}){meant}",
            )

    def _check_combination(self) -> None:
        statistic, aggregator = self.statistics_type, self.aggregator_type
        if reads_distribution(aggregator) and statistic not in (None, StatisticsType.RAW):
            raise ConfigError(
                Option(("aggregator_type",), str(aggregator)),
                " reads the whole distribution; ",
                Option(("statistics_type",)),
                f" must be 'raw' or left out, not {str(statistic)!r}",
            )
        if statistic is StatisticsType.RAW and aggregator is not None and not reads_distribution(aggregator):
            raise ConfigError(
                Option(("aggregator_type",), str(aggregator)),
                " cannot aggregate ",
                Option(("statistics_type",)),
                f" 'raw'; with 'raw', one of {sorted(map(str, DISTRIBUTION))}",
            )


def reads_distribution(aggregator: object) -> bool:
    """Whether an aggregator finds both ends of a range from the distribution."""
    return aggregator in DISTRIBUTION or (callable(aggregator) and not isinstance(aggregator, str))


def _text(kind: object) -> str | None:
    return None if kind is None else str(kind)


@dataclass(frozen=True)
class RangeEstimatorParameters:
    """How the two ends of a range are found.

    Attributes:
      min, max: the ends. In symmetric mode `max` is the distance of both ends from zero, and `min` only decides whether
      anything is
        negative; MAX and QUANTILE of `max` then mean ABS_MAX and ABS_QUANTILE (POT and nncf would cut off the negative side).
      preset: what stands for the fields that are None: POT's "default" or "quantile", or, without one, nncf's defaults.

    Raises:
      ConfigError: the ends do not go together.
    """

    min: StatisticsCollectorParameters = StatisticsCollectorParameters()
    max: StatisticsCollectorParameters = StatisticsCollectorParameters()
    preset: RangeEstimatorPreset | str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None:
            object.__setattr__(self, "preset", member(RangeEstimatorPreset, "preset", self.preset))
        if self.min.statistics_type is StatisticsType.MAX:
            raise ConfigError(
                Option(("min", "statistics_type"), "max"),
                ": the lower end cannot be the largest value; did you mean 'min'?",
            )
        if self.max.statistics_type is StatisticsType.MIN:
            raise ConfigError(
                Option(("max", "statistics_type"), "min"),
                ": the upper end cannot be the smallest value; did you mean 'max'?",
            )
        low, high = self.min.clipping_value, self.max.clipping_value
        if (low is not None and low > 0) or (high is not None and high < 0) or (low == 0 and high == 0):
            raise ConfigError(
                Option(("min", "clipping_value"), low),
                " and ",
                Option(("max", "clipping_value"), high),
                "; a range holds 0: expected min <= 0 <= max, not both 0",
            )
        wanted = [each.aggregator_type for each in (self.min, self.max)]
        if any(map(reads_distribution, wanted)) and wanted[0] is not wanted[1]:
            whole = next(filter(reads_distribution, wanted))
            raise ConfigError(
                Option(("min", "aggregator_type"), _text(wanted[0])),
                " and ",
                Option(("max", "aggregator_type"), _text(wanted[1])),
                f"; {str(whole)!r} finds both ends at once: give it for both",
            )

    @property
    def distribution(self) -> AggregatorType | RangeFunction | None:
        """The aggregator that reads the whole distribution, or None."""
        how = self.max.aggregator_type
        if isinstance(how, str):
            return AggregatorType(how) if how in DISTRIBUTION else None
        return how

    def completed(self, *, weights: bool, symmetric: bool, per_channel: bool) -> RangeEstimatorParameters:
        """These parameters with every field filled in, for a kind of tensor.

        | tensor | nncf | POT "default" | POT "quantile" |
        |---|---|---|---|
        | activation, symmetric | min mean, abs_max mean | min min, abs_max mean | min min, abs_quantile mean |
        | activation, asymmetric | min mean, max mean | the same | quantile mean, quantile mean |
        | activation per channel | min min, max max | the same | quantile min, quantile max |
        | weight | min, max | the same | quantile |

        Per channel and for weights, symmetric: abs_max (abs_quantile) in place of max, and a plain min. Source: pot
        `range_estimator`, nncf `RangeEstimatorParametersSet` and `MinMaxQuantization`.
        """
        if self.distribution:
            raw = StatisticsType.RAW
            return replace(self, min=replace(self.min, statistics_type=raw), max=replace(self.max, statistics_type=raw))
        quantile = self.preset is RangeEstimatorPreset.QUANTILE
        averaged = not weights and not per_channel
        low = StatisticsType.QUANTILE if quantile and not symmetric else StatisticsType.MIN
        high = StatisticsType.QUANTILE if quantile else StatisticsType.MAX
        least = (self.preset is not None and symmetric) or not averaged
        end = _filled(self.max, high, AggregatorType.MEAN if averaged else AggregatorType.MAX)
        if symmetric:
            absolute = {
                StatisticsType.MAX: StatisticsType.ABS_MAX,
                StatisticsType.QUANTILE: StatisticsType.ABS_QUANTILE,
            }
            kind = StatisticsType(end.statistics_type or high)
            end = replace(end, statistics_type=absolute.get(kind, kind))
        return replace(self, min=_filled(self.min, low, AggregatorType.MIN if least else AggregatorType.MEAN), max=end)


def _filled(
    given: StatisticsCollectorParameters, statistic: StatisticsType, aggregator: AggregatorType
) -> StatisticsCollectorParameters:
    return replace(
        given,
        statistics_type=given.statistics_type or statistic,
        aggregator_type=given.aggregator_type or aggregator,
    )


def both_ends(
    low: StatisticsType, high: StatisticsType, lower: AggregatorType, upper: AggregatorType | None = None
) -> RangeEstimatorParameters:
    """The parameters of a range with these statistics and aggregators."""
    return RangeEstimatorParameters(
        StatisticsCollectorParameters(low, lower), StatisticsCollectorParameters(high, upper or lower)
    )


class RangeEstimatorParametersSet:
    """Estimators by name. The first six are nncf's; the others read the distribution, as HISTOGRAM does.

    PERCENTILE leaves out `quantile_outlier_prob` of all values at each end; MSE has the least squared error of rounding and
    clipping; ENTROPY the least divergence (Migacz, GTC 2017); AUTO chooses one of these and others for each tensor, by
    what it does to the layers behind (`jaxq.algorithms.calibration`). See `jaxq.numerics.histograms`.
    """

    MINMAX = both_ends(StatisticsType.MIN, StatisticsType.MAX, AggregatorType.MIN, AggregatorType.MAX)
    MEAN_MINMAX = both_ends(StatisticsType.MIN, StatisticsType.MAX, AggregatorType.MEAN)
    MEDIAN_MINMAX = both_ends(StatisticsType.MIN, StatisticsType.MAX, AggregatorType.MEDIAN)
    MEAN_NO_OUTLIERS_MINMAX = both_ends(StatisticsType.MIN, StatisticsType.MAX, AggregatorType.MEAN_NO_OUTLIERS)
    MEAN_QUANTILE = both_ends(StatisticsType.QUANTILE, StatisticsType.QUANTILE, AggregatorType.MEAN)
    HISTOGRAM = both_ends(StatisticsType.RAW, StatisticsType.RAW, AggregatorType.HISTOGRAM)
    PERCENTILE = both_ends(StatisticsType.RAW, StatisticsType.RAW, AggregatorType.PERCENTILE)
    MSE = both_ends(StatisticsType.RAW, StatisticsType.RAW, AggregatorType.MSE)
    ENTROPY = both_ends(StatisticsType.RAW, StatisticsType.RAW, AggregatorType.ENTROPY)
    AUTO = both_ends(StatisticsType.RAW, StatisticsType.RAW, AggregatorType.AUTO)

    @classmethod
    def items(cls) -> Iterator[tuple[str, RangeEstimatorParameters]]:
        """(name in lower case, parameters) of each."""
        return ((k.lower(), v) for k, v in vars(cls).items() if isinstance(v, RangeEstimatorParameters))

    @classmethod
    def of(cls, value: Any, key: str = "range_estimator") -> RangeEstimatorParameters:
        """The parameters themselves, or those with that name ("mse", "mean_minmax", ...), or those of a function.

        Raises:
          ConfigError: there is none of that name; the message gives the nearest.
        """
        if isinstance(value, RangeEstimatorParameters):
            return value
        named = dict(cls.items())
        if isinstance(value, str) and value.lower() in named:
            return named[value.lower()]
        if callable(value):
            end = StatisticsCollectorParameters(StatisticsType.RAW, value)
            return RangeEstimatorParameters(end, end)
        raise ConfigError(Option((key,), value), f"; expected one of {list(named)}{did_you_mean(str(value), named)}")

    @classmethod
    def name(cls, parameters: RangeEstimatorParameters) -> str:
        """The name of these parameters, or what they are made of if they have none."""
        for name, each in cls.items():
            if each == parameters:
                return name
        return ", ".join(
            f"{end} {part.statistics_type or 'default'} {part.aggregator_type or 'default'}"
            for end, part in (("min", parameters.min), ("max", parameters.max))
        )


def _quantiles() -> Iterator[tuple[str, RangeEstimatorParameters]]:
    """POT's grid for the ranges of activations: each end the extreme of all samples, or the mean of their quantiles."""
    mean = AggregatorType.MEAN
    lows = {"min": StatisticsCollectorParameters(StatisticsType.MIN, AggregatorType.MIN)}
    highs = {"max": StatisticsCollectorParameters(StatisticsType.MAX, AggregatorType.MAX)}
    for part in (1e-3, 1e-4):
        end = StatisticsCollectorParameters(StatisticsType.QUANTILE, mean, quantile_outlier_prob=part)
        lows[f"quantile {part:g}"], highs[f"quantile {1 - part:g}"] = end, end
    for low, high in itertools.product(lows, highs):
        if (low, high) != ("min", "max"):  # that is minmax
            yield f"{low} to {high}", RangeEstimatorParameters(lows[low], highs[high])


QUANTILE_GRID = dict(_quantiles())
