"""Images brought to a size that is known while tracing: resized, cropped, padded, put together from blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import op, refuse_huge, static_array, static_ints
from jaxq.ops.spatial import sliding_window

Kernel = Callable[[np.ndarray], np.ndarray]  # distance from the point -> weight of the cell


@op("Upsample", since=1)
def upsample_1(x, *, height_scale, width_scale, mode="nearest"):
    return resize_10(x, np.array([1, 1, height_scale, width_scale], np.float32), mode=mode)


@op("Upsample", since=7)
def upsample_7(x, *, scales, mode="nearest"):
    return resize_10(x, np.array(scales, np.float32), mode=mode)


@op("Upsample", since=9, static=("scales",))
@op("Resize", since=10, static=("scales",))
def resize_10(x, scales, *, mode="nearest"):
    """Before opset 11. The standard leaves the rounding open; as in ONNX Runtime it is up where the axis shrinks."""
    factors = static_array(scales, "Resize.scales").astype(np.float32)
    for axis, factor in enumerate(factors):
        axis_mode = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if factor < 1 else "floor"}
        one = np.where(np.arange(x.ndim) == axis, factor, np.float32(1))
        x = resize(x, None, one, mode="linear" if mode == "bilinear" else mode, **axis_mode)
    return x


@op("Resize", since=11, static=("roi", "scales", "sizes"))
def resize(
    x,
    roi=None,
    scales=None,
    sizes=None,
    *,
    antialias=0,
    axes=(),
    coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75,
    exclude_outside=0,
    extrapolation_value=0.0,
    keep_aspect_ratio_policy="stretch",
    mode="nearest",
    nearest_mode="round_prefer_floor",
):
    """Axis by axis, each output cell is a weighted sum of a few input cells whose places and weights are constants."""
    if mode != "nearest" and mode not in FILTERS:
        raise UnsupportedOpError(f"mode = {mode!r}; expected nearest, linear or cubic")
    axes = [axis % x.ndim for axis in axes] or list(range(x.ndim))
    lengths = np.array([x.shape[axis] for axis in axes])
    factors, targets = sizes_and_scales(lengths, scales, sizes, keep_aspect_ratio_policy)
    for target in targets:
        refuse_huge((target, 8), np.float64)  # places and weights
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    region = static_array(roi, "Resize.roi").astype(np.float32).reshape(2, -1) if crop else np.zeros((2, len(axes)))
    y = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    for axis, length, factor, target, start, end in zip(axes, lengths, factors, targets, *region, strict=True):
        points = source_coordinates(coordinate_transformation_mode, factor, target, length, start, end)
        if np.array_equal(points, np.arange(length)):
            continue
        if mode == "nearest":
            places, weights = nearest_cells(points, nearest_mode)[:, None], np.ones((target, 1), np.float32)
        else:
            places, weights = filter_cells(
                points, length, FILTERS[mode](cubic_coeff_a), min(factor, 1) if antialias else 1, bool(exclude_outside)
            )
        y = weighted_cells(y, axis, np.clip(places, 0, length - 1), weights)
        if crop:
            inside = ((points >= 0) & (points <= length - 1)).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
            y = jnp.where(inside, y, jnp.asarray(extrapolation_value, y.dtype))
    return y.astype(x.dtype)


def sizes_and_scales(lengths: np.ndarray, scales, sizes, policy: str) -> tuple[np.ndarray, np.ndarray]:
    """For each resized axis its scale (float32, as ONNX Runtime computes it) and its new length."""
    given = None if scales is None else static_array(scales, "Resize.scales").astype(np.float32)
    if given is not None and given.size:
        return given, np.floor(given * lengths.astype(np.float32)).astype(int)
    if sizes is None:
        raise ModelError("Resize needs scales or sizes; both are absent")
    targets = np.array(static_ints(sizes, "Resize.sizes"))
    factors = targets.astype(np.float32) / lengths.astype(np.float32)
    if policy == "stretch":
        return factors, targets
    if policy not in ("not_larger", "not_smaller"):
        raise UnsupportedOpError(f"keep_aspect_ratio_policy = {policy!r}; expected stretch, not_larger or not_smaller")
    factors[:] = factors.min() if policy == "not_larger" else factors.max()
    return factors, np.floor(factors * lengths.astype(np.float32) + np.float32(0.5)).astype(int)


def source_coordinates(mode: str, scale, target: int, length: int, start, end) -> np.ndarray:
    """Where each of `target` output cells lies in the input of `length` cells, float32.

    Source: ONNX Resize-19, attribute coordinate_transformation_mode; in the order of operations of ONNX Runtime, so that
    ties fall alike.
    """
    f32 = np.float32
    x, scale, last = np.arange(target, dtype=f32), f32(scale), f32(length - 1)
    exact = float(scale) * length  # of which `target` is the floor; equal to it but for rounding where sizes were given
    spread = f32(target - 1 if np.isclose(exact, target, rtol=1e-6) else exact - 1)
    half_pixel = (x + f32(0.5)) / scale - f32(0.5)
    if mode == "half_pixel":
        return half_pixel
    if mode == "half_pixel_symmetric":
        fraction = f32(target) / (scale * f32(length))
        return f32(length) / f32(2) * (f32(1) - fraction) + half_pixel
    if mode == "pytorch_half_pixel":
        return half_pixel if target > 1 else np.zeros(1, f32)
    if mode == "align_corners":
        return x * last / spread if target > 1 else np.zeros(1, f32)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + f32(0.5)) / scale
    if mode == "tf_crop_and_resize":
        start, end = f32(start), f32(end)
        if target > 1:
            return start * last + x * (end - start) * last / spread
        return f32(0.5) * (start + end) * last + np.zeros(1, f32)
    raise UnsupportedOpError(f"coordinate_transformation_mode = {mode!r} is not one that ONNX defines")


def nearest_cells(points: np.ndarray, nearest_mode: str) -> np.ndarray:
    """The cell that is nearest to each coordinate; `nearest_mode` breaks ties or always goes one way."""
    rounded = {
        "round_prefer_floor": lambda: np.ceil(points - np.float32(0.5)),
        "round_prefer_ceil": lambda: np.floor(points + np.float32(0.5)),
        "floor": lambda: np.floor(points),
        "ceil": lambda: np.ceil(points),
    }
    if nearest_mode not in rounded:
        raise UnsupportedOpError(f"nearest_mode = {nearest_mode!r}; expected one of {', '.join(rounded)}")
    return rounded[nearest_mode]().astype(int)


def filter_cells(
    points: np.ndarray, length: int, kernel: tuple[int, Kernel], shrink: float, exclude_outside: bool
) -> tuple[np.ndarray, np.ndarray]:
    """For each coordinate the cells around it and their weights: two [points, cells].

    `kernel` is the filter's half width and the filter itself; `shrink` below 1 widens it (antialiasing).
    """
    support, weigh = kernel
    reach = int(np.ceil(support / shrink))
    places = np.floor(points).astype(int)[:, None] + np.arange(1 - reach, reach + 1)
    weights = weigh(np.abs(places - points[:, None].astype(np.float64)) * shrink)
    if exclude_outside:
        weights = np.where((places >= 0) & (places < length), weights, 0)
    return places, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def linear_filter(_: float) -> tuple[int, Kernel]:
    return 1, lambda distance: np.maximum(1 - distance, 0)


def cubic_filter(a: float) -> tuple[int, Kernel]:
    """Source: Keys, Cubic convolution interpolation for digital image processing, 1981, equation 4 with free a."""

    def weigh(d):
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return 2, weigh


FILTERS: dict[str, Callable[[float], tuple[int, Kernel]]] = {"linear": linear_filter, "cubic": cubic_filter}


def weighted_cells(x, axis: int, places: np.ndarray, weights: np.ndarray):
    """sum over k of weights[:, k] * x[places[:, k]] along `axis`."""
    column = [-1 if other == axis else 1 for other in range(x.ndim)]
    terms = (
        jnp.take(x, place, axis=axis, mode="clip") * jnp.asarray(weight.reshape(column), x.dtype)
        if not np.all(weight == 1)
        else jnp.take(x, place, axis=axis, mode="clip")
        for place, weight in zip(places.T, weights.T, strict=True)
        if np.any(weight)
    )
    return sum(terms, start=next(terms))


@op("CenterCropPad", since=18, static=("shape",))
def center_crop_pad(x, shape, *, axes=()):
    """Each axis cut or padded with zeros around its center to the given length."""
    padding = [(0, 0, 0)] * x.ndim
    targets = static_ints(shape, "CenterCropPad.shape")
    for axis, target in zip(axes or range(x.ndim), targets, strict=True):
        missing = target - x.shape[axis]
        before = missing // 2 if missing > 0 else -(-missing // 2)
        padding[axis] = (before, missing - before, 0)
    return lax.pad(jnp.asarray(x), jnp.zeros((), x.dtype), padding)


@op("Col2Im", since=18, static=("image_shape", "block_shape"))
def col2im(x, image_shape, block_shape, *, dilations=(), pads=(), strides=()):
    """Blocks x [N, C * cells, blocks] added up where they lie in the image: [N, C, *image_shape]."""
    shape, block = static_ints(image_shape, "Col2Im.image_shape"), static_ints(block_shape, "Col2Im.block_shape")
    window = sliding_window(shape, block, strides=strides, dilations=dilations, pads=pads)
    cells = jnp.reshape(x, (x.shape[0], -1, *block, *window.output))
    total = jnp.zeros((*cells.shape[:2], *shape), x.dtype)
    for offset in itertools.product(*map(range, block)):
        padding = [(0, 0, 0), (0, 0, 0)]
        for axis, position in enumerate(offset):
            before = position * window.dilations[axis] - window.pads[axis][0]
            reach = (window.output[axis] - 1) * window.strides[axis] + 1
            padding.append((before, shape[axis] - before - reach, window.strides[axis] - 1))
        total = total + lax.pad(cells[:, :, *offset], jnp.zeros((), x.dtype), padding)
    return total
