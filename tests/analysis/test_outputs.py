"""How far outputs are apart."""

import math

import numpy as np
import pytest

from jaxq.analysis.outputs import OutputComparison, as_array, compare, compare_rows, cost, decibels


def comparison(expected, found, *, classes: bool = True) -> OutputComparison:
    values = ([np.float32(each) for each in side] for side in (expected, found))
    return compare("y", "plain", *values, classes=classes)


def test_differences_are_in_steps_of_eight_bits_over_the_range_of_the_simulation():
    found = comparison([[[0.0, 2.55]], [[1.0, 1.0]]], [[[0.02, 2.55]], [[1.0, 1.0]]])
    np.testing.assert_allclose([found.largest, found.steps, found.typical_steps], [0.02, 2, 1], rtol=1e-5)


def test_agreement_is_the_share_of_rows_with_the_same_largest_entry():
    found = comparison([[[1, 2], [2, 1]], [[3, 1]]], [[[1, 3], [1, 2]], [[2, 1]]])
    assert found.agreement == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize(
    "shape, scores",
    [((2, 5), True), ((2, 5, 1, 1), True), ((2, 1), False), ((2, 5, 3), False), ((5,), False), ((), False)],
)
def test_classes_are_compared_in_rows_of_several_numbers(shape, scores):
    value = np.zeros(shape)
    assert (comparison([value], [value]).agreement is not None) is scores


@pytest.mark.parametrize(
    "expected, found, share",
    [
        ([[0, 0], [9, 9]], [[9, 9], [0, 0]], 1.0),  # the order does not count
        ([[0, 0], [9, 9]], [[0, 0]], 2 / 3),
        ([[0, 0, 255], [9, 9, 9]], [[0, 0], [9, 9]], 4 / 5),  # columns, as NonZero gives them
        ([[0, 255]], [[0, 254.5]], 1.0),  # within a step
        ([[0, 255]], [[0, 253]], 0.5),
        ([[-np.inf, 1], [0, 255]], [[-np.inf, 1]], 2 / 3),  # the same infinity
        (np.zeros((0, 2)), [[0, 255]], 0.0),
        (np.zeros((0, 2)), np.zeros((0, 2)), 1.0),
        ([1.0, 255], 1.0, 2 / 3),  # another rank
    ],
)
def test_rows_are_compared_as_a_set(expected, found, share):
    compared = compare_rows("y", "plain", [np.float32(expected)], [np.float32(found)])
    assert compared.agreement is None
    assert compared.same_rows == pytest.approx(share)


def test_integers_must_be_the_same():
    found = compare_rows("y", "plain", [np.array([[0, 1000]])], [np.array([[0, 1001]])])
    assert found.same_rows == 0.5


def test_a_sequence_is_compared_element_by_element():
    np.testing.assert_array_equal(as_array([np.zeros((1, 2)), np.ones(1)]), [0, 0, 1])
    assert as_array([]).size == 0


def test_without_classes_there_is_no_agreement():
    assert comparison([[[1, 2]]], [[[2, 1]]], classes=False).agreement is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_a_number_on_one_side_alone_is_infinitely_far(value):
    for sides in (([[1.0, value]], [[1.0, 2.0]]), ([[1.0, 2.0]], [[1.0, value]])):
        found = comparison(*sides)
        assert found.largest == found.steps == found.typical_steps == math.inf
    assert comparison([[1.0, value]], [[1.0, value]]).largest == 0
    for sides in (([1, 2], [1, value]), ([1, value], [1, 2])):
        assert cost("y", *([np.float32(each)] for each in sides), classes=False).snr == -math.inf


@pytest.mark.parametrize(
    "expected, found, lost",
    [
        ([1, 2], [1, np.nan], True),
        ([1, 2], [1, -np.inf], True),
        ([1, 2], [1, 2, 3], True),
        ([1, np.nan], [1, 2], False),
        ([1, -np.inf], [1, -np.inf], False),
        ([1, 2], [1, 3], False),
    ],
)
def test_what_is_no_number_where_one_was_simulated_is_lost(expected, found, lost):
    assert comparison([expected], [found], classes=False).lost is lost


@pytest.mark.parametrize(
    "expected, found, lost",
    [
        ([1, 2], [1, 2, np.inf], True),
        ([1, 2, 3], [1, np.nan], True),
        ([1, 2], [1, 2, 3], False),
        ([np.inf, 2], [np.inf], False),
    ],
)
def test_rows_may_be_more_or_fewer_but_numbers(expected, found, lost):
    assert compare_rows("y", "plain", [np.float32(expected)], [np.float32(found)]).lost is lost


def test_other_shapes_are_infinitely_far():
    assert comparison([[[1, 2]]], [[[1, 2], [1, 2]]]).typical_steps == math.inf
    assert cost("y", [np.zeros((1, 2))], [np.zeros((2, 2))], classes=True).snr is None


def test_the_cost_is_over_all_samples():
    reference, found = [np.float32([[3, 0]]), np.float32([[0, 1]])], [np.float32([[3, 0.1]]), np.float32([[0.1, 0]])]
    each = cost("y", reference, found, classes=True)
    assert each.snr == pytest.approx(10 * math.log10(10 / 1.02))
    assert each.agreement == 0.5


@pytest.mark.parametrize(
    "signal, noise, wanted",
    [(100, 1, 20), (1, 100, -20), (1, 0, math.inf), (0, 0, math.inf), (0, 1, -math.inf), (1, math.inf, -math.inf)],
)
def test_decibels(signal, noise, wanted):
    assert decibels(signal, noise) == pytest.approx(wanted)
