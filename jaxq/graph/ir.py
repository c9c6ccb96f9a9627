"""The structure of a model: a frozen, hashable graph in ONNX's sense, without any weights.

A `Graph` can be a static argument of `jax.jit`. Tensor names are the keys of everything else (params, statistics,
encodings, reports, the written file) and are kept as they stand in the file. Small values that decide shapes or
structure (axes, target shapes, clip bounds) are part of the structure and live in `constants`; weights do not.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from jaxq.ops import LAID_OUT

K = TypeVar("K")
V = TypeVar("V")
LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})


class FrozenDict(dict[K, V]):
    """A dict that is never changed after it was made, and therefore hashable."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("FrozenDict cannot be changed; build a new one")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse

    def __or__(self, other: Mapping[K, V]) -> FrozenDict[K, V]:  # type: ignore[override]
        return FrozenDict({**self, **other})

    def __reduce__(self) -> Any:
        return FrozenDict, (dict(self),)


@dataclass(frozen=True)
class Literal:
    """A small array that belongs to the structure: equal and hashed by its content."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | tuple[str, ...]

    @classmethod
    def of(cls, value: Any) -> Literal:
        """The literal of a numpy array (any numeric dtype, or strings)."""
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            return cls("object", array.shape, tuple(str(item) for item in array.ravel()))
        return cls(array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())

    @functools.cached_property
    def array(self) -> np.ndarray:
        """The value as a read-only numpy array."""
        if isinstance(self.data, tuple):
            array = np.array(self.data, dtype=object).reshape(self.shape)
        else:
            array = np.frombuffer(self.data, dtype=_dtype(self.dtype)).reshape(self.shape)
        array.flags.writeable = False
        return array


def _dtype(name: str) -> np.dtype:
    """The numpy dtype of that name, also for the types (bfloat16, float8, int4 ...) that ml_dtypes adds."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


@dataclass(frozen=True)
class TensorType:
    """What the file declares of a tensor: dtype name, and per dimension a size, a symbol, or None; shape None: unknown.

    `within` names what holds the tensor, from the outside in: () or some of "optional" and "sequence".
    """

    dtype: str
    shape: tuple[int | str | None, ...] | None = None
    within: tuple[str, ...] = ()

    def __str__(self) -> str:
        dims = "unknown rank" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return "".join(f"{each} of " for each in self.within) + f"{self.dtype}[{dims}]"


@dataclass(frozen=True)
class Node:
    """One operation: which, at which version of its domain, from which tensors to which.

    Always true:
      * an absent optional input or output is the empty string
      * attribute values are int, float, str, tuples of these, `Literal`, or `Graph` (subgraphs)
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: FrozenDict[str, Any] = field(default_factory=FrozenDict)
    name: str = ""
    domain: str = ""
    version: int = 17

    @property
    def subgraphs(self) -> tuple[Graph, ...]:
        return tuple(value for value in self.attributes.values() if isinstance(value, Graph))

    def __str__(self) -> str:
        domain = "" if self.domain in ("", LAID_OUT) else f"{self.domain}."
        return f"node {self.name!r} ({domain}{self.op}, opset {self.version})"


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can run, the names that enter and leave, and what is known of them.

    Always true (`jaxq.onnx_io` checks it, passes keep it):
      * every tensor name is made once, over the graph and its subgraphs together
      * a name that a node reads is an input, a constant, a param, or made by an earlier node (here or in an outer graph)
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: FrozenDict[str, TensorType] = field(default_factory=FrozenDict)  # of inputs and outputs at least
    constants: FrozenDict[str, Literal] = field(default_factory=FrozenDict)
    opsets: FrozenDict[str, int] = field(default_factory=lambda: FrozenDict({"": 17}))
    static_inputs: tuple[str, ...] = ()  # inputs whose values decide shapes or branches: part of the compilation key
    name: str = "graph"

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:  # jit hashes its static arguments on every call
        return hash((self.nodes, self.inputs, self.outputs, self.constants, self.static_inputs))

    @functools.cached_property
    def producers(self) -> Mapping[str, Node]:
        """Tensor name -> the node of this graph that makes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @functools.cached_property
    def consumers(self) -> Mapping[str, tuple[tuple[Node, int], ...]]:
        """Tensor name -> (node, input index) of this graph for each place that reads it; subgraph captures have index -1."""
        readers: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name:
                    readers.setdefault(name, []).append((node, index))
            for name in sorted(captures(node)):
                readers.setdefault(name, []).append((node, -1))
        return {name: tuple(places) for name, places in readers.items()}

    @functools.cached_property
    def wiring(self) -> Wiring:
        """Who makes and reads each tensor, in the graph, its branches and loops together."""
        return Wiring(self)

    def walk(self) -> Iterator[tuple[Graph, Node]]:
        """Every node, those of subgraphs after the node that holds them, each with its own graph."""
        for node in self.nodes:
            yield self, node
            for sub in node.subgraphs:
                yield from sub.walk()


