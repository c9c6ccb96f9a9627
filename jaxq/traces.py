"""What is made when a model runs on its data, over all shapes and branches that occur there: found without running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxq.collect import traced_tensors
from jaxq.graph import FrozenDict, Graph, Literal, Node
from jaxq.model import Model, split_static
from jaxq.split import split


class Variant(NamedTuple):
    """Inputs for which one program is compiled: values of the static ones, shapes and dtypes of the others."""

    static: FrozenDict[str, Literal]
    inputs: FrozenDict[str, Any]  # jax.ShapeDtypeStruct


class Traces(NamedTuple):
    """What running a model makes, over all of some variants.

    Attributes:
      dtypes: tensor name -> dtype name, of every tensor that a tap sees wherever it is made.
      on_host: names of the nodes that the host runs behind the compiled part (`jaxq.split`) in any of them.
      made: names of all tensors, also of those that are made in loops and traced branches, where no tap sees them.
    """

    dtypes: Mapping[str, str]
    on_host: frozenset[str]
    made: frozenset[str]


def variants(model: Model, samples: Iterable[Mapping[str, Any]]) -> tuple[Variant, ...]:
    """Each variant in the samples once; of a graph without subgraphs, whose nodes run whatever the inputs are, the first.

    What is remembered is shapes, and values of static inputs: memory does not grow with the samples.
    """
    found: dict[Variant, None] = {}
    for feed in samples:
        static, inputs = split_static(model.graph, feed)
        shapes = {
            name: jax.ShapeDtypeStruct(np.shape(value), np.asarray(value).dtype) for name, value in inputs.items()
        }
        found[Variant(static, FrozenDict(shapes))] = None
        if not any(node.subgraphs for node in model.graph.nodes):
            break
    return tuple(found)


def traces(model: Model, chosen: Sequence[Variant]) -> Traces:
    """What the model makes in these variants.

    A tensor that is hidden in one of them (a loop of several turns, where another sample has one), or has another dtype, is not
    among `dtypes`: what is decided about it would not hold everywhere.
    """
    dtypes: dict[str, set[str]] = {}
    hidden: set[str] = set()
    on_host: set[str] = set()
    for static, inputs in chosen:
        shapes, unseen, _ = traced_tensors(model, static, inputs)
        for name, shape in shapes.items():
            dtypes.setdefault(name, set()).add(shape.dtype.name)
        hidden |= unseen
        on_host |= split(model.graph, model.params, static, inputs).host_nodes
    certain = {name: min(kinds) for name, kinds in dtypes.items() if len(kinds) == 1 and name not in hidden}
    return Traces(certain, frozenset(on_host), frozenset(dtypes) | hidden)


def untaken_nodes(graph: Graph, found: Traces) -> list[Node]:
    """The nodes in branches that none of the variants runs."""
    missing: dict[str, Node] = {}
    for _, node in graph.walk():
        if node.op != "If" or node.name in found.on_host:
            continue
        for branch in node.subgraphs:
            within = [inner for _, inner in branch.walk()]
            if found.made.isdisjoint(name for inner in within for name in inner.outputs):
                missing |= {inner.name: inner for inner in within}
    return list(missing.values())
