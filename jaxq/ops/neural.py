"""Matrix products, Einsum and softmax."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxq.errors import ModelError
from jaxq.ops import op


@op("MatMul", since=1)
def matmul(a, b):
    return jnp.matmul(a, b)


@op("Gemm", since=7)
def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    if a.ndim != 2 or b.ndim != 2:
        raise ModelError(f"it multiplies matrices, but its inputs A and B have ranks {a.ndim} and {b.ndim}")
    a, b = (a.T if transA else a), (b.T if transB else b)
    y = scaled(a @ b, alpha)
    return y if c is None else y + scaled(c, beta)


def scaled(x, factor: float):
    """factor * x in the type of x; nothing to do for 1."""
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)


@op("Softmax", since=13)
def softmax(x, *, axis=-1):
    return jax.nn.softmax(x, axis=axis)


@op("Softmax", since=1)
def softmax_1(x, *, axis=1):
    """Before opset 13: over all dimensions from `axis` on, taken together."""
    return over_trailing(jax.nn.softmax, x, axis)


@op("LogSoftmax", since=13)
def log_softmax(x, *, axis=-1):
    return jax.nn.log_softmax(x, axis=axis)


@op("LogSoftmax", since=1)
def log_softmax_1(x, *, axis=1):
    return over_trailing(jax.nn.log_softmax, x, axis)


def over_trailing(function, x, axis: int):
    """`function` over the dimensions of x from `axis` on, flattened into one."""
    axis = axis + x.ndim if axis < 0 else axis
    rows = jnp.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
    return jnp.reshape(function(rows, axis=-1), x.shape)


@op("Gemm", since=6)
def gemm_6(a, b, c=None, *, alpha=1.0, beta=1.0, broadcast=0, transA=0, transB=0):
    """Before opset 7; no file of that time lacks c, but the passes move it into an Add where it is no bias."""
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@op("Einsum", since=12)
def einsum(*operands, equation):
    return jnp.einsum(equation.replace(" ", ""), *operands)
