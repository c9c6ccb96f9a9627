"""Equalization leaves the float function alone, and takes the factors with the least noise."""

import itertools
from dataclasses import dataclass

import jax
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Network, smooth

from jaxq.algorithms.equalization import (
    LARGEST_FACTOR,
    Equalization,
    Noise,
    best_factor,
    input_channels,
    pairs,
    scaled_input,
)
from jaxq.collect import collect, split_samples
from jaxq.graph import FrozenDict, Node
from jaxq.onnx_import import load


def network(
    *, activation: str | None = "Relu", pool: str | None = None, reader: str = "Conv", second: str | None = None
) -> onnx.ModelProto:
    """x [N, 3, 6, 6] -> Conv to 4 channels of very different size -> activation -> pooling -> reader -> y."""
    net = Network(seed=4)
    x = net.input("x", ["N", 3, 6, 6])
    h = net.convolution(x, "first", (3, 4))
    for name in ("first.weight", "first.bias"):
        value = net.initializers[name]
        value *= np.float32([30, 1, 0.1, 5]).reshape(-1, *[1] * (value.ndim - 1))
    if activation == "LeakyRelu":
        h = net.node("LeakyRelu", [h], "h", alpha=0.1)
    elif activation:
        h = net.node(activation, [h], "h")
    if pool:
        h = net.node(
            pool, [h], "p", **({} if pool.startswith("Global") else {"kernel_shape": [2, 2], "strides": [2, 2]})
        )
    if reader == "Gemm":
        net.dense(net.node("Flatten", [h], "flat"), "y", (4, 2))
    elif reader == "depthwise":
        net.convolution(h, "y", (4, 8), group=4)
    elif reader == "grouped":
        net.convolution(h, "y", (4, 4), group=2)
    elif reader == "ConvTranspose":
        net.node("ConvTranspose", [h, net.weight("v", 4, 2, 2, 2)], "y")
    elif reader == "Sigmoid":
        net.node("Sigmoid", [h], "y")
    else:
        net.convolution(h, "y", (4, 5), 1)
    net.output("y", [None] * (2 if reader == "Gemm" else 4))
    if second == "Conv":
        net.convolution(h, "z", (4, 2))
        net.output("z", ["N", 2, None, None])
    elif second == "Exp":
        net.node("Exp", [h], "z")
        net.output("z", ["N", 4, None, None])
    elif second == "output":
        net.output(h, ["N", 4, None, None])
    return net.proto()


@dataclass(frozen=True, kw_only=True)
class Case:
    model: onnx.ModelProto
    found: bool


