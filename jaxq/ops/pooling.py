"""Pooling: maxima, means and norms over windows or over whole planes."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq.ops import op, static_ints
from jaxq.ops.spatial import Window, sliding_window


@op("MaxPool", since=1)
def max_pool(
    x,
    *,
    kernel_shape,
    auto_pad="NOTSET",
    ceil_mode=0,
    dilations=(),
    pads=(),
    storage_order=0,
    strides=(),
    output_count=1,
):
    window = sliding_window(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    if output_count > 1:
        return max_pool_with_indices(jnp.asarray(x), window, column_major=bool(storage_order))
    return reduce_windows(x, lowest(x.dtype), lax.max, window)


def lowest(dtype) -> np.ndarray:
    """The neutral element of the maximum."""
    return np.array(-np.inf, dtype) if jnp.issubdtype(dtype, jnp.floating) else np.array(jnp.iinfo(dtype).min, dtype)


# Windows longer than this are left to XLA's own loop over their cells.
LONGEST_UNROLLED = 32


def reduce_windows(x, initial, combine, window: Window) -> jax.Array:
    """`combine` over the cells of each window of x [N, C, ...], one axis after the other.

    Along an axis it combines shifted slices of x: elementwise operations, which XLA fuses in whatever layout x has. Its own
    `reduce_window` takes 5 to 15 times as long on CPU, and its derivative 10 to 20 times.
    """
    x = jnp.asarray(x)
    for axis in range(2, x.ndim):
        x = reduce_axis(x, axis, initial, combine, window.along(axis - 2))
    return x


def reduce_axis(x: jax.Array, axis: int, initial, combine, window: Window) -> jax.Array:
    """`combine` over the cells of each window along one axis of x."""
    [size], [stride], [dilation], [count] = window.size, window.strides, window.dilations, window.output
    here = [other == axis for other in range(x.ndim)]
    padding = [window.padding[0] if yes else (0, 0) for yes in here]
    if size > LONGEST_UNROLLED:
        sizes, strides, dilations = ([value if yes else 1 for yes in here] for value in (size, stride, dilation))
        return lax.reduce_window(x, initial, combine, sizes, strides, padding, window_dilation=dilations)
    x = lax.pad(x, initial, [(before, after, 0) for before, after in padding])
    starts = [cell * dilation for cell in range(size)]
    cells = (lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis) for start in starts)
    return functools.reduce(combine, cells)


def max_pool_with_indices(x: jax.Array, window: Window, *, column_major: bool) -> tuple[jax.Array, jax.Array]:
    """The maxima, and where in the flattened x they stand; the first cell of a window wins a tie."""
    shape = x.shape[2:]
    order = range(window.rank) if not column_major else reversed(range(window.rank))
    cell = np.arange(np.prod(shape)).reshape([shape[axis] for axis in order])
    if column_major:
        cell = cell.T
    values = window_cells(x, window, lowest(x.dtype))
    places = window_cells(jnp.asarray(cell)[None, None], window, -1)
    values = jnp.where(places >= 0, values, lowest(x.dtype))
    best = jnp.argmax(values, axis=-1, keepdims=True)
    place = jnp.take_along_axis(jnp.broadcast_to(places, values.shape), best, axis=-1)[..., 0]
    plane = jnp.arange(x.shape[0] * x.shape[1], dtype=place.dtype).reshape(*x.shape[:2], *[1] * window.rank)
    return jnp.take_along_axis(values, best, axis=-1)[..., 0], place + plane * cell.size


def window_cells(x: jax.Array, window: Window, fill) -> jax.Array:
    """The cells of each window, on a new last axis: [N, C, *output, cells]."""
    x = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0),) * 2 + tuple((*pair, 0) for pair in window.padding))
    cells = []
    for offset in itertools.product(*map(range, window.size)):
        start = [position * dilation for position, dilation in zip(offset, window.dilations, strict=True)]
        stop = [s + (n - 1) * t + 1 for s, n, t in zip(start, window.output, window.strides, strict=True)]
        cells.append(lax.slice(x, (0, 0, *start), (*x.shape[:2], *stop), (1, 1, *window.strides)))
    return jnp.stack(cells, axis=-1)


@op("AveragePool", since=1)
def average_pool(
    x, *, kernel_shape, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, dilations=(), pads=(), strides=()
):
    window = sliding_window(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    total = reduce_windows(x, np.array(0, x.dtype), lax.add, window)
    return total / cell_counts(x.shape[2:], window, include_pad=bool(count_include_pad)).astype(total.dtype)


def cell_counts(shape: tuple[int, ...], window: Window, *, include_pad: bool) -> np.ndarray:
    """How many cells each window has, without those that hang over the declared (or, on request, any) padding."""
    counts = np.ones(window.output)
    for axis in range(window.rank):
        before, after = window.pads[axis]
        first, last = (-before, shape[axis] + after) if include_pad else (0, shape[axis])
        starts = np.arange(window.output[axis]) * window.strides[axis] - before
        cells = starts[:, None] + np.arange(window.size[axis]) * window.dilations[axis]
        count = ((cells >= first) & (cells < last)).sum(axis=1)
        counts = counts * count.reshape([-1 if other == axis else 1 for other in range(window.rank)])
    return counts


@op("LpPool", since=1)
def lp_pool(x, *, kernel_shape=(), auto_pad="NOTSET", ceil_mode=0, dilations=(), p=2, pads=(), strides=()):
    window = sliding_window(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
    )
    return reduce_windows(jnp.abs(x) ** p, np.array(0, x.dtype), lax.add, window) ** (1 / p)


@op("GlobalAveragePool", since=1)
def global_average_pool(x):
    # Scaled before the sum: XLA's CPU compiler would fuse a division after it into what follows, and logits of 1e10 then
    # differ from their own maximum by more than exp can bear.
    return jnp.sum(x / math.prod(x.shape[2:]), axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalMaxPool", since=1)
def global_max_pool(x):
    return jnp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalLpPool", since=1)
def global_lp_pool(x, *, p=2):
    return jnp.sum(jnp.abs(x) ** p, axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p)


@op("MaxUnpool", since=9, static=("output_shape",))
def max_unpool(x, indices, output_shape=None, *, kernel_shape, pads=(), strides=()):
    """Each value of x at its place (an index into the flattened result before `output_shape`), zeros elsewhere."""
    rank = len(kernel_shape)
    strides, pads = strides or (1,) * rank, pads or (0,) * (2 * rank)
    inferred = (
        *x.shape[:2],
        *(
            (length - 1) * strides[axis] + kernel_shape[axis] - pads[axis] - pads[rank + axis]
            for axis, length in enumerate(x.shape[2:])
        ),
    )
    flat = jnp.zeros(math.prod(inferred), x.dtype).at[jnp.ravel(indices)].set(jnp.ravel(x))
    y = jnp.reshape(flat, inferred)
    if output_shape is None:
        return y
    target = static_ints(output_shape, "MaxUnpool.output_shape")
    return lax.pad(y, jnp.zeros((), x.dtype), [(0, new - old, 0) for new, old in zip(target, inferred, strict=True)])
