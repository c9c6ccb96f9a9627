"""From statistics to encodings: groups share, weights are symmetric, biases fit into int32."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import branching_network, residual_network, samples, shuffle_network, smooth

from jaxq.algorithms import run_pipeline
from jaxq.algorithms.calibration import INT32_ROOM, Calibration, IntegerBiases, RangeEstimator, with_biases
from jaxq.errors import CalibrationError
from jaxq.fusion import fuse
from jaxq.graph import Graph
from jaxq.model import Model
from jaxq.observers import Extremes, Histogram
from jaxq.onnx_import import load
from jaxq.placement import Bias, Plan, Weight
from jaxq.quantize import quantize
from jaxq.quantizer import IntType, PerAxis, QuantParams, Scheme, fake_quantize
from jaxq.ranges import Range, asymmetric_params, symmetric_params, symmetric_weight_params

FEEDS = [{"image": row[None]} for row in smooth(12, 3, 8, 8)]
UINT8, WEIGHT = IntType(8, signed=False), IntType(8, narrow=True)
ASYMMETRIC = Scheme(UINT8, symmetric=False)
ESTIMATORS = list(RangeEstimator)


@pytest.fixture(scope="module")
def model() -> Model:
    loaded = load(residual_network())
    graph, params = fuse(loaded.graph, loaded.params)
    return loaded.replace(graph=graph, params=params)


@pytest.fixture(scope="module")
def plan(model) -> Plan:
    """The stem and the layer behind it; the sum and its second input share one quantizer."""
    stem, depthwise = model.graph.nodes[0], model.graph.nodes[2]
    return Plan(
        graph=model.graph,
        activations={"image": "image", "stem.relu": "shared", "sum.relu": "shared"},
        schemes=dict.fromkeys(("image", "shared"), ASYMMETRIC),
        weights=(
            Weight(stem.inputs[1], Scheme(WEIGHT, granularity=PerAxis(0))),
            Weight("scores.weight", Scheme(WEIGHT)),
        ),
        biases=(Bias(stem.inputs[2], stem.name, "image", stem.inputs[1]),),
        nodes=(stem.name, depthwise.name),
    )


def calibrated(model, plan, feeds=FEEDS, *, symmetric=False, estimator=RangeEstimator.MINMAX, batch_size=None) -> Model:
    schemes = dict.fromkeys(plan.activations.values(), Scheme(UINT8, symmetric))
    step = Calibration(plan=replace(plan, schemes=schemes), capacity=len(feeds), estimator=estimator)
    return run_pipeline([step], model, feeds, batch_size)


def tables(model: Model) -> dict[str, list]:
    return {
        name: [np.asarray(each.scale).tolist(), np.asarray(each.zero_point).tolist()]
        for name, each in model.encodings.items()
    }


def close(found: Model, expected: Model):
    for name, wanted in expected.encodings.items():
        np.testing.assert_allclose(found.encodings[name].scale, wanted.scale, rtol=1e-5)
        np.testing.assert_array_equal(found.encodings[name].zero_point, wanted.zero_point)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_order_of_the_samples_changes_no_encoding(model, plan, estimator):
    order = np.random.default_rng(0).permutation(len(FEEDS))
    expected = calibrated(model, plan, estimator=estimator, batch_size=1)
    found = calibrated(model, plan, [FEEDS[i] for i in order], estimator=estimator, batch_size=1)
    assert tables(found) == tables(expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_batch_size_changes_no_encoding(model, plan, estimator):
    expected = calibrated(model, plan, estimator=estimator, batch_size=1)
    for size in (5, None):
        close(calibrated(model, plan, estimator=estimator, batch_size=size), expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_minmax_takes_the_extremes_over_all_samples(model, plan, symmetric):
    found = calibrated(model, plan, symmetric=symmetric).encodings["image"]
    x = np.concatenate([feed["image"] for feed in FEEDS])
    expected = (symmetric_params if symmetric else asymmetric_params)(Range(x.min(), x.max()), UINT8)
    np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_array_equal(found.zero_point, expected.zero_point)


def test_mean_minmax_takes_the_mean_of_each_samples_extremes(model, plan):
    found = calibrated(model, plan, estimator=RangeEstimator.MEAN_MINMAX).encodings["image"]
    low = np.float32(np.mean([feed["image"].min() for feed in FEEDS], dtype=np.float64))
    high = np.float32(np.mean([feed["image"].max() for feed in FEEDS], dtype=np.float64))
    np.testing.assert_allclose(found.scale, asymmetric_params(Range(low, high), UINT8).scale, rtol=1e-6)


def test_tensors_of_one_group_share_the_union_of_their_ranges(model, plan):
    encodings = calibrated(model, plan).encodings
    shared, other = encodings["stem.relu"], encodings["sum.relu"]
    np.testing.assert_array_equal(shared.scale, other.scale)
    alone = replace(plan, activations={"stem.relu": "a", "sum.relu": "b"})
    each = calibrated(model, alone).encodings
    assert shared.scale == max(each["stem.relu"].scale, each["sum.relu"].scale)
    assert each["stem.relu"].scale != each["sum.relu"].scale


def test_weights_get_one_scale_per_channel_or_one(model, plan):
    encodings = calibrated(model, plan).encodings
    stem = plan.weights[0].name
    assert encodings[stem].scale.shape == (8, 1, 1, 1)
    assert encodings["scores.weight"].scale.shape == (1, 1)
    absmax = np.abs(model.params[stem]).max((1, 2, 3), keepdims=True)
    np.testing.assert_array_equal(encodings[stem].scale, symmetric_weight_params(absmax, WEIGHT).scale)
    assert (encodings[stem].qmin, encodings[stem].qmax) == (-127, 127)


def test_calibration_wants_to_see_the_planned_activations_only(model, plan):
    for estimator in ESTIMATORS:
        step = Calibration(plan=plan, capacity=3, estimator=estimator)
        assert list(step.needs(model)) == list(plan.activations)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_tensor_that_is_not_finite_is_named_with_its_sample(model, plan, bad, estimator):
    feeds = [{"image": feed["image"].copy()} for feed in FEEDS[:5]]
    feeds[3]["image"][0, 1, 2, 3] = bad
    with pytest.raises(CalibrationError, match=r"'image' is NaN or infinite in 1 .*first in sample 3"):
        calibrated(model, plan, feeds, estimator=estimator)


def test_a_tensor_of_a_branch_that_was_not_taken_stays_in_float():
    model = load(branching_network())
    plan = Plan(model.graph, {"sound": "sound", "fast.relu": "fast.relu", "slow.relu": "slow.relu"}, {}, (), (), ())
    feeds = [{"sound": smooth(1, 1, 16, seed=i), "rate": np.array(8000)} for i in range(3)]
    assert set(calibrated(model, plan, feeds).encodings) == {"sound", "slow.relu"}


def test_one_sample_that_was_not_seen_does_not_spoil_the_mean(model, plan):
    step = Calibration(plan=plan, capacity=3)
    seen = Extremes(np.array([-1, np.nan, -3], np.float32), np.array([1, np.nan, 5], np.float32))
    assert step.range("image", seen, ASYMMETRIC) == (-2, 3)


def test_the_model_given_is_not_changed(model, plan):
    calibrated(model, plan)
    assert not model.encodings


def test_the_least_squares_estimator_reads_the_histogram():
    counts = np.zeros(4096, np.int32)
    counts[2048:2448] = 10_000
    counts[-1] = 1
    seen = Extremes(np.float32([0]), np.float32([8]))
    scheme = Scheme(IntType(4, signed=False), symmetric=False)
    plan = Plan(Graph((), (), ()), {"x": "x"}, {"x": scheme}, (), (), ())
    step = Calibration(plan=plan, capacity=1, estimator=RangeEstimator.MSE)
    low, high = step.range("x", (seen, Histogram(counts, np.int32(3))), scheme)
    assert low == 0
    assert 1 < high < 4


def test_a_weight_of_zeros_has_a_scale():
    weight = Weight("w", Scheme(WEIGHT, granularity=PerAxis(0)))
    plan = Plan(Graph((), (), ()), {}, {}, (weight,), (), ())
    step = Calibration(plan=plan, capacity=1)
    found = step.apply(Model(plan.graph, {"w": np.zeros((3, 2), np.float32)}), {})
    assert (found.encodings["w"].scale > 0).all()


def test_a_group_of_a_network_has_one_quantizer():
    encodings = quantize(shuffle_network(), samples("shuffle", 12), range_estimator="minmax").encodings
    group = [encodings[name] for name in ("left.relu", "right.relu", "both", "groups", "swapped", "shuffled")]
    assert {(float(each.scale), int(each.zero_point)) for each in group} == {
        (float(group[0].scale), int(group[0].zero_point))
    }
    assert encodings["mixed.relu"].scale != group[0].scale


def test_a_bias_is_int32_in_units_of_the_products(model, plan):
    done = run_pipeline([IntegerBiases(plan)], calibrated(model, plan), [])
    bias = plan.biases[0]
    expected = done.encodings["image"].scale * done.encodings[bias.weight].scale.reshape(-1)
    np.testing.assert_array_equal(done.encodings[bias.name].scale, expected)
    assert done.encodings[bias.name].qmax == 2**31 - 1
    rounded = np.round(model.params[bias.name] / expected)
    np.testing.assert_allclose(rounded * expected, model.params[bias.name], atol=expected.max())


def encoding(scale, bits=8) -> QuantParams:
    return QuantParams.of(np.asarray(scale, np.float32), 0, IntType(bits))


@pytest.mark.parametrize(
    "weight_scale", [np.full((2, 1), 1e-9), np.full((1, 1), 1e-9)], ids=["per channel", "per tensor"]
)
def test_a_bias_that_would_overflow_raises_the_scale_of_its_weight(weight_scale):
    params = {"b": np.array([0.0, 300.0], np.float32), "w": np.full((2, 3), 1e-8, np.float32)}
    before = {"x": encoding(1e-3), "w": encoding(weight_scale)}
    after = with_biases(before, params, (Bias("b", "node", "x", "w"),))
    integers = np.abs(params["b"].astype(np.float64)) / after["b"].scale
    assert integers.max() <= INT32_ROOM * (1 + 1e-6)
    assert after["w"].scale.shape == before["w"].scale.shape
    np.testing.assert_allclose(after["b"].scale, np.broadcast_to(after["w"].scale.reshape(-1) * np.float32(1e-3), 2))
    if weight_scale.size == 2:
        assert after["w"].scale[0] == before["w"].scale[0]  # its bias fits
    assert (after["w"].scale.reshape(-1)[-1] > before["w"].scale.reshape(-1)[-1]).all()
    np.testing.assert_array_equal(before["w"].scale, weight_scale.astype(np.float32))


def test_a_bias_that_fits_changes_no_weight_scale():
    before = {"x": encoding(0.01), "w": encoding([[0.02], [0.03]])}
    after = with_biases(before, {"b": np.array([1.0, -5.0])}, (Bias("b", "node", "x", "w"),))
    np.testing.assert_array_equal(after["w"].scale, before["w"].scale)


def test_a_bias_without_a_quantized_input_stays_in_float():
    assert "b" not in with_biases({"w": encoding([[1.0]])}, {"b": np.ones(1)}, (Bias("b", "node", "x", "w"),))


@given(
    bias=st.floats(-1e4, 1e4, width=32),
    weight=st.floats(2.0**-60, 1, width=32),
    scale=st.floats(2.0**-30, 1, width=32),
)
def test_every_bias_is_kept_to_half_a_step(bias, weight, scale):
    params = {"b": np.float32([bias])}
    after = with_biases({"x": encoding(scale), "w": encoding([[weight]])}, params, (Bias("b", "node", "x", "w"),))
    rounded = float(fake_quantize(params["b"], after["b"])[0])
    assert abs(rounded - np.float32(bias)) <= 0.51 * float(after["b"].scale[0]) + abs(bias) * 1e-6


def test_a_channel_of_next_to_no_weight_keeps_its_bias():
    """The overflow that makes other tools' files wrong."""
    model = load(shuffle_network())
    weight, bias = np.array(model.params["left.weight"]), np.array(model.params["left.bias"])
    weight[0] *= 1e-12
    bias[0] = 3.0
    model = model.replace(params={**model.params, "left.weight": weight, "left.bias": bias})
    simulated = quantize(model, samples("shuffle", 12), bias_correction=False)
    x = smooth(4, 3, 8, 8)
    np.testing.assert_allclose(simulated([x])["scores"], model([x])["scores"], atol=0.1)
