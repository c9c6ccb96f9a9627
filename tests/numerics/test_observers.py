import functools
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from jaxq.numerics import observers
from jaxq.numerics.observers import (
    BINS,
    INT32_MAX,
    SAMPLED,
    SampleStatistic,
    both,
    channel_extremes,
    extremes,
    histogram,
    mean_over_samples,
    positions_by_channels,
    sample_statistics,
)

pytestmark = pytest.mark.usefixtures("strict_ranks")
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)

SAMPLES, CHANNELS, PIXELS = 6, 3, 4
OBSERVERS = {
    "extremes": extremes(SAMPLES),
    "channel extremes": channel_extremes(CHANNELS, 0),
    "histogram": histogram(),
    "histogram in folds": histogram(2),
    "both": both(extremes(SAMPLES), histogram()),
    "both in folds": both(extremes(SAMPLES), histogram(3)),
    "sample statistics": sample_statistics((SampleStatistic("abs_quantile", 0.9), SampleStatistic("mean")), SAMPLES),
    "of channels": sample_statistics((SampleStatistic("quantile", 0.1), SampleStatistic("max")), SAMPLES, CHANNELS, 0),
}
# From 2**-100 to 2**100, both signs, and zero.
floats = st.builds(lambda m, e: m * 2.0**e, st.integers(-255, 255), st.integers(-100, 92))
data = hnp.arrays(np.float32, (2, SAMPLES, CHANNELS, PIXELS), elements=floats)  # two tensors


@functools.partial(jax.jit, static_argnums=0)
def advance(observer, state, tensors, index):
    given = index if observer.by_number else index < SAMPLES
    return observer.update(state, observer.measure(list(tensors), given), index)


def see(observer, state, tensors, chosen, size):
    """The state after the samples `chosen`, in a batch of `size` with padding of nonsense."""
    padded = np.full((2, size, CHANNELS, PIXELS), 1e30, np.float32)
    padded[:, : len(chosen)] = tensors[:, chosen]
    index = np.array([*chosen, *[2**31 - 1] * (size - len(chosen))], np.int32)
    return advance(observer, state, padded, index)


def counted(*samples, real=None):
    """The histogram of one tensor, of which these are the samples."""
    x = jnp.stack(samples)
    index = jnp.arange(len(samples), dtype=jnp.int32)
    index = index if real is None else jnp.where(jnp.array(real), index, INT32_MAX)
    return histogram().update(histogram().init(1), histogram().measure([x], index), index)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS)
@shared_fixture
@given(tensors=data, order=st.permutations(range(SAMPLES)), size=st.sampled_from([1, 4]))
def test_batches_and_order_do_not_matter(observer, tensors, order, size):
    together = see(observer, observer.init(2), tensors, list(range(SAMPLES)), SAMPLES)
    state = observer.init(2)
    for start in range(0, SAMPLES, size):
        state = see(observer, state, tensors, order[start : start + size], size)
    same(state, together)


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS)
@shared_fixture
@given(tensors=data, cut=st.integers(1, SAMPLES - 1))
def test_merging_parts_equals_seeing_all_in_either_order(observer, tensors, cut):
    empty = observer.init(2)
    together = see(observer, empty, tensors, list(range(SAMPLES)), SAMPLES)
    first = see(observer, empty, tensors, list(range(cut)), SAMPLES)
    second = see(observer, empty, tensors, list(range(cut, SAMPLES)), SAMPLES)
    same(observer.merge(first, second), together)
    same(observer.merge(second, first), together)


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS)
@shared_fixture
@given(tensors=data)
def test_an_empty_state_adds_nothing(observer, tensors):
    state = see(observer, observer.init(2), tensors, [0, 1], 2)
    same(observer.merge(state, observer.init(2)), state)
    same(observer.merge(observer.init(2), state), state)


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS)
def test_a_state_keeps_its_shapes_and_dtypes(observer):
    empty = observer.init(2)
    state = see(observer, empty, np.ones((2, SAMPLES, CHANNELS, PIXELS), np.float32), [0, 1], 2)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, empty)
    for leaf in jax.tree.leaves(empty):
        assert leaf.shape[0] == 2


