"""Moves the biases so that rounding does not shift the mean of any channel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.algorithms.biases import moved_biases, record
from jaxq.engine.batching import batches
from jaxq.engine.execute import shared
from jaxq.engine.model import Model
from jaxq.engine.runner import SAMPLES, Batch, Network, PerSample, run, share
from jaxq.engine.traced import Signature
from jaxq.graph.ir import Graph
from jaxq.graph.linear import own_bias
from jaxq.numerics.distance import distance, is_float
from jaxq.numerics.observers import Observer, positions_by_channels
from jaxq.numerics.quantizer import SMALLEST_SCALE, QuantParams, fake_quantize, fake_quantize_array
from jaxq.ops.cpu_memory import materialized


@dataclass(frozen=True)
class Site:
    """A biased linear output: the mean over all but `axis` of tensor `output` is set by adding to the param `bias` [C]."""

    output: str
    bias: str
    axis: int


@dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """Corrects every bias from a few samples, each layer seeing the corrected errors of those before it.

    A batch of samples runs through the float network and then through the quantized one, by the same compiled program. The second
    time the mean of each channel of a biased linear output is moved, before it goes on, by what is missing in the batches so far:

        shift_c = mean over the samples so far of (mean of float_c - mean of quantized_c),    bias_c <- bias_c + shift_c

    Then samples that were kept apart run with and without the shifts: what brings their outputs nearer to those of the float
    network is kept (`kept`). Where the mean of a channel is that of a few huge values (of the attention sinks of a transformer,
    or of padding), moving it for all positions costs more than it mends.

    So one pass does what sequential correction (Nagel et al., arXiv:1906.04721, section 4.2; BiasCorrection of NNCF and POT)
    does layer by layer. Unlike there, activations are rounded as well, and a bias that is zero or was absent is corrected too.

    Args:
      sites: where; see `bias_sites`.
      samples: at most so many are used to find the shifts.
      batch: samples between two updates of the shifts. Part of the method, not of its speed: it is the same on every device.
      checks: samples on which the outputs are compared, behind the others: at most so many, and a quarter of few; 0: none.
      threshold: a layer whose largest shift is above so many times its largest bias or mean output stays as it is.
    """

    sites: tuple[Site, ...]
    samples: int = 32
    batch: int = 4
    checks: int = 8
    threshold: float = 1000.0

    def needs(self, model: Model) -> Mapping[str, Observer]:
        return {}

    def apply(
        self,
        model: Model,
        stats: Mapping[str, Any],
        samples: Iterable[Mapping[str, Any]],
        known: FloatNetwork | None = None,
    ) -> Model:
        """See `Algorithm`; `known` keeps what the float network gave, for further calls with its params and these samples."""
        if not self.sites or all(map(is_fine, model.encodings.values())):
            return model
        taken = itertools.islice(samples, self.samples + self.checks)
        first = [jax.tree.map(np.array, dict(feed)) for feed in taken]  # copies: a loader may refill its buffer
        apart = min(self.checks, max(len(first) - self.samples, len(first) // 4))
        walks = TwoNetworks(self, model, known or FloatNetwork())
        exact = missing = Sums({site.output: np.zeros(np.size(model.params[site.bias])) for site in self.sites})
        for signature, batch in batches(model, first[: len(first) - apart], self.batch):
            wanted = walks.exact(signature, batch)
            found = walks.moved(signature, batch, wanted, missing)
            exact, missing = exact.plus(wanted), missing.plus(wanted.minus(found))
        moved = moved_biases(model.params, self.by_bias(missing), self.by_bias(exact), self.threshold)
        names = [site.bias for site in self.sites if moved[site.bias] is not model.params[site.bias]]
        unseen = list(batches(model, first[len(first) - apart :] if apart else first[: self.checks], self.batch))

        def noise(chosen: Sequence[str]) -> float:
            return walks.noise(unseen, {name: moved[name] for name in chosen})

        chosen = frozenset(kept(names, noise) if unseen else names)
        params = {name: moved[name] if name in chosen else value for name, value in model.params.items()}
        return model.replace(
            params=params, metadata=model.metadata | record(chosen, [site.bias for site in self.sites])
        )

    def by_bias(self, sums: Sums) -> dict[str, np.ndarray]:
        """The mean at each site, under the name of its bias."""
        means = sums.means()
        return {site.bias: means[site.output] for site in self.sites}


FINE = 2**15 - 1  # levels of a grid, from which on there is nothing to correct
GROUPS = 4  # into which the layers are divided, one behind the other
CLEAR = 0.7  # of the error: below, all shifts are kept without a look at parts of them
GAIN = 0.98  # of the error: what taking back some of the shifts must reach


def kept(names: Sequence[str], noise: Callable[[Sequence[str]], float]) -> Sequence[str]:
    """The biases, in the order of the network, whose shifts bring the outputs nearer to those of the float network.

    All of them, if that is clear. Else it is decided for a group of layers at a time, from the better start: all shifts, which
    are taken back from the last group on, or none, which are given from the first group on. A group counts if the error falls.

    Args:
      names: biases that would be moved.
      noise: the error of the outputs when only these are.
    """
    without, best = noise(()), noise(names)
    if not names or best < CLEAR * without:
        return names
    groups = [list(each) for each in np.array_split(np.array(names, object), min(GROUPS, len(names)))]
    give = without < best
    chosen: Sequence[str] = () if give else names
    best = min(best, without)
    for group in groups if give else reversed(groups):
        tried = [
            name
            for name in names
            if (name in chosen or name in group if give else name in chosen and name not in group)
        ]
        error = noise(tried)
        if error < GAIN * best:
            chosen, best = tried, error
    return chosen


def is_fine(encoding: QuantParams) -> bool:
    """Whether a grid has so many levels that its rounding moves no mean."""
    return encoding.mantissa is None and float(encoding.qmax) - float(encoding.qmin) >= FINE


@dataclass(frozen=True)
class Sums:
    """Sums over samples, at each site, of one number for each channel: of the mean over its positions."""

    total: Mapping[str, np.ndarray]  # float64 [C]
    count: int = 0  # samples

    def plus(self, other: Sums) -> Sums:
        return Sums({name: each + other.total[name] for name, each in self.total.items()}, self.count + other.count)

    def minus(self, other: Sums) -> Sums:
        """The sums of the differences, sample by sample."""
        return Sums({name: each - other.total[name] for name, each in self.total.items()}, self.count)

    def means(self) -> dict[str, np.ndarray]:
        return {name: each / max(self.count, 1) for name, each in self.total.items()}


# What the samples are, their numbers, and which of them are real.
BatchKey = tuple[Signature, bytes, bytes]
Outputs = dict[str, np.ndarray]  # name -> [B, ...]


@dataclass(frozen=True)
class FloatNetwork:
    """What the float network gave on the batches so far.

    Attributes:
      sums: at the sites, of the batches from which the shifts are found.
      outputs: of the few on which they are checked; those of all batches would take memory that nobody needs.
      rounded: its params, each with the encoding by which it was rounded last.
    """

    sums: dict[BatchKey, Sums] = field(default_factory=dict)
    outputs: dict[BatchKey, Outputs] = field(default_factory=dict)
    rounded: dict[str, tuple[bytes, jax.Array]] = field(default_factory=dict)


class TwoNetworks:
    """The float and the quantized network, as calls of one compiled program."""

    def __init__(self, step: BiasCorrection, model: Model, known: FloatNetwork):
        self.known = known
        self.model, (_, self.params, encodings) = model, model.program
        self.weights, self.encodings = rounded_params(self.params, encodings, known.rounded)
        self.off = {name: switched_off(encodings[name]) for name in self.encodings}
        self.sites = step.sites
        # Targets that move nothing.
        self.still = {site.output: np.zeros(np.size(model.params[site.bias]), np.float32) for site in step.sites}

    def exact(self, signature: Signature, batch: Batch) -> Sums:
        """What the float network gives at the sites."""
        key = batch_key(signature, batch)
        if key not in self.known.sums:
            self.known.sums[key] = self._float(signature, batch)[0]
        return self.known.sums[key]

    def exact_outputs(self, signature: Signature, batch: Batch) -> Outputs:
        """The outputs of the float network."""
        key = batch_key(signature, batch)
        if key not in self.known.outputs:
            self.known.outputs[key] = self._float(signature, batch)[1]
        return self.known.outputs[key]

    def moved(self, signature: Signature, batch: Batch, wanted: Sums, missing: Sums) -> Sums:
        """What the quantized network gives at the sites, where each is then moved by the mean of what is missing by now.

        That is (missing + wanted - found) / samples, of which only `found` is not known before.
        """
        count = missing.count + wanted.count
        targets = {
            name: ((each + wanted.total[name]) / count).astype(np.float32) for name, each in missing.total.items()
        }
        return self._walk(signature, batch, self.weights, self.encodings, targets, wanted.count / count)[0]

    def outputs(self, signature: Signature, batch: Batch, biases: Mapping[str, Any]) -> Outputs:
        """The outputs of the quantized network with these biases."""
        return self._walk(signature, batch, {**self.weights, **biases}, self.encodings, self.still, 0.0)[1]

    def noise(self, data: Sequence[tuple[Signature, Batch]], biases: Mapping[str, Any]) -> float:
        """How far the outputs of the quantized network with these biases are from those of the float network."""
        return sum(
            relative_noise(self.exact_outputs(signature, batch), self.outputs(signature, batch, biases), batch.real)
            for signature, batch in data
        )

    def _float(self, signature: Signature, batch: Batch) -> tuple[Sums, Outputs]:
        return self._walk(signature, batch, self.params, self.off, self.still, 0.0)

    def _walk(
        self,
        signature: Signature,
        batch: Batch,
        params: Mapping[str, Any],
        encodings: Mapping[str, QuantParams],
        targets: Mapping[str, np.ndarray],
        part: float,
    ) -> tuple[Sums, Outputs]:
        """The sums at the sites before anything is moved there (see `Means`), and the outputs."""
        head = self.model.laid_out(self.model.traced(signature).head)
        numbers = (params, encodings, targets, np.float32(part))
        means, outputs = jax.device_get(
            run(Means(self.sites), PerSample((None, 0)), (head,), signature.static, batch, numbers)
        )
        count = int(batch.real.sum())
        return Sums({name: np.asarray(each, np.float64) * count for name, each in means.items()}, count), outputs


def batch_key(signature: Signature, batch: Batch) -> BatchKey:
    """What tells a batch from others of the same data."""
    return signature, batch.number.tobytes(), batch.real.tobytes()


def relative_noise(wanted: Mapping[str, Any], found: Mapping[str, Any], real: np.ndarray) -> float:
    """The sum of the distances of all float outputs (`jaxq.numerics.distance`), taken over the samples that are real."""
    floats = {name: each for name, each in wanted.items() if is_float(each)}
    return sum(distance(each[real], found[name][real]) for name, each in floats.items())


def rounded_params(
    params: Mapping[str, jax.Array], encodings: Mapping[str, QuantParams], known: dict[str, tuple[bytes, jax.Array]]
) -> tuple[dict[str, jax.Array], dict[str, QuantParams]]:
    """The params after rounding, and how activations are rounded. Rounding params once keeps that out of what is compiled.

    Those in `known` that were rounded in the same way are taken from there, the others put in.
    """
    weights, others = dict(params), {}
    for name, each in encodings.items():
        if name in params:
            how = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(each))
            if name not in known or known[name][0] != how:
                known[name] = how, jax.device_put(fake_quantize_array(np.asarray(params[name]), each))
            weights[name] = known[name][1]
        elif each.mantissa is not None:
            others[name] = each
        else:
            bounds = {key: np.float32(getattr(each, key)) for key in ("qmin", "qmax", "lowest")}
            others[name] = replace(each, **bounds) if np.asarray(each.enabled) else switched_off(each)
    return weights, others


def switched_off(params: QuantParams) -> QuantParams:
    """The grid of steps at least a million times finer, without bounds, in arrays of the same shapes.

    A switch in the program (`enabled`), which floating-point grids have here, would make it half as long again to compile.
    """
    if params.mantissa is not None:
        return replace(params, enabled=np.bool_(False))
    # powers of two, so that nothing else is rounded; finer ones would overflow where a mask holds the lowest float
    scale = np.exp2(np.floor(np.log2(np.asarray(params.scale))) - 20).astype(np.float32)
    zero_point = np.zeros_like(params.zero_point)
    bounds = {"qmin": np.float32(-np.inf), "qmax": np.float32(np.inf), "lowest": np.float32(np.nan)}
    return QuantParams(np.maximum(scale, SMALLEST_SCALE), zero_point, **bounds)


@dataclass(frozen=True)
class Means:
    """Of each sample: (the means over all samples [C] at the sites, before each is moved by target - part * mean; the outputs).

    The numbers: params, encodings, targets and the part.
    """

    sites: tuple[Site, ...]

    def __call__(
        self, networks: tuple[Network, ...], numbers: Any, sample: Batch
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        params, encodings, targets, part = numbers
        axes = {site.output: site.axis for site in self.sites}
        stored = shared(networks[0].graph)
        weight = share(sample)
        means: dict[str, jax.Array] = {}

        def tap(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
            if name in axes:
                value = value if name in stored else materialized(value)
                means[name] = jax.lax.psum(mean_of_channels(value, axes[name]) * weight, SAMPLES)
                shift = targets[name] - part * means[name]
                value = value + jnp.expand_dims(shift, other_axes(value.ndim, axes[name])).astype(value.dtype)
            return (rounded(value, encodings[name]) if name in encodings else value), carry

        outputs, _ = networks[0](params, sample.inputs, tap=tap)
        return means, {name: value for name, value in outputs.items() if isinstance(value, jax.Array)}


def rounded(x: jax.Array, params: QuantParams) -> jax.Array:
    """`fake_quantize` by a multiplication: values next to a tie may fall on either side, which no mean over many notices."""
    if params.mantissa is not None:
        return fake_quantize(x, params)
    numbers = (params.scale, params.zero_point, params.qmin, params.qmax)
    scale, zero, low, high = (jnp.asarray(each, jnp.float32) for each in numbers)
    grid = jnp.round(x.astype(jnp.float32) * (1 / scale)) + zero
    return ((jnp.clip(grid, low, high) - zero) * scale).astype(x.dtype)


def mean_of_channels(x: jax.Array, axis: int) -> jax.Array:
    """The mean of each channel over all positions, float32 [C]; 0 where there are none."""
    table = positions_by_channels(x, axis)
    return table.mean(0) if len(table) else table.sum(0)


def other_axes(rank: int, axis: int) -> tuple[int, ...]:
    """All axes of a tensor but one."""
    return tuple(each for each in range(rank) if each != axis % rank)


def bias_sites(graph: Graph, params: Mapping[str, Any], nodes: Iterable[str]) -> tuple[Site, ...]:
    """The biases of the named nodes that can be moved: those of Conv and Gemm, and the Add of a vector behind a MatMul.

    Left alone: a bias that several nodes share or that is multiplied by a beta, and one in a subgraph.
    """
    chosen, found = set(nodes), []
    for node in graph.nodes:
        bias = own_bias(graph, params, node) if node.name in chosen else None
        if bias is not None:
            found.append(Site(bias.output, bias.name, bias.axis))
    return tuple(found)
