"""From statistics to encodings: groups share, weights are symmetric, biases fit into int32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import branching_network, residual_network, samples, shuffle_network, smooth, written

from jaxq.algorithms import run_pipeline
from jaxq.algorithms.calibration import CANDIDATES, INT32_ROOM, Calibration, IntegerBiases, let_through, with_biases
from jaxq.algorithms.layer_errors import LayerErrors
from jaxq.engine.collect import collect
from jaxq.engine.model import Model
from jaxq.errors import CalibrationError
from jaxq.graph.fusion import fuse
from jaxq.graph.ir import Graph
from jaxq.numerics.estimators import RangeEstimatorParameters, StatisticsCollectorParameters
from jaxq.numerics.estimators import RangeEstimatorParametersSet as Estimators
from jaxq.numerics.observers import ROOM, Extremes, Histogram, Observer
from jaxq.numerics.quantizer import E4M3, IntType, PerAxis, QuantParams, Scheme, fake_quantize, fake_quantize_array
from jaxq.numerics.ranges import Range, aggregate, asymmetric_params, symmetric_params, symmetric_weight_params
from jaxq.onnx_io.load import load
from jaxq.options import AdvancedQuantizationParameters
from jaxq.pipeline import quantize
from jaxq.placement.plan import Bias, BiasForm, Plan, Weight
from jaxq.placement.schemes import QuantizationParameters

FEEDS = [{"image": row[None]} for row in smooth(12, 3, 8, 8)]
UINT8, WEIGHT = IntType(8, signed=False), IntType(8, narrow=True)
ASYMMETRIC = Scheme(UINT8, symmetric=False)
ESTIMATORS = dict(Estimators.items())
MINMAX = AdvancedQuantizationParameters(activations_range_estimator_params="minmax")
UNCORRECTED = AdvancedQuantizationParameters(disable_bias_correction=True)


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


def calibrated(model, plan, feeds=FEEDS, *, symmetric=False, estimator=Estimators.MINMAX, batch_size=None) -> Model:
    schemes = dict.fromkeys(plan.activations.values(), Scheme(UINT8, symmetric))
    step = Calibration(plan=replace(plan, schemes=schemes), capacity=len(feeds), activations=estimator)
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


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_the_order_of_the_samples_changes_no_encoding(model, plan, estimator):
    order = np.random.default_rng(0).permutation(len(FEEDS))
    if estimator is Estimators.AUTO:  # cross-validates between the odd and the even samples
        order = (
            np.concatenate([np.random.default_rng(0).permutation(6) * 2 + odd for odd in (0, 1)])
            .reshape(2, 6)
            .T.ravel()
        )
    expected = calibrated(model, plan, estimator=estimator, batch_size=1)
    found = calibrated(model, plan, [FEEDS[i] for i in order], estimator=estimator, batch_size=1)
    assert tables(found) == tables(expected)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
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
    found = calibrated(model, plan, estimator=Estimators.MEAN_MINMAX).encodings["image"]
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
    for estimator in ESTIMATORS.values():
        step = Calibration(plan=plan, capacity=3, activations=estimator)
        assert list(step.needs(model)) == list(plan.activations)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
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


def test_one_sample_that_was_not_seen_does_not_spoil_the_mean():
    scheme = Scheme(UINT8, symmetric=False)
    plan = Plan(Graph((), (), ()), {"x": "x"}, {"x": scheme}, (), (), ())
    step = Calibration(plan=plan, activations=Estimators.MEAN_MINMAX)
    seen = Extremes(np.array([-1, np.nan, -3], np.float32), np.array([1, np.nan, 5], np.float32))
    assert step.ranges({"x": seen})["x"] == (-2, 3)


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
    step = Calibration(plan=plan, activations=Estimators.MSE)
    low, high = step.ranges({"x": (seen, Histogram(counts, np.int32(3), np.int32(0)))})["x"]
    assert low == 0
    assert 1 < high < 4


@pytest.mark.parametrize("name", ["mse", "entropy", "histogram", "percentile"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_the_range_of_a_wide_grid_holds_what_was_seen(name, bits):
    counts = np.zeros(4096, np.int32)
    counts[2048:2248] = 100_000
    counts[-1] = 1
    seen = Extremes(np.float32([0, 0]), np.float32([0.5, 7.999]))
    scheme = Scheme(IntType(bits, signed=False), symmetric=False)
    plan = Plan(Graph((), (), ()), {"x": "x"}, {"x": scheme}, (), (), ())
    step = Calibration(plan=plan, activations=Estimators.of(name))
    found = step.ranges({"x": (seen, Histogram(counts, np.int32(3), np.int32(0)))})["x"]
    if name == "percentile":  # says itself how much is left out
        assert found.high < 2
    elif bits >= 12:
        assert found == (0, np.float32(7.999))
    elif bits == 8:
        assert found.high < 7


@pytest.mark.parametrize("name", [None, "auto"])
def test_activations_of_16_bits_are_as_with_extremes(name):
    wide = QuantizationParameters(num_bits=16)
    found = [
        quantize(
            shuffle_network(),
            samples("shuffle", 8),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_quantization_params=wide,
                activations_range_estimator_params=each and Estimators.of(each),
                disable_bias_correction=True,
            ),
        ).encodings
        for each in (name, "minmax")
    ]
    assert {each: float(value.scale.max()) for each, value in found[0].items()} == {
        each: float(value.scale.max()) for each, value in found[1].items()
    }


def test_a_weight_of_zeros_has_a_scale():
    weight = Weight("w", Scheme(WEIGHT, granularity=PerAxis(0)))
    plan = Plan(Graph((), (), ()), {}, {}, (weight,), (), ())
    step = Calibration(plan=plan, capacity=1)
    found = step.apply(Model(plan.graph, {"w": np.zeros((3, 2), np.float32)}), {})
    assert (found.encodings["w"].scale > 0).all()


def test_a_group_of_a_network_has_one_quantizer():
    encodings = quantize(shuffle_network(), samples("shuffle", 12), advanced_parameters=MINMAX).encodings
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


def test_a_bias_in_float_raises_the_scale_of_its_weight_and_stays():
    bias = Bias("b", "node", "x", "w", BiasForm.FLOAT)
    after = with_biases({"x": encoding(1e-5), "w": encoding([[1e-5, 1e-5]])}, {"b": np.float32([0, 30])}, (bias,))
    assert "b" not in after
    assert after["w"].scale[0, 0] == np.float32(1e-5)
    np.testing.assert_allclose(30 / (1e-5 * after["w"].scale[0, 1]), INT32_ROOM, rtol=1e-6)


def test_a_bias_with_a_scale_of_its_own_is_exact_and_leaves_its_weight_alone():
    bias, before = Bias("b", "node", "x", "w", BiasForm.OWN), {"x": encoding(1e-9), "w": encoding([[1e-9, 1e-9]])}
    params = {"b": np.float32([0.1, -3])}
    after = with_biases(before, params, (bias,))
    np.testing.assert_array_equal(fake_quantize_array(params["b"], after["b"]), params["b"])
    assert after["w"] is before["w"]
    assert after["b"].qmax == 2**31 - 1


def test_scales_for_the_places_in_each_group_hold_the_biases_of_all_groups():
    """As of a ConvTranspose: output channel 2 * group + place has the scale of its place."""
    bias, params = Bias("b", "node", "x", "w"), {"b": np.float32([1, 300, 2, -400])}
    after = with_biases({"x": encoding(1e-3), "w": encoding([[1e-9, 1e-9]])}, params, (bias,))
    np.testing.assert_allclose(after["w"].scale, np.float32([[2, 400]]) / 1e-3 / INT32_ROOM, rtol=1e-6)
    np.testing.assert_allclose(after["b"].scale, np.tile(after["w"].scale[0] * 1e-3, 2), rtol=1e-6)


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
    simulated = quantize(model, samples("shuffle", 12), advanced_parameters=UNCORRECTED)
    x = smooth(4, 3, 8, 8)
    np.testing.assert_allclose(simulated([x])["scores"], model([x])["scores"], atol=0.1)


def per_channel_plan(model, symmetric) -> Plan:
    """The input of the depthwise convolution, each of whose 8 channels has a range of its own."""
    depthwise = next(node for node in model.graph.nodes if int(node.attributes.get("group", 1)) == 8)
    scheme = Scheme(UINT8, symmetric, PerAxis(1))
    return Plan(model.graph, {depthwise.inputs[0]: "x"}, {"x": scheme}, (), (), (depthwise.name,))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["minmax", "mean_minmax", "mse", "mean_quantile"])
def test_an_activation_per_channel_has_a_scale_for_each(model, name, symmetric):
    plan = per_channel_plan(model, symmetric)
    tensor = next(iter(plan.activations))
    step = Calibration(plan=plan, capacity=len(FEEDS), activations=Estimators.of(name))
    found = run_pipeline([step], model, FEEDS, 4).encodings[tensor]
    assert found.scale.shape == found.zero_point.shape == (1, 8, 1, 1)
    seen = [np.asarray(collect(model, [{tensor: tensor_itself((1, 8, 8, 8))}], [feed])[0][tensor]) for feed in FEEDS]
    x = np.concatenate(seen)
    if name in ("minmax", "mse"):  # a distribution of each channel is not kept
        low, high = x.min((0, 2, 3)), x.max((0, 2, 3))
    elif name == "mean_minmax":
        low, high = x.min((2, 3)).mean(0), (np.abs(x) if symmetric else x).max((2, 3)).mean(0)
    else:
        rows = x.reshape(*x.shape[:2], -1)
        low = np.quantile(rows, 1e-4, axis=-1).mean(0)
        high = np.quantile(np.abs(rows) if symmetric else rows, 1 - 1e-4, axis=-1).mean(0)
    expected = (symmetric_params if symmetric else asymmetric_params)(Range(low, high), UINT8)
    np.testing.assert_allclose(found.scale.ravel(), expected.scale, rtol=1e-4)
    np.testing.assert_array_equal(found.zero_point.ravel(), expected.zero_point)


def tensor_itself(shape) -> Observer:
    """An observer that keeps the tensor of one sample."""
    return Observer(
        lambda count: jnp.zeros((count, *shape), jnp.float32),
        lambda tensors, real: jnp.stack([x[0] for x in tensors]),
        lambda state, seen, index: seen,
        lambda a, b: b,
    )


def test_extremes_of_channels_over_all_samples_need_no_place_for_each_sample(model):
    step = Calibration(plan=per_channel_plan(model, True), capacity=10**9)
    sizes = [leaf.nbytes for each in step.needs(model).values() for leaf in jax.tree.leaves(each.init(1))]
    assert sum(sizes) == 2 * 4 * ROOM + 2 * 4 * 8


def test_a_tensor_per_channel_that_no_convolution_reads_is_named(model):
    plan = replace(per_channel_plan(model, True), activations={"sum.relu": "x"})
    reader = [node for node in model.graph.nodes if node.op == "Conv" and node.inputs[0] == "sum.relu"]
    assert not reader
    with pytest.raises(CalibrationError, match=r"'sum\.relu' is to be quantized per channel"):
        Calibration(plan=plan).needs(model)


def test_more_samples_than_expected_find_room(model, plan):
    expected = calibrated(model, plan)
    schemes = dict.fromkeys(plan.activations.values(), ASYMMETRIC)
    step = Calibration(plan=replace(plan, schemes=schemes), capacity=5, activations=Estimators.MINMAX)
    close(run_pipeline([step], model, FEEDS, 3), expected)


def test_in_symmetric_mode_the_mean_is_of_the_absolute_maxima(model, plan):
    found = calibrated(model, plan, symmetric=True, estimator=Estimators.MEAN_MINMAX).encodings["image"]
    high = np.mean([np.abs(feed["image"]).max() for feed in FEEDS], dtype=np.float64)
    np.testing.assert_allclose(found.scale, high / 127, rtol=1e-6)


def test_pots_default_tells_the_sign_by_the_least_value_of_all():
    """nncf averages: one sample that is negative among many that are far from it goes unseen."""
    scheme = Scheme(UINT8, symmetric=True)
    plan = Plan(Graph((), (), ()), {"x": "x"}, {"x": scheme}, (), (), ())
    seen = Extremes(np.float32([-1, 2, 2]), np.float32([4, 5, 6]))
    pot = Calibration(plan=plan, activations=RangeEstimatorParameters(preset="default")).ranges({"x": seen})["x"]
    nncf = Calibration(plan=plan, activations=RangeEstimatorParameters()).ranges({"x": seen})["x"]
    assert pot == (-1, 5)
    assert nncf == (1, 5)


@pytest.mark.parametrize(
    "aggregator", ["mean", "max", "min", "median", "mean_no_outliers", "median_no_outliers", "hl_estimator"]
)
def test_every_aggregator_reaches_the_range(aggregator):
    part = StatisticsCollectorParameters(aggregator_type=aggregator)
    plan = Plan(Graph((), (), ()), {"x": "x"}, {"x": ASYMMETRIC}, (), (), ())
    step = Calibration(plan=plan, activations=RangeEstimatorParameters(part, part))
    samples = np.float32([1, 2, 3, 4, 100])
    low, high = step.ranges({"x": Extremes(-samples, samples)})["x"]
    assert low == aggregate(-samples, aggregator)
    assert high == aggregate(samples, aggregator)


def test_a_clipping_value_bounds_an_activation(model, plan):
    found = calibrated(
        model, plan, estimator=replace(Estimators.MSE, max=replace(Estimators.MSE.max, clipping_value=0.25))
    )
    top = (255 - found.encodings["image"].zero_point) * found.encodings["image"].scale
    assert top.item() <= 0.25 + float(found.encodings["image"].scale.item())


# ------------------------------------------------------------------------------------------------------- auto

# Two channels: one of small numbers everywhere, and one with a huge number in two of sixteen samples.
UNEVEN = [np.random.default_rng(seed).uniform(-1, 1, (1, 200, 2)).astype(np.float32) for seed in range(16)]
for _number in (3, 8):
    UNEVEN[_number][0, 7, 1] = 50.0


def product(weight: list[float], output: str = "y = MatMul(x, w)") -> Model:
    return load(
        written(f"(float[N, 200, 2] x) => (float[N, 200, 1] y) {{ {output} }}", w=np.float32(weight).reshape(2, 1))
    )


def upper_end(model: Model, estimator: RangeEstimatorParameters, feeds, **changes) -> float:
    plan = Plan(model.graph, {"x": "x"}, {"x": ASYMMETRIC}, (), (), ())
    step = Calibration(plan=replace(plan, **changes), activations=estimator)
    found = run_pipeline([step], model, [{"x": x} for x in feeds]).encodings["x"]
    return float((np.float32(found.qmax) - found.zero_point.item()) * found.scale.item())


def test_auto_judges_an_error_by_what_it_does_to_the_layer_behind_it():
    without, needed = product([1, 0]), product([0, 1])
    assert upper_end(without, Estimators.AUTO, UNEVEN) < 10
    assert upper_end(needed, Estimators.AUTO, UNEVEN) == pytest.approx(50, rel=0.01)


@pytest.mark.parametrize("weight", [(1, 0), (0, 1)])
def test_the_range_that_auto_takes_is_that_of_a_candidate_from_all_samples(weight):
    model = product(weight)
    each = [upper_end(model, Estimators.of(name), UNEVEN) for name in CANDIDATES]
    assert upper_end(model, Estimators.AUTO, UNEVEN) in each


def test_auto_judges_a_range_on_samples_that_it_was_not_found_on(monkeypatch):
    tried, measure = [], LayerErrors.measure

    def watched(self, encodings, samples, batch_size):
        tried.append((float(encodings["x"].scale.item()), samples))
        return measure(self, encodings, samples, batch_size)

    monkeypatch.setattr(LayerErrors, "measure", watched)
    feeds = [x * np.float32(1 + number % 2) for number, x in enumerate(UNEVEN)]
    upper_end(product([1, 1]), Estimators.AUTO, feeds)
    halves = [feeds[0::2], feeds[1::2]]
    for half, (scale, unseen) in zip((0, 1), (tried[0], tried[len(CANDIDATES)]), strict=True):  # min-max is the first
        others = np.concatenate(halves[1 - half])
        assert scale == asymmetric_params(Range(others.min(), others.max()), UINT8).scale
        assert [id(each["x"]) for each in unseen] == [id(x) for x in halves[half]]


@pytest.mark.parametrize("case", ["one sample", "no layer", "not to be clipped", "floats", "1e38", "1e-38", "zeros"])
def test_auto_has_a_finite_range_whatever_there_is_to_judge(case):
    model, feeds, changes = product([1, 0]), UNEVEN, {}
    expected = Estimators.MINMAX
    if case == "one sample":
        feeds = UNEVEN[:1]
    elif case == "no layer":  # the tensor stands for itself
        model, expected = product([1, 0], "s = Shape(x)  y = ConstantOfShape <value = float[1] {1}> (s)"), None
    elif case == "not to be clipped":
        changes = {"unclipped": frozenset({"x"})}
    elif case == "floats":
        changes = {"schemes": {"x": Scheme(E4M3)}}
    else:
        feeds = [x / 50 * np.float32(0 if case == "zeros" else case) for x in UNEVEN]
    found = upper_end(model, Estimators.AUTO, feeds, **changes)
    assert np.isfinite(found)
    assert found > 0
    if expected is not None:
        assert found == upper_end(model, expected, feeds, **changes)


def test_auto_honours_a_clipping_value():
    clipped = replace(Estimators.AUTO, max=replace(Estimators.AUTO.max, clipping_value=0.5))
    assert upper_end(product([0, 1]), clipped, UNEVEN) < 0.51


def test_auto_chooses_for_a_group_of_which_one_tensor_was_never_made():
    loaded = load(branching_network())
    made = [name for node in loaded.graph.nodes for name in node.outputs]
    inner = [name for _, node in loaded.graph.walk() for name in node.outputs if name not in made]
    plan = Plan(loaded.graph, dict.fromkeys([*loaded.graph.inputs[:1], *inner], "one"), {"one": ASYMMETRIC}, (), (), ())
    feeds = samples("branching", 4)
    found = run_pipeline([Calibration(plan=plan, activations=Estimators.AUTO)], loaded, feeds).encodings
    assert np.isfinite(found[loaded.graph.inputs[0]].scale).all()


def test_auto_keeps_the_quantizer_of_a_group_one(model, plan):
    encodings = calibrated(model, plan, estimator=Estimators.AUTO).encodings
    np.testing.assert_array_equal(encodings["stem.relu"].scale, encodings["sum.relu"].scale)
    assert encodings.keys() == calibrated(model, plan).encodings.keys()


def test_a_candidate_that_breaks_a_layer_is_the_worst():
    """An infinite error of one candidate; squares that no float holds are so for all of them."""
    measured = np.array([[[1, 4], [2, 8]], [[2, 4], [np.inf, 8]], [[1, 4], [1, 8]]])
    np.testing.assert_allclose(let_through(measured), [1, np.inf, 0.5])
    measured[:, 1, 1] = np.inf
    np.testing.assert_array_equal(let_through(measured), [0, 0, 0])
