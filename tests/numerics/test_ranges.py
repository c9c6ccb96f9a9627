import json
from dataclasses import replace
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jaxq.numerics.estimators import AggregatorType, RangeEstimatorParameters, StatisticsCollectorParameters
from jaxq.numerics.quantizer import SMALLEST_SCALE, IntType, Scheme, fake_quantize_array
from jaxq.numerics.ranges import (
    Range,
    activation_params,
    aggregate,
    asymmetric_params,
    bias_params,
    clipped,
    own_bias_params,
    symmetric_params,
    symmetric_weight_params,
    widen_zero_channels,
)

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "ranges.json").read_text())
INT8, UINT8 = IntType(8), IntType(8, signed=False)

values = st.integers(-(10**6), 10**6).map(lambda i: i / 256)
ends = st.tuples(values, values).map(lambda pair: Range(*np.sort(np.array(pair, np.float32))[:, None]))
grids = st.builds(IntType, bits=st.integers(2, 8), signed=st.booleans())


SAMPLE_AGGREGATORS = [
    each.value for each in list(AggregatorType)[: list(AggregatorType).index(AggregatorType.HISTOGRAM)]
]


def cases(kind):
    return pytest.mark.parametrize("case", REFERENCE[kind], ids=lambda case: str(next(iter(case.values()))))


def one(*numbers):
    return Range(*(np.array([number], np.float32) for number in numbers))


@cases("zero_channels")
def test_empty_channels_are_widened_as_in_the_reference(case):
    np.testing.assert_allclose(widen_zero_channels(np.array(case["high"])), case["widened"], rtol=1e-6)


@cases("levels")
def test_a_grid_has_the_levels_of_the_reference(case):
    grid = IntType(case["bits"], case["signed"], case["narrow"])
    assert grid.qmax - grid.qmin + 1 == case["levels"]


@cases("asymmetric")
def test_asymmetric_parameters_are_those_of_the_reference(case):
    params = asymmetric_params(one(*case["range"]), UINT8)
    np.testing.assert_allclose(params.scale, case["scale"], rtol=1e-4)
    assert params.zero_point == case["zero_point"]
    found = (np.array([0.0, 255.0]) - params.zero_point) * np.float64(params.scale)
    np.testing.assert_allclose(found, case["tuned"], rtol=2e-4, atol=1e-9)


@cases("symmetric")
def test_symmetric_parameters_are_those_of_the_reference(case):
    for grid, name in ((INT8, "int8"), (UINT8, "uint8")):
        params = symmetric_params(one(*case["range"]), grid)
        np.testing.assert_allclose(params.scale, case["scale"], rtol=1e-6)
        assert params.zero_point == case[name]


@pytest.mark.parametrize("symmetric", [True, False])
@given(found=ends, bits=st.integers(4, 16))
def test_the_integers_of_what_goes_below_zero_can_be_signed_on_the_same_grid(found, bits, symmetric):
    plain = Scheme(IntType(bits, signed=False), symmetric)
    one, other = (activation_params(found, replace(plain, signed_below_zero=each)) for each in (False, True))
    goes_below = (one.zero_point > 0).any()
    half = 1 << (bits - 1) if goes_below else 0
    assert (other.qmin, other.qmax) == (one.qmin - half, one.qmax - half)
    np.testing.assert_array_equal(other.zero_point, one.zero_point - half)
    np.testing.assert_array_equal(other.scale, one.scale)
    assert (
        other.lowest == (IntType(bits) if goes_below else IntType(bits, signed=False)).lowest_stored
    )  # what NaN becomes
    if symmetric:
        assert not other.zero_point.any()


def test_channels_of_one_tensor_are_signed_together():
    scheme = Scheme(IntType(8, signed=False), signed_below_zero=True)
    params = activation_params(Range(np.float32([0, -1]), np.float32([4, 2])), scheme)
    assert (params.qmin, params.zero_point.tolist()) == (-128, [0, 0])
    assert activation_params(Range(np.float32([0, 0]), np.float32([4, 2])), scheme).qmin == 0


