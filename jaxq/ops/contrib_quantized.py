"""Operators of the domain com.microsoft on quantized tensors, as ONNX Runtime's quantizer and optimizer write them.

Most dequantize, compute in float32 and quantize again, which is what they are defined by.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import ModelError
from jaxq.ops import op
from jaxq.ops.activations import leaky_relu
from jaxq.ops.contrib import MICROSOFT
from jaxq.ops.pooling import average_pool, global_average_pool, max_pool
from jaxq.ops.quantized import (
    dequantize_linear,
    dynamic_quantize_linear,
    matmul_integer,
    qlinear_conv,
    quantize_linear,
    requantize,
)

op("QuantizeLinear", since=1, domain=MICROSOFT)(
    lambda x, y_scale, y_zero_point=None, *, axis=1: quantize_linear(x, y_scale, y_zero_point, axis=axis)
)
op("DequantizeLinear", since=1, domain=MICROSOFT)(
    lambda x, x_scale, x_zero_point=None, *, axis=1: dequantize_linear(x, x_scale, x_zero_point, axis=axis)
)


def quantize_like(y: Any, scale: Any, zero_point: Any, like: Any) -> Any:
    """y quantized to the type of `like`; an absent zero point is 0."""
    return quantize_linear(y, scale, np.zeros((), like.dtype) if zero_point is None else zero_point)


# --------------------------------------------------------------------------------------------------- element by element


@op("QLinearAdd", since=1, domain=MICROSOFT)
def qlinear_add(a, a_scale, a_zero_point, b, b_scale, b_zero_point, c_scale, c_zero_point=None):
    total = dequantize_linear(a, a_scale, a_zero_point) + dequantize_linear(b, b_scale, b_zero_point)
    return quantize_like(total, c_scale, c_zero_point, a)


@op("QLinearMul", since=1, domain=MICROSOFT)
def qlinear_mul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, c_scale, c_zero_point=None):
    product = dequantize_linear(a, a_scale, a_zero_point) * dequantize_linear(b, b_scale, b_zero_point)
    return quantize_like(product, c_scale, c_zero_point, a)


@op("QLinearWhere", since=1, domain=MICROSOFT)
def qlinear_where(condition, x, x_scale, x_zero_point, y, y_scale, y_zero_point, z_scale, z_zero_point):
    chosen = jnp.where(
        condition, dequantize_linear(x, x_scale, x_zero_point), dequantize_linear(y, y_scale, y_zero_point)
    )
    return quantize_linear(chosen, z_scale, z_zero_point)


@op("QLinearLeakyRelu", since=1, domain=MICROSOFT)
def qlinear_leaky_relu(x, x_scale, x_zero_point, y_scale, y_zero_point=None, *, alpha=0.01):
    return quantize_like(leaky_relu(dequantize_linear(x, x_scale, x_zero_point), alpha=alpha), y_scale, y_zero_point, x)


@op("QLinearSigmoid", since=1, domain=MICROSOFT)
def qlinear_sigmoid(x, x_scale, x_zero_point, y_scale, y_zero_point=None):
    return quantize_like(jax.nn.sigmoid(dequantize_linear(x, x_scale, x_zero_point)), y_scale, y_zero_point, x)


# ----------------------------------------------------------------------------------------------------------- along axes


@op("QLinearSoftmax", since=1, domain=MICROSOFT)
def qlinear_softmax(x, x_scale, x_zero_point, y_scale, y_zero_point, *, opset, axis=-1):
    """Softmax along `axis`, or over all axes from it on where the model it comes from is older than opset 13."""
    axes = axis if opset >= 13 else tuple(range(axis % x.ndim, x.ndim))
    return quantize_linear(
        jax.nn.softmax(dequantize_linear(x, x_scale, x_zero_point), axis=axes), y_scale, y_zero_point
    )


@op("QLinearReduceMean", since=1, domain=MICROSOFT)
def qlinear_reduce_mean(data, data_scale, data_zero_point, reduced_scale, reduced_zero_point=None, *, axes, keepdims):
    mean = jnp.mean(dequantize_linear(data, data_scale, data_zero_point), axes or None, keepdims=bool(keepdims))
    return quantize_like(mean, reduced_scale, reduced_zero_point, data)


@op("QLinearConcat", since=1, domain=MICROSOFT)
def qlinear_concat(y_scale, y_zero_point, *inputs, axis):
    """Tensors joined along `axis`; `inputs` are a tensor, its scale and its zero point, again and again."""
    if len(inputs) % 3:
        raise ModelError(f"{len(inputs)} inputs after the zero point; they come in threes (tensor, scale, zero point)")
    parts = [dequantize_linear(*inputs[first : first + 3]) for first in range(0, len(inputs), 3)]
    return quantize_linear(jnp.concatenate(parts, axis), y_scale, y_zero_point)


# ------------------------------------------------------------------------------------------------- pooling, convolution


@op("QLinearAveragePool", since=1, domain=MICROSOFT)
def qlinear_average_pool(
    x,
    x_scale,
    x_zero_point,
    y_scale,
    y_zero_point=None,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    channels_last=0,
    count_include_pad=0,
    pads=(),
    strides=(),
):
    y = average_pool(
        _channels_first(dequantize_linear(x, x_scale, x_zero_point), channels_last),
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        pads=pads,
        strides=strides,
    )
    return quantize_like(_channels_back(y, channels_last), y_scale, y_zero_point, x)


@op("NhwcMaxPool", since=1, domain=MICROSOFT)
def nhwc_max_pool(x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=(), pads=(), strides=()):
    """MaxPool of integers in the layout [N, H, W, C]."""
    y = max_pool(
        _channels_first(x, True),
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    return _channels_back(y, True)


@op("QLinearGlobalAveragePool", since=1, domain=MICROSOFT)
def qlinear_global_average_pool(x, x_scale, x_zero_point, y_scale, y_zero_point, *, channels_last=0):
    y = global_average_pool(_channels_first(dequantize_linear(x, x_scale, x_zero_point), channels_last))
    return quantize_linear(_channels_back(y, channels_last), y_scale, y_zero_point)


@op("QLinearConv", since=1, domain=MICROSOFT)
def qlinear_conv_any_layout(
    x,
    x_scale,
    x_zero_point,
    w,
    w_scale,
    w_zero_point,
    y_scale,
    y_zero_point,
    b=None,
    *,
    auto_pad="NOTSET",
    channels_last=0,
    dilations=(),
    group=1,
    kernel_shape=(),
    pads=(),
    strides=(),
):
    y = qlinear_conv(
        _channels_first(x, channels_last),
        x_scale,
        x_zero_point,
        w,
        w_scale,
        w_zero_point,
        y_scale,
        y_zero_point,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return _channels_back(y, channels_last)


def _channels_first(x: Any, channels_last: int) -> Any:
    return jnp.moveaxis(x, -1, 1) if channels_last else x


def _channels_back(y: Any, channels_last: int) -> Any:
    return jnp.moveaxis(y, 1, -1) if channels_last else y


# ------------------------------------------------------------------------------------------------------ matrix products


@op("QGemm", since=1, domain=MICROSOFT)
def qgemm(
    a,
    a_scale,
    a_zero_point,
    b,
    b_scale,
    b_zero_point,
    c=None,
    y_scale=None,
    y_zero_point=None,
    *,
    alpha=1.0,
    transA=0,
    transB=0,
):
    """alpha * (a @ b) + c, where c is int32 in steps of alpha * a_scale * b_scale; float32 without `y_scale`."""
    a, b = a.T if transA else a, b.T if transB else b
    steps = matmul_integer(a, b, a_zero_point, b_zero_point)
    steps = (steps if c is None else steps + c).astype(np.float32)
    scale = alpha * a_scale * b_scale
    return steps * scale if y_scale is None else requantize(steps, scale, y_scale, y_zero_point)


@op("MatMulIntegerToFloat", since=1, domain=MICROSOFT)
def matmul_integer_to_float(a, b, a_scale, b_scale, a_zero_point=None, b_zero_point=None, bias=None):
    """a @ b in float; b's scale and zero point may be given for each of its columns."""
    y = matmul_integer(a, b, a_zero_point, b_zero_point).astype(a_scale.dtype) * (a_scale * b_scale)
    return y if bias is None else y + bias


@op("DynamicQuantizeMatMul", since=1, domain=MICROSOFT)
def dynamic_quantize_matmul(a, b, b_scale, b_zero_point=None, bias=None):
    """a @ b, with a quantized to uint8 over its own range."""
    quantized, a_scale, a_zero_point = dynamic_quantize_linear(a)
    return matmul_integer_to_float(quantized, b, a_scale, b_scale, a_zero_point, b_zero_point, bias)


@op("MulInteger", since=1, domain=MICROSOFT)
def mul_integer(a, a_zero_point, b, b_zero_point=None):
    """(a - a_zero_point) * (b - b_zero_point) in int32."""
    a, b = (
        value.astype(np.int32) if zero_point is None else value.astype(np.int32) - zero_point.astype(np.int32)
        for value, zero_point in ((a, a_zero_point), (b, b_zero_point))
    )
    return a * b


@op("ReduceSumInteger", since=1, domain=MICROSOFT)
def reduce_sum_integer(data, *, axes, keepdims):
    wide = np.uint32 if np.issubdtype(data.dtype, np.unsignedinteger) else np.int32
    return jnp.sum(data.astype(wide), axes or None, keepdims=bool(keepdims), dtype=wide)
