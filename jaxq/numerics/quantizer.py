"""Uniform quantizers as data, and the one primitive that quantizes.

Everything about a quantizer is an array: changing a scale, a bit width or which tensors are quantized never recompiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Scales below this are raised to it: XLA flushes numbers under about 1.2e-38 to zero, and x / scale must stay finite.
SMALLEST_SCALE = np.float32(1e-30)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: x [N, C, H, W] -> scale [1, 1, 1, 1]."""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of `axis`: x [O, I, H, W], axis 0 -> scale [O, 1, 1, 1]."""

    axis: int


@dataclass(frozen=True)
class PerBlock:
    """One scale for each `size` neighbours along `axis`: w [K, N], axis 0, size 32 -> scale [K / 32, N].

    Source: ONNX DequantizeLinear, opset 21, blocked quantization.
    """

    axis: int
    size: int


Granularity = PerTensor | PerAxis | PerBlock


def spread(parameter: Any, shape: tuple[int, ...]) -> Any:
    """A scale or zero point that broadcasts against a tensor of that shape: blocks are repeated for each of their members."""
    xp = np if isinstance(parameter, np.ndarray) else jnp
    for axis, (count, length) in enumerate(zip(parameter.shape, shape[len(shape) - parameter.ndim :], strict=True)):
        if count not in (1, length):
            parameter = xp.repeat(parameter, length // count, axis)
    return parameter


@dataclass(frozen=True)
class IntType:
    """An integer grid: `bits` wide, signed or not; `narrow` leaves out the lowest level (-128 of int8).

    `levels` are the lowest and the highest integer, where these are others than the type's.
    """

    bits: int
    signed: bool = True
    narrow: bool = False
    levels: tuple[int, int] | None = None

    @property
    def qmin(self) -> int:
        if self.levels is not None:
            return self.levels[0]
        return (-(1 << (self.bits - 1)) if self.signed else 0) + self.narrow

    @property
    def qmax(self) -> int:
        if self.levels is not None:
            return self.levels[1]
        return (1 << (self.bits - self.signed)) - 1

    @property
    def lowest_stored(self) -> int:
        """The lowest integer of the smallest ONNX type that holds the grid."""
        if self.qmin >= 0:
            return 0
        needed = max(-self.qmin, self.qmax + 1)
        return -next(1 << (bits - 1) for bits in (4, 8, 16, 32) if needed <= 1 << (bits - 1))


@dataclass(frozen=True)
class FloatType:
    """An 8-bit floating-point grid: numbers m * 2**e with `mantissa` bits behind the leading one of m.

    Below 2**smallest_exponent the steps stay equal (subnormal numbers); values beyond `qmax` become `qmax`.

    Source: OCP 8-bit floating point specification (Micikevicius et al., arXiv:2209.05433); ONNX float8 types.
    """

    name: str
    mantissa: int
    smallest_exponent: int
    qmax: int

    @property
    def qmin(self) -> int:
        return -self.qmax


E4M3 = FloatType("float8_e4m3fn", mantissa=3, smallest_exponent=-6, qmax=448)
E5M2 = FloatType("float8_e5m2", mantissa=2, smallest_exponent=-14, qmax=57344)

Grid = IntType | FloatType


@dataclass(frozen=True)
class Scheme:
    """How a tensor is quantized, before its numbers are known.

    Attributes:
      grid: the integers, or the floating-point numbers, that it is rounded to.
      symmetric: whether zero is in the middle of the grid (or at its lowest level, where nothing is negative).
      granularity: one scale for the tensor, one for each index of an axis, or one for each block.
      centered: symmetric, with zero in the middle even where nothing is negative.
      signed_below_zero: the integers of a range that goes below zero are signed, whatever `grid` says; its steps stay the same.
    """

    grid: Grid
    symmetric: bool = True
    granularity: Granularity = PerTensor()
    centered: bool = False
    signed_below_zero: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantParams:
    """What turns a float tensor x into integers and back.

        q = clip(round(x / scale) + zero_point, qmin, qmax)        (round half to even)
        x ~ (q - zero_point) * scale

    On a floating-point grid, which has a `mantissa`, x / scale is rounded to that many bits instead, and the zero point is 0.

    Always true:
      * scale and zero_point have the rank of x; each axis has the length of x's, 1, or the number of its blocks
      * scale > 0
      * qmin <= zero_point <= qmax, so 0.0 is represented exactly

    Source: ONNX QuantizeLinear and DequantizeLinear, opset 21.
    """

    scale: Any  # float32
    zero_point: Any  # int32, shape of scale
    qmin: Any  # int32 scalar
    qmax: Any  # int32 scalar
    enabled: Any = True  # bool scalar: off leaves x as it is
    mantissa: Any = None  # int32 scalar of a floating-point grid
    smallest_exponent: Any = None  # int32 scalar of a floating-point grid
    lowest: Any = None  # int32 scalar of an integer grid: what NaN becomes; None for qmin

    @classmethod
    def of(cls, scale: Any, zero_point: Any, grid: Grid) -> QuantParams:
        """Parameters on an integer grid, with the scale's floor applied."""
        scale = np.maximum(np.asarray(scale, np.float32), SMALLEST_SCALE)
        zero_point = np.broadcast_to(np.asarray(zero_point, np.int32), scale.shape)
        made = cls(scale, zero_point, np.int32(grid.qmin), np.int32(grid.qmax), np.bool_(True))
        if isinstance(grid, FloatType):
            return replace(made, mantissa=np.int32(grid.mantissa), smallest_exponent=np.int32(grid.smallest_exponent))
        return replace(made, lowest=np.int32(grid.lowest_stored))


