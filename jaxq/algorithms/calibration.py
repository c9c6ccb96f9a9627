"""Sets the quantizers of a plan: activations from their statistics, weights from themselves, biases from both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxq.distributions import Distributions, ranges_of
from jaxq.errors import CalibrationError
from jaxq.estimators import (
    AggregatorType,
    RangeEstimatorParameters,
    RangeEstimatorParametersSet,
    StatisticsCollectorParameters,
    StatisticsType,
)
from jaxq.graph import Graph
from jaxq.mapped import forget_pages
from jaxq.model import Model
from jaxq.observers import (
    ROOM,
    Extremes,
    Histogram,
    Observer,
    SampleStatistic,
    both,
    channel_extremes,
    extremes,
    histogram,
    sample_statistics,
)
from jaxq.placement import Bias, Plan
from jaxq.quantizer import SMALLEST_SCALE, PerAxis, QuantParams, Scheme
from jaxq.ranges import Range, activation_params, aggregate, bias_params, clipped
from jaxq.weight_ranges import weight_params

INT32_ROOM = 2.0**30  # a bias may take half of the int32 range; the sum of products has the other half
FOLDS = 2  # parts of the samples between which "auto" cross-validates


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Sets the encodings of the plan's activations and weights.

    Tensors of one group get the union of their ranges. Activations of which each channel has a range of its own take MINMAX
    where an estimator wants the whole distribution, as in nncf; so do the groups that the plan says must not be clipped.

    Args:
      plan: where the quantizers are, and of which kind.
      capacity: the number of samples, if it is known; memory for more grows by doubling.
      activations, weights: from statistics to ranges; see `jaxq.estimators`.
      unified_zero_point: whether all channels of an asymmetric weight have one zero point (POT for NPU).
    """

    plan: Plan
    capacity: int = ROOM
    activations: RangeEstimatorParameters = RangeEstimatorParametersSet.MSE
    weights: RangeEstimatorParameters = RangeEstimatorParametersSet.MINMAX
    unified_zero_point: bool = False

    def estimator(self, scheme: Scheme) -> RangeEstimatorParameters:
        """The estimator of an activation, every field filled in."""
        given, per_channel = self.activations, isinstance(scheme.granularity, PerAxis)
        if given.distribution and per_channel:
            given = replace(
                RangeEstimatorParametersSet.MINMAX,
                min=replace(RangeEstimatorParametersSet.MINMAX.min, clipping_value=given.min.clipping_value),
                max=replace(RangeEstimatorParametersSet.MINMAX.max, clipping_value=given.max.clipping_value),
            )
        return given.completed(weights=False, symmetric=scheme.symmetric, per_channel=per_channel)

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {
            name: self.observer(model, group, self.plan.schemes[group]) for name, group in self.plan.activations.items()
        }

    def observer(self, model: Model, group: str, scheme: Scheme) -> Observer:
        """What is to be seen of a tensor: always its extremes, which show what is not finite, and what the estimator wants."""
        estimator, seen = self.estimator(scheme), extremes(self.capacity)
        if estimator.distribution:
            return both(seen, histogram(FOLDS if estimator.distribution is AggregatorType.AUTO else None))
        channels = None
        if isinstance(scheme.granularity, PerAxis):
            channels = channel_count(self.plan, model, group)
            if running(estimator):
                return both(seen, channel_extremes(channels[0], scheme.granularity.axis))
        wanted = tuple(statistic for _, _, statistic in ends(estimator))
        if channels is None and not any(each.kind in ("mean", "quantile", "abs_quantile") for each in wanted):
            return seen
        axis = scheme.granularity.axis if isinstance(scheme.granularity, PerAxis) else 1
        return both(seen, sample_statistics(wanted, self.capacity, channels and channels[0], axis))

    def apply(self, model: Model, stats: Mapping[str, Any], samples: object = None) -> Model:
        encodings: dict[str, QuantParams] = dict(model.encodings)
        found: dict[str, Range] = {}
        for name, each in self.ranges(stats).items():
            group = self.plan.activations[name]
            before = found.get(group, each)
            found[group] = Range(np.minimum(before.low, each.low), np.maximum(before.high, each.high))
        for name, group in self.plan.activations.items():
            if group in found:
                scheme = self.plan.schemes[group]
                ends_of_group = found[group]
                if isinstance(scheme.granularity, PerAxis):
                    channels, rank = channel_count(self.plan, model, group)
                    shape = [channels if axis == scheme.granularity.axis % rank else 1 for axis in range(rank)]
                    ends_of_group = Range(*(np.reshape(each, shape) for each in ends_of_group))
                encodings[name] = activation_params(ends_of_group, scheme)
        for weight in self.plan.weights:
            value = np.asarray(model.params[weight.name])
            encodings[weight.name] = weight_params(
                weight.name, value, weight.scheme, self.weights, unified_zero_point=self.unified_zero_point
            )
            forget_pages(value)
        return model.replace(encodings=encodings)

    def ranges(self, stats: Mapping[str, Any]) -> dict[str, Range]:
        """The range of each tensor, scalars or float32 [channels]; none of a tensor that no sample had.

        Raises:
          CalibrationError: a value was not finite.
        """
        found: dict[str, Range] = {}
        waiting: dict[Scheme, dict[str, list[Distributions]]] = {}
        for name, group in self.plan.activations.items():
            scheme = self.plan.schemes[group]
            seen, rest = stats[name] if isinstance(stats[name][0], tuple) else (stats[name], None)
            refuse_not_finite(name, seen)
            real = ~np.isnan(seen.low)
            if not real.any():
                continue  # never made for any sample: a branch that was not taken stays in float
            if isinstance(rest, Histogram) and group in self.plan.unclipped:
                found[name] = Range(aggregate(seen.low[real], "min"), aggregate(seen.high[real], "max"))
            elif isinstance(rest, Histogram):
                waiting.setdefault(scheme, {})[name] = folds_of(seen, rest, signed=scheme.centered)
            else:
                found[name] = aggregated(self.estimator(scheme), scheme, seen, rest, real)
        for scheme, tensors in waiting.items():
            estimator = self.estimator(scheme)
            aggregator = estimator.distribution
            assert aggregator is not None, "only those ask for a histogram"
            folds = [
                Distributions(*map(np.stack, zip(*parts, strict=True))) for parts in zip(*tensors.values(), strict=True)
            ]
            outlier = tuple(each.quantile_outlier_prob or 0.0 for each in (estimator.min, estimator.max))
            low, high = ranges_of(aggregator, folds, scheme.grid, scheme.symmetric, outlier)  # type: ignore[arg-type]
            found |= {name: Range(low[row], high[row]) for row, name in enumerate(tensors)}
        return {name: clipped(each, self.activations, self._scheme(name).symmetric) for name, each in found.items()}

    def _scheme(self, name: str) -> Scheme:
        return self.plan.schemes[self.plan.activations[name]]


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
        assert each.aggregator_type is not None, "the estimator is complete"
        found = aggregate(samples, each.aggregator_type)
        values.append(-found if lower and statistic.kind.startswith("abs_") else found)
    low, high = values
    if scheme.symmetric:  # the lower end only tells whether anything is negative
        low = np.maximum(low, -high)
    return Range(np.minimum(low, high), high)


