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
import numpy as np

INT32_MAX = np.iinfo(np.int32).max  # the number of padding, beyond all samples


class Observer(NamedTuple):
    """A running statistic, as four pure functions. Every array of a state has the T tensors on its first axis.

    Attributes:
      init: `init(T) -> state`.
      measure: `measure(tensors, real) -> measurement` of one batch. Each of the T tensors, x [B, ...], holds B samples, each with
        all of its own axes behind B; real [B] is False for padding, which must not count.
      update: `update(state, measurement, index) -> state`; index [B] int32 is the number of each sample in the data, beyond all
        for padding.
      merge: `merge(a, b) -> state`, for states that saw different samples.
      grow: `grow(state, samples) -> state` with room for that many samples, where the state has a place for each; called outside
        of the compiled step, which compiles again for the larger state.
      by_number: `measure` gets the samples' numbers in the data, `index` as in `update`, in place of `real`.
    """

    init: Callable[[int], Any]
    measure: Callable[[Sequence[jax.Array], jax.Array], Any]
    update: Callable[[Any, Any, jax.Array], Any]
    merge: Callable[[Any, Any], Any]
    grow: Callable[[Any, int], Any] = lambda state, samples: state
    by_number: bool = False


class Extremes(NamedTuple):
    """Smallest and largest value of each sample; NaN where a sample has not been seen."""

    low: Any  # float32 [T, capacity]
    high: Any  # float32 [T, capacity]


ROOM = 1024  # samples that a state has places for at first, at most


@functools.cache
def extremes(capacity: int = ROOM) -> Observer:
    """The smallest and the largest value in each sample: 8 bytes a sample and tensor.

    There is room for min(capacity, ROOM) samples at first, and twice as many whenever it is full. Infinities and NaN in the
    tensor show in the state, so that they can be reported.
    """

    def init(count: int) -> Extremes:
        return Extremes(*(np.full((count, min(capacity, ROOM)), np.nan, np.float32) for _ in range(2)))

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> Extremes:
        rows = [_rows(x) if x.size else jnp.zeros((x.shape[0], 1), jnp.float32) for x in tensors]
        empty = np.array([[x.size == 0] for x in tensors])  # nothing of them is seen
        low, high = (_decoded(jnp.stack(each)) for each in zip(*map(_ends, rows), strict=True))
        return Extremes(
            *(jnp.where(empty, np.float32(np.nan), end) for end in (low, high)) if empty.any() else (low, high)
        )

    def update(state: Extremes, measured: Extremes, index: jax.Array) -> Extremes:
        return Extremes(
            state.low.at[:, index].set(measured.low, mode="drop"),
            state.high.at[:, index].set(measured.high, mode="drop"),
        )

    def merge(a: Extremes, b: Extremes) -> Extremes:
        return Extremes(*map(_joined, a, b))

    def grow(state: Extremes, samples: int) -> Extremes:
        return Extremes(*(_grown(each, samples) for each in state))

    return Observer(init, measure, update, merge, grow)


def _ends(rows: jax.Array) -> Sequence[jax.Array]:
    """The smallest and the largest of rows float32 [..., elements], each as an integer in the order of the floats.

    NaN is beyond infinity there. XLA's minimum and maximum of floats pass over it on CPU; and one pass for both ends, in
    integers, takes a quarter of the time of those two and a third one that looks for NaN.
    """
    keys = _key(jax.lax.bitcast_convert_type(rows, jnp.int32))
    return jax.lax.reduce(
        (keys, keys),
        (np.int32(INT32_MAX), np.int32(~INT32_MAX)),
        lambda a, b: (jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])),
        (rows.ndim - 1,),
    )


def _key(bits: Any) -> Any:
    """The bits of a float32 as int32, as an int32 that is in the order of the floats; its own inverse."""
    return bits ^ ((bits >> 31) & np.int32(INT32_MAX))


def _decoded(keys: jax.Array) -> jax.Array:
    """The floats again; -inf or inf for a NaN, which in a state would read as "not seen"."""
    least, greatest = (_key(np.float32(end).view(np.int32)) for end in (-np.inf, np.inf))
    return jax.lax.bitcast_convert_type(_key(jnp.clip(keys, least, greatest)), jnp.float32)


def _grown(values: jax.Array, samples: int) -> jax.Array:
    """values [T, places, ...] with as many more places, doubled until they are enough; NaN in the new ones."""
    places = max(values.shape[1], 1)
    while places < samples:
        places *= 2
    if places == values.shape[1]:
        return values
    return jnp.pad(
        values, ((0, 0), (0, places - values.shape[1]), *[(0, 0)] * (values.ndim - 2)), constant_values=jnp.nan
    )


