"""Moves the biases by what the rounding of the weights adds to each channel's mean, from statistics of the float model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.algorithms.biases import moved_biases, record
from jaxq.engine.model import Model
from jaxq.graph.ir import Graph, Node
from jaxq.graph.linear import Linear, is_product, own_bias, owned
from jaxq.numerics.observers import Observer, mean_over_samples, positions_by_channels
from jaxq.numerics.quantizer import fake_quantize_array

# Gates of the recurrent operators, as rows of W and R in units of the hidden size: those whose state enters as it is.
PLAIN_GATES = {"LSTM": (0, 1, 2, 3), "GRU": (0, 1)}


@dataclass(frozen=True)
class Term:
    """One product `weight * tensor` that a bias is added to.

    Attributes:
      weight: the param; its rounding is what is corrected.
      tensor: what it is multiplied with; `axis` is that of its channels, `channels` their number.
    """

    node: Node
    weight: str
    bias: str
    tensor: str
    axis: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class FastBiasCorrection:
    """Takes back the mean of what the rounded weights add, from the mean of each input channel; no pass of its own.

        shift = (W - round(W)) E[x],    bias <- bias + shift

    Layers are independent: each is corrected as if the float tensors came in, and the rounding of activations is left as it is.
    `BiasCorrection` sees both, at the price of running the model twice.

    Source: Nagel et al., arXiv:1906.04721, section 4.2; FastBiasCorrection of POT and NNCF. They subtract the output for the
    mean input from the measured mean of the float output, and so take the borders of padded convolutions for an error of
    rounding; here the same mean input goes through both weights.

    Args:
      nodes: names of the nodes that may be corrected.
      samples: the means are taken over the first so many samples.
      threshold: a layer whose largest shift is above so many times its largest bias or mean output stays as it is.
    """

    nodes: tuple[str, ...]
    samples: int = 128
    threshold: float = 2.0

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {term.tensor: channel_means(self.samples, term.channels, term.axis) for term in self.terms(model)}

    def apply(self, model: Model, stats: Mapping[str, Any], samples: object = None) -> Model:
        shifts: dict[str, np.ndarray] = {}
        outputs: dict[str, np.ndarray] = {}
        for term in self.terms(model):
            mean = mean_over_samples(np.asarray(stats[term.tensor]))
            if mean is None or term.weight not in model.encodings:
                continue
            weight = np.asarray(model.params[term.weight])
            value = weight.astype(np.float64)
            rounding = value - fake_quantize_array(weight, model.encodings[term.weight])
            start = np.zeros(np.shape(model.params[term.bias]))
            shifts[term.bias] = shifts.get(term.bias, start) + mean_output(term, rounding, mean)
            outputs[term.bias] = outputs.get(term.bias, start) + mean_output(term, value, mean)
        means = {name: each + np.asarray(model.params[name], np.float64) for name, each in outputs.items()}
        params = moved_biases(model.params, shifts, means, self.threshold)
        moved = [name for name in shifts if params[name] is not model.params[name]]
        return model.replace(params=params, metadata=model.metadata | record(moved, list(shifts)))

    def terms(self, model: Model) -> list[Term]:
        """The products to look at; a tensor is watched along one axis, that of the first node that reads it."""
        watched: dict[str, tuple[int, int]] = {}
        found = list(terms(model.graph, model.params, self.nodes))
        return [
            term
            for term in found
            if watched.setdefault(term.tensor, (term.axis, term.channels)) == (term.axis, term.channels)
        ]


@functools.cache
def channel_means(capacity: int, channels: int, axis: int) -> Observer:
    """The mean of each channel in each of the first `capacity` samples; NaN where one has not been seen.

    State: float32 [T, capacity, channels]. Channels lie along `axis` of a sample's tensor.
    """

    def init(count: int) -> np.ndarray:
        return np.full((count, capacity, channels), np.nan, np.float32)

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> jax.Array:
        table = jax.vmap(functools.partial(positions_by_channels, axis=axis))
        return jnp.stack([table(x).mean(1) for x in tensors])

    def update(state: jax.Array, measured: jax.Array, index: jax.Array) -> jax.Array:
        return state.at[:, index].set(measured, mode="drop")

    def merge(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(jnp.isnan(a), b, a)

    return Observer(init, measure, update, merge)


def mean_output(term: Term, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What the product of `weight` and an input with these channel means [C] adds to the bias, in the bias's shape.

    Padding is not counted: away from the borders every tap of a kernel sees the whole mean.
    """
    if term.node.op in PLAIN_GATES:
        return recurrent_output(term, weight, mean)
    return Linear(term.node, weight.shape).response(weight, mean)


def recurrent_output(term: Term, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """For W or R [directions, gates * hidden, C] of an LSTM or GRU, in the shape of B [directions, 2 * gates * hidden].

    The hidden gate of a GRU sees the state times its reset gate, whose mean is not known: its part of R is left alone.
    """
    directions, rows, _ = weight.shape
    added = np.zeros((directions, 2 * rows))
    if term.weight == term.node.inputs[1]:
        added[:, :rows] = weight @ mean
        return added
    hidden = rows // {"LSTM": 4, "GRU": 3}[term.node.op]
    products = np.einsum("dri,di->dr", weight, mean.reshape(directions, hidden))
    for gate in PLAIN_GATES[term.node.op]:
        added[:, rows + gate * hidden : rows + (gate + 1) * hidden] = products[:, gate * hidden : (gate + 1) * hidden]
    return added


def terms(graph: Graph, params: Mapping[str, Any], nodes: Sequence[str]) -> Iterator[Term]:
    """Every product of the named nodes that has a bias of its own; that of a MatMul is the vector of the only Add behind it."""
    chosen = set(nodes)
    for node in graph.nodes:
        if node.name not in chosen or node.domain or len(node.inputs) < 2 or node.inputs[1] not in params:
            continue
        linear = Linear.of(node, params)
        if linear is not None:
            bias = own_bias(graph, params, node)
            stacked = is_product(node) and len(linear.shape) != 2
            if bias is not None and not linear.transposes_data and not stacked:
                yield Term(node, linear.weight, bias.name, node.inputs[0], linear.channel_axis, linear.inputs)
        elif node.op in PLAIN_GATES and len(node.inputs) > 3 and owned(graph, params, node.inputs[3]):
            yield from recurrent_terms(node, params)


def recurrent_terms(node: Node, params: Mapping[str, Any]) -> Iterator[Term]:
    """W with the input and, where there is one direction whose states are all an output, R with the state."""
    directions, _, channels = np.shape(params[node.inputs[1]])
    yield Term(node, node.inputs[1], node.inputs[3], node.inputs[0], -1, channels)
    if directions == 1 and node.outputs[0] and node.inputs[2] in params:
        yield Term(node, node.inputs[2], node.inputs[3], node.outputs[0], -1, np.shape(params[node.inputs[2]])[2])
