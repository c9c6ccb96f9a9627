"""Convolutions. How one is computed is chosen here, by platform, and nowhere else.

On GPU and TPU a convolution is the plain XLA one. XLA's CPU convolutions are slow where they need not be, so on CPU data are
laid out channels-last inside the operator and several variants share the work (`tools/bench_convolution.py` measures them).
All have the signature of `plain_convolution`, and are tested against it. Kernels are [*size, I / group, O] inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import op, platform
from jaxq.ops.layout import LAID_OUT, kernel_last
from jaxq.ops.spatial import Window, pad, per_channel, shifted, sliding_window

Variant = Callable[[jax.Array, jax.Array, Window, int], jax.Array]


@op("Conv", since=1)
def conv(x, w, b=None, *, auto_pad="NOTSET", dilations=(), group=1, kernel_shape=(), pads=(), strides=()):
    window = sliding_window(
        x.shape[2:], kernel_shape or w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    check_kernel(x, w.shape, window, group)
    y = convolve(x, jnp.transpose(w, kernel_last(w.ndim)), window, group)
    return y if b is None else y + per_channel(b, y.ndim)


@op("Conv", since=1, domain=LAID_OUT)
def conv_laid_out(x, w, b=None, *, auto_pad="NOTSET", dilations=(), group=1, kernel_shape=(), pads=(), strides=()):
    """The same with a kernel [*size, I / group, O]; see `jaxq.ops.layout`."""
    window = sliding_window(
        x.shape[2:], kernel_shape or w.shape[:-2], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    check_kernel(x, (w.shape[-1], w.shape[-2], *w.shape[:-2]), window, group)
    y = convolve(x, jnp.asarray(w), window, group)
    return y if b is None else y + per_channel(b, y.ndim)


@op("CausalConvWithState", since=27)
def causal_conv_with_state(x, w, b=None, past_state=None, *, activation="none"):
    """A depthwise convolution of x [N, C, L] that sees w.shape[-1] - 1 cells of the past; also the cells to keep for the next."""
    before = w.shape[-1] - 1
    past = jnp.zeros((*x.shape[:2], before), x.dtype) if past_state is None else past_state
    cells = jnp.concatenate([past, x], axis=-1)
    y = conv(cells, w, b, group=x.shape[1])
    if activation in ("silu", "swish"):
        y = jax.nn.silu(y.astype(jnp.promote_types(y.dtype, jnp.float32))).astype(x.dtype)
    elif activation != "none":
        raise UnsupportedOpError(f"activation = {activation!r}; expected none, silu or swish")
    return y, cells[..., cells.shape[-1] - before :]


def check_kernel(x, shape: tuple[int, ...], window: Window, group: int) -> None:
    """Raises ModelError when a kernel of shape [O, I / group, *size] does not fit the data [N, I, ...]."""
    if shape[1:] != (x.shape[1] // group, *window.size) or x.shape[1] % group or shape[0] % group:
        raise ModelError(
            f"a kernel of shape {list(shape)} does not fit input channels {x.shape[1]}, group {group}, "
            f"kernel_shape {list(window.size)}"
        )


# ---------------------------------------------------------------------------------------------------------- the choice


def convolve(x: jax.Array, kernel: jax.Array, window: Window, group: int = 1) -> jax.Array:
    """x [N, I, ...] with kernel [*size, I / group, O], by the variant that is fast on the platform: [N, O, ...]."""
    if platform() != "cpu":
        return plain_convolution(x, kernel, window, group)
    # CPUs compute in no less than 32 bit; the sums of the variants are then rounded once.
    wide = jnp.promote_types(x.dtype, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    y = cpu_variant(x.shape, kernel.shape, window, group)(x.astype(wide), kernel.astype(wide), window, group)
    return y.astype(x.dtype)


def cpu_variant(shape: tuple[int, ...], kernel: tuple[int, ...], window: Window, group: int) -> Variant:
    """The fastest variant on CPU for data [N, I, ...] and a kernel [*size, I / group, O]."""
    inputs, outputs = shape[1], kernel[-1]
    if group == inputs:
        return depthwise_convolution
    if group > 1:
        return grouped_convolution
    cells = inputs * window.cells
    if window.cells == 1 or (cells <= FEW_CELLS and window.strided):
        return patch_convolution
    if max(inputs, outputs) <= FEW_CHANNELS and not window.strided:
        return row_convolution
    return channels_last_convolution


# XLA's fast convolution (YNNPACK) leaves kernels with fewer channels to a slow one, and is itself slow on few cells.
FEW_CHANNELS, FEW_CELLS = 16, 32
# Groups are put side by side until a block has this many channels: the zeros between them cost less than more calls.
BLOCK_CHANNELS = 32


def plain_convolution(x: jax.Array, kernel: jax.Array, window: Window, group: int) -> jax.Array:
    """XLA's convolution in ONNX's layout."""
    last, spatial = kernel.ndim - 1, tuple(range(2, x.ndim))
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilations,
        feature_group_count=group,
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, 1, *spatial), (last, last - 1, *range(window.rank)), (0, 1, *spatial)
        ),
    )


def channels_last_convolution(x: jax.Array, kernel: jax.Array, window: Window, group: int) -> jax.Array:
    """XLA's convolution with data [N, ..., I]."""
    last, spatial = kernel.ndim - 1, tuple(range(1, x.ndim - 1))
    y = lax.conv_general_dilated(
        to_channels_last(x),
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilations,
        feature_group_count=group,
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, last, *spatial), (last, last - 1, *range(window.rank)), (0, last, *spatial)
        ),
    )
    return to_channels_first(y)


