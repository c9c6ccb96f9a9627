"""Operators of the domain com.microsoft that ONNX Runtime's optimizer and exporters leave in files, but for attention."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxq.errors import UnsupportedOpError
from jaxq.ops import op
from jaxq.ops.convolution import conv
from jaxq.ops.neural import gemm, scaled
from jaxq.ops.normalization import over_root_mean_square, standardize

MICROSOFT = "com.microsoft"


@op("Gelu", since=1, domain=MICROSOFT)
def gelu(x):
    return jax.nn.gelu(x, approximate=False)


@op("BiasGelu", since=1, domain=MICROSOFT)
def bias_gelu(x, bias):
    return jax.nn.gelu(x + bias, approximate=False)


@op("FastGelu", since=1, domain=MICROSOFT)
def fast_gelu(x, bias=None):
    return jax.nn.gelu(x if bias is None else x + bias, approximate=True)


@op("QuickGelu", since=1, domain=MICROSOFT)
def quick_gelu(x, *, alpha=1.702):
    return x * jax.nn.sigmoid(alpha * x)


# The activations that the runtime fuses, with the defaults of their parameters.
FUSED_ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
    "": lambda x: x,
    "Relu": jax.nn.relu,
    "Tanh": jnp.tanh,
    "Sigmoid": jax.nn.sigmoid,
    "LeakyRelu": lambda x, alpha=0.01: jnp.where(x >= 0, x, alpha * x),
    "Clip": lambda x, low=-3.4e38, high=3.4e38: jnp.clip(x, low, high),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: jnp.clip(alpha * x + beta, 0, 1),
}


def activate(name: str, x, parameters):
    if name not in FUSED_ACTIVATIONS:
        raise UnsupportedOpError(f"activation = {name!r}; expected one of {', '.join(filter(None, FUSED_ACTIVATIONS))}")
    return FUSED_ACTIVATIONS[name](x, *parameters)


@op("FusedConv", since=1, domain=MICROSOFT)
def fused_conv(
    x,
    w,
    b=None,
    z=None,
    *,
    activation="",
    activation_params=(),
    auto_pad="NOTSET",
    dilations=(),
    group=1,
    kernel_shape=(),
    pads=(),
    strides=(),
):
    """activation(conv(x, w, b) + z)."""
    y = conv(
        x,
        w,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return activate(activation, y if z is None else y + z, activation_params)


@op("FusedGemm", since=1, domain=MICROSOFT)
def fused_gemm(
    a,
    b,
    c=None,
    *,
    activation="",
    activation_alpha=None,
    activation_beta=None,
    activation_gamma=None,
    alpha=1.0,
    beta=1.0,
    transA=0,
    transB=0,
):
    parameters = [value for value in (activation_alpha, activation_beta, activation_gamma) if value is not None]
    return activate(activation, gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB), parameters)


@op("FusedMatMul", since=1, domain=MICROSOFT)
def fused_matmul(a, b, *, alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0):
    """alpha * a @ b; transBatch moves the first axis behind the batch axes, before trans swaps the last two."""

    def turned(x, batch: int, last: int):
        x = jnp.moveaxis(x, 0, -2) if batch else x
        return jnp.swapaxes(x, -1, -2) if last and x.ndim > 1 else x

    return scaled(jnp.matmul(turned(a, transBatchA, transA), turned(b, transBatchB, transB)), alpha)


@op("TransposeMatMul", since=1, domain=MICROSOFT)
def transpose_matmul(a, b, *, alpha=1.0, transA=0, transB=0):
    return fused_matmul(a, b, alpha=alpha, transA=transA, transB=transB)


@op("MatMulNBits", since=1, domain=MICROSOFT)
def matmul_nbits(
    a,
    b,
    scales,
    zero_points=None,
    g_idx=None,
    bias=None,
    *,
    K,
    N,
    bits=4,
    block_size,
    accuracy_level=0,
    weight_prepacked=0,
):
    """a [..., K] times the transpose of w [N, K], whose rows are quantized in blocks:

        w = (q - zero_point) * scale        (zero point 2 ** (bits - 1) where none is given)

    `accuracy_level` allows the runtime to narrow `a`; here it never is.
    """
    if weight_prepacked or g_idx is not None:
        raise UnsupportedOpError("MatMulNBits with weight_prepacked or g_idx; export the weights unpacked and in order")
    blocks = -(-K // block_size)
    q = unpack_bits(jnp.reshape(b, (N, blocks, -1)), bits, block_size).astype(a.dtype)
    if zero_points is None:
        zero = jnp.full((N, blocks), 2 ** (bits - 1), a.dtype)
    elif zero_points.dtype == jnp.uint8:
        zero = unpack_bits(jnp.reshape(zero_points, (N, -1)), bits, blocks).astype(a.dtype)
    else:
        zero = jnp.reshape(zero_points, (N, blocks)).astype(a.dtype)
    w = (q - zero[..., None]) * jnp.reshape(scales, (N, blocks, 1)).astype(a.dtype)
    y = jnp.matmul(a, jnp.reshape(w, (N, -1))[:, :K].T)
    return y if bias is None else y + bias


def unpack_bits(packed, bits: int, count: int) -> jax.Array:
    """`count` unsigned numbers of `bits` bits from the bytes of the last axis, lowest bits first, as int32."""
    bit = (jnp.asarray(packed).astype(jnp.int32)[..., None] >> jnp.arange(8)) & 1
    stream = jnp.reshape(bit, (*packed.shape[:-1], -1))[..., : count * bits]
    return jnp.sum(jnp.reshape(stream, (*packed.shape[:-1], count, bits)) << jnp.arange(bits), axis=-1, dtype=jnp.int32)


@op("SkipLayerNormalization", since=1, domain=MICROSOFT)
def skip_layer_normalization(x, skip, gamma, beta=None, bias=None, *, epsilon=1e-12):
    """Layer normalization of x + skip + bias; also the mean, 1 / standard deviation, and that sum."""
    total = x + skip if bias is None else x + skip + bias
    y, mean, inverse = standardize(total, (total.ndim - 1,), epsilon)
    y = y * gamma
    return y if beta is None else y + beta, mean, inverse, total


@op("SkipSimplifiedLayerNormalization", since=1, domain=MICROSOFT)
def skip_simplified_layer_normalization(x, skip, gamma, bias=None, *, epsilon=1e-12):
    """RMS normalization of x + skip + bias; also nothing, 1 / root mean square, and that sum."""
    total = x + skip if bias is None else x + skip + bias
    y, inverse = over_root_mean_square(total, (total.ndim - 1,), epsilon)
    return y * gamma, jnp.zeros_like(inverse), inverse, total


@op("EmbedLayerNormalization", since=1, domain=MICROSOFT)
def embed_layer_normalization(
    input_ids,
    segment_ids,
    word_embedding,
    position_embedding,
    segment_embedding,
    gamma,
    beta,
    mask=None,
    position_ids=None,
    *,
    epsilon=1e-12,
    mask_index_type=1,
):
    """Layer normalization of the sum of the embeddings; also how many words the mask keeps, and that sum."""
    positions = jnp.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
    total = jnp.take(word_embedding, input_ids, axis=0) + jnp.take(position_embedding, positions, axis=0)
    if segment_ids is not None:
        total = total + jnp.take(segment_embedding, segment_ids, axis=0)
    y, _, _ = standardize(total, (2,), epsilon)
    kept = jnp.zeros(len(input_ids), jnp.int32) if mask is None else jnp.sum(mask, axis=1, dtype=jnp.int32)
    return y * gamma + beta, kept, total
