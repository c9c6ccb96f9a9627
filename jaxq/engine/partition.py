"""A graph in two parts: a head that is compiled, and a tail that the host runs on the head's results.

The shapes of some results depend on values (NonMaxSuppression, NonZero, a loop that collects rows until the data says
stop), so that no program of fixed shapes can make them. Such nodes, and all that depends on them, are the tail: they run in
numpy on values that are there, with their exact meaning, without padding. Everything else, the heavy part of a detector, is
the head: that is what is compiled, quantized and tuned.

Which nodes these are is not listed anywhere. The graph is traced once on shapes alone, and the nodes that ask for a value
that is not known then are the first of the tail.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxq.engine.execute import execute
from jaxq.errors import DynamicShapeError
from jaxq.graph.ir import FrozenDict, Graph, Literal, captures
from jaxq.graph.passes import drop_unused, static_sources
from jaxq.numerics.quantizer import QuantParams, fake_quantize_array
from jaxq.ops import is_static

Shapes = Mapping[str, Any]  # jax.ShapeDtypeStruct by tensor name, lists of them for sequences


@dataclass(frozen=True, eq=False)
class Split:
    """The two parts of a graph, for inputs of certain shapes.

    Attributes:
      head: what is compiled. Its outputs are those of the whole graph that it makes, and the tensors that the tail reads.
      tail: what the host runs, or None. Its inputs are the inputs of the graph and the head's outputs.
      known: values that the tail reads and that depend on shapes alone.
      dtypes: of the head's outputs, as they are in ONNX (JAX may hold 64-bit integers in 32).
      reasons: name of each node of the tail -> why it is there; the first node is the first reason.
    """

    head: Graph
    tail: Graph | None = None
    known: Mapping[str, Any] = FrozenDict()
    dtypes: Mapping[str, Any] = FrozenDict()
    reasons: Mapping[str, str] = FrozenDict()

    @property
    def host_nodes(self) -> frozenset[str]:
        """The names of the tail's nodes, with those of their subgraphs: they stay in float."""
        return frozenset() if self.tail is None else frozenset(node.name for _, node in self.tail.walk())


def split(
    graph: Graph, params: Mapping[str, Any], static: FrozenDict[str, Literal], inputs: Mapping[str, Any]
) -> Split:
    """The parts of `graph` for such inputs; found once for each set of shapes.

    Args:
      graph: the whole.
      params: weights; only shapes and dtypes are looked at.
      static: inputs whose values are known.
      inputs: the others; only shapes and dtypes are looked at.
    """
    if not may_have_tail(graph):
        return Split(graph)
    leaves, structure = jax.tree.flatten((_shapes(graph, params), _shapes(graph, inputs)))
    return _split(graph, static, structure, tuple(leaves))


@functools.lru_cache(maxsize=64)
def may_have_tail(graph: Graph) -> bool:
    """Whether a static operand could depend on the data at all: a quick look that spares most models the trace."""
    return not static_sources(graph).isdisjoint(set(graph.inputs) - set(graph.static_inputs))


def _shapes(graph: Graph, values: Mapping[str, Any]) -> Shapes:
    """Shapes and declared dtypes of values that may have been narrowed to 32 bit."""

    def shape(name: str, value: Any) -> Any:
        declared = graph.types.get(name)
        return jax.ShapeDtypeStruct(value.shape, value.dtype if declared is None else np.dtype(declared.dtype))

    return {name: jax.tree.map(functools.partial(shape, name), value) for name, value in values.items()}


@functools.lru_cache(maxsize=64)
def _split(graph: Graph, static: FrozenDict[str, Literal], structure: Any, leaves: tuple[Any, ...]) -> Split:
    params, inputs = jax.tree.unflatten(structure, leaves)
    reasons: dict[str, str] = {}
    _trace(graph, params, static, inputs, reasons)
    if not reasons:
        return Split(graph)
    late = [node for node in graph.nodes if node.name in reasons]
    early = tuple(node for node in graph.nodes if node.name not in reasons)
    made = {name for node in early for name in node.outputs if name}
    read = {name for node in late for name in (*node.inputs, *captures(node))}
    crossing = tuple(sorted(name for name in made if name in read or name in graph.outputs))
    head = replace(graph, nodes=early, outputs=crossing)
    values = _trace(head, params, static, inputs, None)
    known = {name: value for name, value in values.items() if is_static(value)}
    head = replace(head, outputs=tuple(name for name in crossing if name not in known))
    head, _ = drop_unused(head, params)
    return Split(
        head=head,
        tail=replace(graph, nodes=tuple(late), inputs=(*graph.inputs, *crossing)),
        known=known,
        dtypes={name: jax.tree.map(lambda leaf: leaf.dtype, values[name]) for name in head.outputs},
        reasons=reasons,
    )


def _trace(
    graph: Graph,
    params: Shapes,
    static: FrozenDict[str, Literal],
    inputs: Shapes,
    postponed: dict[str, str] | None,
) -> dict[str, Any]:
    """The outputs of the graph, run on shapes alone in 64 bit: numpy arrays where they are known, else their shapes."""
    fixed = {name: literal.array for name, literal in static.items()}
    known: dict[str, Any] = {}

    def run(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs, _ = execute(graph, params, {**inputs, **fixed}, postponed=postponed)
        known.update({name: value for name, value in outputs.items() if is_static(value)})
        return {name: value for name, value in outputs.items() if name not in known}

    with jax.enable_x64(True):
        shapes = jax.eval_shape(run, params, inputs)
    return {**shapes, **known}


def run_tail(
    parts: Split,
    params: Mapping[str, Any],
    encodings: Mapping[str, QuantParams],
    inputs: Mapping[str, Any],
    found: Mapping[str, Any],
) -> dict[str, Any]:
    """The outputs of the whole graph as numpy arrays, from its inputs and what the head found.

    Raises:
      DynamicShapeError: this runs inside of `jax.jit` or another of JAX's transformations.
    """
    assert parts.tail is not None, "there is a tail to run"
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves([dict(found), dict(inputs)])):
        name, reason = next(iter(parts.reasons.items()))
        raise DynamicShapeError(
            f"{len(parts.reasons)} nodes of this model, from {name!r} on, make results whose shapes depend on the data, so that "
            f"jax.jit, grad and vmap cannot go through them ({reason}) Call the model outside of these, or transform "
            "`model.head(inputs)`, the part before those nodes."
        )
    read = {name for node in parts.tail.nodes for name in (*node.inputs, *captures(node))} | {*parts.tail.outputs}
    weights = {name: _weight(value, encodings.get(name)) for name, value in params.items() if name in read}
    crossing = {
        name: jax.tree.map(lambda leaf, dtype: np.asarray(leaf).astype(dtype), value, parts.dtypes[name])
        for name, value in found.items()
    }
    given = {name: jax.tree.map(np.asarray, value) for name, value in inputs.items()}
    with jax.enable_x64(True):
        return execute(parts.tail, weights, {**given, **parts.known, **crossing}, concrete=True)[0]


def _weight(value: Any, encoding: QuantParams | None) -> np.ndarray:
    """A weight as the head sees it, for the rare one that both parts read."""
    return np.asarray(value) if encoding is None else fake_quantize_array(np.asarray(value), encoding)
