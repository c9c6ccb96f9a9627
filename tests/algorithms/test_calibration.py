"""From statistics to encodings: groups share, weights are symmetric, biases fit into int32."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import samples, shuffle_network, smooth

from jaxq.algorithms.calibration import Calibration, IntegerBiases, RangeEstimator, with_biases
from jaxq.errors import CalibrationError
from jaxq.graph import Graph
from jaxq.model import Model
from jaxq.observers import Extremes, Histogram, both, extremes, histogram
from jaxq.onnx_import import load
from jaxq.placement import Bias, Plan, Weight
from jaxq.quantizer import IntType, PerAxis, PerTensor, QuantParams, fake_quantize
from jaxq.quantize import quantize
from jaxq.ranges import Range, asymmetric_params, symmetric_params

GRID = IntType(8, signed=False)
NOTHING = Graph((), (), ())


def calibration(activations: Mapping[str, str], weights: tuple[Weight, ...] = (), **options) -> Calibration:
    plan = Plan(NOTHING, activations, weights, (), ())
    defaults = {"grid": GRID, "symmetric": False, "capacity": 4, "estimator": RangeEstimator.MINMAX}
    return Calibration(plan=plan, **(defaults | options))


def seen(low: list[float], high: list[float]) -> Extremes:
    return Extremes(np.float32(low), np.float32(high))


def one(low: float, high: float) -> Range:
    return Range(np.float32(low), np.float32(high))


def assert_params(found: QuantParams, expected: QuantParams) -> None:
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-6)
    np.testing.assert_array_equal(found.zero_point, expected.zero_point)


@pytest.mark.parametrize(
    "estimator, expected",
    [(RangeEstimator.MINMAX, one(-3, 8)), (RangeEstimator.MEAN_MINMAX, one(-2, 5))],
)
def test_ranges_follow_from_the_extremes_of_the_samples(estimator, expected):
    step = calibration({"x": "x"}, estimator=estimator)
    stats = {"x": seen([-1, np.nan, -3, -2], [2, np.nan, 5, 8])}  # the second sample was not seen
    encodings = step.apply(Model(NOTHING, {}), stats).encodings
    assert_params(encodings["x"], asymmetric_params(expected, GRID))


def test_symmetric_is_an_option():
    step = calibration({"x": "x"}, symmetric=True)
    found = step.apply(Model(NOTHING, {}), {"x": seen([-1], [2])}).encodings["x"]
    assert_params(found, symmetric_params(one(-1, 2), GRID))


def test_tensors_of_one_group_share_the_union_of_their_ranges():
    step = calibration({"a": "a", "b": "a", "c": "c"})
    stats = {"a": seen([-1], [2]), "b": seen([-4], [1]), "c": seen([0], [1])}
    found = step.apply(Model(NOTHING, {}), stats).encodings
    assert_params(found["a"], asymmetric_params(one(-4, 2), GRID))
    assert_params(found["b"], found["a"])
    assert_params(found["c"], asymmetric_params(one(0, 1), GRID))


def test_the_least_squares_estimator_reads_the_histogram():
    counts = np.zeros(4096, np.int32)
    counts[2048:2448] = 10_000
    counts[-1] = 1
    stats = {"x": (seen([0], [8]), Histogram(counts, np.int32(3)))}
    step = calibration({"x": "x"}, grid=IntType(4, signed=False), estimator=RangeEstimator.MSE)
    assert step.apply(Model(NOTHING, {}), stats).encodings["x"].scale * 15 < 4


@pytest.mark.parametrize("estimator", RangeEstimator)
def test_what_is_watched_is_what_the_estimator_reads(estimator):
    needs = calibration({"a": "a", "b": "a"}, estimator=estimator).needs(Model(NOTHING, {}))
    watched = both(extremes(4), histogram()) if estimator is RangeEstimator.MSE else extremes(4)
    assert needs == {"a": watched, "b": watched}


def test_a_tensor_that_no_sample_had_stays_in_float():
    step = calibration({"x": "x", "y": "y"})
    stats = {"x": seen([np.nan], [np.nan]), "y": seen([0], [1])}
    assert set(step.apply(Model(NOTHING, {}), stats).encodings) == {"y"}


def test_a_tensor_that_is_not_finite_is_an_error_with_its_samples():
    step = calibration({"x": "x"})
    with pytest.raises(
        CalibrationError, match=r"tensor 'x' is NaN or infinite in 2 calibration sample\(s\), first in sample 1"
    ):
        step.apply(Model(NOTHING, {}), {"x": seen([0, -np.inf, 0, 0], [1, 1, 1, np.inf])})


def test_weights_are_symmetric_with_the_largest_value_at_the_end():
    weight = np.float32([[1.27, -0.5], [0.1, 2.54]])
    step = calibration({}, (Weight("rows", PerAxis(0)), Weight("columns", PerAxis(1)), Weight("whole", PerTensor())))
    params = {"rows": weight, "columns": weight, "whole": weight}
    found = step.apply(Model(NOTHING, params), {}).encodings
    np.testing.assert_allclose(found["rows"].scale, [[0.01], [0.02]], rtol=1e-6)
    np.testing.assert_allclose(found["columns"].scale, [[0.01, 0.02]], rtol=1e-6)
    np.testing.assert_allclose(found["whole"].scale, [[0.02]], rtol=1e-6)
    assert (found["rows"].qmin, found["rows"].qmax) == (-127, 127)


def test_a_weight_of_zeros_has_a_scale():
    found = calibration({}, (Weight("w", PerAxis(0)),)).apply(Model(NOTHING, {"w": np.zeros((3, 2), np.float32)}), {})
    assert (found.encodings["w"].scale > 0).all()


def test_a_group_of_a_network_has_one_quantizer():
    encodings = quantize(
        shuffle_network(), samples("shuffle", 12), range_estimator="minmax", bias_correction=False
    ).encodings
    group = [encodings[name] for name in ("left.relu", "right.relu", "both", "groups", "swapped", "shuffled")]
    for each in group[1:]:
        assert_params(each, group[0])
    assert encodings["mixed.relu"].scale != group[0].scale


# ------------------------------------------------------------------------------------------------------------ biases

BIAS = Bias("b", "conv", "x", "w")


def biased(bias: np.ndarray, weight_scale: np.ndarray, input_scale: float) -> tuple[dict[str, QuantParams], np.ndarray]:
    narrow = IntType(8, narrow=True)
    encodings = {
        "x": QuantParams.of(np.float32(input_scale).reshape(1, 1), 0, GRID),
        "w": QuantParams.of(weight_scale, 0, narrow),
    }
    params = {"b": np.float32(bias)}
    found = with_biases(encodings, params, (BIAS,))
    return found, np.asarray(fake_quantize(params["b"], found["b"]))


def test_a_bias_is_in_units_of_input_and_weight():
    found, rounded = biased([0.5, -2], np.float32([[0.01], [0.02]]), 0.1)
    np.testing.assert_allclose(found["b"].scale, [0.001, 0.002], rtol=1e-6)
    assert (found["b"].qmin, found["b"].qmax) == (-(2**31), 2**31 - 1)
    np.testing.assert_allclose(rounded, [0.5, -2], atol=0.001)
    np.testing.assert_array_equal(found["w"].scale, np.float32([[0.01], [0.02]]))


def test_a_bias_that_would_overflow_raises_the_scale_of_its_channel_only():
    found, rounded = biased([1000.0, 1.0], np.float32([[1e-9], [1e-3]]), 1e-3)
    np.testing.assert_allclose(rounded, [1000, 1], rtol=1e-3)
    assert found["w"].scale[0, 0] > 1e-6
    assert found["w"].scale[1, 0] == np.float32(1e-3)
    assert np.abs(1000 / found["b"].scale[0]) <= 2**30 * (1 + 1e-6)


@given(
    bias=st.floats(-1e4, 1e4, width=32),
    weight=st.floats(2.0**-60, 1, width=32),
    scale=st.floats(2.0**-30, 1, width=32),
)
def test_every_bias_fits(bias, weight, scale):
    found, rounded = biased([bias], np.float32([[weight]]), scale)
    half_a_step = float(found["b"].scale[0]) * 0.51
    assert abs(float(rounded[0]) - np.float32(bias)) <= half_a_step + abs(bias) * 1e-6


def test_a_weight_with_one_scale_serves_every_channel_of_the_bias():
    found, rounded = biased([1000.0, 1.0], np.float32([[1e-9]]), 1e-3)
    assert found["w"].scale.shape == (1, 1)
    assert found["b"].scale.shape == (2,)
    np.testing.assert_allclose(rounded, [1000, 1], rtol=1e-3)


def test_a_bias_whose_input_stays_in_float_stays_in_float():
    assert with_biases({}, {"b": np.ones(1)}, (BIAS,)) == {}
    plan = Plan(NOTHING, {}, (), (BIAS,), ())
    model = Model(NOTHING, {"b": np.ones(1)})
    assert IntegerBiases(plan).needs(model) == {}
    assert IntegerBiases(plan).apply(model, {}).encodings == {}


def test_biases_of_a_network_with_tiny_weights_survive():
    """The overflow that makes other tools' files wrong: a channel of next to no weight, and a bias that matters."""
    model = load(shuffle_network())
    weight = np.array(model.params["left.weight"])
    weight[0] *= 1e-12
    bias = np.array(model.params["left.bias"])
    bias[0] = 3.0
    model = model.replace(params={**model.params, "left.weight": weight, "left.bias": bias})
    simulated = quantize(model, samples("shuffle", 12), bias_correction=False)
    x = smooth(4, 3, 8, 8)
    np.testing.assert_allclose(simulated([x])["scores"], model([x])["scores"], atol=0.1)
