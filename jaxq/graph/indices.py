"""Inputs that pick rows of tables whose sizes are known: token numbers that a table does not have are refused, not clamped.

Only numbers that reach the table as they are given, or shifted by a constant, are looked at; of what is computed from inputs in
another way nobody knows beforehand that it will be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxq.errors import InputError
from jaxq.graph.ir import Graph, Node
from jaxq.ops import ELEMENT_NUMBERS
from jaxq.ops.carriers import KEEPING, QUANTIZERS, REPEATING

MICROSOFT = "com.microsoft"
STORED = KEEPING | QUANTIZERS  # between a table and what it is stored as
INTEGERS = tuple(ELEMENT_NUMBERS[name] for name in ("int32", "int64"))


class IndexBound(NamedTuple):
    """The values that an input may have, low to high, because `node` picks with them from `length` places of `table`."""

    low: int
    high: int
    node: str
    table: str
    length: int


def index_bounds(graph: Graph, params: Mapping[str, Any]) -> dict[str, tuple[IndexBound, ...]]:
    """Input -> what bounds it. Nodes in branches and loops, which may not run, bound nothing."""
    shapes = {name: np.shape(value) for name, value in params.items()}
    shapes |= {name: literal.array.shape for name, literal in graph.constants.items()}
    found: dict[str, list[IndexBound]] = {}
    for node in graph.nodes:
        for index, table, least, axes in _picks(node, graph):
            source = _stored(graph, table, shapes)
            if source is None or not (sizes := shapes[source][axes]):
                continue
            name, offset = _given(graph, index, shapes)
            if name in graph.inputs:
                length = max(sizes)
                low = -length if least is None else least
                found.setdefault(name, []).append(
                    IndexBound(low - offset, length - 1 - offset, str(node.name or node.op), source, length)
                )
    return {name: tuple(bounds) for name, bounds in found.items()}


def _picks(node: Node, graph: Graph) -> Iterator[tuple[str, str, int | None, slice]]:
    """(index tensor, table, the least index if it is not -length, the table's axes that it may be for) of a node."""
    names = (*node.inputs, *[""] * 9)
    if not node.domain and node.op in ("Gather", "GatherElements", "ScatterElements", "Scatter"):
        axis = int(node.attributes.get("axis", 0))
        yield names[1], names[0], None, slice(axis, axis + 1 or None)
    elif not node.domain and node.op in ("GatherND", "ScatterND"):
        first = int(node.attributes.get("batch_dims", 0))
        declared = graph.types.get(names[1])
        last = None if declared is None or not declared.shape else declared.shape[-1]
        yield names[1], names[0], None, slice(first, first + last if isinstance(last, int) else None)
    elif node.domain == MICROSOFT and node.op == "EmbedLayerNormalization":
        for index, table in ((0, 2), (1, 4), (8, 3)):
            yield names[index], names[table], 0, slice(0, 1)


def _stored(graph: Graph, name: str, shapes: Mapping[str, Any]) -> str | None:
    """The param or constant in which a table is stored; None if it is computed."""
    while name not in shapes:
        maker = graph.producers.get(name)
        if maker is None or maker.domain or maker.op not in STORED:
            return None
        name = maker.inputs[0]
    return name


def _given(graph: Graph, name: str, shapes: Mapping[str, Any]) -> tuple[str, int]:
    """The tensor whose values these are, and what was added to them on the way."""
    offset = 0
    while (maker := graph.producers.get(name)) is not None and not maker.domain:
        if maker.op in REPEATING - {"Cast"} or (maker.op == "Cast" and maker.attributes.get("to") in INTEGERS):
            name = maker.inputs[0]
        elif maker.op in ("Add", "Sub") and (number := _integer(graph, maker.inputs[1])) is not None:
            name, offset = maker.inputs[0], offset + (number if maker.op == "Add" else -number)
        elif maker.op == "Add" and (number := _integer(graph, maker.inputs[0])) is not None:
            name, offset = maker.inputs[1], offset + number
        else:
            break
    return name, offset


def _integer(graph: Graph, name: str) -> int | None:
    literal = graph.constants.get(name)
    if literal is None or literal.array.size != 1 or literal.array.dtype.kind not in "iu":
        return None
    return int(literal.array.reshape(()))


def refuse_out_of_range(
    bounds: Mapping[str, tuple[IndexBound, ...]], feed: Mapping[str, Any], sample: str = ""
) -> None:
    """Raises InputError if an input holds an index that the table does not have; `sample` says of which sample, in words."""
    for name, each in bounds.items():
        value = feed.get(name)
        if value is None or isinstance(value, list | jax.core.Tracer) or not np.size(value):
            continue
        array = np.trunc(value) if np.asarray(value).dtype.kind == "f" else np.asarray(value)
        least, most = array.min(), array.max()
        for bound in each:
            if bound.low <= least and most <= bound.high:
                continue
            bad = (array < bound.low) | (array > bound.high) | (array != array)
            place = tuple(int(axis[0]) for axis in np.nonzero(np.atleast_1d(bad)))
            raise InputError(
                f"input {name!r}{sample} holds {np.atleast_1d(value)[place]} at position {list(place)}, but {bound.node!r} picks "
                f"with it from {bound.length} rows of {bound.table!r}: {bound.low} to {bound.high}. ONNX Runtime refuses such an "
                "input; is it for another model, or made by another tokenizer? Repair it, or leave the sample out"
            )
