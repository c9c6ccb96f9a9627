"""Convolutions. How one is computed is chosen here, by platform, and nowhere else.

On GPU and TPU a convolution is the plain XLA one. XLA's CPU convolutions are slow where they need not be, so on CPU data are
laid out channels-last inside the operator and kernels as [*size, I / group, O], 1x1 kernels become matrix products and
depthwise ones a sum of shifted multiply-adds (`tools/bench_convolution.py` measures all of them). Every variant is tested
against the plain one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import LAID_OUT, op, platform, wider
from jaxq.ops.spatial import Window, check_axes, per_channel, resolve_pads, sliding_window

Variant = Callable[[jax.Array, jax.Array, Window, int], jax.Array]


@op("Conv", since=1)
def conv(x, w, b=None, *, auto_pad="NOTSET", dilations=(), group=1, kernel_shape=(), pads=(), strides=()):
    window = sliding_window(
        x.shape[2:], kernel_shape or w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    check_kernel(x, w.shape, window, group)
    y = convolve(x, w, window, group)
    return y if b is None else y + per_channel(b, y.ndim)


@op("Conv", since=1, domain=LAID_OUT)
def conv_laid_out(x, w, b=None, *, auto_pad="NOTSET", dilations=(), group=1, kernel_shape=(), pads=(), strides=()):
    """The same with a kernel [*size, I / group, O], which `jaxq.engine.layout` has put into that order beforehand."""
    window = sliding_window(
        x.shape[2:], kernel_shape or w.shape[:-2], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    check_kernel(x, (w.shape[-1], w.shape[-2], *w.shape[:-2]), window, group)
    y = cpu_convolution(x, jnp.asarray(w), window, group)
    return y if b is None else y + per_channel(b, y.ndim)


@op("ConvTranspose", since=1)
def conv_transpose(
    x,
    w,
    b=None,
    *,
    auto_pad="NOTSET",
    dilations=(),
    group=1,
    kernel_shape=(),
    output_padding=(),
    output_shape=(),
    pads=(),
    strides=(),
):
    """x [N, I, ...], w [I, O / group, ...]."""
    size, rank = tuple(kernel_shape or w.shape[2:]), x.ndim - 2
    strides, dilations, extra = strides or (1,) * rank, dilations or (1,) * rank, output_padding or (0,) * rank
    check_axes(rank, kernel_shape=size, strides=strides, dilations=dilations)
    if x.shape[1] != w.shape[0] or w.shape[0] % group or w.shape[2:] != size:
        raise ModelError(
            f"a kernel of shape {list(w.shape)} does not fit input channels {x.shape[1]}, group {group}, "
            f"kernel_shape {list(size)}"
        )
    extents = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
    paired = resolve_pads(x.shape[2:], extents, strides, pads, auto_pad)
    crops, output = [], []
    for axis, length in enumerate(x.shape[2:]):
        whole = (length - 1) * strides[axis] + extents[axis] + extra[axis]
        if output_shape or auto_pad.startswith("SAME"):
            target = output_shape[axis] if output_shape else length * strides[axis]
            cut = max(whole - target, 0)
            begin = cut // 2 if auto_pad == "SAME_UPPER" else cut - cut // 2
        else:
            begin, end = paired[axis]
            target = whole - begin - end
        crops.append(begin)
        output.append(target)
    kernel = grouped_transpose(jnp.asarray(w), group) if w.size else w
    if not (x.size and w.size):
        y = jnp.zeros((x.shape[0], w.shape[1] * group, *output), x.dtype)
    elif platform() == "cpu":
        y = phased_transpose(jnp.asarray(x), kernel, strides, dilations, crops, output, group)
    else:
        y = plain_transpose(jnp.asarray(x), kernel, strides, dilations, crops, output, group)
    return y if b is None else y + per_channel(b, y.ndim)


@op("CausalConvWithState", since=27)
def causal_conv_with_state(x, w, b=None, past_state=None, *, activation="none"):
    """A depthwise convolution of x [N, C, L] that sees w.shape[-1] - 1 cells of the past; also the cells that come next."""
    before = w.shape[-1] - 1
    past = jnp.zeros((*x.shape[:2], before), x.dtype) if past_state is None else past_state
    cells = jnp.concatenate([past, x], axis=-1)
    y = conv(cells, w, b, group=x.shape[1])
    if activation in ("silu", "swish"):
        y = jax.nn.silu(y.astype(wider(y.dtype, jnp.float32))).astype(x.dtype)
    elif activation != "none":
        raise UnsupportedOpError(f"activation = {activation!r}; expected none, silu or swish")
    return y, cells[..., cells.shape[-1] - before :]


def grouped_transpose(w: jax.Array, group: int) -> jax.Array:
    """[I, O / group, ...] -> [O, I / group, ...]."""
    parts = jnp.reshape(w, (group, w.shape[0] // group, *w.shape[1:]))
    return jnp.reshape(jnp.swapaxes(parts, 1, 2), (group * w.shape[1], w.shape[0] // group, *w.shape[2:]))


def plain_transpose(x, w, strides, dilations, crops, output, group: int) -> jax.Array:
    """XLA's convolution of the input spread out by the strides, with the kernel [O, I / group, ...] turned around.

    The result holds the cells from `crops` on, `output` of them, on each axis.
    """
    padding = []
    for axis, length in enumerate(x.shape[2:]):
        extent = (w.shape[2 + axis] - 1) * dilations[axis] + 1
        before = extent - 1 - crops[axis]
        padding.append((before, output[axis] - before - (length - 1) * strides[axis] - 1 + extent - 1))
    spatial = tuple(range(2, x.ndim))
    return lax.conv_general_dilated(
        x, jnp.flip(w, spatial), (1,) * len(spatial), padding, strides, dilations, feature_group_count=group
    )


def phased_transpose(x, w, strides, dilations, crops, output, group: int) -> jax.Array:
    """The same as one convolution of the input as it is, with output channels for each phase of the strides.

    Output cell q * s + r is the sum over t of x[q - t] * w[t * s + r], so each phase r has its own part of the kernel.
    """
    rank, channels = len(strides), w.shape[0]
    extents = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    spread = [(0, -extent % s, d - 1) for extent, s, d in zip(extents, strides, dilations, strict=True)]
    w = lax.pad(w, jnp.zeros((), w.dtype), [(0, 0, 0), (0, 0, 0), *spread])
    taps = [length // s for length, s in zip(w.shape[2:], strides, strict=True)]
    split = [part for pair in zip(taps, strides, strict=True) for part in pair]
    w = jnp.reshape(w, (*w.shape[:2], *split))
    w = jnp.transpose(w, (0, *range(3, w.ndim, 2), 1, *range(2, w.ndim, 2)))  # [O, *strides, I / group, *taps]
    w = jnp.flip(jnp.reshape(w, (-1, w.shape[1 + rank], *taps)), tuple(range(2, 2 + rank)))
    around = tuple(tap - 1 for tap in taps)
    window = sliding_window(x.shape[2:], tuple(taps), pads=around + around)
    y = convolve(x, w, window, group)
    y = jnp.reshape(y, (x.shape[0], channels, *strides, *window.output))
    order = (part for axis in range(rank) for part in (2 + rank + axis, 2 + axis))
    y = jnp.transpose(y, (0, 1, *order))
    whole = [count * s for count, s in zip(window.output, strides, strict=True)]
    y = jnp.reshape(y, (x.shape[0], channels, *whole))
    cut = [(-crop, crop + target - length, 0) for crop, target, length in zip(crops, output, whole, strict=True)]
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), (0, 0, 0), *cut])


def check_kernel(x, shape: tuple[int, ...], window: Window, group: int) -> None:
    """Raises ModelError when a kernel of shape [O, I / group, ...] does not fit the data [N, I, ...]."""
    if shape[1:] != (x.shape[1] // group, *window.size) or x.shape[1] % group or shape[0] % group:
        raise ModelError(
            f"a kernel of shape {list(shape)} does not fit input channels {x.shape[1]}, group {group}, "
            f"kernel_shape {list(window.size)}"
        )


def convolve(x: jax.Array, w: jax.Array, window: Window, group: int = 1) -> jax.Array:
    """x [N, I, ...] with kernel w [O, I / group, ...], by the variant that is fast on the platform: [N, O, ...]."""
    if platform() != "cpu" and x.size and w.size:
        return plain_convolution(x, w, window, group)
    return cpu_convolution(x, jnp.transpose(w, (*range(2, w.ndim), 1, 0)), window, group)


def plain_convolution(x: jax.Array, w: jax.Array, window: Window, group: int) -> jax.Array:
    """XLA's convolution in ONNX's layout."""
    return lax.conv_general_dilated(
        x, w, window.strides, window.padding, rhs_dilation=window.dilations, feature_group_count=group
    )


# --------------------------------------------------------------------------------- on CPU; kernels are [*size, I / group, O]


def cpu_convolution(x: jax.Array, w: jax.Array, window: Window, group: int) -> jax.Array:
    if not (x.size and w.size):  # sums of nothing, of which XLA knows no convolution
        return jnp.zeros((x.shape[0], w.shape[-1], *window.output), x.dtype)
    # CPUs compute in no less than 32 bit; the sums of the variants are then rounded once.
    wide = wider(x.dtype, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    y = cpu_variant(x, w.shape[-1], window, group)(jnp.asarray(x, wide), jnp.asarray(w, wide), window, group)
    return fusion_border(y).astype(x.dtype)


def fusion_border(y: jax.Array) -> jax.Array:
    """y itself, in an operation that XLA's CPU compiler keeps and does not take into a reduction.

    A sum or maximum over what chains of convolutions give (a global pooling, the gradient of a bias) would otherwise be one
    loop with all of them inside, computed anew for each part of it: the last stage of ResNet-18 took 47 ms instead of 8.
    """
    if not jnp.issubdtype(y.dtype, jnp.floating):
        return y
    kind = jnp.finfo(y.dtype)
    return lax.reduce_precision(y, kind.nexp, kind.nmant)


# Up to this many terms a sum is faster as a matrix product of patches, where strides keep those from growing the data. So it
# is where the kernel takes this many times the room of the patches, as in the last layers of large networks.
FEW_TERMS, LARGE_KERNEL = 32, 8
# Each cell of the kernel is a slice that XLA compiles by itself: seconds for the 256 of a Fourier transform as a convolution.
MOST_CELLS = 64
# Groups are taken together until a block has this many channels: the zeros between them cost less than more calls.
BLOCK_CHANNELS = 32


def cpu_variant(x: jax.Array, outputs: int, window: Window, group: int) -> Variant:
    """The variant that is fast on CPU; measured by tools/bench_convolution.py."""
    channels, cells = x.shape[1], math.prod(window.size)
    if group == 1:
        few = channels * cells <= FEW_TERMS and math.prod(window.strides) > 1
        large = x.shape[0] * math.prod(window.output) * LARGE_KERNEL <= outputs and cells <= MOST_CELLS
        return patch_convolution if cells == 1 or few or large else channels_last_convolution
    return depthwise_convolution if group == channels else grouped_convolution


def channels_last_convolution(x: jax.Array, w: jax.Array, window: Window, group: int) -> jax.Array:
    """XLA's convolution of data [N, ..., I]."""
    last, spatial = window.rank + 1, tuple(range(1, window.rank + 1))
    y = lax.conv_general_dilated(
        to_channels_last(x),
        w,
        window.strides,
        window.padding,
        rhs_dilation=window.dilations,
        feature_group_count=group,
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, last, *spatial), (last, last - 1, *range(window.rank)), (0, last, *spatial)
        ),
    )
    return to_channels_first(y)


