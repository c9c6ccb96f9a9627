"""Making tensors and moving their elements around without looking at them: shapes, layouts, joins, cuts and padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import array_namespace, is_static, op, refuse_huge, static_array, static_ints
from jaxq.ops.cast import element_dtype

# --------------------------------------------------------------------------------------------------- making new tensors


@op("Constant", since=1)
def constant(
    *,
    value=None,
    sparse_value=None,
    value_float=None,
    value_floats=None,
    value_int=None,
    value_ints=None,
    value_string=None,
    value_strings=None,
):
    if value is not None:
        return value.array
    if sparse_value is not None:
        raise UnsupportedOpError("sparse constants are not supported; store the tensor densely")
    for number, dtype in (
        (value_float, np.float32),
        (value_floats, np.float32),
        (value_int, np.int64),
        (value_ints, np.int64),
        (value_string, object),
        (value_strings, object),
    ):
        if number is not None:
            return np.array(number, dtype)
    raise ModelError("the constant has no value")


@op("ConstantOfShape", since=9, static=("shape",))
def constant_of_shape(shape, *, value=None):
    fill = np.zeros(1, np.float32) if value is None else value.array
    target = static_ints(shape, "ConstantOfShape.input")
    refuse_huge(target, fill.dtype)
    return np.full(target, fill.reshape(()), fill.dtype)


@op("Range", since=11, static=("start", "limit", "delta"))
def range_(start, limit, delta, *, stash_type=1):
    first, last, step = (
        static_array(v, f"Range.{n}").reshape(()) for v, n in ((start, "start"), (limit, "limit"), (delta, "delta"))
    )
    wide = np.float64 if first.dtype.kind not in "iu" else first.dtype
    if step == 0:
        raise ModelError("Range.delta is 0, so the limit is never reached")
    count = max(math.ceil((last.astype(wide) - first.astype(wide)) / step.astype(wide)), 0)
    refuse_huge((count,), wide)
    return (first.astype(wide) + np.arange(count, dtype=wide) * step.astype(wide)).astype(first.dtype)


@op("EyeLike", since=9)
def eye_like(x, *, dtype=None, k=0):
    kind = x.dtype if dtype is None else element_dtype(dtype, x)
    return array_namespace(x).eye(*x.shape, k=k).astype(kind)


@op("Identity", since=1)
def identity(x):
    return x


@op("Dropout", since=12, static=("training_mode",))
def dropout(x, ratio=None, training_mode=None, *, seed=None, output_count=1):
    """The input itself: dropout acts in training only."""
    if training_mode is not None and static_array(training_mode, "Dropout.training_mode").any():
        raise UnsupportedOpError("Dropout in training mode is random; export the model for inference")
    return _with_mask(x, output_count)


@op("Dropout", since=6)
def dropout_attributes(x, *, ratio=0.5, is_test=0, output_count=1):
    return _with_mask(x, output_count)


def _with_mask(x: Any, output_count: int) -> Any:
    return x if output_count == 1 else (x, array_namespace(x).ones(x.shape, bool))


# ---------------------------------------------------------------------------------------------------- shapes as numbers


@op("Shape", since=1)
def shape(x, *, start=0, end=None):
    return np.array(np.shape(x)[slice(start, end)], np.int64)


@op("Size", since=1)
def size(x):
    return np.array(math.prod(np.shape(x)), np.int64)


# ------------------------------------------------------------------------------------------------------------ reshaping


@op("Reshape", since=5, static=("shape",))
def reshape(x, shape, *, allowzero=0):
    """x with new dimensions: -1 stands for what is left over, 0 (unless `allowzero`) for the dimension of x there."""
    target = static_ints(shape, "Reshape.shape")
    if not allowzero:
        if any(size == 0 and index >= x.ndim for index, size in enumerate(target)):
            raise ModelError(f"shape {list(target)} copies a dimension that {list(x.shape)} does not have")
        target = tuple(x.shape[index] if size == 0 else size for index, size in enumerate(target))
    return x.reshape(target)


@op("Flatten", since=1)
def flatten(x, *, axis=1):
    split = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))


@op("Transpose", since=1)
def transpose(x, *, perm=None):
    return array_namespace(x).transpose(x, perm)


@op("Squeeze", since=13, static=("axes",))
def squeeze(x, axes=None):
    axes = None if axes is None else static_ints(axes, "Squeeze.axes")
    return array_namespace(x).squeeze(x, axes)


@op("Squeeze", since=1)
def squeeze_attributes(x, *, axes=None):
    return array_namespace(x).squeeze(x, axes)


@op("Unsqueeze", since=13, static=("axes",))
def unsqueeze(x, axes):
    return array_namespace(x).expand_dims(x, static_ints(axes, "Unsqueeze.axes"))


@op("Unsqueeze", since=1)
def unsqueeze_attributes(x, *, axes):
    return array_namespace(x).expand_dims(x, axes)


@op("DepthToSpace", since=1)
def depth_to_space(x, *, blocksize, mode="DCR"):
    """[N, C * b * b, H, W] -> [N, C, H * b, W * b]; blocks lie before (DCR) or after (CRD) the channels in depth."""
    n, depth, height, width = x.shape
    b, c = blocksize, depth // blocksize**2
    if mode == "DCR":
        blocks = x.reshape(n, b, b, c, height, width).transpose(0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        blocks = x.reshape(n, c, b, b, height, width).transpose(0, 1, 4, 2, 5, 3)
    else:
        raise UnsupportedOpError(f"mode {mode!r}; known are 'DCR' and 'CRD'")
    return blocks.reshape(n, c, height * b, width * b)


@op("SpaceToDepth", since=1)
def space_to_depth(x, *, blocksize, mode="DCR"):
    """[N, C, H * b, W * b] -> [N, C * b * b, H, W], the inverse of DepthToSpace."""
    n, c, height, width = x.shape
    b = blocksize
    blocks = x.reshape(n, c, height // b, b, width // b, b)
    if mode not in ("DCR", "CRD"):
        raise UnsupportedOpError(f"mode {mode!r}; known are 'DCR' and 'CRD'")
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(n, c * b * b, height // b, width // b)


# -------------------------------------------------------------------------------------------------- joining and cutting


@op("Concat", since=4)
def concat(*inputs, axis):
    return array_namespace(*inputs).concatenate(inputs, axis)


@op("Split", since=13, static=("sizes",))
def split_input(x, sizes=None, *, axis=0, num_outputs=None, output_count=1):
    """x cut along `axis` into parts of given sizes; without sizes into equal parts, but for a smaller last."""
    length = x.shape[axis]
    if sizes is not None:
        parts = static_ints(sizes, "Split.split")
    else:
        count = num_outputs or output_count
        part = -(-length // count)
        parts = (part,) * (count - 1) + (length - part * (count - 1),)
    if sum(parts) != length or min(parts) < 0:
        raise ModelError(f"axis {axis} of length {length} cannot be split into {list(parts)}")
    return tuple(array_namespace(x).split(x, np.cumsum(parts)[:-1], axis))


@op("Split", since=2)
def split_attributes(x, *, axis=0, split=None, output_count=1):
    return split_input(x, None if split is None else np.array(split), axis=axis, output_count=output_count)


@op("Expand", since=8, static=("shape",))
def expand(x, shape):
    """x broadcast with `shape`, in both directions: a 1 in `shape` keeps the dimension of x."""
    target = np.broadcast_shapes(x.shape, static_ints(shape, "Expand.shape"))
    return array_namespace(x).broadcast_to(x, target)


@op("Tile", since=6, static=("repeats",))
def tile(x, repeats):
    return array_namespace(x).tile(x, static_ints(repeats, "Tile.repeats"))


@op("Pad", since=11, static=("pads", "axes"))
def pad(x, pads, constant_value=None, axes=None, *, mode="constant"):
    """x with cells added (or, by negative numbers, taken away) before and after each of `axes`."""
    amounts = static_ints(pads, "Pad.pads")
    where = range(x.ndim) if axes is None else static_ints(axes, "Pad.axes")
    begins, ends = amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :]
    widths = [(0, 0)] * x.ndim
    for axis, begin, end in zip(where, begins, ends, strict=True):
        widths[axis] = (begin, end)
    if any(min(width) < 0 for width in widths):
        x = x[tuple(slice(max(-b, 0), n - max(-e, 0)) for n, (b, e) in zip(x.shape, widths, strict=True))]
        widths = [(max(begin, 0), max(end, 0)) for begin, end in widths]
    xp = array_namespace(x, constant_value)
    if mode == "constant":
        fill = np.zeros((), x.dtype) if constant_value is None else constant_value.reshape(())
        return xp.pad(x, widths, constant_values=fill)
    if mode not in ("reflect", "edge", "wrap"):
        raise UnsupportedOpError(f"mode {mode!r}; known are 'constant', 'reflect', 'edge' and 'wrap'")
    return xp.pad(x, widths, mode=mode)


@op("Pad", since=2)
def pad_attributes(x, *, pads, mode="constant", value=0.0):
    return pad(x, np.array(pads), np.array(value, x.dtype), mode=mode)


@op("Trilu", since=14)
def trilu(x, k=None, *, upper=1):
    """The upper (or lower) triangle of the last two axes, counted from the k-th diagonal; zero elsewhere."""
    rows, columns = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])[None, :]
    offset = 0 if k is None else k.reshape(()) if not is_static(k) else int(np.reshape(k, ()))
    kept = columns - rows >= offset if upper else columns - rows <= offset
    return array_namespace(x, k).where(kept, x, np.zeros((), x.dtype))


@op("ReverseSequence", since=10)
def reverse_sequence(x, sequence_lens, *, batch_axis=1, time_axis=0):
    """The first `sequence_lens[b]` steps of each sample b in reverse order, the others as they are."""
    xp = array_namespace(x, sequence_lens)
    moved = xp.moveaxis(x, (batch_axis, time_axis), (0, 1))
    steps = np.arange(moved.shape[1])[None, :].astype(sequence_lens.dtype)
    lengths = sequence_lens[:, None]
    index = xp.where(steps < lengths, lengths - 1 - steps, steps)
    index = index.reshape(index.shape + (1,) * (moved.ndim - 2))
    return xp.moveaxis(xp.take_along_axis(moved, index, axis=1), (0, 1), (batch_axis, time_axis))
