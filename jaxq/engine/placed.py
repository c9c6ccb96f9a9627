"""Weights on the device, by the arrays that they were made of: what several programs read is laid out and uploaded once."""

from __future__ import annotations

import weakref
from typing import Any

import jax
import numpy as np

from jaxq.engine.execute import runs_in_32_bit, traced_param

Key = tuple[int, tuple[int, ...], bool]  # of an array, the order of its axes, and whether 64-bit numbers were narrowed


class Placed:
    """Remembers where arrays are as long as these live; nobody writes to the arrays of a model. A copy remembers nothing."""

    def __init__(self) -> None:
        self._there: dict[Key, tuple[weakref.ref[np.ndarray], jax.Array]] = {}

    def put(self, name: str, value: Any, axes: tuple[int, ...] | None = None) -> jax.Array:
        """The array with its axes in that order on the device, where it may be already; `name` is for messages."""
        if not isinstance(value, np.ndarray):  # a JAX array, or a number that cannot be watched
            return traced_param(name, value if axes is None else np.transpose(value, axes))
        key = (id(value), axes or (), runs_in_32_bit())
        source, placed = self._there.get(key, (lambda: None, None))
        if source() is not value or placed is None:
            placed = traced_param(name, value if axes is None else np.transpose(value, axes))
            forget = self._there.pop
            self._there[key] = weakref.ref(value, lambda _: forget(key, None)), placed
        return placed

    def __reduce__(self) -> Any:
        return Placed, ()
