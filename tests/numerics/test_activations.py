"""From what was seen of an activation to its range, in some folds of the samples or in all."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.numerics.activations import distribution, of_folds, table
from jaxq.numerics.observers import Extremes, both, extremes, histogram

SAMPLES = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32)


def seen(samples: np.ndarray, folds: int | None):
    """What an observer keeps of one tensor; samples 0, 1, 2 ... in order."""
    observer, numbers = both(extremes(16), histogram(folds)), jnp.arange(len(samples), dtype=jnp.int32)
    empty = jax.tree.map(jnp.asarray, observer.init(1))
    measured = observer.measure([jnp.asarray(samples)], numbers if observer.by_number else numbers >= 0)
    state = observer.update(empty, measured, numbers)
    first, second = state
    return Extremes(*(np.asarray(each[0]) for each in first)), type(second)(*(np.asarray(each[0]) for each in second))


def test_all_folds_are_the_whole():
    found, expected = of_folds(*seen(SAMPLES, 2), (0, 1)), seen(SAMPLES, None)
    for one, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_fold_knows_nothing_of_the_samples_of_another():
    samples = SAMPLES.copy()
    samples[1] *= 100
    low, _ = of_folds(*seen(samples, 2), [0])[0]
    assert np.isnan(low[1::2]).all()
    found = distribution(*of_folds(*seen(samples, 2), [0]))
    assert (found.low, found.high) == (SAMPLES[::2].min(), SAMPLES[::2].max())
    assert found.counts.sum() == SAMPLES[::2].size


def test_a_fold_without_samples_has_the_range_of_zero():
    found = distribution(*of_folds(*seen(SAMPLES[:1], 2), [1]))
    assert (found.low, found.high, found.counts.sum()) == (0, 0, 0)


def test_a_centered_tensor_counts_as_having_negative_values():
    positive = np.abs(SAMPLES)
    assert distribution(*seen(positive, None)).low > 0
    assert distribution(*seen(positive, None), signed=True).low < 0


def test_rows_make_a_table():
    one = distribution(*seen(SAMPLES, None))
    both_rows = table([one, one])
    assert both_rows.counts.shape == (2, one.counts.size)
    assert both_rows.low.tolist() == [one.low, one.low]
