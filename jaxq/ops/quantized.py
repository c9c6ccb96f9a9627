"""Quantization inside the graph: QuantizeLinear, DequantizeLinear and the operators that compute on integers."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.numerics.quantizer import divided
from jaxq.ops import array_namespace, op
from jaxq.ops.cast import convert, element_dtype, is_integer
from jaxq.ops.convolution import conv


@op("QuantizeLinear", since=10)
def quantize_linear(x, y_scale, y_zero_point=None, *, axis=1, block_size=0, output_dtype=0, precision=0, saturate=1):
    """saturate(round(x / y_scale) + y_zero_point), with one scale for the tensor, each index of `axis`, or each block.

    The result has the type of the zero point, else `output_dtype`, else uint8. The division is done in `precision`,
    else in the type of the scale.
    """
    if y_zero_point is not None:
        dtype = y_zero_point.dtype
    else:
        dtype = element_dtype(output_dtype, x) if output_dtype else np.dtype(np.uint8)
    if precision:
        wide = element_dtype(precision, x)
    else:  # powers of two (float8_e8m0) are scales that nothing can be computed in
        wide = x.dtype if y_scale.dtype.name == "float8_e8m0fnu" else y_scale.dtype
    scale = laid_along(y_scale.astype(wide), x.shape, axis, block_size)
    ratio = divide_exactly(x.astype(wide), scale)
    zero_point = None if y_zero_point is None else laid_along(y_zero_point, x.shape, axis, block_size)
    if is_integer(dtype):
        return to_integers(ratio, zero_point, dtype)
    if zero_point is not None:
        ratio = ratio + zero_point.astype(wide)
    return convert(ratio, dtype, saturate=bool(saturate))


@op("DequantizeLinear", since=10)
def dequantize_linear(x, x_scale, x_zero_point=None, *, axis=1, block_size=0, output_dtype=0):
    """(x - x_zero_point) * x_scale, computed in float32, in `output_dtype` or the type of the scale."""
    dtype = element_dtype(output_dtype, x, x_scale) if output_dtype else x_scale.dtype
    wide = np.int32 if is_integer(x.dtype) else np.float32
    steps = x.astype(wide)
    if x_zero_point is not None:
        steps = steps - laid_along(x_zero_point, x.shape, axis, block_size).astype(wide)
    scale = laid_along(x_scale, x.shape, axis, block_size).astype(np.float32)
    return (steps.astype(np.float32) * scale).astype(dtype)


def laid_along(parameter: Any, shape: tuple[int, ...], axis: int, block_size: int = 0) -> Any:
    """A scale or zero point in a form that broadcasts against a tensor of that shape.

    Args:
      parameter: one value; or [n], a value for each index of `axis`; or, with a block size, a tensor of the same rank
        with one value for each `block_size` indices of `axis`, of which the last block may be shorter.
    """
    if block_size:
        repeated = array_namespace(parameter).repeat(parameter, block_size, axis)
        return repeated[tuple(slice(length) for length in shape)]
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim != 1 or parameter.shape[0] != shape[axis]:
        raise ModelError(
            f"scale or zero point of shape {list(parameter.shape)} does not fit axis {axis} of {list(shape)}"
        )
    return parameter.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])


def divide_exactly(x: Any, scale: Any) -> Any:
    """x / scale, rounded as IEEE 754 says."""
    return x / scale if array_namespace(x, scale) is np else divided(x, scale)


def to_integers(ratio: Any, zero_point: Any, dtype: Any) -> Any:
    """clip(round(ratio) + zero_point), half to even, on the range of `dtype`; exact for types of up to 16 bits.

    NaN becomes the lowest integer, as in ONNX Runtime; the standard leaves it open.
    """
    xp, limits = array_namespace(ratio, zero_point), jnp.iinfo(dtype)
    steps = xp.rint(ratio).astype(np.float32)
    if zero_point is not None:
        steps = steps + zero_point.astype(np.float32)
    low, high = np.float32(limits.min), np.float32(limits.max)
    return convert(xp.where(xp.isnan(steps), low, xp.clip(steps, low, high)), dtype)


@op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x):
    """x as uint8 over its own range, which is made to hold 0, with the scale and the zero point."""
    xp = array_namespace(x)
    low, high = xp.minimum(xp.min(x), np.float32(0)), xp.maximum(xp.max(x), np.float32(0))
    scale = divide_exactly(high - low, np.float32(255))
    scale = xp.where(scale == 0, np.float32(1), scale)
    zero_point = to_integers(divide_exactly(-low, scale), None, np.uint8)
    return to_integers(divide_exactly(x, scale), zero_point, np.uint8), scale, zero_point


# ----------------------------------------------------------------------------------------- sums of products of integers


@op("MatMulInteger", since=10)
def matmul_integer(a, b, a_zero_point=None, b_zero_point=None):
    """(a - a_zero_point) @ (b - b_zero_point) in int32; zero points are scalars, or one for each row of a, column of b.

    Exact. The products are taken of 8-bit integers, for which processors have instructions:

        (a - p) @ (b - q) = a @ b - p * sum(b over K) - sum(a over K) * q + K * p * q
    """
    if b.ndim == 1:
        return matmul_integer(a, b[:, None], a_zero_point, b_zero_point)[..., 0]
    if a.ndim == 1:
        return matmul_integer(a[None], b, a_zero_point, b_zero_point)[..., 0, :]
    (a, p), (b, q) = _as_int8(a, a_zero_point), _as_int8(b, b_zero_point)
    p = p[:, None] if p.ndim == 1 else p
    a_sums, b_sums = jnp.sum(a, -1, keepdims=True, dtype=np.int32), jnp.sum(b, -2, keepdims=True, dtype=np.int32)
    products = jnp.matmul(a, b, preferred_element_type=np.int32)
    return products - p * b_sums - a_sums * q + np.int32(a.shape[-1]) * p * q


def _as_int8(values: Any, zero_point: Any) -> tuple[jax.Array, jax.Array]:
    """8-bit integers and their zero point (as int32), both moved into the range of int8."""
    shift = np.int32(0 if values.dtype == np.int8 else 128)
    zero_point = jnp.zeros((), np.int32) if zero_point is None else jnp.asarray(zero_point, np.int32)
    return (jnp.asarray(values, np.int32) - shift).astype(np.int8), zero_point - shift


@op("ConvInteger", since=10)
def conv_integer(
    x,
    w,
    x_zero_point=None,
    w_zero_point=None,
    *,
    auto_pad="NOTSET",
    dilations=(),
    group=1,
    kernel_shape=(),
    pads=(),
    strides=(),
):
    """The convolution of x - x_zero_point with w - w_zero_point (a scalar, or one for each kernel) in int32.

    Exact. XLA's integer convolutions are some 70 times slower than its float ones on CPU and missing on GPU, so the
    sum is taken in float32 over digits of the kernel, small enough for every partial sum to stay below 2**24.
    """
    x = x.astype(np.int32) if x_zero_point is None else x.astype(np.int32) - x_zero_point.astype(np.int32)
    w = w.astype(np.int32)
    if w_zero_point is not None:
        w = w - w_zero_point.astype(np.int32).reshape(-1, *[1] * (w.ndim - 1))
    terms = math.prod(w.shape[1:])
    bits = next((bits for bits in (8, 4, 2, 1) if terms * 255 * 2**bits < 2**24), None)
    if bits is None:
        raise UnsupportedOpError(f"integer convolutions over {terms} terms are not supported (up to 32896 are)")
    result = np.int32(0)
    for place in range(0, 8, bits):
        last = place + bits >= 8  # the last digit takes what is left, and with it the sign
        digit = w >> place if last else (w >> place) & (2**bits - 1)
        part = conv(
            x.astype(np.float32),
            digit.astype(np.float32),
            auto_pad=auto_pad,
            dilations=dilations,
            group=group,
            kernel_shape=kernel_shape,
            pads=pads,
            strides=strides,
        )
        result = result + (part.astype(np.int32) << place)
    return result


# ------------------------------------------------------------------------------------------ quantized in, quantized out


@op("QLinearMatMul", since=10)
def qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    """The product of two quantized matrices, quantized; scales are scalars, or one for each row of a, column of b."""
    a_scale = a_scale[:, None] if a_scale.ndim == 1 and a.ndim > 1 else a_scale
    y_scale, y_zero_point = (v[:, None] if v.ndim == 1 and v.size > 1 else v for v in (y_scale, y_zero_point))
    if is_integer(a.dtype):
        product = matmul_integer(a, b, a_zero_point, b_zero_point).astype(np.float32)
    else:  # float8, whose zero point is 0
        product = jnp.matmul(a.astype(np.float32), b.astype(np.float32))
    return requantize(product, a_scale.astype(np.float32) * b_scale.astype(np.float32), y_scale, y_zero_point)


@op("QLinearConv", since=10)
def qlinear_conv(
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
    dilations=(),
    group=1,
    kernel_shape=(),
    pads=(),
    strides=(),
):
    """The convolution of quantized tensors, quantized; b is int32, in steps of x_scale * w_scale."""
    product = conv_integer(
        x,
        w,
        x_zero_point,
        w_zero_point,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    along = (-1,) + (1,) * (x.ndim - 2)
    if b is not None:
        product = product + b.reshape(along)
    return requantize(product.astype(np.float32), x_scale * w_scale.reshape(along), y_scale, y_zero_point)


def requantize(steps: Any, scale: Any, y_scale: Any, y_zero_point: Any) -> Any:
    """round(steps * (scale / y_scale)) + y_zero_point: from steps of `scale` to the quantizer of the result."""
    factor = divide_exactly(scale, y_scale.astype(np.float32))
    ratio = steps * factor
    if is_integer(y_zero_point.dtype):
        return to_integers(ratio, y_zero_point, y_zero_point.dtype)
    return convert(ratio, y_zero_point.dtype)
