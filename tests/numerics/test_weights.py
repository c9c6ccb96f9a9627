"""Ranges of weights: every estimator, granularity and mode."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxq.errors import CalibrationError, ConfigError
from jaxq.numerics.estimators import RangeEstimatorParameters, StatisticsCollectorParameters
from jaxq.numerics.estimators import RangeEstimatorParametersSet as Estimators
from jaxq.numerics.quantizer import IntType, PerAxis, PerBlock, PerTensor, Scheme, fake_quantize
from jaxq.numerics.ranges import Range, asymmetric_params, symmetric_weight_params
from jaxq.numerics.weights import CLIPPING, scale_rows, weight_params

NARROW, INT8, INT4 = IntType(8, narrow=True), IntType(8), IntType(4)
WEIGHT = np.random.default_rng(0).normal(0, 0.1, (6, 4, 3)).astype(np.float32)
GRANULARITIES = {
    "tensor": (PerTensor(), (1, 1, 1)),
    "axis 0": (PerAxis(0), (6, 1, 1)),
    "axis 1": (PerAxis(1), (1, 4, 1)),
    "blocks of 2": (PerBlock(1, 2), (6, 2, 3)),
}
TAKEN = {name: each for name, each in Estimators.items() if name not in ("entropy", "histogram", "auto")}
TAKEN["POT quantile"] = RangeEstimatorParameters(preset="quantile")


@pytest.mark.parametrize(("granularity", "shape"), GRANULARITIES.values(), ids=GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("estimator", TAKEN.values(), ids=TAKEN)
def test_a_weight_gets_scales_of_its_granularity_that_serve_it(estimator, symmetric, granularity, shape):
    params = weight_params("w", WEIGHT, Scheme(INT8, symmetric, granularity), estimator)
    assert params.scale.shape == params.zero_point.shape == shape
    error = np.abs(np.asarray(fake_quantize(jnp.asarray(WEIGHT), params)) - WEIGHT)
    assert error.mean() < 2 * float(params.scale.max())


def test_symmetric_extremes_are_those_of_the_absolute_values():
    absmax = np.abs(WEIGHT).max((1, 2), keepdims=True)
    found = weight_params("w", WEIGHT, Scheme(NARROW, True, PerAxis(0)), Estimators.MINMAX)
    np.testing.assert_array_equal(found.scale, symmetric_weight_params(absmax, NARROW).scale)


def test_asymmetric_extremes_are_signed():
    low, high = WEIGHT.min((1, 2), keepdims=True), WEIGHT.max((1, 2), keepdims=True)
    found = weight_params("w", WEIGHT, Scheme(INT8, False, PerAxis(0)), Estimators.MINMAX)
    expected = asymmetric_params(Range(low, high), INT8)
    np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_array_equal(found.zero_point, expected.zero_point)


def test_channels_of_an_asymmetric_weight_can_have_one_zero_point():
    scheme = Scheme(INT8, False, PerAxis(0))
    apart = weight_params("w", WEIGHT + np.float32(0.05), scheme, Estimators.MINMAX)
    unified = weight_params("w", WEIGHT + np.float32(0.05), scheme, Estimators.MINMAX, unified_zero_point=True)
    assert len(set(apart.zero_point.ravel().tolist())) > 1
    assert len(set(unified.zero_point.ravel().tolist())) == 1


@pytest.mark.parametrize("outlier", [1e-4, 0.1])
def test_quantiles_are_those_of_numpy(outlier):
    part = StatisticsCollectorParameters("quantile", quantile_outlier_prob=outlier)
    estimator = RangeEstimatorParameters(part, part)
    found = weight_params("w", WEIGHT, Scheme(INT8, True, PerTensor()), estimator)
    np.testing.assert_allclose(found.scale, np.quantile(np.abs(WEIGHT), 1 - outlier) / 127.5, rtol=1e-5)
    found = weight_params("w", WEIGHT, Scheme(INT8, False, PerTensor()), estimator)
    ends = np.quantile(WEIGHT, [outlier, 1 - outlier])
    expected = asymmetric_params(Range(*ends.astype(np.float32)), INT8)
    np.testing.assert_allclose(found.scale.item(), expected.scale, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_least_squares_is_the_best_of_its_candidates_in_each_channel(symmetric):
    scheme = Scheme(INT4, symmetric, PerAxis(0))
    heavy = WEIGHT**3

    def errors(params):
        return ((np.asarray(fake_quantize(jnp.asarray(heavy), params)) - heavy) ** 2).sum((1, 2))

    found = errors(weight_params("w", heavy, scheme, Estimators.MSE))
    full = errors(weight_params("w", heavy, scheme, Estimators.MINMAX))
    assert (found <= full * (1 + 1e-5)).all()
    assert found.sum() < full.sum()
    if symmetric:
        absmax = np.abs(heavy).max((1, 2), keepdims=True)
        tried = [errors(symmetric_weight_params(absmax * np.float32(c), INT4)) for c in CLIPPING]
        np.testing.assert_allclose(found, np.min(tried, axis=0), rtol=1e-3)


@pytest.mark.parametrize("name", ["entropy", "histogram", "auto"])
def test_an_estimator_for_activations_is_refused(name):
    with pytest.raises(ConfigError, match=f"weights cannot take the range estimator '{name}'"):
        weight_params("w", WEIGHT, Scheme(INT8), Estimators.of(name))


def test_a_weight_that_is_not_finite_is_named():
    bad = WEIGHT.copy()
    bad[1, 2, 0] = np.nan
    with pytest.raises(CalibrationError, match=r"weight 'stem\.w' has 1 value"):
        weight_params("stem.w", bad, Scheme(NARROW), Estimators.MINMAX)


sizes = st.sampled_from([0.0, 1e-38, 1e-10, 1.0, 1e10, 1e38])


@given(
    weight=hnp.arrays(np.float32, (3, 4), elements=st.floats(-1, 1, width=32)),
    size=hnp.arrays(np.float64, (3, 1), elements=sizes),
    symmetric=st.booleans(),
    name=st.sampled_from(["minmax", "mse", "percentile", "mean_quantile"]),
    granularity=st.sampled_from([PerTensor(), PerAxis(0), PerAxis(1)]),
)
def test_dead_tiny_and_huge_channels_have_finite_scales(weight, size, symmetric, name, granularity):
    weight = (weight * size).astype(np.float32)
    params = weight_params("w", weight, Scheme(INT8, symmetric, granularity), Estimators.of(name))
    assert np.isfinite(params.scale).all()
    assert (params.scale > 0).all()
    assert ((params.zero_point >= -128) & (params.zero_point <= 127)).all()


def test_a_clipping_value_bounds_a_weight_too():
    part = StatisticsCollectorParameters(clipping_value=0.05)
    found = weight_params("w", WEIGHT, Scheme(NARROW), RangeEstimatorParameters(max=part))
    np.testing.assert_allclose(found.scale, 0.05 / 127, rtol=1e-6)


def test_blocks_that_do_not_divide_the_axis_are_refused():
    with pytest.raises(ConfigError, match="4 values along axis 1 do not divide into groups of 3"):
        scale_rows(WEIGHT, PerBlock(1, 3))
