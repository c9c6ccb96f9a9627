"""Weights in few bits: rounding to nearest, and GPTQ, which must never be worse at the layer's output."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import written

from jaxq.algorithms.weight_compression import (
    GPTQ,
    CompressionSite,
    WeightRounding,
    inverse_factor,
    output_error,
    params_of_extremes,
    rounding_params,
    second_moment,
)
from jaxq.engine.collect import collect
from jaxq.errors import CalibrationError
from jaxq.numerics.quantizer import IntType, PerAxis, PerBlock, PerTensor, Scheme, dequantize, quantize
from jaxq.onnx_io.load import load

INT4, UINT4 = IntType(4), IntType(4, signed=False)
SCHEMES = [
    Scheme(grid, symmetric, granularity)
    for grid, symmetric in ((INT4, True), (UINT4, True), (UINT4, False), (INT4, False))
    for granularity in (PerBlock(0, 8), PerAxis(1))
]
TEXT = "(float[N, 32] x) => (float[N, 6] y) { y = MatMul (x, w) }"


def correlated(rows: int, seed: int = 0) -> np.ndarray:
    """Inputs that move together, as activations do: GPTQ has nothing to gain from independent ones."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(8, 32)).astype(np.float32)
    return (random.normal(size=(rows, 8)) @ mixing + 0.1 * random.normal(size=(rows, 32))).astype(np.float32)


def fake(value: np.ndarray, scheme: Scheme) -> np.ndarray:
    params = rounding_params(value, scheme)
    return np.asarray(dequantize(quantize(value, params), params))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rounding_is_off_by_at_most_half_a_step(scheme):
    weight = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    params = rounding_params(weight, scheme)
    step = np.broadcast_to(np.repeat(np.asarray(params.scale), 32 // len(params.scale), 0), weight.shape)
    assert (np.abs(fake(weight, scheme) - weight) <= step * 0.501).all()


@given(
    ends=st.tuples(st.floats(-(2.0**100), 0, width=32), st.floats(0, 2.0**100, width=32)),
    grid=st.builds(IntType, st.integers(2, 8), st.booleans()),
    symmetric=st.booleans(),
)
def test_zero_stays_on_the_grid_for_any_extremes(ends, grid, symmetric):
    low, high = (np.float32([end]) for end in ends)
    params = params_of_extremes(low, high, Scheme(grid, symmetric))
    assert np.isfinite(params.scale).all()
    assert (params.scale > 0).all()
    assert (grid.qmin <= params.zero_point).all()
    assert (params.zero_point <= grid.qmax).all()


def test_each_index_of_the_axis_has_its_own_scale():
    weight = np.outer(np.linspace(-1, 1, 8), [1, 10, 100]).astype(np.float32)
    scale = rounding_params(weight, Scheme(INT4, granularity=PerAxis(1))).scale
    np.testing.assert_allclose(scale, [[2 / 15, 20 / 15, 200 / 15]], rtol=1e-6)
    assert rounding_params(weight, Scheme(INT4, granularity=PerTensor())).scale.shape == (1, 1)


def test_the_second_moment_is_that_of_all_vectors_whatever_the_batch():
    model = load(written(TEXT, w=np.ones((32, 6), np.float32)))
    x = correlated(10)
    feeds = [{"x": row[None]} for row in x]
    for size in (1, 4):
        found = collect(model, [{"x": second_moment(32)}], feeds, batch_size=size)[0]["x"]
        np.testing.assert_allclose(found, x.T @ x, rtol=1e-4, atol=1e-3)


def test_the_factor_is_that_of_the_inverse():
    moment = correlated(64).T.astype(np.float64) @ correlated(64)
    factor = inverse_factor(moment, damp=0.1)
    damped = moment + 0.1 * np.mean(np.diag(moment)) * np.eye(32)
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(32), atol=1e-8)
    np.testing.assert_array_equal(np.tril(factor, -1), 0)


def gptq(weight: np.ndarray, x: np.ndarray, scheme: Scheme):
    model = load(written(TEXT, w=weight))
    site = CompressionSite("w", 0, "x")
    step = GPTQ((site,), {"w": scheme})
    return step.apply(model, collect(model, [step.needs(model)], [{"x": row[None]} for row in x])[0])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_makes_a_smaller_error_at_the_output_than_rounding(scheme):
    weight = np.random.default_rng(1).normal(size=(32, 6)).astype(np.float32)
    x = correlated(64)
    done = gptq(weight, x, scheme)
    exact = x @ weight
    rounded = ((x @ fake(weight, scheme) - exact) ** 2).mean()
    tuned = ((x @ np.asarray(done.params["w"]) - exact) ** 2).mean()
    assert tuned < 0.7 * rounded


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_gptq_gives_is_on_the_grid(scheme):
    weight = np.random.default_rng(1).normal(size=(32, 6)).astype(np.float32)
    done = gptq(weight, correlated(64), scheme)
    params, value = done.encodings["w"], done.params["w"]
    np.testing.assert_allclose(dequantize(quantize(value, params), params), value, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), dead=st.integers(0, 8))
