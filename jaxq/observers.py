"""Running statistics of tensors, as pure functions over small states of fixed shape.

A statistic is measured per sample, inside the compiled forward pass (under `vmap` over the samples of a batch), and put into
a state. States are merged in any order with the same result, to the bit: what came from which batch or device does not matter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Observer(NamedTuple):
    """A running statistic of one tensor, as four pure functions.

    Attributes:
      init: `init() -> state`.
      measure: `measure(x) -> measurement`; x is the tensor of one sample.
      update: `update(state, measurements, index, real) -> state`; measurements have a leading axis of B samples, index [B]
        int32 is the number of each sample in the data, real [B] is False for padding, which must not count.
      merge: `merge(a, b) -> state`, for states that saw different samples.
    """

    init: Callable[[], Any]
    measure: Callable[[jax.Array], Any]
    update: Callable[[Any, Any, jax.Array, jax.Array], Any]
    merge: Callable[[Any, Any], Any]


class Extremes(NamedTuple):
    """Smallest and largest value of each sample; NaN where a sample has not been seen."""

    low: jax.Array  # float32 [capacity]
    high: jax.Array  # float32 [capacity]


@functools.cache
def extremes(capacity: int) -> Observer:
    """The smallest and the largest value in each of `capacity` samples: 8 bytes a sample and tensor.

    Infinities and NaN in the tensor show in the state, so that they can be reported.
    """

    def init() -> Extremes:
        empty = jnp.full((capacity,), jnp.nan, jnp.float32)
        return Extremes(empty, empty)

    def measure(x: jax.Array) -> Extremes:
        if x.size == 0:
            return Extremes(jnp.float32(0), jnp.float32(0))
        # NaN would read as "not seen": it is reported as infinity, which is as unusable.
        low, high = x.min().astype(jnp.float32), x.max().astype(jnp.float32)
        return Extremes(jnp.where(jnp.isnan(low), -jnp.inf, low), jnp.where(jnp.isnan(high), jnp.inf, high))

    def update(state: Extremes, measurements: Extremes, index: jax.Array, real: jax.Array) -> Extremes:
        where = jnp.where(real, index, capacity)  # out of bounds: dropped
        return Extremes(
            state.low.at[where].set(measurements.low, mode="drop"),
            state.high.at[where].set(measurements.high, mode="drop"),
        )

    def merge(a: Extremes, b: Extremes) -> Extremes:
        return Extremes(jnp.where(jnp.isnan(a.low), b.low, a.low), jnp.where(jnp.isnan(a.high), b.high, a.high))

    return Observer(init, measure, update, merge)


class ChannelExtremes(NamedTuple):
    """Smallest and largest value of each channel over all samples; low > high where nothing has been seen."""

    low: jax.Array  # float32 [channels]
    high: jax.Array  # float32 [channels]


@functools.cache
def channel_extremes(channels: int, axis: int) -> Observer:
    """The smallest and the largest value of each of `channels` channels, which lie along `axis` of a sample's tensor."""

    def init() -> ChannelExtremes:
        return ChannelExtremes(jnp.full((channels,), jnp.inf, jnp.float32), jnp.full((channels,), -jnp.inf, jnp.float32))

    def measure(x: jax.Array) -> ChannelExtremes:
        others = tuple(each for each in range(x.ndim) if each != axis % x.ndim)
        return ChannelExtremes(x.min(others).astype(jnp.float32), x.max(others).astype(jnp.float32))

    def update(state: ChannelExtremes, measurements: ChannelExtremes, index: jax.Array, real: jax.Array) -> ChannelExtremes:
        seen = real[:, None]
        return merge(
            state,
            ChannelExtremes(
                jnp.where(seen, measurements.low, jnp.inf).min(0), jnp.where(seen, measurements.high, -jnp.inf).max(0)
            ),
        )

    def merge(a: ChannelExtremes, b: ChannelExtremes) -> ChannelExtremes:
        return ChannelExtremes(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))

    return Observer(init, measure, update, merge)


BINS = 4096  # of a histogram, over [-2**exponent, 2**exponent)


class Histogram(NamedTuple):
    """How often values fall into each of BINS equal bins over [-2**exponent, 2**exponent); exact zeros are not counted."""

    counts: jax.Array  # int32 [BINS]
    exponent: jax.Array  # int32 scalar: the least with every |x| < 2**exponent


@functools.cache
def histogram() -> Observer:
    """A histogram over all samples that needs no range beforehand.

    Its range is a power of two. When a larger value comes, bins are merged two by two, which is exact: the result is the same
    as if the final range had been known, whatever the order of the samples. The resolution is 2**exponent / 2048, that is
    between 1/2048 and 1/1024 of the largest absolute value. Zeros, which every grid represents exactly, are left out.
    """
    smallest = -126

    def init() -> Histogram:
        return Histogram(jnp.zeros((BINS,), jnp.int32), jnp.int32(smallest))

    def measure(x: jax.Array) -> Histogram:
        flat = x.reshape(-1).astype(jnp.float32)
        exponent = jnp.maximum(jnp.frexp(jnp.abs(flat).max(initial=0.0))[1], smallest).astype(jnp.int32)
        # In two steps, since 2**-exponent itself may be too large for a float.
        scaled = jnp.ldexp(jnp.ldexp(flat, -(exponent // 2)), -(exponent - exponent // 2))
        bins = jnp.floor((scaled + 1.0) * (BINS // 2)).astype(jnp.int32)
        return Histogram(jnp.zeros((BINS,), jnp.int32).at[jnp.where(flat == 0, BINS, bins)].add(1, mode="drop"), exponent)

    def widened(state: Histogram, exponent: jax.Array) -> jax.Array:
        """The counts over the range of a larger exponent."""
        middle = BINS // 2
        shift = jnp.minimum(exponent - state.exponent, 31)
        target = ((jnp.arange(BINS, dtype=jnp.int32) - middle) >> shift) + middle
        return jnp.zeros((BINS,), jnp.int32).at[target].add(state.counts)

    def update(state: Histogram, measurements: Histogram, index: jax.Array, real: jax.Array) -> Histogram:
        exponents = jnp.where(real, measurements.exponent, smallest)
        exponent = jnp.maximum(state.exponent, exponents.max())
        counts = jax.vmap(lambda each: widened(each, exponent))(Histogram(measurements.counts, exponents))
        added = jnp.where(real[:, None], counts, 0).sum(0, dtype=jnp.int32)
        return Histogram(widened(state, exponent) + added, exponent)

    def merge(a: Histogram, b: Histogram) -> Histogram:
        exponent = jnp.maximum(a.exponent, b.exponent)
        return Histogram(widened(a, exponent) + widened(b, exponent), exponent)

    return Observer(init, measure, update, merge)


@functools.cache
def both(first: Observer, second: Observer) -> Observer:
    """Two statistics of one tensor; the state is the pair of their states."""
    return Observer(
        lambda: (first.init(), second.init()),
        lambda x: (first.measure(x), second.measure(x)),
        lambda state, seen, index, real: (
            first.update(state[0], seen[0], index, real),
            second.update(state[1], seen[1], index, real),
        ),
        lambda a, b: (first.merge(a[0], b[0]), second.merge(a[1], b[1])),
    )
