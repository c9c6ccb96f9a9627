"""Reading images at points that the data gives: grids, regions of interest, deformable convolution."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq.errors import UnsupportedOpError
from jaxq.ops import is_static, op, refuse_huge, static_ints
from jaxq.ops.convolution import check_kernel
from jaxq.ops.spatial import per_channel, sliding_window

Cells = list[tuple[jax.Array, jax.Array | None]]  # along one axis: places (integers), and their weights; None is 1


@op("GridSample", since=16)
def grid_sample(x, grid, *, align_corners=0, mode="linear", padding_mode="zeros"):
    """x [N, C, *S] at the points of grid [N, *P, n], where -1 and 1 are the borders of x, last axis of x first."""
    cells_of = {"nearest": nearest_cell, "linear": linear_cells, "cubic": cubic_cells}.get(mode.removeprefix("bi"))
    if cells_of is None:
        raise UnsupportedOpError(f"mode = {mode!r}; expected nearest, linear, cubic, bilinear or bicubic")
    axes = []
    for axis, length in enumerate(x.shape[2:]):
        point = grid[..., -1 - axis]
        axes.append(cells_of((point + 1) / 2 * (length - 1) if align_corners else ((point + 1) * length - 1) / 2))
    batch = jnp.reshape(jnp.arange(x.shape[0], dtype=jnp.int32), (-1,) + (1,) * (grid.ndim - 2))
    padding = padding_mode if padding_mode != "reflection" else "reflect center" if align_corners else "reflect edge"
    return jnp.moveaxis(weighted_sum(x, batch, axes, padding), -1, 1)


def nearest_cell(point: jax.Array) -> Cells:
    return [(jnp.round(point).astype(jnp.int32), None)]


def linear_cells(point: jax.Array) -> Cells:
    """The two cells around each point."""
    low = jnp.floor(point)
    place, fraction = low.astype(jnp.int32), point - low
    return [(place, 1 - fraction), (place + 1, fraction)]


def cubic_cells(point: jax.Array) -> Cells:
    """The four cells around each point. Source: Keys 1981, equation 4 with a = -0.75."""
    a, low = -0.75, jnp.floor(point)
    place, fraction = low.astype(jnp.int32), point - low

    def near(d):
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d):
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    weights = far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)
    return [(place + shift, weight) for shift, weight in zip((-1, 0, 1, 2), weights, strict=True)]


def weighted_sum(x: jax.Array, batch: jax.Array, axes: Sequence[Cells], padding: str) -> jax.Array:
    """The sum of the cells of x [N, C, *S] in the product of `axes`, times the product of their weights: [*P, C]."""
    parts = []
    for choice in itertools.product(*axes):
        value = read_cells(x, batch, [place for place, _ in choice], padding)
        for _, weight in choice:
            value = value if weight is None else value * weight[..., None].astype(value.dtype)
        parts.append(value)
    return functools.reduce(operator.add, parts)


def read_cells(x: jax.Array, batch: jax.Array, places: Sequence[jax.Array], padding: str) -> jax.Array:
    """The cells of x [N, C, *S] at integer places, one array [*P] for each spatial axis, in image `batch`: [*P, C].

    Beyond the border lie `zeros`, the `border` cell, or the mirrored image: `reflect edge` with the mirror at the edge of
    the last cell, `reflect center` with the mirror at its center.
    """
    rows = jnp.reshape(jnp.moveaxis(x, 1, -1), (-1, x.shape[1]))
    inside = jnp.ones((), bool)
    index = batch
    for place, length in zip(places, x.shape[2:], strict=True):
        if padding == "zeros":
            inside = inside & (place >= 0) & (place < length)
        elif padding == "reflect edge":
            place = place % (2 * length)
            place = jnp.minimum(place, 2 * length - 1 - place)
        elif padding == "reflect center":
            place = place % max(2 * (length - 1), 1)
            place = jnp.minimum(place, 2 * (length - 1) - place)
        elif padding != "border":
            raise UnsupportedOpError(f"padding_mode = {padding!r}; expected zeros, border or reflection")
        index = index * length + jnp.clip(place, 0, length - 1)
    values = jnp.take(rows, index, axis=0, mode="clip")
    return jnp.where(inside[..., None], values, jnp.zeros((), x.dtype)) if padding == "zeros" else values


@op("AffineGrid", since=20, static=("size",))
def affine_grid(theta, size, *, align_corners=0):
    """The sampling grid [N, *P, n] of affine maps theta [N, n, n + 1] for an image of `size` (N, C, *P)."""
    lengths = static_ints(size, "AffineGrid.size")[2:]
    refuse_huge((*lengths, len(lengths) + 1), np.float64)
    axes = []
    for length in lengths:
        step = np.arange(length, dtype=np.float64)
        axes.append((2 * step + 1) / length - 1 if not align_corners else 2 * step / max(length - 1, 1) - 1)
    meshed = np.meshgrid(*axes, indexing="ij")
    points = jnp.asarray(np.stack([*reversed(meshed), np.ones_like(meshed[0])], axis=-1), theta.dtype)
    return jnp.einsum("...j,nij->n...i", points, theta)


@op("RoiAlign", since=16)
def roi_align(
    x,
    rois,
    batch_indices,
    *,
    coordinate_transformation_mode="half_pixel",
    mode="avg",
    output_height=1,
    output_width=1,
    sampling_ratio=0,
    spatial_scale=1.0,
):
    """x [N, C, H, W] averaged over output_height x output_width bins of each region (x1, y1, x2, y2): [R, C, *output].

    A bin is sampled at a regular grid of points. Its size follows the region where sampling_ratio is 0; regions that are only
    known at run time then make a loop of as many rounds as the largest needs.
    Source: He et al., Mask R-CNN, arXiv:1703.06870; the borders, and what `max` means, as in ONNX Runtime.
    """
    half_pixel = coordinate_transformation_mode == "half_pixel"
    output = (output_height, output_width)
    corners = rois * spatial_scale - (0.5 if half_pixel else 0.0)
    starts, ends = (corners[:, 1], corners[:, 0]), (corners[:, 3], corners[:, 2])
    xp = np if is_static(rois) else jnp
    extents = [
        end - start if half_pixel else xp.maximum(end - start, 1.0) for start, end in zip(starts, ends, strict=True)
    ]
    bins = [extent / count for extent, count in zip(extents, output, strict=True)]
    if sampling_ratio > 0:
        counts = [xp.full(len(rois), sampling_ratio)] * 2
    else:
        counts = [xp.ceil(size).astype(int) for size in bins]
    most = [sampling_ratio if sampling_ratio > 0 else xp.maximum(xp.max(count, initial=0), 1) for count in counts]
    batch = jnp.asarray(batch_indices).astype(jnp.int32)[:, None, None]

    def sample(ticks) -> jax.Array:
        """The value of x at one point of each bin: [R, oh, ow, C]."""
        inside = jnp.ones((), bool)
        axes = []
        for axis, length in enumerate(x.shape[2:]):
            cell = (jnp.asarray(ticks[axis], x.dtype) + 0.5) * bins[axis] / jnp.asarray(counts[axis], x.dtype)
            point = (starts[axis] + cell)[:, None] + jnp.arange(output[axis], dtype=x.dtype) * bins[axis][:, None]
            point = jnp.expand_dims(jnp.asarray(point, x.dtype), 2 - axis)
            within = (point >= -1) & (point <= length) & jnp.reshape(ticks[axis] < counts[axis], (-1, 1, 1))
            inside = inside & within
            axes.append(linear_cells(jnp.clip(point, 0, length - 1)))
        if mode == "avg":
            return jnp.where(inside[..., None], weighted_sum(x, batch, axes, "border"), 0)
        corners = [weighted_sum(x, batch, [[a], [b]], "border") for a in axes[0] for b in axes[1]]
        return jnp.where(inside[..., None], jnp.max(jnp.stack(corners), axis=0), -jnp.inf)

    def body(tick, total):
        value = sample((tick // most[1], tick % most[1]))
        return total + value if mode == "avg" else jnp.maximum(total, value)

    shape = (len(rois), *output, x.shape[1])
    start = jnp.zeros(shape, x.dtype) if mode == "avg" else jnp.full(shape, -jnp.inf, x.dtype)
    rounds = most[0] * most[1]
    total = lax.fori_loop(0, int(rounds) if is_static(rounds) else rounds, body, start)
    if mode == "avg":
        total = total / jnp.maximum(jnp.asarray(counts[0] * counts[1]), 1)[:, None, None, None].astype(x.dtype)
    return jnp.moveaxis(total, -1, 1)


@op("RoiAlign", since=10)
def roi_align_10(
    x, rois, batch_indices, *, mode="avg", output_height=1, output_width=1, sampling_ratio=0, spatial_scale=1.0
):
    return roi_align(
        x,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


@op("MaxRoiPool", since=1)
def max_roi_pool(x, rois, *, pooled_shape, spatial_scale=1.0):
    """The maximum of x [N, C, H, W] over each bin of each region (image, x1, y1, x2, y2), rounded to whole cells."""

    def pool(roi):
        values = x[roi[0].astype(jnp.int32)]
        first, last = jnp.round(roi[1:3] * spatial_scale), jnp.round(roi[3:5] * spatial_scale)
        for axis, count in enumerate(pooled_shape):
            begin, extent = first[1 - axis], jnp.maximum(last[1 - axis] - first[1 - axis] + 1, 1)
            tick, cell = jnp.arange(count)[:, None], jnp.arange(x.shape[2 + axis])
            low, high = begin + jnp.floor(tick * extent / count), begin + jnp.ceil((tick + 1) * extent / count)
            mask = ((cell >= low) & (cell < high)).astype(bool)  # [bins, cells]
            masked = jnp.where(mask, jnp.moveaxis(values, 1 + axis, -1)[..., None, :], -jnp.inf)
            values = jnp.moveaxis(jnp.max(masked, axis=-1), -1, 1 + axis)
        return jnp.where(values == -jnp.inf, 0, values)  # empty bins

    return lax.map(pool, jnp.asarray(rois))


@op("DeformConv", since=19)
def deform_conv(
    x, w, offset, b=None, mask=None, *, dilations=(), group=1, kernel_shape=(), offset_group=1, pads=(), strides=()
):
    """A convolution whose kernel cells are moved by offset [N, offset_group * cells * n, *output] and weighted by `mask`.

    Source: Zhu et al., Deformable ConvNets v2, arXiv:1811.11168, equation 1.
    """
    window = sliding_window(x.shape[2:], kernel_shape or w.shape[2:], strides=strides, dilations=dilations, pads=pads)
    check_kernel(x, w.shape, window, group)
    rank, cells, images = window.rank, int(np.prod(window.size)), x.shape[0]
    shift = jnp.reshape(offset, (images * offset_group, cells, rank, *window.output))
    steps = np.stack(np.meshgrid(*map(np.arange, window.size), indexing="ij"), axis=-1).reshape(cells, rank)
    axes = []
    for axis in range(rank):
        start = np.arange(window.output[axis]) * window.strides[axis] - window.pads[axis][0]
        start = start.reshape([-1 if other == axis else 1 for other in range(rank)])
        step = (steps[:, axis] * window.dilations[axis]).reshape(-1, *[1] * rank)
        axes.append(linear_cells(jnp.asarray(start + step, x.dtype) + shift[:, :, axis]))
    batch = jnp.reshape(jnp.arange(images * offset_group, dtype=jnp.int32), (-1, 1) + (1,) * rank)
    parts = jnp.reshape(x, (images * offset_group, -1, *x.shape[2:]))
    values = weighted_sum(parts, batch, axes, "zeros")  # [N * offset_group, cells, *output, C / offset_group]
    if mask is not None:
        values = values * jnp.reshape(mask, (images * offset_group, cells, *window.output, 1))
    values = jnp.reshape(jnp.moveaxis(values, -1, 1), (images, group, x.shape[1] // group, cells, *window.output))
    kernel = jnp.reshape(w, (group, w.shape[0] // group, w.shape[1], cells))
    y = jnp.reshape(jnp.einsum("ngik...,goik->ngo...", values, kernel), (images, w.shape[0], *window.output))
    return y if b is None else y + per_channel(b, y.ndim)