def patch_convolution(x: jax.Array, w: jax.Array, window: Window, group: int) -> jax.Array:
    """One matrix product: the cells that each window covers, side by side, times the kernel."""
    cells = [part for _, part in shifted(to_channels_last(x), window)]
    patches = cells[0] if len(cells) == 1 else jnp.concatenate(cells, axis=-1)
    return to_channels_first(patches @ jnp.reshape(w, (-1, w.shape[-1])))


def depthwise_convolution(x: jax.Array, w: jax.Array, window: Window, group: int) -> jax.Array:
    """One input channel a group: the sum over the kernel's cells of a shifted input times a weight per channel."""
    x = to_channels_last(x)
    if w.shape[-1] != group:  # channel multiplier
        x = jnp.repeat(x, w.shape[-1] // group, axis=-1)
    terms = (cells * w[*offset, 0] for offset, cells in shifted(x, window))
    return to_channels_first(sum(terms, start=next(terms)))


def grouped_convolution(x: jax.Array, w: jax.Array, window: Window, group: int) -> jax.Array:
    """A convolution for each block of neighbouring groups, with zeros in the kernel between them."""
    size, outputs = w.shape[-2], w.shape[-1] // group
    together = max(n for n in range(1, group + 1) if group % n == 0 and (n == 1 or n * size <= BLOCK_CHANNELS))
    parts = jnp.reshape(w, (*window.size, 1, size, group // together, together, outputs))
    diagonal = jnp.reshape(jnp.eye(together, dtype=w.dtype), (together, 1, 1, together, 1))
    spread = jnp.reshape(parts * diagonal, (*window.size, together * size, -1))
    blocks = zip(*(jnp.split(each, group // together, axis) for each, axis in ((x, 1), (spread, -1))), strict=True)
    return jnp.concatenate([cpu_convolution(data, kernel, window, 1) for data, kernel in blocks], axis=1)


def shifted(x: jax.Array, window: Window, fill: float = 0.0) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """For each cell of the kernel, its index and the cells of x [N, ..., C] that it meets: [N, *window.output, C]."""
    x = pad(x, window, fill)
    for offset in itertools.product(*map(range, window.size)):
        start = [position * dilation for position, dilation in zip(offset, window.dilations, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, window.output, window.strides, strict=True)]
        yield offset, lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *window.strides, 1))


def pad(x: jax.Array, window: Window, fill: float = 0.0) -> jax.Array:
    """x [N, ..., C] with the padding that the windows reach."""
    if not any(itertools.chain(*window.padding)):
        return x
    return lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), *((*pair, 0) for pair in window.padding), (0, 0, 0)))


def to_channels_last(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 1, -1)


def to_channels_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)