def folds_of(seen: Extremes, found: Histogram, *, signed: bool = False) -> list[Distributions]:
    """What was seen of one tensor, by folds; a fold without samples has the range [0, 0].

    `signed` makes it count as having negative values: those of a range that is centered have the steps of one that has.
    """
    counts, zeros = (np.asarray(each, np.float64) for each in (found.counts, found.zeros))
    if counts.ndim == 1:
        counts, zeros = counts[None], zeros[None]
    parts = []
    for fold in range(len(counts)):
        low, high = (each[fold :: len(counts)] for each in seen)
        real = ~np.isnan(low)
        ends_of_fold = (low[real].min(), high[real].max()) if real.any() else (0.0, 0.0)
        if signed:
            ends_of_fold = (min(ends_of_fold[0], -SMALLEST_SCALE), ends_of_fold[1])
        parts.append(
            Distributions(
                counts[fold],
                np.asarray(found.exponent, np.int64),
                zeros[fold],
                *map(np.asarray, map(np.float64, ends_of_fold)),
            )
        )
    return parts


def channel_count(plan: Plan, model: Model, group: str) -> tuple[int, int]:
    """How many channels the tensors of a group have, and their rank, from a convolution that reads one of them.

    Raises:
      CalibrationError: no convolution with a known weight reads any of them.
    """
    members = {name for name, each in plan.activations.items() if each == group}
    for node in _nodes(plan.graph):
        if node.op == "Conv" and node.inputs[0] in members and node.inputs[1] in model.params:
            shape = np.shape(model.params[node.inputs[1]])
            return shape[1] * int(node.attributes.get("group", 1)), len(shape)
    raise CalibrationError(
        f"tensor {min(members)!r} is to be quantized per channel, but no convolution reads it, which would "
        "tell how many it has; quantize it per tensor"
    )


def _nodes(graph: Graph) -> Iterator[Any]:
    return (node for _, node in graph.walk())


@dataclass(frozen=True)
class IntegerBiases:
    """Encodes the biases of the plan as int32, in units of input_scale * weight_scale; after every step that moves them."""

    plan: Plan

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {}

    def apply(self, model: Model, stats: Mapping[str, Any], samples: object = None) -> Model:
        return model.replace(encodings=with_biases(model.encodings, model.params, self.plan.biases))


def refuse_not_finite(name: str, seen: Extremes) -> None:
    """Raises CalibrationError if the tensor was NaN or infinite in a sample."""
    bad = np.isinf(seen.low) | np.isinf(seen.high)
    if bad.any():
        raise CalibrationError(
            f"tensor {name!r} is NaN or infinite in {bad.sum()} calibration sample(s), first in sample "
            f"{int(np.flatnonzero(bad)[0])} (counted from 0); run the float model on it, and leave such samples out"
        )


def with_biases(
    encodings: Mapping[str, QuantParams], params: Mapping[str, Any], biases: tuple[Bias, ...]
) -> dict[str, QuantParams]:
    """The encodings with those of the biases added, and weight scales raised where an int32 bias would overflow.

    A bias is kept in units of input_scale * weight_scale. Where a channel's weights are tiny and its bias is not, that would
    need more than int32: the channel's weight scale is raised until the bias fits, which costs only unused precision.
    """
    done = dict(encodings)
    biases = tuple(bias for bias in biases if bias.activation in done)
    for bias in biases:  # all of them first: biases may share a weight
        value = np.abs(np.asarray(params[bias.name], np.float64))
        activation, weight = done[bias.activation], done[bias.weight]
        needed = value / (np.float64(np.asarray(activation.scale).reshape(())) * INT32_ROOM)
        flat = np.asarray(weight.scale).reshape(-1)
        if flat.size != value.size:
            needed = np.full(flat.shape, needed.max(initial=0.0))
        raised = np.maximum(flat, needed.astype(np.float32)).reshape(weight.scale.shape)
        done[bias.weight] = replace(weight, scale=raised)
    for bias in biases:
        flat = np.asarray(done[bias.weight].scale).reshape(-1)
        done[bias.name] = bias_params(done[bias.activation].scale, np.broadcast_to(flat, np.shape(params[bias.name])))
    return done
