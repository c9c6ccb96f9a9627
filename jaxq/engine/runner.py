"""The one place where networks are run: compiled, on devices, and reduced over the samples of a batch.

    found = run(each, reduction, graphs, static, batch, numbers)

`each(networks, numbers, sample)` says what is computed of one sample: it calls one network or several side by side, with any tap
and carry, and returns arrays. A reduction says what becomes of that over the samples. Both are structure (functions of a module,
or frozen dataclasses that are called), as are the graphs; `numbers` are data, whose change compiles nothing: params, encodings,
scales, switches, and whatever else the tap needs. Where several devices share the work (`jaxq.engine.devices.over`), each gets
the same number of samples of every batch; XLA adds up what they find.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxq.engine.devices import divided, everywhere
from jaxq.engine.execute import execute, quantizing
from jaxq.engine.programs import compiled
from jaxq.graph.ir import FrozenDict, Graph, Literal
from jaxq.ops.evaluate import fit_for_jax

SAMPLES = "samples"  # the axis over which `each` may sum what it finds (`jax.lax.psum`)


class Batch(NamedTuple):
    """Samples of one shape, stacked: arrays [B, ...] with each sample's own axes behind B. One row of it is a sample.

    Attributes:
      inputs: input name -> array, without the inputs whose values are structure.
      number: int32 [B], which sample of the data each is.
      real: bool [B], False where the slot is padding.
      beside: what else belongs to each sample: tensors at a cut, what another network or a runtime gave.
    """

    inputs: dict[str, Any]
    number: Any = None
    real: Any = None
    beside: Any = None


@dataclass(frozen=True)
class Network:
    """A graph, or a part of one, with the inputs whose values are known: called, it runs one sample (`execute`)."""

    graph: Graph
    static: FrozenDict[str, Literal]

    def __call__(self, params: Mapping[str, Any], inputs: Mapping[str, Any], **how: Any) -> tuple[dict[str, Any], Any]:
        """The outputs, and the carry after the last tap; `how`: see `execute`."""
        fixed = {name: literal.array for name, literal in self.static.items()}
        return execute(self.graph, params, {**inputs, **fixed}, **how)


Each = Callable[[tuple[Network, ...], Any, Batch], Any]
Reduction = Callable[[Callable[[Any, Batch], Any], Any, Batch, Any], Any]


def run(
    each: Each,
    reduction: Reduction,
    graphs: Sequence[Graph],
    static: FrozenDict[str, Literal],
    batch: Batch,
    numbers: Any,
    state: Any = None,
) -> Any:
    """What the reduction makes of a batch.

    Args:
      each: (networks, numbers, sample) -> arrays.
      reduction: `per_sample`, `summed`, `Slopes`, `Folded`, `whole`, or another such function.
      graphs: of the networks that run on each sample, in the order in which `each` gets them.
      static: inputs whose values are known.
      batch: the samples.
      numbers: pytree of arrays.
      state: what a `Folded` has found so far; its memory is taken for the new one.
    """
    if batch.real is not None:  # else it is one feed, which nobody can divide
        batch = divided(batch)
    return _run(each, reduction, tuple(graphs), static, everywhere(numbers), batch, everywhere(state))


@compiled(static=4, donated=[2])
def _run(
    each: Each,
    reduction: Reduction,
    graphs: tuple[Graph, ...],
    static: FrozenDict[str, Literal],
    numbers: Any,
    batch: Batch,
    state: Any,
) -> Any:
    networks = tuple(Network(graph, static) for graph in graphs)
    return reduction(functools.partial(each, networks), numbers, batch, state)


# ------------------------------------------------------------------------------------------------------------ reductions


def whole(each: Callable[[Any, Batch], Any], numbers: Any, batch: Batch, state: Any) -> Any:
    """What is found of one feed as it is, whose arrays have the network's own batch axis, if any."""
    return each(numbers, batch)


@dataclass(frozen=True)
class PerSample:
    """What is found of each slot [B, ...], also of those that are padding.

    `axes` is a prefix of what `each` gives: 0, or None for what the samples have summed over SAMPLES themselves.
    """

    axes: Any = 0

    def __call__(self, each: Callable[[Any, Batch], Any], numbers: Any, batch: Batch, state: Any) -> Any:
        return jax.vmap(functools.partial(each, numbers), axis_name=SAMPLES, out_axes=self.axes)(batch)


per_sample = PerSample()


def summed(each: Callable[[Any, Batch], Any], numbers: Any, batch: Batch, state: Any) -> Any:
    """The sums over the samples that are real."""

    def total(found: jax.Array) -> jax.Array:
        real = batch.real.reshape(-1, *(1,) * (found.ndim - 1))
        return jnp.where(real, found, jnp.zeros((), found.dtype)).sum(0)

    return jax.tree.map(total, per_sample(each, numbers, batch, state))


@dataclass(frozen=True)
class Slopes:
    """(what a reduction gives, a number, and its derivatives by the first of the numbers)."""

    of: Reduction = summed

    def __call__(self, each: Callable[[Any, Batch], Any], numbers: Any, batch: Batch, state: Any) -> Any:
        learned, *others = numbers
        return jax.value_and_grad(lambda learned: self.of(each, (learned, *others), batch, state))(learned)


@dataclass(frozen=True)
class Folded:
    """The state after a batch: `update(state, found, batch)` with what is found of each slot."""

    update: Callable[[Any, Any, Batch], Any]

    def __call__(self, each: Callable[[Any, Batch], Any], numbers: Any, batch: Batch, state: Any) -> Any:
        return self.update(state, per_sample(each, numbers, batch, state), batch)


# ----------------------------------------------------------------------------------------------- what is often wanted


def outputs(networks: tuple[Network, ...], numbers: Any, sample: Batch) -> dict[str, Any]:
    """The outputs of a network; the numbers are its params, and encodings by which tensors are rounded."""
    params, encodings = numbers
    found, _ = networks[0](params, sample.inputs, tap=quantizing(encodings) if encodings else None)
    return {name: fit_for_jax(value, f"output {name!r}") for name, value in found.items()}


def share(sample: Batch) -> jax.Array:
    """The weight of a sample in a mean over those that are real; 0 of padding."""
    return sample.real.astype(jnp.float32) / jax.lax.psum(sample.real.astype(jnp.int32), SAMPLES).astype(jnp.float32)