def patch_convolution(x: jax.Array, kernel: jax.Array, window: Window, group: int) -> jax.Array:
    """One matrix product: the cells that a window covers, side by side, times the kernel."""
    cells = [part for _, part in shifted(to_channels_last(x), window)]
    patches = cells[0] if len(cells) == 1 else jnp.concatenate(cells, axis=-1)
    return to_channels_first(patches @ jnp.reshape(kernel, (-1, kernel.shape[-1])))


def row_convolution(x: jax.Array, kernel: jax.Array, window: Window, group: int) -> jax.Array:
    """The last spatial axis as in `patch_convolution`, the others by summing shifted results. Strides are 1.

    One product makes the results of all rows of the kernel at every place; row k's are then read k places further on.
    """
    last, outputs = window.rank - 1, kernel.shape[-1]
    padded = pad(to_channels_last(x), window)
    columns = [part for _, part in shifted(padded, window.along(last))]
    rows = jnp.reshape(kernel, (-1, kernel.shape[last] * kernel.shape[-2], outputs))
    products = jnp.concatenate(columns, axis=-1) @ jnp.reshape(jnp.swapaxes(rows, 0, 1), (rows.shape[1], -1))
    others = itertools.product(*(range(size) for size in window.size[:-1]))
    y = sum(
        cut(products, offset, window)[..., row * outputs : (row + 1) * outputs] for row, offset in enumerate(others)
    )
    return to_channels_first(y)


def depthwise_convolution(x: jax.Array, kernel: jax.Array, window: Window, group: int) -> jax.Array:
    """One input channel a group: the sum over the kernel's cells of a shifted input times a weight per channel."""
    x = to_channels_last(x)
    if kernel.shape[-1] != group:  # channel multiplier
        x = jnp.repeat(x, kernel.shape[-1] // group, axis=-1)
    return to_channels_first(total(cells * kernel[*offset, 0] for offset, cells in shifted(x, window)))


def grouped_convolution(x: jax.Array, kernel: jax.Array, window: Window, group: int) -> jax.Array:
    """A convolution for each block of neighbouring groups, whose kernel is block-diagonal."""
    size, outputs = kernel.shape[-2], kernel.shape[-1] // group
    together = max(count for count in range(1, group + 1) if group % count == 0 and count * size <= max(BLOCK_CHANNELS, size))
    blocks = group // together
    parts = jnp.reshape(kernel, (*window.size, size, blocks, together, outputs))
    diagonal = jnp.eye(together, dtype=kernel.dtype)[:, None, None, :, None]
    spread = jnp.reshape(parts[..., None, :, :, :, :] * diagonal, (*window.size, together * size, -1))
    pairs = zip(jnp.split(x, blocks, axis=1), jnp.split(spread, blocks, axis=-1), strict=True)
    return jnp.concatenate([convolve(data, block, window) for data, block in pairs], axis=1)


def to_channels_last(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 1, -1)


def to_channels_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)
