"""Arithmetic, comparison, logic, bits and mathematical functions, element by element with numpy's broadcasting."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import UnsupportedOpError
from jaxq.ops import array_namespace, is_static, op
from jaxq.ops.cast import convert, is_floating, is_integer

# ----------------------------------------------------------------------------------------------------------- arithmetic


@op("Add", since=7)
def add(a, b):
    return a + b


@op("Sub", since=7)
def sub(a, b):
    return a - b


@op("Mul", since=7)
def mul(a, b):
    return a * b


@op("Div", since=7)
def div(a, b):
    """a / b; integers are rounded towards zero."""
    if not is_integer(a.dtype):
        return a / b
    if array_namespace(a, b) is np:
        quotient = a // b
        return quotient + ((a % b != 0) & ((a < 0) != (b < 0))).astype(quotient.dtype)
    return jax.lax.div(*jnp.broadcast_arrays(a, b))


@op("Mod", since=10)
def mod(a, b, *, fmod=0):
    """The remainder of a / b: with the sign of a when `fmod` is set, else with the sign of b."""
    xp = array_namespace(a, b)
    if fmod:
        return xp.fmod(a, b)
    remainder = xp.mod(a, b)
    if is_integer(remainder.dtype):
        return remainder
    return xp.where(remainder == 0, xp.copysign(remainder, b), remainder)  # XLA does not care for the sign of zero


@op("Pow", since=7)
def power(x, exponent):
    """x ** exponent, in the type of x."""
    if is_static(exponent) and np.ndim(exponent) == 0 and exponent in (2, 3):
        return x ** int(exponent)  # by products, which are exact and have simple derivatives
    xp = array_namespace(x, exponent)
    if is_integer(x.dtype) and is_floating(exponent.dtype):
        return convert(xp.power(x.astype(exponent.dtype), exponent), x.dtype)
    return xp.power(x, exponent.astype(x.dtype))


def _variadic(function_name: str) -> Callable[..., Any]:
    def apply(*data):
        return functools.reduce(getattr(array_namespace(*data), function_name), data)

    return apply


op("Sum", since=6)(_variadic("add"))
op("Max", since=6)(_variadic("maximum"))
op("Min", since=6)(_variadic("minimum"))


@op("Mean", since=6)
def mean(*data):
    return functools.reduce(operator.add, data) / len(data)


@op("Clip", since=11)
def clip(x, low=None, high=None):
    """min(max(x, low), high): where low > high, the result is high."""
    xp = array_namespace(x, low, high)
    x = x if low is None else xp.maximum(x, low)
    return x if high is None else xp.minimum(x, high)


@op("Clip", since=6)
def clip_attributes(x, *, min=None, max=None):
    return clip(x, *(bound if bound is None else np.asarray(bound, x.dtype) for bound in (min, max)))


# ------------------------------------------------------------------------------------------- comparison, logic and bits


def _binary(function_name: str) -> Callable[..., Any]:
    def apply(a, b):
        return getattr(array_namespace(a, b), function_name)(a, b)

    return apply


for _name, _since, _function_name in (
    ("Equal", 7, "equal"),
    ("Greater", 7, "greater"),
    ("Less", 7, "less"),
    ("GreaterOrEqual", 12, "greater_equal"),
    ("LessOrEqual", 12, "less_equal"),
    ("And", 7, "logical_and"),
    ("Or", 7, "logical_or"),
    ("Xor", 7, "logical_xor"),
    ("BitwiseAnd", 18, "bitwise_and"),
    ("BitwiseOr", 18, "bitwise_or"),
    ("BitwiseXor", 18, "bitwise_xor"),
):
    op(_name, since=_since)(_binary(_function_name))


@op("Where", since=9)
def where(condition, x, y):
    return array_namespace(condition, x, y).where(condition, x, y)


@op("BitShift", since=11)
def bit_shift(x, amount, *, direction):
    """x shifted by `amount` bits; an amount outside of 0..bits-1 shifts out all but the fill with the sign."""
    shifts = {"LEFT": "left_shift", "RIGHT": "right_shift"}
    if direction not in shifts:
        raise UnsupportedOpError(f"direction {direction!r}; known are {sorted(shifts)}")
    return getattr(array_namespace(x, amount), shifts[direction])(x, amount)


# -------------------------------------------------------------------------------------------------- one-place functions


def _unary(function_name: str) -> Callable[..., Any]:
    def apply(x):
        return getattr(array_namespace(x), function_name)(x)

    return apply


for _name, _since, _function_name in (
    ("Abs", 6, "abs"),
    ("Neg", 6, "negative"),
    ("Sign", 9, "sign"),
    ("Ceil", 6, "ceil"),
    ("Floor", 6, "floor"),
    ("Round", 11, "rint"),  # half to even
    ("Sqrt", 6, "sqrt"),
    ("Exp", 6, "exp"),
    ("Log", 6, "log"),
    ("Sin", 7, "sin"),
    ("Cos", 7, "cos"),
    ("Tan", 7, "tan"),
    ("Asin", 7, "arcsin"),
    ("Acos", 7, "arccos"),
    ("Atan", 7, "arctan"),
    ("Sinh", 9, "sinh"),
    ("Cosh", 9, "cosh"),
    ("Tanh", 6, "tanh"),
    ("Asinh", 9, "arcsinh"),
    ("Acosh", 9, "arccosh"),
    ("Atanh", 9, "arctanh"),
    ("Not", 1, "logical_not"),
    ("BitwiseNot", 18, "bitwise_not"),
    ("IsNaN", 9, "isnan"),
):
    op(_name, since=_since)(_unary(_function_name))


@op("Reciprocal", since=6)
def reciprocal(x):
    return 1 / x


@op("Erf", since=9)
def erf(x):
    return jax.scipy.special.erf(x)


@op("IsInf", since=10)
def is_inf(x, *, detect_negative=1, detect_positive=1):
    infinite = array_namespace(x).isinf(x)
    return infinite & ((x < 0) & bool(detect_negative) | (x > 0) & bool(detect_positive))


# ------------------------------------------------------------------------------------------------------- before opset 7


def _explicit_broadcast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Before opset 7, b was broadcast only when asked, its first axis laid at `axis` of a (default: to the end)."""

    def apply(a, b, *, broadcast=0, axis=None):
        if broadcast and axis is not None:
            b = b.reshape(b.shape + (1,) * (a.ndim - axis % a.ndim - b.ndim))
        return function(a, b)

    return apply


for _name, _since, _function in (
    ("Add", 6, add),
    ("Sub", 6, sub),
    ("Mul", 6, mul),
    ("Div", 6, div),
    ("Pow", 1, power),
    ("And", 1, _binary("logical_and")),
    ("Or", 1, _binary("logical_or")),
    ("Xor", 1, _binary("logical_xor")),
    ("Equal", 1, _binary("equal")),
    ("Greater", 1, _binary("greater")),
    ("Less", 1, _binary("less")),
):
    op(_name, since=_since)(_explicit_broadcast(_function))
