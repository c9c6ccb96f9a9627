"""Running statistics of tensors, as pure functions over small states of fixed shape.

An observer watches a stack of T tensors at once. It measures a batch of samples inside the compiled forward pass and puts the
measurement into its state. States are merged in any order with the same result, to the bit: what came from which batch or
device does not matter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Observer(NamedTuple):
    """A running statistic, as four pure functions. Every array of a state has the T tensors on its first axis.

    Attributes:
      init: `init(T) -> state`.
      measure: `measure(tensors, real) -> measurement` of one batch. Each of the T tensors, x [B, ...], holds B samples, each with
        all of its own axes behind B; real [B] is False for padding, which must not count.
      update: `update(state, measurement, index) -> state`; index [B] int32 is the number of each sample in the data, beyond all
        for padding.
      merge: `merge(a, b) -> state`, for states that saw different samples.
    """

    init: Callable[[int], Any]
    measure: Callable[[Sequence[jax.Array], jax.Array], Any]
    update: Callable[[Any, Any, jax.Array], Any]
    merge: Callable[[Any, Any], Any]


class Extremes(NamedTuple):
    """Smallest and largest value of each sample; NaN where a sample has not been seen."""

    low: Any  # float32 [T, capacity]
    high: Any  # float32 [T, capacity]


@functools.cache
def extremes(capacity: int) -> Observer:
    """The smallest and the largest value in each of `capacity` samples: 8 bytes a sample and tensor.

    Infinities and NaN in the tensor show in the state, so that they can be reported.
    """

    def init(count: int) -> Extremes:
        return Extremes(*(jnp.full((count, capacity), jnp.nan, jnp.float32) for _ in range(2)))

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> Extremes:
        # NaN would read as "not seen": it is reported as infinity, which is as unusable. Zero stands in for an empty tensor.
        rows = [_rows(x) if x.size else jnp.zeros((x.shape[0], 1), jnp.float32) for x in tensors]
        # On CPU, XLA's minimum and maximum pass over NaN. This sum does not (it is 0, or NaN), at a third of the cost of isnan.
        taint = jnp.stack([(row * 0).sum(1) for row in rows])
        low = jnp.stack([row.min(1) for row in rows]) + taint
        high = jnp.stack([row.max(1) for row in rows]) + taint
        return Extremes(jnp.where(jnp.isnan(low), -jnp.inf, low), jnp.where(jnp.isnan(high), jnp.inf, high))

    def update(state: Extremes, measured: Extremes, index: jax.Array) -> Extremes:
        return Extremes(
            state.low.at[:, index].set(measured.low, mode="drop"),
            state.high.at[:, index].set(measured.high, mode="drop"),
        )

    def merge(a: Extremes, b: Extremes) -> Extremes:
        return Extremes(jnp.where(jnp.isnan(a.low), b.low, a.low), jnp.where(jnp.isnan(a.high), b.high, a.high))

    return Observer(init, measure, update, merge)


class ChannelExtremes(NamedTuple):
    """Smallest and largest value of each channel over all samples; low > high where nothing has been seen."""

    low: Any  # float32 [T, channels]
    high: Any  # float32 [T, channels]


@functools.cache
def channel_extremes(channels: int, axis: int) -> Observer:
    """The smallest and the largest value of each of `channels` channels, which lie along `axis` of a sample's tensor."""

    def init(count: int) -> ChannelExtremes:
        empty = jnp.full((count, channels), jnp.inf, jnp.float32)
        return ChannelExtremes(empty, -empty)

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> ChannelExtremes:
        low, high = [], []
        for x in tensors:
            kept = axis % (x.ndim - 1) + 1
            others = tuple(each for each in range(1, x.ndim) if each != kept)
            low.append(jnp.where(real[:, None], x.min(others).astype(jnp.float32), jnp.inf).min(0))
            high.append(jnp.where(real[:, None], x.max(others).astype(jnp.float32), -jnp.inf).max(0))
        return ChannelExtremes(jnp.stack(low), jnp.stack(high))

    def update(state: ChannelExtremes, measured: ChannelExtremes, index: jax.Array) -> ChannelExtremes:
        return merge(state, measured)

    def merge(a: ChannelExtremes, b: ChannelExtremes) -> ChannelExtremes:
        return ChannelExtremes(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))

    return Observer(init, measure, update, merge)


BINS = 4096  # of a histogram, over [-2**exponent, 2**exponent)
SAMPLED = 1 << 14  # elements of a tensor and sample that are counted: every k-th one of a larger tensor
SMALLEST_EXPONENT = -126


class Histogram(NamedTuple):
    """How often values fall into each of BINS equal bins over [-2**exponent, 2**exponent); exact zeros are not counted."""

    counts: Any  # int32 [T, BINS]
    exponent: Any  # int32 [T]: the least with every |x| that was counted below 2**exponent


