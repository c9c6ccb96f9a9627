"""Recurrent cells that are written out: the arithmetic between their layers, whose errors a state carries from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxq.graph.clamps import clip_bounds
from jaxq.graph.ir import Graph, Node, captures, graphs
from jaxq.ops.carriers import CARRYING

GATES = frozenset({"Sigmoid", "HardSigmoid"})
SQUASHES = frozenset({"Tanh", "Softsign", "Relu", "HardSigmoid", "Sigmoid"})
ARITHMETIC = frozenset({"Add", "Sub", "Sum", "Mul", "Neg", "Clip"}) | SQUASHES
JOINS = frozenset({"Concat"})
FILLS = frozenset({"ConstantOfShape"})


@dataclass(frozen=True)
class Update:
    """new = gate * state + other: an addition of which a summand is a gated state."""

    node: Node
    state: str
    graph: Graph


class Cells:
    """Finds the cells of a graph, in branches and loops too.

    A cell adds something to its gated state (LSTM, GRU, and what is like them). That it is a state and no other tensor is known
    by where it comes from and goes: an input of the graph, or of a loop's body, whose new value is an output of it; or the new
    value of a cell before it. A gate that is made of the gated tensor alone (SiLU) makes no cell.
    """

    def __init__(self, graph: Graph, values: Mapping[str, Any]):
        self.values = values
        self.within = [(inner, node) for inner, node in graph.walk()]
        self.producer, self.readers = graph.wiring.producers, graph.wiring.readers
        self.inputs = {name for inner in graphs(graph) for name in inner.inputs}

    def nodes(self) -> frozenset[str]:
        """The names of the nodes that compute the cells, without their layers with weights."""
        found: set[str] = set()
        for update in self.cells():
            roots = [update.node, *self.outputs_of(update), *self.gated(update.state)]
            for root in roots:
                found.update(self.arithmetic(root))
        return frozenset(found)

    def cells(self) -> list[Update]:
        """The updates of which it is known that they are those of a state."""
        updates = [update for graph, node in self.within for update in self.updates(graph, node)]
        made = {update.node.outputs[0] for update in updates}
        carried = {
            update.state for update in updates if update.state in made
        }  # new states that another update takes up
        cells: dict[str, Update] = {}
        while True:
            new = [
                each
                for each in updates
                if each.node.name not in cells
                and (
                    any(each.state == cell.node.outputs[0] for cell in cells.values())
                    or (self.is_start(each.state) and each.node.outputs[0] in carried)
                    or (each.state in each.graph.inputs and self.is_fed_back(each))
                )
            ]
            if not new:
                return list(cells.values())
            cells.update((each.node.name, each) for each in new)

    def updates(self, graph: Graph, node: Node) -> Iterator[Update]:
        """Every way to read a node as the update of a state."""
        if node.op not in ("Add", "Sub", "Sum") or node.domain or len(node.inputs) < 2:
            return
        for summand in node.inputs:
            product = self.producer.get(self.origin(summand))
            if product is None or product.op != "Mul":
                continue
            for gate, value in (product.inputs, product.inputs[::-1]):
                squash = self.gate(gate)
                if squash is None:
                    continue
                difference = self.producer.get(self.origin(value))
                both = difference is not None and difference.op == "Sub"  # z * (state - candidate)
                for name in difference.inputs if both and difference is not None else (value,):
                    state = self.origin(name)
                    if not self.is_made_of(squash.inputs[0], state):
                        yield Update(node, state, graph)

    def origin(self, name: str) -> str:
        """The tensor whose values these are: what carries and reshapes values is passed."""
        while (node := self.producer.get(name)) is not None and node.op in CARRYING and not node.domain:
            name = node.inputs[0]
        return name

    def gate(self, name: str) -> Node | None:
        """The node that squashes a gate between 0 and 1, behind 1 - gate or not; None for what is none."""
        node = self.producer.get(self.origin(name))
        if node is None or node.domain:
            return None
        if node.op in GATES or (node.op == "Clip" and clip_bounds(node, self.values) == (0.0, 1.0)):
            return node
        if node.op == "Sub" and node.inputs[0] in self.values:
            return self.gate(node.inputs[1])
        return None

    def is_made_of(self, name: str, state: str) -> bool:
        """Whether a tensor is the state, scaled and shifted by constants at most."""
        while (origin := self.origin(name)) != state:
            node = self.producer.get(origin)
            varying = [] if node is None else [each for each in node.inputs if each and each not in self.values]
            if node is None or node.op not in ("Add", "Mul", "Sub", "Div", "Neg") or len(varying) != 1:
                return False
            name = varying[0]
        return True

    def is_start(self, name: str) -> bool:
        """Whether a state can begin with that: an input, a constant, or what is filled with one."""
        maker = self.producer.get(name)
        return name in self.inputs or name in self.values or (maker is not None and maker.op in FILLS)

    def is_fed_back(self, update: Update) -> bool:
        """Whether the new state leaves the graph that the state comes into, and depends on something else, too."""
        pending, seen = [update.node.outputs[0]], set[str]()
        while pending:
            name = pending.pop()
            if name in update.graph.outputs:
                return self.has_other_source(update)
            seen.add(name)
            for reader, _ in self.readers.get(name, ()):
                if reader.op in CARRYING | JOINS | {"Clip"}:
                    pending.extend(each for each in reader.outputs if each not in seen)
        return False

    def has_other_source(self, update: Update) -> bool:
        """Whether the update reads another input than the state, or something from outside of a body."""
        pending, seen = list(update.node.inputs), set[str]()
        while pending:
            name = pending.pop()
            if name in seen or not name or name in self.values:
                continue
            seen.add(name)
            node = self.producer.get(name)
            if node is not None:
                pending.extend((*node.inputs, *captures(node)))
            elif name != update.state:
                return True
        return False

    def outputs_of(self, update: Update) -> Iterator[Node]:
        """What gives out a state: its products with a gate, behind a squashing function or not."""
        for reader in self.behind(update.node.outputs[0]):
            if reader.op in SQUASHES:
                yield from (each for each in self.behind(reader.outputs[0]) if each.op == "Mul" and self.is_gated(each))
            elif reader.op == "Mul" and self.is_gated(reader):
                yield reader

    def gated(self, state: str) -> Iterator[Node]:
        """The products of a state with a gate (the reset gate of a GRU)."""
        return (node for node in self.behind(state) if node.op == "Mul" and self.is_gated(node))

    def is_gated(self, node: Node) -> bool:
        squashes = [self.gate(name) for name in node.inputs]
        return any(
            squash is not None and not self.is_made_of(squash.inputs[0], self.origin(other))
            for squash, other in zip(squashes, node.inputs[::-1], strict=True)
        )

    def behind(self, name: str) -> Iterator[Node]:
        """The readers of a tensor, behind what carries its values."""
        pending, seen = [name], {name}
        while pending:
            for reader, _ in self.readers.get(pending.pop(), ()):
                if reader.op in CARRYING:
                    pending.extend(each for each in reader.outputs if each not in seen)
                    seen.update(reader.outputs)
                else:
                    yield reader

    def arithmetic(self, root: Node) -> Iterator[str]:
        """The names of the nodes that compute `root` from the layers and states before it."""
        pending, seen = [root], {root.name}
        while pending:
            node = pending.pop()
            if node.op in ARITHMETIC:
                yield node.name
            elif node.op not in CARRYING:
                continue
            makers = [self.producer[name] for name in node.inputs if name in self.producer]
            pending.extend(each for each in makers if each.name not in seen)
            seen.update(each.name for each in makers)