def _joined(a: jax.Array, b: jax.Array) -> jax.Array:
    """What either has seen of each sample."""
    a, b = _grown(a, b.shape[1]), _grown(b, a.shape[1])
    return jnp.where(jnp.isnan(a), b, a)


class SampleStatistic(NamedTuple):
    """One number from each sample: `kind` is "min", "max", "abs_max", "mean", "quantile" or "abs_quantile".

    `probability` is that of a quantile, from 0 to 1; linear between neighbours, as in numpy.
    """

    kind: str
    probability: float = 0.0


@functools.cache
def sample_statistics(
    statistics: tuple[SampleStatistic, ...], capacity: int = ROOM, channels: int | None = None, axis: int = 1
) -> Observer:
    """Statistics of each sample, float32 [T, samples, statistics(, channels)]; NaN where a sample has not been seen.

    With `channels`, of each of that many channels, which lie along `axis` of a sample's tensor. It has room as `extremes`
    has, 4 bytes for each statistic (and channel), sample and tensor.
    """
    tail = (len(statistics),) if channels is None else (len(statistics), channels)

    def init(count: int) -> np.ndarray:
        return np.full((count, min(capacity, ROOM), *tail), np.nan, np.float32)

    def one(x: jax.Array) -> jax.Array:
        if not x.size:
            return jnp.zeros((x.shape[0], *tail), jnp.float32)
        if channels is None:
            rows = _rows(x)
        else:
            kept = axis % (x.ndim - 1) + 1
            rows = jnp.moveaxis(x, kept, 1).reshape(x.shape[0], channels, -1).astype(jnp.float32)
        return jnp.stack([_of_rows(rows, each) for each in statistics], axis=1)

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> jax.Array:
        return jnp.stack([one(x) for x in tensors])

    def update(state: jax.Array, measured: jax.Array, index: jax.Array) -> jax.Array:
        return state.at[:, index].set(measured, mode="drop")

    return Observer(init, measure, update, _joined, _grown)


def _of_rows(rows: jax.Array, statistic: SampleStatistic) -> jax.Array:
    """The statistic of rows [..., elements] -> [...]."""
    kind, probability = statistic
    if kind.startswith("abs_"):
        rows, kind = jnp.abs(rows), kind.removeprefix("abs_")
    if kind == "quantile":
        return (
            upper_quantile(rows, 1 - probability)
            if probability >= 0.5
            else -upper_quantile(rows, probability, negated=True)
        )
    reduced: jax.Array = getattr(rows, kind)(-1)  # min, max or mean
    return reduced


def upper_quantile(rows: jax.Array, outlier: float, *, negated: bool = False) -> jax.Array:
    """The (1 - outlier)-quantile of rows [..., elements], or of -rows, linear between neighbours as in numpy -> [...]."""
    count = rows.shape[-1]
    place = (count - 1) * outlier
    below = min(math.floor(place), count - 1)
    top = _largest(rows, min(below + 2, count), negated)
    upper, lower = top[..., below], top[..., min(below + 1, count - 1)]
    return upper + (lower - upper) * np.float32(place - below)


