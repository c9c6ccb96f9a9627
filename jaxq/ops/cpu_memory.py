"""How values lie in memory on CPU, where XLA's choice is not the fast one.

Convolutions work channels-last inside (`jaxq.ops.convolution`), while graphs keep ONNX's order. XLA turns nothing around as
long as it takes over the order of a convolution for what follows. It does not everywhere; what is here helps it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from jaxq.ops import platform

Function = TypeVar("Function", bound=Callable[..., Any])


def is_image(x: Any) -> bool:
    """Whether x is such that convolutions on CPU would hold it channels-last."""
    return platform() == "cpu" and isinstance(x, jax.Array) and x.ndim >= 4


def channels_last(function: Function) -> Function:
    """The same function of x, element by element, which works in the order of convolutions.

    Scalars that are broadcast (a slope, a bound, a condition) otherwise have the order in which x is indexed, and with them
    everything that they meet: images were turned around before and after.
    """

    @functools.wraps(function)
    def ordered(x: Any, *others: Any, **attributes: Any) -> Any:
        if not is_image(x):
            return function(x, *others, **attributes)
        return jnp.moveaxis(function(jnp.moveaxis(x, 1, -1), *others, **attributes), -1, 1)

    return ordered  # type: ignore[return-value]


def materialized(x: jax.Array) -> jax.Array:
    """x itself, which on CPU is computed once and stored, however many read it.

    There XLA merges cheap operations into each of their readers: a depthwise convolution was computed anew in every reduction
    over it, and each copy was compiled, too. `optimization_barrier` does not help: it is gone before operations are merged. A
    function that is not to be inlined is still there; it costs one copy.
    """
    if platform() != "cpu" or not isinstance(x, jax.core.Tracer):
        return x
    with set_xla_metadata(inlineable="false"):
        stored: jax.Array = channels_last(_same)(x)
    return stored


@jax.jit
def _same(x: jax.Array) -> jax.Array:
    return x
