"""Sets the quantizers of a plan: activations from their statistics, weights from themselves, biases from both."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxq.algorithms.layer_errors import LayerErrors
from jaxq.engine.mapped import forget_pages
from jaxq.engine.model import Model
from jaxq.errors import CalibrationError, JaxqWarning
from jaxq.graph.ir import Graph, constants
from jaxq.graph.linear import Linear
from jaxq.graph.masks import bounded, floored, what_counts
from jaxq.numerics.activations import aggregated, distribution, ends, of_folds, refuse_not_finite, running, table
from jaxq.numerics.distance import worst_if_nan
from jaxq.numerics.estimators import AggregatorType, RangeEstimatorParameters, RangeEstimatorParametersSet
from jaxq.numerics.histograms import Distributions, Moments, ranges_of, squared_errors
from jaxq.numerics.observers import (
    BINS,
    ROOM,
    Histogram,
    Observer,
    both,
    channel_extremes,
    extremes,
    histogram,
    sample_statistics,
)
from jaxq.numerics.outliers import Outliers, outliers
from jaxq.numerics.quantizer import IntType, PerAxis, QuantParams, Scheme
from jaxq.numerics.ranges import Range, activation_params, aggregate, bias_params, clipped, own_bias_params
from jaxq.numerics.weights import weight_params
from jaxq.placement.fillers import NEAR, Filler, fillers, without
from jaxq.placement.plan import Bias, BiasForm, Plan

INT32_ROOM = 2.0**30  # a bias may take half of the int32 range; the sum of products has the other half
CANDIDATES = ("minmax", "mean_minmax", "mse", "percentile", "entropy")  # of AUTO; the first of equals is taken
FOLDS = 2  # parts of the samples between which AUTO cross-validates
JUDGED = 16  # samples that AUTO runs with each candidate


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Sets the encodings of the plan's activations and weights.

    Tensors of one group get the union of their ranges. Activations of which each channel has a range of its own take MINMAX
    where an estimator wants the whole distribution, as in nncf; so do the groups that the plan says must not be clipped.

    Args:
      plan: where the quantizers are, and of which kind.
      capacity: the number of samples, if it is known; memory for more grows by doubling.
      activations, weights: from statistics to ranges; see `jaxq.numerics.estimators`.
      unified_zero_point: whether all channels of an asymmetric weight have one zero point (POT for NPU).
      batch_size: samples that AUTO runs at a time, at most; None chooses.
    """

    plan: Plan
    capacity: int = ROOM
    activations: RangeEstimatorParameters = RangeEstimatorParametersSet.MSE
    weights: RangeEstimatorParameters = RangeEstimatorParametersSet.MINMAX
    unified_zero_point: bool = False
    batch_size: int | None = None

    def estimator(self, scheme: Scheme) -> RangeEstimatorParameters:
        """The estimator of an activation, every field filled in."""
        given, per_channel = self.activations, isinstance(scheme.granularity, PerAxis)
        if given.distribution and per_channel:
            given = self.clipping_alike(RangeEstimatorParametersSet.MINMAX)
        return given.completed(weights=False, symmetric=scheme.symmetric, per_channel=per_channel)

    def holds_all(self, scheme: Scheme) -> bool:
        """Whether the range holds everything that was seen, although an estimator would weigh clipping against rounding.

        On a grid of more levels than the histogram has bins, it would weigh the error of the bins: 16 bits gain nothing.
        """
        weighs = self.activations.distribution not in (None, AggregatorType.PERCENTILE)
        return weighs and isinstance(scheme.grid, IntType) and scheme.grid.qmax - scheme.grid.qmin > BINS // 2

    def clipping_alike(self, other: RangeEstimatorParameters) -> RangeEstimatorParameters:
        """Another estimator with the clipping values of this step's."""
        low, high = self.activations.min.clipping_value, self.activations.max.clipping_value
        return replace(other, min=replace(other.min, clipping_value=low), max=replace(other.max, clipping_value=high))

    def needs(self, model: Model) -> Mapping[str, Observer]:
        wanted = {
            name: self.observer(model, group, self.plan.schemes[group]) for name, group in self.plan.activations.items()
        }
        wanted |= {name: extremes(self.capacity) for name in self.plan.floors if name not in wanted}
        for name in self.plan.masked.intersection(wanted):
            axes = self.plan.floors.get(name)
            wanted[name] = bounded(wanted[name]) if axes is None else floored(wanted[name], axes)
        for name, filler in self.fillers(model.params).items():
            if name in wanted and not filler.counts:
                wanted[name] = without(wanted[name], filler)
        return wanted

    def fillers(self, params: Mapping[str, Any]) -> dict[str, Filler]:
        """The quantized tensors with huge constants in them, but for the masks of a Softmax."""
        found = fillers(self.plan.graph, {**params, **constants(self.plan.graph)})
        return {
            name: each for name, each in found.items() if name in self.plan.activations and name not in self.plan.masked
        }

    def warn_of_fillers(self, model: Model, found: Mapping[str, Range]) -> None:
        """Says which ranges still reach a huge constant: of one of each group."""
        told = set()
        for name, filler in self.fillers(model.params).items():
            group = self.plan.activations[name]
            if group in found and group not in told:
                end = float(np.min(found[group].low) if filler.value < 0 else np.max(found[group].high))
                if end / filler.value >= NEAR:
                    told.add(group)
                    warnings.warn(
                        f"the range of tensor {name!r} reaches {end:.4g}, because node {filler.node!r} puts {filler.value:.4g} "
                        "into it; smaller values have few steps left. Leave the nodes that read it in float (--ignore)",
                        JaxqWarning,
                        stacklevel=2,
                    )

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

    def apply(self, model: Model, stats: Mapping[str, Any], samples: Iterable[Mapping[str, Any]] = ()) -> Model:
        automatic = self.activations.distribution is AggregatorType.AUTO
        everything, stats = stats, {name: each for name, each in stats.items() if name in self.plan.activations}
        found = self.chosen_ranges(model, stats, samples) if automatic else self.group_ranges(self.ranges(stats))
        params = model.params
        if self.plan.masked:
            found, params = self.without_masks(found, everything, params)
        self.warn_of_fillers(model, found)
        encodings = {**model.encodings, **self.activation_encodings(model, found)}
        read = self.plan.read_in_float(encodings)
        for weight in self.plan.weights:
            if weight.name in read:
                continue
            value = np.asarray(params[weight.name])
            encodings[weight.name] = weight_params(
                weight.name, value, weight.scheme, self.weights, unified_zero_point=self.unified_zero_point
            )
            forget_pages(value)
        return model.replace(encodings=encodings, params=params)

    def without_masks(
        self, found: Mapping[str, Range], stats: Mapping[str, Any], params: Mapping[str, Any]
    ) -> tuple[dict[str, Range], dict[str, Any]]:
        """The ranges of the groups, and the params, without what counts for nothing in the Softmax behind it."""
        plan, ranges, numbers = self.plan, dict(found), dict(params)
        values = {**params, **constants(plan.graph)}
        seen: dict[str, tuple[float, float]] = {}
        for name, each in stats.items():
            low, high = each[0] if isinstance(each[0], tuple) else each
            if not np.isnan(low).all():
                seen[name] = float(np.nanmin(low)), float(np.nanmax(high))

        def bounds(name: str) -> tuple[float, float] | None:
            value = values.get(name)
            return seen.get(name) if value is None else (float(np.min(value)), float(np.max(value)))

        lows = {
            name: float(ranges[plan.activations[name]].low) if name in plan.activations else seen[name][0]
            for name in plan.floors
            if name in seen
        }
        limits = what_counts(plan.graph, values, lows, bounds)
        free = (-np.inf, np.inf)
        for group in {plan.activations[name] for name in limits if name in plan.activations and name in seen}:
            members = [name for name, each in plan.activations.items() if each == group and name in seen]
            ends_of = [np.clip(seen[name], *limits.get(name, free)) for name in members]
            if any(tuple(ends) != seen[name] for name, ends in zip(members, ends_of, strict=True)):
                low, high = min(each for each, _ in ends_of), max(each for _, each in ends_of)
                ranges[group] = Range(np.float32(low), np.float32(high))
        for weight in plan.weights:
            if weight.name in limits:
                low, high = limits[weight.name]
                numbers[weight.name] = np.clip(params[weight.name], np.float32(low), np.float32(high))
        return ranges, numbers

    def outlying(self, stats: Mapping[str, Any]) -> dict[str, Outliers]:
        """The tensors in which some samples reach values far beyond those of the others."""
        found = {}
        for name, each in stats.items():
            if name in self.plan.masked:
                continue
            seen: Any = each[0] if isinstance(each[0], tuple) else each
            found[name] = outliers(np.maximum(seen.high, -seen.low))
        return {name: each for name, each in found.items() if each is not None}

    def activation_encodings(self, model: Model, found: Mapping[str, Range]) -> dict[str, QuantParams]:
        """The quantizer of each tensor, from the ranges of the groups."""
        encodings = {}
        for name, group in self.plan.activations.items():
            if group in found:
                scheme = self.plan.schemes[group]
                ends_of_group = found[group]
                if isinstance(scheme.granularity, PerAxis):
                    channels, rank = channel_count(self.plan, model, group)
                    shape = [channels if axis == scheme.granularity.axis % rank else 1 for axis in range(rank)]
                    ends_of_group = Range(*(np.reshape(each, shape) for each in ends_of_group))
                encodings[name] = activation_params(ends_of_group, scheme)
        return encodings

    def group_ranges(self, ranges: Mapping[str, Range]) -> dict[str, Range]:
        """The union of the ranges of each group's tensors."""
        found: dict[str, Range] = {}
        for name, each in ranges.items():
            group = self.plan.activations[name]
            before = found.get(group, each)
            found[group] = Range(np.minimum(before.low, each.low), np.maximum(before.high, each.high))
        return found

    def ranges(self, stats: Mapping[str, Any]) -> dict[str, Range]:
        """The range of each tensor, scalars or float32 [channels]; none of a tensor that no sample had.

        Raises:
          CalibrationError: a value was not finite.
        """
        found: dict[str, Range] = {}
        waiting: dict[Scheme, dict[str, Distributions]] = {}
        for name, each in stats.items():
            group = self.plan.activations[name]
            scheme = self.plan.schemes[group]
            seen, rest = each if isinstance(each[0], tuple) else (each, None)
            refuse_not_finite(name, seen)
            real = ~np.isnan(seen.low)
            estimator = self.estimator(scheme)
            if not real.any():
                continue  # never made for any sample: a branch that was not taken stays in float
            if isinstance(rest, Histogram) and (group in self.plan.unclipped or self.holds_all(scheme)):
                found[name] = Range(aggregate(seen.low[real], "min"), aggregate(seen.high[real], "max"))
            elif estimator.distribution:
                assert isinstance(rest, Histogram), "it was asked for"
                waiting.setdefault(scheme, {})[name] = distribution(seen, rest, signed=scheme.centered)
            else:
                found[name] = aggregated(estimator, scheme, seen, None if isinstance(rest, Histogram) else rest, real)
        for scheme, tensors in waiting.items():
            estimator = self.estimator(scheme)
            assert estimator.distribution is not None, "only those wait"
            outlier = (estimator.min.quantile_outlier_prob or 0.0, estimator.max.quantile_outlier_prob or 0.0)
            low, high = ranges_of(
                estimator.distribution, table(tensors.values()), scheme.grid, scheme.symmetric, outlier
            )
            found |= {name: Range(low[row], high[row]) for row, name in enumerate(tensors)}
        return {name: clipped(each, self.activations, self._scheme(name).symmetric) for name, each in found.items()}

    def chosen_ranges(
        self, model: Model, stats: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]
    ) -> dict[str, Range]:
        """The ranges of the groups, each by the candidate that disturbs the layers behind it least.

            squared error of the tensor * (squared error at the layers' outputs / squared error of the tensor)

        All are relative to the squares of what is exact. The first factor is known of all samples, from their histograms; the
        quotient, how much of an error the layers let through, is measured on the first JUDGED ones. Both are cross-validated:
        the ranges are found from one part of the samples, and their errors taken on the other. Those of the winner are found
        anew from all samples.

        What must not be clipped, has ranges for its channels, or is on a floating-point grid, has the first candidate; so
        has everything where there are no samples to run.
        """
        for name, each in stats.items():
            refuse_not_finite(name, each[0])
        first = list(itertools.islice(samples, JUDGED))
        judged = {name: each for name, each in stats.items() if first and self._has_choice(name, each)}
        steps = [
            replace(self, activations=self.clipping_alike(RangeEstimatorParametersSet.of(each))) for each in CANDIDATES
        ]
        groups = {name: self.plan.activations[name] for name in judged}
        choice = dict.fromkeys(self.plan.activations.values(), 0)
        if judged:
            errors = self._errors(steps, model, judged, LayerErrors.of(model, groups, first[0]), first)
            for group in set(groups.values()):
                total = np.sum([errors[name] for name in judged if groups[name] == group], axis=0)
                choice[group] = int(worst_if_nan(total).argmin())
        found: dict[str, Range] = {}
        for row, step in enumerate(steps):
            mine = {name: each for name, each in stats.items() if choice[self.plan.activations[name]] == row}
            found |= self.group_ranges(step.ranges(in_folds(mine, range(FOLDS))))
        return found

    def _has_choice(self, name: str, seen: Any) -> bool:
        group = self.plan.activations[name]
        return (
            isinstance(seen[1], Histogram)
            and group not in self.plan.unclipped
            and isinstance(self.plan.schemes[group].grid, IntType)
            and not self.holds_all(self.plan.schemes[group])
        )

    def _errors(
        self,
        steps: Sequence[Calibration],
        model: Model,
        stats: Mapping[str, Any],
        layers: LayerErrors,
        samples: Sequence[Mapping[str, Any]],
    ) -> dict[str, np.ndarray]:
        """Of each tensor, what is to be least (`chosen_ranges`), for each of the steps [C]."""
        own = {name: np.zeros(len(steps)) for name in stats}
        measured: dict[str, Any] = dict.fromkeys(stats, 0.0)
        # No more than there are in a fold, the same for all: one program, and no padding.
        size = None if self.batch_size is None else min(self.batch_size, -(-len(samples) // FOLDS))
        for fold in range(FOLDS):
            others = in_folds(stats, [each for each in range(FOLDS) if each != fold])
            ranges = [step.group_ranges(step.ranges(others)) for step in steps]
            for name, error in self._squared_errors(ranges, in_folds(stats, [fold])).items():
                own[name] = own[name] + error
            unseen = samples[fold::FOLDS] if layers.squares else ()
            found = [layers.measure(self.activation_encodings(model, each), unseen, size) for each in ranges if unseen]
            for name in layers.squares if unseen else ():
                measured[name] = measured[name] + np.stack([each[name] for each in found])
        return {name: own[name] * let_through(measured[name]) for name in stats}

    def _squared_errors(self, ranges: Sequence[Mapping[str, Range]], stats: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The relative squared error of each tensor [C] when it is rounded to its group's ranges, of which there are C."""
        found: dict[str, np.ndarray] = {}
        schemes: dict[Scheme, list[str]] = {}
        for name in stats:
            if self.plan.activations[name] in ranges[0]:
                schemes.setdefault(self._scheme(name), []).append(name)
        for scheme, names in schemes.items():
            rows = table(distribution(*stats[name], signed=scheme.centered) for name in names)
            ends_of = [[each[self.plan.activations[name]] for each in ranges] for name in names]
            low, high = (np.array([[float(each[end]) for each in row] for row in ends_of]) for end in (0, 1))
            moments = Moments.of(rows)
            errors = squared_errors(moments, low, high, scheme.grid, scheme.symmetric)
            squares = np.maximum(moments.second[:, -1:], np.finfo(np.float64).tiny)
            found |= dict(zip(names, errors / squares, strict=True))
        return found

    def _scheme(self, name: str) -> Scheme:
        return self.plan.schemes[self.plan.activations[name]]


def in_folds(stats: Mapping[str, Any], folds: Collection[int]) -> dict[str, Any]:
    """What was seen in some of the folds of the samples; of tensors that have no folds, in all."""
    return {
        name: of_folds(each[0], each[1], folds) if isinstance(each[1], Histogram) else each
        for name, each in stats.items()
    }


def let_through(measured: np.ndarray | float) -> np.ndarray | float:
    """How much of a tensor's squared error is at its layers' outputs, both relative: [C, 1 + L, 2] -> [C].

    Measured by `LayerErrors`. 1 of a tensor that no layer reads or that could not be run; 0 where no float holds the
    squares of the outputs; infinite where a layer has outputs only as long as the tensor is not rounded.
    """
    if isinstance(measured, float) or measured.shape[1] == 1:
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = measured[..., 0] / measured[..., 1]
        found = relative[:, 1:].sum(1) / relative[:, 0]
    broken = (np.isinf(measured[..., 0]) & np.isfinite(measured[..., 1])).any(1)
    return np.where(broken, np.inf, np.where(np.isfinite(found), found, 0.0))


def channel_count(plan: Plan, model: Model, group: str) -> tuple[int, int]:
    """How many channels the tensors of a group have, and their rank, from a convolution that reads one of them.

    Raises:
      CalibrationError: no convolution with a known weight reads any of them.
    """
    members = {name for name, each in plan.activations.items() if each == group}
    for node in _nodes(plan.graph):
        linear = Linear.of(node, model.params) if node.op == "Conv" and node.inputs[0] in members else None
        if linear is not None:
            return linear.inputs, len(linear.shape)
    raise CalibrationError(
        f"tensor {min(members)!r} is to be quantized per channel, but no convolution reads it, which would "
        "tell how many it has; quantize it per tensor"
    )


def _nodes(graph: Graph) -> Iterator[Any]:
    return (node for _, node in graph.walk())


@dataclass(frozen=True)
class IntegerBiases:
    """Encodes the biases of the plan as their form says; after every step that moves them."""

    plan: Plan

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {}

    def apply(self, model: Model, stats: Mapping[str, Any], samples: object = None) -> Model:
        return model.replace(encodings=with_biases(model.encodings, model.params, self.plan.biases))


def with_biases(
    encodings: Mapping[str, QuantParams], params: Mapping[str, Any], biases: tuple[Bias, ...]
) -> dict[str, QuantParams]:
    """The encodings with those of the biases added, and weight scales raised where an int32 bias would overflow.

    A bias in units of input_scale * weight_scale needs more than int32 where a channel's weights are tiny and it is not: the
    channel's weight scale is raised until the bias fits, which costs only unused precision. So it is for one that stays in
    float, of which a runtime may make int32 by itself.
    """
    done = dict(encodings)
    biases = tuple(bias for bias in biases if bias.activation in done and bias.weight in done)
    for bias in biases:  # all of them first: biases may share a weight
        if bias.form is not BiasForm.OWN:
            weight, value = done[bias.weight], np.asarray(params[bias.name], np.float64)
            done[bias.weight] = with_room(weight, done[bias.activation].scale, value)
    for bias in biases:
        value = np.asarray(params[bias.name])
        if bias.form is BiasForm.PRODUCTS:
            flat = np.asarray(done[bias.weight].scale).reshape(-1)
            done[bias.name] = bias_params(done[bias.activation].scale, np.resize(flat, value.shape))
        elif bias.form is BiasForm.OWN:
            done[bias.name] = own_bias_params(value, INT32_ROOM)
    return done


def with_room(weight: QuantParams, input_scale: Any, bias: np.ndarray) -> QuantParams:
    """The encoding of a weight, its scales raised until |bias| <= INT32_ROOM * input_scale * scale.

    There are as many scales as output channels, or one for all, or one for those at the same place of each group.
    """
    scale = np.asarray(weight.scale)
    needed = np.abs(bias).reshape(-1) / (np.float64(np.asarray(input_scale).reshape(())) * INT32_ROOM)
    of_scale = np.resize(needed, (-(-needed.size // scale.size), scale.size)).max(0, initial=0.0)
    return replace(weight, scale=np.maximum(scale, of_scale.astype(np.float32).reshape(scale.shape)))
