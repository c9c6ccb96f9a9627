"""Keeps XLA's CPU compiler from computing one value several times over."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from jaxq.ops import platform


def materialized(x: jax.Array) -> jax.Array:
    """x itself, which on CPU is computed once and stored, however many read it.

    There XLA merges cheap operations into each of their readers: a depthwise convolution was computed anew in every reduction
    over it, a sum of residual branches in every later one, and each copy was compiled, too. `optimization_barrier` does not help:
    it is gone before operations are merged. A function that is not to be inlined is still there.
    """
    if platform() != "cpu" or not isinstance(x, jax.Array):
        return x
    # What a function takes and returns lies in memory as it is indexed, and convolutions work channels-last inside.
    image = x.ndim >= 4
    with set_xla_metadata(inlineable="false"):
        stored: jax.Array = _same(jnp.moveaxis(x, 1, -1) if image else x)
    return jnp.moveaxis(stored, -1, 1) if image else stored


@jax.jit
def _same(x: jax.Array) -> jax.Array:
    return x
