"""Moves the outliers of an activation's channels into the weights that read it, where that lessens the error of both."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.model import Model
from jaxq.graph.ir import FrozenDict, Graph, Node, node_names, tensor_names, unused_name
from jaxq.graph.linear import Linear, is_product, owned
from jaxq.numerics.observers import Observer, mean_over_samples, positions_by_channels

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
            weights = [rows(each, params[each.weight]) for each in group.readers]
            factor = self.factor(group, largest.astype(np.float64), power, weights)
            if factor is None:
                continue
            for each in group.readers:
                each.scale_input(params, factor)
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

    def alpha(self, linear: Linear) -> float | None:
        return self.matmul if is_product(linear.node) else self.convolution

    def groups(self, model: Model) -> list[Group]:
        return [
            group for group in groups(model.graph, model.params, self.ignored) if self.alpha(group.readers[0]) != OFF
        ]


@dataclass(frozen=True)
class Group:
    """The layers that read one tensor.

    `folds` says whether the LayerNormalization that makes the tensor can take up the division: nothing else reads it.
    """

    tensor: str
    readers: tuple[Linear, ...]
    folds: bool

    @property
    def axis(self) -> int:
        """The axis of its channels."""
        return self.readers[0].channel_axis

    @property
    def channels(self) -> int:
        return self.readers[0].inputs


def groups(graph: Graph, params: Mapping[str, Any], ignored: frozenset[str]) -> Iterator[Group]:
    """Every tensor that products with weights of their own read, as far as they read it along the same axis."""
    made = {name: node for node in graph.nodes for name in node.outputs}
    for tensor, places in graph.consumers.items():
        found = [_reader(graph, params, each) for each, index in places if index == 0 and each.name not in ignored]
        readers = [each for each in found if each is not None]
        if tensor in params or not readers:
            continue
        axis, channels = readers[0].channel_axis, readers[0].inputs
        readers = [each for each in readers if each.channel_axis == axis]
        alone = len(readers) == len(places) and tensor not in graph.outputs
        folds = alone and is_product(readers[0].node) and _foldable(graph, params, made.get(tensor), channels)
        yield Group(tensor, tuple(readers), folds)


def _reader(graph: Graph, params: Mapping[str, Any], node: Node) -> Linear | None:
    """The layer, if it has one weight of its own for all of its input channels."""
    linear = Linear.of(node, params) if node.op == "Conv" or is_product(node) else None
    if linear is None or not owned(graph, params, linear.weight):
        return None
    stacked = is_product(node) and len(linear.shape) != 2
    return None if linear.transposes_data or linear.groups != 1 or stacked else linear


def rows(linear: Linear, weight: Any) -> np.ndarray:
    """The weight as [C, outputs], C the channels of the input; the taps of a kernel count as outputs."""
    value = np.asarray(weight, np.float64)
    return linear.rows(value).swapaxes(0, 1).reshape(linear.inputs, -1)


def _foldable(graph: Graph, params: Mapping[str, Any], node: Node | None, channels: int) -> bool:
    if node is None or node.op != "LayerNormalization" or node.domain:
        return False
    return all(owned(graph, params, name) and np.shape(params[name]) == (channels,) for name in node.inputs[1:] if name)


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
    weight = params[group.readers[0].weight]
    spread = factor.reshape(-1, *([1] * (weight.ndim - 2))) if group.axis == 1 else factor
    params[constant] = (1 / spread).astype(weight.dtype)
    name, version = unused_name(smooth, node_names(graph)), graph.opsets.get("", 17)
    inserted = Node("Mul", (group.tensor, constant), (smooth,), FrozenDict(), name=name, version=version)
    names = {each.node.name for each in group.readers}
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