CASES = {
    "behind a Relu": Case(model=network(), found=True),
    "behind a LeakyRelu": Case(model=network(activation="LeakyRelu"), found=True),
    "behind nothing": Case(model=network(activation=None), found=True),
    "through pooling": Case(model=network(pool="MaxPool"), found=True),
    "through the average": Case(model=network(pool="AveragePool"), found=True),
    "two readers": Case(model=network(second="Conv"), found=True),
    "a depthwise reader": Case(model=network(reader="depthwise"), found=True),
    "not behind a Sigmoid": Case(model=network(activation="Sigmoid"), found=False),
    "not before a grouped reader": Case(model=network(reader="grouped"), found=False),
    "not before another kind of reader": Case(model=network(reader="ConvTranspose"), found=False),
    "not before what is no product": Case(model=network(second="Exp"), found=False),
    "not a graph output": Case(model=network(second="output"), found=False),
    "not without a product behind it": Case(model=network(reader="Sigmoid"), found=False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equalization_leaves_the_function_alone(case):
    model = load(case.model)
    step = Equalization(quantized=frozenset({"first", "h"}))
    needs = step.needs(model)
    assert bool(needs) is case.found
    if not needs:
        return
    rows = smooth(6, 3, 6, 6)
    (stats,) = collect(model, [needs], split_samples(model.inputs, [rows]), batch_size=6)
    after = step.apply(model, stats)
    assert any((after.params[name] != value).any() for name, value in model.params.items())
    for name, value in model([rows]).items():
        np.testing.assert_allclose(after([rows])[name], value, rtol=1e-4, atol=1e-4)


def test_channels_become_alike():
    model = load(network())
    rows = smooth(6, 3, 6, 6)
    step = Equalization(quantized=frozenset({"h"}))

    def spread(model) -> float:
        (stats,) = collect(model, [step.needs(model)], split_samples(model.inputs, [rows]), batch_size=6)
        return float(stats["first"].high.max() / stats["first"].high.min())

    (stats,) = collect(model, [step.needs(model)], split_samples(model.inputs, [rows]), batch_size=6)
    assert spread(step.apply(model, stats)) < spread(model) / 3


def test_only_quantized_tensors_are_equalized():
    assert Equalization(quantized=frozenset()).needs(load(network())) == {}


def test_a_pair_says_how_the_activation_treats_negative_values():
    for activation, slope in ((None, 1.0), ("Relu", 0.0), ("LeakyRelu", pytest.approx(0.1))):
        model = load(network(activation=activation))
        quantized = frozenset({"h", "first"})
        (pair,) = pairs(model.graph, model.params, quantized)
        assert (pair.slope, pair.channels, pair.rounded) == (slope, 4, activation is not None)


# --------------------------------------------------------------------------------------------------------- the factors


def noise_of(low, high, slope=0.0, rounded=False, readers=None) -> Noise:
    low, high = np.float32(low), np.float32(high)
    readers = readers or [np.random.default_rng(0).normal(size=(6, len(low), 9))]
    return Noise(low, high, slope, rounded, readers)


extents = st.lists(st.floats(2.0**-10, 2.0**10, width=32), min_size=3, max_size=3)


@settings(max_examples=50)
@given(low=extents, high=extents, slope=st.sampled_from([0.0, 0.1, 1.0]), rounded=st.booleans())
def test_factors_never_make_more_noise(low, high, slope, rounded):
    noise = noise_of([-value for value in low], high, slope, rounded)
    factor = best_factor(noise)
    if factor is not None:
        assert noise(factor) < noise(np.ones(3))
        assert (factor > 0).all()
        assert factor.max() <= 1
        assert factor.min() >= 1 / LARGEST_FACTOR


def test_channels_that_are_alike_are_left_alone():
    assert best_factor(noise_of([0, 0, 0], [2, 2, 2])) is None


@pytest.mark.parametrize(
    "high", [[0, 0, 0], [np.inf, 1, 1], [-np.inf, -np.inf, -np.inf]], ids=["dead", "infinite", "not seen"]
)
def test_what_has_no_range_is_left_alone(high):
    low = [np.inf] * 3 if high[0] == -np.inf else [0, 0, 0]
    assert best_factor(noise_of(low, high)) is None


def test_a_dead_channel_gets_a_finite_factor():
    factor = best_factor(noise_of([0, 0, 0], [100, 1, 0]))
    assert factor is not None
    assert np.isfinite(1 / factor).all()


# ---------------------------------------------------------------------------------------------------------- the weights


def conv(group: int) -> Node:
    return Node("Conv", ("x", "w"), ("y",), FrozenDict({"group": group}))


@pytest.mark.parametrize("node, shape", [
    (conv(1), (5, 4, 3, 3)), (conv(4), (8, 1, 3, 3)), (conv(4), (4, 1, 3)),
    (Node("Gemm", ("x", "w"), ("y",)), (4, 5)), (Node("Gemm", ("x", "w"), ("y",), FrozenDict({"transB": 1})), (5, 4)),
], ids=["full", "depthwise, two each", "depthwise in one dimension", "matrix", "transposed matrix"])  # fmt: skip
def test_scaling_the_input_of_a_weight_scales_its_columns(node, shape):
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    factor = np.array([2.0, 0.5, 4.0, 1.0])
    before, after = (
        input_channels(node, np.asarray(each, np.float64), 4) for each in (weight, scaled_input(node, weight, factor))
    )
    assert before.shape[1] == 4
    np.testing.assert_allclose(after, before * factor[None, :, None])
    if node.op == "Conv" and node.attributes["group"] == 4:
        multiplier = shape[0] // 4
        for row, channel in itertools.product(range(shape[0]), range(4)):
            assert before[row, channel].any() == (row // multiplier == channel)


def test_weights_keep_their_type():
    assert scaled_input(conv(1), np.ones((2, 2, 1, 1), np.float32), np.ones(2)).dtype == np.float32
    assert not isinstance(scaled_input(conv(1), np.ones((2, 2, 1, 1), np.float32), np.ones(2)), jax.Array)
