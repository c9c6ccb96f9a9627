"""Recurrent layers: one scan over time, the projections of all inputs done before it in one matrix product.

Shape letters: T time, B batch, I input size, H hidden size, D directions, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxq.errors import ModelError, UnsupportedOpError
from jaxq.ops import op

Activation = Callable[[jax.Array], jax.Array]
State = tuple[jax.Array, ...]

# Name in lower case -> (function of x, alpha and beta; default alpha; default beta). None: it takes no such number.
ACTIVATIONS: dict[str, tuple[Callable[..., jax.Array], float | None, float | None]] = {
    "relu": (lambda x, a, b: jnp.maximum(x, 0), None, None),
    "tanh": (lambda x, a, b: jnp.tanh(x), None, None),
    "sigmoid": (lambda x, a, b: jax.nn.sigmoid(x), None, None),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: jnp.where(x >= 0, x, a * x), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: jnp.where(x > a, x, 0), 1.0, None),
    "scaledtanh": (lambda x, a, b: a * jnp.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: jnp.clip(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: jnp.where(x >= 0, x, a * jnp.expm1(x)), 1.0, None),
    "softsign": (lambda x, a, b: x / (1 + jnp.abs(x)), None, None),
    "softplus": (lambda x, a, b: jax.nn.softplus(x), None, None),
}


@op("LSTM", since=1)
def lstm(
    x,
    w,
    r,
    b=None,
    sequence_lens=None,
    initial_h=None,
    initial_c=None,
    p=None,
    *,
    activation_alpha=(),
    activation_beta=(),
    activations=(),
    clip=None,
    direction="forward",
    hidden_size=None,
    input_forget=0,
    layout=0,
    output_sequence=None,
):
    """x [T, B, I], w [D, 4H, I], r [D, 4H, H], b [D, 8H], p [D, 3H]; gates in the order i, o, f, c."""
    functions = activation_functions(
        activations, ("Sigmoid", "Tanh", "Tanh"), activation_alpha, activation_beta, len(w)
    )
    clipped = clipping(clip)

    def direction_step(d: int):
        f, g, h = next(functions)
        recurrent, peepholes = r[d], jnp.split(p[d], 3) if p is not None else (0, 0, 0)

        def step(projected, state):
            hidden, cell = state
            i, o, forget, c = jnp.split(projected + hidden @ recurrent.T, 4, axis=-1)
            i = f(clipped(i + peepholes[0] * cell))
            forget = 1 - i if input_forget else f(clipped(forget + peepholes[2] * cell))
            cell = forget * cell + i * g(clipped(c))
            return f(clipped(o + peepholes[1] * cell)) * h(cell), cell

        return step

    bias = None if b is None else b[:, : b.shape[1] // 2] + b[:, b.shape[1] // 2 :]
    projected = project(x, w, bias, layout)
    states = (initial_h, initial_c)
    return run_directions(projected, r, states, sequence_lens, direction, layout, direction_step)


@op("GRU", since=1)
def gru(
    x,
    w,
    r,
    b=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=(),
    activation_beta=(),
    activations=(),
    clip=None,
    direction="forward",
    hidden_size=None,
    layout=0,
    linear_before_reset=0,
    output_sequence=None,
):
    """x [T, B, I], w [D, 3H, I], r [D, 3H, H], b [D, 6H]; gates in the order z, r, h."""
    functions = activation_functions(activations, ("Sigmoid", "Tanh"), activation_alpha, activation_beta, len(w))
    clipped = clipping(clip)
    size = r.shape[-1]
    b = jnp.zeros((len(w), 6 * size), x.dtype) if b is None else jnp.asarray(b)

    def direction_step(d: int):
        f, g = next(functions)
        gates, candidate = r[d, : 2 * size], r[d, 2 * size :]
        bias = b[d, 5 * size :]

        def step(projected, state):
            (hidden,) = state
            z, reset, h = jnp.split(projected, 3, axis=-1)
            z_hidden, reset_hidden = jnp.split(hidden @ gates.T, 2, axis=-1)
            z, reset = f(clipped(z + z_hidden)), f(clipped(reset + reset_hidden))
            if linear_before_reset:
                h = h + reset * (hidden @ candidate.T + bias)
            else:
                h = h + (reset * hidden) @ candidate.T + bias
            return ((1 - z) * g(clipped(h)) + z * hidden,)

        return step

    # The recurrent bias of the candidate stays with the step, where the reset gate may act on it.
    bias = b[:, : 3 * size] + b[:, 3 * size :].at[:, 2 * size :].set(0)
    return run_directions(
        project(x, w, bias, layout), r, (initial_h,), sequence_lens, direction, layout, direction_step
    )


@op("RNN", since=1)
def rnn(
    x,
    w,
    r,
    b=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=(),
    activation_beta=(),
    activations=(),
    clip=None,
    direction="forward",
    hidden_size=None,
    layout=0,
    output_sequence=None,
):
    """x [T, B, I], w [D, H, I], r [D, H, H], b [D, 2H]."""
    functions = activation_functions(activations, ("Tanh",), activation_alpha, activation_beta, len(w))
    clipped = clipping(clip)

    def direction_step(d: int):
        (f,) = next(functions)
        recurrent = r[d]
        return lambda projected, state: (f(clipped(projected + state[0] @ recurrent.T)),)

    bias = None if b is None else b[:, : b.shape[1] // 2] + b[:, b.shape[1] // 2 :]
    return run_directions(
        project(x, w, bias, layout), r, (initial_h,), sequence_lens, direction, layout, direction_step
    )


def project(x, w, bias, layout: int):
    """The inputs' share of all gates: [T, D, B, G * H]."""
    x = jnp.swapaxes(x, 0, 1) if layout else x
    projected = jnp.einsum("tbi,dgi->tdbg", x, w)
    return projected if bias is None else projected + bias[:, None]


