"""Moves the outliers of an activation's channels into the weights that read it, where that lessens the error of both."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.graph import FrozenDict, Graph, Node, node_names, tensor_names, unused_name
from jaxq.linear_layers import owned
from jaxq.model import Model
from jaxq.observers import Observer, mean_over_samples, positions_by_channels

OFF = -1.0  # an alpha for: leave such operators alone
ALPHAS = (0.15, 0.3, 0.5, 0.7, 0.85, 0.95)  # tried where none is given
SMALLEST, LARGEST = 1e-5, 100.0  # of a channel's size, of a factor
GAIN_FOR_A_NODE = 0.7  # a multiplication that has to be inserted must lower the error to this part


@dataclass(frozen=True, kw_only=True)
class SmoothQuant:
    """Divides channel c of an activation by s_c and multiplies the rows of the weights that read it by s_c.

        s_c = max|x_c| ** alpha / max|W_c| ** (1 - alpha)

    The division goes into the LayerNormalization that makes the tensor, if nothing else reads it, else into a Mul of its own. The
    function of the float model does not change. It runs before quantizers are placed, since it may change the graph.

    With an alpha, that one is used as NNCF does. With None, alpha and whether to do it at all are chosen for each tensor by the
    least error of rounding predicted at the outputs of the products (`noise`).

    Source: Xiao et al., arXiv:2211.10438, eq. 4; the bounds of s (its 10 % quantile, 100) and, of several readers, the choice of
    the s with the largest min/max are NNCF's. NNCF's fixed 0.95 can cost accuracy, which is why None is the default here.

    Args:
      matmul: alpha for MatMul and Gemm, 0 to 1; None chooses; -1 leaves them alone.
      convolution: the same for Conv.
      ignored: names of nodes that are not quantized.
      samples: how many samples the sizes of channels are taken from.
    """

    matmul: float | None = None
    convolution: float | None = OFF
    ignored: frozenset[str] = frozenset()
    samples: int = 64

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {group.tensor: channel_sizes(self.samples, group.channels, group.axis) for group in self.groups(model)}

    def apply(self, model: Model, stats: Mapping[str, Sizes], samples: object = None) -> Model:
        params = dict(model.params)
        graph = model.graph
        for group in self.groups(model):
            largest, power = stats[group.tensor].largest, mean_over_samples(stats[group.tensor].power)
            if power is None or not np.isfinite(largest).all() or largest.max(initial=0.0) <= 0:
                continue
            weights = [rows(node, params[node.inputs[1]]) for node in group.readers]
            factor = self.factor(group, largest.astype(np.float64), power, weights)
            if factor is None:
                continue
            for node in group.readers:
                name = node.inputs[1]
                params[name] = scaled_rows(node, params[name], factor)
            graph = divide(graph, params, group, factor)
        return model.replace(graph=graph, params=params)

    def factor(
        self, group: Group, largest: np.ndarray, power: np.ndarray, weights: list[np.ndarray]
    ) -> np.ndarray | None:
        """The divisors s [C]; None to leave the tensor alone."""
        alpha = self.alpha(group.readers[0])
        if alpha is not None:
            found = [smoothing(largest, np.abs(weight).max(axis=1), alpha) for weight in weights]
            return max(found, key=lambda s: s.min() / s.max())
        joint = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
        best, least = None, noise(np.ones_like(largest), largest, power, weights)
        least *= 1.0 if group.folds else GAIN_FOR_A_NODE
        for each in ALPHAS:
            s = smoothing(largest, joint, each)
            error = noise(s, largest, power, weights)
            if error < least:
                best, least = s, error
        return best

    def alpha(self, node: Node) -> float | None:
        return self.convolution if node.op == "Conv" else self.matmul

    def groups(self, model: Model) -> list[Group]:
        return [
            group for group in groups(model.graph, model.params, self.ignored) if self.alpha(group.readers[0]) != OFF
        ]


@dataclass(frozen=True)
class Group:
    """The products that read one tensor, whose channels lie along `axis`.

    `folds` says whether the LayerNormalization that makes the tensor can take up the division: nothing else reads it.
    """

    tensor: str
    readers: tuple[Node, ...]
    axis: int
    channels: int
    folds: bool


def groups(graph: Graph, params: Mapping[str, Any], ignored: frozenset[str]) -> Iterator[Group]:
    """Every tensor that products with weights of their own read, as far as they read it along the same axis."""
    made = {name: node for node in graph.nodes for name in node.outputs}
    for tensor, places in graph.consumers.items():
        readers = [
            each for each, index in places if index == 0 and _product(graph, params, each) and each.name not in ignored
        ]
        if tensor in params or not readers:
            continue
        convolution = readers[0].op == "Conv"
        readers = [each for each in readers if (each.op == "Conv") == convolution]
        channels = rows(readers[0], params[readers[0].inputs[1]]).shape[0]
        alone = len(readers) == len(places) and tensor not in graph.outputs
        folds = alone and not convolution and _foldable(graph, params, made.get(tensor), channels)
        yield Group(tensor, tuple(readers), 1 if convolution else -1, channels, folds)


def _product(graph: Graph, params: Mapping[str, Any], node: Node) -> bool:
    if node.domain or node.op not in ("MatMul", "Gemm", "Conv") or not owned(graph, params, node.inputs[1]):
        return False
    plain = not node.attributes.get("transA", 0) and node.attributes.get("group", 1) == 1
    return plain and (node.op == "Conv" or np.ndim(params[node.inputs[1]]) == 2)


def _foldable(graph: Graph, params: Mapping[str, Any], node: Node | None, channels: int) -> bool:
    if node is None or node.op != "LayerNormalization" or node.domain:
        return False
    return all(owned(graph, params, name) and np.shape(params[name]) == (channels,) for name in node.inputs[1:] if name)


def rows(node: Node, weight: Any) -> np.ndarray:
    """The weight as [C, outputs], C the channels of the input; the taps of a kernel count as outputs."""
    value = np.asarray(weight, np.float64)
    if node.op == "Conv":
        return np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
    return value.T if node.attributes.get("transB", 0) else value


def scaled_rows(node: Node, weight: Any, factor: np.ndarray) -> np.ndarray:
    """The weight with the part that reads channel c multiplied by factor[c]."""
    value = np.asarray(weight, np.float64)
    axis = 1 if node.op == "Conv" or node.attributes.get("transB", 0) else 0
    shape = [1] * value.ndim
    shape[axis] = -1
    return (value * factor.reshape(shape)).astype(weight.dtype)


def smoothing(largest: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """s [C] from the largest absolute values of the activation's channels and of the weight's rows."""
    s = np.maximum(largest, SMALLEST) ** alpha / np.maximum(weight, SMALLEST) ** (1 - alpha)
    return np.clip(s, np.quantile(s, 0.1), max(LARGEST, np.quantile(s, 0.1)))


def noise(s: np.ndarray, largest: np.ndarray, power: np.ndarray, weights: list[np.ndarray]) -> float:
    """The error of rounding at the outputs when channel c is divided by s[c], up to a constant.

        activation: (max_c largest_c / s_c)^2 * sum over o, c of (s_c w_co)^2
        weight:     sum over o of (max_c |s_c w_co|)^2 * sum over c of power_c / s_c^2

    with one step for the activation and one for each output channel; power is the mean square of each channel.
    """
    step = (largest / s).max()
    total = 0.0
    for weight in weights:
        moved = weight * s[:, None]
        total += step**2 * (moved**2).sum() + (np.abs(moved).max(axis=0) ** 2).sum() * (power / s**2).sum()
    return float(total)


def divide(graph: Graph, params: dict[str, Any], group: Group, factor: np.ndarray) -> Graph:
    """The graph in which the readers of the group get the tensor divided by factor [C]."""
    if group.folds:
        for name in graph.producers[group.tensor].inputs[1:]:
            if name:
                params[name] = (np.asarray(params[name], np.float64) / factor).astype(params[name].dtype)
        return graph
    taken = {*tensor_names(graph), *params}
    smooth, constant = (unused_name(f"{group.tensor}.{end}", taken) for end in ("smooth", "smoothing"))
    weight = params[group.readers[0].inputs[1]]
    spread = factor.reshape(-1, *([1] * (weight.ndim - 2))) if group.axis == 1 else factor
    params[constant] = (1 / spread).astype(weight.dtype)
    name, version = unused_name(smooth, node_names(graph)), graph.opsets.get("", 17)
    inserted = Node("Mul", (group.tensor, constant), (smooth,), FrozenDict(), name=name, version=version)
    names = {each.name for each in group.readers}
    nodes: list[Node] = [inserted] if group.tensor in graph.inputs else []
    for node in graph.nodes:
        nodes.append(replace(node, inputs=(smooth, *node.inputs[1:])) if node.name in names else node)
        if group.tensor in node.outputs:
            nodes.append(inserted)
    return replace(graph, nodes=tuple(nodes))


class Sizes(NamedTuple):
    """How large each channel is: the largest absolute value of all, and the mean square in each sample, NaN where not seen."""

    largest: Any  # float32 [T, channels]
    power: Any  # float32 [T, capacity, channels]


@functools.cache
def channel_sizes(capacity: int, channels: int, axis: int) -> Observer:
    """`Sizes` of `channels` channels along `axis` of a sample, mean squares for the first `capacity` samples."""

    def init(count: int) -> Sizes:
        return Sizes(np.zeros((count, channels), np.float32), np.full((count, capacity, channels), np.nan, np.float32))

    def measure(tensors: Sequence[jax.Array], real: jax.Array) -> Sizes:
        largest, power = [], []
        for x in tensors:
            values = jax.vmap(functools.partial(positions_by_channels, axis=axis))(x)
            largest.append(jnp.where(real[:, None], jnp.abs(values).max(1), 0).max(0))
            power.append((values**2).mean(1))
        return Sizes(jnp.stack(largest), jnp.stack(power))

    def update(state: Sizes, measured: Sizes, index: jax.Array) -> Sizes:
        return Sizes(
            jnp.maximum(state.largest, measured.largest), state.power.at[:, index].set(measured.power, mode="drop")
        )

    def merge(a: Sizes, b: Sizes) -> Sizes:
        return Sizes(jnp.maximum(a.largest, b.largest), jnp.where(jnp.isnan(a.power), b.power, a.power))

    return Observer(init, measure, update, merge)
