"""Moves and stretches the channels between two convolutions until they lie over each other, so that one range fits all."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.model import Model
from jaxq.graph.ir import Graph, Node
from jaxq.graph.linear import Linear, owned
from jaxq.numerics.observers import Observer

OUTLIERS = 1e-4  # the part of a channel's values at either end that does not count
FACTORS = (1e-2, 1e2)  # the least and the largest factor of a channel


@dataclass(frozen=True, kw_only=True)
class ChannelAlignment:
    """Gives each channel between two convolutions, with no activation function between them, the middle 0 and the median width.

        middle = (low + high) / 2,   bias_before -= middle,   bias_after += sum over taps and inputs of W_after * middle
        factor = width / median width,   W_before /= factor,   bias_before /= factor,   W_after *= factor

    low and high are each channel's quantiles at 1e-4 and 1 - 1e-4, the median over the samples. The function of the float model
    does not change. A factor is between 1/100 and 100; a channel without width keeps 1.

    Source: ActivationChannelAlignment of POT, ChannelAlignment of NNCF. They ask the second convolution for stride and
    dilation 1 and to be the only reader; here several convolutions may read, with any stride, and only padding is
    refused, since a moved channel is no longer padded with its zero.

    Args:
      samples: how many samples the quantiles are taken from.
    """

    samples: int = 64

    def needs(self, model: Model) -> Mapping[str, Observer]:
        found = pairs(model.graph, model.params)
        return {pair.tensor: channel_quantiles(self.samples, pair.before.outputs) for pair in found}

    def apply(self, model: Model, stats: Mapping[str, Quantiles], samples: object = None) -> Model:
        params = dict(model.params)
        for pair in pairs(model.graph, model.params):
            seen = stats[pair.tensor]
            real = ~np.isnan(seen.low).any(axis=1) & np.isfinite(seen.low + seen.high).all(axis=1)
            if real.any():
                low, high = (np.median(each[real].astype(np.float64), axis=0) for each in seen)
                align(pair, low, high, params)
        return model.replace(params=params)


@dataclass(frozen=True)
class AlignedPair:
    """A convolution and those that read it, without padding, and nothing else does."""

    before: Linear
    after: tuple[Linear, ...]

    @property
    def tensor(self) -> str:
        """What `before` makes."""
        return self.before.node.outputs[0]


def pairs(graph: Graph, params: Mapping[str, Any]) -> Iterator[AlignedPair]:
    """Every convolution whose output only convolutions without padding read; all with weights and biases of their own."""
    for node in graph.nodes:
        before = _convolution(graph, params, node)
        readers = graph.consumers.get(node.outputs[0], ()) if before is not None else ()
        if before is None or not readers or node.outputs[0] in graph.outputs:
            continue
        after = [_convolution(graph, params, each) for each, index in readers if index == 0 and _takes_shifts(each)]
        found = tuple(each for each in after if each is not None)
        if len(found) == len(readers):
            yield AlignedPair(before, found)


def _convolution(graph: Graph, params: Mapping[str, Any], node: Node) -> Linear | None:
    """A convolution with a weight and a bias of its own."""
    linear = Linear.of(node, params) if node.op == "Conv" else None
    if linear is None or not linear.bias:
        return None
    return linear if all(owned(graph, params, name) for name in node.inputs[1:]) else None


def _takes_shifts(node: Node) -> bool:
    unpadded = not any(node.attributes.get("pads", ())) and node.attributes.get("auto_pad", "NOTSET") in (
        "NOTSET",
        "VALID",
    )
    return unpadded and node.attributes.get("group", 1) == 1


def align(pair: AlignedPair, low: np.ndarray, high: np.ndarray, params: dict[str, Any]) -> None:
    """Writes the weights and biases of the pair for channels that reach from low to high [C]."""
    middle, factor = (low + high) / 2, alignment_factor(high - low)
    _add(params, pair.before.bias, -middle)
    pair.before.scale_output(params, 1 / factor)
    for each in pair.after:
        weight = np.asarray(params[each.weight], np.float64)
        _add(params, each.bias, each.response(weight, middle))
        each.scale_input(params, factor)


def _add(params: dict[str, Any], name: str, value: np.ndarray) -> None:
    params[name] = (np.asarray(params[name], np.float64) + value).astype(params[name].dtype)


def alignment_factor(width: np.ndarray) -> np.ndarray:
    """Each channel's width over the median of those that have one, within FACTORS; 1 for one without."""
    wide = width > 0
    if not wide.any():
        return np.ones_like(width)
    return np.clip(np.where(wide, width / np.median(width[wide]), 1.0), *FACTORS)


class Quantiles(NamedTuple):
    """Of each channel in each sample, the values below and above which OUTLIERS of it lie; NaN where nothing has been seen."""

    low: Any  # float32 [T, capacity, channels]
    high: Any


@functools.cache
def channel_quantiles(capacity: int, channels: int) -> Observer:
    """The quantiles at 1e-4 and 1 - 1e-4 of each channel (axis 1) in each of the first `capacity` samples.

    Linear between neighbours, as numpy's default. So near the ends a few of the smallest and largest values are all it takes.
    """

    def init(count: int) -> Quantiles:
        return Quantiles(*(np.full((count, capacity, channels), np.nan, np.float32) for _ in range(2)))

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> Quantiles:
        rows = [jnp.moveaxis(x, 2, 1).reshape(x.shape[0], x.shape[2], -1).astype(jnp.float32) for x in tensors]
        return Quantiles(jnp.stack([-_upper(-row) for row in rows]), jnp.stack([_upper(row) for row in rows]))

    def update(state: Quantiles, measured: Quantiles, index: jax.Array) -> Quantiles:
        return Quantiles(*(a.at[:, index].set(b, mode="drop") for a, b in zip(state, measured, strict=True)))

    def merge(a: Quantiles, b: Quantiles) -> Quantiles:
        return Quantiles(*(jnp.where(jnp.isnan(x), y, x) for x, y in zip(a, b, strict=True)))

    return Observer(init, measure, update, merge)


def _upper(rows: jax.Array) -> jax.Array:
    """The quantile at 1 - OUTLIERS along the last axis."""
    place = OUTLIERS * (rows.shape[-1] - 1)  # counted from the largest value
    whole, part = math.floor(place), place - math.floor(place)
    largest = jax.lax.top_k(rows, min(whole + 2, rows.shape[-1]))[0]
    return largest[..., whole] * (1 - part) + largest[..., -1] * part
