"""Gives the channels of a tensor similar ranges, so that one scale for the tensor serves all of them.

The factors go into the weights before and after, through activation functions that commute with positive factors. The function
of the float model does not change: behind a Clip, not for what stays within the extremes that were seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxq.engine.model import Model
from jaxq.graph.ir import Graph, Node
from jaxq.graph.linear import Linear, owned
from jaxq.numerics.observers import ChannelExtremes, Observer, channel_extremes

# What commutes with factors, channel by channel; a Pad does if it puts in zeros or values that are there.
PER_CHANNEL = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Pad", "Identity"})
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
BALANCES = 2.0 ** np.arange(-4.0, 4.5, 0.5)  # of the negative end of the common range to its positive end
LARGEST_FACTOR = 64.0  # of the widest channel's range over another's; beyond that a channel is as good as dead
# Of a channel that is always zero; a folded BatchNormalization reaches 1 / sqrt(1e-5) = 316.
LARGEST_DEAD_FACTOR = 4096.0
SMALLEST = 1e-30  # in place of zero under a fraction
HEADROOM = 1.5  # how far above the largest value that was seen the bound of a Clip stays
SWEEPS = 4  # over all pairs, where weights have one scale: each then depends on both of its neighbours


@dataclass(frozen=True)
class Pair:
    """A tensor between linear nodes: `before` makes it (through an activation function), all of `after` read it.

    `slope` is that of the activation function for negative values: 0 for Relu, alpha for LeakyRelu, one number a channel for
    PRelu, 1 for none. `bound` is the value at which a Clip cuts off, else infinite. `rounded` says whether the tensor is
    quantized before the activation function, too.
    """

    before: Linear
    after: tuple[Linear, ...]
    slope: tuple[float, ...]
    bound: float
    rounded: bool

    @property
    def tensor(self) -> str:
        """What `before` makes."""
        return self.before.node.outputs[0]

    @property
    def channels(self) -> int:
        return self.before.outputs


@dataclass(frozen=True)
class Equalization:
    """Divides each channel c of a tensor by s_c and multiplies the weights that read it by s_c.

        s_c = max(high_c / H, -low_c / L) ** strength

    where low_c and high_c are the extremes of channel c over the calibration data. H / L, the balance of the two ends of the
    range that all channels are brought to, and the strength are those for which the noise predicted at the output of the
    readers is least (`Noise`). Where a weight has one scale for all of its channels, s_c = (peak of row c before / peak of
    column c after) ** strength is tried as well, and the pairs are gone through several times. What reads a channel that is
    always zero is then made no larger than what reads the others (`dead_shrunk`).

    A Clip from 0 to a bound keeps its bound: a channel that reaches it keeps its factor, another one is enlarged until it
    nearly reaches it. (The paper takes the bound away, which changes the function.)

    The idea is that of cross-layer equalization (Nagel et al., arXiv:1906.04721, section 4.1, eq. 11) and of SmoothQuant (Xiao et
    al., arXiv:2211.10438, eq. 4). With one weight scale per output channel only the range of the activation and the
    input channels of its readers compete, and the negative side counts as much as the activation function lets through.

    Args:
      quantized: the names of the quantized activations.
      one_scale: the names of the weights that have one scale for all channels.
      clips: whether tensors behind a Clip are equalized, too; a network full of them takes some seconds more to compile.
      samples: how many samples the extremes are taken from. Factors need no more: the ranges themselves are found later.
    """

    quantized: frozenset[str]
    one_scale: frozenset[str] = frozenset()
    clips: bool = False
    samples: int = 64

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {pair.tensor: channel_extremes(pair.channels, 1) for pair in self.pairs(model)}

    def apply(self, model: Model, stats: Mapping[str, ChannelExtremes], samples: object = None) -> Model:
        params = dict(model.params)
        found = self.pairs(model)
        seen = {pair: stats[pair.tensor] for pair in found}
        total = {pair: np.ones(pair.channels) for pair in found}
        for _ in range(SWEEPS if self.one_scale else 1):
            for pair in found:
                noise = self.noise(pair, seen[pair], params)
                factor = best_factor(noise)
                if factor is None:
                    continue
                factor = np.maximum(total[pair] * factor, noise.least_factor) / total[pair]
                total[pair] = total[pair] * factor
                pair.before.scale_output(params, 1.0 / factor)
                for each in pair.after:
                    each.scale_input(params, factor)
                seen[pair] = ChannelExtremes(seen[pair].low / factor, seen[pair].high / factor)
        return model.replace(params=params)

    def noise(self, pair: Pair, seen: ChannelExtremes, params: Mapping[str, Any]) -> Noise:
        def weight(layer: Linear) -> np.ndarray:
            return np.asarray(params[layer.weight], np.float64)

        made_by = pair.before.rows(weight(pair.before)).reshape(pair.channels, -1)
        return Noise(
            seen.low,
            seen.high,
            np.asarray(pair.slope),
            pair.rounded,
            [each.connections(weight(each)) for each in pair.after],
            bound=pair.bound,
            one_scale=[each.weight in self.one_scale for each in pair.after],
            made_by=made_by if pair.before.weight in self.one_scale else None,
        )

    def pairs(self, model: Model) -> list[Pair]:
        found = pairs(model.graph, model.params, self.quantized)
        return [pair for pair in found if self.clips or not math.isfinite(pair.bound)]


class Noise:
    """The variance of rounding errors at the output of linear layers that read one tensor, up to a constant.

        activation:  step = (max_c high_c / s_c + max_c -low_c / s_c) / levels,   sum over o, c of (step * s_c * w_oc)^2
        weight:      step_o = max_c |s_c * w_oc| / (levels / 2),   sum over connected o, c of (step_o * x_c / s_c)^2

    with x_c ~ a third of the channel's largest value. Where the tensor is rounded before the activation function as well,
    that step, over the range with its whole negative side, counts too. A reader with one scale has the largest step_o for all;
    the weight before, if it has one scale, adds its step, max_c |w_c / s_c|, times the size of its input, to each channel.

    Args:
      low, high: [C], extremes of each channel before the activation function.
      slope, rounded, bound: see `Pair`.
      readers: weights [O, C, K], K the positions of the kernel; absent connections are zero.
      one_scale: whether each reader has one scale for all outputs.
      made_by: the weight before, [C, inputs], if it has one scale for all outputs.
    """

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        slope: float | np.ndarray,
        rounded: bool,
        readers: list[np.ndarray],
        levels: int = 255,
        *,
        bound: float = math.inf,
        one_scale: Sequence[bool] = (),
        made_by: np.ndarray | None = None,
    ):
        self.low, self.high = np.maximum(-low.astype(np.float64), 0), np.maximum(high.astype(np.float64), 0)
        self.slope, self.rounded, self.levels, self.bound = slope, rounded, levels, bound
        with np.errstate(invalid="ignore"):  # 0 times infinity; such tensors are left alone
            self.largest = np.minimum(np.maximum(self.high, slope * self.low), bound)
        self.energy = sum((weight**2).sum(axis=(0, 2)) for weight in readers)  # [C]
        self.peaks = [np.abs(weight).max(axis=2) for weight in readers]  # [O, C] each
        self.one_scale = one_scale or [False] * len(readers)
        self.made_by = made_by

    @property
    def dead(self) -> np.ndarray:
        """Which channels are always zero behind the activation function, bool [C]."""
        return self.largest <= 0

    @property
    def least_factor(self) -> np.ndarray:
        """The least factor that each channel may have in all, [C]."""
        return np.where(self.dead, 1.0 / LARGEST_DEAD_FACTOR, 1.0 / LARGEST_FACTOR)

    @property
    def rows(self) -> np.ndarray:
        """The largest absolute value of what makes each channel, if that has one scale, else one, [C]."""
        return np.ones_like(self.high) if self.made_by is None else np.abs(self.made_by).max(axis=1)

    @property
    def columns(self) -> np.ndarray:
        """The largest absolute value of what reads each channel, over all readers, [C]."""
        return np.max([peak.max(axis=0) for peak in self.peaks], axis=0)

    def __call__(self, factor: np.ndarray) -> float:
        """The noise when channel c is divided by factor[c]."""
        top, bottom = (np.minimum(self.high, self.bound) / factor).max(), (self.low / factor).max()
        after = (self.slope * self.low / factor).max()
        step = (top + after) ** 2 + self.rounded * (top + bottom) ** 2
        weighted = (factor**2 * self.energy).sum()
        total = step / self.levels**2 * weighted
        typical = (self.largest / factor / 3) ** 2
        for peak, one_scale in zip(self.peaks, self.one_scale, strict=True):
            steps = (peak * factor).max(axis=1) / (self.levels / 2)
            steps = np.full_like(steps, steps.max()) if one_scale else steps
            total += (steps[:, None] ** 2 * (peak > 0) * typical).sum()
        if self.made_by is not None:
            step = (self.rows / factor).max() / (self.levels / 2)
            total += step**2 * self.input_power() * weighted
        return float(total)

    def input_power(self) -> float:
        """The sum of squares of one input of the weight before, such that its outputs are as large as they are."""
        assert self.made_by is not None
        rows = (self.made_by**2).mean(axis=1)
        alive = (rows > 0) & (self.largest > 0)
        return float(np.median((self.largest[alive] / 3) ** 2 / rows[alive])) if alive.any() else 0.0


def best_factor(noise: Noise) -> np.ndarray | None:
    """The factors s [C] with the least noise; None if leaving the tensor alone is best."""
    if not (np.isfinite(noise.low).all() and np.isfinite(noise.high).all()) or noise.largest.max(initial=0.0) <= 0:
        return None
    unchanged = np.ones_like(noise.low)
    best, least = None, noise(unchanged)
    for candidate in (unchanged, *candidates(noise)):
        factor = dead_shrunk(noise, within_bound(noise, candidate))
        found = noise(factor)
        if found < least:
            best, least = factor, found
    return best


def candidates(noise: Noise) -> Iterator[np.ndarray]:
    """Factors worth trying; the largest of each is 1."""
    # Behind a Relu the negative side does not matter.
    sides = BALANCES if noise.rounded or np.any(noise.slope) else [np.inf]
    ranges = [np.maximum(np.minimum(noise.high, noise.bound), noise.low / balance) for balance in sides]
    if noise.made_by is not None or any(noise.one_scale):
        rows, columns = noise.rows, noise.columns if any(noise.one_scale) else np.ones_like(noise.high)
        balanced = np.sqrt(rows / np.maximum(columns, 1e-3 * columns.max(initial=SMALLEST)))
        ranges += [balanced, balanced * np.sqrt(ranges[0]), rows]
    alive = ~noise.dead
    for wanted in ranges:
        if wanted[alive].max(initial=0.0) > 0:
            ratio = np.maximum(wanted / wanted[alive].max(), 1.0 / LARGEST_FACTOR)
            ratio = np.where(alive, ratio, 1.0)  # a dead channel would only enlarge its bias
            yield from (ratio**strength for strength in STRENGTHS)


def dead_shrunk(noise: Noise, factor: np.ndarray) -> np.ndarray:
    """The factors, changed so that a channel that is always zero does not set the step of weights with one scale.

    What reads such a channel does nothing, and yet can be a hundred times what reads the others, where a BatchNormalization of
    no variance was folded into it. It is made no larger than that; nor does what makes the channel become larger.
    """
    if not any(noise.one_scale):
        return factor
    alive, columns, rows = ~noise.dead, noise.columns * factor, noise.rows / factor
    shrunk = columns[alive].max() / np.maximum(columns, max(columns[alive].max(), SMALLEST))
    if noise.made_by is not None:
        shrunk = np.maximum(shrunk, rows / np.maximum(rows, max(rows[alive].max(), SMALLEST)))
    return np.where(alive, factor, factor * np.maximum(shrunk, 1.0 / LARGEST_DEAD_FACTOR))


def within_bound(noise: Noise, factor: np.ndarray) -> np.ndarray:
    """The factors, changed so that a Clip at the bound cuts off what it did before, and nothing else that was seen."""
    if not math.isfinite(noise.bound):
        return factor
    room = noise.high * HEADROOM / noise.bound
    return np.where(room >= 1, 1.0, np.maximum(factor, room))


def pairs(graph: Graph, params: Mapping[str, Any], quantized: frozenset[str]) -> Iterator[Pair]:
    """Every quantized tensor whose channels can be scaled: linear node [-> activation function] -> linear nodes only."""
    for node in graph.nodes:
        linear = _linear(graph, params, node)
        if linear is None:
            continue
        name, readers = node.outputs[0], graph.consumers.get(node.outputs[0], ())
        function = None
        if len(readers) == 1 and readers[0][1] == 0 and name not in graph.outputs:
            function = activation(graph, params, readers[0][0], linear.outputs, len(linear.shape))
        if function is not None:
            name = readers[0][0].outputs[0]
        slope, bound = function or ((1.0,), math.inf)
        after = list(_readers(graph, params, name, linear.outputs))
        rounded = name != node.outputs[0] and node.outputs[0] in quantized
        if name in quantized and after and None not in after and not (rounded and math.isfinite(bound)):
            yield Pair(linear, tuple(each for each in after if each is not None), slope, bound, rounded)


def activation(
    graph: Graph, params: Mapping[str, Any], node: Node, channels: int, rank: int
) -> tuple[tuple[float, ...], float] | None:
    """Slope for negative values (one number, or one a channel) and upper bound of a function that commutes with factors."""

    def number(index: int, key: str, otherwise: float) -> Any:
        name = node.inputs[index] if index < len(node.inputs) else ""
        if not name:
            return np.float32(node.attributes.get(key, otherwise))
        return graph.constants[name].array if name in graph.constants else params.get(name, np.nan)

    if node.op == "Relu":
        return (0.0,), math.inf
    if node.op == "LeakyRelu" and node.attributes.get("alpha", 0.01) >= 0:
        return (float(node.attributes.get("alpha", 0.01)),), math.inf
    if node.op == "PRelu":
        slope = np.asarray(number(1, "", 0.0), np.float64)
        per_channel = (channels, *([1] * (rank - 2)))
        if slope.size == 1 or slope.shape in (per_channel, (1, *per_channel)):
            return (tuple(slope.ravel().tolist()), math.inf) if (slope >= 0).all() else None
    if node.op == "Clip":
        low, high = (np.asarray(number(*each), np.float64) for each in ((1, "min", -math.inf), (2, "max", math.inf)))
        if low.size == high.size == 1 and low.item() == 0 < high.item():
            return (0.0,), high.item()
    return None


def _linear(graph: Graph, params: Mapping[str, Any], node: Node) -> Linear | None:
    """A Conv or plain Gemm whose weight and bias are its own params."""
    linear = Linear.of(node, params) if node.op in ("Conv", "Gemm") else None
    if linear is None or not linear.is_unscaled:
        return None
    return linear if all(owned(graph, params, name) for name in node.inputs[1:] if name) else None


def _readers(graph: Graph, params: Mapping[str, Any], name: str, channels: int) -> Iterator[Linear | None]:
    """The linear nodes that read the tensor, through pooling; None for a reader that scaling would change."""
    if name in graph.outputs or name not in graph.consumers:
        yield None
    for reader, index in graph.consumers.get(name, ()):
        if index == 0 and reader.op in PER_CHANNEL and len(reader.outputs) == 1 and _keeps_channels(graph, reader):
            yield from _readers(graph, params, reader.outputs[0], channels)
        else:
            linear = _linear(graph, params, reader) if index == 0 else None
            yield linear if linear is not None and _takes(linear, channels) else None


def _takes(linear: Linear, channels: int) -> bool:
    """Whether input channel c of the layer is channel c of the tensor: a full or a depthwise convolution, or a Gemm."""
    return linear.inputs == channels and not linear.transposes_data and linear.groups in (1, channels)


def _keeps_channels(graph: Graph, node: Node) -> bool:
    """Whether channel c of the output is made of channel c of the input, and scales with it."""
    if node.op != "Pad":
        return True
    if len(node.inputs) > 3 and node.inputs[3]:  # chosen axes
        return False
    name = node.inputs[1] if len(node.inputs) > 1 else ""
    pads = graph.constants[name].array.tolist() if name in graph.constants else list(node.attributes.get("pads", ()))
    value = node.inputs[2] if len(node.inputs) > 2 else ""
    constant = graph.constants[value].array if value in graph.constants else node.attributes.get("value", 0.0)
    if len(pads) < 4 or (value and value not in graph.constants):
        return False
    zeros = node.attributes.get("mode", "constant") != "constant" or not np.any(constant)
    return zeros and pads[1] == pads[len(pads) // 2 + 1] == 0
