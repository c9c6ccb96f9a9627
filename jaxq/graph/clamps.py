"""Passes that write every bound by constants as one Clip: runtimes merge that into an integer kernel, and not a Max or Min."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxq.graph.ir import FrozenDict, Graph, Literal, Node, constants, map_graphs, tensor_names, unused_name
from jaxq.graph.passes import Params

Bounds = tuple[float, float]
INPUTS_SINCE = 11  # the opset from which on the bounds of Clip are inputs


def clip_bounds(node: Node, values: Mapping[str, Any]) -> Bounds | None:
    """The constant bounds of a Relu, a Clip, or a Max or Min with one number; None for everything else.

    Args:
      node: any node.
      values: the constants of the model.
    """
    if node.domain:
        return None
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op == "Clip":
        given = [node.attributes.get("min", -np.inf), node.attributes.get("max", np.inf)]
        for index, name in enumerate(node.inputs[1:3]):
            if name:
                value = values.get(name)
                if value is None or value.size != 1 or value.dtype.name != "float32":
                    return None
                given[index] = float(np.asarray(value).reshape(-1)[0])
        return float(given[0]), float(given[1])
    if node.op in ("Max", "Min") and len(node.inputs) == 2:
        numbers = [values[name] for name in node.inputs if name in values]
        if len(numbers) == 1 and numbers[0].dtype == np.float32 and numbers[0].size == 1 and numbers[0].ndim < 2:
            bound = float(numbers[0].reshape(-1)[0])
            if np.isfinite(bound):
                return (bound, np.inf) if node.op == "Max" else (-np.inf, bound)
    return None


def write_clips(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Max and Min with a number become Clip, and a chain of Relus and Clips becomes the last of them, with the bounds of all.

    clamp(clamp(x, a, b), c, d) = clamp(x, clamp(a, c, d), clamp(b, c, d))
    """
    taken = {*tensor_names(graph), *params}
    values = {**constants(graph), **{name: np.asarray(value) for name, value in params.items() if value.size == 1}}
    changed = map_graphs(graph, lambda inner: _write_clips(inner, values, taken))
    return (graph, params) if changed is graph else (changed, params)


def _write_clips(graph: Graph, values: dict[str, np.ndarray], taken: set[str]) -> Graph:
    rewritten: dict[str, Node] = {}
    added: dict[str, Literal] = {}
    for node in graph.nodes:
        found = clip_bounds(node, values)
        if found is None:
            continue
        source = next(name for name in node.inputs if name and name not in values)
        maker = graph.producers.get(source)
        maker = maker if maker is None else rewritten.get(maker.name, maker)
        before = None if maker is None else clip_bounds(maker, {**values, **_arrays(added.items())})
        alone = len(graph.consumers[source]) == 1 and source not in graph.outputs
        if before is not None and alone and maker is not None and not (node.op == "Relu" and maker.op == "Relu"):
            found = float(np.clip(before[0], *found)), float(np.clip(before[1], *found))
            source = next(name for name in maker.inputs if name and name not in values)
        elif node.op not in ("Max", "Min"):
            continue
        rewritten[node.name] = _clip(node, source, found, added, taken)
    if not rewritten:
        return graph
    nodes = tuple(rewritten.get(node.name, node) for node in graph.nodes)
    return replace(graph, nodes=nodes, constants=graph.constants | added)


def _arrays(literals: Iterable[tuple[str, Literal]]) -> dict[str, np.ndarray]:
    return {name: literal.array for name, literal in literals}


def _clip(node: Node, source: str, found: Bounds, added: dict[str, Literal], taken: set[str]) -> Node:
    """The Clip, or the Relu, that gives what `node` gives, from another source and with other bounds."""
    if found == (0.0, np.inf):
        return Node("Relu", (source,), node.outputs, name=node.name, version=node.version)
    finite = {role: bound for role, bound in zip(("min", "max"), found, strict=True) if np.isfinite(bound)}
    if node.version < INPUTS_SINCE:
        attributes = FrozenDict(finite)
        return Node("Clip", (source,), node.outputs, attributes, name=node.name, version=node.version)
    names = []
    for role in ("min", "max"):
        names.append(unused_name(f"{node.outputs[0]}.{role}", taken) if role in finite else "")
        if role in finite:
            added[names[-1]] = Literal.of(np.float32(finite[role]))
    operands = (source, *names) if names[1] else (source, names[0])
    return Node("Clip", operands, node.outputs, name=node.name, version=node.version)
