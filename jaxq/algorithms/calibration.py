"""Sets the quantizers of a plan: activations from their statistics, weights from themselves, biases from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from jaxq.errors import CalibrationError
from jaxq.model import Model
from jaxq.observers import Extremes, Histogram, Observer, both, extremes, histogram
from jaxq.placement import Bias, Plan
from jaxq.quantizer import QuantParams, Scheme
from jaxq.ranges import (
    Range,
    aggregate,
    asymmetric_params,
    bias_params,
    least_squares_range,
    symmetric_params,
    symmetric_weight_params,
    weight_absmax,
)

INT32_ROOM = 2.0**30  # a bias may take half of the int32 range; the sum of products has the other half


class RangeEstimator(StrEnum):
    """How the range of an activation follows from what was seen of it."""

    MEAN_MINMAX = "mean_minmax"  # mean over the samples of each sample's extremes: NNCF's default
    MINMAX = "minmax"  # extremes over all samples
    MSE = "mse"  # least squared rounding and clipping error


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Sets the encodings of the plan's activations and weights.

    Tensors of one group get the union of their ranges. Weights are symmetric, with the largest absolute value at the end of the
    narrow grid, per channel where the plan says so.

    Args:
      plan: where the quantizers are, and of which kind.
      capacity: the largest number of samples.
      estimator: from statistics to ranges.
    """

    plan: Plan
    capacity: int
    estimator: RangeEstimator = RangeEstimator.MEAN_MINMAX

    def needs(self, model: Model) -> Mapping[str, Observer]:
        observer = extremes(self.capacity)
        if self.estimator is RangeEstimator.MSE:
            observer = both(observer, histogram())
        return dict.fromkeys(self.plan.activations, observer)

    def apply(self, model: Model, stats: Mapping[str, Any], samples: object = None) -> Model:
        encodings: dict[str, QuantParams] = dict(model.encodings)
        found: dict[str, Range] = {}
        for name, group in self.plan.activations.items():
            each = self.range(name, stats[name], self.plan.schemes[group])
            if each is None:
                continue  # never made for any sample: a branch that was not taken stays in float
            before = found.get(group, each)
            found[group] = Range(np.minimum(before.low, each.low), np.maximum(before.high, each.high))
        for name, group in self.plan.activations.items():
            if group in found:
                scheme = self.plan.schemes[group]
                choose = symmetric_params if scheme.symmetric else asymmetric_params
                encodings[name] = choose(found[group], scheme.grid)
        for weight in self.plan.weights:
            value = np.asarray(model.params[weight.name])
            absmax = weight_absmax(value, weight.scheme.granularity)
            encodings[weight.name] = symmetric_weight_params(absmax, weight.scheme.grid)
        return model.replace(encodings=encodings)

    def range(self, name: str, stats: Any, scheme: Scheme) -> Range | None:
        """The range of one tensor as scalars; None if no sample had it.

        Raises:
          CalibrationError: a value was not finite.
        """
        seen: Extremes = stats[0] if self.estimator is RangeEstimator.MSE else stats
        refuse_not_finite(name, seen)
        real = ~np.isnan(seen.low)
        if not real.any():
            return None
        if self.estimator is RangeEstimator.MEAN_MINMAX:
            return Range(aggregate(seen.low[real], "mean"), aggregate(seen.high[real], "mean"))
        full = Range(aggregate(seen.low[real], "min"), aggregate(seen.high[real], "max"))
        if self.estimator is RangeEstimator.MINMAX:
            return full
        shape: Histogram = stats[1]
        return least_squares_range(full, np.asarray(shape.counts), int(shape.exponent), scheme)


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
