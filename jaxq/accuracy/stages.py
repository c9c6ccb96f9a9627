"""A graph in stages, one behind the other, so that what two candidates have in common is computed once.

Candidates that differ in one layer make the same tensors before that layer. Each stage is a compiled program of its own; a model
starts from the tensors that another one had between two stages, if up to there both have the same numbers.

A small model is one stage: to compile several would take longer than they save.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.collect import Batch, compiled_part, tensor_shapes
from jaxq.execute import execute, quantizing
from jaxq.graph import FrozenDict, Graph, Literal, Node, captures, tensor_names
from jaxq.model import Model
from jaxq.ops.cpu_memory import is_image
from jaxq.programs import compiled
from jaxq.quantizer import QuantParams

# With four, five eighths of the work are left where layers are measured one by one; however many, it is never less than half.
STAGES = 4
# Bytes of all activations of one sample, from which on a ranking saves more than it takes to compile several programs.
LARGE = 40 << 20


@dataclass(frozen=True)
class Walk:
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


def walk(model: Model, static: FrozenDict[str, Literal], batch: Batch, before: Walk | None = None) -> Walk:
    """Runs the compiled part of a model (`jaxq.split`; mostly all of it) on a batch.

    Args:
      model: the same program as that of `before`.
      static: inputs whose values are known.
      batch: the others.
      before: the way of another model with this batch; what the two have in common is taken from it.
    """
    _, params, encodings = model.program
    outputs: dict[str, Any] = {}
    between: dict[str, Any] = {}
    for stage in stages(model, static, batch):
        if before is not None and all(_same(model, before.model, name) for name in stage.names):
            outputs |= {name: before.outputs[name] for name in stage.outputs}
            between |= {name: before.between[name] for name in stage.handed_on}
            continue
        before = None
        numbers = {name: value for name, value in params.items() if name in stage.names}
        rounded = {name: value for name, value in encodings.items() if name in stage.names and name not in between}
        read = {name: between[name] for name in stage.graph.inputs if name in between}
        found, handed_on = run_stage(stage, static, numbers, rounded, dict(batch.inputs), read)
        outputs |= found
        between |= handed_on
    return Walk(model, outputs, between)


def _same(model: Model, other: Model, name: str) -> bool:
    """Whether two models of one graph have the same numbers under a name."""
    for mine, others in ((model.params, other.params), (model.encodings, other.encodings)):
        if mine.get(name) is not others.get(name):
            pairs = zip(jax.tree.leaves(mine.get(name)), jax.tree.leaves(others.get(name)), strict=True)
            if not all(np.array_equal(a, b) for a, b in pairs):
                return False
    return True


class Stage(NamedTuple):
    """Some consecutive nodes of a graph.

    Attributes:
      graph: they, and what makes the values that are known while tracing. Its inputs are inputs of the whole, and what stages
        before handed on.
      outputs: of the whole, that it makes.
      handed_on: what it makes for later stages.
      names: of all tensors in it.
    """

    graph: Graph
    outputs: tuple[str, ...]
    handed_on: tuple[str, ...]
    names: frozenset[str]


@compiled(static=2)
def run_stage(
    stage: Stage,
    static: FrozenDict[str, Literal],
    params: Mapping[str, Any],
    encodings: Mapping[str, QuantParams],
    inputs: Mapping[str, Any],
    between: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs samples [B, ...], each by itself: ({output: [B, ...]}, {what is handed on: [B, ...]})."""
    fixed = {name: literal.array for name, literal in static.items()}

    def one(sample: Mapping[str, Any], read: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        # The arrays that enter and leave a program are in the order of their axes. That of convolutions spares turning them.
        there = {name: jnp.moveaxis(value, -1, 1) if is_image(value) else value for name, value in read.items()}
        found = execute(
            stage.graph, params, {**sample, **there, **fixed}, tap=quantizing(encodings) if encodings else None
        )[0]
        handed_on = {name: found[name] for name in stage.handed_on}
        turned = {name: jnp.moveaxis(value, 1, -1) if is_image(value) else value for name, value in handed_on.items()}
        return {name: found[name] for name in stage.outputs}, turned

    return jax.vmap(one)(inputs, between)


def stages(model: Model, static: FrozenDict[str, Literal], batch: Batch) -> tuple[Stage, ...]:
    """The stages of the compiled part of a model, for such a batch."""
    graph, params, _ = model.program
    one = {name: jax.ShapeDtypeStruct(value.shape[1:], value.dtype) for name, value in batch.inputs.items()}
    shapes = tensor_shapes(model, static, one)
    made = {name: each for name, each in shapes.items() if name not in params}
    large = sum(each.size * each.dtype.itemsize for each in made.values()) >= LARGE
    head = compiled_part(graph, params, static, batch)
    return cut(head, frozenset(made), frozenset(params), STAGES if large else 1)


@functools.lru_cache(maxsize=16)
def cut(graph: Graph, traced: frozenset[str], params: frozenset[str], count: int) -> tuple[Stage, ...]:
    """Stages with about the same number of nodes that read params.

    Args:
      graph: the whole.
      traced: the tensors that are computed. All others are known while tracing, and made again in each stage that reads them.
      params: names of the params.
      count: of stages; there are fewer if there are fewer such nodes.
    """
    layers = [place for place, node in enumerate(graph.nodes) if params.intersection(node.inputs)]
    count = min(count, max(len(layers), 1))
    # Right behind a layer: what rounds the input of the next one then belongs to the stage of the next one.
    ends = (layers[len(layers) * stage // count - 1] + 1 for stage in range(1, count))
    places = sorted({0, *ends, len(graph.nodes)})
    found: list[Stage] = []
    needed: set[str] = set()  # by later stages
    for start, end in reversed(list(itertools.pairwise(places))):
        made = dict.fromkeys(name for node in graph.nodes[start:end] for name in node.outputs if name in traced)
        if end == len(graph.nodes):  # also makes what is an input, or known
            earlier = {name for node in graph.nodes[:start] for name in node.outputs if name in traced}
            outputs = tuple(name for name in graph.outputs if name not in earlier)
        else:
            outputs = tuple(name for name in graph.outputs if name in made)
        handed_on = tuple(name for name in made if name in needed)
        part = _part(graph, start, end, dict.fromkeys((*outputs, *handed_on)), traced)
        needed.update(part.inputs)
        found.append(Stage(part, outputs, handed_on, frozenset(tensor_names(part))))
    return tuple(reversed(found))


def _part(graph: Graph, start: int, end: int, outputs: Iterable[str], traced: frozenset[str]) -> Graph:
    """The nodes from `start` to `end`, and what makes the known values that they read."""
    nodes: list[Node] = []
    read = set(outputs)
    for place, node in reversed(list(enumerate(graph.nodes[:end]))):
        known = traced.isdisjoint(node.outputs) and not read.isdisjoint(node.outputs)
        if place >= start or known:
            nodes.append(node)
            read.update(node.inputs, captures(node))
    read.difference_update(name for node in nodes for name in node.outputs)
    earlier = [name for node in graph.nodes[:start] for name in node.outputs if name in read]
    inputs = (*(name for name in graph.inputs if name in read), *earlier)
    return replace(graph, nodes=tuple(reversed(nodes)), inputs=inputs, outputs=tuple(outputs))
