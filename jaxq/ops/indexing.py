"""Reading and writing by index: Slice, Gather and Scatter in their kinds, OneHot, TopK."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import array_namespace, is_static, op, refuse_huge, static_ints
from jaxq.ops.cast import is_floating

# ---------------------------------------------------------------------------------------------------------------- Slice


@op("Slice", since=10, static=("starts", "ends", "axes", "steps"))
def slice_(x, starts, ends, axes=None, steps=None):
    begins = static_ints(starts, "Slice.starts")
    along = range(len(begins)) if axes is None else static_ints(axes, "Slice.axes")
    strides = (1,) * len(begins) if steps is None else static_ints(steps, "Slice.steps")
    cuts = [slice(None)] * x.ndim
    for axis, begin, end, step in zip(along, begins, static_ints(ends, "Slice.ends"), strides, strict=True):
        # Walking back, ONNX starts no earlier than at the first element, and an end before that includes it.
        before_first = -x.shape[axis] - 1
        cuts[axis] = slice(max(begin, before_first + 1), None if step < 0 and end <= before_first else end, step)
    return x[tuple(cuts)]


@op("Slice", since=1)
def slice_attributes(x, *, starts, ends, axes=None):
    return slice_(x, np.array(starts), np.array(ends), axes if axes is None else np.array(axes))


# --------------------------------------------------------------------------------------------------------------- Gather


@op("Gather", since=1)
def gather(data, indices, *, axis=0):
    """Slices of `data` along `axis`, in the places of `indices`; negative indices count from the end."""
    length = data.shape[axis]
    if is_static(indices):
        if np.size(indices) and not (-length <= np.min(indices) and np.max(indices) < length):
            raise ModelError(f"indices reach {np.min(indices)}..{np.max(indices)}, but axis {axis} has length {length}")
        if np.ndim(indices) == 0:  # one slice, which XLA handles better than a gather
            return data[(slice(None),) * (axis % data.ndim) + (int(indices),)]
    return array_namespace(data, indices).asarray(data)[(slice(None),) * (axis % data.ndim) + (indices,)]


@op("GatherElements", since=11)
def gather_elements(data, indices, *, axis=0):
    """Element by element: output[i, j, k] = data[i, indices[i, j, k], k] for axis 1."""
    return array_namespace(data, indices).asarray(data)[_element_index(indices, axis)]


def _element_index(indices: Any, axis: int) -> tuple[Any, ...]:
    """What to index a tensor with so that each of `indices` picks along `axis` and keeps its own place elsewhere."""
    index: list[Any] = list(np.indices(indices.shape, indices.dtype, sparse=True))
    index[axis] = indices
    return tuple(index)


@op("GatherND", since=11)
def gather_nd(data, indices, *, batch_dims=0):
    """Slices of `data` whose first indices are the rows of `indices`, within each of the first `batch_dims` axes."""
    return array_namespace(data, indices).asarray(data)[_row_index(indices, batch_dims)]


def _row_index(indices: Any, batch_dims: int = 0) -> tuple[Any, ...]:
    """What to index a tensor with so that each row of `indices` [..., d] picks from the d axes after the batch axes."""
    batch = np.indices(indices.shape[:batch_dims], indices.dtype, sparse=True)
    inner = (1,) * (indices.ndim - 1 - batch_dims)
    return (*(each.reshape(each.shape + inner) for each in batch), *(indices[..., i] for i in range(indices.shape[-1])))


# -------------------------------------------------------------------------------------------------------------- Scatter


@op("ScatterElements", since=11)
def scatter_elements(data, indices, updates, *, axis=0, reduction="none"):
    """A copy of `data` with each of `updates` put (or added, multiplied ...) where GatherElements would read."""
    xp = array_namespace(data, indices, updates)
    return _updated(xp, data, _element_index(indices, axis), updates, reduction)


op("Scatter", since=9)(lambda data, indices, updates, *, axis=0: scatter_elements(data, indices, updates, axis=axis))


@op("ScatterND", since=11)
def scatter_nd(data, indices, updates, *, reduction="none"):
    """A copy of `data` with `updates` put (or added, multiplied ...) where GatherND would read."""
    xp = array_namespace(data, indices, updates)
    return _updated(xp, data, _row_index(indices), updates, reduction)


# Reduction -> the method of JAX's `at`, and numpy's function for the same.
REDUCTIONS = {
    "none": ("set", None),
    "add": ("add", np.add),
    "mul": ("multiply", np.multiply),
    "min": ("min", np.minimum),
    "max": ("max", np.maximum),
}


def _updated(xp: Any, data: Any, index: tuple[Any, ...], updates: Any, reduction: str) -> Any:
    if reduction not in REDUCTIONS:
        raise UnsupportedOpError(f"reduction {reduction!r}; known are {sorted(REDUCTIONS)}")
    method, combine = REDUCTIONS[reduction]
    if xp is jnp:
        return getattr(jnp.asarray(data).at[index], method)(updates)
    result = np.array(data)
    if combine is None:
        result[index] = updates
    else:
        combine.at(result, index, updates)
    return result


@op("TensorScatter", since=24)
def tensor_scatter(past_cache, update, write_indices=None, *, axis=-2, mode="linear"):
    """`past_cache` with `update` written along `axis`, for each sample of the batch from its own `write_indices` on."""
    if mode not in ("linear", "circular"):
        raise UnsupportedOpError(f"mode {mode!r}; known are 'linear' and 'circular'")
    axis, batch, length = axis % past_cache.ndim, past_cache.shape[0], past_cache.shape[axis]
    first = np.zeros(batch, np.int32) if write_indices is None else write_indices
    steps = first[:, None] + np.arange(update.shape[axis], dtype=first.dtype)
    steps = steps % length if mode == "circular" else steps
    cache = jnp.moveaxis(past_cache, axis, 1)
    written = cache.at[np.arange(batch)[:, None], steps].set(jnp.moveaxis(update, axis, 1))
    return jnp.moveaxis(written, 1, axis)


# ------------------------------------------------------------------------------------------------------ OneHot and TopK


def _depth(depth: Any) -> int:
    length = static_ints(depth, "OneHot.depth")[0]
    refuse_huge((length,), np.int64)
    return length


@op("OneHot", since=9, static=("depth",))
def one_hot_from_start(indices, depth, values, *, axis=-1):
    """A new axis of length `depth` with values[1] at the index and values[0] elsewhere; before opset 11."""
    length = _depth(depth)
    xp = array_namespace(indices, values)
    rank = indices.ndim + 1
    places = np.arange(length).reshape([-1 if i == axis % rank else 1 for i in range(rank)]).astype(indices.dtype)
    return xp.where(xp.expand_dims(indices, axis) == places, values[1], values[0])


@op("OneHot", since=11, static=("depth",))
def one_hot(indices, depth, values, *, axis=-1):
    """Negative indices count from the end."""
    length = _depth(depth)
    indices = array_namespace(indices).where(indices < 0, indices + length, indices)
    return one_hot_from_start(indices, depth, values, axis=axis)


@op("TopK", since=10, static=("k",))
def top_k(x, k, *, axis=-1, largest=1, sorted=1):
    """The k largest (or smallest) elements along `axis`, in order, and their indices; equal ones in their order."""
    xp, count = array_namespace(x), static_ints(k, "TopK.k")[0]
    indices: Any
    moved = xp.moveaxis(x, axis, -1)
    if not 0 <= count <= moved.shape[-1]:
        raise ModelError(f"k = {count}, but axis {axis} has length {moved.shape[-1]}")
    if xp is np:
        indices = np.argsort(_reversed_order(moved) if largest else moved, -1, kind="stable")[..., :count]
    else:
        indices = jax.lax.top_k(moved if largest else _reversed_order(moved), count)[1]
    values = xp.take_along_axis(moved, indices, -1)
    indices = indices.astype(np.int64 if xp is np else jax.dtypes.canonicalize_dtype(np.int64))
    return xp.moveaxis(values, -1, axis), xp.moveaxis(indices, -1, axis)


def _reversed_order(x: Any) -> Any:
    """Values in the opposite order; -x would overflow for the lowest integer."""
    return -x if is_floating(x.dtype) else ~x


@op("TopK", since=1)
def top_k_attribute(x, *, k, axis=-1):
    return top_k(x, np.array([k]), axis=axis)