@cases("aggregators")
def test_aggregators_give_the_numbers_of_the_reference(case):
    samples = np.array(case["values"], np.float32)
    for how in SAMPLE_AGGREGATORS:
        np.testing.assert_allclose(aggregate(samples, how), case[how], rtol=1e-6)
        two_channels = aggregate(np.stack([samples, samples * 2], axis=1), how)
        np.testing.assert_allclose(two_channels, [case[how], 2 * case[how]], rtol=1e-6)


@given(samples=hnp.arrays(np.float32, 7, elements=values), order=st.permutations(range(7)))
def test_aggregates_do_not_depend_on_the_order_of_the_samples(samples, order):
    for how in SAMPLE_AGGREGATORS:
        assert aggregate(samples, how) == aggregate(samples[order], how)


@given(value=values, count=st.integers(1, 3))
def test_samples_that_are_all_alike_aggregate_to_themselves(value, count):
    """POT's Hodges-Lehmann estimator of one sample is NaN."""
    for how in SAMPLE_AGGREGATORS:
        np.testing.assert_allclose(aggregate(np.full(count, value, np.float32), how), np.float32(value), rtol=1e-6)


def test_two_samples_are_no_outliers_of_each_other():
    for how in ("mean_no_outliers", "median_no_outliers"):
        assert aggregate(np.float32([1, 3]), how) == 2


def test_hodges_lehmann_takes_a_part_of_very_many_samples():
    """All pairs of them would not fit in memory."""
    samples = np.random.default_rng(0).normal(5, 1, 20_000).astype(np.float32)
    np.testing.assert_allclose(aggregate(samples, "hl_estimator"), 5, atol=0.05)


@cases("unified_zero_point")
def test_channels_can_have_one_zero_point_as_in_the_reference(case):
    found = Range(*(np.array(case[each], np.float32) for each in ("low", "high")))
    params = asymmetric_params(found, UINT8, unified_zero_point=True)
    assert len(set(params.zero_point.tolist())) == 1
    scale, zero_point = np.float64(params.scale), params.zero_point
    np.testing.assert_allclose((0 - zero_point) * scale, case["tuned_low"], rtol=1e-5)
    np.testing.assert_allclose((255 - zero_point) * scale, case["tuned_high"], rtol=1e-5)


def clipping(low, high) -> RangeEstimatorParameters:
    return RangeEstimatorParameters(
        StatisticsCollectorParameters(clipping_value=low), StatisticsCollectorParameters(clipping_value=high)
    )


@pytest.mark.parametrize(
    ("limits", "symmetric", "expected"),
    [
        ((None, None), False, (-3, 5)),
        ((None, 4), False, (-3, 4)),
        ((-2, None), False, (-2, 5)),
        ((-9, 9), False, (-3, 5)),
        ((None, 4), True, (-3, 4)),
        ((None, 2), True, (-2, 2)),
        ((-2, None), True, (-2, 2)),
        ((0, 4), True, (0, 4)),
    ],
)
def test_a_clipping_value_bounds_the_final_range(limits, symmetric, expected):
    assert clipped(Range(np.float32(-3), np.float32(5)), clipping(*limits), symmetric) == expected


@given(
    ends=st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=2, max_size=2),
    grid=st.builds(IntType, bits=st.integers(2, 16), signed=st.booleans()),
)
def test_any_range_gives_a_finite_scale_with_zero_on_the_grid(ends, grid):
    found = Range(*np.sort(np.float32(ends))[:, None])
    for params in (asymmetric_params(found, grid), symmetric_params(found, grid)):
        assert np.isfinite(params.scale).all()
        assert (params.scale > 0).all()
        assert ((grid.qmin <= params.zero_point) & (params.zero_point <= grid.qmax)).all()


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e38, 3.4e38])
def test_extreme_sizes_give_finite_scales(size):
    for found in (one(-size, size), one(0, size), one(-size, 0)):
        for params in (asymmetric_params(found, UINT8), symmetric_params(found, INT8)):
            assert np.isfinite(params.scale).all()
            assert params.scale > 1e-10


