"""One graph in which every place that reads a quantized tensor can be switched on and off by itself; and which nodes go together.

Where several nodes read a tensor, one of them may go back to float and read the exact value while the others keep the rounded
one. So each of these places gets a name of its own for the tensor, and with it a quantizer whose `enabled` is data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxq.graph.ir import Graph, tensor_names, unused_name
from jaxq.placement.plan import Plan, read_copies

Place = tuple[str, int]  # node name, input index


@dataclass(frozen=True)
class Switches:
    """Attributes:
    graph: the float graph, with an Identity for each name of its own.
    tensors: switch (a tensor of `graph`) -> the tensor of the full plan whose quantizer it has.
    places: (node name, input index) -> the switch that the node reads there.
    whole: switches that round a tensor for everybody, since it is an output of the graph, too.
    """

    graph: Graph
    tensors: Mapping[str, str]
    places: Mapping[Place, str]
    whole: frozenset[str]

    def on(self, plan: Plan) -> frozenset[str]:
        """The switches that are on in a plan for the same float graph: its nodes read there what the plan quantizes."""
        read = reads(plan.graph)
        found = {switch for place, switch in self.places.items() if read.get(place) in plan.activations}
        return frozenset(found | (self.whole & plan.activations.keys()))

    def tensors_of(self, plan: Plan) -> dict[str, str]:
        """Quantized tensor of a plan for the same float graph -> the tensor of the full plan whose quantizer it has."""
        found = {name: name for name in self.whole if name in plan.activations}
        for place, name in reads(plan.graph).items():
            if name in plan.activations and place in self.places:
                found[name] = self.tensors[self.places[place]]
        return found


def reads(graph: Graph) -> dict[Place, str]:
    """What is read at each place of the graph and its subgraphs."""
    return {(node.name, index): name for _, node in graph.walk() for index, name in enumerate(node.inputs) if name}


def add_switches(graph: Graph, plan: Plan) -> Switches:
    """The switches of a float graph, where `plan` is the fullest plan for it: what it leaves in float never is switched on."""
    exact, rounded = reads(graph), reads(plan.graph)
    outputs = set(graph.outputs)
    for _, node in graph.walk():
        outputs.update(name for sub in node.subgraphs for name in sub.outputs)
    readers: dict[str, int] = {}
    for name in exact.values():
        readers[name] = readers.get(name, 0) + 1
    taken = tensor_names(graph)
    tensors: dict[str, str] = {}
    at: dict[Place, str] = {}
    edges: dict[Place, str] = {}
    copies: dict[str, str] = {}
    for place, name in exact.items():
        quantized = rounded.get(place, "")
        if quantized in plan.copies:
            edges[place] = quantized  # a param that has a second name for the quantized, or for the float readers
        if quantized not in plan.activations:
            continue
        if readers[name] == 1 and name not in outputs:
            tensors[name], at[place] = quantized, name
            continue
        switch = unused_name(f"{name}@{place[0]}", taken)
        tensors[switch], at[place], edges[place], copies[switch] = quantized, switch, switch, name
    whole = frozenset(name for name in outputs if name in plan.activations)
    tensors.update((name, name) for name in sorted(whole))
    return Switches(read_copies(graph, edges, copies), tensors, at, whole)


@dataclass(frozen=True)
class Layer:
    """Nodes that are treated alike, because they share a weight; mostly one."""

    name: str
    op: str
    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    inputs: frozenset[str]  # quantizer groups of the plan that its nodes read


def layers_of(plan: Plan) -> Iterator[Layer]:
    """The layers of a plan, in the order of the graph."""
    nodes = {node.name: node for _, node in plan.graph.walk()}
    quantized = {weight.name for weight in plan.weights}
    leader: dict[str, str] = {}  # weight -> first node that reads it
    members: dict[str, list[str]] = {}
    for name in plan.nodes:
        weights = [tensor for tensor in nodes[name].inputs if tensor in quantized]
        first = next((leader[weight] for weight in weights if weight in leader), name)
        leader.update(dict.fromkeys(weights, first))
        members.setdefault(first, []).append(name)
    groups = plan.activations
    for first, names in members.items():
        reads = [tensor for name in names for tensor in nodes[name].inputs]
        weights = [tensor for tensor in reads if tensor in quantized]
        inputs = frozenset(groups[tensor] for tensor in reads if tensor in groups)
        yield Layer(first, nodes[first].op, tuple(names), tuple(dict.fromkeys(weights)), inputs)
