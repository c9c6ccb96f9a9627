"""Ranges from histograms: each estimator against its definition, done the slow way."""

import itertools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxq.numerics.estimators import DISTRIBUTION, AggregatorType
from jaxq.numerics.histograms import (
    THRESHOLDS,
    Distributions,
    Moments,
    entropy_ranges,
    least_squares_ranges,
    percentile_ranges,
    ranges_of,
    searched_ranges,
    squared_errors,
)
from jaxq.numerics.observers import BINS, SAMPLED, Histogram, histogram
from jaxq.numerics.quantizer import E4M3, IntType
from jaxq.numerics.ranges import asymmetric_borders, symmetric_borders

UINT8 = IntType(8, signed=False)
RANDOM = np.random.default_rng(0)
TENSORS = {
    "normal": RANDOM.normal(size=6000),
    "relu": np.maximum(RANDOM.normal(size=6000), 0),
    "laplace": RANDOM.laplace(size=6000),
    "heavy tails": RANDOM.standard_t(3, size=6000),
    "uniform": RANDOM.uniform(-1, 3, 6000),
    "negative": -np.abs(RANDOM.normal(size=6000)),
}
EDGES = {
    "zeros": np.zeros(9),
    "constant": np.full(9, 3.0),
    "one value": np.float64([-2]),
    "1e38": np.float64([-1e38, 1e38, 5e37]),
    "1e-38": np.float64([-1e-38, 2e-38, 3e-38]),
    "nothing": np.zeros(0),
}
values = st.integers(-(10**6), 10**6).map(lambda i: i / 256)


def counted(*samples: np.ndarray, folds: int | None = None) -> Histogram:
    """The histogram of one tensor, of which these are the samples, with every element of them."""
    observer = histogram(folds)
    state = observer.init(1)
    for number, x in enumerate(samples):
        for part in np.split(np.asarray(x, np.float32), range(SAMPLED, x.size, SAMPLED)):
            index = jnp.array([number], jnp.int32)
            state = observer.update(state, observer.measure([jnp.asarray(part)[None]], index), index)
    return state


def distribution(*tensors: np.ndarray) -> Distributions:
    """The tensors as they are seen, in one table."""
    rows = []
    for x in tensors:
        seen = counted(x)
        low, high = (np.float64(np.float32(end(x))) if x.size else np.float64(0) for end in (np.min, np.max))
        counts, zeros = np.asarray(seen.counts[0], np.float64), np.asarray(seen.zeros[0], np.float64)
        rows.append(Distributions(counts, np.asarray(seen.exponent[0]), zeros, low, high))
    return Distributions(*map(np.stack, zip(*rows, strict=True)))


def error(x, low, high, grid, symmetric) -> float:
    """The squared error of the values themselves."""
    scale, zero_point = (symmetric_borders if symmetric else asymmetric_borders)(
        np.float64(low), np.float64(high), grid
    )
    q = np.clip(np.round(x / scale) + zero_point, grid.qmin, grid.qmax)
    return float((((q - zero_point) * scale - x) ** 2).sum())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grid", [IntType(4), UINT8, IntType(16)], ids=["int4", "uint8", "int16"])
def test_the_error_from_the_bins_is_that_of_the_values(grid, symmetric):
    seen = distribution(*TENSORS.values())
    parts = np.array([1, 0.7, 0.4])
    low, high = seen.low[:, None] * parts, seen.high[:, None] * parts
    found = squared_errors(Moments.of(seen), low, high, grid, symmetric)
    for row, x in enumerate(TENSORS.values()):
        wanted = [error(x, low[row, k], high[row, k], grid, symmetric) for k in range(len(parts))]
        np.testing.assert_allclose(found[row], wanted, rtol=0.05)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("outlier", [0.0, 1e-3, 0.1])
def test_a_percentile_leaves_out_its_part_of_the_values(name, outlier):
    x = TENSORS[name]
    low, high = percentile_ranges(distribution(x), (outlier, outlier))
    width = 2 * np.abs(x).max() / 1024
    for end, sign in ((low, -1), (high, 1)):
        assert (sign * x > sign * end + width).mean() <= outlier
        assert (sign * x >= sign * end - width).mean() >= outlier


@settings(max_examples=15, deadline=None)
@given(
    x=hnp.arrays(np.float32, 24, elements=values),
    grid=st.builds(IntType, bits=st.integers(2, 8), signed=st.booleans()),
    symmetric=st.booleans(),
)
def test_the_least_squares_error_is_never_above_that_of_min_max(x, grid, symmetric):
    seen = distribution(x)
    low, high = least_squares_ranges(seen, grid, symmetric)
    moments = Moments.of(seen)
    found = squared_errors(moments, low[:, None], high[:, None], grid, symmetric)
    assert found <= squared_errors(moments, seen.low[:, None], seen.high[:, None], grid, symmetric) * (1 + 1e-6)
    assert low >= seen.low
    assert high <= np.maximum(seen.high, -seen.low)


