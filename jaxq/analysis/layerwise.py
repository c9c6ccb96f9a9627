"""Simulation and runtime layer by layer: each layer of the simulation reads what the runtime's own layer read.

A value that falls on the other side of a rounding border counts once, where it falls, and is not carried on: what differs by
more than that is a fault of the layer at which it is seen. It is the one walk with another tap: at each *cut*, a tensor that both
sides have, the tap compares the two and goes on with the runtime's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.analysis.outputs import as_array, count_rows, step_of
from jaxq.engine.execute import execute
from jaxq.engine.model import Model
from jaxq.engine.partition import Split
from jaxq.engine.programs import Held, holding
from jaxq.engine.runner import Batch, Network, run, whole
from jaxq.engine.traced import Signature, Traced, signed
from jaxq.graph.cut import between
from jaxq.graph.ir import FrozenDict, Graph, Literal, Node, captures
from jaxq.graph.linear import LINEAR
from jaxq.numerics.distance import apart
from jaxq.ops import find
from jaxq.ops.carriers import QUANTIZERS

CHUNK_BYTES = 256 << 20  # of the runtime's tensors that are held at a time
ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinear")  # first letters of operators that round to integers
GRID = {
    "int8": 1,
    "uint8": 1,
    "int16": 4,
    "uint16": 4,
}  # quantized types -> steps that count as one: sums are of 24 bits
FETCHED = frozenset({*GRID, "int32", "int64", "uint32", "uint64", "bool", "float16", "float32", "float64"})

Fetch = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Open = Callable[[Sequence[str]], Fetch]


@dataclass(frozen=True)
class Span:
    """What makes one cut from others.

    Attributes:
      cut: the tensor.
      nodes: in order; the last one makes the cut.
      roundings: how many quantizers in between no cut shows, so that their single steps are carried on.
    """

    cut: str
    nodes: tuple[Node, ...]
    roundings: int

    @property
    def node(self) -> Node:
        """The one to name: the last with weights, else the last that is no quantizer, else the quantizer."""
        others = [node for node in self.nodes if node.op not in QUANTIZERS]
        linear = [node for node in others if node.op in LINEAR]
        return (linear or others or self.nodes)[-1]

    @property
    def is_random(self) -> bool:
        """Whether its result depends on chance."""
        return is_random(self.nodes[-1])


@dataclass
class Difference:
    """How far both sides are apart at a tensor, over all samples.

    Attributes:
      unit: what counts as one step: of the grid, or, of floats, None.
      largest: the largest difference; infinity where only one side is a number, or the shapes differ.
      squared: the sum of the squares; infinity where the largest is.
      count: of elements.
      low, high: of the runtime's values, and 0.
    """

    unit: float | None
    largest: float = 0.0
    squared: float = 0.0
    count: int = 0
    low: float = 0.0
    high: float = 0.0

    def add(self, found: Any, count: int) -> None:
        """One more sample of `count` elements, as `distance` gives it."""
        largest, mean_ratio, low, high = map(float, found)
        self.squared += mean_ratio * count * largest**2 if math.isfinite(largest) else math.inf
        self.largest = max(self.largest, largest)
        self.low, self.high, self.count = min(self.low, low), max(self.high, high), self.count + count

    @property
    def step(self) -> float:
        """One step: of the grid, or that of 8 bits over the runtime's values."""
        return max((self.high - self.low) / 255, 1e-30) if self.unit is None else self.unit

    @property
    def steps(self) -> float:
        """The largest difference in steps."""
        return self.largest / self.step

    @property
    def typical_steps(self) -> float:
        """The root of the mean squared difference, in steps."""
        return (self.squared / max(self.count, 1)) ** 0.5 / self.step