def test_inputs_that_are_always_zero_leave_their_weights_rounded_to_nearest(seed, dead):
    weight = np.random.default_rng(seed).normal(size=(32, 6)).astype(np.float32)
    x = correlated(64, seed)
    x[:, :dead] = 0
    step = GPTQ((), {})
    scheme = Scheme(UINT4, symmetric=False, granularity=PerAxis(1))
    done, _ = step.rounded(weight, x.T.astype(np.float64) @ x, scheme)
    np.testing.assert_allclose(done[:dead], fake(weight, scheme)[:dead], rtol=1e-5)


def test_an_input_that_is_not_finite_is_named():
    x = correlated(4)
    x[2, 3] = np.inf
    with pytest.raises(CalibrationError, match="tensor 'x' is NaN or infinite"):
        gptq(np.ones((32, 6), np.float32), x, SCHEMES[0])


def test_a_transposed_weight_is_rounded_along_its_own_axis():
    weight = np.random.default_rng(1).normal(size=(32, 6)).astype(np.float32)
    text = "(float[N, 32] x) => (float[N, 6] y) { y = Gemm <transB = 1> (x, w) }"
    model = load(written(text, w=np.ascontiguousarray(weight.T)))
    step = GPTQ((CompressionSite("w", 1, "x"),), {"w": Scheme(INT4, granularity=PerBlock(1, 8))})
    x = correlated(16)
    done = step.apply(model, collect(model, [step.needs(model)], [{"x": row[None]} for row in x])[0])
    plain = gptq(weight, x, Scheme(INT4, granularity=PerBlock(0, 8)))
    np.testing.assert_allclose(done.params["w"].T, plain.params["w"], rtol=1e-6)
    np.testing.assert_allclose(done.encodings["w"].scale.T, plain.encodings["w"].scale, rtol=1e-6)


def test_the_output_error_with_data_is_that_of_the_outputs():
    weight = np.random.default_rng(1).normal(size=(32, 6)).astype(np.float32)
    x, scheme = correlated(64), Scheme(INT4, granularity=PerAxis(1))
    exact, wrong = x @ weight, x @ fake(weight, scheme) - x @ weight
    found = output_error(weight, scheme, 0, x.T.astype(np.float64) @ x)
    np.testing.assert_allclose(found, (wrong**2).sum() / (exact**2).sum(), rtol=1e-3)
    alone = output_error(weight, scheme, 0)
    np.testing.assert_allclose(alone, ((fake(weight, scheme) - weight) ** 2).sum() / (weight**2).sum(), rtol=1e-4)


def test_the_model_given_is_not_changed():
    model = load(written(TEXT, w=np.random.default_rng(1).normal(size=(32, 6)).astype(np.float32)))
    before = np.array(model.params["w"])
    WeightRounding({"w": SCHEMES[0]}).apply(model, {})
    np.testing.assert_array_equal(model.params["w"], before)
    assert not model.encodings