def test_the_channels_of_a_symmetric_tensor_have_one_zero_point():
    params = symmetric_params(Range(np.float32([0, -1]), np.float32([4, 2])), UINT8)
    assert params.zero_point.tolist() == [128, 128]
    assert symmetric_params(Range(np.float32([0, 0]), np.float32([4, 2])), UINT8).zero_point.tolist() == [0, 0]


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (-127, 127), (0, 15), (-5, 10), (-64, 63)])
def test_weights_take_any_pair_of_levels(low, high):
    params = symmetric_weight_params(np.float32([1.0]), IntType(8, levels=(low, high)))
    weights = np.linspace(-1, 1, 41)
    q = np.clip(np.round(weights / params.scale) + params.zero_point, low, high)
    np.testing.assert_allclose((q - params.zero_point) * params.scale, weights, atol=1.01 * float(params.scale[0]))
    assert low <= params.zero_point[0] <= high


@given(found=ends, grid=grids)
def test_asymmetric_parameters_hold_zero_and_cover_the_range(found, grid):
    params = asymmetric_params(found, grid)
    scale, zero_point = np.float64(params.scale), params.zero_point
    assert (grid.qmin <= zero_point).all()
    assert (zero_point <= grid.qmax).all()
    step = scale * (0.5 + 1e-3)  # where zero fell off the grid, rounding it moves the range by up to half a step
    assert ((grid.qmin - zero_point) * scale <= found.low + step).all()
    assert ((grid.qmax - zero_point) * scale >= found.high - step).all()


@given(found=ends, grid=grids)
def test_symmetric_parameters_are_centred_or_unsigned(found, grid):
    params = symmetric_params(found, grid)
    assert params.zero_point == (grid.qmin if found.low >= 0 else grid.qmin + (grid.qmax - grid.qmin + 1) // 2)
    reach = np.float64(params.scale) * (grid.qmax - params.zero_point)
    assert reach >= max(float(found.high.item()), -float(found.low.item())) * (1 - 1e-6)


@given(found=ends, grid=grids)
def test_parameters_are_positive_and_32_bit(found, grid):
    for params in (asymmetric_params(found, grid), symmetric_params(found, grid)):
        assert params.scale.dtype == np.float32
        assert params.zero_point.dtype == np.int32
        assert (params.scale > 0).all()
        assert params.scale.shape == params.zero_point.shape == (1,)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_reach_the_ends_of_the_narrow_grid(bits):
    params = symmetric_weight_params(np.array([[1.0], [3.0]], np.float32), IntType(bits, narrow=True))
    top = 2 ** (bits - 1) - 1
    assert (params.qmin, params.qmax) == (-top, top)
    np.testing.assert_allclose(params.scale, np.array([[1.0], [3.0]]) / top, rtol=1e-6)
    assert not params.zero_point.any()


def test_a_bias_has_the_scale_of_the_products():
    params = bias_params(np.full((1, 1, 1, 1), 0.5, np.float32), np.array([0.1, 0.2], np.float32))
    np.testing.assert_allclose(params.scale, [0.05, 0.1], rtol=1e-7)
    assert (params.qmin, params.qmax) == (-(2**31), 2**31 - 1)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=5))
def test_a_bias_with_a_scale_of_its_own_loses_less_than_float32_keeps(values):
    bias, room = np.float32(values), 2.0**30
    params = own_bias_params(bias, room)
    assert np.frexp(params.scale[0])[0] == 0.5 or params.scale[0] == SMALLEST_SCALE
    largest = np.abs(bias).max()
    assert largest <= room * params.scale[0]
    # the smallest scale is no power of two, and what float32 keeps of a quotient by it is 24 bits
    lost = largest * 2.0**-30 if params.scale[0] != SMALLEST_SCALE else SMALLEST_SCALE + largest * 2.0**-23
    assert np.abs(fake_quantize_array(bias, params) - bias).max() <= lost
