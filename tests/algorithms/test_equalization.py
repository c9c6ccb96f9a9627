"""Equalization leaves the float function alone, and takes the factors with the least noise."""

from dataclasses import replace

import numpy as np
import pytest
from models import Network, residual_network, smooth

from jaxq.algorithms import run_pipeline
from jaxq.algorithms.equalization import (
    HEADROOM,
    LARGEST_FACTOR,
    Equalization,
    Noise,
    best_factor,
    dead_shrunk,
    pairs,
    within_bound,
)
from jaxq.engine.collect import collect
from jaxq.engine.model import Model
from jaxq.graph.fusion import fuse
from jaxq.numerics.observers import channel_extremes
from jaxq.onnx_io.load import load
from jaxq.options import AdvancedQuantizationParameters
from jaxq.pipeline import quantize
from jaxq.placement.schemes import QuantizationParameters


def chain_network(between: str, *, group: int = 1, tail: str = "Conv", pool: bool = False):
    """x -> Conv with very uneven channels -> `between` -> [pooling] -> Conv or Gemm -> y."""
    net = Network(seed=5)
    x = net.convolution(net.input("x", ["N", 3, 6, 6]), "first", (3, 8))
    spread = 4.0 ** np.linspace(-2, 2, 8)
    net.initializers["first.weight"] *= spread.astype(np.float32)[:, None, None, None]
    net.initializers["first.bias"] *= spread.astype(np.float32)
    if between == "PRelu":
        x = net.node("PRelu", [x, net.constant("slope", np.linspace(0.1, 0.8, 8).reshape(8, 1, 1))], "hidden")
    elif between == "PRelu of the width":
        x = net.node("PRelu", [x, net.constant("slope", np.linspace(0.1, 0.8, 6))], "hidden")
    elif between == "Clip":
        x = net.node("Clip", [x, net.constant("low", 0.0), net.constant("high", 6.0)], "hidden")
    elif between == "negative Clip":
        x = net.node("Clip", [x, net.constant("low", -1.0), net.constant("high", 6.0)], "hidden")
    elif between:
        x = net.node(between, [x], "hidden", **({"alpha": 0.1} if between == "LeakyRelu" else {}))
    if pool:
        x = net.node("Pad", [x, net.constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)], "padded")
        x = net.node("MaxPool", [x], "pooled", kernel_shape=[2, 2])
    if tail == "Gemm":
        net.dense(net.node("Flatten", [net.node("GlobalAveragePool", [x], "mean")], "flat"), "y", (8, 5))
        net.output("y", ["N", 5])
    else:
        net.convolution(x, "y", (8, 8), group=group)
        net.output("y", ["N", 8, None, None])
    return load(net.proto())


CASES = {
    "Relu": chain_network("Relu"),
    "LeakyRelu": chain_network("LeakyRelu"),
    "PRelu": chain_network("PRelu"),
    "Clip": chain_network("Clip"),
    "no activation function": chain_network(""),
    "depthwise reader": chain_network("Relu", group=8),
    "through padding and pooling": chain_network("Relu", pool=True),
}
FEEDS = [{"x": row[None]} for row in smooth(8, 3, 6, 6)]
BATCH = {"x": smooth(4, 3, 6, 6, seed=9)}


def tensor(model: Model) -> str:
    return "hidden" if "hidden" in model.graph.producers else "first"


def equalized(model: Model, feeds=FEEDS, also=()) -> Model:
    return run_pipeline([Equalization(quantized=frozenset({tensor(model), *also}), clips=True)], model, feeds)