@functools.cache
def histogram() -> Observer:
    """A histogram over all samples that needs no range beforehand.

    Its range is a power of two. When a larger value comes, bins are merged two by two, which is exact: the result is the same
    as if the final range had been known, whatever the order of the samples. The resolution is 2**exponent / 2048, that is
    between 1/2048 and 1/1024 of the largest absolute value. Zeros, which every grid represents exactly, are left out. Of
    tensors with more than SAMPLED elements a sample, evenly spread ones are counted; `extremes` sees all.
    """

    def init(count: int) -> Histogram:
        return Histogram(jnp.zeros((count, BINS), jnp.int32), jnp.full((count,), SMALLEST_EXPONENT, jnp.int32))

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> Histogram:
        x = jnp.stack([_spread(each) for each in tensors])  # [T, B, SAMPLED]
        x = jnp.where(real[None, :, None] & jnp.isfinite(x), x, 0)
        exponent = jnp.maximum(jnp.frexp(jnp.abs(x).max((1, 2)))[1], SMALLEST_EXPONENT).astype(jnp.int32)
        # Two factors, since 2**-exponent itself may be too large for a float.
        half, rest = jnp.ldexp(1.0, -(exponent // 2)), jnp.ldexp(1.0, -(exponent - exponent // 2))
        scaled = x * half[:, None, None] * rest[:, None, None] * (BINS // 2)  # exact: powers of two
        place = jnp.floor(scaled).astype(jnp.int32)
        place = jnp.where(
            x < 0, jnp.minimum(place, -1), place
        )  # so small a part of the largest value that it became zero
        bins = jnp.where(x == 0, BINS, place + BINS // 2)  # one bin more for the zeros
        table = jnp.arange(len(tensors), dtype=jnp.int32)[:, None, None] * (BINS + 1) + bins
        counts = (
            jnp.zeros((len(tensors) * (BINS + 1),), jnp.int32).at[table.reshape(-1)].add(1, mode="promise_in_bounds")
        )
        return Histogram(counts.reshape(-1, BINS + 1)[:, :BINS], exponent)

    def update(state: Histogram, measured: Histogram, index: jax.Array) -> Histogram:
        return merge(state, measured)

    def merge(a: Histogram, b: Histogram) -> Histogram:
        exponent = jnp.maximum(a.exponent, b.exponent)
        return Histogram(_widened(a, exponent) + _widened(b, exponent), exponent)

    return Observer(init, measure, update, merge)


@jax.vmap
def _widened(state: Histogram, exponent: jax.Array) -> jax.Array:
    """The counts over the range of a larger exponent."""
    middle = BINS // 2
    shift = jnp.minimum(exponent - state.exponent, 31)
    target = ((jnp.arange(BINS, dtype=jnp.int32) - middle) >> shift) + middle
    return jnp.zeros((BINS,), jnp.int32).at[target].add(state.counts)


def _rows(x: jax.Array) -> jax.Array:
    """x [B, ...] as float32 [B, elements], in an order that costs nothing.

    Convolutions work channels-last inside. Reading their outputs in that order, and only once they are there (the barrier), keeps
    a reduction from being fused with what makes them: on CPU that is three times as fast.
    """
    if x.ndim >= 5:  # [B, 1, C, H, W]
        x = jax.lax.optimization_barrier(jnp.moveaxis(x, 2, -1))
    return x.reshape(x.shape[0], -1).astype(jnp.float32)


def _spread(x: jax.Array) -> jax.Array:
    """At most SAMPLED elements of each sample of x [B, ...], on a regular grid, as float32 [B, SAMPLED], padded with zeros."""
    steps = [1] * x.ndim
    shape = list(x.shape)
    while math.prod(shape[1:]) > SAMPLED:  # thin out the longest axis, in odd steps: even ones may follow a pattern
        axis = max(range(1, x.ndim), key=lambda each: shape[each])
        steps[axis] += 2
        shape[axis] = -(-x.shape[axis] // steps[axis])
    taken = jax.lax.slice(x, [0] * x.ndim, x.shape, steps).reshape(x.shape[0], -1).astype(jnp.float32)
    return jnp.pad(taken, ((0, 0), (0, SAMPLED - taken.shape[1])))


@functools.cache
def both(first: Observer, second: Observer) -> Observer:
    """Two statistics of the same tensors; the state is the pair of their states."""
    return Observer(
        lambda count: (first.init(count), second.init(count)),
        lambda tensors, real: (first.measure(tensors, real), second.measure(tensors, real)),
        lambda state, seen, index: (first.update(state[0], seen[0], index), second.update(state[1], seen[1], index)),
        lambda a, b: (first.merge(a[0], b[0]), second.merge(a[1], b[1])),
    )