@shared_fixture
@given(tensors=data)
def test_extremes_are_those_of_numpy(tensors):
    state = see(OBSERVERS["extremes"], OBSERVERS["extremes"].init(2), tensors, [2, 0], 2)
    for row in range(2):
        for sample in (0, 2):
            assert state.low[row, sample] == tensors[row, sample].min()
            assert state.high[row, sample] == tensors[row, sample].max()
    assert np.isnan(state.low[:, [1, 3, 4, 5]]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_shows_in_the_extremes(bad):
    tensors = np.zeros((2, SAMPLES, CHANNELS, PIXELS), np.float32)
    tensors[1, 3, 1, 2] = bad
    state = see(OBSERVERS["extremes"], OBSERVERS["extremes"].init(2), tensors, list(range(SAMPLES)), SAMPLES)
    bad_ones = np.isinf(state.low) | np.isinf(state.high)
    assert np.argwhere(bad_ones).tolist() == [[1, 3]]
    assert not np.isnan(state.low).any()


def test_of_an_empty_tensor_nothing_is_seen():
    observer = extremes(2)
    measured = observer.measure([jnp.zeros((2, 0, 3)), jnp.full((2, 1, 3), 5.0)], jnp.ones(2, bool))
    np.testing.assert_array_equal(measured.low, [[np.nan, np.nan], [5, 5]])
    np.testing.assert_array_equal(measured.high, measured.low)


@shared_fixture
@given(tensors=data)
def test_channel_extremes_are_those_of_numpy(tensors):
    state = see(OBSERVERS["channel extremes"], OBSERVERS["channel extremes"].init(2), tensors, [1, 4], 3)
    np.testing.assert_array_equal(state.low, tensors[:, [1, 4]].min((1, 3)))
    np.testing.assert_array_equal(state.high, tensors[:, [1, 4]].max((1, 3)))


@shared_fixture
@given(tensors=data)
def test_a_histogram_counts_every_value_but_zeros_in_its_bin(tensors):
    state = see(histogram(), histogram().init(2), tensors, list(range(SAMPLES)), SAMPLES)
    for row in range(2):
        x = tensors[row].astype(np.float64)
        x = x[x != 0]
        exponent = int(state.exponent[row])
        assert (np.abs(x) < 2.0**exponent).all()
        assert not x.size or np.abs(x).max() >= 2.0 ** (exponent - 1)
        bins = np.floor(x * (BINS // 2) / 2.0**exponent).astype(int) + BINS // 2
        np.testing.assert_array_equal(state.counts[row], np.bincount(bins, minlength=BINS))


def test_a_tiny_negative_value_beside_a_huge_one_stays_negative():
    """Scaled to the bins it would underflow to -0, which is no longer below zero."""
    state = counted(jnp.array([-(2.0**-100), 2.0**99]))
    assert np.flatnonzero(state.counts[0]).tolist() == [BINS // 2 - 1, BINS // 2 + BINS // 4]


def test_a_histogram_passes_over_what_is_not_finite():
    state = counted(jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf]))
    assert state.counts.sum() == 1
    assert state.exponent[0] == 1


@pytest.mark.parametrize("shape", [(3, 300, 90), (1, 5 * SAMPLED), (1, 64, 56, 56), (7, 1, SAMPLED)])
def test_many_samples_of_a_large_tensor_show_all_of_it_though_few_elements_of_each_are_counted(shape):
    size = math.prod(shape)
    x = jnp.arange(1, 1 + size, dtype=jnp.float32).reshape(shape)  # which element it is can be read from its value
    one = counted(x)
    assert int(one.counts.sum()) == SAMPLED
    state = counted(*[x] * 64)
    assert int(state.counts.sum()) == 64 * int(one.counts.sum())
    bins = np.floor(np.asarray(x) * (BINS // 2) / 2.0 ** int(state.exponent[0])).astype(int) + BINS // 2
    wanted = np.cumsum(np.bincount(bins.reshape(-1), minlength=BINS)) / size
    np.testing.assert_allclose(np.cumsum(state.counts[0]) / state.counts.sum(), wanted, atol=0.03)  # 4,096 runs


@pytest.mark.parametrize("size", [SAMPLED + 1, 20 * SAMPLED + 7, 64 * 2048 * 2048])
def test_every_element_may_be_counted_in_some_sample(size):
    places = np.asarray(observers._places(size, jnp.arange(400, dtype=jnp.int32)))
    assert places.shape == (400, SAMPLED)
    assert 0 <= places.min() <= places.max() < size
    assert all(len(set(row)) == SAMPLED for row in places[:3])
    for channels in (3, 64):  # of an image that lies channels-last
        assert set(np.unique(places % channels)) == set(range(channels))
    np.testing.assert_allclose(places.mean() / size, 0.5, atol=0.01)


def test_a_sample_of_zeros_needs_no_range():
    small, nothing = jnp.linspace(-1e-4, 1e-4, 50), jnp.zeros(50)
    together = counted(small, nothing)
    apart = histogram().init(1)
    for number, x in enumerate((small, nothing)):
        index = jnp.array([number], jnp.int32)
        apart = histogram().update(apart, histogram().measure([x[None]], index), index)
    same(apart, together)
    assert int(together.exponent[0]) == np.frexp(1e-4)[1]


def test_half_precision_is_measured_in_float32():
    state = counted(jnp.ones(3, jnp.bfloat16))
    assert state.counts.sum() == 3
    assert extremes(1).measure([jnp.ones((1, 3), jnp.float16)], jnp.ones(1, bool)).low.dtype == jnp.float32


def test_observers_of_equal_options_are_one_object():
    """`collect` stacks the tensors of one observer, and jit's cache is keyed by it."""
    assert extremes(5) is extremes(5)
    assert histogram() is histogram()
    assert both(extremes(5), histogram()) is both(extremes(5), histogram())
    assert observers.extremes(4) is not extremes(5)


@shared_fixture
@given(tensors=data)
def test_sample_statistics_are_those_of_numpy(tensors):
    kinds = (
        SampleStatistic("quantile", 0.1),
        SampleStatistic("quantile", 0.9),
        SampleStatistic("abs_quantile", 0.8),
        SampleStatistic("abs_max"),
        SampleStatistic("mean"),
    )
    rows = tensors.astype(np.float64).reshape(2, SAMPLES, -1)
    expected = [
        np.quantile(rows, 0.1, axis=-1),
        np.quantile(rows, 0.9, axis=-1),
        np.quantile(np.abs(rows), 0.8, axis=-1),
        np.abs(rows).max(-1),
        rows.mean(-1),
    ]
    observer = sample_statistics(kinds, SAMPLES)
    found = see(observer, observer.init(2), tensors, list(range(SAMPLES)), SAMPLES)
    tolerance = 1e-5 * np.abs(tensors).max() + 1e-37
    np.testing.assert_allclose(found, np.stack(expected, -1), rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 63, 5000])
@pytest.mark.parametrize("probability", [0.0, 1e-4, 0.01, 0.3, 0.9999, 1.0])
def test_a_quantile_of_many_values_is_exact(count, probability):
    x = np.random.default_rng(count).normal(size=(2, count)).astype(np.float32)
    observer = sample_statistics((SampleStatistic("quantile", probability),))
    found = observer.measure([jnp.asarray(x)], jnp.ones(2, bool))
    np.testing.assert_allclose(
        found[0, :, 0], np.quantile(x.astype(np.float64), probability, axis=1), rtol=1e-5, atol=1e-6
    )


def test_statistics_of_channels_are_those_of_each_channel():
    x = np.random.default_rng(0).normal(size=(2, 1, 3, 5, 4)).astype(np.float32)
    observer = sample_statistics((SampleStatistic("max"), SampleStatistic("quantile", 0.5)), 2, channels=3, axis=1)
    found = observer.measure([jnp.asarray(x)], jnp.ones(2, bool))
    np.testing.assert_array_equal(found[0, :, 0], x.max((1, 3, 4)))
    np.testing.assert_allclose(found[0, :, 1], np.median(x, axis=(1, 3, 4)), rtol=1e-5)


@pytest.mark.parametrize("name", ["extremes", "sample statistics", "both"])
def test_room_for_more_samples_keeps_what_was_seen(name):
    observer = OBSERVERS[name]
    tensors = np.random.default_rng(0).normal(size=(2, SAMPLES, CHANNELS, PIXELS)).astype(np.float32)
    state = see(observer, observer.init(2), tensors, list(range(SAMPLES)), SAMPLES)
    grown = observer.grow(state, 4 * SAMPLES + 1)
    places = jax.tree.leaves(grown)[0].shape[1]
    assert places == 8 * SAMPLES
    assert observer.grow(grown, places) is grown or jax.tree.leaves(observer.grow(grown, places))[0].shape[1] == places
    same(observer.merge(state, observer.grow(observer.init(2), places)), grown)


def test_room_is_not_taken_for_samples_that_may_never_come():
    for observer in (extremes(10**9), sample_statistics((SampleStatistic("mean"),), 10**9)):
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(observer.init(1))) <= 8 * observers.ROOM


def test_counts_stop_at_the_largest_integer():
    one = counted(jnp.ones(3))
    full = one._replace(counts=jnp.where(one.counts > 0, observers.INT32_MAX - 1, 0))
    merged = histogram().merge(full, one)
    assert int(merged.counts.max()) == observers.INT32_MAX
    assert int(merged.counts.min()) == 0


def test_zeros_are_counted_apart_and_padding_is_not():
    x = jnp.array([[0.0, 0.0, 1.0], [0.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    state = counted(*x, real=[True, True, False])
    assert (int(state.zeros[0]), int(state.counts.sum())) == (3, 3)


def test_a_table_has_a_column_for_each_channel_wherever_they_lie():
    x = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    for axis in (0, 1, 2, -1):
        table = positions_by_channels(x, axis)
        assert table.dtype == np.float32
        np.testing.assert_array_equal(table.T, np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1))
    assert positions_by_channels(np.zeros((2, 0, 3), np.float32), 1).shape == (6, 0)
    assert positions_by_channels(np.zeros((2, 0, 3), np.float32), 2).shape == (0, 3)


def test_the_mean_over_samples_leaves_out_unseen_ones_and_does_not_depend_on_their_order():
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    seen = mean_over_samples(values)
    assert seen.dtype == np.float64
    np.testing.assert_allclose(seen, values.astype(np.float64).mean(0), rtol=1e-12)
    with_gaps = np.concatenate([values[::-1], np.full((7, 3), np.nan, np.float32)])
    np.testing.assert_array_equal(mean_over_samples(with_gaps), seen)
    assert mean_over_samples(with_gaps[50:]) is None
