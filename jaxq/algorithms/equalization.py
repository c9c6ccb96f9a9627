"""Gives the channels of a tensor similar ranges, so that one scale for the tensor serves all of them.

The factors go into the weights before and after, through activation functions that commute with positive factors. The function
of the float model does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxq.fusion import owned, scale_output
from jaxq.graph import Graph, Node
from jaxq.model import Model
from jaxq.observers import ChannelExtremes, Observer, channel_extremes

PER_CHANNEL = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})  # commute, channel by channel
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
BALANCES = 2.0 ** np.arange(-4.0, 4.5, 0.5)  # of the negative end of the common range to its positive end
LARGEST_FACTOR = 64.0  # of the widest channel's range over another's; beyond that a channel is as good as dead


@dataclass(frozen=True)
class Pair:
    """A tensor between linear nodes: `before` makes it (through an activation function), all of `after` read it.

    `slope` is that of the activation function for negative values: 0 for Relu, alpha for LeakyRelu, 1 for none. `rounded` says
    whether the tensor is quantized before the activation function, too.
    """

    before: Node
    after: tuple[Node, ...]
    channels: int
    slope: float
    rounded: bool


@dataclass(frozen=True)
class Equalization:
    """Divides each channel c of a tensor by s_c and multiplies the weights that read it by s_c.

        s_c = max(high_c / H, -low_c / L) ** strength

    where low_c and high_c are the extremes of channel c over the calibration data. H / L, the balance of the two ends of the
    range that all channels are brought to, and the strength are those for which the noise predicted at the output of the
    readers is least (`Noise`).

    The idea is that of cross-layer equalization (Nagel et al., arXiv:1906.04721, section 4.1) and of SmoothQuant (Xiao et al.,
    arXiv:2211.10438, eq. 4). Here weights have a scale per output channel, so that only the range of the activation and the
    input channels of its readers compete, and the negative side counts as much as the activation function lets through.

    Args:
      quantized: the names of the quantized activations.
      samples: how many samples the extremes are taken from. Factors need no more: the ranges themselves are found later.
    """

    quantized: frozenset[str]
    samples: int = 64

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {pair.before.outputs[0]: channel_extremes(pair.channels, 1) for pair in self.pairs(model)}

    def apply(self, model: Model, stats: Mapping[str, ChannelExtremes], samples: object = None) -> Model:
        params = dict(model.params)
        for pair in self.pairs(model):
            seen = stats[pair.before.outputs[0]]
            readers = [
                input_channels(node, np.asarray(params[node.inputs[1]], np.float64), pair.channels)
                for node in pair.after
            ]
            factor = best_factor(Noise(seen.low, seen.high, pair.slope, pair.rounded, readers))
            if factor is None:
                continue
            scale_output(pair.before, params, 1.0 / factor)
            for node in pair.after:
                params[node.inputs[1]] = scaled_input(node, params[node.inputs[1]], factor)
        return model.replace(params=params)

    def pairs(self, model: Model) -> list[Pair]:
        return list(pairs(model.graph, model.params, self.quantized))


class Noise:
    """The variance of rounding errors at the output of linear layers that read one tensor, up to a constant.

        activation:  step = (max_c high_c / s_c + max_c -low_c / s_c) / levels,   sum over o, c of (step * s_c * w_oc)^2
        weight:      step_o = max_c |s_c * w_oc| / (levels / 2),   sum over connected o, c of (step_o * x_c / s_c)^2

    with x_c ~ a third of the channel's largest value. Where the tensor is rounded before the activation function as well,
    that step, over the range with its whole negative side, counts too.

    Args:
      low, high: [C], extremes of each channel before the activation function.
      slope, rounded: see `Pair`.
      readers: weights [O, C, K], K the positions of the kernel; absent connections are zero.
    """

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        slope: float,
        rounded: bool,
        readers: list[np.ndarray],
        levels: int = 255,
    ):
        self.low, self.high = np.maximum(-low.astype(np.float64), 0), np.maximum(high.astype(np.float64), 0)
        self.slope, self.rounded, self.levels = slope, rounded, levels
        with np.errstate(invalid="ignore"):  # 0 times infinity; such tensors are left alone
            self.largest = np.maximum(self.high, slope * self.low)
        self.energy = sum((weight**2).sum(axis=(0, 2)) for weight in readers)  # [C]
        self.peaks = [np.abs(weight).max(axis=2) for weight in readers]  # [O, C] each

    def __call__(self, factor: np.ndarray) -> float:
        """The noise when channel c is divided by factor[c]."""
        top, bottom = (self.high / factor).max(), (self.low / factor).max()
        step = (top + self.slope * bottom) ** 2 + self.rounded * (top + bottom) ** 2
        total = step / self.levels**2 * (factor**2 * self.energy).sum()
        typical = (self.largest / factor / 3) ** 2
        for peak in self.peaks:
            steps = (peak * factor).max(axis=1) / (self.levels / 2)
            total += (steps[:, None] ** 2 * (peak > 0) * typical).sum()
        return float(total)


def best_factor(noise: Noise) -> np.ndarray | None:
    """The factors s [C] with the least noise; None if leaving the tensor alone is best."""
    if not (np.isfinite(noise.low).all() and np.isfinite(noise.high).all()) or noise.largest.max(initial=0.0) <= 0:
        return None
    best, least = None, noise(np.ones_like(noise.low))
    sides = BALANCES if noise.rounded or noise.slope else [np.inf]  # the negative side does not matter behind a Relu
    for balance in sides:
        wanted = np.maximum(noise.high, noise.low / balance)
        ratio = np.maximum(wanted / wanted.max(), 1.0 / LARGEST_FACTOR)
        for strength in STRENGTHS:
            found = noise(ratio**strength)
            if found < least:
                best, least = ratio**strength, found
    return best


def input_channels(node: Node, weight: np.ndarray, channels: int) -> np.ndarray:
    """The weight of a Conv or Gemm as [O, C, K]; a depthwise one with its connections on the block diagonal folded to C rows.

    For a depthwise convolution the row of output channel o has one connection, to channel o // multiplier.
    """
    if node.op == "Gemm":
        return (weight if node.attributes.get("transB", 0) else weight.T)[:, :, None]
    flat = weight.reshape(weight.shape[0], weight.shape[1], -1)
    if node.attributes.get("group", 1) == 1:
        return flat
    spread = np.zeros((weight.shape[0], channels, flat.shape[2]))
    rows = np.arange(weight.shape[0])
    spread[rows, rows // (weight.shape[0] // channels)] = flat[:, 0]
    return spread


def scaled_input(node: Node, weight: Any, factor: np.ndarray) -> np.ndarray:
    """The weight with each input channel multiplied by its factor [C], in float64 and back."""
    value = np.asarray(weight, np.float64)
    if node.op == "Gemm":
        spread = factor[None, :] if node.attributes.get("transB", 0) else factor[:, None]
    elif node.attributes.get("group", 1) == 1:
        spread = factor.reshape(1, -1, *([1] * (value.ndim - 2)))
    else:
        spread = np.repeat(factor, value.shape[0] // len(factor)).reshape(-1, *([1] * (value.ndim - 1)))
    return (value * spread).astype(weight.dtype)


def pairs(graph: Graph, params: Mapping[str, Any], quantized: frozenset[str]) -> Iterator[Pair]:
    """Every quantized tensor whose channels can be scaled: linear node [-> activation function] -> linear nodes only."""
    for node in graph.nodes:
        if not _linear(graph, params, node):
            continue
        name, slope = node.outputs[0], 1.0
        readers = graph.consumers.get(name, ())
        if len(readers) == 1 and readers[0][0].op in ("Relu", "LeakyRelu") and name not in graph.outputs:
            activation = readers[0][0]
            slope = activation.attributes.get("alpha", 0.01) if activation.op == "LeakyRelu" else 0.0
            name = activation.outputs[0]
        channels = params[node.inputs[1]].shape[0 if node.op == "Conv" or node.attributes.get("transB", 0) else 1]
        after = list(_readers(graph, params, name, channels))
        if name in quantized and slope >= 0 and after and None not in after:
            rounded = name != node.outputs[0] and node.outputs[0] in quantized
            yield Pair(node, tuple(each for each in after if each is not None), channels, slope, rounded)


def _linear(graph: Graph, params: Mapping[str, Any], node: Node) -> bool:
    """A Conv or plain Gemm whose weight and bias are its own params."""
    if node.op not in ("Conv", "Gemm") or node.domain:
        return False
    if node.op == "Gemm" and not node.attributes.get("alpha", 1.0) == node.attributes.get("beta", 1.0) == 1.0:
        return False
    return all(owned(graph, params, name) for name in node.inputs[1:] if name)


def _readers(graph: Graph, params: Mapping[str, Any], name: str, channels: int) -> Iterator[Node | None]:
    """The linear nodes that read the tensor, through pooling; None for a reader that scaling would change."""
    if name in graph.outputs or name not in graph.consumers:
        yield None
    for reader, index in graph.consumers.get(name, ()):
        if index == 0 and reader.op in PER_CHANNEL and len(reader.outputs) == 1:
            yield from _readers(graph, params, reader.outputs[0], channels)
        elif index == 0 and _linear(graph, params, reader) and _takes(reader, params[reader.inputs[1]], channels):
            yield reader
        else:
            yield None


def _takes(node: Node, weight: Any, channels: int) -> bool:
    """Whether input channel c of the node is channel c of the tensor: a full or a depthwise convolution, or a Gemm."""
    if node.op == "Gemm":
        return (
            not node.attributes.get("transA", 0)
            and weight.shape[1 if node.attributes.get("transB", 0) else 0] == channels
        )
    return node.attributes.get("group", 1) in (1, channels)