@pytest.mark.parametrize("symmetric", [False, True])
def test_least_squares_cuts_off_a_lonely_outlier_at_few_bits(symmetric):
    seen = distribution(np.append(TENSORS["normal"], [9.0]))
    for grid in (IntType(4), IntType(4, signed=False)):
        assert least_squares_ranges(seen, grid, symmetric).high < 5


def divergence(counts: np.ndarray, reach: int, cells: int) -> float:
    """KL(P || Q) of one threshold, bin by bin."""
    middle = len(counts) // 2
    inside = counts[middle - reach : middle + reach]
    p = inside.copy()
    p[0] += counts[: middle - reach].sum()
    p[-1] += counts[middle + reach :].sum()
    q = np.zeros(2 * reach)
    borders = 2 * reach * np.arange(cells + 1) // cells
    for start, end in itertools.pairwise(borders):
        used = inside[start:end] > 0
        if used.any():
            q[start:end][used] = inside[start:end].sum() / used.sum()
    used = p > 0
    part = np.where(q[used] > 0, q[used], 0.5) / inside.sum()
    p = p[used] / p.sum()
    return float((p * np.log(p / part)).sum())


@pytest.mark.parametrize("name", TENSORS)
def test_the_entropy_threshold_has_the_least_divergence_of_all_candidates(name):
    seen = distribution(TENSORS[name])
    reach = int(np.abs(TENSORS[name]).max() / seen.width[0]) + 1
    first = min(128, reach)
    steps = np.round(first + (reach - first) * np.linspace(0, 1, THRESHOLDS)).astype(int)
    best = min(steps, key=lambda each: divergence(seen.counts[0], each, 256)) * seen.width[0]
    low, high = entropy_ranges(seen, UINT8, False)
    assert (low, high) == (max(seen.low[0], -best), min(seen.high[0], best))


def test_entropy_is_not_decided_by_the_zeros_behind_a_relu():
    x = TENSORS["relu"]
    many = np.concatenate([x, np.zeros(16_000 - len(x))])
    assert entropy_ranges(distribution(x), UINT8, False) == entropy_ranges(distribution(many), UINT8, False)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_histogram_search_ends_at_a_range_no_worse_than_the_full_one(symmetric):
    seen = distribution(*TENSORS.values())
    low, high = searched_ranges(seen, UINT8, symmetric)
    moments = Moments.of(seen)
    full = squared_errors(moments, seen.low[:, None], seen.high[:, None], UINT8, symmetric)
    assert (squared_errors(moments, low[:, None], high[:, None], UINT8, symmetric) <= full * (1 + 1e-9)).all()


def test_the_histogram_search_cuts_off_a_lonely_outlier_at_few_bits():
    low, high = searched_ranges(distribution(np.append(TENSORS["normal"], [9.0])), IntType(4), False)
    assert high < 6
    assert low < -2


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("aggregator", sorted(DISTRIBUTION - {AggregatorType.AUTO}))
def test_every_estimator_stays_within_the_values_whatever_they_are(aggregator, symmetric):
    seen = distribution(*EDGES.values(), *TENSORS.values())
    for grid in (UINT8, IntType(2), IntType(16), E4M3):
        low, high = ranges_of(AggregatorType(aggregator), seen, grid, symmetric, (1e-4, 1e-4))
        assert np.isfinite(low).all()
        assert np.isfinite(high).all()
        assert (low <= high).all()
        assert (high <= np.maximum(np.maximum(seen.high, -seen.low), 0)).all()
        assert (low >= np.minimum(seen.low, 0)).all()


@pytest.mark.parametrize("aggregator", sorted(DISTRIBUTION - {AggregatorType.AUTO}))
def test_a_tensor_has_the_same_range_alone_and_in_a_table(aggregator):
    table = distribution(*TENSORS.values())
    together = ranges_of(AggregatorType(aggregator), table, UINT8, False, (1e-4, 1e-4))
    for row, x in enumerate(TENSORS.values()):
        alone = distribution(x)
        low, high = ranges_of(AggregatorType(aggregator), alone, UINT8, False, (1e-4, 1e-4))
        assert (low[0], high[0]) == (together.low[row], together.high[row])


def test_folds_together_are_the_whole():
    x = np.concatenate([TENSORS["normal"], [64.0]])  # one exponent for both
    parts, whole = counted(x, x * 0.5, folds=2), counted(x, x * 0.5)
    np.testing.assert_array_equal(parts.counts.sum(1), whole.counts)
    np.testing.assert_array_equal(parts.zeros.sum(1), whole.zeros)
    assert parts.counts.shape == (1, 2, BINS)