def run_directions(
    projected, r, initial, lengths, direction: str, layout: int, direction_step
) -> tuple[jax.Array, ...]:
    """Runs each direction over time; returns Y [T, D, B, H] and the last states [D, B, H], batch first with layout 1.

    Steps beyond a sequence's length leave its state alone and put out 0, so that the backward direction starts at its end.
    """
    reversed_directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(direction)
    if reversed_directions is None:
        raise UnsupportedOpError(f"direction = {direction!r}; expected forward, reverse or bidirectional")
    steps, count, batch, _ = projected.shape
    if count != len(reversed_directions):
        raise ModelError(f"weights for {count} directions do not fit direction {direction!r}")
    zeros = jnp.zeros((count, batch, r.shape[-1]), projected.dtype)
    initial = [
        zeros if state is None else jnp.swapaxes(state, 0, 1) if layout else jnp.asarray(state) for state in initial
    ]
    outputs = []
    for d, backward in enumerate(reversed_directions):
        step = direction_step(d)

        def timed(state: State, inputs, step=step) -> tuple[State, jax.Array]:
            time, row = inputs
            new = step(row, state)
            if lengths is None:
                return new, new[0]
            running = (time < lengths)[:, None]
            kept = tuple(jnp.where(running, after, before) for after, before in zip(new, state, strict=True))
            return kept, jnp.where(running, new[0], 0)

        times = jnp.arange(steps, dtype=jnp.int32)
        last, y = lax.scan(timed, tuple(state[d] for state in initial), (times, projected[:, d]), reverse=backward)
        outputs.append((y, *last))
    y, *states = (jnp.stack(parts, axis=int(not position)) for position, parts in enumerate(zip(*outputs, strict=True)))
    if layout:
        y, states = jnp.transpose(y, (2, 0, 1, 3)), [jnp.swapaxes(state, 0, 1) for state in states]
    return y, *states


def clipping(limit: float | None) -> Activation:
    return (lambda x: x) if limit is None else (lambda x: jnp.clip(x, -limit, limit))


def activation_functions(
    names: Iterable[str], default: tuple[str, ...], alphas: Iterable[float], betas: Iterable[float], directions: int
) -> Iterator[tuple[Activation, ...]]:
    """The activations of each direction. Alphas and betas go, in order, to those functions that take one."""
    names = tuple(names) or default * directions
    if len(names) != len(default) * directions:
        raise ModelError(f"activations = {list(names)}; expected {len(default)} for each of {directions} directions")
    alphas, betas = iter(alphas), iter(betas)

    def bind(name: str) -> Activation:
        if name.lower() not in ACTIVATIONS:
            raise UnsupportedOpError(f"activation {name!r}; known are {', '.join(ACTIVATIONS)}")
        function, alpha, beta = ACTIVATIONS[name.lower()]
        alpha = alpha if alpha is None else next(alphas, alpha)
        beta = beta if beta is None else next(betas, beta)
        return lambda x: function(x, alpha, beta)

    bound = [bind(name) for name in names]
    return (tuple(bound[start : start + len(default)]) for start in range(0, len(bound), len(default)))
