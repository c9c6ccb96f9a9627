"""Activation functions, element by element."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxq.errors import UnsupportedOpError
from jaxq.ops import op
from jaxq.ops.cpu_memory import channels_last


@op("Relu", since=6)
def relu(x):
    return jax.nn.relu(x)  # maximum(x, 0), with the derivative 0 at 0


@op("LeakyRelu", since=6)
@channels_last
def leaky_relu(x, *, alpha=0.01):
    return jnp.where(x < 0, alpha * x, x)


@op("PRelu", since=7)
def prelu(x, slope):
    return jnp.where(x < 0, slope * x, x)


@op("PRelu", since=6)
def prelu_by_channel(x, slope):
    """Before opset 7: one slope for all of x, or one for each channel (axis 1)."""
    return prelu(x, slope.reshape(-1, *[1] * (x.ndim - 2)) if slope.size > 1 else slope.reshape(()))


@op("ThresholdedRelu", since=10)
@channels_last
def thresholded_relu(x, *, alpha=1.0):
    return jnp.where(x > alpha, x, jnp.zeros_like(x))


@op("Elu", since=6)
@channels_last
def elu(x, *, alpha=1.0):
    return jnp.where(x > 0, x, alpha * _expm1_below_zero(x))


@op("Selu", since=6)
@channels_last
def selu(x, *, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875):
    return gamma * elu(x, alpha=alpha)


@op("Celu", since=12)
@channels_last
def celu(x, *, alpha=1.0):
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return jnp.where(x > 0, x, alpha * _expm1_below_zero(x / alpha))


def _expm1_below_zero(x):
    """exp(x) - 1 where x < 0, elsewhere 0: large x must not reach exp, whose infinity would spoil the derivative."""
    return jnp.expm1(jnp.minimum(x, 0))


@op("Sigmoid", since=6)
@channels_last
def sigmoid(x):
    return jax.nn.sigmoid(x)


@op("HardSigmoid", since=6)
@channels_last
def hard_sigmoid(x, *, alpha=0.2, beta=0.5):
    return jnp.clip(alpha * x + beta, 0, 1)


@op("HardSwish", since=14)
@channels_last
def hard_swish(x):
    return x * hard_sigmoid(x, alpha=1 / 6)


@op("Swish", since=24)
@channels_last
def swish(x, *, alpha=1.0):
    return x * jax.nn.sigmoid(alpha * x)


@op("SwiGLU", since=28)
def swiglu(gate, value, *, alpha=1.0):
    return swish(gate, alpha=alpha) * value


@op("Gelu", since=20)
@channels_last
def gelu(x, *, approximate="none"):
    """x * Phi(x), Phi being the normal distribution function; "tanh" is the approximation of Hendrycks and Gimpel.

    Source: arXiv:1606.08415.
    """
    if approximate not in ("none", "tanh"):
        raise UnsupportedOpError(f"approximate {approximate!r}; known are 'none' and 'tanh'")
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@op("Mish", since=18)
@channels_last
def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


@op("Softplus", since=1)
@channels_last
def softplus(x):
    return jax.nn.softplus(x)


@op("Softsign", since=1)
@channels_last
def softsign(x):
    return x / (1 + jnp.abs(x))


@op("Shrink", since=9)
@channels_last
def shrink(x, *, bias=0.0, lambd=0.5):
    """x moved towards zero by `bias`, and zero within [-lambd, lambd]."""
    return jnp.where(x < -lambd, x + bias, jnp.where(x > lambd, x - bias, 0)).astype(x.dtype)
