"""Rewrites of a model: (graph, params) in, (graph, params) out, the function of the model unchanged.

If nothing changes, a pass returns the same objects. Passes that need no numbers work on the graph alone.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.errors import JaxqError
from jaxq.graph.ir import (
    FrozenDict,
    Graph,
    Literal,
    Node,
    TensorType,
    captures,
    constants,
    graphs,
    map_nodes,
    tensor_names,
    unused_name,
)
from jaxq.ops import MOST_BYTES, TooLarge, find
from jaxq.ops.budget import Budget
from jaxq.ops.carriers import MOVING
from jaxq.ops.evaluate import run_static

Params = Mapping[str, Any]
Pass = Callable[[Graph, Params], tuple[Graph, Params]]

# Folding stops at these: their result depends on chance, or their place in the graph carries meaning.
NEVER_FOLDED = frozenset(
    [
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
    ]
)


def until_stable(*passes: Pass) -> Pass:
    """One pass that runs `passes` in order, again and again, until none changes anything."""

    def run(graph: Graph, params: Params) -> tuple[Graph, Params]:
        while True:
            before = graph
            for each in passes:
                graph, params = each(graph, params)
            if graph is before:
                return graph, params

    return run


class Numbers:
    """The params of a model while a pass changes them: what one reader asks for changes nothing for another.

    Attributes:
      params: the params as they are now.
    """

    def __init__(self, graph: Graph, params: Mapping[str, Any]):
        self._graph, self._before = graph, params
        self.params = dict(params)
        self._constants = constants(graph)
        self._taken = {*tensor_names(graph), *params}
        self._uses = graph.wiring.uses
        self._made: dict[Any, str] = {}

    def get(self, name: str) -> np.ndarray | None:
        """The value of a param or a constant in float64; None of anything else."""
        value = self.params.get(name, self._constants.get(name))
        return None if value is None or value.dtype == object else np.asarray(value, np.float64)

    def put(self, name: str, value: np.ndarray, new: str, dtype: Any) -> str:
        """The name of a param with that value, to be read in place of `name`: the same if nobody else reads that, else `new`.

        Several readers of one param that ask for the same value get one param, so that a shared weight stays shared.
        """
        value = value.astype(dtype)
        if name in self.params and self._uses[name] == 1:
            self.params[name] = value
            return name
        key = (name, value.shape, value.tobytes())
        if not name or key not in self._made:
            self._made[key] = unused_name(new, self._taken)
            self.params[self._made[key]] = value
        return self._made[key]

    def own(self, name: str, value: np.ndarray, new: str, dtype: Any) -> str:
        """The same for what must have one reader: a bias, which is in units of one layer's products."""
        return self.put(name if self._uses[name] == 1 else "", value, new, dtype)

    def result(self, graph: Graph) -> tuple[Graph, Mapping[str, Any]]:
        """What a pass returns: the graph and these params, or the same objects as before if nothing changed."""
        same = all(self.params[name] is value for name, value in self._before.items())
        same = same and len(self.params) == len(self._before) and graph is self._graph
        return (graph, self._before) if same else (graph, self.params)

    def is_own(self, name: str) -> bool:
        """Whether the tensor is a param that nothing else reads, and no graph gives out."""
        return name in self.params and self._uses[name] == 1


def lift_constants(graph: Graph, params: Params, largest: int) -> tuple[Graph, Params]:
    """Decides which initializers are structure (`graph.constants`) and which are numbers (params).

    Structure is: whatever a static operand (axes, sizes, scales of Resize, branch conditions) is computed from, integers and
    booleans of up to `largest` elements, scalars, and strings. All other floats are params. Graph inputs of rank 0 or 1
    from which a static operand is computed, and strings, become `graph.static_inputs`.
    """
    scalars = [name for name in graph.inputs if may_be_static(graph.types.get(name))]
    needed = static_sources(graph, given_data(graph, set(graph.inputs).difference(scalars)))
    lifted = {}
    for name, value in params.items():
        small = value.size <= largest
        eight_bit = value.dtype.itemsize == 1 and value.dtype.kind != "b"  # weights of an already quantized model
        integer = value.dtype.kind in "iubO" and not (eight_bit and value.ndim > 1)
        if value.dtype.kind == "O" or (small and (name in needed or integer or value.ndim == 0)):
            lifted[name] = Literal.of(value)
    strings = {name for name in graph.inputs if name in graph.types and graph.types[name].dtype == "object"}
    static = tuple(name for name in graph.inputs if name in strings or (name in scalars and name in needed))
    if not lifted and static == graph.static_inputs:
        return graph, params
    kept = {name: value for name, value in params.items() if name not in lifted}
    return replace(graph, constants=graph.constants | lifted, static_inputs=static), kept


