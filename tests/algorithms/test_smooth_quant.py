"""SmoothQuant leaves the float function alone, folds where it can, and stays away where it would not help."""

import numpy as np
import pytest
from models import Network, smooth

from jaxq.algorithms import run_pipeline
from jaxq.algorithms.smooth_quant import OFF, SmoothQuant, groups, noise, smoothing
from jaxq.engine.model import Model
from jaxq.onnx_io.load import load

SPREAD = np.array([30.0, 1, 1, 1, 1, 1, 1, 20])


def block(spread: np.ndarray = SPREAD, *, residual: bool = False) -> Model:
    """x -> LayerNormalization with outliers in some channels -> two MatMuls [and an Add] -> y."""
    net = Network(seed=4)
    x = net.input("x", ["N", 5, 8])
    scale, shift = net.constant("norm.scale", spread), net.constant("norm.shift", 0.1 * spread)
    normal = net.node("LayerNormalization", [x, scale, shift], "normal", axis=-1)
    left = net.node("MatMul", [normal, net.weight("left.weight", 8, 8)], "left")
    right = net.node("MatMul", [normal, net.weight("right.weight", 8, 8)], "right")
    y = net.node("Mul", [left, right], "y")
    net.output(net.node("Add", [y, normal], "z") if residual else y, ["N", 5, 8])
    return load(net.proto())


def convolutions() -> Model:
    net = Network(seed=4)
    x = net.node("Sigmoid", [net.convolution(net.input("x", ["N", 8, 5, 5]), "first", (8, 8))], "hidden")
    net.output(net.convolution(x, "y", (8, 4)), ["N", 4, 5, 5])
    return load(net.proto())


FEEDS = [{"x": row[None]} for row in smooth(6, 5, 8)]
IMAGES = [{"x": row[None] * SPREAD[:, None, None].astype(np.float32)} for row in smooth(6, 8, 5, 5)]


def same_function(after: Model, before: Model, feed) -> None:
    for name in before.graph.outputs:
        expected = np.asarray(before(feed)[name])
        np.testing.assert_allclose(after(feed)[name], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("alpha", [0.5, 0.95, None])
def test_the_division_goes_into_the_layer_normalization(alpha):
    model = block()
    after = run_pipeline([SmoothQuant(matmul=alpha)], model, FEEDS)
    assert after.graph is model.graph
    assert np.ptp(np.log(after.params["norm.scale"])) < np.ptp(np.log(SPREAD))
    same_function(after, model, FEEDS[0])


def test_where_something_else_reads_the_tensor_a_multiplication_is_inserted():
    model = block(residual=True)
    after = run_pipeline([SmoothQuant(matmul=0.5)], model, FEEDS)
    assert [node.op for node in after.graph.nodes].count("Mul") == 2
    assert after.graph.consumers["normal"][-1][0].op == "Add"
    np.testing.assert_array_equal(after.params["norm.scale"], model.params["norm.scale"])
    same_function(after, model, FEEDS[0])


def test_convolutions_are_smoothed_when_asked_for_only():
    model = convolutions()
    untouched = run_pipeline([SmoothQuant()], model, IMAGES)
    assert untouched.graph is model.graph
    after = run_pipeline([SmoothQuant(convolution=0.5)], model, IMAGES)
    assert [node.op for node in after.graph.nodes].count("Mul") == 2  # before each convolution: an input, a Sigmoid
    same_function(after, model, IMAGES[0])


def test_even_channels_are_left_alone():
    model = block(np.ones(8), residual=True)
    after = run_pipeline([SmoothQuant()], model, FEEDS)
    assert after.graph is model.graph
    for name, value in model.params.items():
        np.testing.assert_array_equal(after.params[name], value)


def test_ignored_nodes_and_an_alpha_of_off_are_left_alone():
    model = block()
    step = SmoothQuant(ignored=frozenset(node.name for node in model.graph.nodes))
    assert not step.needs(model)
    assert not SmoothQuant(matmul=OFF).needs(model)


def test_shared_weights_are_left_alone():
    net = Network()
    x = net.node("MatMul", [net.input("x", ["N", 8]), net.weight("w", 8, 8)], "a")
    net.output(net.node("MatMul", [x, "w"], "b"), ["N", 8])
    model = load(net.proto())
    assert list(groups(model.graph, model.params, frozenset())) == []


def test_factors_follow_the_formula_within_their_bounds():
    largest, weight = np.array([16.0, 4.0, 1.0]), np.array([1.0, 1.0, 1.0])
    low = np.quantile([4.0, 2.0, 1.0], 0.1)
    np.testing.assert_allclose(smoothing(largest, weight, 0.5), [4, 2, low])
    np.testing.assert_allclose(smoothing(np.array([1e12, 1.0, 1.0]), weight, 1.0), [100, 1, 1])
    assert np.isfinite(smoothing(np.zeros(3), np.zeros(3), 0.95)).all()


def test_the_choice_never_has_more_noise_than_leaving_the_tensor_alone():
    for seed in range(10):
        random = np.random.default_rng(seed)
        largest, weights = random.lognormal(0, 2, 16), [random.normal(size=(16, 8)) for _ in range(2)]
        model = block()
        group = next(groups(model.graph, model.params, frozenset()))
        found = SmoothQuant().factor(group, largest, (largest / 3) ** 2, weights)
        if found is not None:
            before = noise(np.ones(16), largest, (largest / 3) ** 2, weights)
            assert noise(found, largest, (largest / 3) ** 2, weights) < before
