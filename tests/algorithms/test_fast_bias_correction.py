"""Fast correction takes back the mean that rounded weights add, from means of the float model."""

import numpy as np
import pytest
from models import Network, residual_network, smooth

from jaxq.algorithms import run_pipeline
from jaxq.algorithms.fast_bias_correction import FastBiasCorrection, terms
from jaxq.engine.model import Model
from jaxq.graph.fusion import add_missing_biases, fuse
from jaxq.numerics.quantizer import IntType
from jaxq.numerics.ranges import symmetric_weight_params
from jaxq.onnx_io.load import load

THREE_BITS = IntType(3, narrow=True)


def coarse(model: Model) -> Model:
    encodings = {
        name: symmetric_weight_params(np.abs(value).max(keepdims=True), THREE_BITS)
        for name, value in model.params.items()
        if value.ndim > 1
    }
    return model.replace(encodings=encodings)


def corrected(model: Model, feeds, **options) -> Model:
    nodes = tuple(node.name for node in model.graph.nodes)
    return run_pipeline([FastBiasCorrection(nodes=nodes, **options)], model, feeds)


def layer(op: str, shape: tuple[int, ...], weight: tuple[int, ...], outputs: int, **attributes) -> Model:
    """x -> one linear layer without padding -> y, with a bias that holds a zero."""
    net = Network(seed=1)
    operands = [net.input("x", ["N", *shape]), net.weight("w", *weight)]
    bias = net.constant("b", np.arange(outputs))
    if op == "MatMul":
        net.node("Add", [net.node(op, operands, "product"), bias], "y")
    else:
        net.node(op, [*operands, bias], "y", **attributes)
    net.output("y", ["N", *[None] * len(shape)])
    return coarse(load(net.proto()))


LAYERS = {
    "pointwise": (layer("Conv", (4, 6, 6), (5, 4, 1, 1), 5), (4, 6, 6), 1),
    "depthwise": (layer("Conv", (4, 6, 6), (8, 1, 1, 1), 8, group=4), (4, 6, 6), 1),
    "matrix": (layer("Gemm", (4,), (4, 5), 5), (4,), 1),
    "transposed matrix": (layer("Gemm", (4,), (5, 4), 5, transB=1), (4,), 1),
    "MatMul": (layer("MatMul", (3, 4), (4, 5), 5), (3, 4), -1),
    "ConvTranspose": (layer("ConvTranspose", (4, 6, 6), (4, 3, 2, 2), 6, group=2, strides=[2, 2]), (4, 6, 6), 1),
}


@pytest.mark.parametrize("model, shape, axis", LAYERS.values(), ids=LAYERS)
def test_the_mean_of_each_channel_becomes_that_of_the_float_layer(model, shape, axis):
    feeds = [{"x": row[None] + 1} for row in smooth(6, *shape)]
    after = corrected(model, feeds)
    batch = {"x": np.concatenate([feed["x"] for feed in feeds])}

    def means(each: Model) -> np.ndarray:
        y = np.asarray(each(batch)["y"])
        return y.mean(tuple(one for one in range(y.ndim) if one != axis % y.ndim))

    wanted, before, found = (means(each) for each in (model.replace(encodings={}), model, after))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(before - wanted).max() > 1e-2


def test_a_bias_with_a_zero_in_it_is_corrected():
    model, shape, _ = LAYERS["pointwise"]
    after = corrected(model, [{"x": row[None] + 1} for row in smooth(6, *shape)])
    assert model.params["b"][0] == 0 != after.params["b"][0]


def test_biases_that_were_absent_are_corrected_too():
    loaded = load(residual_network())
    graph, params = add_missing_biases(*fuse(loaded.graph, loaded.params))
    model = coarse(loaded.replace(graph=graph, params=params))
    after = corrected(model, [{"image": row[None]} for row in smooth(6, 3, 8, 8)])
    biases = {term.bias for term in terms(graph, params, [node.name for node in graph.nodes])}
    assert len(biases) == 4
    assert all(not np.array_equal(after.params[name], params[name]) for name in biases)


def test_without_rounding_nothing_moves():
    model, shape, _ = LAYERS["matrix"]
    exact = model.replace(encodings={})
    after = corrected(exact, [{"x": row[None]} for row in smooth(3, *shape)])
    np.testing.assert_array_equal(after.params["b"], model.params["b"])


@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3)])
def test_the_gates_of_recurrent_layers_are_corrected_for_their_input(op, gates):
    hidden, width = 3, 4
    net = Network(seed=2)
    operands = [net.input("x", [6, 1, width]), net.weight("w", 1, gates * hidden, width)]
    operands += [net.weight("r", 1, gates * hidden, hidden), net.constant("b", np.zeros((1, 2 * gates * hidden)))]
    net.output(net.node(op, operands, "y", hidden_size=hidden), [6, 1, 1, hidden])
    model = coarse(load(net.proto()))
    feeds = [{"x": each} for each in smooth(5, 6, 1, width) + 1]
    after = corrected(model, feeds, threshold=100.0)
    mean = np.concatenate([feed["x"] for feed in feeds]).mean((0, 1))
    grid = model.encodings["w"]
    rounding = model.params["w"] - np.round(model.params["w"] / grid.scale) * grid.scale
    np.testing.assert_allclose(after.params["b"][:, : gates * hidden], rounding @ mean, atol=1e-5)
    plain = {"LSTM": 4, "GRU": 2}[op] * hidden
    state = after.params["b"][0, gates * hidden :]
    assert state[:plain].any()
    assert not state[plain:].any()