FIELDS = (
    "scale",
    "zero_point",
    "qmin",
    "qmax",
    "mantissa",
    "smallest_exponent",
    "lowest",
)  # the numbers, without the switch
Name = tuple[str, ...]


def to_arrays(encodings: Mapping[str, QuantParams], *prefix: str) -> dict[Name, np.ndarray]:
    """Encodings as arrays with names (*prefix, tensor, field), for files and comparisons."""
    return {
        (*prefix, name, part): np.asarray(getattr(each, part))
        for name, each in encodings.items()
        for part in FIELDS
        if getattr(each, part) is not None
    }


def from_arrays(arrays: Mapping[Name, np.ndarray], *prefix: str) -> dict[str, QuantParams]:
    """The encodings that `to_arrays` has taken apart."""
    names = dict.fromkeys(name[-2] for name in arrays if name[:-2] == prefix)
    return {
        name: QuantParams(
            **{part: arrays[*prefix, name, part] for part in FIELDS if (*prefix, name, part) in arrays},
            enabled=np.bool_(True),
        )
        for name in names
    }


@jax.custom_jvp
def round_half_even(x: jax.Array) -> jax.Array:
    """Rounds to the nearest integer, ties to the even one; its derivative is 1 (the straight-through estimator).

    Source: Bengio et al., arXiv:1308.3432, for the derivative.
    """
    return jnp.round(x)


@round_half_even.defjvp
def _round_half_even_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return round_half_even(primals[0]), tangents[0]


def quantize(x: jax.Array, params: QuantParams) -> jax.Array:
    """The integers (or floats of 8 bits) of x, as float32 values: clip(round(x / scale) + zero_point, qmin, qmax).

    The division is exact, as in ONNX (`divided`). NaN becomes the lowest integer of the type that stores the grid, as in ONNX
    Runtime's QuantizeLinear (the standard leaves it open), and stays NaN on a floating-point grid; infinities saturate.

    Derivatives are straight-through in x, and by the chain rule in the scale (LSQ, Esser et al., arXiv:1902.08153, eq. 3).
    """
    ratio = divided(x, spread(jnp.asarray(params.scale, x.dtype), x.shape))
    if params.mantissa is None:
        shifted = round_half_even(ratio) + spread(jnp.asarray(params.zero_point, x.dtype), x.shape)
    else:
        step = float_step(ratio, params.mantissa, params.smallest_exponent)
        shifted = round_half_even(ratio / step) * step
    clipped = jnp.clip(shifted, jnp.asarray(params.qmin, x.dtype), jnp.asarray(params.qmax, x.dtype))
    if params.mantissa is not None:
        return clipped
    lowest = params.qmin if params.lowest is None else params.lowest
    return jnp.where(jnp.isnan(x), jnp.asarray(lowest, x.dtype), clipped)


def divided(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / scale, rounded once.

    XLA's CPU compiler turns a division by a broadcast scale into a multiplication by its reciprocal, which rounds differently
    near ties. It cannot where the divisor depends on x; and unlike an `optimization_barrier` that leaves the layout of x alone.
    """
    return x / jnp.where(jnp.isnan(x), jnp.asarray(jnp.nan, x.dtype), scale)


def float_step(x: jax.Array, mantissa: Any, smallest_exponent: Any) -> jax.Array:
    """The distance of neighbours on a floating-point grid around each x: 2**(max(floor(log2 |x|), smallest) - mantissa)."""
    exponent = jnp.maximum(jnp.frexp(x)[1] - 1, smallest_exponent)
    return jax.lax.stop_gradient(jnp.ldexp(jnp.ones_like(x), exponent - mantissa))


def dequantize(q: jax.Array, params: QuantParams) -> jax.Array:
    """The float values that the integers q stand for: (q - zero_point) * scale."""
    zero_point, scale = jnp.asarray(params.zero_point, q.dtype), jnp.asarray(params.scale, q.dtype)
    return (q - spread(zero_point, q.shape)) * spread(scale, q.shape)


def transposed(params: QuantParams, axes: tuple[int, ...]) -> QuantParams:
    """The quantizer of `x.transpose(axes)`, from that of x."""
    return replace(params, scale=params.scale.transpose(axes), zero_point=params.zero_point.transpose(axes))


def fake_quantize(x: jax.Array, params: QuantParams) -> jax.Array:
    """x on the quantizer's grid, in x's own dtype; x itself where the quantizer is off."""
    rounded = dequantize(quantize(x.astype(jnp.float32), params), params).astype(x.dtype)
    return jnp.where(params.enabled, rounded, x)


def quantize_array(x: np.ndarray, params: QuantParams) -> np.ndarray:
    """`quantize` of a weight, in numpy: the same integers as float32 values, with nothing to compile for each shape."""
    if params.mantissa is not None:  # floating-point grids are rare: no second version of them
        return np.asarray(quantize(jnp.asarray(x, jnp.float32), params))
    with np.errstate(all="ignore"):
        shifted = np.round(np.asarray(x, np.float32) / spread(np.asarray(params.scale, np.float32), x.shape))
    shifted += spread(np.asarray(params.zero_point, np.float32), x.shape)
    clipped = np.clip(shifted, np.float32(params.qmin), np.float32(params.qmax))
    lowest = params.qmin if params.lowest is None else params.lowest
    return np.where(np.isnan(shifted), np.float32(lowest), clipped)


def fake_quantize_array(x: np.ndarray, params: QuantParams) -> np.ndarray:
    """`fake_quantize` of a weight, in numpy."""
    if not np.asarray(params.enabled):
        return x
    q = quantize_array(x, params) - spread(np.asarray(params.zero_point, np.float32), x.shape)
    return (q * spread(np.asarray(params.scale, np.float32), x.shape)).astype(x.dtype)
