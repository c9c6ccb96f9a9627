"""Float types other than float32: which of them a model computes in, and the same model in float32.

Integer kernels take float32 and give float32. A model of 16-bit floats may as well compute in float32, which holds all of their
values; its inputs and outputs keep their types, through Casts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxq.engine.model import Model
from jaxq.graph.ir import (
    FrozenDict,
    Graph,
    Literal,
    Node,
    TensorType,
    graphs,
    map_nodes,
    node_names,
    tensor_names,
    unused_name,
)
from jaxq.ops import ELEMENT_NUMBERS, ELEMENT_TYPES

HALVES = frozenset({"float16", "bfloat16"})
DOUBLE = "float64"
FLOATS = HALVES | {"float32", DOUBLE}
FLOAT32 = ELEMENT_NUMBERS["float32"]
TYPE_ATTRIBUTES = (
    "to",
    "dtype",
    "output_datatype",
    "softmax_precision",
    "stash_type",
)  # that name a type by its number


def float_types(model: Model) -> frozenset[str]:
    """The names of the float types that the model's weights, constants, inputs, outputs and conversions have."""
    found = {np.dtype(value.dtype).name for value in model.params.values()}
    for graph in graphs(model.graph):
        found.update(literal.dtype for literal in graph.constants.values())
        found.update(declared.dtype for declared in graph.types.values())
        for node in graph.nodes:
            found.update(filter(None, (type_named(node, key) for key in TYPE_ATTRIBUTES)))
            found.update(value.dtype for value in node.attributes.values() if isinstance(value, (Literal, TensorType)))
    return FLOATS & found


def type_named(node: Node, key: str) -> str | None:
    """The type that an attribute of a node names, if it is one of those that do."""
    number = node.attributes.get(key) if key in TYPE_ATTRIBUTES else None
    return ELEMENT_TYPES.get(number) if isinstance(number, int) else None


def as_declared(model: Model) -> AbstractContextManager[Any]:
    """A context in which the types of a model's tensors are those of the file: JAX takes float64 for float32 otherwise."""
    return jax.enable_x64(True) if DOUBLE in float_types(model) else contextlib.nullcontext()


def to_replace(model: Model) -> frozenset[str]:
    """The float types in whose place the model may as well compute in float32.

    16-bit ones always. 64-bit ones where there are no others: a part of a model that computes in float64 does so for a reason.
    None where types cannot be exchanged: bits are reinterpreted, or sequences enter or leave.
    """
    found = float_types(model)
    ends = [*model.inputs.values(), *model.outputs.values()]
    if any(each.within for each in ends) or any(node.op == "BitCast" for _, node in model.graph.walk()):
        return frozenset()
    return found if found == {DOUBLE} else found & HALVES


def in_float32(model: Model, types: Collection[str]) -> Model:
    """The model with float32 in place of `types`, but for its inputs and outputs, which keep theirs, through Casts.

    Weights of 16 bits keep their values, those of 64 are rounded. Names stay, but for what is inside of such an input or output.
    """
    graph = model.graph
    taken, nodes = {*tensor_names(graph), *model.params}, node_names(graph)
    ends = {name: each.dtype for name, each in (model.inputs | model.outputs).items() if each.dtype in types}
    inside = {name: unused_name(f"{name}@float32", taken) for name in ends}

    def cast(source: str, made: str, to: str) -> Node:
        number = next(number for number, name in ELEMENT_TYPES.items() if name == to)
        version = graph.opsets.get("", 13)
        return Node("Cast", (source,), (made,), FrozenDict(to=number), unused_name(made, nodes), version=version)

    before = [cast(name, inside[name], "float32") for name in graph.inputs if name in ends]
    given = {*graph.inputs, *model.params, *graph.constants}
    after = [cast(inside[name], name, ends[name]) for name in graph.outputs if name in ends and name not in given]
    within = converted(graph, types, inside)
    exact = {name: graph.constants[name] for name in graph.outputs if name in graph.constants and name in ends}
    changed = replace(
        within,
        nodes=(*before, *within.nodes, *after),
        inputs=graph.inputs,
        outputs=graph.outputs,
        types=within.types | {name: graph.types[name] for name in ends if name in graph.types},
        constants=within.constants | exact,
    )
    params = {
        inside.get(name, name): np.asarray(value, np.float32) if np.dtype(value.dtype).name in types else value
        for name, value in model.params.items()
    }
    return model.replace(
        graph=changed, params=params | {name: model.params[name] for name in ends if name in model.params}
    )


def converted(graph: Graph, types: Collection[str], names: Mapping[str, str]) -> Graph:
    """The graph with float32 in place of `types` everywhere, and with tensors renamed."""

    def rename(each: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(name, name) for name in each)

    def attribute(node: Node, key: str, value: Any) -> Any:
        if isinstance(value, Graph):
            return converted(value, types, names)
        if isinstance(value, Literal):
            return literal(value, types)
        if isinstance(value, TensorType):
            return replace(value, dtype="float32") if value.dtype in types else value
        return FLOAT32 if type_named(node, key) in types else value

    nodes = tuple(
        replace(
            node,
            inputs=rename(node.inputs),
            outputs=rename(node.outputs),
            attributes=FrozenDict({key: attribute(node, key, value) for key, value in node.attributes.items()}),
        )
        for node in graph.nodes
    )
    known = {names.get(name, name): each for name, each in graph.types.items()}
    return replace(
        graph,
        nodes=nodes,
        inputs=rename(graph.inputs),
        outputs=rename(graph.outputs),
        types=FrozenDict(
            {name: replace(each, dtype="float32") if each.dtype in types else each for name, each in known.items()}
        ),
        constants=FrozenDict({names.get(name, name): literal(each, types) for name, each in graph.constants.items()}),
    )


def literal(value: Literal, types: Collection[str]) -> Literal:
    """The literal, in float32 if it is of one of the types."""
    return Literal.of(value.array.astype(np.float32)) if value.dtype in types else value


def without_needless_casts(graph: Graph, dtypes: Mapping[str, str]) -> Graph:
    """The graph with an Identity for each Cast to the type that its input has, by `dtypes`, already."""

    def change(_: Graph, node: Node) -> tuple[Node, ...]:
        wanted = type_named(node, "to") if node.op == "Cast" and not node.domain else None
        if wanted is None or dtypes.get(node.inputs[0]) != wanted:
            return (node,)
        return (replace(node, op="Identity", attributes=FrozenDict()),)

    return map_nodes(graph, change)
