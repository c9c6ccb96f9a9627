"""Operators that reduce axes, or run along one: Reduce*, ArgMax, CumSum, Hardmax, Det."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.ops import array_namespace, op, static_ints
from jaxq.ops.cast import convert, is_integer

Axes = tuple[int, ...] | None


def _sum(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    return xp.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


def _product(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    return xp.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


def _mean(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    return convert(xp.mean(x, axis=axes, keepdims=keepdims), x.dtype)


def _extreme(name: str) -> Callable[..., Any]:
    """max or min; over no elements it is the value that changes nothing, -inf or the lowest integer for max."""

    def reduce(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
        if x.dtype == bool:
            return getattr(xp, "any" if name == "max" else "all")(x, axis=axes, keepdims=keepdims)
        if is_integer(x.dtype):
            limits: Any = jnp.iinfo(x.dtype)
            neutral = limits.min if name == "max" else limits.max
        else:
            neutral = -np.inf if name == "max" else np.inf
        return getattr(xp, name)(x, axis=axes, keepdims=keepdims, initial=np.asarray(neutral, x.dtype))

    return reduce


def _l1(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    return _sum(xp, xp.abs(x), axes, keepdims)


def _sum_square(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    return _sum(xp, x * x, axes, keepdims)


def _l2(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    return convert(xp.sqrt(_sum_square(xp, x, axes, keepdims)), x.dtype)


def _log_sum(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    return convert(xp.log(_sum(xp, x, axes, keepdims)), x.dtype)


def _log_sum_exp(xp: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    return convert(jax.nn.logsumexp(x, axis=axes, keepdims=keepdims), x.dtype)


def _register(name: str, reduce: Callable[..., Any], axes_as_input: int) -> None:
    """Registers a reduction: `axes` is an attribute from opset 1 and an input from `axes_as_input` on."""

    def with_attribute(data, *, axes=None, keepdims=1):
        return reduce(array_namespace(data), data, axes or None, bool(keepdims))

    def with_input(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
        where = () if axes is None else static_ints(axes, f"{name}.axes")
        return reduce(array_namespace(data), data, where or (() if noop_with_empty_axes else None), bool(keepdims))

    op(name, since=1)(with_attribute)
    op(name, since=axes_as_input, static=("axes",))(with_input)


for _name, _reduce, _axes_as_input in (
    ("ReduceSum", _sum, 13),
    ("ReduceProd", _product, 18),
    ("ReduceMean", _mean, 18),
    ("ReduceMax", _extreme("max"), 18),
    ("ReduceMin", _extreme("min"), 18),
    ("ReduceL1", _l1, 18),
    ("ReduceL2", _l2, 18),
    ("ReduceSumSquare", _sum_square, 18),
    ("ReduceLogSum", _log_sum, 18),
    ("ReduceLogSumExp", _log_sum_exp, 18),
):
    _register(_name, _reduce, _axes_as_input)


def _arg_extreme(function_name: str) -> Callable[..., Any]:
    def apply(data, *, axis=0, keepdims=1, select_last_index=0):
        xp = array_namespace(data)
        find = getattr(xp, function_name)
        if not select_last_index:
            return find(data, axis=axis, keepdims=bool(keepdims))
        return data.shape[axis] - 1 - find(xp.flip(data, axis), axis=axis, keepdims=bool(keepdims))

    return apply


op("ArgMax", since=1)(_arg_extreme("argmax"))
op("ArgMin", since=1)(_arg_extreme("argmin"))


# -------------------------------------------------------------------------------------------------------- along an axis


def _cumulative(function_name: str, neutral: int) -> Callable[..., Any]:
    def apply(x, axis, *, exclusive=0, reverse=0):
        along = static_ints(axis, "axis")[0]
        xp = array_namespace(x)
        result = xp.flip(x, along) if reverse else x
        if exclusive:  # shift by one: the first result is over nothing
            first = xp.full_like(xp.take(result, np.array([0]), along), neutral)
            result = xp.concatenate([first, _without_last(result, along)], along)
        result = getattr(xp, function_name)(result, axis=along, dtype=x.dtype)
        return xp.flip(result, along) if reverse else result

    return apply


def _without_last(x: Any, axis: int) -> Any:
    return x[(slice(None),) * (axis % x.ndim) + (slice(0, -1),)]


op("CumSum", since=11, static=("axis",))(_cumulative("cumsum", 0))
op("CumProd", since=26, static=("axis",))(_cumulative("cumprod", 1))


@op("Hardmax", since=13)
def hardmax(x, *, axis=-1):
    """1 at the first largest element along `axis`, 0 elsewhere."""
    return jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], axis=axis, dtype=x.dtype)


@op("Hardmax", since=1)
def hardmax_from_axis(x, *, axis=1):
    """Before opset 13: over all axes from `axis` on, taken together."""
    split = axis % x.ndim
    return hardmax(x.reshape(*x.shape[:split], -1)).reshape(x.shape)


@op("Det", since=11)
def determinant(x):
    return jnp.linalg.det(x)
