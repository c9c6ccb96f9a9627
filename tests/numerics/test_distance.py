"""What is no number is infinitely far from one; what is the same is no distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq.numerics.distance import (
    apart,
    difference,
    differences,
    distance,
    distances,
    output_distances,
    squared_differences,
    worst_if_nan,
)

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("expected", "found", "squared"),
    [
        (1.0, 3.0, 4.0),
        (1.0, NAN, INF),
        (1.0, INF, INF),
        (0.0, -INF, INF),
        (-INF, -INF, 0.0),
        (NAN, NAN, 0.0),
        (INF, -INF, INF),
        (INF, NAN, INF),
        (INF, 3e38, 0.0),
        (NAN, 1.0, 0.0),
        (NAN, INF, 0.0),
        (3e38, -3e38, 36e76),
    ],
)
def test_squared_differences(expected, found, squared):
    assert squared_differences(np.float32([expected]), np.float32([found]))[0] == pytest.approx(squared, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        (1.0, 3.0, 2),
        (1.0, NAN, INF),
        (NAN, 1.0, INF),
        (INF, 1.0, INF),
        (NAN, INF, INF),
        (NAN, NAN, 0),
        (-INF, -INF, 0),
        (INF, -INF, INF),
    ],
)
def test_of_two_sides_that_are_to_be_the_same_a_number_on_either_side_alone_is_infinitely_far(a, b, wanted):
    assert differences(np.float32([a]), np.float32([b])).tolist() == [wanted]


def test_distance_is_relative_to_what_was_expected():
    assert distance([3.0, 4.0], [3.0, 5.0]) == pytest.approx(1 / 25)
    assert distance([3.0, 4.0, -INF], [3.0, 5.0, -INF]) == pytest.approx(1 / 25)
    assert distance([0.0], [0.0]) == 0


def test_each_sample_has_a_distance_of_its_own():
    found = distances(np.ones((3, 2, 2)), np.stack([np.ones((2, 2)), np.full((2, 2), 2.0), np.full((2, 2), NAN)]))
    assert found.tolist() == [0, 1, INF]
    assert distances(np.ones((2, 3)), np.ones((2, 4))).tolist() == [INF, INF]


def test_only_floats_have_a_distance():
    expected = {"scores": np.float32([[1], [2]]), "classes": np.array([[1], [2]])}
    found = {"scores": np.float32([[1], [NAN]]), "classes": np.array([[5], [5]])}
    assert output_distances(expected, found).tolist() == [0, INF]


def test_an_error_that_is_no_number_is_the_worst():
    assert worst_if_nan([NAN, 1, INF]).tolist() == [INF, 1, INF]
    assert int(worst_if_nan([NAN, 1]).argmin()) == 1


def test_two_infinite_distances_do_not_differ():
    assert difference(INF, INF) == 0
    assert difference(INF, 1.0) == INF
    assert difference(1.0, INF) == -INF


def test_differences_are_the_same_of_arrays_in_a_program():
    values = np.float32([0, 1.5, -3, np.nan, np.inf, -np.inf])
    a, b = np.meshgrid(values, values)
    np.testing.assert_array_equal(jax.jit(lambda a, b: apart(a, b, jnp))(a, b), differences(a, b))
