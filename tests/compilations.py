"""Counts what XLA compiles, so that "this compiles nothing" is a statement that can fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The compilations of the block, one entry each; first makes sure that a program that is new would be seen."""
    seen: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: seen.append(event) if "backend_compile" in event else None
    )
    try:
        jax.jit(lambda x: x + np.float32(1))(np.zeros(3, np.float32))
        assert seen, "JAX has another name for the event of a compilation"
        seen.clear()
        yield seen
    finally:
        jax.monitoring.clear_event_listeners()
