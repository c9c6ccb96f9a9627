"""Normalizations: over batches, layers, groups, instances, neighbouring channels.

`stash_type` of the newer operators names the type in which statistics are computed; it never narrows the data's own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import ELEMENT_TYPES, op, wider
from jaxq.ops.spatial import per_channel


@op("BatchNormalization", since=6)
def batch_normalization_6(
    x, scale, bias, mean, variance, *, epsilon=1e-5, is_test=0, momentum=0.9, spatial=1, output_count=1
):
    """Before opset 9: `spatial=0` normalizes each cell [C, D1, ...] by itself; training shows in the further outputs."""
    if spatial:
        return batch_normalization(x, scale, bias, mean, variance, epsilon=epsilon, output_count=output_count)
    check_inference(output_count)
    cells = [jnp.reshape(value, (1, *x.shape[1:])) for value in (scale, bias, mean, variance)]
    return shifted_and_scaled(x, *cells, epsilon=epsilon)


@op("BatchNormalization", since=9)
def batch_normalization(x, scale, bias, mean, variance, *, epsilon=1e-5, momentum=0.9, training_mode=0, output_count=1):
    check_inference(output_count, training_mode)
    channels = [per_channel(value, x.ndim) for value in (scale, bias, mean, variance)]
    return shifted_and_scaled(x, *channels, epsilon=epsilon)


def check_inference(output_count: int, training_mode: int = 0) -> None:
    if training_mode or output_count > 1:
        raise UnsupportedOpError("BatchNormalization in training mode; export the model in evaluation mode")


def shifted_and_scaled(x, scale, bias, mean, variance, *, epsilon: float):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, computed in the widest of the types (opset 15 allows two)."""
    wide = wider(x.dtype, mean.dtype)
    factor = scale.astype(wide) / jnp.sqrt(variance.astype(wide) + epsilon)
    return ((x.astype(wide) - mean.astype(wide)) * factor + bias.astype(wide)).astype(x.dtype)


@op("LayerNormalization", since=1)  # ONNX has it from 17 on, ONNX Runtime's optimizer writes it into older models too
def layer_normalization(x, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    """Normalized over the axes from `axis` on; also the mean and 1 / standard deviation."""
    y, mean, inverse = standardize(x, trailing_axes(x, axis), epsilon, stash_type)
    y = y * scale
    return y if bias is None else y + bias, mean, inverse


def trailing_axes(x, axis: int) -> tuple[int, ...]:
    return tuple(range(axis % x.ndim, x.ndim))


def standardize(
    x, axes: tuple[int, ...], epsilon: float, stash_type: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x with mean 0 and variance 1 over `axes`, in its own type; the mean and 1 / standard deviation in the stash type."""
    stash = ELEMENT_TYPES[stash_type]
    wide = x.astype(wider(x.dtype, stash))
    mean = jnp.mean(wide, axes, keepdims=True)
    centered = wide - mean
    inverse = 1 / jnp.sqrt(jnp.mean(centered * centered, axes, keepdims=True) + epsilon)
    return (centered * inverse).astype(x.dtype), mean.astype(stash), inverse.astype(stash)


@op("RMSNormalization", since=23)
def rms_normalization(x, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    return over_root_mean_square(x, trailing_axes(x, axis), epsilon, stash_type)[0] * scale


@op("SimplifiedLayerNormalization", since=1)  # ONNX Runtime's, in ONNX's domain
def simplified_layer_normalization(x, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    """RMS normalization; also 1 / root mean square."""
    y, inverse = over_root_mean_square(x, trailing_axes(x, axis), epsilon, stash_type)
    return y * scale, inverse


def over_root_mean_square(x, axes: tuple[int, ...], epsilon: float, stash_type: int = 1) -> tuple[jax.Array, jax.Array]:
    """x / sqrt(mean(x ** 2) + epsilon) over `axes`, in its own type; 1 / root mean square in the stash type."""
    stash = ELEMENT_TYPES[stash_type]
    wide = x.astype(wider(x.dtype, stash))
    inverse = 1 / jnp.sqrt(jnp.mean(wide * wide, axes, keepdims=True) + epsilon)
    return (wide * inverse).astype(x.dtype), inverse.astype(stash)


@op("InstanceNormalization", since=6)
def instance_normalization(x, scale, bias, *, epsilon=1e-5):
    y, _, _ = standardize(x, tuple(range(2, x.ndim)), epsilon)
    return y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


@op("GroupNormalization", since=21)
def group_normalization(x, scale, bias, *, num_groups, epsilon=1e-5, stash_type=1):
    y = standardize_groups(x, num_groups, epsilon, stash_type)
    return y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


@op("GroupNormalization", since=18)
def group_normalization_18(x, scale, bias, *, num_groups, epsilon=1e-5):
    """Before opset 21 there is one scale and one bias for each group, not for each channel."""
    scale, bias = (jnp.repeat(value, x.shape[1] // num_groups) for value in (scale, bias))
    return group_normalization(x, scale, bias, num_groups=num_groups, epsilon=epsilon)


def standardize_groups(x, groups: int, epsilon: float, stash_type: int = 1) -> jax.Array:
    """x [N, C, ...] standardized over each group of neighbouring channels and all cells."""
    if x.shape[1] % groups:
        raise ModelError(f"{x.shape[1]} channels cannot be split into {groups} groups")
    split = jnp.reshape(x, (x.shape[0], groups, -1))
    return jnp.reshape(standardize(split, (2,), epsilon, stash_type)[0], x.shape)


@op("LRN", since=1)
def lrn(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    """x / (bias + alpha / size * (sum of squares over `size` channels around each)) ** beta."""
    before = (size - 1) // 2
    padding = [(0, 0), (before, size - 1 - before)] + [(0, 0)] * (x.ndim - 2)
    squares = jnp.pad(x * x, padding)
    total = sum(squares[:, shift : shift + x.shape[1]] for shift in range(size))
    return x / (bias + alpha / size * total) ** beta


@op("LpNormalization", since=1)
def lp_normalization(x, *, axis=-1, p=2):
    """x / norm along `axis`; 0 where the norm is 0."""
    if p not in (1, 2):
        raise UnsupportedOpError(f"p = {p}; LpNormalization is defined for 1 and 2")
    norm = jnp.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    return x / jnp.where(norm == 0, 1, norm)


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x, *, axes=(0, 2, 3)):
    """(x - mean) / (standard deviation + 1e-9), as in the standard's function body."""
    mean = jnp.mean(x, axes, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(x * x, axes, keepdims=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)