class Wiring:
    """Who makes and who reads each tensor, over a graph, its branches and loops together.

    `Graph.producers` and `Graph.consumers` are those of one graph alone. What a body captures is read by the nodes inside.

    Attributes:
      nodes: as `Graph.walk` gives them.
      producers: tensor name -> the node that makes it.
      readers: tensor name -> (node, input index) for each place that reads it.
      outputs: the outputs of the graph and of the graphs inside.
      uses: tensor name -> how many inputs of nodes, and outputs of graphs, it is.
    """

    def __init__(self, graph: Graph):
        self.nodes = tuple(node for _, node in graph.walk())
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        readers: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name:
                    readers.setdefault(name, []).append((node, index))
        self.readers = {name: tuple(places) for name, places in readers.items()}
        given_out = [name for inner in graphs(graph) for name in inner.outputs]
        self.outputs = frozenset(given_out)
        self.uses = Counter({name: len(places) for name, places in readers.items()})
        self.uses.update(given_out)

    def only_reader(self, name: str) -> tuple[Node, int] | None:
        """The one place that reads a tensor which is no output; None if there are others, or none."""
        places = self.readers.get(name, ())
        return places[0] if len(places) == 1 and name not in self.outputs else None

    def added(self, name: str) -> tuple[Node, str] | None:
        """The Add that alone reads a tensor which is no output, and its other summand; None if there is none."""
        reader = self.only_reader(name)
        if reader is None or reader[0].op != "Add" or reader[0].domain:
            return None
        return reader[0], reader[0].inputs[1 - reader[1]]


def captures(node: Node) -> frozenset[str]:
    """The names that the subgraphs of `node` read from outside of themselves."""
    outside: set[str] = set()
    for sub in node.subgraphs:
        known = {*sub.inputs, *sub.constants}
        for inner in sub.nodes:
            outside.update(name for name in inner.inputs if name and name not in known)
            outside.update(captures(inner) - known)
            known.update(inner.outputs)
        outside.update(name for name in sub.outputs if name not in known)
    return frozenset(outside)


def graphs(graph: Graph) -> Iterator[Graph]:
    """The graph and those of its branches and loops."""
    yield graph
    for node in graph.nodes:
        for sub in node.subgraphs:
            yield from graphs(sub)


def constants(graph: Graph) -> dict[str, np.ndarray]:
    """Every constant of the graph, its branches and loops, as arrays."""
    return {name: literal.array for inner in graphs(graph) for name, literal in inner.constants.items()}


def in_loops(graph: Graph, inside: bool = False) -> Iterator[Node]:
    """The nodes that stand in bodies of loops, and in branches there."""
    for node in graph.nodes:
        if inside:
            yield node
        for sub in node.subgraphs:
            yield from in_loops(sub, inside or node.op in LOOPS)


def tensor_names(graph: Graph) -> set[str]:
    """Every tensor name that the graph and its subgraphs use."""
    names = {*graph.inputs, *graph.outputs, *graph.constants}
    for inner, node in graph.walk():
        names.update(node.inputs, node.outputs, inner.inputs, inner.outputs, inner.constants)
    return names


def node_names(graph: Graph) -> set[str]:
    """The name of every node, those of subgraphs too."""
    return {node.name for _, node in graph.walk()}


def unused_name(name: str, taken: set[str]) -> str:
    """The name, or the name with the first number that makes it new; it is then taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    taken.add(free)
    return free


def map_graphs(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """The graph with `change` applied to it, and before that to those of its branches and loops; the same if nothing changed."""

    def inside(node: Node) -> Node:
        attributes = {
            key: map_graphs(value, change) if isinstance(value, Graph) else value
            for key, value in node.attributes.items()
        }
        same = all(attributes[key] is value for key, value in node.attributes.items())
        return node if same else replace(node, attributes=FrozenDict(attributes))

    nodes = tuple(inside(node) for node in graph.nodes)
    same = all(new is old for new, old in zip(nodes, graph.nodes, strict=True))
    return change(graph if same else replace(graph, nodes=nodes))


def map_nodes(graph: Graph, change: Any) -> Graph:
    """The graph with `change(graph, node) -> tuple of nodes` applied to each node, in subgraphs too.

    Returns the same object when nothing changed.
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        attributes = {
            key: map_nodes(value, change) if isinstance(value, Graph) else value
            for key, value in node.attributes.items()
        }
        if any(attributes[key] is not node.attributes[key] for key in attributes):
            node = replace(node, attributes=FrozenDict(attributes))
        nodes.extend(change(graph, node))
    same = len(nodes) == len(graph.nodes) and all(new is old for new, old in zip(nodes, graph.nodes, strict=True))
    return graph if same else replace(graph, nodes=tuple(nodes))
