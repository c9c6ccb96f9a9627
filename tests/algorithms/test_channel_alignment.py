"""Alignment leaves the float function alone and gives all channels the middle 0 and one width."""

import numpy as np
import pytest
from models import Network, smooth

from jaxq.algorithms import run_pipeline
from jaxq.algorithms.channel_alignment import ChannelAlignment, alignment_factor, channel_quantiles, pairs
from jaxq.engine.collect import collect
from jaxq.engine.model import Model
from jaxq.onnx_io.load import load

FEEDS = [{"x": row[None]} for row in smooth(6, 3, 8, 8)]
BATCH = {"x": smooth(4, 3, 8, 8, seed=9)}


def chain(*, between: str = "", readers: int = 1, **attributes) -> Model:
    """x -> Conv with uneven, moved channels -> [activation function] -> convolutions without padding."""
    net = Network(seed=3)
    x = net.convolution(net.input("x", ["N", 3, 8, 8]), "first", (3, 6))
    spread = (3.0 ** np.linspace(-2, 2, 6)).astype(np.float32)
    net.initializers["first.weight"] *= spread[:, None, None, None]
    net.initializers["first.bias"] = 5 * spread
    if between:
        x = net.node(between, [x], "hidden")
    for index in range(readers):
        operands = [x, net.weight(f"y{index}.weight", 4, 6, 3, 3), net.constant(f"y{index}.bias", np.ones(4))]
        net.output(net.node("Conv", operands, f"y{index}", kernel_shape=[3, 3], **attributes), ["N", 4, None, None])
    return load(net.proto())


CASES = {
    "plain": chain(),
    "stride and dilation": chain(strides=[2, 2], dilations=[2, 2]),
    "two readers": chain(readers=2),
}


@pytest.mark.parametrize("model", CASES.values(), ids=CASES)
def test_the_float_function_is_unchanged(model):
    after = run_pipeline([ChannelAlignment()], model, FEEDS)
    assert not np.array_equal(after.params["first.weight"], model.params["first.weight"])
    for name in model.graph.outputs:
        np.testing.assert_allclose(after(BATCH)[name], model(BATCH)[name], rtol=1e-3, atol=1e-4)


def test_all_channels_get_the_middle_zero_and_the_median_width():
    model = CASES["plain"]
    after = run_pipeline([ChannelAlignment()], model, FEEDS)

    def shape(each: Model) -> tuple[np.ndarray, np.ndarray]:
        seen = collect(each, [{"first": channel_quantiles(6, 6)}], FEEDS)[0]["first"]
        low, high = (np.median(one, axis=0) for one in seen)
        return (low + high) / 2, high - low

    middle, width = shape(after)
    np.testing.assert_allclose(middle, 0, atol=1e-4)
    np.testing.assert_allclose(width, np.median(shape(model)[1]), rtol=1e-3)


def test_the_quantiles_are_those_of_numpy():
    values = smooth(2, 3, 150, 150)
    net = Network()
    net.output(net.node("Relu", [net.input("x", ["N", 3, 150, 150])], "y"), ["N", 3, 150, 150])
    feeds = [{"x": row[None]} for row in values]
    seen = collect(load(net.proto()), [{"x": channel_quantiles(2, 3)}], feeds)[0]["x"]
    flat = values.reshape(2, 3, -1)
    np.testing.assert_allclose(seen.low, np.quantile(flat, 1e-4, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(seen.high, np.quantile(flat, 1 - 1e-4, axis=-1), rtol=1e-4)


@pytest.mark.parametrize("options", [
    {"between": "Relu"}, {"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_UPPER"},
], ids=["an activation function", "padding", "automatic padding"])  # fmt: skip
def test_what_a_moved_channel_would_change_is_left_alone(options):
    model = chain(**options)
    assert list(pairs(model.graph, model.params)) == []


def test_factors_are_widths_over_their_median_within_bounds():
    np.testing.assert_allclose(alignment_factor(np.array([1.0, 2.0, 4.0])), [0.5, 1, 2])
    np.testing.assert_allclose(alignment_factor(np.array([0.0, 2.0, 4.0])), [1, 2 / 3, 4 / 3])
    np.testing.assert_allclose(alignment_factor(np.array([1e-6, 1.0, 1e6])), [1e-2, 1, 1e2])
    np.testing.assert_array_equal(alignment_factor(np.zeros(3)), 1)
