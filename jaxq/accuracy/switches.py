"""One graph in which every place that reads a quantized tensor can be switched on and off by itself.

Where several nodes read a tensor, one of them may go back to float and read the exact value while the others keep the rounded
one. So each of these places gets a name of its own for the tensor, and with it a quantizer whose `enabled` is data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxq.graph import FrozenDict, Graph, Node, tensor_names, unused_name
from jaxq.placement import Plan

Place = tuple[str, int]  # node name, input index


@dataclass(frozen=True)
class Switches:
    """Attributes:
    graph: the float graph, with an Identity for each name of its own.
    tensors: switch (a tensor of `graph`) -> the tensor of the float graph that it rounds.
    places: (node name, input index) -> the switch that the node reads there.
    whole: switches that round a tensor for everybody, since it is an output of the graph, too.
    """

    graph: Graph
    tensors: Mapping[str, str]
    places: Mapping[Place, str]
    whole: frozenset[str]

    def on(self, plan: Plan) -> frozenset[str]:
        """The switches that are on in a plan for the same float graph: its nodes read there what the plan quantizes."""
        reads = {
            (node.name, index): name for _, node in plan.graph.walk() for index, name in enumerate(node.inputs) if name
        }
        found = {switch for place, switch in self.places.items() if reads.get(place) in plan.activations}
        return frozenset(found | (self.whole & plan.activations.keys()))


def sources(graph: Graph, plan: Plan) -> dict[str, str]:
    """Quantized tensor of the plan -> the tensor of the float graph whose rounded value it is."""
    known = tensor_names(graph)
    copied = {node.outputs[0]: node.inputs[0] for _, node in plan.graph.walk() if node.outputs[0] not in known}
    return {name: copied.get(name, name) for name in plan.activations}


def add_switches(graph: Graph, plan: Plan) -> Switches:
    """The switches of a float graph, where `plan` is the fullest plan for it: what it leaves in float never is switched on."""
    places: dict[str, list[Place]] = {}
    outputs = set(graph.outputs)
    for _, node in graph.walk():
        outputs.update(name for sub in node.subgraphs for name in sub.outputs)
        for index, name in enumerate(node.inputs):
            if name and node.op not in ("Shape", "Size"):
                places.setdefault(name, []).append((node.name, index))
    taken = tensor_names(graph)
    tensors: dict[str, str] = {}
    at: dict[Place, str] = {}
    copies: dict[str, list[str]] = {}
    whole: set[str] = set()
    for name in sorted(set(sources(graph, plan).values())):
        readers = places.get(name, [])
        if name in outputs:
            tensors[name] = name
            whole.add(name)
        if name not in outputs and len(readers) == 1:
            tensors[name], at[readers[0]] = name, name
            continue
        for place in readers:
            switch = unused_name(f"{name}@{place[0]}", taken)
            tensors[switch], at[place] = name, switch
            copies.setdefault(name, []).append(switch)
    return Switches(_with_copies(graph, copies, at), tensors, at, frozenset(whole))


def _with_copies(graph: Graph, copies: Mapping[str, list[str]], at: Mapping[Place, str]) -> Graph:
    """The graph with `copies` made where their tensor is made, and each place reading its own."""
    nodes: list[Node] = []

    def copy(name: str) -> None:
        for new in copies.get(name, ()):
            nodes.append(Node("Identity", (name,), (new,), name=new, version=graph.opsets.get("", 17)))

    for name in graph.inputs:
        copy(name)
    for node in graph.nodes:
        inputs = tuple(at.get((node.name, index), name) for index, name in enumerate(node.inputs))
        attributes: dict[str, Any] = {
            key: _with_copies(value, copies, at) if isinstance(value, Graph) else value
            for key, value in node.attributes.items()
        }
        nodes.append(replace(node, inputs=inputs, attributes=FrozenDict(attributes)))
        for name in node.outputs:
            copy(name)
    return replace(graph, nodes=tuple(nodes))
