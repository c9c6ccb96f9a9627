"""A graph in stages, one behind the other, so that what two candidates have in common is computed once.

Candidates that differ in one layer make the same tensors before that layer. Each stage is a compiled program of its own; a model
starts from the tensors that another one had between two stages, if up to there both have the same numbers.

A small model is one stage: to compile several would take longer than they save.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.engine.batching import single_feeds
from jaxq.engine.execute import quantizing
from jaxq.engine.model import Model
from jaxq.engine.partition import run_tail
from jaxq.engine.runner import Batch, Network, per_sample, run
from jaxq.engine.traced import Signature, Traced
from jaxq.graph.cut import Stage
from jaxq.graph.cut import stages as cut_in_stages
from jaxq.ops.cpu_memory import is_image

# With four, five eighths of the work are left where layers are measured one by one; however many, it is never less than half.
STAGES = 4
# Bytes of all activations of one sample, from which on a ranking saves more than it takes to compile several programs.
LARGE = 40 << 20


@dataclass(frozen=True)
class StagesRun:
    """A model's way through the stages with one batch.

    Attributes:
      model: whose numbers were used.
      outputs: name -> array [B, ...].
      between: name -> array [B, ...], of what stages read from those before; images are channels-last on CPU.
    """

    model: Model
    outputs: Mapping[str, Any]
    between: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in jax.tree.leaves([dict(self.outputs), dict(self.between)]))


def run_stages(model: Model, signature: Signature, batch: Batch, before: StagesRun | None = None) -> StagesRun:
    """Runs the compiled part of a model (`jaxq.engine.partition`; mostly all of it) on a batch.

    Args:
      model: the same program as that of `before`.
      signature: of each sample.
      batch: the samples.
      before: the way of another model with this batch; what the two have in common is taken from it.
    """
    _, params, encodings = model.program
    outputs: dict[str, Any] = {}
    between: dict[str, Any] = {}
    for stage in stages(model, model.traced(signature)):
        if before is not None and all(_same(model, before.model, name) for name in stage.names):
            outputs |= {name: before.outputs[name] for name in stage.outputs}
            between |= {name: before.between[name] for name in stage.handed_on}
            continue
        before = None
        numbers = {name: value for name, value in params.items() if name in stage.names}
        rounded = {name: value for name, value in encodings.items() if name in stage.names and name not in between}
        read = {name: between[name] for name in stage.graph.inputs if name in between}
        found, handed_on = run_stage(stage, signature, (numbers, rounded), batch._replace(beside=read))
        outputs |= found
        between |= handed_on
    return StagesRun(model, outputs, between)


def _same(model: Model, other: Model, name: str) -> bool:
    """Whether two models of one graph have the same numbers under a name."""
    both = ((model.params, other.params), (model.encodings, other.encodings))
    return all(same_numbers(mine.get(name), others.get(name)) for mine, others in both)


def same_numbers(one: Any, other: Any) -> bool:
    """Whether two arrays, or trees of them, hold the same."""
    return one is other or all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@dataclass(frozen=True)
class HandingOn:
    """What a stage gives for each sample: (outputs, what it hands on); the numbers are params and encodings.

    The arrays that enter and leave a program are in the order of their axes. That of convolutions spares turning them.
    """

    outputs: tuple[str, ...]
    handed_on: tuple[str, ...]

    def __call__(
        self, networks: tuple[Network, ...], numbers: Any, sample: Batch
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        params, encodings = numbers
        there = {name: jnp.moveaxis(each, -1, 1) if is_image(each) else each for name, each in sample.beside.items()}
        found, _ = networks[0](params, {**sample.inputs, **there}, tap=quantizing(encodings) if encodings else None)
        handed_on = {name: found[name] for name in self.handed_on}
        turned = {name: jnp.moveaxis(each, 1, -1) if is_image(each) else each for name, each in handed_on.items()}
        return {name: found[name] for name in self.outputs}, turned


def run_stage(stage: Stage, signature: Signature, numbers: Any, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
    """({output: [B, ...]}, {what is handed on: [B, ...]}) of the samples, each by itself; what the stage reads is beside them."""
    each = HandingOn(stage.outputs, stage.handed_on)
    found: tuple[dict[str, Any], dict[str, Any]] = run(
        each, per_sample, (stage.graph,), signature.static, batch, numbers
    )
    return found


def stages(model: Model, traced: Traced) -> tuple[Stage, ...]:
    """The stages of the compiled part of a model."""
    large = sum(each.size * each.dtype.itemsize for each in traced.activations.values()) >= LARGE
    head = model.laid_out(traced.head)
    return cut_in_stages(head, frozenset(traced.activations), frozenset(model.params), STAGES if large else 1)


def run_batch(model: Model, signature: Signature, batch: Batch) -> dict[str, np.ndarray]:
    """What the compiled part of a model (`jaxq.engine.partition`; mostly all of it) gives for each sample: {tensor: [B, ...]}."""
    found: dict[str, np.ndarray] = jax.device_get(run_stages(model, signature, batch).outputs)
    return found


def run_samples(model: Model, signature: Signature, batch: Batch) -> list[dict[str, Any]]:
    """The outputs of a model for each sample of a batch; what the host does behind the compiled part, it does one by one."""
    found = run_batch(model, signature, batch)
    rows = [jax.tree.map(lambda value, row=row: value[row], found) for row in np.flatnonzero(batch.real)]
    parts = model.traced(signature).parts
    if parts.tail is None:
        return rows
    feeds = single_feeds(model, signature, batch)
    return [run_tail(parts, model.params, model.encodings, feed, row) for feed, row in zip(feeds, rows, strict=True)]