@pytest.mark.parametrize("model", CASES.values(), ids=CASES)
def test_the_float_function_is_unchanged(model):
    after = equalized(model)
    assert any(not np.array_equal(after.params[name], model.params[name]) for name in model.params)
    expected = np.asarray(model(BATCH)["y"])
    np.testing.assert_allclose(after(BATCH)["y"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("model", CASES.values(), ids=CASES)
def test_the_channels_get_closer_to_each_other(model):
    def spread(each: Model) -> float:
        observer = channel_extremes(8, 1)
        seen = collect(each, [{tensor(each): observer}], FEEDS)[0][tensor(each)]
        size = np.maximum(seen.high, -seen.low)
        return size.max() / size.min()

    assert spread(equalized(model)) < spread(model) / 2


def test_equal_channels_are_left_alone_where_that_is_best():
    low, high = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert best_factor(Noise(low, high, 0.0, False, [np.ones((2, 4, 1))])) is None


@pytest.mark.parametrize("high", [np.zeros(3), np.array([1.0, np.inf, 2.0]), np.array([1.0, np.nan, 2.0])])
def test_a_tensor_without_a_usable_range_is_left_alone(high):
    assert (
        best_factor(Noise(-high.astype(np.float32), high.astype(np.float32), 0.0, False, [np.ones((2, 3, 1))])) is None
    )


@pytest.mark.parametrize("slope, rounded", [(0.0, False), (0.0, True), (0.1, True), (1.0, False)])
def test_the_noise_is_never_above_that_of_leaving_the_tensor_alone(slope, rounded):
    for seed in range(20):
        random = np.random.default_rng(seed)
        low, high = -random.lognormal(0, 2, 6).astype(np.float32), random.lognormal(0, 2, 6).astype(np.float32)
        high[0] = 0
        noise = Noise(low, high, slope, rounded, [random.normal(size=(4, 6, 9))])
        factor = best_factor(noise)
        if factor is not None:
            assert noise(factor) < noise(np.ones(6))
            assert (factor > 0).all()
            assert (factor >= 1 / LARGEST_FACTOR).all()
            assert (factor <= 1).all()


def test_a_factor_for_all_channels_changes_no_noise():
    random = np.random.default_rng(0)
    noise = Noise(-random.random(5), random.random(5), 0.1, True, [random.normal(size=(3, 5, 1))])
    factor = random.random(5) + 0.5
    assert noise(factor) == pytest.approx(noise(factor * 8))


def found_pairs(model: Model, *quantized: str) -> list[tuple[str, float, bool]]:
    return [(p.tensor, p.slope[0], p.rounded) for p in pairs(model.graph, model.params, frozenset(quantized))]


def test_the_slope_is_that_of_the_activation_function():
    assert found_pairs(CASES["Relu"], "hidden") == [("first", 0.0, False)]
    assert found_pairs(CASES["LeakyRelu"], "hidden", "first") == [("first", pytest.approx(0.1), True)]
    assert found_pairs(CASES["no activation function"], "first") == [("first", 1.0, False)]


def test_a_tensor_that_is_not_quantized_is_left_alone():
    assert found_pairs(CASES["Relu"], "first") == []


@pytest.mark.parametrize("tail", ["Sigmoid", "ConvTranspose", "grouped", "second reader"])
def test_a_tensor_that_not_only_products_of_its_channels_read_is_left_alone(tail):
    net = Network(seed=5)
    x = net.node("Relu", [net.convolution(net.input("x", ["N", 3, 6, 6]), "first", (3, 8))], "hidden")
    if tail == "ConvTranspose":
        net.node("ConvTranspose", [x, net.weight("up", 8, 2, 2, 2)], "y")
    elif tail == "grouped":
        net.convolution(x, "y", (8, 8), group=2)
    elif tail == "second reader":
        net.node("Add", [net.convolution(x, "second", (8, 8)), x], "y")
    else:
        net.node(tail, [x], "y")
    net.output("y", [None] * 4)
    assert found_pairs(load(net.proto()), "hidden", "first") == []


@pytest.mark.parametrize("between", ["Sigmoid", "PRelu of the width", "negative Clip", "Tanh"])
def test_scaling_does_not_pass_what_it_does_not_commute_with(between):
    assert found_pairs(chain_network(between), "hidden", "first") == []


def test_a_gemm_behind_global_pooling_and_flatten_is_found_or_left_whole():
    model = chain_network("Relu", tail="Gemm")
    after = equalized(model)
    np.testing.assert_allclose(after(BATCH)["y"], model(BATCH)["y"], rtol=1e-4, atol=1e-4)


def test_a_tensor_that_is_added_or_an_output_is_left_alone():
    residual = load(residual_network())
    graph, params = fuse(residual.graph, residual.params)
    residual = residual.replace(graph=graph, params=params)
    assert "stem.relu" not in {p.tensor for p in pairs(graph, params, frozenset({"stem.relu"}))}
    everything = frozenset(name for node in graph.nodes for name in node.outputs)
    after = run_pipeline(
        [Equalization(quantized=everything)], residual, [{"image": row[None]} for row in smooth(6, 3, 8, 8)]
    )
    feed = {"image": smooth(1, 3, 8, 8, seed=3)}
    np.testing.assert_allclose(after(feed)["scores"], residual(feed)["scores"], rtol=1e-4, atol=1e-5)
    model = CASES["Relu"]
    shown = replace(model.graph, outputs=("y", "hidden"))
    assert list(pairs(shown, model.params, frozenset({"hidden"}))) == []


def test_two_chains_one_after_the_other_are_both_equalized():
    net = Network(seed=2)
    x = net.input("x", ["N", 3, 6, 6])
    for index, sizes in enumerate(((3, 8), (8, 8), (8, 4))):
        x = net.convolution(x, f"c{index}", sizes)
        net.initializers[f"c{index}.weight"] *= (3.0 ** np.linspace(-2, 2, sizes[1])).astype(np.float32)[
            :, None, None, None
        ]
        x = net.node("Relu", [x], f"r{index}") if index < 2 else x
    net.output(x, ["N", 4, 6, 6])
    model = load(net.proto())
    after = run_pipeline([Equalization(quantized=frozenset({"r0", "r1"}))], model, FEEDS)
    expected = np.asarray(model(BATCH)["c2"])
    np.testing.assert_allclose(after(BATCH)["c2"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert all(not np.array_equal(after.params[f"c{i}.weight"], model.params[f"c{i}.weight"]) for i in range(3))


def test_the_weights_of_the_model_given_are_not_changed():
    model = CASES["Relu"]
    before = {name: value.copy() for name, value in model.params.items()}
    equalized(model)
    for name, value in before.items():
        np.testing.assert_array_equal(model.params[name], value)


def test_a_clip_cuts_off_what_it_did_and_nothing_else_that_was_seen():
    noise = Noise(np.zeros(4), np.array([9.0, 6.0, 3.0, 0.1]), 0.0, False, [np.ones((2, 4, 1))], bound=6.0)
    factor = within_bound(noise, np.array([0.5, 0.5, 0.2, 0.015625]))
    np.testing.assert_allclose(factor, [1, 1, 3 * HEADROOM / 6, 0.1 * HEADROOM / 6])


def test_with_one_scale_for_each_weight_their_rows_and_columns_are_balanced():
    model = CASES["Relu"]
    names = frozenset({"first.weight", "y.weight"})
    step = Equalization(quantized=frozenset({"hidden"}), one_scale=names)
    after = run_pipeline([step], model, FEEDS)
    expected = np.asarray(model(BATCH)["y"])
    np.testing.assert_allclose(after(BATCH)["y"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    def spread(each: Model) -> float:
        rows = np.abs(each.params["first.weight"]).max(axis=(1, 2, 3))
        return rows.max() / rows.min()

    assert spread(after) < spread(model) / 8


def test_a_tensor_behind_a_clip_is_left_alone_unless_asked_for():
    step = Equalization(quantized=frozenset({"hidden"}))
    assert not step.needs(CASES["Clip"])
    assert replace(step, clips=True).needs(CASES["Clip"])


def dead_network(between: str, made: float):
    """x -> Conv -> `between`, always zero in channel 2 -> depthwise Conv whose channel 2 is 60 times the others -> y.

    `made` is what the weights that make channel 2 are multiplied with: 0 for none, as where training has switched it off.
    """
    net = Network(seed=5)
    x = net.convolution(net.input("x", ["N", 3, 6, 6]), "first", (3, 8))
    net.initializers["first.weight"][2] *= np.float32(made)
    net.initializers["first.bias"][2] = -20
    ends = [net.constant("low", 0.0), net.constant("high", 6.0)] if between == "Clip" else []
    x = net.node(between, [x, *ends], "hidden")
    x = net.convolution(x, "y", (8, 8), group=8)
    net.initializers["y.weight"][2] *= np.float32(60)
    net.output("y", ["N", 8, 6, 6])
    return load(net.proto())


def peaks(model: Model, name: str) -> np.ndarray:
    return np.abs(model.params[name]).max(axis=(1, 2, 3))


@pytest.mark.parametrize("between", ["Relu", "Clip"])
@pytest.mark.parametrize("made", [0.0, 0.02])
def test_what_reads_a_dead_channel_does_not_set_the_step_of_a_weight_with_one_scale(between, made):
    model = dead_network(between, made)
    names = frozenset({"first.weight", "y.weight"})
    step = Equalization(quantized=frozenset({"hidden"}), one_scale=names, clips=True)
    after = run_pipeline([step], model, FEEDS)
    np.testing.assert_allclose(after(BATCH)["y"], model(BATCH)["y"], rtol=1e-4, atol=1e-4)
    others = np.arange(8) != 2
    assert peaks(model, "y.weight")[2] > 20 * peaks(model, "y.weight")[others].max()
    for name in names:
        assert peaks(after, name)[2] <= 1.001 * peaks(after, name)[others].max()


def test_the_error_of_a_model_with_a_dead_channel_and_one_scale_for_each_weight_is_small():
    model = dead_network("Clip", 0.0)
    exact = np.asarray(model(BATCH)["y"])

    def noise(**options) -> float:
        weights = QuantizationParameters(per_channel=False)
        advanced = AdvancedQuantizationParameters(weights_quantization_params=weights, **options)
        found = np.asarray(quantize(model, FEEDS, advanced_parameters=advanced)(BATCH)["y"])
        return float(((found - exact) ** 2).sum() / (exact**2).sum())

    assert noise(disable_equalization=True) > 1e-2
    assert noise() < 1e-3


def test_a_dead_channel_grows_only_as_far_as_what_makes_the_others():
    made_by = np.array([[1.0], [0.25], [4.0]])
    noise = Noise(
        np.array([0.0, -1.0, 0.0]), np.array([1.0, 0.0, 1.0]), 0.0, False, [np.diag([1.0, 100.0, 2.0])[:, :, None]],
        one_scale=[True], made_by=made_by,
    )  # fmt: skip
    np.testing.assert_allclose(dead_shrunk(noise, np.ones(3)), [1, 1 / 16, 1])  # 2 / 100 would make its row 12.5
    noise.made_by = None
    np.testing.assert_allclose(dead_shrunk(noise, np.ones(3)), [1, 2 / 100, 1])
    noise.one_scale = [False]
    np.testing.assert_array_equal(dead_shrunk(noise, np.ones(3)), np.ones(3))


def test_weights_of_zeros_around_a_dead_channel_give_finite_factors():
    noise = Noise(
        np.array([0.0, -1.0]), np.array([1.0, 0.0]), 0.0, False, [np.zeros((2, 2, 1))],
        one_scale=[True], made_by=np.zeros((2, 3)),
    )  # fmt: skip
    factor = dead_shrunk(noise, np.ones(2))
    assert np.isfinite(factor).all()
    assert (factor > 0).all()
