from dataclasses import dataclass, replace

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from jaxq.numerics.quantizer import (
    E4M3,
    E5M2,
    SMALLEST_SCALE,
    IntType,
    QuantParams,
    dequantize,
    fake_quantize,
    quantize,
    round_half_even,
)
from jaxq.numerics.ranges import Range, asymmetric_params, symmetric_params, symmetric_weight_params

pytestmark = pytest.mark.usefixtures("strict_ranks")
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@dataclass(frozen=True, kw_only=True)
class Grid:
    grid: IntType
    qmin: int
    qmax: int


GRIDS = {
    "int8": Grid(grid=IntType(8), qmin=-128, qmax=127),
    "int8 narrow": Grid(grid=IntType(8, narrow=True), qmin=-127, qmax=127),
    "uint8": Grid(grid=IntType(8, signed=False), qmin=0, qmax=255),
    "int4": Grid(grid=IntType(4), qmin=-8, qmax=7),
    "uint2": Grid(grid=IntType(2, signed=False), qmin=0, qmax=3),
    "int32": Grid(grid=IntType(32), qmin=-(2**31), qmax=2**31 - 1),
}

# One shape, so that each law compiles once; sixteenths are exact in float32 and never tiny.
values = st.integers(-(10**6), 10**6).map(lambda i: i / 16)
tensors = hnp.arrays(np.float32, (2, 3, 4), elements=values)
grids = st.builds(IntType, bits=st.integers(2, 8), signed=st.booleans())


def params_of(x: np.ndarray, grid: IntType, symmetric: bool) -> QuantParams:
    choose = symmetric_params if symmetric else asymmetric_params
    return choose(Range(x.min(keepdims=True), x.max(keepdims=True)), grid)


fake = jax.jit(fake_quantize)


@pytest.mark.parametrize("case", GRIDS.values(), ids=GRIDS)
def test_integer_bounds(case):
    assert (case.grid.qmin, case.grid.qmax) == (case.qmin, case.qmax)


@shared_fixture
@given(x=tensors, grid=grids, symmetric=st.booleans())
def test_fake_quantize_twice_is_fake_quantize_once(x, grid, symmetric):
    params = params_of(x, grid, symmetric)
    once = fake(x, params)
    np.testing.assert_array_equal(fake(once, params), once)


@shared_fixture
@given(x=tensors, grid=grids, symmetric=st.booleans())
def test_zero_stays_zero(x, grid, symmetric):
    np.testing.assert_array_equal(fake(np.zeros_like(x), params_of(x, grid, symmetric)), 0)


@shared_fixture
@given(x=tensors, grid=grids, symmetric=st.booleans(), power=st.integers(-6, 6))
def test_scaling_by_a_power_of_two_commutes(x, grid, symmetric, power):
    params = params_of(x, grid, symmetric)
    factor = np.float32(2.0**power)
    scaled = replace(params, scale=params.scale * factor)
    np.testing.assert_array_equal(fake(x * factor, scaled), fake(x, params) * factor)


@shared_fixture
@given(x=tensors, grid=grids, symmetric=st.booleans())
def test_inside_the_range_the_error_is_at_most_half_a_step(x, grid, symmetric):
    params = params_of(x, grid, symmetric)
    low, high = (np.float64(q - params.zero_point) * params.scale for q in (grid.qmin, grid.qmax))
    error = np.abs(np.asarray(fake(x, params), np.float64) - x)
    inside = (x >= low) & (x <= high)
    assert (error[inside] <= (params.scale * (0.5 + 1e-4)).item()).all()


@shared_fixture
@given(x=tensors, grid=grids, symmetric=st.booleans())
def test_a_larger_value_never_gets_a_smaller_integer(x, grid, symmetric):
    ordered = np.sort(x.ravel()).reshape(x.shape)
    assert (np.diff(np.asarray(quantize(jnp.asarray(ordered), params_of(x, grid, symmetric))).ravel()) >= 0).all()


@shared_fixture
@given(x=tensors, grid=grids, symmetric=st.booleans())
def test_a_disabled_quantizer_changes_nothing(x, grid, symmetric):
    off = replace(params_of(x, grid, symmetric), enabled=np.bool_(False))
    np.testing.assert_array_equal(fake(x, off), x)