class Layers:
    """The layers of a model between the tensors that a runtime shows, and how far both sides are apart at each.

    Args:
      model: with its quantizers as nodes.
      shown: the names of the tensors that the runtime can give out.
      open_: makes a function that runs it on a sample and gives the values of such tensors.
      compiled: for another runtime of the same file; what both need is compiled once.
      every: cut at every tensor, not only where values are rounded: to find the node inside of a layer.

    Attributes:
      layers: cut -> what makes it.
      differences: cut -> how far both sides are apart.
      rows: cut behind the compiled part (`jaxq.engine.partition`) -> (rows that both sides have, rows).
    """

    def __init__(
        self,
        model: Model,
        shown: Collection[str],
        open_: Open,
        compiled: Held | None = None,
        *,
        every: bool = False,
    ):
        self.model, self.shown, self.open, self.every = model, frozenset(shown), functools.cache(open_), every
        self.compiled = Held() if compiled is None else compiled
        self.layers: dict[str, Span] = {}
        self.differences: dict[str, Difference] = {}
        self.rows: dict[str, tuple[int, int]] = {}
        self._plans: dict[Signature, tuple[list[_Chunk], _Tail | None]] = {}

    def add(self, feed: Mapping[str, Any]) -> None:
        """Compares on one more sample."""
        signature, inputs = signed(self.model.graph, feed)
        if signature not in self._plans:
            traced = self.model.traced(signature)
            tail = None if traced.parts.tail is None else _Tail(traced.parts, self.model.params, self.shown, self.open)
            self._plans[signature] = list(self._plan(traced)), tail
        chunks, tail = self._plans[signature]
        with holding(self.compiled):
            for chunk in chunks:
                for name, (found, count, unit) in chunk.compare(feed, inputs).items():
                    self.differences.setdefault(name, Difference(unit)).add(found, count)
        if tail is None:
            return
        for node, name, (matched, total) in tail.compare(feed):
            self.layers.setdefault(name, Span(name, (node,), 0))
            before = self.rows.get(name, (0, 0))
            self.rows[name] = (before[0] + matched, before[1] + total)

    def _plan(self, traced: Traced) -> Iterator[_Chunk]:
        """The layers for samples like this one, in chunks of which the runtime's tensors fit into memory."""
        head, params, shapes = self.model.laid_out(traced.head), self.model.program.params, traced.tensors
        cuts = [name for node in head.nodes for name in node.outputs if self._is_cut(node, name, shapes)]
        for name in cuts:
            if name not in self.layers:
                nodes = between(head, cuts, [name]).nodes
                inside = sum(rounds(node, params) for node in nodes)
                self.layers[name] = Span(name, nodes, inside - nodes[-1].op.startswith(ROUNDING))
        for part in in_chunks(cuts, shapes):
            graph = between(head, cuts, part)
            reads = [name for name in graph.inputs if name in cuts]
            used = {name for node in graph.nodes for name in (*node.inputs, *captures(node))}
            yield _Chunk(
                graph,
                traced.static,
                {name: params[name] for name in used if name in params},
                self.open((*part, *reads)),
                {name: GRID.get(shapes[name].dtype.name) for name in part},
            )

    def _is_cut(self, node: Node, name: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
        """Whether both sides have the tensor, and it is rounded, an output, or of a node with a body."""
        if name not in self.shown or name not in shapes or shapes[name].dtype.name not in FETCHED:
            return False
        is_float = shapes[name].dtype.name.startswith("float")
        return self.every or not is_float or bool(node.subgraphs) or is_random(node) or name in self.model.graph.outputs


def at_cuts(networks: tuple[Network, ...], params: Any, feed: Batch) -> dict[str, Any]:
    """{cut: what `distance` gives}: the network's outputs are its cuts, and the runtime's tensors are beside the feed."""
    (network,), given = networks, feed.beside

    def tap(name: str, value: jax.Array, found: Any) -> tuple[jax.Array, Any]:
        if name not in given:
            return value, found
        theirs = given[name]
        if name in network.graph.outputs:
            found = {**found, name: distance(value, theirs)}
        return theirs.astype(value.dtype) if theirs.shape == value.shape else value, found

    reads = {name: value for name, value in given.items() if name not in network.graph.outputs}
    found: dict[str, Any] = network(params, {**feed.inputs, **reads}, tap=tap, carry={})[1]
    return found


@dataclass(frozen=True)
class _Chunk:
    """Layers that are compared at a time: their graph, its weights, the runtime's tensors, and cut -> unit."""

    graph: Graph
    static: FrozenDict[str, Literal]
    params: Mapping[str, Any]
    fetch: Fetch
    units: Mapping[str, float | None]

    def compare(self, feed: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Cut -> (what `distance` gives, number of elements, unit), for the cuts that depend on the data."""
        given = {name: narrow(value) for name, value in self.fetch(feed).items()}
        batch = Batch(dict(inputs), beside=given)
        found = jax.device_get(run(at_cuts, whole, (self.graph,), self.static, batch, self.params))
        return {name: (each, given[name].size, self.units[name]) for name, each in found.items()}


class _Tail:
    """The part that the host runs, node by node, each on the runtime's own values; their shapes may depend on these."""

    def __init__(self, parts: Split, params: Mapping[str, Any], shown: Collection[str], open_: Open):
        assert parts.tail is not None, "there is a tail to run"
        self.tail, self.nodes = parts.tail, parts.tail.nodes
        touched = {name for node in self.nodes for name in (*node.inputs, *captures(node), *node.outputs)}
        self.known = {name: np.asarray(params[name]) for name in touched if name in params} | dict(parts.known)
        self.fetch = open_(tuple(sorted(name for name in touched if name in shown)))

    def compare(self, feed: Mapping[str, Any]) -> Iterator[tuple[Node, str, tuple[int, int]]]:
        """(node, a result of it, (rows that both sides have, rows)) for all that the runtime shows."""
        given = self.fetch(feed)
        values = {**self.known, **{name: np.asarray(value) for name, value in feed.items()}, **given}
        for node in self.nodes:
            outputs = tuple(filter(None, node.outputs))
            read = {name for name in (*node.inputs, *captures(node)) if name}
            if not read <= {*values, *self.tail.constants}:
                continue  # of a node of which nothing is shown, behind another
            part = replace(self.tail, nodes=(node,), outputs=outputs)
            with jax.enable_x64(True):
                found, _ = execute(part, {}, {name: values[name] for name in read if name in values}, concrete=True)
            for name in outputs:
                values.setdefault(name, found[name])
                if name in given and not is_random(node):
                    ours, theirs = as_array(found[name]), as_array(given[name])
                    step = step_of([theirs]) if theirs.dtype.kind == "f" else 0.0
                    yield node, name, count_rows(ours, theirs, step)


def in_chunks(cuts: Sequence[str], shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[list[str]]:
    """The cuts in groups of neighbours that take up to `CHUNK_BYTES`."""
    part: list[str] = []
    size = 0
    for name in cuts:
        part.append(name)
        size += shapes[name].size * shapes[name].dtype.itemsize
        if size > CHUNK_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def rounds(node: Node, params: Collection[str]) -> int:
    """How often a node, or the nodes inside of it, rounds what is no weight to integers."""
    own = node.op.startswith(ROUNDING) and node.inputs[0] not in params
    return own + sum(rounds(inner, params) for sub in node.subgraphs for inner in sub.nodes)


def is_random(node: Node) -> bool:
    """Whether the result depends on chance."""
    return node.op != "Dropout" and "seed" in find(node.op, node.domain, node.version).attributes


def distance(ours: jax.Array, theirs: jax.Array) -> tuple[Any, Any, Any, Any]:
    """(largest difference, mean squared ratio to it, lowest, highest of theirs).

    Of integers that are no quantized values, two that differ are one apart. What is a number on one side alone is infinitely
    far, as are two shapes.
    """
    if ours.shape != theirs.shape:
        return np.float32(np.inf), np.float32(1), np.float32(0), np.float32(0)
    counted = ours.dtype.name in GRID or jnp.issubdtype(ours.dtype, np.floating)
    if not counted:
        ours, theirs = (ours != theirs.astype(ours.dtype)), jnp.zeros(ours.shape, bool)
    theirs = theirs.astype(np.float32)
    found = apart(ours.astype(np.float32), theirs, jnp)
    largest = jnp.max(found, initial=0.0)
    ratio = found / jnp.where((largest > 0) & jnp.isfinite(largest), largest, np.float32(1))
    squared = jnp.sum(jnp.where(jnp.isfinite(ratio), ratio, np.float32(0)) ** 2) / max(found.size, 1)
    ends = jnp.where(jnp.isfinite(theirs), theirs, np.float32(0))
    return largest, squared, jnp.min(ends, initial=0.0), jnp.max(ends, initial=0.0)


def narrow(value: Any) -> np.ndarray:
    """A value of the runtime as JAX holds it: integers and floats of 64 bits in 32."""
    array = np.asarray(value)
    return array.astype(
        {"int64": np.int32, "uint64": np.uint32, "float64": np.float32}.get(array.dtype.name, array.dtype)
    )
