"""Uniform quantizers as data, and the one primitive that quantizes.

Everything about a quantizer is an array: changing a scale, a bit width or which tensors are quantized never recompiles.
"""

from __future__ import annotations

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


Granularity = PerTensor | PerAxis


def reduced_axes(granularity: Granularity, rank: int) -> tuple[int, ...]:
    """The axes of a tensor of that rank over which one scale is shared."""
    kept = granularity.axis % rank if isinstance(granularity, PerAxis) and rank else None
    return tuple(axis for axis in range(rank) if axis != kept)


@dataclass(frozen=True)
class IntType:
    """An integer grid: `bits` wide, signed or not; `narrow` leaves out the lowest level (-128 of int8)."""

    bits: int
    signed: bool = True
    narrow: bool = False

    @property
    def qmin(self) -> int:
        return (-(1 << (self.bits - 1)) if self.signed else 0) + self.narrow

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - self.signed)) - 1


@dataclass(frozen=True)
class Scheme:
    """How a tensor is quantized, before its numbers are known.

    Attributes:
      grid: the integers.
      symmetric: whether zero is in the middle of the grid (or at its lowest level, where nothing is negative).
      granularity: one scale for the tensor, or one for each index of an axis.
    """

    grid: IntType
    symmetric: bool = True
    granularity: Granularity = PerTensor()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantParams:
    """What turns a float tensor x into integers and back.

        q = clip(round(x / scale) + zero_point, qmin, qmax)        (round half to even)
        x ~ (q - zero_point) * scale

    Always true:
      * scale and zero_point have the rank of x and broadcast against it
      * scale > 0
      * qmin <= zero_point <= qmax, so 0.0 is represented exactly

    Source: ONNX QuantizeLinear and DequantizeLinear, opset 13.
    """

    scale: Any  # float32
    zero_point: Any  # int32, shape of scale
    qmin: Any  # int32 scalar
    qmax: Any  # int32 scalar
    enabled: Any = True  # bool scalar: off leaves x as it is

    @classmethod
    def of(cls, scale: Any, zero_point: Any, grid: IntType) -> QuantParams:
        """Parameters on an integer grid, with the scale's floor applied."""
        scale = np.maximum(np.asarray(scale, np.float32), SMALLEST_SCALE)
        zero_point = np.broadcast_to(np.asarray(zero_point, np.int32), scale.shape)
        return cls(scale, zero_point, np.int32(grid.qmin), np.int32(grid.qmax), np.bool_(True))


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
    """The integers of x, as float32 values: clip(round(x / scale) + zero_point, qmin, qmax).

    The division is exact, as in ONNX: XLA's CPU compiler would turn a division by a broadcast scale into a multiplication by
    its reciprocal, which rounds differently near ties; the barrier keeps it from seeing the broadcast.

    Derivatives are straight-through in x, and by the chain rule in the scale (LSQ, Esser et al., arXiv:1902.08153, eq. 3).
    """
    scale = jax.lax.optimization_barrier(jnp.broadcast_to(jnp.asarray(params.scale, x.dtype), x.shape))
    zero_point = jnp.asarray(params.zero_point, x.dtype)
    shifted = round_half_even(x / scale) + zero_point
    return jnp.clip(shifted, jnp.asarray(params.qmin, x.dtype), jnp.asarray(params.qmax, x.dtype))


def dequantize(q: jax.Array, params: QuantParams) -> jax.Array:
    """The float values that the integers q stand for: (q - zero_point) * scale."""
    return (q - jnp.asarray(params.zero_point, q.dtype)) * jnp.asarray(params.scale, q.dtype)


def transposed(params: QuantParams, axes: tuple[int, ...]) -> QuantParams:
    """The quantizer of `x.transpose(axes)`, from that of x."""
    return replace(params, scale=params.scale.transpose(axes), zero_point=params.zero_point.transpose(axes))


def fake_quantize(x: jax.Array, params: QuantParams) -> jax.Array:
    """x on the quantizer's grid, in x's own dtype; x itself where the quantizer is off."""
    rounded = dequantize(quantize(x.astype(jnp.float32), params), params).astype(x.dtype)
    return jnp.where(params.enabled, rounded, x)
