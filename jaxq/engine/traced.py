"""What follows from the shapes of a model and its inputs, as one value: found without running anything, once, and handed on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxq.engine.execute import execute
from jaxq.engine.partition import Split, split
from jaxq.errors import InputError
from jaxq.graph.ir import FrozenDict, Graph, Literal, Node
from jaxq.ops.evaluate import narrowed, runs_in_32_bit


@dataclass(frozen=True)
class Signature:
    """What a program is compiled for.

    Attributes:
      static: the inputs whose values decide shapes or branches.
      structure, leaves: of the others, shapes and dtypes; see `inputs`.
    """

    static: FrozenDict[str, Literal]
    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any], static: FrozenDict[str, Literal] | None = None) -> Signature:
        """That of arrays, or of anything that has a shape and a dtype."""
        leaves, structure = jax.tree.flatten(dict(values))
        shapes = tuple(jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in leaves)
        return cls(FrozenDict() if static is None else static, structure, shapes)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.static, self.structure, self.leaves))

    def __hash__(self) -> int:
        return self._hash

    @property
    def inputs(self) -> dict[str, Any]:
        """Input name -> jax.ShapeDtypeStruct, or a list of them."""
        found: dict[str, Any] = jax.tree.unflatten(self.structure, self.leaves)
        return found


def signed(graph: Graph, feed: Mapping[str, Any]) -> tuple[Signature, dict[str, Any]]:
    """The signature of a feed, and its traced inputs; of these, 64-bit integers are narrowed after a range check."""
    static = FrozenDict({name: Literal.of(np.asarray(feed[name])) for name in graph.static_inputs if name in feed})
    traced = {name: value for name, value in feed.items() if name not in static}
    if runs_in_32_bit():
        for name, value in traced.items():
            traced[name] = jax.tree.map(functools.partial(narrowed, what=f"input {name!r}", error=InputError), value)
    return Signature.of(traced, static), traced


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph on inputs of one signature; what is asked of it is found when it is asked first.

    Attributes:
      graph: the whole.
      params: its weights; only shapes and dtypes are looked at.
      signature: of the inputs.
      narrow: whether JAX cuts 64-bit numbers to 32 bit.
    """

    graph: Graph
    params: Mapping[str, Any]
    signature: Signature
    narrow: bool = field(default_factory=runs_in_32_bit)

    @property
    def static(self) -> FrozenDict[str, Literal]:
        """The inputs whose values are known."""
        return self.signature.static

    @functools.cached_property
    def parts(self) -> Split:
        """The part that is compiled, mostly all of it, and what the host does behind it (`jaxq.engine.partition`)."""
        return split(self.graph, self.params, self.signature.static, self.signature.inputs)

    @property
    def head(self) -> Graph:
        """The part that is compiled."""
        return self.parts.head

    @functools.cached_property
    def _made(self) -> _Made:
        return _made(self.head, Signature.of(self.params), self.signature, self.narrow)

    @property
    def tensors(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of each tensor that a tap sees in the head, inputs and params too; of one in a loop, that of a turn."""
        return self._made.tensors

    @functools.cached_property
    def activations(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The same without params."""
        return {name: each for name, each in self.tensors.items() if name not in self.params}

    @property
    def hidden(self) -> frozenset[str]:
        """Names of the tensors that are made where no tap sees them, or that differ from turn to turn of a loop."""
        return self._made.hidden

    @property
    def largest(self) -> int:
        """Bytes of the largest activation, with all turns that are kept of a loop."""
        return self._made.largest

    @property
    def on_host(self) -> frozenset[str]:
        """The outputs that are made behind the compiled part, since their shapes depend on values."""
        tail = self.parts.tail
        late = set() if tail is None else {name for node in tail.nodes for name in node.outputs}
        return frozenset(late.intersection(self.graph.outputs))


class _Made(NamedTuple):
    tensors: FrozenDict[str, jax.ShapeDtypeStruct]
    hidden: frozenset[str]
    largest: int


@functools.lru_cache(maxsize=64)  # models that differ in numbers alone make the same
def _made(head: Graph, params: Signature, signature: Signature, narrow: bool) -> _Made:
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    hidden: set[str] = set()
    fixed = {name: literal.array for name, literal in signature.static.items()}

    def watch(name: str, value: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        shapes[name] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        carry[name] = value
        return value, carry

    def walk(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:  # outputs may be strings, which JAX has not
        return execute(head, params, {**inputs, **fixed}, tap=watch, carry={}, hidden=hidden)[1]

    with jax.enable_x64(not narrow):
        kept = jax.eval_shape(walk, params.inputs, signature.inputs)
    sizes = (each.size * each.dtype.itemsize for name, each in kept.items() if name not in params.inputs)
    return _Made(FrozenDict(shapes), frozenset(hidden), max(sizes, default=1))


# ------------------------------------------------------------------------------------- over all inputs that occur


class Traces(NamedTuple):
    """What running a model makes, over all of some signatures.

    Attributes:
      dtypes: tensor name -> dtype name, of every tensor that a tap sees wherever it is made. Not of one that is hidden in one of
        them, or has another dtype there: what is decided about it would not hold everywhere.
      on_host: names of the nodes that the host runs behind the compiled part in any of them.
      made: names of all tensors, also of those that are made where no tap sees them.
    """

    dtypes: Mapping[str, str]
    on_host: frozenset[str]
    made: frozenset[str]

    @classmethod
    def over(cls, found: Iterable[Traced]) -> Traces:
        """Those of one graph on inputs of several signatures."""
        dtypes: dict[str, set[str]] = {}
        hidden: set[str] = set()
        on_host: set[str] = set()
        for each in found:
            for name, shape in each.tensors.items():
                dtypes.setdefault(name, set()).add(shape.dtype.name)
            hidden |= each.hidden
            on_host |= each.parts.host_nodes
        certain = {name: min(kinds) for name, kinds in dtypes.items() if len(kinds) == 1 and name not in hidden}
        return cls(certain, frozenset(on_host), frozenset(dtypes) | hidden)


def signatures(graph: Graph, samples: Iterable[Mapping[str, Any]]) -> tuple[Signature, ...]:
    """Each signature in the samples once; of a graph without subgraphs, whose nodes run whatever the inputs are, the first.

    Memory does not grow with the samples.
    """
    found: dict[Signature, None] = {}
    for feed in samples:
        found[signed(graph, feed)[0]] = None
        if not any(node.subgraphs for node in graph.nodes):
            break
    return tuple(found)


def untaken_nodes(graph: Graph, found: Traces) -> list[Node]:
    """The nodes in branches that none of the signatures runs."""
    missing: dict[str, Node] = {}
    for _, node in graph.walk():
        if node.op != "If" or node.name in found.on_host:
            continue
        for branch in node.subgraphs:
            within = [inner for _, inner in branch.walk()]
            if found.made.isdisjoint(name for inner in within for name in inner.outputs):
                missing |= {inner.name: inner for inner in within}
    return list(missing.values())