def _largest(rows: jax.Array, k: int, negated: bool) -> jax.Array:
    """The k largest of rows [..., elements] or of -rows, the largest first -> [..., k].

    They lie in the k columns with the largest maxima, if the row is cut into pieces that stand below each other. So one cheap
    pass leaves about 2 * sqrt(k * elements) values to be ordered. No copy of the rows is made: the pieces are of one length if
    that can be, and what is negated is what was picked.
    """
    count, sign = rows.shape[-1], np.float32(-1 if negated else 1)
    tallest = math.isqrt(count // k)
    if tallest < 4:
        return jax.lax.top_k(sign * rows, k)[0]
    even = (height for height in range(tallest, tallest // 2, -1) if count % height == 0)
    height = next(even, tallest)
    width = -(-count // height)
    if missing := height * width - count:
        padding = [(0, 0)] * (rows.ndim - 1) + [(0, missing)]
        rows = jnp.pad(rows, padding, constant_values=-sign * np.float32(np.inf))
    table = rows.reshape(*rows.shape[:-1], height, width)
    peaks = -table.min(-2) if negated else table.max(-2)
    columns = jax.lax.top_k(peaks, k)[1]
    taken = sign * jnp.take_along_axis(table, columns[..., None, :], axis=-1)
    return jax.lax.top_k(taken.reshape(*rows.shape[:-1], height * k), k)[0]


class ChannelExtremes(NamedTuple):
    """Smallest and largest value of each channel over all samples; low > high where nothing has been seen."""

    low: Any  # float32 [T, channels]
    high: Any  # float32 [T, channels]


@functools.cache
def channel_extremes(channels: int, axis: int) -> Observer:
    """The smallest and the largest value of each of `channels` channels, which lie along `axis` of a sample's tensor."""

    def init(count: int) -> ChannelExtremes:
        empty = np.full((count, channels), np.inf, np.float32)
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
SAMPLED = 1 << 10  # elements of a tensor and sample that are counted, at most
RUN = 16  # of them lie side by side: what memory gives at a time
SPARE = 64  # bins for what is not counted; spread, because additions to one and the same place wait for each other
SMALLEST_EXPONENT = -126


class Histogram(NamedTuple):
    """How often values fall into each of BINS equal bins over [-2**exponent, 2**exponent), and how many are exactly zero.

    Counts stop at 2**31 - 1. With folds, the tensor's axis is followed by one of that length in `counts` and `zeros`.
    """

    counts: Any  # int32 [T, BINS]; zeros are not among them
    exponent: Any  # int32 [T]: the least with every |x| that was counted below 2**exponent
    zeros: Any  # int32 [T]


class Sampled(NamedTuple):
    """Elements of a batch of samples."""

    values: Any  # float32 [T, B, elements]; 0 for padding and for what is not finite
    elements: Any  # int32 [T]: how many there are of a sample; 0 stands in the other places


@functools.cache
def histogram(folds: int | None = None) -> Observer:
    """A histogram over all samples that needs no range beforehand.

    Its range is a power of two. When a larger value comes, bins are merged two by two, which is exact: the result is the same
    as if the final range had been known, whatever the order of the samples. The resolution is 2**exponent / 2048, that is
    between 1/2048 and 1/1024 of the largest absolute value. Zeros, which every grid represents exactly, are counted apart.
    A tensor with more than SAMPLED elements a sample is cut into pieces of one length, and RUN neighbours of each are
    counted, others in each sample; `extremes` sees all.

    With `folds`, sample number i is counted in histogram i % folds of the tensor; all have one exponent.
    """
    parts = 1 if folds is None else folds
    width = BINS + SPARE

    def init(count: int) -> Histogram:
        lead = (count,) if folds is None else (count, folds)
        return Histogram(
            np.zeros((*lead, BINS), np.int32),
            np.full((count,), SMALLEST_EXPONENT, np.int32),
            np.zeros(lead, np.int32),
        )

    def measure(tensors: Sequence[jax.Array], index: jax.Array) -> Sampled:
        rows = [_sampled(x, index) for x in tensors]
        longest = max(row.shape[1] for row in rows)
        # One array of all tensors: what follows is compiled once, and not for each of them.
        values = jnp.stack([jnp.pad(row, ((0, 0), (0, longest - row.shape[1]))) for row in rows])
        values = jnp.where((index < INT32_MAX)[None, :, None] & jnp.isfinite(values), values, 0)
        return Sampled(values, np.array([row.shape[1] for row in rows], np.int32))

    def update(state: Histogram, measured: Sampled, index: jax.Array) -> Histogram:
        peak = jnp.abs(measured.values).max((1, 2), initial=0.0)
        seen = jnp.frexp(peak)[1].astype(jnp.int32)  # 0 of zero, which needs no range
        exponent = jnp.maximum(state.exponent, jnp.where(peak > 0, seen, SMALLEST_EXPONENT))
        before = jax.lax.cond(  # seldom, after the first batches
            (exponent > state.exponent).any(),
            lambda: _widened(state.counts, state.exponent, exponent),
            lambda: state.counts,
        )
        fold = index % parts
        counts = count(measured.values, exponent, fold)
        in_fold = (index < INT32_MAX)[None] & (fold[None] == jnp.arange(parts, dtype=jnp.int32)[:, None])
        zeros = measured.elements[:, None] * in_fold.sum(1, dtype=jnp.int32)[None] - counts.sum(-1)
        counts, zeros = jnp.reshape(counts, before.shape), jnp.reshape(zeros, state.zeros.shape)
        return Histogram(_saturating(before, counts), exponent, _saturating(state.zeros, zeros))

    def count(x: jax.Array, exponent: jax.Array, fold: jax.Array) -> jax.Array:
        """How many of x [T, B, elements] fall into each bin: [T, folds, BINS]."""
        # Two factors, since 2**-exponent itself may be too large for a float.
        half, rest = (jnp.ldexp(1.0, -each)[:, None, None] for each in (exponent // 2, exponent - exponent // 2))
        place = jnp.floor(x * half * rest * (BINS // 2)).astype(jnp.int32)  # exact: powers of two
        place = jnp.where(x < 0, jnp.minimum(place, -1), place)  # so small a part of the largest that it became zero
        spare = BINS + jax.lax.broadcasted_iota(jnp.int32, x.shape, 2) % SPARE
        place = jnp.where(x == 0, spare, place + BINS // 2)
        table = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None] * parts + fold[None]
        counts = jnp.zeros((x.shape[0] * parts * width,), jnp.int32)
        counts = counts.at[(place + table[..., None] * width).reshape(-1)].add(1, mode="promise_in_bounds")
        return counts.reshape(-1, parts, width)[:, :, :BINS]

    def merge(a: Histogram, b: Histogram) -> Histogram:
        exponent = jnp.maximum(a.exponent, b.exponent)
        counts = _saturating(_widened(a.counts, a.exponent, exponent), _widened(b.counts, b.exponent, exponent))
        return Histogram(counts, exponent, _saturating(a.zeros, b.zeros))

    return Observer(init, measure, update, merge, by_number=True)


def _saturating(a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum of two int32 counts, which stops at the largest int32."""
    return a + jnp.minimum(b, INT32_MAX - a)


@jax.vmap
def _widened(counts: jax.Array, exponent: jax.Array, wanted: jax.Array) -> jax.Array:
    """The counts [..., BINS] over the range of a larger exponent."""
    middle = BINS // 2
    shift = jnp.minimum(wanted - exponent, 31)
    target = ((jnp.arange(BINS, dtype=jnp.int32) - middle) >> shift) + middle
    return jnp.zeros_like(counts).at[..., target].add(counts)


def positions_by_channels(x: jax.Array, axis: int) -> jax.Array:
    """A sample's tensor x as a table, float32 [positions, channels]; `axis` is that of its channels."""
    x = jnp.moveaxis(x, axis, -1)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(jnp.float32)  # -1 would not do where one of them is 0


def mean_over_samples(values: np.ndarray) -> np.ndarray | None:
    """The mean of values [samples, channels] over the samples that have been seen, float64 [channels]; None: there are none.

    It is taken in an order of its own, so that the samples' order does not matter.
    """
    seen = values[~np.isnan(values).any(axis=1)].astype(np.float64)
    return np.sort(seen, axis=0).mean(axis=0) if len(seen) else None


def _rows(x: jax.Array) -> jax.Array:
    """The elements of each sample as one row: x [B, ...] as float32 [B, elements].

    Which comes first does not matter to any statistic. So images are read with their channels last: convolutions leave them so
    in memory, and nothing is moved.
    """
    if x.ndim >= 5:  # [B, 1, C, H, W]
        x = jnp.moveaxis(x, 2, -1)
    return x.reshape(x.shape[0], -1).astype(jnp.float32)


def _sampled(x: jax.Array, index: jax.Array) -> jax.Array:
    """At most SAMPLED elements of each sample of x [B, ...], as float32 [B, elements]: RUN neighbours of each piece of it.

    Which ones depends on the number of the sample, index [B], so that many samples together show every channel and position.
    """
    rows = _rows(x)
    if rows.shape[1] <= SAMPLED:
        return rows
    places = _places(rows.shape[1], index)
    return jnp.take_along_axis(rows, places, axis=1, mode="promise_in_bounds")


def _places(size: int, index: jax.Array) -> jax.Array:
    """Which of `size` elements of each sample are counted: int32 [B, SAMPLED]."""
    pieces = SAMPLED // RUN
    borders = np.arange(pieces + 1) * size // pieces
    room = np.diff(borders).astype(np.uint32) - RUN + 1  # places in a piece where a run can start
    # A hash of the numbers of piece and sample; its products wrap, as they should.
    piece = np.arange(pieces, dtype=np.uint32) * np.uint32(2654435761)
    number = piece[None] ^ (index[:, None].astype(jnp.uint32) * np.uint32(2246822519))
    mixed = (number ^ (number >> 15)) * np.uint32(3266489919)
    chance = (mixed ^ (mixed >> 13)) % room[None]
    start = borders[None, :-1].astype(np.int32) + chance.astype(jnp.int32)
    return (start[..., None] + np.arange(RUN, dtype=np.int32)[None, None]).reshape(-1, SAMPLED)


@functools.cache
def both(first: Observer, second: Observer) -> Observer:
    """Two statistics of the same tensors; the state is the pair of their states."""
    by_number = first.by_number or second.by_number

    def measure(observer: Observer, tensors: Sequence[jax.Array], given: jax.Array) -> Any:
        return observer.measure(tensors, given < INT32_MAX if by_number and not observer.by_number else given)

    return Observer(
        lambda count: (first.init(count), second.init(count)),
        lambda tensors, given: (measure(first, tensors, given), measure(second, tensors, given)),
        lambda state, seen, index: (first.update(state[0], seen[0], index), second.update(state[1], seen[1], index)),
        lambda a, b: (first.merge(a[0], b[0]), second.merge(a[1], b[1])),
        lambda state, samples: (first.grow(state[0], samples), second.grow(state[1], samples)),
        by_number,
    )