def may_be_static(declared: TensorType | None) -> bool:
    """Whether a graph input may hold sizes, axes, scales or a switch.

    That is: integers or booleans of rank 0 or 1, or of unknown rank; and floats of rank 0 or 1 of a fixed small size.
    """
    if declared is None or declared.within:
        return False
    shape = declared.shape
    if declared.dtype.startswith(("int", "uint", "bool")):
        return shape is None or len(shape) <= 1
    return shape is not None and len(shape) <= 1 and all(isinstance(size, int) and size <= 8 for size in shape)


def given_data(graph: Graph, inputs: Iterable[str]) -> set[str]:
    """Every tensor of the graph, its branches and loops that depends on the values of `inputs`, which includes them."""
    data = set(inputs)

    def spread(graph: Graph) -> None:
        for node in graph.nodes:
            before = -1
            while len(data) != before:  # once more around a loop
                before = len(data)
                for sub in node.subgraphs:
                    data.update(name for name, sources in entering(node, sub) if not data.isdisjoint(sources))
                    spread(sub)
            if node.op not in ("Shape", "Size") and not data.isdisjoint({*node.inputs, *captures(node)}):
                data.update(filter(None, node.outputs))

    spread(graph)
    return data


def entering(node: Node, body: Graph) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(input of a loop's body, the tensors that it can be: what the node reads, and what the body gives to the next turn)."""
    skipped, shift = (2, 1) if node.op == "Loop" else (0, 0)  # the number of the turn, and the condition
    states = len(body.inputs) - int(node.attributes.get("num_scan_inputs", 0))
    for place, name in enumerate(body.inputs):
        if place >= skipped:
            carried = body.outputs[place - shift : place - shift + 1] if place < states else ()
            yield name, (*node.inputs[place : place + 1], *carried)


def static_sources(graph: Graph, data: Container[str] | None = None) -> set[str]:
    """Every tensor that a static operand is computed from, not looking through Shape and Size.

    With `data`, the tensors that are not known anyway: not looking beyond these, nor at nodes that need one of them.
    """
    producers = dict(graph.wiring.producers)
    for _, node in graph.walk():  # what enters a body is made by the node that holds it, from its own inputs
        producers.update({name: node for sub in node.subgraphs for name in sub.inputs})
    needed: set[str] = set()
    pending = []
    for _, node in graph.walk():
        entry = find(node.op, node.domain, node.version)
        operands = [name for index, name in enumerate(node.inputs) if name and entry.needs_static(index)]
        if data is None and node.op == "Loop":  # its own condition, which decides the number of turns
            operands += [sub.outputs[0] for sub in node.subgraphs]
        if data is None or not (entry.data_dependent or any(name in data for name in operands)):
            pending.extend(operands)
    while pending:
        name = pending.pop()
        if name in needed or (data is not None and name in data):
            continue
        needed.add(name)
        maker = producers.get(name)
        if maker is not None and maker.op not in ("Shape", "Size"):
            pending.extend(source for source in maker.inputs if source)
            pending.extend(captures(maker))
            for sub in maker.subgraphs:
                pending.extend(sub.outputs)
    return needed


def fold_constants(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Computes, once, each node that reads only constants and params.

    Small results of constants become constants, everything else a param. A param that replaces the only use of another one
    (a transposed or converted weight) takes over its name.
    """
    constants: dict[str, Literal] = dict(graph.constants)
    numbers: dict[str, Any] = dict(params)
    uses = {name: len(places) for name, places in graph.consumers.items()}
    renamed: dict[str, str] = {}
    budget = Budget(MOST_BYTES + 4 * sum(value.nbytes for value in params.values()))
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)) if renamed else node
        results = _fold(node, constants, numbers, budget)
        if results is None:
            nodes.append(node)
            continue
        sources = [name for name in node.inputs if name in numbers]
        for name, value in zip(node.outputs, results, strict=False):
            if not name:
                continue
            if not sources and (value.dtype.kind in "iubO" or value.size <= 16):
                constants[name] = Literal.of(value)
                continue
            alone = len(sources) == 1 and uses[sources[0]] == 1 and len(node.outputs) == 1
            if alone and not {name, sources[0]} & set(graph.outputs):
                renamed[name] = sources[0]
                uses[sources[0]] = uses.get(name, 0)
                name = sources[0]
            numbers[name] = value
    if len(nodes) == len(graph.nodes):
        return graph, params
    if renamed:
        nodes = [_rename_captures(node, renamed) for node in nodes]
    return replace(graph, nodes=tuple(nodes), constants=FrozenDict(constants)), numbers


def _fold(node: Node, constants: Mapping[str, Literal], params: Params, budget: Budget) -> list[np.ndarray] | None:
    """The node's results if all of its inputs are known, else None."""
    if node.op in NEVER_FOLDED or node.subgraphs:
        return None
    if not all(not name or name in constants or name in params for name in node.inputs):
        return None
    arguments: list[Any] = [
        None if not name else constants[name].array if name in constants else np.asarray(params[name])
        for name in node.inputs
    ]
    entry = find(node.op, node.domain, node.version)
    attributes = dict(node.attributes)
    if "output_count" in entry.attributes:
        attributes["output_count"] = len(node.outputs)
    try:
        results = run_static(entry, arguments, attributes, budget)
    except JaxqError as error:
        if isinstance(error, TooLarge) and any(name in params for name in node.inputs):
            return None
        error.args = (f"{node}: {error}",)
        raise
    except Exception:  # whatever is wrong is reported, with its shapes, when the node is run
        return None
    results = list(results) if isinstance(results, tuple) else [results]
    if not all(isinstance(value, np.ndarray) for value in results):  # a sequence is structure, and costs nothing
        return None
    grown = sum(value.nbytes for value in results) > 2 * sum(a.nbytes for a in arguments if a is not None) + (1 << 20)
    weights = any(name in params for name in node.inputs)
    return None if grown and weights else results


def _rename_captures(node: Node, renamed: Mapping[str, str]) -> Node:
    """The node with captured names replaced inside of its subgraphs."""
    if not captures(node) & renamed.keys():
        return node

    def rename(_: Graph, inner: Node) -> tuple[Node, ...]:
        inputs = tuple(renamed.get(name, name) for name in inner.inputs)
        return (inner if inputs == inner.inputs else replace(inner, inputs=inputs),)

    attributes = {
        key: replace(sub, outputs=tuple(renamed.get(name, name) for name in sub.outputs))
        if isinstance(sub := map_nodes(value, rename) if isinstance(value, Graph) else value, Graph)
        else value
        for key, value in node.attributes.items()
    }
    return replace(node, attributes=FrozenDict(attributes))


def drop_identity(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Removes Identity and inference-time Dropout, except where they give a graph output its name.

    Left alone: Dropout whose mask is used, and nodes inside of subgraphs (an output there may be a captured tensor).
    """
    source = {
        node.outputs[0]: node.inputs[0]
        for node in graph.nodes
        if node.outputs[0] not in graph.outputs
        and (
            node.op == "Identity"
            or (
                node.op == "Dropout"
                and not any(name in graph.consumers or name in graph.outputs for name in node.outputs[1:])
            )
        )
        and node.domain == ""
        and not (node.op == "Dropout" and len(node.inputs) > 2)  # training mode is a third input
    }
    if not source:
        return graph, params

    def origin(name: str) -> str:
        while name in source:
            name = source[name]
        return name

    nodes = []
    for node in graph.nodes:
        if node.outputs[0] in source:
            continue
        inputs = tuple(map(origin, node.inputs))
        node = node if inputs == node.inputs else replace(node, inputs=inputs)
        nodes.append(_rename_captures(node, {name: origin(name) for name in source}))
    return replace(graph, nodes=tuple(nodes)), params


def drop_unused(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Removes nodes, constants and params that no output needs."""
    needed = set(graph.outputs)
    nodes = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            needed.update(captures(node))
            nodes.append(node)
    inner = {
        name
        for node in nodes
        for sub in node.subgraphs
        for _, each in sub.walk()
        for name in (*each.inputs, *captures(each))
    }
    inner |= {name for node in nodes for sub in node.subgraphs for name in sub.outputs}
    kept = {name: value for name, value in params.items() if name in needed or name in inner}
    constants = {name: value for name, value in graph.constants.items() if name in needed or name in inner}
    if len(nodes) == len(graph.nodes) and len(kept) == len(params) and len(constants) == len(graph.constants):
        return graph, params
    return replace(graph, nodes=tuple(reversed(nodes)), constants=FrozenDict(constants)), kept


def keep_outputs_exact(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Gives the readers of a param that is an output too, of the model or a branch, as it is or moved, a param of their own.

    Whatever becomes of that one, the output keeps its values. Both are the same array.
    """
    pending = [name for inner in graphs(graph) for name in inner.outputs]
    exact, moving = set(pending), set[str]()
    while pending:
        maker = graph.wiring.producers.get(pending.pop())
        if maker is not None and maker.op in MOVING and not maker.domain:
            moving.add(maker.name)
            pending.append(maker.inputs[0])
            exact.add(maker.inputs[0])
    shared = {
        name
        for _, node in graph.walk()
        if node.name not in moving
        for name in node.inputs
        if name in exact and name in params
    }
    if not shared:
        return graph, params
    taken = {*tensor_names(graph), *params}
    own = {name: unused_name(f"{name}@read", taken) for name in sorted(shared)}

    def change(_: Graph, node: Node) -> tuple[Node, ...]:
        if node.name in moving or shared.isdisjoint(node.inputs):
            return (node,)
        return (replace(node, inputs=tuple(own.get(name, name) for name in node.inputs)),)

    return map_nodes(graph, change), {**params, **{own[name]: params[name] for name in own}}


clean = until_stable(fold_constants, drop_identity, drop_unused)