def test_a_disabled_quantizer_lets_nan_and_infinity_pass():
    x = np.array([np.nan, np.inf, -np.inf, 1e30], np.float32)
    off = replace(QuantParams.of(np.ones(1), 0, IntType(8)), enabled=np.bool_(False))
    np.testing.assert_array_equal(fake(x, off), x)


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_divides_as_numpy_does_at_ties(per_channel):
    """Every x is half a step from its neighbours, times scales whose reciprocal is not exact."""
    scale = np.array([0.1, 0.3, 1 / 255, 0.0171, 7e-5, 3.7], np.float32)[:, None]
    scale = scale if per_channel else scale[:1]
    halves = np.arange(-127.5, 128.0, 0.5, dtype=np.float32)[None]
    x = np.concatenate([np.nextafter(halves * scale, way * np.float32(np.inf)) for way in (-1, 1)] + [halves * scale])
    scale = np.concatenate([scale] * 3) if per_channel else scale
    params = QuantParams.of(scale, 0, IntType(8))
    expected = np.clip(np.round(x / scale), -128, 127)
    np.testing.assert_array_equal(jax.jit(quantize)(x, params), expected)
    np.testing.assert_array_equal(quantize(jnp.asarray(x), params), expected)


def test_values_beyond_the_grid_are_clipped():
    params = QuantParams.of(np.full(1, 0.5), 3, IntType(4))
    np.testing.assert_array_equal(quantize(jnp.array([-100.0, 0.0, 100.0]), params), [-8, 3, 7])
    np.testing.assert_array_equal(dequantize(jnp.array([-8.0, 3.0, 7.0]), params), [-5.5, 0, 2])


def test_a_scale_below_the_floor_is_raised():
    params = QuantParams.of(np.array([0.0, 1e-38, 2.0]), 0, IntType(8))
    np.testing.assert_array_equal(params.scale, np.array([SMALLEST_SCALE, SMALLEST_SCALE, 2.0], np.float32))
    assert np.isfinite(np.asarray(fake(np.ones(3, np.float32), params))).all()


def test_a_tensor_keeps_its_dtype():
    params = QuantParams.of(np.ones((1,)), 0, IntType(8))
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        assert fake(jnp.ones(3, dtype), params).dtype == dtype


def test_the_derivative_is_straight_through_inside_and_zero_outside():
    params = symmetric_weight_params(np.ones(1, np.float32), IntType(8, narrow=True))
    gradient = jax.grad(lambda x: fake_quantize(x, params).sum())(jnp.array([0.3, -0.7, 5.0]))
    np.testing.assert_array_equal(gradient, [1, 1, 0])
    assert jax.grad(lambda x: round_half_even(x * 3.0))(0.4) == 3


def test_the_derivative_in_the_scale_is_that_of_lsq():
    """q - x / scale inside, qmin or qmax outside."""
    x, params = jnp.array([0.26, 9.0, -9.0]), QuantParams.of(np.full(3, 0.1), 0, IntType(4))
    found = jax.grad(lambda scale: fake_quantize(x, replace(params, scale=scale)).sum())(jnp.asarray(params.scale))
    np.testing.assert_allclose(found, [3 - 2.6, 7, -8], rtol=1e-5)


def test_scale_bits_and_switch_are_data():
    traces = []

    @jax.jit
    def run(x, params):
        traces.append(1)
        return fake_quantize(x, params)

    x = jnp.linspace(-1.0, 1.0, 7)
    for bits, scale, on in ((8, 0.1, True), (4, 0.2, True), (2, 0.3, False)):
        params = QuantParams.of(np.full(1, scale), 0, IntType(bits))
        run(x, replace(params, enabled=np.bool_(on)))
    assert len(traces) == 1


@pytest.mark.parametrize("grid", [E4M3, E5M2], ids=["e4m3", "e5m2"])
def test_a_floating_point_grid_rounds_as_the_type_does(grid):
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    x = np.concatenate([x * scale for scale in (1e-6, 1e-3, 1, 100, 1e6)])
    params = QuantParams.of(np.full(1, 0.25), 0, grid)
    expected = np.clip(x / np.float32(0.25), grid.qmin, grid.qmax).astype(jnp.dtype(grid.name)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(quantize)(x, params), expected)


def test_each_block_uses_its_own_scale():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    scale = np.array([[0.1, 0.2], [0.3, 0.4], [0.1, 0.2], [0.3, 0.4], [0.1, 0.2], [0.3, 0.4]], np.float32)
    blocked = QuantParams.of(scale, 0, IntType(4))
    spelled_out = QuantParams.of(np.repeat(scale, 2, axis=1), 0, IntType(4))
    np.testing.assert_array_equal(fake(x, blocked), fake(x, spelled_out))
