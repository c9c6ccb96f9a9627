"""Gives each layer with weights a bias of its own: it is moved by itself, and kept in units of the layer's own products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxq.graph.ir import Graph, Node, tensor_names, unused_name
from jaxq.graph.linear import BIASED
from jaxq.placement.plan import read_copies


def own_biases(graph: Graph, params: Mapping[str, Any]) -> tuple[Graph, Mapping[str, Any]]:
    """Copies each bias that something else reads too, or that is an output: as many copies as layers that add it.

    Where only layers add it, the first of them keeps it.
    """
    places = list(bias_places(graph.wiring.nodes, params))
    others = Counter(graph.wiring.uses)
    others.subtract(node.inputs[index] for node, index in places)
    kept, taken = {name for name, count in others.items() if count}, {*tensor_names(graph), *params}
    edges: dict[tuple[str, int], str] = {}
    numbers: dict[str, Any] = dict(params)
    for node, index in places:
        name = node.inputs[index]
        if name in kept:
            edges[node.name, index] = copy = unused_name(f"{name}@{node.name}", taken)
            numbers[copy] = np.array(params[name])
        kept.add(name)
    return (read_copies(graph, edges, {}), numbers) if edges else (graph, params)


def bias_places(nodes: Sequence[Node], params: Mapping[str, Any]) -> Iterator[tuple[Node, int]]:
    """Where a param is added to the products of a layer: the third input, or that of an Add behind a MatMul."""
    products = {name for node in nodes if node.op == "MatMul" for name in node.outputs}
    for node in nodes:
        if node.op in BIASED and not node.domain:
            indices: tuple[int, ...] = (2,)
        elif node.op == "Add" and not products.isdisjoint(node.inputs):
            indices = (0, 1)
        else:
            continue
        yield from ((node, index) for index in indices if index < len(node.inputs) and node.inputs[index] in params)
