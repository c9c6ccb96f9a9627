import json
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxq.observers import BINS, histogram
from jaxq.quantizer import IntType, Scheme
from jaxq.ranges import (
    Range,
    aggregate,
    asymmetric_params,
    bias_params,
    histogram_values,
    least_squares_range,
    symmetric_params,
    symmetric_weight_params,
    widen_zero_channels,
)

REFERENCE = json.loads((Path(__file__).parent / "reference" / "ranges.json").read_text())
INT8, UINT8 = IntType(8), IntType(8, signed=False)

values = st.integers(-(10**6), 10**6).map(lambda i: i / 256)
ends = st.tuples(values, values).map(lambda pair: Range(*np.sort(np.array(pair, np.float32))[:, None]))
grids = st.builds(IntType, bits=st.integers(2, 8), signed=st.booleans())


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


@cases("aggregators")
def test_aggregators_give_the_numbers_of_the_reference(case):
    samples = np.array(case["values"], np.float32)
    for how in ("mean", "max", "min", "median"):
        assert aggregate(samples, how) == case[how]


@given(samples=hnp.arrays(np.float32, 7, elements=values), order=st.permutations(range(7)))
def test_aggregates_do_not_depend_on_the_order_of_the_samples(samples, order):
    for how in ("mean", "max", "min", "median"):
        assert aggregate(samples, how) == aggregate(samples[order], how)


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


def test_the_value_of_a_bin_is_its_middle():
    centres = histogram_values(np.zeros(BINS), 0)
    assert centres[0] == -1 + 0.5 / (BINS // 2)
    assert centres[BINS // 2] == 0.5 / (BINS // 2)
    assert centres[-1] == 1 - 0.5 / (BINS // 2)


def summary(x: np.ndarray) -> tuple[Range, np.ndarray, int]:
    state = histogram().measure([jnp.asarray(x)[None]], jnp.ones(1, bool))
    return Range(x.min(), x.max()), np.asarray(state.counts[0]), int(state.exponent[0])


def squared_error(found, counts, exponent, grid, symmetric) -> float:
    params = (symmetric_params if symmetric else asymmetric_params)(found, grid)
    x, scale, zero_point = histogram_values(counts, exponent), np.float64(params.scale), np.float64(params.zero_point)
    q = np.clip(np.round(x / scale) + zero_point, grid.qmin, grid.qmax)
    return float((counts * ((q - zero_point) * scale - x) ** 2).sum())


@settings(max_examples=15)
@given(x=hnp.arrays(np.float32, 24, elements=values), grid=grids, symmetric=st.booleans())
def test_the_least_squares_error_is_never_above_that_of_min_max(x, grid, symmetric):
    full, counts, exponent = summary(x)
    found = least_squares_range(full, counts, exponent, Scheme(grid, symmetric))
    error = squared_error(found, counts, exponent, grid, symmetric)
    assert error <= squared_error(full, counts, exponent, grid, symmetric) * (1 + 1e-6)
    assert found.low >= full.low
    assert found.high <= max(full.high, -full.low)


@pytest.mark.parametrize("symmetric", [False, True])
def test_least_squares_cuts_off_a_lonely_outlier_at_few_bits(symmetric):
    x = np.append(np.random.default_rng(0).normal(size=4000), [9.0]).astype(np.float32)
    full, counts, exponent = summary(x)
    for grid in (IntType(4), IntType(4, signed=False)):
        assert least_squares_range(full, counts, exponent, Scheme(grid, symmetric)).high < 5


@pytest.mark.parametrize("symmetric", [False, True])
def test_least_squares_keeps_the_range_of_a_tensor_of_zeros(symmetric):
    full, counts, exponent = summary(np.zeros(8, np.float32))
    assert least_squares_range(full, counts, exponent, Scheme(INT8, symmetric)) == (0, 0)
