"""Operators that draw random numbers: the noise of speech synthesis and of image generators.

Which numbers, ONNX leaves to the runtime, and runtimes draw new ones on each run. Here the numbers follow from the `seed`
of the node, or from its name where it has none: the same on each run and each device, so that results can be compared.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.ops import op
from jaxq.ops.cast import element_dtype


def _key(seed: Any) -> jax.Array:
    """The seed of a node: a float in ONNX, an integer where the walk made it from the node's name."""
    bits = int(np.float32(seed).view(np.int32)) if isinstance(seed, float) else int(seed or 0)
    return jax.random.key(bits & 0x7FFFFFFF)


def _normal(shape: tuple[int, ...], kind: Any, mean: float, scale: float, seed: Any) -> jax.Array:
    return jax.random.normal(_key(seed), shape, kind) * jnp.asarray(scale, kind) + jnp.asarray(mean, kind)


def _uniform(shape: tuple[int, ...], kind: Any, low: float, high: float, seed: Any) -> jax.Array:
    return jax.random.uniform(_key(seed), shape, kind, jnp.asarray(low, kind), jnp.asarray(high, kind))


def _like(x: Any, dtype: int | None) -> Any:
    return x.dtype if dtype is None else element_dtype(dtype, x)


@op("RandomNormal", since=1)
def random_normal(*, shape, dtype=1, mean=0.0, scale=1.0, seed=None):
    return _normal(tuple(shape), element_dtype(dtype), mean, scale, seed)


@op("RandomNormalLike", since=1)
def random_normal_like(x, *, dtype=None, mean=0.0, scale=1.0, seed=None):
    return _normal(x.shape, _like(x, dtype), mean, scale, seed)


@op("RandomUniform", since=1)
def random_uniform(*, shape, dtype=1, low=0.0, high=1.0, seed=None):
    return _uniform(tuple(shape), element_dtype(dtype), low, high, seed)


@op("RandomUniformLike", since=1)
def random_uniform_like(x, *, dtype=None, low=0.0, high=1.0, seed=None):
    return _uniform(x.shape, _like(x, dtype), low, high, seed)


@op("Bernoulli", since=15)
def bernoulli(x, *, dtype=None, seed=None):
    """1 with the probability that x gives, else 0."""
    drawn = jax.random.bernoulli(_key(seed), x, x.shape)
    return drawn.astype(_like(x, dtype))


@op("Multinomial", since=7)
def multinomial(x, *, dtype=6, sample_size=1, seed=None):
    """`sample_size` classes for each row of unnormalized log-probabilities x [batch, classes]."""
    drawn = jax.random.categorical(_key(seed), x, axis=-1, shape=(sample_size, x.shape[0]))
    return drawn.T.astype(element_dtype(dtype, x))
