"""Convolutions: every variant against XLA's plain one, transposed ones against ONNX Runtime, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from node_case import Case, assert_agrees, normal, run_jaxq, run_runtime

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import convolution, find
from jaxq.ops.spatial import sliding_window

conv = find("Conv", "", 22).function

# Shape of the data, shape of the kernel, attributes.
SHAPES = {
    "plain": ((2, 3, 6, 5), (4, 3, 3, 2), {"pads": (1, 0, 2, 1)}),
    "strides": ((1, 3, 7, 8), (4, 3, 3, 3), {"strides": (2, 3), "pads": (1, 1, 1, 1)}),
    "dilations": ((1, 3, 9, 8), (2, 3, 3, 2), {"dilations": (2, 3)}),
    "strides that leave cells unread": ((1, 2, 8, 8), (2, 2, 3, 3), {"strides": (2, 2), "pads": (0, 0, 1, 0)}),
    "far fewer windows than channels": ((1, 6, 2, 2), (32, 6, 3, 2), {"pads": (1, 0, 1, 1)}),
    "far fewer windows than channels, dilations": ((1, 6, 3, 3), (64, 6, 2, 3), {"dilations": (2, 1), "pads": (1, 0, 1, 1)}),
    "few windows of many cells": ((1, 1, 1, 160), (40, 1, 1, 96), {"strides": (1, 32)}),
    "1x1": ((2, 3, 4, 5), (6, 3, 1, 1), {}),
    "1x1 with strides": ((1, 3, 5, 4), (2, 3, 1, 1), {"strides": (2, 2)}),
    "1x1 with padding": ((1, 3, 4, 4), (2, 3, 1, 1), {"strides": (2, 1), "pads": (1, 0, 0, 2)}),
    "depthwise": ((2, 3, 6, 5), (3, 1, 3, 3), {"group": 3, "pads": (1, 1, 1, 1)}),
    "depthwise, strides": ((1, 3, 7, 8), (3, 1, 3, 3), {"group": 3, "strides": (2, 2), "pads": (0, 1, 1, 0)}),
    "depthwise, dilated strides": (
        (1, 3, 9, 8), (3, 1, 3, 2), {"group": 3, "strides": (2, 3), "dilations": (3, 2), "pads": (2, 2, 2, 2)},
    ),
    "depthwise, channel multiplier": ((2, 3, 5, 5), (6, 1, 3, 3), {"group": 3, "strides": (2, 1)}),
    "depthwise, strides beyond the kernel": ((1, 2, 9, 9), (2, 1, 2, 1), {"group": 2, "strides": (4, 3)}),
    "depthwise, even kernel": ((1, 4, 5, 6), (4, 1, 2, 4), {"group": 4, "auto_pad": "SAME_UPPER"}),
    "grouped": ((2, 4, 5, 6), (6, 2, 3, 3), {"group": 2, "strides": (2, 1), "pads": (1, 1, 1, 1)}),
    "grouped 1x1": ((1, 6, 3, 3), (3, 2, 1, 1), {"group": 3}),
    "1-d": ((2, 3, 9), (4, 3, 3), {"strides": (2,), "dilations": (2,), "pads": (2, 1)}),
    "1-d depthwise": ((1, 3, 9), (6, 1, 4), {"group": 3, "strides": (3,), "pads": (3, 0)}),
    "3-d": ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"strides": (1, 2, 2), "pads": (1, 0, 1, 0, 1, 1)}),
    "3-d depthwise": ((1, 2, 4, 5, 6), (2, 1, 2, 3, 2), {"group": 2, "strides": (2, 1, 2)}),
    "same, the surplus after": ((1, 2, 6, 7), (3, 2, 3, 4), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    "same, the surplus before": ((1, 2, 6, 7), (3, 2, 3, 4), {"auto_pad": "SAME_LOWER", "strides": (2, 2)}),
    "valid": ((1, 2, 6, 7), (3, 2, 3, 4), {"auto_pad": "VALID", "strides": (2, 1)}),
}  # fmt: skip
AUTOMATIC = [name for name, (_, _, attributes) in SHAPES.items() if "auto_pad" in attributes]
DECLARED = {name: shape for name, shape in SHAPES.items() if name not in AUTOMATIC}


def plain(x, w, *, strides=(), dilations=(), group=1, pads=()):
    """The same as one call of XLA."""
    rank = x.ndim - 2
    pads = pads or (0,) * (2 * rank)
    padding = list(zip(pads[:rank], pads[rank:], strict=True))
    return lax.conv_general_dilated(
        x, w, strides or (1,) * rank, padding, rhs_dilation=dilations or (1,) * rank, feature_group_count=group
    )


def close(got, wanted, tolerance=1e-5):
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(wanted, np.float32), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", ["plain", "1-d depthwise", *AUTOMATIC])
def test_agrees_with_the_runtime(name):
    data, kernel, attributes = SHAPES[name]
    inputs = normal(*data), normal(*kernel, seed=1), normal(kernel[0], seed=2)
    assert_agrees(Case(op="Conv", inputs=inputs, opset=11, attributes=attributes))


@pytest.mark.parametrize("data, kernel, attributes", DECLARED.values(), ids=DECLARED)
def test_values_and_gradients_are_those_of_the_plain_convolution(data, kernel, attributes):
    x, w = jnp.asarray(normal(*data)), jnp.asarray(normal(*kernel, seed=1))

    @jax.jit
    def both(x, w, direction):
        results = []
        for function in (conv, plain):
            y, pull = jax.vjp(lambda x, w, function=function: function(x, w, **attributes), x, w)
            results.append((y, *pull(direction)))
        return results

    shape = jax.eval_shape(lambda x, w: plain(x, w, **attributes), x, w).shape
    for got, wanted in zip(*both(x, w, jnp.asarray(normal(*shape, seed=2))), strict=True):
        close(got, wanted, 1e-4)


VARIANTS = {
    "plain": convolution.channels_last_convolution,
    "far fewer windows than channels": convolution.patch_convolution,
    "few windows of many cells": convolution.channels_last_convolution,
    "1x1 with padding": convolution.patch_convolution,
    "depthwise": convolution.depthwise_convolution,
    "depthwise, channel multiplier": convolution.depthwise_convolution,
    "grouped": convolution.grouped_convolution,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_variant_of_the_cpu(name):
    data, kernel, attributes = SHAPES[name]
    attributes = dict(attributes)
    group = attributes.pop("group", 1)
    window = sliding_window(data[2:], kernel[2:], **attributes)
    assert convolution.cpu_variant(jnp.zeros(data), kernel[0], window, group) is VARIANTS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_vmap_over_the_data_is_a_loop(name):
    data, kernel, attributes = SHAPES[name]
    many, w = jnp.asarray(normal(3, *data)), jnp.asarray(normal(*kernel, seed=1))

    @jax.jit
    def both(many, w):
        got = jax.vmap(lambda x: conv(x, w, **attributes))(many)
        return got, jnp.stack([plain(x, w, **attributes) for x in many])

    close(*both(many, w))


@pytest.mark.parametrize("name", VARIANTS)
def test_half_floats_are_rounded_once(name):
    data, kernel, attributes = SHAPES[name]
    x, w = jnp.asarray(normal(*data), jnp.float16), jnp.asarray(normal(*kernel, seed=1), jnp.float16)

    @jax.jit
    def both(x, w):
        wanted = plain(x.astype(jnp.float32), w.astype(jnp.float32), **attributes)
        return conv(x, w, **attributes), wanted.astype(jnp.float16)

    close(*both(x, w), 1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_platforms_take_the_plain_convolution(name, monkeypatch):
    monkeypatch.setattr(convolution, "platform", lambda: "gpu")
    data, kernel, attributes = SHAPES[name]
    x, w = jnp.asarray(normal(*data)), jnp.asarray(normal(*kernel, seed=1))
    assert str(jax.make_jaxpr(lambda x, w: conv(x, w, **attributes))(x, w)) == str(
        jax.make_jaxpr(lambda x, w: plain(x, w, **attributes))(x, w)
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_reductions_do_not_reach_into_convolutions_on_cpu(name):
    data, kernel, attributes = SHAPES[name]
    x, w = jnp.asarray(normal(*data)), jnp.asarray(normal(*kernel, seed=1))
    text = jax.jit(lambda x, w: jnp.max(conv(x, w, **attributes), (2, 3))).lower(x, w).compile().as_text()
    assert "reduce-precision(" in text


TRANSPOSED = {
    "plain": ((2, 3, 4, 5), (3, 4, 3, 2), {}),
    "strides and pads": ((1, 3, 4, 5), (3, 2, 3, 3), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "strides beyond the kernel": ((1, 2, 3, 3), (2, 2, 2, 1), {"strides": [3, 2]}),
    "dilations": ((1, 2, 4, 4), (2, 3, 3, 2), {"strides": [2, 1], "dilations": [2, 3]}),
    "groups": ((1, 4, 3, 4), (4, 3, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise": ((1, 4, 3, 4), (4, 1, 4, 4), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "output_padding": ((1, 2, 3, 4), (2, 3, 3, 3), {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 1, 1, 1]}),
    "output_shape": ((1, 2, 3, 4), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [6, 8]}),
    "output_shape, surplus after": (
        (1, 2, 3, 4), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [6, 8], "auto_pad": "SAME_UPPER"},
    ),
    "output_shape and groups": ((1, 4, 3, 4), (4, 2, 4, 3), {"group": 2, "strides": [3, 2], "output_shape": [9, 7]}),
    "same upper": ((1, 2, 3, 4), (2, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 2, 3, 4), (2, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "valid": ((1, 2, 3, 4), (2, 3, 3, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
    "1-d": ((2, 3, 5), (3, 2, 4), {"strides": [3], "pads": [1, 2], "output_padding": [1]}),
    "3-d": ((1, 2, 2, 3, 3), (2, 2, 2, 3, 2), {"strides": [2, 1, 2], "pads": [0, 1, 0, 1, 0, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("data, kernel, attributes", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_agrees_with_the_runtime(data, kernel, attributes, platform, monkeypatch):
    monkeypatch.setattr(convolution, "platform", lambda: platform)
    bias = normal(kernel[1] * attributes.get("group", 1), seed=2)
    inputs = normal(*data), normal(*kernel, seed=1), bias
    assert_agrees(Case(op="ConvTranspose", inputs=inputs, opset=11, attributes=attributes))


def test_transposed_is_the_adjoint_of_the_convolution():
    x, y, w = normal(1, 4, 7, 7), normal(1, 6, 4, 4), normal(6, 2, 3, 3)
    attributes = {"group": 2, "strides": (2, 2), "pads": (1, 1, 1, 1)}
    transposed = find("ConvTranspose", "", 22).function
    forward = jnp.vdot(jax.jit(partial(conv, **attributes))(x, w), y)
    backward = jnp.vdot(jax.jit(partial(transposed, **attributes))(y, w), x)
    np.testing.assert_allclose(forward, backward, rtol=1e-4)


def test_transposed_narrow_floats_keep_their_type():
    case = Case(
        op="ConvTranspose", inputs=(normal(1, 2, 3, 3), normal(2, 2, 3, 3)), opset=11, attributes={"strides": [2, 2]}
    )
    narrow = Case(
        op=case.op, inputs=tuple(v.astype(np.float16) for v in case.inputs), opset=11, attributes=case.attributes
    )
    [got] = run_jaxq(narrow)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, run_runtime(case)[0], rtol=0.01, atol=0.01)


def test_causal_convolution_continues_where_it_stopped():
    causal = find("CausalConvWithState", "", 27).function
    x, w, b = (jnp.asarray(v) for v in (normal(2, 3, 7), normal(3, 1, 3), normal(3)))
    step = jax.jit(partial(causal, activation="silu"))
    whole, last = step(x, w, b)
    first, state = step(x[..., :4], w, b)
    second, end = step(x[..., 4:], w, b, state)
    np.testing.assert_allclose(jnp.concatenate([first, second], -1), whole, atol=1e-6)
    np.testing.assert_array_equal(end, last)
    with pytest.raises(UnsupportedOpError, match="activation = 'relu'; expected none, silu or swish"):
        causal(x, w, activation="relu")


x, w = normal(1, 4, 5, 5), normal(6, 4, 3, 3)
REFUSED = {
    "channels": ((x, w[:, :3]), {}, r"kernel of shape \[6, 3, 3, 3\] does not fit input channels 4, group 1"),
    "group": ((x, w[:, :1]), {"group": 3}, "does not fit input channels 4, group 3"),
    "kernel_shape": ((x, w), {"kernel_shape": [3, 2]}, r"does not fit .* kernel_shape \[3, 2\]"),
    "too large a kernel": ((x, normal(6, 4, 6, 3)), {}, r"window of \[6, 3\] .* does not fit into the padded input"),
    "rank": ((x, normal(6, 4, 3)), {}, r"kernel_shape = \[3\] does not fit 2 spatial axes"),
    "pads": ((x, w), {"pads": [1, 1]}, r"pads = \[1, 1\] does not fit 2 spatial axes; it needs 4 numbers"),
    "strides": ((x, w), {"strides": [0, 1]}, r"strides = \[0, 1\] does not fit 2 spatial axes; it needs 2 positive"),
}


@pytest.mark.parametrize("inputs, attributes, message", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(inputs, attributes, message):
    with pytest.raises(ModelError, match=message):
        run_jaxq(Case(op="Conv", inputs=inputs, opset=11, attributes=attributes))


TRANSPOSED_REFUSED = {
    "channels": ((x, w), {}, r"kernel of shape \[6, 4, 3, 3\] does not fit input channels 4, group 1"),
    "kernel_shape": ((x, w[:4]), {"kernel_shape": [2, 2]}, "does not fit"),
    "rank": ((x, normal(4, 4, 3)), {}, "does not fit"),
    "strides": ((x, w[:4]), {"strides": [2]}, r"strides = \[2\] does not fit 2 spatial axes"),
    "pads": ((x, w[:4]), {"pads": [1, 1]}, r"pads = \[1, 1\] does not fit 2 spatial axes"),
}


@pytest.mark.parametrize("inputs, attributes, message", TRANSPOSED_REFUSED.values(), ids=TRANSPOSED_REFUSED)
def test_a_transposed_kernel_that_does_not_fit_is_refused(inputs, attributes, message):
    with pytest.raises(ModelError, match=message):
        run_jaxq(Case(op="ConvTranspose", inputs=inputs, opset=11, attributes=attributes))


@pytest.mark.parametrize("name, kernel", [("Conv", w), ("ConvTranspose", w[:4])])
def test_an_unknown_padding_is_refused(name, kernel):
    with pytest.raises(UnsupportedOpError, match="auto_pad = 'SAME'; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER"):
        run_jaxq(Case(op=name, inputs=(x, kernel), opset=11, attributes={"auto_pad": "SAME"}))
