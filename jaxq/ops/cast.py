"""Conversion between element types: Cast, CastLike, BitCast, and the helpers that other operators convert with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import ELEMENT_TYPES, array_namespace, is_static, op

BOOL = np.dtype(bool)
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


def element_dtype(number: int, *operands: Any) -> np.dtype:
    """The dtype of ONNX's element type `number`: the exact one for static operands, else what JAX computes in."""
    if number not in ELEMENT_TYPES:
        raise UnsupportedOpError(f"element type {number} is not known; known are {sorted(ELEMENT_TYPES)}")
    dtype = np.dtype(ELEMENT_TYPES[number])
    return dtype if array_namespace(*operands) is np else jax.dtypes.canonicalize_dtype(dtype)


def is_integer(dtype: Any) -> bool:
    """Whether a dtype is an integer type, the 4-bit and 2-bit ones included; bool is none."""
    return jnp.issubdtype(dtype, np.integer)


def is_floating(dtype: Any) -> bool:
    """Whether a dtype is a real floating type, bfloat16 and the 8-bit and smaller ones included."""
    return jnp.issubdtype(dtype, np.floating)


def convert(x: Any, dtype: Any, *, saturate: bool = True, round_mode: str = "up") -> Any:
    """x in another element type, by ONNX's rules for Cast; the same for static and traced values.

    * A float becomes an integer by truncation. Beyond the range of 32 (64) bit integers, where ONNX leaves the result
      undefined, it is the nearest integer, and NaN is 0; narrower integers then drop the high bits as integers do.
    * `saturate` makes values beyond the range of a float8 type its largest value rather than infinity or NaN.
    """
    dtype = np.dtype(dtype)
    if x.dtype == dtype:
        return x
    if dtype.kind == "O" or x.dtype.kind in "OSU":
        return _convert_strings(x, dtype)
    if dtype == BOOL:
        return x != 0
    if is_floating(x.dtype) and is_integer(dtype):
        wide = dtype if dtype.itemsize >= 4 else np.dtype(np.int32)
        return (_saturated(x, wide) if is_static(x) else x.astype(wide)).astype(dtype)
    if dtype.name == "float8_e8m0fnu":
        return _to_exponent(x, dtype, saturate, round_mode)
    if dtype.name in FLOAT8 and saturate:
        largest = jnp.finfo(dtype).max.astype(x.dtype if is_floating(x.dtype) else np.float32)
        x = array_namespace(x).clip(x.astype(largest.dtype), -largest, largest)
    return x.astype(dtype)


def _saturated(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats as 32 or 64 bit integers, the way XLA converts: numpy leaves what is out of range undefined."""
    limits, wide = np.iinfo(dtype), x.astype(np.float64)
    low, high = dtype.type(limits.min), dtype.type(limits.max)
    inside = np.where(wide >= float(high), high, np.where(wide <= float(low), low, wide.astype(dtype)))
    return np.where(np.isnan(wide), dtype.type(0), inside)


def _to_exponent(x: Any, dtype: np.dtype, saturate: bool, round_mode: str) -> Any:
    """float8_e8m0: the biased exponent of |x| in float32, rounded up, down or to the nearest power of two."""
    bits = x.astype(np.float32).view(np.uint32)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    half = 1 << 22
    if round_mode == "up":
        increment = fraction > 0
    elif round_mode == "nearest":
        increment = (fraction > half) | ((fraction == half) & (exponent > 0))
    elif round_mode == "down":
        increment = fraction < 0
    else:
        raise UnsupportedOpError(f"round_mode {round_mode!r}; known are 'up', 'down' and 'nearest'")
    # 254 is the largest power of two and 255 is NaN, which infinity becomes as well.
    increment = increment & (exponent < (254 if saturate else 255))
    return (exponent + increment.astype(np.uint32)).astype(np.uint8).view(dtype)


def _convert_strings(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "O":
        return np.asarray(x).astype(str).astype(object)
    return np.asarray(x).astype(np.float64).astype(dtype)


@op("Cast", since=6)
def cast(x, *, to, saturate=1, round_mode="up"):
    return convert(x, element_dtype(to, x), saturate=bool(saturate), round_mode=round_mode)


@op("CastLike", since=15)
def cast_like(x, target_type, *, saturate=1, round_mode="up"):
    dtype = target_type.dtype if is_static(x) else jax.dtypes.canonicalize_dtype(target_type.dtype)
    return convert(x, dtype, saturate=bool(saturate), round_mode=round_mode)


@op("BitCast", since=26)
def bit_cast(x, *, to):
    dtype = element_dtype(to, x)
    if _bits(x.dtype) != _bits(dtype):
        raise ModelError(f"{x.dtype} cannot be read as {dtype}: their widths differ")
    if not is_static(x) and x.dtype == BOOL:
        x = x.astype(np.uint8)  # XLA's booleans have no bits to look at
    if not is_static(x) and dtype == BOOL:
        return x != 0
    return x.view(dtype)


def _bits(dtype: Any) -> int:
    return 8 if dtype == BOOL else jax.dtypes.itemsize_bits(dtype)
